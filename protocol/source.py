"""The source's side of a migration, as a table.

The source may give up alone until GRANTED is on disk. From then on its copy stays suspended until it knows the
target's decision, and "settle" is: connect again, send HANDOFF again, read the answer.

Four things recur and are written once below:

- *giving up with the link up*: resume, then tell the target (CANCEL) and wait for its REFUSED, so that both hosts say the
  same. Resuming comes first: the domain is down meanwhile, and nothing has to be on disk for it, because all that recovery
  can do from PREPARING is to resume. So a journal that cannot be written keeps no domain down.
- *giving up alone*: the same without telling: the target has given up itself, or will when it misses the link.
- *waiting and trying again*, for what must be done and did not succeed; DEADLINE then is the back-off's end.
- *an operator's override*, for a target that will never answer: ABORTED or COMPLETED first, as that decides.
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


class SourceState(enum.StrEnum):
    NEW = "new"
    DRY_CONNECTING = "connecting for a dry run"
    DRY_CHECKING = "checking for a dry run"
    CONNECTING = "connecting"
    CHECKING = "checking"
    PREPARING = "preparing"
    SUSPENDING = "suspending"
    TRANSFERRING = "transferring"
    VERIFYING = "verifying"
    HANDING_OFF = "handing off"
    WITHDRAWING = "withdrawing"
    """GRANTED may be on disk, HANDOFF was not sent: the target's refusal is as good as a record of our own."""
    IN_DOUBT = "in doubt"
    ASKING = "in doubt, connecting"
    DESTROYING = "destroying"
    DESTROYING_ALONE = "destroying without a link"
    DESTROY_WAITING = "waiting to destroy again"
    RELEASING = "releasing"
    RELEASE_WAITING = "waiting to release again"
    RELEASE_CONNECTING = "connecting to release"
    RESUMING = "resuming"
    RESUMING_ALONE = "resuming without telling"
    RESUME_WAITING = "waiting to resume again"
    CANCELLING = "cancelling"
    CHECKED = "checked"
    """The end of a dry run."""
    KEPT = "kept"
    """The end: the domain is here, as it was."""
    MOVED = "moved"
    """The end: the domain is the target's, and no copy is here."""


St = SourceState
Ev = Event
Op = Operation
SourceRow = Row[SourceState]

_RESUME: Final[tuple[Action, ...]] = (Op.RESUME_DOMAIN,)
_DECIDE_KEPT: Final[tuple[Action, ...]] = (Record(RecordKind.ABORTED), Op.RESUME_DOMAIN)
"""Where recovery could still ask the target."""
_END: Final[tuple[Action, ...]] = (Record(RecordKind.SETTLED), CloseLink())
_END_KEPT: Final[tuple[Action, ...]] = (Record(RecordKind.ABORTED), *_END)
_OURS_NO_MORE: Final[tuple[Action, ...]] = (Record(RecordKind.COMPLETED), Op.DESTROY_DOMAIN)


def _give_up_rows(state: SourceState) -> Iterable[SourceRow]:
    """After PREPARING and before GRANTED."""
    yield Row(state, Ev.CANCEL_ASKED, St.RESUMING, _RESUME)
    yield Row(state, Ev.DEADLINE, St.RESUMING, _RESUME)
    yield Row(state, Ev.LINK_LOST, St.RESUMING_ALONE, _RESUME)
    yield Row(state, Ev.REFUSED, St.RESUMING_ALONE, _RESUME)


def _ignore(state: SourceState, *events: Event) -> Iterable[SourceRow]:
    return (Row(state, event, state) for event in events)


_REPEATED: Final = (Ev.HANDOFF_DONE, Ev.HANDOFF_LOST)
"""HANDOFF may have been asked twice, on two links: the second answer says nothing new."""

_WARM: Final = frozenset({Mode.WARM})
_COLD: Final = frozenset({Mode.COLD})

