"""What a person should know of a migration: what it means that it is in that state, and what can be done about it.

``{domain}``, ``{peer}`` and ``{id}`` are filled in. Every state of both tables has its situation, and a test sees to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from ldmd.journal.records import Side
from protocol.events import Event
from protocol.machine import Decision, by_state
from protocol.source import SourceState as S
from protocol.standing import Verdict
from protocol.target import TargetState as T


@frozen
class Situation:
    meaning: str
    remedy: str
    """What a person can do, in one sentence."""


_NOTHING: Final = "nothing is to be done"
_BY_ITSELF: Final = "nothing is to be done: it goes on by itself"

_UNDER_WAY: Final = Situation(
    "under way: {domain} is the source's still, and would stay there",
    "`ldm cancel-operation migration {domain}` stops it",
)

_SOURCE: Final[Mapping[Situation, tuple[S, ...]]] = {
    Situation("a dry run: nothing changes", _NOTHING): (
        S.DRY_CONNECTING,
        S.DRY_CHECKING,
        S.CHECKED,
    ),
    Situation(
        "{peer} has been asked to take {domain} over, and answers within seconds", _BY_ITSELF
    ): (S.HANDING_OFF,),
    Situation(
        "in doubt: {peer} may have taken {domain} over, so the copy here stays suspended, and {peer} is asked"
        " until it answers",
        "bring {peer} or the network to it back; only if {peer} is off and stays off:"
        " `ldm recover-migration {id} --keep-here`",
    ): (S.IN_DOUBT, S.ASKING),
    Situation("given up: {domain} stays here, and is brought back to what it did", _BY_ITSELF): (
        S.WITHDRAWING,
        S.RESUMING,
        S.RESUMING_ALONE,
    ),
    Situation(
        "given up, and the hypervisor has not brought {domain} back yet; it is asked again",
        "look at the domain's process and its log; `ldm list-domain -l {domain}` names them",
    ): (S.RESUME_WAITING,),
    Situation("given up: {domain} is here, and {peer} is told so", _BY_ITSELF): (S.CANCELLING,),
    Situation("{domain} is {peer}'s; the copy here is being ended", _BY_ITSELF): (
        S.DESTROYING,
        S.DESTROYING_ALONE,
    ),
    Situation(
        "{domain} is {peer}'s, and the copy here, suspended, could not be ended yet; it is tried again",
        "look at its process and end it if the manager cannot",
    ): (S.DESTROY_WAITING,),
    Situation("{domain} is {peer}'s and the copy here is gone; {peer} is told so", _BY_ITSELF): (
        S.RELEASING,
    ),
    Situation(
        "{domain} is {peer}'s and the copy here is gone; {peer} has not heard so yet, and is told until it has",
        "bring {peer} or the network to it back; only if {peer} is off and stays off:"
        " `ldm recover-migration {id} --give-up-here`",
    ): (S.RELEASE_WAITING, S.RELEASE_CONNECTING),
    Situation("ended: {domain} stayed here", _NOTHING): (S.KEPT,),
    Situation("ended: {domain} is {peer}'s", _NOTHING): (S.MOVED,),
}

_TARGET: Final[Mapping[Situation, tuple[T, ...]]] = {
    Situation(
        "all of {domain} is here, and {peer} has not said yet that this host may take it over",
        "wait: without a word from {peer} it is given up after hold-seconds",
    ): (T.READY,),
    Situation("{domain} is being taken over", _BY_ITSELF): (
        T.CONFIRMING,
        T.COMMITTING,
        T.COMMITTING_AGAIN,
        T.PROBING,
    ),
    Situation(
        "{domain} is being taken over, may run here, and its process does not answer; it is asked again for"
        " probe-seconds, then ended, and counts as having run",
        "look at what holds its process up; `ldm list-domain -l {domain}` names it",
    ): (T.PROBE_WAITING,),
    Situation(
        "{domain} is this host's; {peer} has not confirmed yet that its copy is gone, so {domain} can be stopped,"
        " and not started afresh or moved on",
        "bring {peer} or the network to it back; only if {peer} is off and stays off:"
        " `ldm recover-migration {id} --keep-here`",
    ): (T.RUNNING,),
    Situation(
        "{domain} is this host's and counts as having run here and ended; what is left of it is being ended",
        _BY_ITSELF,
    ): (T.LOSING,),
    Situation(
        "{domain} is this host's and counts as having run here and ended; its process could not be ended yet",
        "look at its process and end it if the manager cannot",
    ): (T.LOSE_WAITING,),
    Situation(
        "{domain} is this host's and ended while it was taken over; {peer} has not confirmed yet that its copy is"
        " gone, so {domain} cannot be started afresh",
        "bring {peer} or the network to it back; only if {peer} is off and stays off:"
        " `ldm recover-migration {id} --keep-here`",
    ): (T.LOST,),
    Situation(
        "refused or given up: {domain} is {peer}'s; what came of it is being removed", _BY_ITSELF
    ): (
        T.DENYING,
        T.ABORTING,
    ),
    Situation(
        "refused or given up: {domain} is {peer}'s; what came of it could not be removed yet",
        "look at its process here and end it if the manager cannot: it has not run, and must not",
    ): (T.DENY_WAITING, T.ABORT_WAITING),
    Situation("ended: {domain} stayed on {peer}", _NOTHING): (T.DISMISSED, T.ABORTED),
    Situation("ended: {domain} is this host's", _NOTHING): (T.MOVED,),
    Situation(
        "ended: {domain} is this host's, and ended while it was taken over, as in a crash",
        "`ldm start-domain {domain}` starts it afresh",
    ): (T.LOST_SETTLED,),
}


CONFIRMING: Final = "confirming"
"""Not of the tables: the state that the journal says is not acted on yet."""

_UNPROVEN: Final[Mapping[Verdict | None, Situation]] = {
    None: Situation(
        "this host was booted, and only {peer} can say whether the journal here is the latest; nothing is done about"
        " {domain} before",
        "bring {peer} or the network to it back; only if {peer} is off and stays off:"
        " `ldm recover-migration {id} --{decision}`",
    ),
    Verdict.OLDER: Situation(
        "the journal here is from an earlier moment: {peer} has records that came after it; {domain} is left alone",
        "stop this manager, put the latest journal into its state-directory, and start it",
    ),
    Verdict.UNSURE: Situation(
        "this host was booted between the handoff of {domain} and {peer} hearing of it: only the latest journal can say"
        " whether {domain} ran here",
        "put the latest journal back if the one here is older; if it is certain that it is the latest:"
        " `ldm recover-migration {id} --{decision}`",
    ),
}
_WAY_ON: Final[Mapping[tuple[Side, Decision], tuple[Event, ...]]] = {
    (Side.SOURCE, Decision.SOURCE): (Event.KEEP_ASKED,),
    (Side.SOURCE, Decision.IN_DOUBT): (Event.KEEP_ASKED, Event.GIVE_UP_ASKED),
    (Side.SOURCE, Decision.TARGET): (Event.GIVE_UP_ASKED,),
    (Side.TARGET, Decision.SOURCE): (Event.GIVE_UP_ASKED,),
    (Side.TARGET, Decision.IN_DOUBT): (Event.KEEP_ASKED,),
    (Side.TARGET, Decision.TARGET): (Event.KEEP_ASKED,),
    (Side.TARGET, Decision.LOST): (Event.KEEP_ASKED,),
}


def find_ways_on(side: Side, decision: Decision) -> tuple[Event, ...]:
    """The overrides with which a person says that the journal is the latest, by whose domain it says it is."""
    return _WAY_ON.get((side, decision), ())


def describe_unproven(
    side: Side, decision: Decision, verdict: Verdict | None, *, domain: str, peer: str, id: str
) -> Situation:
    """Of a migration that is not gone on with before the peer has said how it stands."""
    situation = _UNPROVEN[verdict if verdict in _UNPROVEN else None]
    keep = Event.KEEP_ASKED in find_ways_on(side, decision)
    words = {"domain": domain, "peer": peer, "id": id[:12]}
    words["decision"] = "keep-here" if keep else "give-up-here"
    return Situation(situation.meaning.format(**words), situation.remedy.format(**words))


def _invert(states: type[Any], table: Mapping[Situation, tuple[Any, ...]]) -> dict[Any, Situation]:
    return by_state(states, table, _UNDER_WAY)


SITUATIONS: Final[Mapping[Side, Mapping[Any, Situation]]] = {
    Side.SOURCE: _invert(S, _SOURCE),
    Side.TARGET: _invert(T, _TARGET),
}


def describe(side: Side, state: object, *, domain: str, peer: str, id: str) -> Situation:
    """The situation of a migration in that state of its table, in words for its operator."""
    situation = SITUATIONS[side][state]
    words = {"domain": domain, "peer": peer, "id": id[:12]}
    return Situation(situation.meaning.format(**words), situation.remedy.format(**words))
