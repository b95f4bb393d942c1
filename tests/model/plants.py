"""Mistakes planted in copies of the tables: a checker that cannot find them proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
from attrs import frozen

from protocol import messages as m
from protocol.actions import Action, CloseLink, Operation, Record, RecordKind, Send
from protocol.events import Event as Ev
from protocol.machine import Deadline, Decision, Row, Table
from protocol.phases import Mode, Role
from protocol.source import SOURCE
from protocol.source import SourceState as S
from protocol.standing import Verdict, judge
from protocol.target import TARGET
from protocol.target import TargetState as T
from tests.model.world import Guards, Kind

R = RecordKind
Op = Operation
Tables = tuple[Table[Any], Table[Any]]

SOURCE_GIVES_UP: Final = (Record(R.ABORTED), Op.RESUME_DOMAIN)
TARGET_GIVES_UP: Final = (Record(R.ABORTED), Op.DESTROY_DOMAIN)
TARGET_LOSES: Final = (Record(R.LOST), Op.END_DOMAIN)


def put(table: Table[Any], *rows: Row[Any]) -> Table[Any]:
    """``table`` with these rows, instead of those that it has for the same state, event and mode."""
    replaced = {(row.state, row.event, mode) for row in rows for mode in row.modes}
    kept: list[Row[Any]] = []
    for row in table.rows:
        modes = frozenset(x for x in row.modes if (row.state, row.event, x) not in replaced)
        if modes:
            kept.append(attrs.evolve(row, modes=modes))
    return attrs.evolve(table, rows=(*kept, *rows))


def act(table: Table[Any], state: Any, event: Ev, *actions: Action) -> Table[Any]:
    """``table`` with other actions in one row."""
    rows = [row for row in table.rows if (row.state, row.event) == (state, event)]
    assert rows, (state, event)
    return put(table, *(attrs.evolve(row, actions=actions) for row in rows))


def recover(table: Table[Any], kind: RecordKind, state: Any, *actions: Action) -> Table[Any]:
    return attrs.evolve(table, recovery={**table.recovery, kind: (state, actions)})


def wait(table: Table[Any], waits: Mapping[Any, Deadline | None]) -> Table[Any]:
    """With other deadlines; None takes one away."""
    changed = {**table.deadlines, **waits}
    return attrs.evolve(table, deadlines={s: d for s, d in changed.items() if d is not None})


def drop(table: Table[Any], state: Any, event: Ev) -> Table[Any]:
    rows = tuple(r for r in table.rows if (r.state, r.event) != (state, event))
    assert rows != table.rows, (state, event)
    return attrs.evolve(table, rows=rows)


@frozen
class Plant:
    name: str
    breaks: str
    """The promises of which one must be seen to be broken: "I1 I2"."""
    plant: Callable[[], Tables]
    kind: Kind = Kind.RUNNING
    guards: Guards | None = None


def source(change: Callable[[Table[Any]], Table[Any]]) -> Callable[[], Tables]:
    return lambda: (change(SOURCE), TARGET)


def target(change: Callable[[Table[Any]], Table[Any]]) -> Callable[[], Tables]:
    return lambda: (SOURCE, change(TARGET))


def _send_before_grant(table: Table[Any]) -> Table[Any]:
    actions = (Send(m.Handoff), Record(R.GRANTED))
    return act(
        put(
            table,
            Row(S.PREPARING, Ev.PREPARED, S.HANDING_OFF, actions, frozenset({Mode.COLD})),
        ),
        S.VERIFYING,
        Ev.INSTALLED,
        *actions,
    )


def _wait_and_abort(state: T) -> Callable[[Table[Any]], Table[Any]]:
    def change(table: Table[Any]) -> Table[Any]:
        return wait(
            put(table, Row(state, Ev.DEADLINE, T.ABORTING, TARGET_GIVES_UP)),
            {state: Deadline.HOLD},
        )

    return change


def _resume_before_commit(table: Table[Any]) -> Table[Any]:
    table = act(table, T.CONFIRMING, Ev.DOMAIN_SUSPENDED, Op.RESUME_DOMAIN)
    return act(
        table,
        T.COMMITTING,
        Ev.RESUMED,
        Record(R.COMMITTED),
        Record(R.RUNNING),
        Send(m.HandoffDone),
    )


def _destroy_then_aborted(table: Table[Any]) -> Table[Any]:
    table = act(table, T.COMMITTING, Ev.RESUME_FAILED, Op.DESTROY_DOMAIN)
    return act(
        table,
        T.DENYING,
        Ev.DESTROYED,
        Record(R.ABORTED),
        Send(m.HandoffRefused),
        Record(R.SETTLED),
    )


def _settle_alone(table: Table[Any]) -> Table[Any]:
    return put(table, Row(S.RELEASING, Ev.DEADLINE, S.MOVED, (Record(R.SETTLED), CloseLink())))


def _ask_no_more(table: Table[Any]) -> Table[Any]:
    return wait(table, {S.IN_DOUBT: None})


def _decide_early(table: Table[Any]) -> Table[Any]:
    return attrs.evolve(table, decisions={**table.decisions, T.CONFIRMING: Decision.TARGET})


def _release_early(table: Table[Any]) -> Table[Any]:
    return act(table, S.HANDING_OFF, Ev.HANDOFF_DONE, Op.DESTROY_DOMAIN)


def _never_overridden(table: Table[Any]) -> Table[Any]:
    for state in (S.IN_DOUBT, S.ASKING):
        for event in (Ev.KEEP_ASKED, Ev.GIVE_UP_ASKED):
            table = drop(table, state, event)
    return table


def _stands(role: Role, theirs: Sequence[str], ours: Sequence[str]) -> tuple[Verdict, str]:
    return Verdict.STANDS, ""


def _never_unsure(role: Role, theirs: Sequence[str], ours: Sequence[str]) -> tuple[Verdict, str]:
    verdict, kind = judge(role, theirs, ours)
    return (Verdict.STANDS if verdict is Verdict.UNSURE else verdict), kind


def shipped() -> Tables:
    return SOURCE, TARGET


PLANTS: Final[tuple[Plant, ...]] = (
    Plant("HANDOFF is sent before GRANTED is on disk", "I1 I2", source(_send_before_grant)),
    Plant(
        "cold: HANDOFF is sent before GRANTED is on disk",
        "I1 I2",
        source(_send_before_grant),
        Kind.COLD,
    ),
    Plant(
        "a lost link while handing off resumes the source",
        "I1 I2",
        source(
            lambda t: put(t, Row(S.HANDING_OFF, Ev.LINK_LOST, S.RESUMING_ALONE, SOURCE_GIVES_UP))
        ),
    ),
    Plant(
        "the handoff's deadline resumes the source",
        "I1 I2",
        source(lambda t: put(t, Row(S.HANDING_OFF, Ev.DEADLINE, S.RESUMING, SOURCE_GIVES_UP))),
    ),
    Plant(
        "the source cancels after GRANTED",
        "I1 I2",
        source(lambda t: put(t, Row(S.HANDING_OFF, Ev.CANCEL_ASKED, S.RESUMING, SOURCE_GIVES_UP))),
    ),
    Plant(
        "the source cancels in doubt",
        "I1 I2",
        source(
            lambda t: put(t, Row(S.IN_DOUBT, Ev.CANCEL_ASKED, S.RESUMING_ALONE, SOURCE_GIVES_UP))
        ),
        Kind.SUSPENDED,
    ),
    Plant(
        "recovery of GRANTED gives up",
        "I1 I2",
        source(lambda t: recover(t, R.GRANTED, S.RESUMING_ALONE, *SOURCE_GIVES_UP)),
    ),
    Plant(
        "recovery of COMPLETED resumes",
        "I1 I2",
        source(lambda t: recover(t, R.COMPLETED, S.RESUMING_ALONE, Op.RESUME_DOMAIN)),
    ),
    Plant(
        "the source destroys its copy when the target has installed it",
        "I3",
        source(lambda t: act(t, S.VERIFYING, Ev.INSTALLED, Op.DESTROY_DOMAIN)),
    ),
    Plant("the source destroys without COMPLETED", "I4", source(_release_early)),
    Plant("the source settles without the target's word", "I4", source(_settle_alone)),
    Plant("the source asks no more", "I4", source(_ask_no_more), Kind.COLD),
    Plant(
        "the source cannot lose its link while destroying",
        "I0",
        source(lambda t: drop(t, S.DESTROYING, Ev.LINK_LOST)),
        Kind.COLD,
    ),
    Plant(
        "a GRANTED that may be on disk is forgotten",
        "I1 I2",
        source(
            lambda t: put(t, Row(S.HANDING_OFF, Ev.RECORD_FAILED, S.RESUMING, (Op.RESUME_DOMAIN,)))
        ),
    ),
    Plant(
        "a withdrawal that was not answered counts",
        "I1 I2",
        source(lambda t: act(t, S.WITHDRAWING, Ev.LINK_LOST, Op.RESUME_DOMAIN)),
    ),
    Plant(
        "a target without its journal counts as refusing",
        "I1 I2",
        source(
            lambda t: put(
                t, Row(S.ASKING, Ev.JOURNAL_LOST, S.RESUMING_ALONE, (CloseLink(), *SOURCE_GIVES_UP))
            )
        ),
    ),
    Plant(
        "nobody can keep the domain of a host that is fenced",
        "I4",
        source(_never_overridden),
        Kind.SUSPENDED,
    ),
    Plant(
        "nobody can settle what a fenced source handed off",
        "I4",
        target(lambda t: drop(t, T.RUNNING, Ev.KEEP_ASKED)),
        Kind.COLD,
    ),
    Plant(
        "the target's deadline aborts a commit", "I1 I2 I3", target(_wait_and_abort(T.COMMITTING))
    ),
    Plant(
        "the target's deadline aborts what runs",
        "I1 I2 I3",
        target(_wait_and_abort(T.RUNNING)),
        Kind.COLD,
    ),
    Plant("the target resumes before COMMITTED", "I1 I2 I3", target(_resume_before_commit)),
    Plant(
        "HANDOFF_DONE is sent before the resume",
        "I2 I3",
        target(
            lambda t: act(
                t,
                T.CONFIRMING,
                Ev.DOMAIN_SUSPENDED,
                Record(R.COMMITTED),
                Send(m.HandoffDone),
                Op.RESUME_DOMAIN,
            )
        ),
    ),
    Plant(
        "RUNNING is never recorded",
        "I4",
        target(lambda t: act(t, T.COMMITTING, Ev.RESUMED, Send(m.HandoffDone))),
        Kind.RUNNING,
    ),
    Plant(
        "an aborting target answers HANDOFF_DONE",
        "I3",
        target(lambda t: put(t, Row(T.ABORTING, Ev.HANDOFF, T.ABORTING, (Send(m.HandoffDone),)))),
    ),
    Plant(
        "an aborted target answers HANDOFF_DONE",
        "I3",
        target(lambda t: act(t, T.ABORTED, Ev.HANDOFF, Send(m.HandoffDone))),
        Kind.COLD,
    ),
    Plant(
        "recovery of PREPARED takes the domain over",
        "I1 I2",
        target(lambda t: recover(t, R.PREPARED, T.PROBING, Op.PROBE_DOMAIN)),
    ),
    Plant(
        "recovery of COMMITTED aborts",
        "I2 I3",
        target(lambda t: recover(t, R.COMMITTED, T.ABORTING, *TARGET_GIVES_UP)),
    ),
    Plant(
        "the target refuses before ABORTED is on disk",
        "I1 I2",
        target(
            lambda t: act(
                t, T.COMMITTING, Ev.RESUME_FAILED, Send(m.HandoffRefused), *TARGET_GIVES_UP
            )
        ),
    ),
    Plant("the target destroys, then records ABORTED", "I3", target(_destroy_then_aborted)),
    Plant(
        "an unknown resume is denied",
        "I2 I3",
        target(lambda t: put(t, Row(T.COMMITTING, Ev.RESUME_UNKNOWN, T.DENYING, TARGET_GIVES_UP))),
    ),
    Plant(
        "a lost link aborts a commit",
        "I2 I3",
        target(lambda t: put(t, Row(T.COMMITTING, Ev.LINK_LOST, T.ABORTING, TARGET_GIVES_UP))),
    ),
    Plant(
        "the hold's deadline takes the domain over",
        "I1 I2",
        target(lambda t: put(t, Row(T.READY, Ev.DEADLINE, T.CONFIRMING, (Op.PROBE_DOMAIN,)))),
    ),
    Plant(
        "a copy that was not told to run counts as lost",
        "I3",
        target(lambda t: put(t, Row(T.COMMITTING, Ev.RESUME_NOT_ASKED, T.LOSING, TARGET_LOSES))),
    ),
    Plant(
        "a copy that was not told to run counts as lost, suspended",
        "I3",
        target(lambda t: put(t, Row(T.COMMITTING, Ev.RESUME_NOT_ASKED, T.LOSING, TARGET_LOSES))),
        Kind.SUSPENDED,
    ),
    Plant(
        "a copy that definitely did not run counts as lost",
        "I3",
        target(lambda t: put(t, Row(T.COMMITTING, Ev.RESUME_FAILED, T.LOSING, TARGET_LOSES))),
    ),
    Plant(
        "a copy that never answers is denied",
        "I2 I3",
        target(lambda t: put(t, Row(T.PROBING, Ev.DOMAIN_SILENT, T.DENYING, TARGET_GIVES_UP))),
    ),
    Plant(
        "a copy that does not answer is not asked again",
        "I4",
        target(lambda t: wait(t, {T.PROBE_WAITING: None})),
    ),
    Plant("the target claims the domain before it commits", "I5", target(_decide_early), Kind.COLD),
    Plant(
        "a handed-off domain is called the source's",
        "I4 I5",
        source(lambda t: attrs.evolve(t, decisions={**t.decisions, S.MOVED: Decision.SOURCE})),
        Kind.COLD,
    ),
    Plant(
        "a person may give up what the target never had",
        "I3",
        shipped,
        Kind.SUSPENDED,
        Guards(may_override=lambda event, _: event is Ev.GIVE_UP_ASKED),
    ),
    Plant(
        "a person may keep what runs at a target without its journal",
        "I1 I2",
        shipped,
        guards=Guards(may_override=lambda event, _: event is Ev.KEEP_ASKED),
    ),
    Plant(
        "a journal that was put back is acted on",
        "I1 I2 I3",
        shipped,
        guards=Guards(judge=_stands),
    ),
    Plant(
        "cold: a journal that was put back is acted on",
        "I1 I2 I3",
        shipped,
        Kind.COLD,
        Guards(judge=_stands),
    ),
    Plant(
        "a target denies what only its latest journal can know",
        "I1 I2 I3",
        shipped,
        Kind.COLD,
        Guards(judge=_never_unsure),
    ),
    Plant(
        "a source whose journal is not proven gives up without its target",
        "I1 I2",
        shipped,
        Kind.COLD,
        Guards(withdraws=False),
    ),
)
