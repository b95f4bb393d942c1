"""What the journal holds, as values."""

from __future__ import annotations

import enum

from attrs import frozen

from ldmd.definition import DomainDefinition
from protocol.actions import RecordKind
from protocol.phases import RunState


class DomainState(enum.StrEnum):
    """LDoms' three: inactive (defined), bound (resources held), active (a process has it)."""

    INACTIVE = "inactive"
    BOUND = "bound"
    ACTIVE = "active"


class Side(enum.StrEnum):
    SOURCE = "source"
    TARGET = "target"


@frozen(kw_only=True)
class DomainEntry:
    """``pending``: the definition that an active domain gets when its process has ended, if it gets another."""

    definition: DomainDefinition
    state: DomainState
    migration: str | None
    pending: DomainDefinition | None = None


@frozen(kw_only=True)
class MigrationEntry:
    """``peer_journal`` is the journal id of the other side when it was first met; empty while unknown."""

    id: str
    side: Side
    peer: str
    peer_journal: str
    definition: DomainDefinition
    run_state: RunState


@frozen(kw_only=True)
class JournalRecord:
    kind: RecordKind
    time_unix_ms: int
    sentence: str


@frozen(kw_only=True)
class Recorded:
    """All records of one migration, oldest first; never empty."""

    records: tuple[JournalRecord, ...]

    @property
    def kinds(self) -> tuple[RecordKind, ...]:
        return tuple(record.kind for record in self.records)

    @property
    def settled(self) -> bool:
        return self.records[-1].kind is RecordKind.SETTLED


@frozen(kw_only=True)
class MigrationHistory(Recorded):
    entry: MigrationEntry


@frozen(kw_only=True)
class MigrationSummary(Recorded):
    """Without the definition: that takes longer to read than all the rest, and may not be accepted any more."""

    id: str
    side: Side
    peer: str
    peer_journal: str
    uuid: str
    name: str
    run_state: RunState
