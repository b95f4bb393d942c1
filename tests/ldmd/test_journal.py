"""The journal on a real file: durable, atomic, locked, and never garbage."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from ldmd.definition import to_document
from ldmd.errors import JournalError
from ldmd.journal.records import (
    DomainEntry,
    DomainState,
    MigrationEntry,
    MigrationHistory,
    Side,
)
from ldmd.journal.store import Journal
from protocol.actions import RecordKind
from protocol.phases import RunState
from tests.ldmd.host import define

K = RecordKind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


def make_entry(
    migration_id: str = "a" * 32, *, side: Side = Side.SOURCE, name: str = "ldg1"
) -> MigrationEntry:
    return MigrationEntry(
        id=migration_id,
        side=side,
        peer="host-b",
        peer_journal="b" * 32,
        definition=define(name),
        run_state=RunState.RUNNING,
    )


def domain_of(
    entry: MigrationEntry, state: DomainState = DomainState.ACTIVE, migration: str | None = None
) -> DomainEntry:
    return DomainEntry(definition=entry.definition, state=state, migration=migration)


async def read_all(path: Path) -> tuple[str, list[DomainEntry], list[MigrationHistory]]:
    journal = await Journal.open(path)
    try:
        return journal.id, await journal.load_domains(), await journal.load_migrations()
    finally:
        await journal.aclose()


async def fill(path: Path) -> tuple[str, list[DomainEntry], list[MigrationHistory]]:
    """Domains in each state, a settled migration and two open ones; gives what lies there."""
    journal = await Journal.open(path)
    settled, held = make_entry("1" * 32), make_entry("2" * 32, name="ldg2")
    receiving = make_entry("3" * 32, side=Side.TARGET, name="ldg3")
    await journal.add_domain(domain_of(settled, DomainState.BOUND))
    await journal.add_domain(domain_of(held))
    for kind in (K.PREPARING, K.ABORTED, K.SETTLED):
        await journal.append(settled, kind, f"why {kind}")
    await journal.append(held, K.PREPARING, "")
    await journal.append(held, K.GRANTED, "")
    await journal.append(
        receiving, K.PREPARED, "", receiving=domain_of(receiving, migration=receiving.id)
    )
    await journal.aclose()
    return await read_all(path)


# ---- durable ---------------------------------------------------------------------------------------------


async def test_everything_is_there_after_reopening(path: Path) -> None:
    before = await fill(path)
    journal_id, domains, migrations = await read_all(path)
    assert (journal_id, domains, migrations) == before
    assert len(journal_id) == 32
    assert [(d.definition.name, d.state, d.migration) for d in domains] == [
        ("ldg1", DomainState.BOUND, None),
        ("ldg2", DomainState.ACTIVE, "2" * 32),
        ("ldg3", DomainState.ACTIVE, "3" * 32),
    ]
    assert [m.entry.id for m in migrations] == ["1" * 32, "2" * 32, "3" * 32]
    assert migrations[0].kinds == (K.PREPARING, K.ABORTED, K.SETTLED)
    assert [r.sentence for r in migrations[0].records] == [f"why {k}" for k in migrations[0].kinds]
    assert [m.settled for m in migrations] == [True, False, False]


async def test_a_killed_process_loses_nothing_that_was_written(path: Path) -> None:
    code = f"""
import os, trio
from pathlib import Path
from ldmd.journal.store import Journal
from tests.ldmd.test_journal import domain_of, make_entry
from protocol.actions import RecordKind

async def main():
    journal = await Journal.open(Path({str(path)!r}))
    entry = make_entry()
    await journal.add_domain(domain_of(entry))
    await journal.append(entry, RecordKind.PREPARING, "the last words")
    os.kill(os.getpid(), 9)

trio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert done.returncode == -9
    _, domains, migrations = await read_all(path)
    assert domains[0].migration == migrations[0].entry.id
    assert migrations[0].records[0].sentence == "the last words"


