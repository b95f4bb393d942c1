"""What one side's records presuppose on the other side, and so when a journal must be from an earlier moment.

A side that records something because of what the other one has said, said it after its own record: a target that has
COMMITTED was asked to, and the source had GRANTED on disk before it asked. Where the other side holds a record and this side
lacks the one behind it, this side's journal is not the latest one: it was put back, from a backup or a snapshot.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

from protocol.actions import RecordKind
from protocol.phases import Role

PRESUPPOSED: Final[Mapping[tuple[Role, RecordKind], frozenset[RecordKind]]] = {
    (Role.TARGET, RecordKind.PREPARED): frozenset({RecordKind.PREPARING}),
    (Role.TARGET, RecordKind.COMMITTED): frozenset({RecordKind.GRANTED}),
    (Role.TARGET, RecordKind.RUNNING): frozenset({RecordKind.GRANTED}),
    (Role.TARGET, RecordKind.LOST): frozenset({RecordKind.GRANTED}),
    (Role.SOURCE, RecordKind.GRANTED): frozenset({RecordKind.PREPARED}),
    # an override on the source completes without the target; then leaving the target's copy alone is right all the more
    (Role.SOURCE, RecordKind.COMPLETED): frozenset({RecordKind.COMMITTED}),
}
"""(a role, a record that the host in it holds) -> the other host must hold one of these."""


UNDECIDED: Final = frozenset({RecordKind.PREPARED, RecordKind.COMMITTED})
"""Last records of a target behind which it may have denied, or run, what the source waits for."""


class Verdict(enum.StrEnum):
    STANDS = "stands"
    """Nothing speaks against this journal: what it says may be acted on."""
    OLDER = "older"
    """It is from an earlier moment."""
    UNSURE = "unsure"
    """The source has GRANTED and no answer: what the target has recorded after PREPARED or COMMITTED, it alone can know."""


def judge(role: Role, theirs: Sequence[str], ours: Sequence[str]) -> tuple[Verdict, str]:
    """What the other side's records of one migration say of this side's journal, and the record that speaks against it.

    ``role`` is the other side's in that migration; both are all records that the journals hold of it, oldest first. A record
    that this release does not know says nothing.
    """
    for (of, kind), needed in PRESUPPOSED.items():
        if of is role and kind in theirs and not needed.intersection(ours):
            return Verdict.OLDER, kind.value
    if role is Role.SOURCE:
        kept = RecordKind.ABORTED in theirs
        if kept and RecordKind.COMMITTED in ours and RecordKind.ABORTED not in ours:
            return (
                Verdict.OLDER,
                RecordKind.ABORTED.value,
            )  # it was refused, after a resume that failed
        granted = RecordKind.GRANTED in theirs and RecordKind.COMPLETED not in theirs
        if granted and not kept and ours and ours[-1] in UNDECIDED:
            return Verdict.UNSURE, RecordKind.GRANTED.value
    return Verdict.STANDS, ""
