"""At start: every migration that the journal does not say is settled goes on from its last record."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from ldmd.errors import JournalError
from ldmd.host import Host
from ldmd.journal.records import (
    MigrationEntry,
    MigrationHistory,
    MigrationSummary,
    Side,
)
from ldmd.migration import Migration
from ldmd.registry import Registry
from protocol.actions import Action, RecordKind
from protocol.errors import LocalProtocolError
from protocol.machine import Machine, Table, restore
from protocol.source import SOURCE
from protocol.target import TARGET

log = logging.getLogger("ldmd.recovery")

SETTLING: Final = frozenset({RecordKind.RUNNING, RecordKind.LOST})
"""Last records of a target that has decided: the domain is this host's, only the good-bye is left."""

TABLES: dict[Side, Table[Any]] = {Side.SOURCE: SOURCE, Side.TARGET: TARGET}


async def recover(host: Host, registry: Registry) -> int:
    """Start each unsettled migration; returns how many. Domains are loaded before. Raises JournalError."""
    histories = await host.journal.load_unsettled()
    for history in histories:
        _go_on(host, registry, history)
    return len(histories)


def _go_on(host: Host, registry: Registry, history: MigrationHistory) -> None:
    migration, first = recall(host, history)
    migration.confirming = migration.definition.uuid in host.journal.unconfirmed
    log.warning(
        "migration %s of %s (%s, peer %s) was open: last record %s, going on with %s",
        migration.id[:8],
        migration.name,
        migration.side,
        migration.peer,
        history.kinds[-1],
        migration.machine.state,
    )
    registry.start(migration, first)


def restore_machine(
    entry: MigrationEntry | MigrationSummary, kinds: Iterable[RecordKind]
) -> tuple[Machine[Any], tuple[Action, ...]]:
    """As the journal has it. Raises JournalError for records that no manager writes: nothing is guessed from them."""
    try:
        return restore(TABLES[entry.side], entry.run_state.mode, kinds)
    except LocalProtocolError as error:
        raise JournalError(
            f"the journal is damaged: migration {entry.id}: {error}",
            remedy="no domain was touched; restore the journal, and tell who maintains this software",
        ) from error


def recall(host: Host, history: MigrationHistory) -> tuple[Migration, tuple[Action, ...]]:
    """A migration as the journal has it, and what recovery has to do first; nothing is done yet. Raises JournalError."""
    entry = history.entry
    machine, first = restore_machine(entry, history.kinds)
    domain = host.domains.find(entry.definition.uuid)
    if domain is not None and domain.migration != entry.id:
        domain = None  # another migration has it, or none: this one let it go before it was settled
    if domain is not None:
        domain.settling = history.kinds[-1] in SETTLING
    migration = Migration(
        host,
        id=entry.id,
        side=entry.side,
        peer=entry.peer,
        machine=machine,
        definition=entry.definition,
        run_state=entry.run_state,
        domain=domain,
    )
    migration.peer_journal = entry.peer_journal
    migration.records = list(history.records)
    return migration, first
