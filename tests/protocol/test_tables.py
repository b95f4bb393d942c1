"""The tables are whole: whatever can happen in a state has a row there, and nothing hangs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol import messages as m
from protocol.actions import OUTCOMES, CloseLink, Operation, Record, RecordKind, Send
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.events import EVENT_OF_MESSAGE, PEER_EVENTS, Event, event_of
from protocol.machine import Decision, Machine, Row, Table, restore
from protocol.phases import Mode, Phase
from protocol.source import SOURCE, SourceState
from protocol.target import TARGET, TargetState

TABLES = [SOURCE, TARGET]
MODES = list(Mode)
both = pytest.mark.parametrize("table", TABLES, ids=lambda t: t.side)


def entries(table: Table) -> Iterator[tuple[Mode, object, tuple]]:
    """(mode, state, actions) of every way into a state: rows and recovery."""
    for row in table.rows:
        for mode in row.modes:
            yield mode, row.next_state, row.actions
    for mode in MODES:
        for state, actions in table.recovery.values():
            yield mode, state, actions


def reachable(table: Table, mode: Mode) -> set:
    todo = [
        table.initial,
        *(state for state, _ in table.recovery.values()),
        *table.settled.values(),
    ]
    seen = set()
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += [r.next_state for r in table.rows if r.state == state and mode in r.modes]
    return seen


@both
def test_every_state_can_be_reached_and_is_described(table):
    states = set(type(table.initial))
    assert states == reachable(table, Mode.WARM)
    assert states == set(table.phases) == set(table.decisions)


@both
def test_only_the_last_action_is_an_operation(table):
    for _, state, actions in entries(table):
        assert not any(isinstance(a, Operation) for a in actions[:-1]), state


@both
def test_every_outcome_of_an_operation_has_a_row(table):
    """In the state that starts it, and in every one that is reached without ending it."""
    for mode, state, actions in entries(table):
        if actions and isinstance(actions[-1], Operation):
            under_way = {state}
            todo = [state]
            while todo:
                at = todo.pop()
                for row in table.rows:
                    keeps = not any(isinstance(a, Operation) for a in row.actions)
                    own = row.event in OUTCOMES[actions[-1]]
                    new = row.next_state not in under_way and row.next_state not in table.final
                    if row.state == at and mode in row.modes and keeps and not own and new:
                        under_way.add(row.next_state)
                        todo.append(row.next_state)
            for at in under_way:
                for outcome in OUTCOMES[actions[-1]]:
                    if (actions[-1], outcome, at) in CANNOT_BE:
                        continue
                    assert (at, outcome, mode) in table.index, (actions[-1], outcome, at, mode)


CANNOT_BE = {
    # a journal id is noted at the first contact, so it can only differ later
    (Operation.CONNECT, Event.JOURNAL_LOST, SourceState.CONNECTING),
    (Operation.CONNECT, Event.JOURNAL_LOST, SourceState.DRY_CONNECTING),
}


@both
def test_no_state_waits_for_ever(table):
    """Each state that is no end has an operation under way, a deadline, or waits for the other side's record."""
    for mode in MODES:
        busy = {
            state
            for m_, state, actions in entries(table)
            if m_ is mode and actions and isinstance(actions[-1], Operation)
        }
        for state in reachable(table, mode) - table.final - busy - {table.initial}:
            if state in (TargetState.RUNNING, TargetState.LOST):
                continue  # decided: nothing is held up, and the source comes back
            if state in (
                TargetState.PROBING,
                SourceState.DESTROYING_ALONE,
                SourceState.RESUMING_ALONE,
            ):
                continue  # reached with the operation under way
            assert state in table.deadlines, state


@both
def test_a_deadline_has_a_row(table):
    for mode in MODES:
        for state in reachable(table, mode) & set(table.deadlines):
            assert (state, Event.DEADLINE, mode) in table.index, state


@both
def test_records_that_can_fail_have_a_row_for_that(table):
    for row in table.rows:
        for action in row.actions:
            if isinstance(action, Record) and action.kind in (
                RecordKind.PREPARING,
                RecordKind.GRANTED,
                RecordKind.PREPARED,
                RecordKind.COMMITTED,
            ):
                for mode in row.modes:
                    assert (row.next_state, Event.RECORD_FAILED, mode) in table.index, row


@both
def test_record_then_act(table):
    """In no row does anything stand before its record but good-byes that promise nothing."""
    for _, state, actions in entries(table):
        kinds = [i for i, a in enumerate(actions) if isinstance(a, Record)]
        for i in kinds:
            for earlier in actions[:i]:
                harmless = isinstance(earlier, Record | CloseLink) or (
                    isinstance(earlier, Send)
                    and actions[i].kind in (RecordKind.ABORTED, RecordKind.SETTLED)
                    and earlier.message in (m.Refused, m.HandoffRefused)
                )
                assert harmless, (state, actions)


def rows_that(table: Table, wanted) -> list[Row]:
    return [row for row in table.rows if wanted in row.actions]


def test_handoff_is_sent_only_behind_granted_or_again():
    for row in rows_that(SOURCE, Send(m.Handoff)):
        assert Record(RecordKind.GRANTED) in row.actions or row.state is SourceState.ASKING


