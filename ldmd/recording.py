"""Writes a migration's records, with what each of them means for its domain."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from ldmd.errors import JournalError
from ldmd.journal.records import DomainEntry, DomainState, MigrationEntry, Side
from protocol.actions import GIVE_UP_POSSIBLE, RecordKind
from protocol.events import Event
from protocol.phases import RunState

if TYPE_CHECKING:
    from ldmd.migration import Migration

log = logging.getLogger("ldmd.migration")

RECORD_RETRY_SECONDS: Final = 0.5

_EXPLAINED: Final = frozenset({RecordKind.ABORTED, RecordKind.LOST, RecordKind.COMPLETED})
"""Records that say why, where there is something to say."""
_OVERRIDDEN: Final = frozenset({RecordKind.ABORTED, RecordKind.COMPLETED, RecordKind.SETTLED})
"""Records that say who overrode, why, and what was seen."""

_RECEIVING_STATE: Final = {
    RunState.RUNNING: DomainState.ACTIVE,
    RunState.SUSPENDED: DomainState.ACTIVE,
    RunState.BOUND: DomainState.BOUND,
    RunState.INACTIVE: DomainState.INACTIVE,
}


async def record(migration: Migration, kind: RecordKind, *, fail_first: bool = False) -> bool:
    """On disk, or False where it can be done without; any other record is tried until it is written."""
    while True:
        try:
            if fail_first:
                fail_first = False
                raise JournalError("a fault that was armed: the journal is not written")
            await _append(migration, kind)
        except JournalError as error:
            migration.trace(f"record {kind} fails")
            log.error("migration %s of %s: %s", migration.id[:8], migration.name, error)
            migration.progress.sentence = error.sentence
            await migration.tell_change()
            if kind in GIVE_UP_POSSIBLE:
                migration.explain(Event.RECORD_FAILED, error.code, error.sentence, error.remedy)
                return False
            await trio.sleep(RECORD_RETRY_SECONDS)
        else:
            return True


async def _append(migration: Migration, kind: RecordKind) -> None:
    if migration.records and migration.records[-1].kind is kind:  # it stands there already
        migration.trace(f"record {kind}")
        return
    entry = MigrationEntry(
        id=migration.id,
        side=migration.side,
        peer=migration.peer,
        peer_journal=migration.peer_journal,
        definition=migration.definition,
        run_state=migration.run_state,
    )
    receiving = None
    if kind is RecordKind.PREPARED:
        receiving = DomainEntry(
            definition=migration.definition,
            state=_RECEIVING_STATE[migration.run_state],
            migration=migration.id,
        )
    sentence = migration.reason.sentence if kind in _EXPLAINED and migration.reason else ""
    overridden = bool(migration.override_note) and kind in _OVERRIDDEN
    if overridden:
        sentence = migration.override_note
    migration.records.append(
        await migration.host.journal.append(entry, kind, sentence, receiving=receiving)
    )
    migration.trace(f"record {kind}")
    if overridden:
        migration.override_note = ""  # said once
    if receiving is not None:
        migration.domain = migration.host.domains.expect(receiving)
        migration.host.inventory.release(migration.id)
    if migration.side is Side.TARGET and migration.domain is not None:
        migration.domain.settling = kind in (RecordKind.RUNNING, RecordKind.LOST)