async def test_each_commit_is_synced(path: Path) -> None:
    journal = await Journal.open(path)

    def ask(pragma: str) -> object:
        return journal._connection.execute(f"PRAGMA {pragma}").fetchone()[0]

    assert (ask("journal_mode"), ask("synchronous"), ask("locking_mode"), ask("foreign_keys")) == (
        "wal",
        2,  # FULL
        "exclusive",
        1,
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    await journal.aclose()
    assert not path.with_name(path.name + "-wal").exists()


async def test_two_journals_never_have_one_id(tmp_path: Path) -> None:
    ids = [(await read_all(tmp_path / str(n) / "journal.sqlite"))[0] for n in range(3)]
    assert len(set(ids)) == 3


# ---- one manager -----------------------------------------------------------------------------------------


async def test_a_second_manager_is_refused(path: Path) -> None:
    first = await Journal.open(path)
    with pytest.raises(JournalError, match="is in use by another manager") as caught:
        await Journal.open(path)
    assert caught.value.remedy == "only one manager may run on one state-directory"
    await first.add_domain(domain_of(make_entry()))  # the first one is not disturbed
    await first.aclose()
    assert len((await read_all(path))[1]) == 1


async def test_a_closed_journal_is_a_journal_error(path: Path) -> None:
    journal = await Journal.open(path)
    await journal.aclose()
    with pytest.raises(JournalError, match="cannot be used"):
        await journal.load_domains()


# ---- what stands in one transaction ----------------------------------------------------------------------


async def test_preparing_lets_the_migration_hold_the_domain_and_settled_lets_go(path: Path) -> None:
    journal = await Journal.open(path)
    entry = make_entry()
    await journal.add_domain(domain_of(entry))

    async def holder() -> str | None:
        (domain,) = await journal.load_domains()
        return domain.migration

    for kind in (K.PREPARING, K.GRANTED, K.ABORTED):
        await journal.append(entry, kind, "")
        assert await holder() == entry.id
    assert [m.entry.id for m in await journal.load_unsettled()] == [entry.id]
    await journal.append(entry, K.SETTLED, "")
    assert await holder() is None
    assert await journal.load_unsettled() == []
    await journal.aclose()


@pytest.mark.parametrize(
    ("side", "kinds"),
    [
        (Side.SOURCE, (K.PREPARING, K.GRANTED, K.COMPLETED, K.SETTLED)),
        (Side.TARGET, (K.PREPARED, K.ABORTED, K.SETTLED)),
    ],
    ids=str,
)
async def test_settled_removes_the_domain_that_is_the_other_sides(
    path: Path, side: Side, kinds: tuple[K, ...]
) -> None:
    """It has been removed before; this is for a journal that could not be written then."""
    journal = await Journal.open(path)
    entry = make_entry(side=side)
    receiving = domain_of(entry, migration=entry.id) if side is Side.TARGET else None
    if receiving is None:
        await journal.add_domain(domain_of(entry))
    for kind in kinds:
        await journal.append(entry, kind, "", receiving=receiving if kind is K.PREPARED else None)
    assert await journal.load_domains() == []
    await journal.aclose()


async def test_prepared_comes_with_its_domain_or_not_at_all(path: Path) -> None:
    journal = await Journal.open(path)
    entry = make_entry(side=Side.TARGET)
    await journal.add_domain(domain_of(make_entry(name=entry.definition.name)))  # the name is taken
    with pytest.raises(JournalError):
        await journal.append(entry, K.PREPARED, "", receiving=domain_of(entry, migration=entry.id))
    assert await journal.load_migrations() == []
    assert len(await journal.load_domains()) == 1

    free = attrs.evolve(entry, definition=define("ldg9"))
    await journal.append(free, K.PREPARED, "", receiving=domain_of(free, migration=free.id))
    assert [d.migration for d in await journal.load_domains()] == [None, free.id]
    assert [m.kinds for m in await journal.load_migrations()] == [(K.PREPARED,)]
    await journal.aclose()


async def test_records_stay_in_the_order_of_writing(path: Path) -> None:
    journal = await Journal.open(path)
    one, two = make_entry("f" * 32), make_entry("0" * 32, name="ldg2")
    for number in range(12):
        kind = (K.PREPARING, K.GRANTED)[number % 2]
        await journal.append(one, kind, f"{number}")
        await journal.append(two, kind, f"{-number}")
    histories = await journal.load_migrations()
    assert [h.entry.id for h in histories] == [one.id, two.id], "oldest first, not by id"
    assert [r.sentence for r in histories[0].records] == [str(n) for n in range(12)]
    assert await journal.load_migrations(uuid=two.definition.uuid) == [histories[1]]
    assert await journal.load_migration(one.id) == histories[0]
    assert await journal.load_migration("e" * 32) is None
    await journal.aclose()


async def test_a_record_that_stands_there_already_is_not_written_again(path: Path) -> None:
    """The commit succeeds, the witness behind it does not, and it is tried again."""
    journal = await Journal.open(path)
    entry = make_entry(side=Side.TARGET)
    witness = path.with_name(path.name + "-count")
    witness.unlink(missing_ok=True)
    witness.mkdir()
    for kind in (K.PREPARED, K.RUNNING, K.SETTLED):
        receiving = domain_of(entry, migration=entry.id) if kind is K.PREPARED else None
        for _ in range(2):
            with pytest.raises(JournalError, match="cannot be used"):
                await journal.append(entry, kind, "", receiving=receiving)
    other = domain_of(make_entry(name="ldg2"))
    with pytest.raises(JournalError):
        await journal.add_domain(other)
    witness.rmdir()
    await journal.append(entry, K.SETTLED, "")
    await journal.add_domain(other)
    (history,) = await journal.load_migrations()
    assert history.kinds == (K.PREPARED, K.RUNNING, K.SETTLED)
    await journal.aclose()


async def test_an_earlier_journal_is_refused_where_the_position_is_known(
    path: Path, tmp_path: Path
) -> None:
    position = tmp_path / "journal.position"
    entry = make_entry()
    journal = await Journal.open(path, position)
    await journal.add_domain(domain_of(entry))
    await journal.aclose()
    shutil.copytree(path.parent, tmp_path / "earlier")
    journal = await Journal.open(path, position)
    assert journal.unconfirmed == frozenset(), "it is known that nothing came after it"
    await journal.append(entry, K.PREPARING, "")
    await journal.aclose()
    shutil.rmtree(path.parent)
    shutil.copytree(tmp_path / "earlier", path.parent)
    with pytest.raises(JournalError, match="is from an earlier moment") as caught:
        await Journal.open(path, position)
    assert str(position) in caught.value.remedy


@pytest.mark.parametrize("content", [None, b"", b"garbage", "of another"])
async def test_without_a_position_nothing_is_confirmed(
    content: bytes | str | None, path: Path, tmp_path: Path
) -> None:
    position = tmp_path / "journal.position"
    one, other = domain_of(make_entry()), domain_of(make_entry(name="ldg2"))
    uuids = {one.definition.uuid, other.definition.uuid}
    journal = await Journal.open(path, position)
    for entry in (one, other):
        await journal.add_domain(entry)
    await journal.aclose()
    position.unlink()
    if isinstance(content, bytes):
        position.write_bytes(content)
    elif content is not None:
        await (await Journal.open(tmp_path / "another" / "journal.sqlite", position)).aclose()
    journal = await Journal.open(path, position)
    assert journal.unconfirmed == uuids
    await journal.confirm(one.definition.uuid)
    await journal.aclose()
    journal = await Journal.open(path, position)  # the manager alone was started again
    assert journal.unconfirmed == {other.definition.uuid}
    await journal.aclose()


async def test_a_position_that_cannot_be_written_is_removed(path: Path, tmp_path: Path) -> None:
    position = tmp_path / "journal.position"
    journal = await Journal.open(path, position)
    (tmp_path / "journal.position.new").mkdir()
    await journal.add_domain(domain_of(make_entry()))
    assert not position.exists()
    (tmp_path / "journal.position.new").rmdir()
    await journal.aclose()


async def test_a_state_is_not_lost_silently(path: Path) -> None:
    journal = await Journal.open(path)
    with pytest.raises(JournalError, match="it has no domain"):
        await journal.set_state("no such uuid", DomainState.ACTIVE)
    await journal.aclose()


async def test_domains_change_and_go(path: Path) -> None:
    journal = await Journal.open(path)
    entry = make_entry()
    await journal.add_domain(domain_of(entry, DomainState.INACTIVE))
    for state in (DomainState.BOUND, DomainState.ACTIVE, DomainState.INACTIVE):
        await journal.set_state(entry.definition.uuid, state)
        assert [d.state for d in await journal.load_domains()] == [state]
    for _ in range(2):
        await journal.remove_domain(entry.definition.uuid)
        assert await journal.load_domains() == []
    await journal.aclose()


# ---- what a disk may have made of it ---------------------------------------------------------------------


async def refused_or_intact(path: Path, wanted: object) -> bool:
    """Open a journal that may be damaged; True when it was refused, and its file is as it was."""
    before = path.read_bytes()
    try:
        found = await read_all(path)
    except JournalError:
        assert path.read_bytes() == before, "a refused journal was changed"
        return True
    assert found == wanted, "garbage was taken for content"
    return False


async def test_a_flipped_bit_is_seen(path: Path) -> None:
    wanted = await fill(path)
    intact = path.read_bytes()
    rng = random.Random(1)
    used = [n for n, byte in enumerate(intact) if byte]
    positions = [*range(100), *rng.sample(used, 300), *rng.sample(range(len(intact)), 50)]
    refused = 0
    for position in positions:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        refused += await refused_or_intact(path, wanted)
    assert refused > 250, "most flips in bytes that are in use must be seen"


async def test_a_flipped_value_is_seen(path: Path) -> None:
    """A digit of a definition: the database is in order, and says something else."""
    await fill(path)
    intact = path.read_bytes()
    for old, new in (
        (b'"memory-bytes":2097152', b'"memory-bytes":3145728'),
        (b"why ABORTED", b"why aBORTED"),
        (b"host-b", b"host-c"),
        (b"GRANTED", b"GRANTEE"),
    ):
        assert old in intact
        path.write_bytes(intact.replace(old, new))
        with pytest.raises(JournalError, match="is damaged"):
            await Journal.open(path)
        assert path.read_bytes() == intact.replace(old, new)


async def test_a_truncated_file_is_seen(path: Path) -> None:
    wanted = await fill(path)
    intact = path.read_bytes()
    rng = random.Random(2)
    for size in (0, 1, 99, 100, 512, 4096, len(intact) - 1, *rng.sample(range(len(intact)), 40)):
        path.write_bytes(intact[:size])
        assert await refused_or_intact(path, wanted), f"{size} of {len(intact)} bytes were accepted"


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"not a database, and longer than that"])
async def test_a_file_that_is_no_journal_is_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(JournalError, match="is damaged"):
        await Journal.open(path)
    assert path.read_bytes() == content


