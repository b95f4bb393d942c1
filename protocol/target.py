"""The target's side of a migration, as a table.

The target decides. It may abort alone until COMMITTED is on disk; that record is the decision, and a late or repeated
HANDOFF can only read it. Whatever it answers, it answers after the record that says so. (A refusal needs none of its
own before COMMITTED: all that recovery can do from PREPARED is to abort. So a journal that cannot be written holds up no
refusal, and the source need not wait for it.)

A resume that definitely failed is undone by recording ABORTED *first* and destroying then: a crash between the two is
recovered from ABORTED by destroying again. (The other order would be recovered from COMMITTED with the process gone,
which has to count as LOST: a domain thrown away that never ran here.)

LOST is the last resort. A copy that was not told to run is undone, not lost. One that may run and does not answer is asked
again, with back-off, for as long as the configuration says (``probe-seconds``): nothing runs twice meanwhile, since the
source's copy stays suspended, and a process that was only held up goes on. Then it counts as having run.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from protocol import messages as m
from protocol.actions import Action, CloseLink, Operation, Record, RecordKind, Send
from protocol.events import Event
from protocol.machine import Deadline, Decision, Row, Table, by_state
from protocol.phases import Mode, Phase


class TargetState(enum.StrEnum):
    NEW = "new"
    CHECKING = "checking"
    RESERVED = "reserved"
    PREPARING = "preparing"
    RECEIVING = "receiving"
    INSTALLING = "installing"
    READY = "ready"
    """State installed (or definition taken), waiting for HANDOFF; outlives the link for a while."""
    CONFIRMING = "confirming"
    COMMITTING = "committing"
    COMMITTING_AGAIN = "committing again"
    """Resuming what may have run already: a failure cannot be undone any more."""
    PROBING = "probing"
    PROBE_WAITING = "waiting to probe again"
    """It may run, and does not say so."""
    RUNNING = "running"
    LOSING = "losing"
    LOSE_WAITING = "waiting to end the lost copy"
    LOST = "lost"
    DENYING = "denying"
    DENY_WAITING = "waiting to deny"
    ABORTING = "aborting"
    ABORT_WAITING = "waiting to abort"
    DISMISSED = "dismissed"
    """The end before anything was recorded."""
    ABORTED = "aborted"
    """The end: the domain is the source's, and no copy is here."""
    MOVED = "moved"
    """The end: the domain is ours, and the source has no copy."""
    LOST_SETTLED = "lost, settled"


St = TargetState
Ev = Event
Op = Operation
TargetRow = Row[TargetState]

_GIVE_UP: Final[tuple[Action, ...]] = (Op.DESTROY_DOMAIN,)
_UNDO: Final[tuple[Action, ...]] = (Record(RecordKind.ABORTED), Op.DESTROY_DOMAIN)
"""Where recovery could still take the domain over: COMMITTED is on disk, or may be."""
_END_ABORTED: Final[tuple[Action, ...]] = (Record(RecordKind.ABORTED), Record(RecordKind.SETTLED))
_ANSWER_RUNNING: Final[tuple[Action, ...]] = (Record(RecordKind.RUNNING), Send(m.HandoffDone))
_LOSE: Final[tuple[Action, ...]] = (Record(RecordKind.LOST), Op.END_DOMAIN)
_SETTLE: Final[tuple[Action, ...]] = (Record(RecordKind.SETTLED), Send(m.Settled))
_END_ALONE: Final[tuple[Action, ...]] = (Record(RecordKind.SETTLED), CloseLink())


def _give_up_rows(state: TargetState) -> Iterable[TargetRow]:
    """After PREPARED and before COMMITTED, with nothing that could be handed off yet."""
    for event in (Ev.LINK_LOST, Ev.DEADLINE, Ev.CANCEL, Ev.CANCEL_ASKED, Ev.SUPERSEDED):
        yield Row(state, event, St.ABORTING, _GIVE_UP)


def _dismiss_rows(state: TargetState) -> Iterable[TargetRow]:
    """Before PREPARED: nothing is recorded, so there is only something to say."""
    for event in (Ev.CANCEL, Ev.CANCEL_ASKED, Ev.DEADLINE):
        yield Row(state, event, St.DISMISSED, (Send(m.Refused),))
    yield Row(state, Ev.LINK_LOST, St.DISMISSED)
    yield Row(state, Ev.SUPERSEDED, St.DISMISSED, (CloseLink(),))


