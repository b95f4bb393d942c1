"""Listings of a journal with a long history: bounded, newest first, and without reading one definition."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from ldmd.client import connect
from ldmd.definition import to_document
from ldmd.errors import BadRequest, NotFound
from ldmd.journal.rows import insert
from tests.ldmd.host import define
from tests.managers import Manager, make_fleet

COUNT = 1200
EMULATED = {"host-a": '[hypervisors]\nenabled = ["emulated"]\n'}
UNREADABLE = "no definition"
"""What nobody reads may be this."""


def name_of(number: int) -> str:
    return f"{number:032x}"


def add_migration(c: sqlite3.Connection, identity: str, definition: str, *kinds: str) -> None:
    uuid = json.loads(definition)["uuid"] if definition != UNREADABLE else ""
    insert(c, "migration", identity, "target", "host-b", "", uuid, "ldg1", "bound", definition)
    for sequence, kind in enumerate(kinds, 1):
        insert(c, "record", identity, sequence, kind, 1_700_000_000_000, "")


@asynccontextmanager
async def long_history(folder: Path) -> AsyncIterator[Manager]:
    """Migration number 0 is not settled; all others are."""
    async with make_fleet(folder, "host-a", extra=EMULATED, start=False) as fleet:
        manager = fleet["host-a"]
        await manager.start()
        await manager.stop()
        with closing(sqlite3.connect(manager.folder / "state" / "journal.sqlite")) as c:
            definition = json.dumps(to_document(define("old")))
            add_migration(c, name_of(0), definition, "PREPARED", "COMMITTED", "RUNNING")
            for number in range(1, COUNT):
                kinds = ("PREPARED", "COMMITTED", "RUNNING", "SETTLED")
                add_migration(c, name_of(number), UNREADABLE, *kinds)
            c.commit()
        await manager.start()
        yield manager


def ids(migrations: Sequence[dict[str, Any]]) -> list[str]:
    return [m["migration"] for m in migrations]


async def test_the_newest_and_what_is_under_way(tmp_path: Path) -> None:
    async with long_history(tmp_path) as manager:
        page = await manager.call("list-migrations")
        newest = [name_of(COUNT - 1 - n) for n in range(100)]
        assert ids(page["migrations"]) == [*newest, name_of(0)]
        assert page["next"] == newest[-1]
        assert [m["settled"] for m in page["migrations"]] == [True] * 100 + [False]
        assert page["migrations"][0]["state"] == "moved"
        following = await manager.call("list-migrations", {"limit": 3, "before": page["next"]})
        assert ids(following["migrations"]) == [name_of(COUNT - 101 - n) for n in range(3)]


async def test_all_of_them_page_by_page(tmp_path: Path) -> None:
    async with long_history(tmp_path) as manager, connect(manager.socket) as client:
        migrations, more = await client.list_migrations()
        assert not more
        assert sorted(ids(migrations)) == [name_of(n) for n in range(COUNT)]
        some, more = await client.list_migrations(7)
        assert more
        assert ids(some)[:7] == [name_of(COUNT - 1 - n) for n in range(7)]


async def test_one_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    async with long_history(tmp_path) as manager:
        wanted = name_of(COUNT // 2)
        shown = await manager.call("show-migration", {"migration": wanted})
        assert (shown["migration"], shown["settled"]) == (wanted, True)
        for beginning, words in (("000", "several migrations"), ("f" * 32, "no migration")):
            with pytest.raises(NotFound, match=words):
                await manager.call("show-migration", {"migration": beginning})


@pytest.mark.parametrize("limit", [0, 501, True, "7"])
async def test_a_page_has_its_bounds(tmp_path: Path, limit: object) -> None:
    async with make_fleet(tmp_path, "host-a", extra=EMULATED) as fleet:
        with pytest.raises(BadRequest, match="a whole number from 1 to 500"):
            await fleet["host-a"].call("list-migrations", {"limit": limit})
