"""The target's copy does not answer while it is taken over: it is not thrown away for that.

A copy that was not told to run leaves the domain with the source; one that may run is asked again before it counts as lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.campaign.machine import find_processes
from ldmd.errors import LdmdError
from tests import managers
from tests.faults.test_hung_and_lost import ended
from tests.managers import DEADLINES, Fleet, make_fleet, wait_for
from tests.migration.oracle import assert_oracle

ALLOWED = '[faults]\nallowed = true\n[hypervisors]\nenabled = ["emulated"]\n'
BOTH = {"host-a": ALLOWED, "host-b": ALLOWED}
PROBE_SECONDS = "probe-seconds = 2"
OPERATION_SECONDS = 1.5


@contextlib.asynccontextmanager
async def make_pair(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, probe_seconds: float
) -> AsyncIterator[Fleet]:
    keys = f"probe-seconds = {probe_seconds}\noperation-seconds = {OPERATION_SECONDS}"
    assert PROBE_SECONDS in DEADLINES
    monkeypatch.setattr(managers, "DEADLINES", DEADLINES.replace(PROBE_SECONDS, keys))
    async with make_fleet(folder, extra=BOTH) as fleet:
        yield fleet


async def migrate(fleet: Fleet) -> None:
    with contextlib.suppress(LdmdError):
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})


def find_pid(fleet: Fleet, host: str, uuid: str) -> int:
    (pid,) = find_processes(fleet[host].folder / "run" / "domains" / uuid)
    return pid


async def state_at(fleet: Fleet, host: str) -> str:
    (found,) = (await fleet[host].call("list-migrations"))["migrations"]
    return str(found["state"])


async def test_a_copy_that_was_not_told_to_run_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs from after the look before the commit on: it cannot have run, so the source's goes on."""
    async with (
        make_pair(tmp_path, monkeypatch, probe_seconds=60) as fleet,
        trio.open_nursery() as nursery,
    ):
        uuid = await fleet.start_domain("host-a")
        target = fleet["host-b"]
        held_up = "target.record-committed.before=delay:4"
        await target.call("arm-fault", {"fault": held_up})
        nursery.start_soon(migrate, fleet)

        async def caught() -> bool:
            return held_up in (await target.call("list-faults"))["fired"]

        await wait_for(caught)
        os.kill(find_pid(fleet, "host-b", uuid), signal.SIGSTOP)

        async def settled() -> bool:
            return [await ended(fleet, host) for host in fleet.managers] == ["kept", "aborted"]

        await wait_for(settled)
        assert await fleet.copies() == {"host-a": "running"}
        assert not find_processes(target.folder)
        await assert_oracle(fleet, "host-a", uuid)


async def resumed_and_stopped(fleet: Fleet) -> tuple[str, int]:
    """The target has told its copy to run and died before it could record so; the copy stands still. Its uuid and pid."""
    uuid = await fleet.start_domain("host-a")
    target = fleet["host-b"]
    await target.call("arm-fault", {"fault": "target.record-running.before=crash"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate, fleet)
        await target.wait_dead()
        nursery.cancel_scope.cancel()
    pid = find_pid(fleet, "host-b", uuid)
    os.kill(pid, signal.SIGSTOP)
    await target.start()

    async def waits() -> bool:
        return await state_at(fleet, "host-b") == "waiting to probe again"

    await wait_for(waits)
    return uuid, pid


async def test_a_copy_that_was_held_up_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_pair(tmp_path, monkeypatch, probe_seconds=60) as fleet:
        uuid, pid = await resumed_and_stopped(fleet)
        os.kill(pid, signal.SIGCONT)

        async def settled() -> bool:
            return [await ended(fleet, host) for host in fleet.managers] == ["moved", "moved"]

        await wait_for(settled)
        assert await fleet.copies() == {"host-b": "running"}
        assert find_pid(fleet, "host-b", uuid) == pid
        await assert_oracle(fleet, "host-b", uuid)


async def test_a_copy_that_never_answers_is_lost_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_pair(tmp_path, monkeypatch, probe_seconds=2) as fleet:
        await resumed_and_stopped(fleet)

        async def settled() -> Any:
            ends = [await ended(fleet, host) for host in fleet.managers]
            return ends == ["moved", "lost, settled"]

        await wait_for(settled)
        assert not find_processes(fleet.folder)
        assert (await fleet["host-b"].domains())["ldg1"]["state"] == "bound"
        assert "has not answered for 2 s" in fleet["host-b"].log()
