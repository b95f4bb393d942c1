"""What one side's records presuppose on the other side, and so when a journal must be from an earlier moment.

A side that records something because of what the other one has said, said it after its own record: a target that has
COMMITTED was asked to, and the source had GRANTED on disk before it asked. Where the other side holds a record and this side
lacks the one behind it, this side's journal is not the latest one: it was put back, from a backup or a snapshot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    (Role.SOURCE, RecordKind.COMPLETED): frozenset({RecordKind.RUNNING, RecordKind.LOST}),
}
"""(a role, a record that the host in it holds) -> the other host must hold one of these."""


def find_missing(role: Role, theirs: Collection[str], ours: Collection[str]) -> str:
    """``role`` is the other host's in that migration; both are all that the journals hold of it.

    Returns the record of theirs behind which one of ours is missing, and "" when nothing is. A record that this release
    does not know says nothing.
    """
    for (of, kind), needed in PRESUPPOSED.items():
        if of is role and kind in theirs and not needed.intersection(ours):
            return kind.value
    return ""
