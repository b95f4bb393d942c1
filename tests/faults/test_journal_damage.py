"""A journal that a disk has damaged: cut off anywhere, or with bits turned over. The manager never guesses.

Either the damage is found, with the file's name and what to do, or what is read is to the letter what was written.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from ldmd.errors import JournalError
from ldmd.journal.store import Journal
from tests.faults.moments import MOMENTS
from tests.faults.scene import HOSTS, Ending, Scene, open_scene

SEED = 20251
FLIPS = 60
CUTS = 30
"""Of each file, on each host."""
START_SECONDS = 30


@frozen(kw_only=True)
class Damage:
    """``size_bytes``: the file ends there; ``bit``: one bit of it is turned over."""

    file: str
    size_bytes: int | None = None
    bit: int | None = None

    def do(self, folder: Path) -> None:
        path = folder / self.file
        content = bytearray(path.read_bytes())
        if self.bit is not None:
            content[self.bit // 8] ^= 1 << self.bit % 8
        path.write_bytes(content[: self.size_bytes])


def draw_damages(folder: Path, seed: str) -> Iterator[Damage]:
    rng = random.Random(seed)
    for path in sorted(folder.glob("journal.sqlite*")):
        if path.name.endswith("-reserve"):  # nothing is in it
            continue
        size_bytes = path.stat().st_size
        for bit in {rng.randrange(size_bytes * 8) for _ in range(FLIPS)}:
            yield Damage(file=path.name, bit=bit)
        for cut in {rng.randrange(size_bytes) for _ in range(CUTS)} | {0, size_bytes - 1}:
            yield Damage(file=path.name, size_bytes=cut)


async def read_all(path: Path) -> tuple[object, ...]:
    journal = await Journal.open(path)
    try:
        return journal.id, await journal.load_domains(), await journal.load_migrations()
    finally:
        await journal.aclose()


async def read_or_refuse(path: Path) -> tuple[object, ...] | JournalError:
    try:
        return await read_all(path)
    except JournalError as error:
        return error


async def hold_and_kill(scene: Scene) -> None:
    """Both managers dead in the middle of eight migrations, the logs of both journals not yet folded in."""
    caught = await scene.catch(MOMENTS)
    assert caught
    await scene.kill(*HOSTS)


async def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    async with open_scene(tmp_path / "scene") as scene:
        await hold_and_kill(scene)
        wrong = []
        found = 0
        for host in HOSTS:
            whole = scene[host].folder / "state"
            assert (whole / "journal.sqlite-wal").stat().st_size > 0
            shutil.copytree(whole, tmp_path / host)
            written = await read_all(tmp_path / host / "journal.sqlite")
            for damage in draw_damages(whole, f"{SEED}/{host}"):
                copy = tmp_path / "copy"
                shutil.copytree(whole, copy)
                damage.do(copy)
                refusal: JournalError | None = None
                try:
                    if await read_all(copy / "journal.sqlite") != written:
                        wrong.append((host, damage))
                except JournalError as error:
                    refusal = error
                if refusal is not None:
                    found += 1
                    assert str(copy / "journal.sqlite") in refusal.sentence, damage
                    assert refusal.remedy, (damage, refusal.sentence)
                shutil.rmtree(copy)
        assert found
        assert not wrong, "\n".join(
            f"{host}: {damage}: read as another journal" for host, damage in wrong
        )


DAMAGES = {
    "the log is cut off": Damage(file="journal.sqlite-wal", size_bytes=9000),
    "a bit in the log": Damage(file="journal.sqlite-wal", bit=8 * 5000),
    "the log is empty": Damage(file="journal.sqlite-wal", size_bytes=0),
    "the journal is empty": Damage(file="journal.sqlite", size_bytes=0),
}


@pytest.mark.parametrize("host", HOSTS)
async def test_the_manager_refuses_and_touches_nothing(host: str, tmp_path: Path) -> None:
    """Exit status 74 and what to do; the domain's processes are left alone; with the journal restored all is settled."""
    async with open_scene(tmp_path / "scene") as scene:
        await hold_and_kill(scene)
        state = scene[host].folder / "state"
        shutil.copytree(state, tmp_path / "whole")
        before = {name: scene.find_process(host, name) for name in scene.uuids}
        for case, damage in DAMAGES.items():
            damage.do(state)
            damaged = contents(state)
            done = run_manager(scene, host)
            assert done.returncode == JournalError.exit_status, (case, done.stderr)
            assert f"ldmd: the journal {state / 'journal.sqlite'}" in done.stderr, case
            assert "restore the journal" in done.stderr, case
            assert before == {name: scene.find_process(host, name) for name in scene.uuids}, case
            kept = contents(state)
            assert kept == damaged, f"{case}: the evidence was changed"
            shutil.rmtree(state)
            shutil.copytree(tmp_path / "whole", state)
        await scene.start(*HOSTS)
        endings = await scene.assert_promise()
        assert {e.running for e in endings.values()} == {True}
        assert Ending(owner="host-b", running=True) in endings.values()


def contents(state: Path) -> dict[str, bytes]:
    """Without the index that SQLite makes of the log, which holds nothing of its own."""
    return {p.name: p.read_bytes() for p in state.iterdir() if not p.name.endswith("-shm")}


def run_manager(scene: Scene, host: str) -> subprocess.CompletedProcess[str]:
    config = scene[host].folder / "ldmd.toml"
    return subprocess.run(
        [sys.executable, "-m", "ldmd.daemon", "--config", str(config)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