async def test_a_journal_whose_file_is_gone_is_not_begun_anew(path: Path) -> None:
    journal = await Journal.open(path)
    await journal.add_domain(domain_of(make_entry()))
    with_log = {p: p.read_bytes() for p in path.parent.iterdir()}
    await journal.aclose()
    for file, content in with_log.items():
        file.write_bytes(content)
    path.unlink()
    with pytest.raises(JournalError, match=r"it is not there, but .*-wal is"):
        await Journal.open(path)
    assert not path.exists()


async def crash_after(path: Path, *kinds: K) -> dict[Path, bytes]:
    """The journal's files as a manager leaves them that is killed right behind the last record."""
    journal = await Journal.open(path)
    entry = make_entry()
    await journal.add_domain(domain_of(entry))
    for kind in kinds:
        await journal.append(entry, kind, "")
    files = {p: p.read_bytes() for p in path.parent.iterdir() if not p.name.endswith("-reserve")}
    await journal.aclose()
    return files


async def test_a_decision_that_is_gone_with_the_end_of_the_log_is_missed(path: Path) -> None:
    """SQLite alone would go on from PREPARING: the source would resume what it has handed over."""
    files = await crash_after(path, K.PREPARING, K.GRANTED)
    log = next(p for p in files if p.name.endswith("-wal"))
    content = files[log]
    rng = random.Random(3)
    kinds = []
    for damaged in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        *(flip(content, len(content) - 1 - rng.randrange(8000), rng) for _ in range(30)),
    ):
        for file, intact in files.items():
            file.write_bytes(intact)
        log.write_bytes(damaged)
        kinds.append(await kinds_if_opened(path))
    assert set(kinds) <= {None, (K.PREPARING, K.GRANTED)}
    assert kinds.count(None) > 20