def test_after_granted_only_the_targets_answer_resumes_the_source():
    doubtful = {s for s, d in SOURCE.decisions.items() if d is Decision.IN_DOUBT}
    doubtful.add(SourceState.WITHDRAWING)  # GRANTED may be on disk
    for row in SOURCE.rows:
        if row.state in doubtful and Operation.RESUME_DOMAIN in row.actions:
            answered = row.event in (Event.HANDOFF_REFUSED, Event.REFUSED)
            assert answered or row.actions[0] == Record(RecordKind.ABORTED)
            assert (
                answered
                or row.event is Event.KEEP_ASKED
                or row.state not in doubtful - {SourceState.WITHDRAWING}
            )


def test_a_target_that_may_have_committed_aborts_first():
    for row in rows_that(TARGET, Operation.DESTROY_DOMAIN):
        if row.state in (TargetState.COMMITTING, TargetState.COMMITTING_AGAIN, TargetState.PROBING):
            assert row.actions[0] == Record(RecordKind.ABORTED)


def test_the_target_resumes_only_behind_committed():
    for row in rows_that(TARGET, Operation.RESUME_DOMAIN):
        assert (
            row.actions[0] == Record(RecordKind.COMMITTED) or row.state is TargetState.PROBING
        )  # PROBING is only reached with COMMITTED on disk
    assert all(
        row.state
        in (
            TargetState.COMMITTING,
            TargetState.COMMITTING_AGAIN,
            TargetState.PROBING,
            TargetState.PROBE_WAITING,
        )
        for row in TARGET.rows
        if row.next_state is TargetState.PROBING
    )


def test_one_unanswered_probe_loses_nothing():
    ways = {(row.state, row.event) for row in rows_that(TARGET, Record(RecordKind.LOST))}
    again = TargetState.COMMITTING_AGAIN
    assert ways == {
        (TargetState.COMMITTING, Event.DOMAIN_GONE),
        (TargetState.PROBING, Event.DOMAIN_GONE),
        (TargetState.PROBING, Event.DOMAIN_SILENT),
        (again, Event.DOMAIN_GONE),
        (again, Event.RESUME_FAILED),
    }


@both
def test_recovery_and_history_know_every_record(table):
    mine = {a.kind for r in table.rows for a in r.actions if isinstance(a, Record)}
    assert mine - {RecordKind.SETTLED} == set(table.recovery)
    ends = {RecordKind.COMPLETED, RecordKind.ABORTED, RecordKind.RUNNING, RecordKind.LOST} & mine
    assert ends == set(table.settled)


def test_restore_goes_by_the_last_record():
    machine, first = restore(SOURCE, Mode.WARM, [RecordKind.PREPARING, RecordKind.GRANTED])
    assert machine.state is SourceState.ASKING
    assert first == (Operation.CONNECT,)
    machine, first = restore(
        TARGET, Mode.WARM, [RecordKind.PREPARED, RecordKind.ABORTED, RecordKind.SETTLED]
    )
    assert (machine.state, first) == (TargetState.ABORTED, ())
    assert machine.step(Event.HANDOFF) == (Send(m.HandoffRefused),)


def test_the_peers_errors_and_ours_are_told_apart():
    with pytest.raises(RemoteProtocolError, match="unexpected-message"):
        Machine(SOURCE, Mode.WARM).step(Event.HANDOFF_DONE)
    with pytest.raises(LocalProtocolError):
        Machine(SOURCE, Mode.WARM).step(Event.SUSPENDED)


def test_every_message_is_an_event():
    told = {kind for kind in m.MESSAGES if issubclass(kind, m.MigrationMessage)}
    assert told == set(EVENT_OF_MESSAGE) | {m.Checked, m.Installed}
    assert set(EVENT_OF_MESSAGE.values()) <= PEER_EVENTS
    hard = m.Finding(code="c", subject="s", sentence="s", remedy="r", hard=True)
    ident = "0" * 32
    assert event_of(m.Checked(migration=ident, findings=(hard,))) is Event.CHECKS_FAILED
    assert event_of(m.Checked(migration=ident, findings=())) is Event.CHECKS_PASSED
    installed = m.Installed(migration=ident, digest=b"1" * 16)
    assert event_of(installed, digest_sent=b"1" * 16) is Event.INSTALLED
    assert event_of(installed, digest_sent=b"2" * 16) is Event.DIGEST_DIFFERS


def test_phases_go_forward_only_on_the_way_to_the_target():
    order = list(Phase)
    for table in TABLES:
        for row in table.rows:
            if table.decisions[row.next_state] in (Decision.OPEN, Decision.IN_DOUBT):
                assert order.index(table.phases[row.state]) <= order.index(
                    table.phases[row.next_state]
                ), row


@both
def test_a_record_that_stands_twice_counts_once(table):
    for kind, state in table.settled.items():
        history = [kind, kind, RecordKind.SETTLED, RecordKind.SETTLED]
        machine, first = restore(table, Mode.WARM, history)
        assert (machine.state, first) == (state, ())
    for kind, (state, actions) in table.recovery.items():
        machine, first = restore(table, Mode.WARM, [kind, kind])
        assert (machine.state, first) == (state, actions)


@both
def test_records_that_nobody_writes_are_not_guessed_at(table):
    for history in ([RecordKind.SETTLED], [next(iter(table.recovery)), RecordKind.SETTLED]):
        with pytest.raises(LocalProtocolError, match="no way to go on"):
            restore(table, Mode.WARM, history)