def _ignore(state: TargetState, *events: Event) -> Iterable[TargetRow]:
    return (Row(state, event, state) for event in events)


_TOO_LATE: Final = (Ev.LINK_LOST, Ev.CANCEL_ASKED)
"""Past COMMITTED neither a lost link nor an operator changes anything."""

_ROWS: Final[tuple[TargetRow, ...]] = (
    # ---- phase 1: check
    Row(St.NEW, Ev.CHECK, St.CHECKING, (Op.RUN_CHECKS,)),
    *_dismiss_rows(St.NEW),
    Row(St.CHECKING, Ev.CHECKS_CLEAN, St.RESERVED, (Send(m.Checked),)),
    Row(St.CHECKING, Ev.CHECKS_FOUND, St.DISMISSED, (Send(m.Checked),)),
    *_dismiss_rows(St.CHECKING),
    Row(St.RESERVED, Ev.PREPARE, St.PREPARING, (Record(RecordKind.PREPARED), Op.CREATE_DOMAIN)),
    *_dismiss_rows(St.RESERVED),
    # ---- phase 2: prepare
    Row(St.PREPARING, Ev.CREATED, St.RECEIVING, (Send(m.Prepared),), frozenset({Mode.WARM})),
    Row(St.PREPARING, Ev.CREATED, St.READY, (Send(m.Prepared),), frozenset({Mode.COLD})),
    Row(St.PREPARING, Ev.CREATE_FAILED, St.ABORTING, _GIVE_UP),
    Row(
        St.PREPARING, Ev.RECORD_FAILED, St.ABORTING, _GIVE_UP
    ),  # it may be on disk, with its domain
    *_give_up_rows(St.PREPARING),
    # ---- phase 3: transfer
    Row(St.RECEIVING, Ev.DIGEST, St.INSTALLING, (Op.INSTALL_STATE,)),
    *_give_up_rows(St.RECEIVING),
    Row(St.INSTALLING, Ev.STATE_INSTALLED, St.READY, (Send(m.Installed),)),
    Row(St.INSTALLING, Ev.INSTALL_FAILED, St.ABORTING, _GIVE_UP),
    *_give_up_rows(St.INSTALLING),
    # ---- phase 4: handoff. Asked to decide: only a copy that is still there can be taken over
    Row(St.READY, Ev.HANDOFF, St.CONFIRMING, (Op.PROBE_DOMAIN,)),
    *(
        Row(St.READY, event, St.ABORTING, _GIVE_UP)
        for event in (Ev.DEADLINE, Ev.CANCEL, Ev.CANCEL_ASKED, Ev.SUPERSEDED)
    ),
    *_ignore(St.READY, Ev.LINK_LOST),
    Row(
        St.CONFIRMING,
        Ev.DOMAIN_SUSPENDED,
        St.COMMITTING,
        (Record(RecordKind.COMMITTED), Op.RESUME_DOMAIN),
    ),
    *(
        Row(St.CONFIRMING, event, St.DENYING, _GIVE_UP)
        for event in (
            Ev.DOMAIN_GONE,
            Ev.DOMAIN_UNKNOWN,
            Ev.DOMAIN_SILENT,
            Ev.DOMAIN_RUNNING,
            Ev.CANCEL_ASKED,
            Ev.SUPERSEDED,
        )
    ),
    *_ignore(St.CONFIRMING, Ev.LINK_LOST, Ev.HANDOFF),
    Row(St.COMMITTING, Ev.RECORD_FAILED, St.DENYING, _UNDO),  # it was not resumed
    Row(St.COMMITTING, Ev.RESUMED, St.RUNNING, _ANSWER_RUNNING),
    Row(St.COMMITTING, Ev.RESUME_FAILED, St.DENYING, _UNDO),
    Row(St.COMMITTING, Ev.RESUME_NOT_ASKED, St.DENYING, _UNDO),
    Row(St.COMMITTING, Ev.RESUME_UNKNOWN, St.PROBING, (Op.PROBE_DOMAIN,)),
    Row(St.COMMITTING, Ev.DOMAIN_GONE, St.LOSING, _LOSE),
    *_ignore(St.COMMITTING, *_TOO_LATE, Ev.HANDOFF, Ev.SUPERSEDED),
    Row(St.PROBING, Ev.DOMAIN_RUNNING, St.RUNNING, _ANSWER_RUNNING),
    Row(St.PROBING, Ev.DOMAIN_SUSPENDED, St.COMMITTING_AGAIN, (Op.RESUME_DOMAIN,)),
    Row(St.PROBING, Ev.DOMAIN_GONE, St.LOSING, _LOSE),
    Row(St.PROBING, Ev.DOMAIN_UNKNOWN, St.PROBE_WAITING),
    Row(St.PROBING, Ev.DOMAIN_SILENT, St.LOSING, _LOSE),
    *_ignore(St.PROBING, *_TOO_LATE, Ev.HANDOFF, Ev.RELEASED, Ev.SUPERSEDED),
    Row(St.PROBE_WAITING, Ev.DEADLINE, St.PROBING, (Op.PROBE_DOMAIN,)),
    *_ignore(St.PROBE_WAITING, *_TOO_LATE, Ev.HANDOFF, Ev.RELEASED, Ev.SUPERSEDED),
    # an earlier resume may have succeeded and something may have suspended it since: never back to the source
    Row(St.COMMITTING_AGAIN, Ev.RESUMED, St.RUNNING, _ANSWER_RUNNING),
    Row(St.COMMITTING_AGAIN, Ev.RESUME_FAILED, St.LOSING, _LOSE),
    Row(St.COMMITTING_AGAIN, Ev.RESUME_NOT_ASKED, St.PROBE_WAITING),
    Row(St.COMMITTING_AGAIN, Ev.RESUME_UNKNOWN, St.PROBING, (Op.PROBE_DOMAIN,)),
    Row(St.COMMITTING_AGAIN, Ev.DOMAIN_GONE, St.LOSING, _LOSE),
    *_ignore(St.COMMITTING_AGAIN, *_TOO_LATE, Ev.HANDOFF, Ev.RELEASED, Ev.SUPERSEDED),
    Row(St.RUNNING, Ev.HANDOFF, St.RUNNING, (Send(m.HandoffDone),)),
    Row(St.RUNNING, Ev.RELEASED, St.MOVED, _SETTLE),
    Row(St.RUNNING, Ev.KEEP_ASKED, St.MOVED, _END_ALONE),
    *_ignore(St.RUNNING, *_TOO_LATE, Ev.SUPERSEDED),
    # ---- it cannot be known whether it ran: end it, and say that it ran
    Row(St.LOSING, Ev.DESTROYED, St.LOST, (Send(m.HandoffLost),)),
    Row(St.LOSING, Ev.DESTROY_FAILED, St.LOSE_WAITING),
    *_ignore(St.LOSING, *_TOO_LATE, Ev.HANDOFF, Ev.RELEASED, Ev.SUPERSEDED),
    Row(St.LOSE_WAITING, Ev.DEADLINE, St.LOSING, (Op.END_DOMAIN,)),
    *_ignore(St.LOSE_WAITING, *_TOO_LATE, Ev.HANDOFF, Ev.RELEASED, Ev.SUPERSEDED),
    Row(St.LOST, Ev.HANDOFF, St.LOST, (Send(m.HandoffLost),)),
    Row(St.LOST, Ev.RELEASED, St.LOST_SETTLED, _SETTLE),
    Row(St.LOST, Ev.KEEP_ASKED, St.LOST_SETTLED, _END_ALONE),
    *_ignore(St.LOST, *_TOO_LATE, Ev.SUPERSEDED),
    # ---- asked to decide, and the answer is no
    Row(St.DENYING, Ev.DESTROYED, St.ABORTED, (Send(m.HandoffRefused), *_END_ABORTED)),
    Row(St.DENYING, Ev.DESTROY_FAILED, St.DENY_WAITING),
    *_ignore(St.DENYING, *_TOO_LATE, Ev.HANDOFF, Ev.SUPERSEDED),
    Row(St.DENY_WAITING, Ev.DEADLINE, St.DENYING, (Op.DESTROY_DOMAIN,)),
    *_ignore(St.DENY_WAITING, *_TOO_LATE, Ev.HANDOFF, Ev.SUPERSEDED),
    # ---- gave up before it was asked
    Row(St.ABORTING, Ev.DESTROYED, St.ABORTED, (Send(m.Refused), *_END_ABORTED)),
    Row(St.ABORTING, Ev.DESTROY_FAILED, St.ABORT_WAITING),
    *_ignore(St.ABORTING, *_TOO_LATE, Ev.CANCEL, Ev.HANDOFF, Ev.DIGEST, Ev.SUPERSEDED),
    Row(St.ABORT_WAITING, Ev.DEADLINE, St.ABORTING, (Op.DESTROY_DOMAIN,)),
    *_ignore(St.ABORT_WAITING, *_TOO_LATE, Ev.CANCEL, Ev.HANDOFF, Ev.DIGEST, Ev.SUPERSEDED),
    # ---- ended: a repeated question gets the recorded answer
    Row(St.ABORTED, Ev.HANDOFF, St.ABORTED, (Send(m.HandoffRefused),)),
    Row(St.ABORTED, Ev.CANCEL, St.ABORTED, (Send(m.Refused),)),
    *_ignore(St.ABORTED, Ev.DIGEST),
    Row(St.MOVED, Ev.HANDOFF, St.MOVED, (Send(m.HandoffDone),)),
    Row(St.MOVED, Ev.RELEASED, St.MOVED, (Send(m.Settled),)),
    Row(St.LOST_SETTLED, Ev.HANDOFF, St.LOST_SETTLED, (Send(m.HandoffLost),)),
    Row(St.LOST_SETTLED, Ev.RELEASED, St.LOST_SETTLED, (Send(m.Settled),)),
    Row(St.DISMISSED, Ev.CANCEL, St.DISMISSED, (Send(m.Refused),)),
    Row(
        St.DISMISSED, Ev.CHECK, St.DISMISSED, (Send(m.Refused),)
    ),  # given up before it was looked at
    *_ignore(St.DISMISSED, Ev.PREPARE),
)

