"""Whether the journal is the latest is asked until it is known: what cannot be read or kept meanwhile ends nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio

from ldmd import confirming
from ldmd.confirming import confirm
from ldmd.errors import JournalError
from ldmd.journal import rows
from ldmd.journal.records import MigrationEntry, Side
from ldmd.journal.store import Journal
from ldmd.migration import Migration
from ldmd.recovery import recall
from ldmd.standing import Standing, answer
from protocol import messages as m
from protocol.actions import RecordKind
from protocol.phases import Holding, Role, RunState
from tests.ldmd.host import configure, define

OPEN, SETTLED = "a" * 32, "c" * 32
THEIR_JOURNAL = "b" * 32
PEERS = {"host-b": {"address": "127.0.0.1:1"}, "host-c": {"address": "127.0.0.1:2"}}
RETRY = {"settle-retry-seconds-min": 0.01, "settle-retry-seconds-max": 0.01}


@pytest.fixture
def position(tmp_path: Path) -> Path:
    return tmp_path / "position"


@pytest.fixture
async def migration(
    tmp_path: Path, position: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Migration]:
    """Of a source that was booted; both peers answer, and tell of an earlier migration, too."""
    path = tmp_path / "journal.sqlite"
    entry = MigrationEntry(
        id=OPEN,
        side=Side.SOURCE,
        peer="host-b",
        peer_journal=THEIR_JOURNAL,
        definition=define(),
        run_state=RunState.RUNNING,
    )
    journal = await Journal.open(path)
    for kind in (RecordKind.PREPARING, RecordKind.ABORTED, RecordKind.SETTLED):
        await journal.append(attrs.evolve(entry, id=SETTLED), kind, "")
    await journal.append(entry, RecordKind.PREPARING, "")
    await journal.aclose()
    trails = (m.Trail(migration=SETTLED, role=Role.TARGET, kinds=("PREPARED", "ABORTED")),)
    standing = Standing(journal=THEIR_JOURNAL, holding=Holding.NOTHING, trails=trails, kinds=())

    async def ask(*_: object) -> Standing:
        await trio.lowlevel.checkpoint()
        return standing

    monkeypatch.setattr(confirming, "ask", ask)
    journal = await Journal.open(path, position)
    host: Any = SimpleNamespace(
        config=configure(tmp_path, peers=PEERS, migration=RETRY),
        journal=journal,
        domains=SimpleNamespace(find=lambda _: None),
        inventory=SimpleNamespace(living_orphans=lambda: ()),
    )
    try:
        history = await journal.load_migration(OPEN)
        assert history is not None
        made, _ = recall(host, history)
        assert journal.unconfirmed == {made.definition.uuid}
        with trio.fail_after(20):
            yield made
    finally:
        await journal.aclose()


async def spoil(journal: Journal) -> None:
    """The earlier migration's definition is one that this release does not accept."""
    await journal._write(
        lambda c: rows.update(c, "migration", ("definition", "{}"), ("id", SETTLED))
    )
    with pytest.raises(JournalError, match="not valid"):
        await journal.load_migration(SETTLED)


async def test_an_old_definition_that_is_no_longer_accepted_stops_nothing(
    migration: Migration,
) -> None:
    await spoil(migration.host.journal)
    await confirm(migration)
    assert migration.attempts == 1
    assert migration.host.journal.unconfirmed == frozenset()


async def test_a_peer_is_told_of_it_all_the_same(migration: Migration) -> None:
    await spoil(migration.host.journal)
    question = m.Ask(migration=OPEN, uuid=migration.definition.uuid)
    said = await answer(migration.host, "host-b", THEIR_JOURNAL, question)
    assert [(t.migration, t.role, t.kinds) for t in said.trails] == [
        (SETTLED, Role.SOURCE, ("PREPARING", "ABORTED", "SETTLED")),
        (OPEN, Role.SOURCE, ("PREPARING",)),
    ]
    assert (await answer(migration.host, "host-b", "d" * 32, question)).trails == ()


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_journal_that_cannot_be_read_is_no_verdict(
    failing: int, migration: Migration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the migration's own peer says is compared with it, then what the others say."""
    journal, reads = migration.host.journal, 0
    read = journal._read

    async def fail_once(work: Callable[..., Any]) -> Any:
        nonlocal reads
        reads += 1
        if reads == failing:
            raise JournalError("the disk is away")
        return await read(work)

    monkeypatch.setattr(journal, "_read", fail_once)
    await confirm(migration)
    assert migration.attempts == 2
    assert migration.progress.sentence.endswith("is not known: the disk is away")
    assert journal.unconfirmed == frozenset()


@pytest.mark.parametrize("a_person_says_so", [False, True])
async def test_what_cannot_be_kept_is_tried_again(
    a_person_says_so: bool, migration: Migration, position: Path
) -> None:
    position.unlink()
    position.mkdir()  # neither written nor removed
    if a_person_says_so:
        migration.stands.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(confirm, migration)
        seen = -1
        while "cannot be kept" not in migration.progress.sentence:
            seen = await migration.wait_change(seen)
        assert migration.host.journal.unconfirmed == {migration.definition.uuid}
        position.rmdir()
    assert migration.host.journal.unconfirmed == frozenset()
    assert position.is_file()
