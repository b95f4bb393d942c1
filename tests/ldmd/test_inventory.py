"""What the host offers: room is promised once, and names become paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from attrs import frozen

from ldmd.definition import DomainDefinition, VirtualDisk, VirtualNetwork
from ldmd.errors import Busy, HypervisorError, NotFound
from ldmd.hypervisor.emulated import EmulatedHypervisor
from ldmd.inventory import Inventory
from ldmd.measured import HugePages
from protocol.phases import RunState
from tests.ldmd.host import MIB, configure, define


@frozen
class Defined:
    definition: DomainDefinition
    migration: str | None = None
    receiving: bool = False
    process: object | None = None


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    volumes = {name: str(tmp_path / name) for name in ("file", "missing", "folder", "fifo", "link")}
    (tmp_path / "file").write_bytes(b"x" * 12345)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    settings = configure(
        tmp_path,
        vds={"vds0": volumes},
        vsw={"vsw0": {"bridge": "br0"}},
        resources={"memory": "64MiB", "vcpus": 4, "domains-max": 3, "incoming-max": 2},
    )
    return Inventory(settings, {"emulated": EmulatedHypervisor()})


def disk(volume: str, name: str = "d0", *, read_only: bool = False) -> VirtualDisk:
    return VirtualDisk(name=name, volume=volume, service="vds0", read_only=read_only)


def net(name: str = "n0", switch: str = "vsw0", mac: str = "52:54:00:00:00:01") -> VirtualNetwork:
    return VirtualNetwork(name=name, switch=switch, mac=mac)


# ---- room ------------------------------------------------------------------------------------------------


def test_room_is_promised_once(inventory: Inventory) -> None:
    big = define(memory_bytes=40 * MIB, vcpus=3)
    inventory.require_room(big)
    for _ in range(2):  # the same key again holds no more
        inventory.hold("key", big)
        assert (inventory.memory_free_bytes, inventory.vcpus_free) == (24 * MIB, 1)
    with pytest.raises(Busy, match="needs 40MiB of memory, 24MiB is free"):
        inventory.require_room(big)
    for _ in range(2):
        inventory.release("key")
        assert (inventory.memory_free_bytes, inventory.vcpus_free) == (64 * MIB, 4)
    inventory.require_room(big)


def test_room_is_had_to_the_last_byte(inventory: Inventory) -> None:
    inventory.require_room(define(memory_bytes=64 * MIB, vcpus=4))
    with pytest.raises(Busy, match="65MiB of memory, 64MiB is free"):
        inventory.require_room(define(memory_bytes=65 * MIB))
    with pytest.raises(Busy, match="5 of virtual CPUs, 4 is free"):
        inventory.require_room(define(vcpus=5))


async def test_every_domain_that_is_bound_has_a_console(tmp_path: Path) -> None:
    settings = configure(tmp_path, resources={"consoles-max": 2, "memory": "64MiB", "vcpus": 8})
    inventory = Inventory(settings, {"emulated": EmulatedHypervisor()})
    inventory.hold("bound", define())
    inventory.hold("defined only", define(), resources=False)
    inventory.require_room(define())
    inventory.hold("coming", define(), incoming=True)
    with pytest.raises(Busy, match="needs 1 of consoles, 0 is free"):
        inventory.require_room(define())
    assert (await inventory.view([])).consoles_free == 0
    inventory.release("bound")
    assert (await inventory.view([])).consoles_free == 1


def test_what_is_held_beyond_the_limit_counts_as_nothing_free(inventory: Inventory) -> None:
    inventory.hold("a", define(memory_bytes=100 * MIB))  # the limit was lowered since
    with pytest.raises(Busy, match="2MiB of memory, 0 is free"):
        inventory.require_room(define())


def test_an_inactive_domain_needs_a_place_and_no_room(inventory: Inventory) -> None:
    inventory.hold("m", define(memory_bytes=60 * MIB), resources=False, incoming=True)
    assert inventory.memory_free_bytes == 64 * MIB


async def test_two_who_ask_at_once_are_not_both_promised(inventory: Inventory) -> None:
    """As phase 1 does it: look, and hold in the same step."""
    promised = []

    async def ask(key: str) -> None:
        view = await inventory.view([])
        if view.memory_free_bytes >= 40 * MIB:
            inventory.hold(key, define(key, memory_bytes=40 * MIB), incoming=True)
            promised.append(key)

    async with trio.open_nursery() as nursery:
        for key in ("one", "two", "three"):
            nursery.start_soon(ask, key)
    assert len(promised) == 1


# ---- devices ---------------------------------------------------------------------------------------------


async def test_names_become_paths_and_bridges(inventory: Inventory, tmp_path: Path) -> None:
    disks = (disk("file"), disk("link", "d1"))
    found = await inventory.resolve(define(vdisks=disks, vnets=(net(),)))
    assert found.disks == {"d0": tmp_path / "file", "d1": tmp_path / "link"}
    assert found.volumes == {"d0": "file@vds0", "d1": "link@vds0"}
    assert found.bridges == {"n0": "br0"}


@pytest.mark.parametrize(
    ("devices", "sentence"),
    [
        ({"vdisks": (disk("nowhere"),)}, "there is no volume nowhere@vds0 on this host"),
        (
            {"vdisks": (VirtualDisk(name="d0", volume="file", service="vds9"),)},
            "there is no volume file@vds9 on this host",
        ),
        ({"vnets": (net(switch="vsw9"),)}, "there is no virtual switch vsw9 on this host"),
    ],
)
async def test_a_name_that_is_not_there(
    inventory: Inventory, devices: dict[str, tuple[object, ...]], sentence: str
) -> None:
    with pytest.raises(NotFound, match=sentence) as caught:
        await inventory.resolve(define(**devices))
    assert "configuration" in caught.value.remedy


async def test_a_volume_that_became_another_since_it_was_proved(
    inventory: Inventory, tmp_path: Path
) -> None:
    definition = define(vdisks=(disk("file"),))
    proved = await inventory.volumes.resolve(definition)
    assert (await inventory.resolve(definition, proved)).disks == {"d0": tmp_path / "file"}
    (tmp_path / "new").write_bytes(b"x" * 12345)
    (tmp_path / "new").replace(tmp_path / "file")
    with pytest.raises(NotFound, match="would not be served by the storage that was checked"):
        await inventory.resolve(definition, proved)


# ---- phase 1 ---------------------------------------------------------------------------------------------


async def test_the_view_of_an_instant(inventory: Inventory) -> None:
    mine = define("mine", vdisks=(disk("file"),), vnets=(net(),))
    reader = define("reader", vdisks=(disk("link", read_only=True),))
    coming = define("coming", vnets=(net(mac="52:54:00:00:00:02"),), memory_bytes=4 * MIB)
    inventory.hold(mine.uuid, mine)
    inventory.hold(reader.uuid, reader)
    inventory.hold("f" * 32, coming, incoming=True)
    view = await inventory.view([Defined(mine, migration="e" * 32), Defined(reader)])
    assert view.host == "host-a"
    assert view.names == {"mine": mine.uuid, "reader": reader.uuid, "coming": coming.uuid}
    assert view.uuids[mine.uuid] == "e" * 32
    assert view.uuids[reader.uuid] is None
    assert view.uuids[coming.uuid] is not None, "a promised domain belongs to a migration"
    assert view.macs == {"52:54:00:00:00:01": "mine", "52:54:00:00:00:02": "coming"}
    assert (view.memory_free_bytes, view.vcpus_free) == (56 * MIB, 1)
    assert view.vdisks == {}, "no domain was looked at"
    assert view.volumes_in_use == {("vds0", "file"): "mine"}
    assert set(view.measured.switches) == {"vsw0"}
    assert (view.domains_free, view.incoming_free, view.incoming_max) == (0, 1, 2)
    arriving = Defined(mine, migration="e" * 32, receiving=True)
    assert (await inventory.view([arriving])).incoming_free == 0
    assert view.consoles_free == 10_000 - 3
    assert view.memory_promised_bytes == 4 * MIB
    assert view.capabilities["emulated"].machines == {"riscv64-virt"}


async def test_facts_of_an_active_domain(inventory: Inventory) -> None:
    definition = define()
    facts = await inventory.facts(definition, RunState.RUNNING)
    version = list((await inventory.capabilities("emulated")).version)
    assert facts["hypervisor-version"] == version
    assert facts["cpu"] == {"model": "unicorn-riscv64", "features": sorted("imafdc")}
    assert (facts["optional-devices"], facts["unmovable-devices"]) == ([], [])


async def test_facts_of_what_does_not_run(inventory: Inventory) -> None:
    definition = define(vnets=(net(), net("n1", "vsw9", "52:54:00:00:00:02")))
    facts = await inventory.facts(definition, RunState.BOUND, pending=True)
    assert facts == {
        "reconfiguration-pending": True,
        "switches": {},  # its bridge is not there
        "certificate-until-unix-ms": None,
        "hypervisor-version": list((await inventory.capabilities("emulated")).version),
    }


async def test_huge_pages_are_promised_until_they_are_taken(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel counts those of a domain that runs; of the others only the manager knows."""
    pages = HugePages(free_bytes=40 * MIB, largest_node_bytes=40 * MIB)
    monkeypatch.setattr("ldmd.measured.read_huge_pages", lambda _: pages)
    runs, bound, coming = (
        define(name, memory_bytes=size * MIB, huge_pages="2MiB")
        for name, size in (("runs", 2), ("bound", 4), ("coming", 8))
    )
    for domain in (runs, bound):
        inventory.hold(domain.uuid, domain)
    inventory.hold("f" * 32, coming, incoming=True)
    inventory.hold("e" * 32, define(huge_pages="2MiB"), resources=False, incoming=True)
    view = await inventory.view([Defined(runs, process=object()), Defined(bound)])
    assert view.huge_promised_bytes == {"2MiB": 12 * MIB, "1GiB": 0}
    assert view.memory_promised_bytes == 0


async def test_the_cpu_of_the_domain_in_question(inventory: Inventory) -> None:
    assert (await inventory.view([])).cpu is None
    found = await inventory.view([], define())
    assert found.cpu is not None
    assert found.cpu.model == "unicorn-riscv64"
    for definition, why in (
        (define(cpu_arch="EPYC"), "has no CPU EPYC"),
        (define(hypervisor="qemu"), "qemu is not enabled"),
    ):
        view = await inventory.view([], definition)
        assert view.cpu is None
        assert why in view.cpu_fault


async def test_a_hypervisor_that_is_not_enabled(inventory: Inventory) -> None:
    with pytest.raises(HypervisorError, match="qemu is not enabled on host-a"):
        await inventory.capabilities("qemu")
    with pytest.raises(HypervisorError, match="qemu is not enabled"):
        await inventory.facts(define(hypervisor="qemu"), RunState.RUNNING)