_ROWS: Final[tuple[SourceRow, ...]] = (
    # ---- dry run: phase 1 and nothing else; no record, no reservation
    Row(St.NEW, Ev.START_DRY_RUN, St.DRY_CONNECTING, (Op.CONNECT,)),
    Row(St.DRY_CONNECTING, Ev.CONNECTED, St.DRY_CHECKING, (Send(m.Check),)),
    Row(St.DRY_CONNECTING, Ev.CONNECT_FAILED, St.CHECKED),
    Row(St.DRY_CONNECTING, Ev.CANCEL_ASKED, St.CHECKED),
    *(
        Row(St.DRY_CHECKING, event, St.CHECKED, (CloseLink(),))
        for event in (
            Ev.CHECKS_PASSED,
            Ev.CHECKS_FAILED,
            Ev.REFUSED,
            Ev.LINK_LOST,
            Ev.DEADLINE,
            Ev.CANCEL_ASKED,
        )
    ),
    # ---- phase 1: check
    Row(St.NEW, Ev.START, St.CONNECTING, (Op.CONNECT,)),
    Row(St.CONNECTING, Ev.CONNECTED, St.CHECKING, (Send(m.Check),)),
    Row(St.CONNECTING, Ev.CONNECT_FAILED, St.KEPT, _END_KEPT),
    Row(St.CONNECTING, Ev.CANCEL_ASKED, St.KEPT, _END_KEPT),
    Row(
        St.CHECKING, Ev.CHECKS_PASSED, St.PREPARING, (Record(RecordKind.PREPARING), Send(m.Prepare))
    ),
    *(
        Row(St.CHECKING, event, St.KEPT, _END_KEPT)
        for event in (Ev.CHECKS_FAILED, Ev.REFUSED, Ev.LINK_LOST, Ev.DEADLINE, Ev.CANCEL_ASKED)
    ),
    # ---- phase 2: prepare. The target populates RAM first; only then is the domain suspended
    Row(St.PREPARING, Ev.PREPARE_PROGRESS, St.PREPARING),
    Row(St.PREPARING, Ev.PREPARED, St.SUSPENDING, (Op.SUSPEND_DOMAIN,), _WARM),
    Row(
        St.PREPARING,
        Ev.PREPARED,
        St.HANDING_OFF,
        (Record(RecordKind.GRANTED), Send(m.Handoff)),
        _COLD,
    ),
    # nothing was done; the record may be there, and the next one may take its time
    Row(St.PREPARING, Ev.RECORD_FAILED, St.KEPT, (CloseLink(), *_END_KEPT)),
    *_give_up_rows(St.PREPARING),
    Row(St.SUSPENDING, Ev.SUSPENDED, St.TRANSFERRING, (Op.SEND_STATE,)),
    Row(St.SUSPENDING, Ev.SUSPEND_FAILED, St.RESUMING, _RESUME),
    *_give_up_rows(St.SUSPENDING),
    # ---- phase 3: transfer
    Row(St.TRANSFERRING, Ev.STATE_SENT, St.VERIFYING, (Send(m.Digest),)),
    Row(St.TRANSFERRING, Ev.STATE_FAILED, St.RESUMING, _RESUME),
    *_give_up_rows(St.TRANSFERRING),
    Row(St.VERIFYING, Ev.INSTALLED, St.HANDING_OFF, (Record(RecordKind.GRANTED), Send(m.Handoff))),
    Row(St.VERIFYING, Ev.DIGEST_DIFFERS, St.RESUMING, _RESUME),
    *_give_up_rows(St.VERIFYING),
    # ---- phase 4: handoff. Past the point of no return: only the target's answer moves us
    Row(St.HANDING_OFF, Ev.RECORD_FAILED, St.WITHDRAWING, (Send(m.Cancel),)),
    Row(St.WITHDRAWING, Ev.REFUSED, St.RESUMING_ALONE, _RESUME),
    Row(St.WITHDRAWING, Ev.LINK_LOST, St.RESUMING_ALONE, _DECIDE_KEPT),
    Row(St.WITHDRAWING, Ev.DEADLINE, St.RESUMING, _DECIDE_KEPT),
    *_ignore(St.WITHDRAWING, Ev.CANCEL_ASKED),
    Row(St.HANDING_OFF, Ev.HANDOFF_DONE, St.DESTROYING, _OURS_NO_MORE),
    Row(St.HANDING_OFF, Ev.HANDOFF_LOST, St.DESTROYING, _OURS_NO_MORE),
    Row(St.HANDING_OFF, Ev.HANDOFF_REFUSED, St.RESUMING_ALONE, _RESUME),
    Row(St.HANDING_OFF, Ev.REFUSED, St.RESUMING_ALONE, _RESUME),  # it gave up as we asked
    Row(St.HANDING_OFF, Ev.LINK_LOST, St.IN_DOUBT),
    Row(St.HANDING_OFF, Ev.DEADLINE, St.IN_DOUBT, (CloseLink(),)),
    # SETTLED: a journal that was put back knows nothing of the RELEASED that it answers
    *_ignore(St.HANDING_OFF, Ev.CANCEL_ASKED, Ev.SETTLED),
    Row(St.IN_DOUBT, Ev.DEADLINE, St.ASKING, (Op.CONNECT,)),
    *_ignore(St.IN_DOUBT, Ev.CANCEL_ASKED),
    Row(St.ASKING, Ev.CONNECTED, St.HANDING_OFF, (Send(m.Handoff),)),
    Row(St.ASKING, Ev.CONNECT_FAILED, St.IN_DOUBT),
    Row(St.ASKING, Ev.JOURNAL_LOST, St.IN_DOUBT, (CloseLink(),)),
    *_ignore(St.ASKING, Ev.CANCEL_ASKED),
    # the target will never answer: a person has made sure of that, and decides
    *(
        row
        for state in (St.IN_DOUBT, St.ASKING)
        for row in (
            Row(state, Ev.KEEP_ASKED, St.RESUMING_ALONE, _DECIDE_KEPT),
            Row(state, Ev.GIVE_UP_ASKED, St.DESTROYING_ALONE, _OURS_NO_MORE),
        )
    ),
    # ---- the target has it: destroy, tell, end
    Row(St.DESTROYING, Ev.DESTROYED, St.RELEASING, (Send(m.Released),)),
    Row(St.DESTROYING, Ev.DESTROY_FAILED, St.DESTROY_WAITING),
    Row(St.DESTROYING, Ev.LINK_LOST, St.DESTROYING_ALONE),
    *_ignore(St.DESTROYING, Ev.CANCEL_ASKED, *_REPEATED),
    Row(St.DESTROYING_ALONE, Ev.DESTROYED, St.RELEASE_CONNECTING, (Op.CONNECT,)),
    Row(St.DESTROYING_ALONE, Ev.DESTROY_FAILED, St.DESTROY_WAITING),
    *_ignore(St.DESTROYING_ALONE, Ev.CANCEL_ASKED),
    Row(St.DESTROY_WAITING, Ev.DEADLINE, St.DESTROYING, (Op.DESTROY_DOMAIN,)),
    *_ignore(St.DESTROY_WAITING, Ev.CANCEL_ASKED, Ev.LINK_LOST, *_REPEATED),
    Row(St.RELEASING, Ev.SETTLED, St.MOVED, _END),
    Row(St.RELEASING, Ev.LINK_LOST, St.RELEASE_WAITING),
    Row(St.RELEASING, Ev.DEADLINE, St.RELEASE_WAITING, (CloseLink(),)),
    *_ignore(St.RELEASING, Ev.CANCEL_ASKED, *_REPEATED),
    Row(St.RELEASE_WAITING, Ev.DEADLINE, St.RELEASE_CONNECTING, (Op.CONNECT,)),
    *_ignore(St.RELEASE_WAITING, Ev.CANCEL_ASKED),
    Row(St.RELEASE_CONNECTING, Ev.CONNECTED, St.RELEASING, (Send(m.Released),)),
    Row(St.RELEASE_CONNECTING, Ev.CONNECT_FAILED, St.RELEASE_WAITING),
    # a target without its journal has nothing to release; what it ran is its own
    Row(St.RELEASE_CONNECTING, Ev.JOURNAL_LOST, St.MOVED, _END),
    *_ignore(St.RELEASE_CONNECTING, Ev.CANCEL_ASKED),
    *(
        Row(state, Ev.GIVE_UP_ASKED, St.MOVED, _END)
        for state in (St.RELEASE_WAITING, St.RELEASE_CONNECTING)
    ),
    # ---- the domain stays: resume, tell, end
    Row(St.RESUMING, Ev.RESUMED, St.CANCELLING, (Send(m.Cancel),)),
    Row(St.RESUMING, Ev.DOMAIN_GONE, St.CANCELLING, (Send(m.Cancel),)),
    Row(St.RESUMING, Ev.RESUME_FAILED, St.RESUME_WAITING),
    Row(St.RESUMING, Ev.RESUME_NOT_ASKED, St.RESUME_WAITING),
    Row(St.RESUMING, Ev.RESUME_UNKNOWN, St.RESUME_WAITING),
    Row(St.RESUMING, Ev.LINK_LOST, St.RESUMING_ALONE),
    Row(St.RESUMING, Ev.REFUSED, St.RESUMING_ALONE),
    *_ignore(
        St.RESUMING,
        Ev.CANCEL_ASKED,
        Ev.HANDOFF_REFUSED,
        Ev.PREPARE_PROGRESS,
        Ev.PREPARED,
        Ev.INSTALLED,
        Ev.DIGEST_DIFFERS,
    ),
    Row(St.RESUMING_ALONE, Ev.RESUMED, St.KEPT, _END_KEPT),
    Row(St.RESUMING_ALONE, Ev.DOMAIN_GONE, St.KEPT, _END_KEPT),
    Row(St.RESUMING_ALONE, Ev.RESUME_FAILED, St.RESUME_WAITING),
    Row(St.RESUMING_ALONE, Ev.RESUME_NOT_ASKED, St.RESUME_WAITING),
    Row(St.RESUMING_ALONE, Ev.RESUME_UNKNOWN, St.RESUME_WAITING),
    *_ignore(St.RESUMING_ALONE, Ev.CANCEL_ASKED, Ev.LINK_LOST, Ev.REFUSED, Ev.HANDOFF_REFUSED),
    Row(St.RESUME_WAITING, Ev.DEADLINE, St.RESUMING, (Op.RESUME_DOMAIN,)),
    *_ignore(
        St.RESUME_WAITING,
        Ev.CANCEL_ASKED,
        Ev.LINK_LOST,
        Ev.REFUSED,
        Ev.HANDOFF_REFUSED,
        Ev.PREPARE_PROGRESS,
        Ev.PREPARED,
        Ev.INSTALLED,
        Ev.DIGEST_DIFFERS,
    ),
    *(
        Row(St.CANCELLING, event, St.KEPT, _END_KEPT)
        for event in (Ev.REFUSED, Ev.HANDOFF_REFUSED, Ev.LINK_LOST, Ev.DEADLINE)
    ),
    *_ignore(
        St.CANCELLING,
        Ev.CANCEL_ASKED,
        Ev.PREPARE_PROGRESS,
        Ev.PREPARED,
        Ev.INSTALLED,
        Ev.DIGEST_DIFFERS,
    ),
)

