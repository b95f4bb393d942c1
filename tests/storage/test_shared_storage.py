"""A domain with a disk moves between real managers when its storage is shared, and only then."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ldmd.errors import ChecksFailed, DaemonUnreachable, LinkError, MigrationFailed
from tests.managers import Fleet, make_fleet, wait_for
from tests.storage.scene import (
    assert_nothing_lost,
    block,
    loop_device,
    make_volume,
    start_disk_domain,
    vds,
    wait_lines,
)

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

HOSTS = ("host-a", "host-b")


def plain(path: Path, **more: str) -> str:
    return ", ".join([f"{{path = '{path}'", *(f"{k} = {v}" for k, v in more.items())]) + "}"


def both(what: str) -> dict[str, str]:
    return {host: vds(primary_vds0=what) for host in HOSTS}


async def migrate(fleet: Fleet, at: str = "host-a", to: str = "host-b", **more: object) -> Any:
    return await fleet[at].call("migrate-domain", {"domain": "ldg1", "peer": to, **more})


async def refused(fleet: Fleet, **more: object) -> dict[str, str]:
    """The hard findings: code -> sentence."""
    with pytest.raises(ChecksFailed) as caught:
        await migrate(fleet, **more)
    found = caught.value.facts["findings"]
    assert isinstance(found, list)
    assert all(f["remedy"] for f in found)
    return {f["code"]: f["sentence"] for f in found if f["hard"]}


class Console:
    """Of a copy that will be destroyed: the file is held open, so that its end can still be read."""

    def __init__(self, fleet: Fleet, host: str, uuid: str) -> None:
        path = fleet[host].folder / "run" / "domains" / uuid / "console.log"
        self._file = path.open("rb")

    def read(self) -> str:
        with self._file:
            return self._file.read().decode()


async def move_there_and_back(fleet: Fleet, uuid: str, volume: Path) -> None:
    text = ""
    for at, to in (HOSTS, HOSTS[::-1]):
        await wait_lines(fleet, at, uuid)
        console = Console(fleet, at, uuid)
        result = await migrate(fleet, at, to)
        assert result["digest_source"] == result["digest_target"]
        text += console.read()
        assert await fleet.copies() == {to: "running"}
    await wait_lines(fleet, "host-a", uuid)
    await fleet["host-a"].call("suspend-domain", {"domain": "ldg1"})
    assert_nothing_lost(text + fleet.console("host-a", uuid), volume)


async def test_a_file_that_both_hosts_have(tmp_path: Path) -> None:
    """By different paths to it, one of them a symbolic link."""
    volume = make_volume(tmp_path / "shared" / "root.img")
    (tmp_path / "link").symlink_to(volume)
    extra = {
        "host-a": vds(primary_vds0=plain(volume)),
        "host-b": vds(primary_vds0=plain(tmp_path / "link")),
    }
    async with make_fleet(tmp_path, extra=extra) as fleet:
        uuid = await start_disk_domain(fleet, "host-a")
        result = await migrate(fleet, dry_run=True)
        assert (result["outcome"], result["findings"]) == ("dry-run", [])
        assert os.listdir(volume.parent) == ["root.img"], "a dry run leaves nothing"
        await move_there_and_back(fleet, uuid, volume)
        assert os.listdir(volume.parent) == ["root.img"]


@pytest.mark.loops
async def test_a_block_device_that_both_hosts_have(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "shared" / "root.img")
    with ExitStack() as stack:
        devices = [stack.enter_context(loop_device(volume)) for _ in HOSTS]
        extra = {
            host: vds(primary_vds0=plain(device))
            for host, device in zip(HOSTS, devices, strict=True)
        }
        async with make_fleet(tmp_path, extra=extra) as fleet:
            uuid = await start_disk_domain(fleet, "host-a")
            await move_there_and_back(fleet, uuid, volume)
            assert os.listdir(volume.parent) == ["root.img"]


@pytest.mark.loops
async def test_other_block_devices_of_the_same_file(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "shared" / "root.img", 8 * 2**20)
    with (
        loop_device(volume, "--sizelimit", "4194304") as first,
        loop_device(volume, "--offset", "4194304") as second,
    ):
        extra = {
            "host-a": vds(primary_vds0=plain(first)),
            "host-b": vds(primary_vds0=plain(second)),
        }
        async with make_fleet(tmp_path, extra=extra) as fleet:
            await start_disk_domain(fleet, "host-a")
            findings = await refused(fleet)
            assert set(findings) == {"storage-not-shared"}
            assert "loop at 4194304" in findings["storage-not-shared"]


@pytest.mark.parametrize("copied", ["file", "folder"])
async def test_a_copy_is_not_the_same_storage(copied: str, tmp_path: Path) -> None:
    """The domain stays as it is; a dry run says the same; nothing is left beside either."""
    volume = make_volume(tmp_path / "here" / "root.img")
    there = tmp_path / "there"
    if copied == "folder":
        shutil.copytree(volume.parent, there)
    else:
        there.mkdir()
        shutil.copy2(volume, there)
    extra = {
        "host-a": vds(primary_vds0=plain(volume)),
        "host-b": vds(primary_vds0=plain(there / "root.img")),
    }
    async with make_fleet(tmp_path, extra=extra) as fleet:
        uuid = await start_disk_domain(fleet, "host-a")
        await wait_lines(fleet, "host-a", uuid)
        for dry_run in (True, False):
            assert set(await refused(fleet, dry_run=dry_run)) == {"storage-not-shared"}
        assert await fleet.copies() == {"host-a": "running"}
        await wait_lines(fleet, "host-a", uuid)
        assert os.listdir(volume.parent) == os.listdir(there) == ["root.img"]


async def test_a_file_that_took_the_volumes_name_is_not_the_domains_storage(tmp_path: Path) -> None:
    """Both hosts would agree on it, and the domain has another one open."""
    volume = make_volume(tmp_path / "shared" / "root.img")
    async with make_fleet(tmp_path, extra=both(plain(volume))) as fleet:
        await start_disk_domain(fleet, "host-a")
        make_volume(tmp_path / "shared" / "new.img").replace(volume)
        findings = await refused(fleet)
        assert "has something else open" in findings["storage-not-shared"]


async def test_nothing_is_left_when_the_target_cannot_be_reached(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "shared" / "root.img")
    async with make_fleet(tmp_path, extra=both(plain(volume))) as fleet:
        await start_disk_domain(fleet, "host-a")
        await fleet["host-b"].stop()
        with pytest.raises(LinkError):
            await migrate(fleet)
        assert os.listdir(volume.parent) == ["root.img"]


async def test_what_a_killed_manager_left_is_removed_at_start_and_nobody_elses(
    tmp_path: Path,
) -> None:
    volume = make_volume(tmp_path / "shared" / "root.img")
    extra = {h: t + "[faults]\nallowed = true\n" for h, t in both(plain(volume)).items()}
    async with make_fleet(tmp_path, extra=extra) as fleet:
        await start_disk_domain(fleet, "host-a")
        await fleet["host-a"].call("arm-fault", {"fault": "source.send-check.before=crash"})
        with pytest.raises(DaemonUnreachable):
            await migrate(fleet)
        await fleet["host-a"].wait_dead()
        left = {name for name in os.listdir(volume.parent) if name.startswith(".ldmd-host-a-")}
        assert len(left) == 1
        other = volume.parent / f".ldmd-host-b-{'0' * 32}"
        other.touch()
        await fleet["host-a"].start()

        async def swept() -> bool:
            return sorted(os.listdir(volume.parent)) == [other.name, "root.img"]

        await wait_for(swept)
        assert (await migrate(fleet))["outcome"] == "completed"


async def test_the_target_serves_it_by_another_service(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "shared" / "root.img")
    group = {"mpgroup": "'root'"}
    extra = {
        "host-a": vds(primary_vds0=plain(volume, **group)),
        "host-b": vds(
            primary_vds0=plain(tmp_path / "gone", **group), alternate_vds0=plain(volume, **group)
        ),
    }
    async with make_fleet(tmp_path, extra=extra) as fleet:
        uuid = await start_disk_domain(fleet, "host-a", mpgroup="root")
        await wait_lines(fleet, "host-a", uuid)
        console = Console(fleet, "host-a", uuid)
        await migrate(fleet)
        text = console.read()
        served = (await fleet["host-b"].domains())["ldg1"]["vdisks"]["root"]
        assert served.startswith("root@alternate-vds0")
        await wait_lines(fleet, "host-b", uuid)
        await fleet["host-b"].call("suspend-domain", {"domain": "ldg1"})
        assert_nothing_lost(text + fleet.console("host-b", uuid), volume)


@pytest.mark.loops
async def test_a_domain_that_waits_for_its_disk_stays_until_there_is_a_path(tmp_path: Path) -> None:
    """What cannot be opened cannot be proved; when it can, the domain goes on, and moves to the other host's path."""
    volume = make_volume(tmp_path / "shared" / "root.img")
    with ExitStack() as stack:
        devices = [stack.enter_context(loop_device(volume)) for _ in HOSTS]
        extra = {
            host: vds(primary_vds0=plain(device, mpgroup="'root'"))
            for host, device in zip(HOSTS, devices, strict=True)
        }
        async with make_fleet(tmp_path, extra=extra) as fleet:
            uuid = await start_disk_domain(fleet, "host-a", mpgroup="root")
            await wait_lines(fleet, "host-a", uuid)
            block(devices[0], fail=True)

            async def waits() -> bool:
                domain = (await fleet["host-a"].domains())["ldg1"]
                return "the domain waits" in domain["vdisks"]["root"]

            await wait_for(waits)
            console = Console(fleet, "host-a", uuid)
            assert "storage-not-shared" in await refused(fleet)
            assert await fleet.copies() == {"host-a": "suspended"}
            block(devices[0], fail=False)
            await wait_lines(fleet, "host-a", uuid)
            await migrate(fleet)
            text = console.read()
            await wait_lines(fleet, "host-b", uuid)
            await fleet["host-b"].call("suspend-domain", {"domain": "ldg1"})
            assert_nothing_lost(text + fleet.console("host-b", uuid), volume)


async def test_a_killed_source_resumes_with_its_disk(tmp_path: Path) -> None:
    """The image lock is the second fence: it is let go of and taken again."""
    volume = make_volume(tmp_path / "shared" / "root.img")
    extra = {h: t + "[faults]\nallowed = true\n" for h, t in both(plain(volume)).items()}
    async with make_fleet(tmp_path, extra=extra) as fleet:
        uuid = await start_disk_domain(fleet, "host-a")
        await wait_lines(fleet, "host-a", uuid)
        await fleet["host-b"].call("arm-fault", {"fault": "target.install-state.after=fail"})
        with pytest.raises(MigrationFailed):
            await migrate(fleet)
        await fleet["host-a"].stop(signal.SIGKILL)
        await fleet["host-a"].start()
        assert await fleet.copies() == {"host-a": "running"}
        await wait_lines(fleet, "host-a", uuid)