async def kinds_if_opened(path: Path) -> tuple[K, ...] | None:
    try:
        _, _, (history,) = await read_all(path)
    except JournalError:
        return None
    return history.kinds


def flip(content: bytes, position: int, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << rng.randrange(8)
    return bytes(changed)


async def test_a_count_that_is_not_what_was_written_is_seen(path: Path) -> None:
    files = await crash_after(path, K.PREPARING, K.GRANTED)
    witness = next(p for p in files if p.name.endswith("-count"))
    for content in (b"", files[witness][:-1], flip(files[witness], 7, random.Random(1))):
        witness.write_bytes(content)
        with pytest.raises(JournalError, match="is damaged"):
            await Journal.open(path)
    witness.write_bytes(files[witness])
    for file in files:
        if file != witness:
            file.unlink()
    with pytest.raises(JournalError, match=r"it is not there, but .*-count is"):
        await Journal.open(path)


async def test_another_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photographs (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="is damaged"):
        await Journal.open(path)
    assert path.read_bytes() == before


async def test_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    await fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(
        JournalError, match="has version 2, this manager writes version 1"
    ) as caught:
        await Journal.open(path)
    assert "or a newer one" in caught.value.remedy
    assert path.read_bytes() == before


def make_directory(path: Path) -> None:
    path.mkdir(parents=True)


def put_file_in_the_way(path: Path) -> None:
    path.parent.write_text("in the way")


@pytest.mark.parametrize("obstruct", [make_directory, put_file_in_the_way])
async def test_what_cannot_be_opened_is_a_journal_error(
    path: Path, obstruct: Callable[[Path], None]
) -> None:
    obstruct(path)
    with pytest.raises(JournalError, match="cannot be opened"):
        await Journal.open(path)


# ---- no room ---------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys, trio
from pathlib import Path
from ldmd.errors import JournalError
from ldmd.journal.store import Journal
from protocol.actions import RecordKind
from tests.ldmd.test_journal import domain_of, make_entry

async def main():
    path = Path(sys.argv[1])
    journal = await Journal.open(path)
    await journal.add_domain(domain_of(make_entry()))
    first = make_entry("e" * 32, name="first")
    await journal.append(first, RecordKind.PREPARED, "", receiving=domain_of(first))
    size = (path.parent / (path.name + "-wal")).stat().st_size
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk: an error of write(2)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, hard))
    written = refused = 0
    for number in range(20):
        entry = make_entry(f"{number:032x}", name=f"full{number}")
        try:
            await journal.append(entry, RecordKind.PREPARED, "x" * 3000, receiving=domain_of(entry))
            written += 1
        except JournalError as error:
            assert "cannot be used" in str(error), error
            refused += 1
    assert refused > 10, (written, refused)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    last = make_entry("f" * 32, name="last")
    await journal.append(last, RecordKind.PREPARED, "", receiving=domain_of(last))
    print(written, flush=True)

