"""A domain's process that does not answer, or whose run directory was removed under it: it is ended all the same, and never
taken for ended before it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
import trio

from ldmd.campaign.machine import find_processes
from ldmd.errors import LdmdError, WrongState
from tests.managers import Fleet, make_fleet, wait_for

ALLOWED = "[faults]\nallowed = true\n"
BOTH = {"host-a": ALLOWED, "host-b": ALLOWED}


async def migrate(fleet: Fleet) -> None:
    with contextlib.suppress(LdmdError):
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})


async def crash_at(fleet: Fleet, host: str, point: str) -> None:
    """Migrate, and let that manager die there."""
    await fleet[host].call("arm-fault", {"fault": f"{point}=crash"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate, fleet)
        await fleet[host].wait_dead()
        nursery.cancel_scope.cancel()


async def ended(fleet: Fleet, host: str) -> str:
    """The state in which the one migration there has settled."""
    (found,) = (await fleet[host].call("list-migrations"))["migrations"]
    return str(found["state"]) if found["settled"] else ""


def directory(fleet: Fleet, host: str, uuid: str) -> Path:
    return fleet[host].folder / "run" / "domains" / uuid


def find_pids(fleet: Fleet, host: str, uuid: str) -> list[int]:
    return list(find_processes(directory(fleet, host, uuid)))


async def test_a_copy_that_hangs_is_destroyed_after_a_restart(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, extra=BOTH) as fleet:
        uuid = await fleet.start_domain("host-a")
        await crash_at(fleet, "host-a", "source.destroy-domain.before")
        (pid,) = find_pids(fleet, "host-a", uuid)
        os.kill(pid, signal.SIGSTOP)
        await fleet["host-a"].start()

        async def settled() -> bool:
            return [await ended(fleet, host) for host in fleet.managers] == ["moved", "moved"]

        await wait_for(settled)
        assert find_pids(fleet, "host-a", uuid) == []
        assert await fleet.copies() == {"host-b": "running"}


async def test_a_domain_that_hangs_is_stopped_after_a_restart(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        manager = fleet["host-a"]
        uuid = await fleet.start_domain("host-a")
        (pid,) = find_pids(fleet, "host-a", uuid)
        await manager.stop()
        os.kill(pid, signal.SIGSTOP)
        await manager.start()
        await manager.call("stop-domain", {"domain": "ldg1"})
        assert find_pids(fleet, "host-a", uuid) == []
        assert (await manager.domains())["ldg1"]["state"] == "bound"


async def test_a_lost_run_directory_is_no_end(tmp_path: Path) -> None:
    """It runs: started again, there would be two."""
    async with make_fleet(tmp_path, "host-a") as fleet:
        manager = fleet["host-a"]
        uuid = await fleet.start_domain("host-a")
        await manager.stop()
        shutil.rmtree(manager.folder / "run")
        await manager.start()
        shown = (await manager.domains())["ldg1"]
        assert (shown["state"], shown["run_state"]) == ("active", "unknown")
        with pytest.raises(WrongState):
            await manager.call("start-domain", {"domain": "ldg1"})
        assert len(find_pids(fleet, "host-a", uuid)) == 1
        await manager.call("stop-domain", {"domain": "ldg1"})
        assert find_pids(fleet, "host-a", uuid) == []
        await manager.call("start-domain", {"domain": "ldg1"})
        assert len(find_pids(fleet, "host-a", uuid)) == 1


async def test_what_is_lost_with_its_run_directory_does_not_run_on(tmp_path: Path) -> None:
    """Committed, resumed, and not recorded as running: what cannot be asked is ended before it counts as ended."""
    async with make_fleet(tmp_path, extra=BOTH) as fleet:
        uuid = await fleet.start_domain("host-a")
        await crash_at(fleet, "host-b", "target.record-running.before")
        assert len(find_pids(fleet, "host-b", uuid)) == 1
        shutil.rmtree(directory(fleet, "host-b", uuid).parent)
        await fleet["host-b"].start()

        async def settled() -> bool:
            ends = [await ended(fleet, host) for host in fleet.managers]
            return ends == ["moved", "lost, settled"]

        await wait_for(settled)
        assert find_pids(fleet, "host-a", uuid) == []
        assert find_pids(fleet, "host-b", uuid) == []
        assert (await fleet["host-b"].domains())["ldg1"]["state"] == "bound"
        await fleet["host-b"].call("start-domain", {"domain": "ldg1"})
