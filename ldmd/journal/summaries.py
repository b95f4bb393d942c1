"""Migrations as listings show them and peers are told of them, read without their definitions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ldmd.journal.records import JournalRecord, MigrationSummary, Side
from protocol.actions import RecordKind
from protocol.phases import RunState


def read_summaries(
    c: sqlite3.Connection, chosen: str, values: Iterable[object]
) -> list[MigrationSummary]:
    """``chosen``: which rows of the table of migrations, in SQL."""
    rows = c.execute(
        "SELECT m.id, side, peer, peer_journal, uuid, name, run_state, kind, time_unix_ms, sentence"
        f" FROM (SELECT rowid AS place, * FROM migration {chosen}) m JOIN record r ON r.migration = m.id"
        " ORDER BY place DESC, r.sequence",
        tuple(values),
    ).fetchall()
    found: dict[tuple[str, ...], list[JournalRecord]] = {}
    for *entry, kind, time_unix_ms, sentence in rows:
        found.setdefault(tuple(entry), []).append(
            JournalRecord(kind=RecordKind(kind), time_unix_ms=time_unix_ms, sentence=sentence)
        )
    return [
        MigrationSummary(
            id=identity,
            side=Side(side),
            peer=peer,
            peer_journal=peer_journal,
            uuid=uuid,
            name=name,
            run_state=RunState(run_state),
            records=tuple(records),
        )
        for (identity, side, peer, peer_journal, uuid, name, run_state), records in found.items()
    ]