_PHASES: Final = {
    Phase.CHECK: (St.NEW, St.CHECKING, St.RESERVED, St.DISMISSED),
    Phase.PREPARE: (St.PREPARING,),
    Phase.TRANSFER: (St.RECEIVING, St.INSTALLING),
}
_DECISIONS: Final = {
    Decision.SOURCE: (
        St.DENYING,
        St.DENY_WAITING,
        St.ABORTING,
        St.ABORT_WAITING,
        St.ABORTED,
        St.DISMISSED,
    ),
    # until RUNNING it is not decided for whoever asks: a first resume may fail, and be undone
    Decision.IN_DOUBT: (St.COMMITTING, St.COMMITTING_AGAIN, St.PROBING, St.PROBE_WAITING),
    Decision.TARGET: (St.RUNNING, St.MOVED),
    Decision.LOST: (St.LOSING, St.LOSE_WAITING, St.LOST, St.LOST_SETTLED),
}

TARGET: Final[Table[TargetState]] = Table(
    side="target",
    rows=_ROWS,
    initial=St.NEW,
    final=frozenset({St.DISMISSED, St.ABORTED, St.MOVED, St.LOST_SETTLED}),
    deadlines={
        St.CHECKING: Deadline.CHECK,
        St.RESERVED: Deadline.CHECK,
        St.PREPARING: Deadline.PREPARE,
        St.RECEIVING: Deadline.STALL,
        St.INSTALLING: Deadline.PREPARE,
        St.READY: Deadline.HOLD,
        St.PROBE_WAITING: Deadline.RETRY,
        St.LOSE_WAITING: Deadline.RETRY,
        St.DENY_WAITING: Deadline.RETRY,
        St.ABORT_WAITING: Deadline.RETRY,
    },
    phases=by_state(St, _PHASES, Phase.HANDOFF),
    decisions=by_state(St, _DECISIONS, Decision.OPEN),
    recovery={
        RecordKind.PREPARED: (St.ABORTING, _GIVE_UP),
        RecordKind.COMMITTED: (St.PROBING, (Op.PROBE_DOMAIN,)),
        RecordKind.RUNNING: (St.RUNNING, ()),
        RecordKind.LOST: (St.LOSING, (Op.END_DOMAIN,)),
        RecordKind.ABORTED: (St.ABORTING, (Op.DESTROY_DOMAIN,)),
    },
    settled={
        RecordKind.RUNNING: St.MOVED,
        RecordKind.LOST: St.LOST_SETTLED,
        RecordKind.ABORTED: St.ABORTED,
    },
)