_PHASES: Final = {
    Phase.CHECK: (
        St.NEW,
        St.DRY_CONNECTING,
        St.DRY_CHECKING,
        St.CHECKED,
        St.CONNECTING,
        St.CHECKING,
    ),
    Phase.PREPARE: (St.PREPARING, St.SUSPENDING),
    Phase.TRANSFER: (St.TRANSFERRING, St.VERIFYING),
}
_DECISIONS: Final = {
    Decision.IN_DOUBT: (St.HANDING_OFF, St.IN_DOUBT, St.ASKING),
    Decision.TARGET: (
        St.DESTROYING,
        St.DESTROYING_ALONE,
        St.DESTROY_WAITING,
        St.RELEASING,
        St.RELEASE_WAITING,
        St.RELEASE_CONNECTING,
        St.MOVED,
    ),
    Decision.SOURCE: (
        St.CHECKED,
        St.WITHDRAWING,
        St.RESUMING,
        St.RESUMING_ALONE,
        St.RESUME_WAITING,
        St.CANCELLING,
        St.KEPT,
    ),
}

SOURCE: Final[Table[SourceState]] = Table(
    side="source",
    rows=_ROWS,
    initial=St.NEW,
    final=frozenset({St.CHECKED, St.KEPT, St.MOVED}),
    deadlines={
        St.DRY_CHECKING: Deadline.CHECK,
        St.CHECKING: Deadline.CHECK,
        St.PREPARING: Deadline.PREPARE,
        St.SUSPENDING: Deadline.STALL,
        St.TRANSFERRING: Deadline.STALL,
        St.VERIFYING: Deadline.PREPARE,
        St.HANDING_OFF: Deadline.HANDOFF,
        St.WITHDRAWING: Deadline.HANDOFF,
        St.RELEASING: Deadline.HANDOFF,
        St.CANCELLING: Deadline.HANDOFF,
        St.IN_DOUBT: Deadline.RETRY,
        St.DESTROY_WAITING: Deadline.RETRY,
        St.RELEASE_WAITING: Deadline.RETRY,
        St.RESUME_WAITING: Deadline.RETRY,
    },
    phases=by_state(St, _PHASES, Phase.HANDOFF),
    decisions=by_state(St, _DECISIONS, Decision.OPEN),
    recovery={
        RecordKind.PREPARING: (St.RESUMING_ALONE, _RESUME),
        RecordKind.GRANTED: (St.ASKING, (Op.CONNECT,)),
        RecordKind.COMPLETED: (St.DESTROYING_ALONE, (Op.DESTROY_DOMAIN,)),
        RecordKind.ABORTED: (St.RESUMING_ALONE, (Op.RESUME_DOMAIN,)),
    },
    settled={RecordKind.COMPLETED: St.MOVED, RecordKind.ABORTED: St.KEPT},
)