trio.run(main)
"""


async def test_a_full_disk_refuses_and_keeps_what_was_there(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    written = int(done.stdout)
    _, domains, migrations = await read_all(path)
    names = {d.definition.name for d in domains}
    assert {"ldg1", "first", "last"} <= names
    assert len(domains) == written + 3
    assert {h.entry.definition.name for h in migrations} == names - {"ldg1"}


RESERVE = """
import os, subprocess, sys, trio
from pathlib import Path
from ldmd.errors import JournalError
from ldmd.journal.store import Journal
from protocol.actions import RecordKind as K
from tests.ldmd.test_journal import make_entry

async def main():
    folder = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    journal = await Journal.open(folder / "journal.sqlite")
    entry = make_entry()
    await journal.append(entry, K.PREPARING, "")
    filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(filler, bytes(4096))
    except OSError:
        pass
    for kind in (K.GRANTED, K.COMPLETED, K.SETTLED):
        await journal.append(entry, kind, "x" * 3000)
    other = make_entry("1" * 32, name="other")
    try:
        await journal.append(other, K.PREPARING, "")
    except JournalError as error:
        assert "no room to settle a migration" in error.sentence, error
    else:
        raise AssertionError("it began without a reserve")
    os.ftruncate(filler, 0)
    await journal.append(other, K.PREPARING, "")
    await journal.aclose()

trio.run(main)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="a small disk of its own (tmpfs) takes root")
def test_a_migration_that_began_is_settled_on_a_full_disk(tmp_path: Path) -> None:
    command = ["unshare", "--mount", sys.executable, "-c", RESERVE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert os.listdir(tmp_path) == []  # the mount went with the process


def test_the_limit_of_this_process_is_untouched() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


async def test_a_copy_of_the_files_opens_elsewhere(path: Path, tmp_path: Path) -> None:
    """What an operator restores: the files as they lay there while the manager was running."""
    journal = await Journal.open(path)
    entry = make_entry()
    await journal.add_domain(domain_of(entry))
    shutil.copytree(path.parent, tmp_path / "copy")
    await journal.aclose()
    _, domains, _ = await read_all(tmp_path / "copy" / path.name)
    assert [to_document(d.definition) for d in domains] == [to_document(entry.definition)]


# ---- the witness -----------------------------------------------------------------------------------------


class Died(BaseException):
    """As when the host loses its power in the middle of it."""


@pytest.mark.parametrize("call", ["open", "pwrite", "fdatasync", "rename", "fsync"])
async def test_dying_while_the_witness_is_made_keeps_nobody_down(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """At the first transaction, which is committed by then."""
    entry, another = domain_of(make_entry()), domain_of(make_entry(name="ldg2"))
    journal = await Journal.open(path)

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr(os, call, die)
        with pytest.raises(Died):
            await journal.add_domain(entry)
    await journal.aclose()
    journal = await Journal.open(path)
    await journal.add_domain(another)
    await journal.aclose()
    _, domains, _ = await read_all(path)
    assert domains == [entry, another]
    assert path.with_name(path.name + "-count").stat().st_size == 24
