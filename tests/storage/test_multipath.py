"""Multipath groups on real QEMU: a domain keeps its disk when a path to it goes away, and never gets another one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.managers import Manager, make_fleet, wait_for
from tests.storage.scene import (
    assert_nothing_lost,
    block,
    lines,
    loop_device,
    make_volume,
    start_disk_domain,
    vds,
    wait_lines,
)

pytestmark = [pytest.mark.qemu, pytest.mark.loops, pytest.mark.slow]

FIRST, SECOND = "root@primary-vds0", "root@alternate-vds0"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return make_volume(tmp_path / "storage" / "root.img")


@pytest.fixture
def paths(volume: Path) -> Iterator[tuple[Path, Path]]:
    with ExitStack() as stack:
        yield stack.enter_context(loop_device(volume)), stack.enter_context(loop_device(volume))


def two_services(paths: tuple[Path, Path]) -> str:
    first, second = (f"{{path = '{path}', mpgroup = 'root'}}" for path in paths)
    return vds(primary_vds0=first, alternate_vds0=second)


async def paths_of(manager: Manager) -> str:
    return str((await manager.domains())["ldg1"]["vdisks"]["root"])


async def wait_paths(manager: Manager, *words: str) -> str:
    async def found() -> str | None:
        text = await paths_of(manager)
        return text if all(word in text for word in words) else None

    return str(await wait_for(found))


async def test_the_domain_goes_on_by_the_other_path_and_back(
    tmp_path: Path, volume: Path, paths: tuple[Path, Path]
) -> None:
    async with make_fleet(tmp_path, "host-a", extra={"host-a": two_services(paths)}) as fleet:
        host = fleet["host-a"]
        uuid = await start_disk_domain(fleet, "host-a", mpgroup="root")
        await wait_lines(fleet, "host-a", uuid)
        assert (await wait_paths(host, f"standby {SECOND}")).startswith(FIRST)
        block(paths[0], fail=True)
        with trio.fail_after(10):  # two or three looks; the machine may be busy
            await wait_paths(host, f"{SECOND}; ")
        await wait_lines(fleet, "host-a", uuid)
        assert f"vdisk root failed on {FIRST} and is served by {SECOND} now" in host.log()
        # who asks the hypervisor knows it, also after a restart
        await host.stop(signal.SIGKILL)
        await host.start()
        assert (await wait_paths(host, SECOND)).startswith(SECOND)
        await wait_lines(fleet, "host-a", uuid)
        # the first one is mended, and taken when the second fails
        block(paths[0], fail=False)
        await wait_paths(host, f"standby {FIRST}")
        block(paths[1], fail=True)
        assert (await wait_paths(host, f"{FIRST}; ")).startswith(FIRST)
        await wait_lines(fleet, "host-a", uuid)
        await host.call("suspend-domain", {"domain": "ldg1"})
        assert_nothing_lost(fleet.console("host-a", uuid), volume)


async def test_it_waits_for_a_path_when_there_is_none(
    tmp_path: Path, volume: Path, paths: tuple[Path, Path]
) -> None:
    async with make_fleet(tmp_path, "host-a", extra={"host-a": two_services(paths)}) as fleet:
        host = fleet["host-a"]
        uuid = await start_disk_domain(fleet, "host-a", mpgroup="root")
        await wait_lines(fleet, "host-a", uuid)
        await wait_paths(host, f"standby {SECOND}")
        for path in paths:
            block(path, fail=True)
        await wait_paths(host, "none, the domain waits", FIRST, SECOND)
        assert (await host.domains())["ldg1"]["run_state"] == "suspended"
        block(paths[1], fail=False)
        assert (await wait_paths(host, f"{SECOND}; ")).startswith(SECOND)
        await wait_lines(fleet, "host-a", uuid)
        await host.call("suspend-domain", {"domain": "ldg1"})
        assert_nothing_lost(fleet.console("host-a", uuid), volume)


async def test_what_an_operator_suspended_is_not_resumed(
    tmp_path: Path, volume: Path, paths: tuple[Path, Path]
) -> None:
    async with make_fleet(tmp_path, "host-a", extra={"host-a": two_services(paths)}) as fleet:
        host = fleet["host-a"]
        uuid = await start_disk_domain(fleet, "host-a", mpgroup="root")
        await wait_lines(fleet, "host-a", uuid)
        await wait_paths(host, f"standby {SECOND}")
        for path in paths:
            block(path, fail=True)
        await wait_paths(host, "none, the domain waits")
        await host.call("suspend-domain", {"domain": "ldg1"})
        block(paths[1], fail=False)
        await host.stop()
        await host.start()
        before = lines(fleet, "host-a", uuid)
        await trio.sleep(2)  # nothing can be waited for when nothing may happen
        assert lines(fleet, "host-a", uuid) == before
        await host.call("resume-domain", {"domain": "ldg1"})
        block(paths[0], fail=False)
        await wait_lines(fleet, "host-a", uuid)


async def test_other_storage_in_the_group_is_never_taken(
    tmp_path: Path, volume: Path, paths: tuple[Path, Path]
) -> None:
    """The same size and the same name, and not the same storage: rather no disk than that one."""
    other = make_volume(tmp_path / "elsewhere" / "root.img")
    with loop_device(other) as wrong:
        configuration = two_services((paths[0], wrong))
        async with make_fleet(tmp_path, "host-a", extra={"host-a": configuration}) as fleet:
            host = fleet["host-a"]
            uuid = await start_disk_domain(fleet, "host-a", mpgroup="root")
            await wait_lines(fleet, "host-a", uuid)
            await wait_paths(host, f"not {SECOND} (not known to be the same storage")
            before = other.read_bytes()
            block(paths[0], fail=True)
            await wait_paths(host, "none, the domain waits", SECOND)
            assert other.read_bytes() == before
            block(paths[0], fail=False)
            await wait_lines(fleet, "host-a", uuid)
            assert await paths_of(host) != SECOND
            await host.call("suspend-domain", {"domain": "ldg1"})
            assert_nothing_lost(fleet.console("host-a", uuid), volume)


async def test_started_by_the_path_that_can_be_opened(tmp_path: Path, volume: Path) -> None:
    gone = tmp_path / "gone"
    first, second = (f"{{path = '{path}', mpgroup = 'root'}}" for path in (gone, volume))
    configuration = vds(primary_vds0=first, alternate_vds0=second)
    async with make_fleet(tmp_path, "host-a", extra={"host-a": configuration}) as fleet:
        uuid = await start_disk_domain(fleet, "host-a", mpgroup="root")
        assert (await paths_of(fleet["host-a"])).startswith(SECOND)
        await wait_lines(fleet, "host-a", uuid)
