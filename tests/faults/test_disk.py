"""The journal's disk fails or is full at either side, in every phase, and is well again later.

Two ways: a limit on the size of files (RLIMIT_FSIZE of nothing: each write of the manager fails with EFBIG, as on a disk
with an input/output error; its log's too), and a file system of a few MiB of the manager's own that is filled (ENOSPC).
"""

from __future__ import annotations

import contextlib
import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio

from ldmd.errors import ChecksFailed, LdmdError
from tests.faults.moments import EVERY_PHASE
from tests.faults.scene import HOLD_SECONDS, HOSTS, Scene, open_scene, other
from tests.managers import Manager, wait_for

RESUME_SECONDS = 8.0
"""From the end of a hold until the domain runs on at the source: a few seconds, on a machine that is busy."""
SIZE_MIB = 3
PIECE = bytes(4096)


def limit_files(manager: Manager, size_bytes: int) -> None:
    assert manager.process is not None
    limits = (size_bytes, resource.RLIM_INFINITY)
    resource.prlimit(manager.process.pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("victim", HOSTS)
async def test_io_error(victim: str, tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene:
        await catch_with_one_more(scene)
        limit_files(scene[victim], 0)
        await go_on_with_a_bad_journal(scene, victim)
        limit_files(scene[victim], resource.RLIM_INFINITY)
        await scene.assert_promise()


async def catch_with_one_more(scene: Scene) -> None:
    """The last domain does not migrate yet."""
    await scene.start_domains(len(EVERY_PHASE) + 1)
    await scene.catch(EVERY_PHASE)


async def go_on_with_a_bad_journal(scene: Scene, victim: str) -> None:
    """The domain runs on at the source where that is still to be had, though the journal cannot be written."""
    await trio.sleep(HOLD_SECONDS)
    await wait_for(scene.all_run_that_were_not_granted, RESUME_SECONDS)
    views = [await scene.look(host) for host in HOSTS]
    for name in scene.uuids:
        shown = [v.domains[name]["run_state"] for v in views if name in v.domains]
        assert shown.count("running") <= 1, name
    last = list(scene.uuids)[-1]
    with pytest.raises(LdmdError) as caught:
        await scene["host-a"].call("migrate-domain", {"domain": last, "peer": "host-b"})
    if isinstance(caught.value, ChecksFailed):  # a target that is full says so before
        (finding,) = cast("list[dict[str, str]]", caught.value.facts["findings"])
        assert (finding["code"], finding["subject"], victim) == ("disk-space", "host-b", "host-b")
    else:
        assert re.search(r"the journal .* (cannot be used|has no room)", caught.value.sentence)
        assert "stays on host-a" in caught.value.sentence
        assert victim in caught.value.sentence
    assert (await scene["host-a"].domains())[last]["run_state"] == "running"


async def test_asked_again_while_the_target_cannot_write(tmp_path: Path) -> None:
    """Why it is refused is said, and is not that the source was silent."""
    async with open_scene(tmp_path) as scene:
        await scene.catch([m for m in EVERY_PHASE if m.name == "create"], hold_seconds=1.0)
        limit_files(scene["host-b"], 0)
        await scene["host-a"].call("cancel-migration", {"domain": "ldg1"})
        await wait_for(partial(is_free, scene["host-a"]))
        with pytest.raises(LdmdError) as caught:
            await scene["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        limit_files(scene["host-b"], resource.RLIM_INFINITY)
        await scene.assert_promise()
        assert "host-b: an earlier migration of ldg1 is not settled" in caught.value.sentence
        assert "cannot be used" in caught.value.sentence


async def is_free(manager: Manager) -> bool:
    """No migration is open there."""
    return (await manager.call("status"))["migrations"] == 0


# ---- a full disk ---------------------------------------------------------------------------------------


async def start_on_small_disk(manager: Manager) -> None:
    """Its state directory is a file system that only the manager and what it starts can see; it ends with them."""
    state = manager.folder / "state"
    state.mkdir(mode=0o700)
    daemon = [sys.executable, "-m", "ldmd.daemon", "--config", str(manager.folder / "ldmd.toml")]
    mount = f'mount -t tmpfs -o size={SIZE_MIB}m,mode=0700 tmpfs "$0" && exec "$@"'
    with manager.log_path.open("ab") as log:
        manager.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mount, str(state), *daemon],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    async def answers() -> bool:
        return bool(await manager.call("status"))

    await wait_for(answers)


def state_of(manager: Manager) -> Path:
    """As that manager sees it (proc(5), /proc/PID/root)."""
    assert manager.process is not None
    return Path(f"/proc/{manager.process.pid}/root{manager.folder / 'state'}")


def fill(manager: Manager) -> None:
    with contextlib.suppress(OSError), (state_of(manager) / "filler").open("ab", 0) as file:
        while True:
            file.write(PIECE)


@pytest.mark.mounts
@pytest.mark.parametrize("victim", HOSTS)
async def test_full_disk_and_a_reserve(victim: str, tmp_path: Path) -> None:
    """What has begun is settled on the reserve, with nobody's help; nothing new begins."""
    async with open_scene(tmp_path, start=False) as scene:
        await start_on_small_disk(scene[victim])
        await scene.start(other(victim))
        await scene.catch(EVERY_PHASE)
        fill(scene[victim])
        await scene.wait_settled()
        assert "lives on its reserve" in scene[victim].log()
        fill(scene[victim])
        (state_of(scene[victim]) / "filler").unlink()
        await scene.assert_promise()


@pytest.mark.mounts
@pytest.mark.parametrize("victim", HOSTS)
async def test_full_disk_without_a_reserve(victim: str, tmp_path: Path) -> None:
    async with open_scene(tmp_path, start=False) as scene:
        await start_on_small_disk(scene[victim])
        await scene.start(other(victim))
        await catch_with_one_more(scene)
        (state_of(scene[victim]) / "journal.sqlite-reserve").unlink()
        fill(scene[victim])
        await go_on_with_a_bad_journal(scene, victim)
        (state_of(scene[victim]) / "filler").unlink()
        await scene.assert_promise()
        assert "database or disk is full" in scene[victim].log()


# ---- a record that is written, and reported as failed ---------------------------------------------------

LAST_RECORDS = {
    "host-a": "source.receive-settled.before",
    "host-b": "target.receive-released.before",
}


@pytest.mark.parametrize("victim", HOSTS)
async def test_a_record_is_written_once(victim: str, tmp_path: Path) -> None:
    """The commit succeeds and the witness behind it does not, again and again: the manager must start with what is left."""
    async with open_scene(tmp_path) as scene:
        await scene.start_domains(1)
        hold = f"{LAST_RECORDS[victim]}=delay:2"
        await scene.arm(victim, hold)
        scene.ask("ldg1")
        await scene.wait_fired(victim, [hold])
        state = scene[victim].folder / "state"
        witness = state / "journal.sqlite-count"
        witness.rename(state / "aside")
        witness.mkdir()
        await wait_for(partial(logged_twice, scene[victim], f"{witness}"))
        witness.rmdir()
        (state / "aside").rename(witness)
        await wait_for(partial(is_free, scene[victim]))
        await scene.kill(victim)
        await scene.start(victim)
        (migration,) = (await scene[victim].call("list-migrations"))["migrations"]
        kinds = [record["kind"] for record in migration["records"]]
        assert kinds.count("SETTLED") == 1
        assert len(kinds) == len(set(kinds)), kinds
        await scene.assert_promise()


async def logged_twice(manager: Manager, words: str) -> bool:
    return manager.log().count(words) >= 2
