"""QEMU's vdisks: how a volume is cached, and another path put in its place."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from ldmd.definition import CACHES as CACHE_NAMES
from ldmd.definition import DomainDefinition, VirtualDisk
from ldmd.errors import HypervisorError
from ldmd.hypervisor.driver import Attachments, RunStatus
from ldmd.hypervisor.oracle import check_console, read_console
from ldmd.hypervisor.qemu_command import CACHES, Disk, Resources, build_arguments, select
from ldmd.hypervisor.qemu_domain import QemuDomain
from ldmd.hypervisor.qmp import Qmp
from tests.ldmd.hypervisor.qemu_cases import make_definition, missing_program
from tests.ldmd.hypervisor.rig import copy_ram
from tests.ldmd.hypervisor.test_qemu import CATALOGUES, Bench, wait_until
from tests.storage.scene import DISK_ORACLE, assert_nothing_lost, block, loop_device, make_volume


def define(**disk: Any) -> DomainDefinition:
    vdisk = VirtualDisk(name="root", volume="root", service="vds0", **disk)
    return attrs.evolve(make_definition("pc", firmware="default"), vdisks=(vdisk,))


def test_the_boot_sector_is_what_its_source_says(tmp_path: Path) -> None:
    if missing := [tool for tool in ("as", "ld") if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install binutils")
    source = DISK_ORACLE.with_suffix(".S")
    shutil.copy(source, tmp_path)
    for command in re.findall(r"^ \*   ((?:as|ld) .*)$", source.read_text(), re.MULTILINE):
        done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True)
        if done.returncode and "unrecognized" in done.stderr + done.stdout:
            pytest.skip(f"binutils here cannot make x86 code: {done.stderr.strip()[:80]}")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / DISK_ORACLE.name).read_bytes() == DISK_ORACLE.read_bytes()


# --- caches ---------------------------------------------------------------------------------------


def test_every_cache_has_its_settings() -> None:
    assert tuple(CACHES) == CACHE_NAMES


@pytest.mark.parametrize(
    ("cache", "direct", "no_flush", "write_cache"),
    [
        ("none", True, False, "on"),
        ("directsync", True, False, "off"),
        ("writethrough", False, False, "off"),
        ("writeback", False, False, "on"),
        ("unsafe", False, True, "on"),
    ],
)
def test_what_a_cache_means_to_qemu(
    cache: str, direct: bool, no_flush: bool, write_cache: str
) -> None:
    """As in the table of ``cache=`` in qemu(1)."""
    import json

    definition = define(cache=cache)
    for takes_direct in (True, False):
        disk = Disk(path=Path("/x"), block_device=False, direct=takes_direct)
        arguments = build_arguments(
            definition,
            select(definition, CATALOGUES),
            Resources(ram_descriptor=7, disks=[disk]),
            receiving=False,
        )
        volume = json.loads(arguments[arguments.index("-blockdev") + 1])
        device = json.loads(arguments[arguments.index("-device") + 1])
        assert volume["cache"] == {"direct": direct and takes_direct, "no-flush": no_flush}
        assert volume["file"]["locking"] == "on"
        assert device["write-cache"] == write_cache
        assert "werror" not in device, "the domain hears of errors where there is no other path"


def test_a_vdisk_of_a_group_stops_the_domain_when_it_fails() -> None:
    import json

    definition = define(mpgroup="g")
    resources = Resources(
        ram_descriptor=7, disks=[Disk(path=Path("/x"), block_device=False, direct=True)]
    )
    arguments = build_arguments(
        definition, select(definition, CATALOGUES), resources, receiving=False
    )
    device = json.loads(arguments[arguments.index("-device") + 1])
    assert (device["werror"], device["rerror"]) == ("stop", "stop")


# --- paths ----------------------------------------------------------------------------------------


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    if missing := missing_program("qemu-system-x86_64", "qemu-system-x86"):
        pytest.skip(missing)
    made = Bench(tmp_path)
    yield made
    await made.aclose()


def lines(domain: QemuDomain) -> int:
    return read_console(domain).count("oracle ")


async def wait_lines(domain: QemuDomain, more: int = 5) -> None:
    wanted = lines(domain) + more
    await wait_until(lambda: lines(domain) >= wanted)


async def wait_stopped(domain: QemuDomain) -> None:
    with trio.fail_after(30):
        while not (await domain.report_disks()).stopped:
            await trio.sleep(0.01)


@pytest.mark.qemu
@pytest.mark.loops
async def test_a_stopped_domain_goes_on_by_another_path(bench: Bench) -> None:
    """And what it is now moves on to another process."""
    volume = make_volume(bench.root / "root.img")
    definition = define(mpgroup="g")
    with loop_device(volume) as one, loop_device(volume) as other:
        domain = await bench.create(definition, Attachments(disks={"root": one}))
        await domain.resume()
        await wait_lines(domain)
        with pytest.raises(HypervisorError, match="no disk has failed"):
            await domain.switch_disk("root", other)
        for now, then in ((one, other), (other, one), (one, other)):
            report = await domain.report_disks()
            assert (report.stopped, report.disks["root"].path) == (False, now)
            block(now, fail=True)
            await wait_stopped(domain)
            assert await domain.status() is RunStatus.SUSPENDED
            assert (await domain.report_disks()).disks["root"].failed
            block(now, fail=False)
            await domain.switch_disk("root", then)
            assert await open_files(domain, one, other) == [then]
            await domain.resume()
            await wait_lines(domain)
        await domain.suspend()
        before = read_console(domain)
        target = await bench.create(definition, Attachments(disks={"root": one}), receiving=True)
        state = await domain.retrieve_device_state()
        copy_ram(domain, target)
        await target.install_device_state(state)
        await domain.destroy()
        await target.resume()
        await wait_lines(target)
        await target.suspend()
        assert_nothing_lost(before + read_console(target), volume)


async def open_files(domain: QemuDomain, *paths: Path) -> list[Path]:
    found = [Path(os.readlink(p)) for p in Path(f"/proc/{domain.pid}/fd").iterdir()]
    return [path for path in paths if path in found]


async def stop_for_its_disk(domain: QemuDomain) -> None:
    """Put the vdisk where every access fails, as QEMU would find it on a path that is gone."""
    async with domain._connected() as qmp:
        fails = {"event": "none", "errno": 5}
        image = {"driver": "null-co", "size": 4 * 2**20}
        await qmp.execute(
            "blockdev-add",
            {
                "driver": "blkdebug",
                "node-name": "broken",
                "image": image,
                "inject-error": [fails],
            },
        )
        await set_drive(qmp, "broken")
    await wait_stopped(domain)


async def set_drive(qmp: Qmp, node: str) -> None:
    await qmp.execute(
        "qom-set", {"path": "/machine/peripheral/vdisk0", "property": "drive", "value": node}
    )


@pytest.mark.qemu
async def test_the_lock_of_the_old_path_is_let_go_of(bench: Bench) -> None:
    """Two names of one file: the new path could not be locked beside the old one."""
    volume = make_volume(bench.root / "root.img")
    other = bench.root / "other.img"
    os.link(volume, other)
    domain = await bench.create(define(mpgroup="g"), Attachments(disks={"root": volume}))
    await domain.resume()
    await wait_lines(domain)
    await stop_for_its_disk(domain)
    async with domain._connected() as qmp:  # the lock is the old path's again
        await set_drive(qmp, "volume0")
        await qmp.execute("blockdev-del", {"node-name": "broken"})
    await domain.switch_disk("root", other)
    assert await open_files(domain, volume, other) == [other]
    with pytest.raises(HypervisorError, match="lock"):
        await bench.create(define(), Attachments(disks={"root": volume}))
    await domain.resume()
    await wait_lines(domain)
    await domain.suspend()
    assert_nothing_lost(read_console(domain), volume)


@pytest.mark.qemu
async def test_a_path_that_another_process_holds_is_not_taken(bench: Bench) -> None:
    """The fence holds in the very moment of switching: the domain stays stopped, whatever is resumed, and loses nothing."""
    volume = make_volume(bench.root / "root.img")
    taken = make_volume(bench.root / "taken.img")
    domain = await bench.create(define(mpgroup="g"), Attachments(disks={"root": volume}))
    holder = await bench.create(define(), Attachments(disks={"root": taken}))
    await domain.resume()
    await wait_lines(domain)
    await stop_for_its_disk(domain)
    for _ in range(2):
        with pytest.raises(HypervisorError, match="lock"):
            await domain.switch_disk("root", taken)
        assert (await domain.report_disks()).disks["root"].path is None
        await domain.resume()
        await wait_stopped(domain)
    await holder.destroy()
    await domain.switch_disk("root", volume)
    await domain.resume()
    await wait_lines(domain)
    await domain.suspend()
    console = check_console(read_console(domain))
    assert console.contiguous, console.sentence
    assert_nothing_lost(read_console(domain), volume)


@pytest.mark.qemu
async def test_a_path_that_cannot_be_opened_changes_nothing(bench: Bench) -> None:
    volume = make_volume(bench.root / "root.img")
    domain = await bench.create(define(mpgroup="g"), Attachments(disks={"root": volume}))
    await domain.resume()
    await wait_lines(domain)
    await stop_for_its_disk(domain)
    for wrong in ("missing.img", "."):
        with pytest.raises(HypervisorError, match="volume"):
            await domain.switch_disk("root", bench.root / wrong)
    with pytest.raises(HypervisorError, match="has no vdisk other"):
        await domain.switch_disk("other", volume)
