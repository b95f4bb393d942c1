"""The journal's rows: sealed when they are written, read back as values.

Every row carries a *seal*, a digest of its other columns: SQLite takes a flipped bit inside a value for the value.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

import xxhash

from ldmd.definition import DomainDefinition, from_document, to_document
from ldmd.errors import DefinitionError, JournalError, ReconfigurationPending
from ldmd.journal.records import (
    DomainEntry,
    DomainState,
    JournalRecord,
    MigrationEntry,
    MigrationHistory,
    Side,
)
from ldmd.journal.upgrade import COLUMNS_ADDED, OLDEST_VERSION, TOUCHED, UPGRADES
from protocol.actions import RecordKind
from protocol.phases import RunState

SCHEMA_VERSION: Final = 2

SEALED: Final[Mapping[str, tuple[str, ...]]] = {
    "meta": ("key", "value"),
    "domain": ("uuid", "name", "definition", "state", "migration", "pending"),
    "migration": (
        "id",
        "side",
        "peer",
        "peer_journal",
        "uuid",
        "name",
        "run_state",
        "definition",
    ),
    "record": ("migration", "sequence", "kind", "time_unix_ms", "sentence"),
}
"""Table -> the columns that its seal covers: all others."""


def seal(table: str, *values: str | int | None) -> bytes:
    return xxhash.xxh3_128_digest(json.dumps([table, *values]).encode())


def sealed_columns(table: str, version: int) -> list[str]:
    """As that version of the schema has them."""
    return [c for c in SEALED[table] if COLUMNS_ADDED.get((table, c), OLDEST_VERSION) <= version]


def read_version(c: sqlite3.Connection) -> int:
    (found,) = c.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    return int(found)


def upgrade_from(c: sqlite3.Connection, version: int) -> None:
    for older in range(version, SCHEMA_VERSION):
        UPGRADES[older](c)
    for table in TOUCHED:
        c.execute(f"UPDATE {table} SET seal = seal('{table}', {', '.join(SEALED[table])})")
    update(c, "meta", ("value", str(SCHEMA_VERSION)), ("key", "schema"))


def insert(c: sqlite3.Connection, table: str, *values: str | int | None) -> None:
    """``values`` in the order of SEALED: a table that was upgraded has its columns in another."""
    columns = ", ".join(SEALED[table])
    marks = "?, " * len(SEALED[table])
    c.execute(
        f"INSERT INTO {table} ({columns}, seal) VALUES ({marks}?)", (*values, seal(table, *values))
    )


def update(
    c: sqlite3.Connection,
    table: str,
    change: tuple[str, str | None],
    where: tuple[str, str],
) -> int:
    """Set one column of the rows where another has that value, and seal them anew; how many there are."""
    (column, value), (key, wanted) = change, where
    sealed = ", ".join("?1" if name == column else name for name in SEALED[table])
    done = c.execute(
        f"UPDATE {table} SET {column} = ?1, seal = seal('{table}', {sealed}) WHERE {key} = ?2",
        (value, wanted),
    )
    return done.rowcount


def load_definition(text: str) -> DomainDefinition:
    try:
        return from_document(json.loads(text))
    except (ValueError, DefinitionError) as error:
        raise JournalError(f"the journal holds a definition that is not valid: {error}") from error


def dump_definition(definition: DomainDefinition) -> str:
    return json.dumps(to_document(definition), separators=(",", ":"))


def is_the_others(c: sqlite3.Connection, entry: MigrationEntry) -> bool:
    """The domain, by what is recorded: a source has completed, or a target aborted."""
    decisive = RecordKind.COMPLETED if entry.side is Side.SOURCE else RecordKind.ABORTED
    query = "SELECT 1 FROM record WHERE migration = ? AND kind = ?"
    return c.execute(query, (entry.id, decisive)).fetchone() is not None


def define(
    c: sqlite3.Connection,
    uuid: str,
    definition: DomainDefinition,
    pending: DomainDefinition | None,
) -> None:
    for column, value in (
        ("name", definition.name),
        ("definition", dump_definition(definition)),
        ("pending", None if pending is None else dump_definition(pending)),
    ):
        update(c, "domain", (column, value), ("uuid", uuid))


def require_nothing_pending(c: sqlite3.Connection, definition: DomainDefinition) -> None:
    row = c.execute("SELECT pending FROM domain WHERE uuid = ?", (definition.uuid,)).fetchone()
    if row is not None and row[0] is not None:
        raise ReconfigurationPending(
            f"{definition.name} has a delayed reconfiguration pending, which would be lost",
            remedy=f"stop {definition.name}, which makes it so, or `ldm cancel-reconf {definition.name}`",
        )


def insert_domain(c: sqlite3.Connection, entry: DomainEntry) -> None:
    definition = entry.definition
    insert(
        c,
        "domain",
        definition.uuid,
        definition.name,
        dump_definition(definition),
        entry.state,
        entry.migration,
        None if entry.pending is None else dump_definition(entry.pending),
    )


def domains(c: sqlite3.Connection, where: str, values: Iterable[object]) -> list[DomainEntry]:
    """By name. Raises JournalError, ValueError."""
    found = c.execute(
        f"SELECT definition, state, migration, pending FROM domain {where} ORDER BY name",
        tuple(values),
    ).fetchall()
    return [
        DomainEntry(
            definition=load_definition(text),
            state=DomainState(state),
            migration=migration,
            pending=None if pending is None else load_definition(pending),
        )
        for text, state, migration, pending in found
    ]


def histories(
    c: sqlite3.Connection, where: str, values: Iterable[object]
) -> list[MigrationHistory]:
    found = c.execute(
        "SELECT m.id, side, peer, peer_journal, run_state, definition, kind, time_unix_ms, sentence"
        f" FROM migration m JOIN record r ON r.migration = m.id {where} ORDER BY m.rowid, r.sequence",
        tuple(values),
    ).fetchall()
    gathered: dict[str, tuple[MigrationEntry, list[JournalRecord]]] = {}
    for identity, side, peer, peer_journal, run_state, text, kind, time_unix_ms, sentence in found:
        if identity not in gathered:
            entry = MigrationEntry(
                id=identity,
                side=Side(side),
                peer=peer,
                peer_journal=peer_journal,
                definition=load_definition(text),
                run_state=RunState(run_state),
            )
            gathered[identity] = (entry, [])
        gathered[identity][1].append(
            JournalRecord(kind=RecordKind(kind), time_unix_ms=time_unix_ms, sentence=sentence)
        )
    return [
        MigrationHistory(entry=entry, records=tuple(records))
        for entry, records in gathered.values()
    ]
