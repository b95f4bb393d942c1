"""QEMU: what the conformance suite does not say, because it is QEMU's own."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trio
from attrs import define, field

from ldmd.definition import DomainDefinition, VirtualDisk, VirtualNetwork
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import process
from ldmd.hypervisor.driver import Attachments, DomainProcess, RunStatus
from ldmd.hypervisor.oracle import check_console, examine_memory, read_console
from ldmd.hypervisor.qemu import ORACLE_LAYOUTS, QemuHypervisor
from ldmd.hypervisor.qemu_command import (
    ORACLE_FIRMWARE,
    SPARC,
    X86,
    Catalogue,
    Disk,
    Resources,
    build_arguments,
    find_family,
    select,
)
from ldmd.hypervisor.qemu_domain import DEVICE_STATE_NAME, RUN_STATUSES, QemuDomain
from ldmd.hypervisor.qmp import open_qmp
from ldmd.measured import read_huge_pages
from tests.conftest import NR_HUGE_PAGES
from tests.ldmd.hypervisor.qemu_cases import (
    SPARC_ORACLE,
    make_definition,
    missing_kvm,
    missing_program,
)
from tests.ldmd.hypervisor.rig import copy_ram, data_ranges, ram_of

WAIT_SECONDS = 30

CATALOGUES = {
    X86: Catalogue(
        program=X86,
        version=(7, 2, 0),
        machines=frozenset({"pc", "pc-i440fx-7.2", "q35", "pc-q35-7.2", "microvm"}),
        aliases={"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2"},
        cpus=frozenset({"qemu64", "Skylake-Server-v4"}),
        accelerator="tcg",
    ),
    SPARC: Catalogue(
        program=SPARC,
        version=(7, 2, 0),
        machines=frozenset({"SS-5"}),
        aliases={},
        cpus=frozenset(),
        accelerator="tcg",
    ),
}


@define(eq=False)
class Bench:
    """Domains in run directories below ``root``; all are ended with the test."""

    root: Path
    hypervisor: QemuHypervisor = field(factory=lambda: QemuHypervisor(accelerator="tcg"))
    run_directories: list[Path] = field(factory=list)

    async def create(
        self,
        definition: DomainDefinition,
        attachments: Attachments | None = None,
        *,
        receiving: bool = False,
    ) -> QemuDomain:
        run_directory = self.root / f"run{len(self.run_directories)}"
        run_directory.mkdir(mode=0o700)
        self.run_directories.append(run_directory)
        make = self.hypervisor.create_receiving if receiving else self.hypervisor.create
        return await make(definition, run_directory, attachments or Attachments())

    async def aclose(self) -> None:
        for run_directory in self.run_directories:
            identity = process.find(run_directory)
            if identity is not None:
                await process.kill(identity, WAIT_SECONDS)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    if missing := missing_program(X86, "qemu-system-x86"):
        pytest.skip(missing)
    made = Bench(tmp_path)
    yield made
    await made.aclose()


@pytest.fixture
def needs_kvm() -> None:
    if missing := missing_kvm():
        pytest.skip(missing)


async def wait_until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    with trio.fail_after(seconds):
        while True:
            if condition():
                return
            await trio.sleep(0.005)


async def run_until_printed(domain: DomainProcess, lines: int = 3) -> None:
    """Whole lines of the oracle; what OpenBIOS says before does not count."""
    await domain.resume()
    await wait_until(lambda: read_console(domain).count("oracle ") > lines, 90)


def with_disk(definition: DomainDefinition, **rest: bool) -> DomainDefinition:
    disk = VirtualDisk(name="system", volume="web1", service="primary-vds0", **rest)
    return attrs.evolve(definition, vdisks=(disk,))


# --- the firmware ---------------------------------------------------------------------------------


def test_oracle_firmware_is_what_its_source_says(tmp_path: Path) -> None:
    tools = ("as", "ld", "objcopy")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install binutils")
    source = ORACLE_FIRMWARE.with_suffix(".S")
    commands = re.findall(r"^ \*   ((?:as|ld|objcopy) .*)$", source.read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == list(tools)
    shutil.copy(source, tmp_path)
    for command in commands:
        done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True)
        if done.returncode and "unrecognized" in done.stderr + done.stdout:
            pytest.skip(f"binutils here cannot make x86 code: {done.stderr.strip()[:80]}")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / ORACLE_FIRMWARE.name).read_bytes() == ORACLE_FIRMWARE.read_bytes()


def test_oracle_firmware_is_a_rom() -> None:
    assert ORACLE_FIRMWARE.stat().st_size == 64 * 1024
    assert not os.access(ORACLE_FIRMWARE, os.X_OK) or os.geteuid() == 0


# --- the command line -----------------------------------------------------------------------------


def test_alias_becomes_the_versioned_machine() -> None:
    assert select(make_definition("pc"), CATALOGUES).machine == "pc-i440fx-7.2"
    assert select(make_definition("microvm"), CATALOGUES).machine == "microvm"


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        (make_definition("isapc"), "no machine 'isapc'"),
        (make_definition("pc-i440fx-9.9"), "no machine 'pc-i440fx-9.9'"),
        (make_definition("none"), "no machine 'none'"),
        (make_definition("pc", firmware="uefi"), "no firmware 'uefi'"),
        (make_definition("SS-5", firmware="oracle"), "no firmware 'oracle'"),
        (make_definition("pc", cpu_arch="SuperSparc"), "no CPU 'SuperSparc'"),
        (make_definition("SS-5", firmware="default", cpu_arch="native"), "one CPU only"),
        (make_definition("pc", variables=(("boot-command", "x"),)), "no OpenBoot"),
        (with_disk(make_definition("SS-5", firmware="default")), "takes no vdisks"),
    ],
)
def test_select_refuses_what_is_not_in_the_lists(
    definition: DomainDefinition, sentence: str
) -> None:
    with pytest.raises(HypervisorError, match=sentence):
        select(definition, CATALOGUES)


def test_machines_of_a_program_that_is_not_installed_are_not_there() -> None:
    with pytest.raises(HypervisorError, match="no machine 'SS-5'"):
        select(make_definition("SS-5", firmware="default"), {X86: CATALOGUES[X86]})
    with pytest.raises(HypervisorError, match="no machine 'pc'"):
        select(make_definition("pc"), {SPARC: CATALOGUES[SPARC]})


@pytest.mark.parametrize(
    ("cpu", "accelerator", "expected"),
    [
        ("generic", "kvm", "qemu64,-pni,enforce"),
        ("native", "kvm", "host,enforce"),
        ("native", "tcg", "max,enforce"),
        ("Skylake-Server-v4", "tcg", "Skylake-Server-v4,enforce"),
    ],
)
def test_cpu(cpu: str, accelerator: str, expected: str) -> None:
    catalogue = attrs.evolve(CATALOGUES[X86], accelerator=accelerator)
    assert select(make_definition("pc", cpu_arch=cpu), {X86: catalogue}).cpu == expected


def test_paths_and_variables_stay_one_value() -> None:
    path = Path('/volumes/a,readonly=off,"b".img')
    definition = with_disk(make_definition("q35"))
    resources = Resources(
        ram_descriptor=9, disks=[Disk(path=path, block_device=False, direct=True)]
    )
    selection = select(definition, CATALOGUES)
    arguments = build_arguments(definition, selection, resources, receiving=False)
    volume = json.loads(arguments[arguments.index("-blockdev") + 1])
    assert volume["file"]["filename"] == str(path)
    assert volume["file"]["locking"] == "on"
    assert not any(str(path) in argument for argument in arguments if argument[0] != "{")

    definition = make_definition(
        "SS-5", firmware="default", variables=(("boot-command", "1 , 2 -sandbox off"),)
    )
    selection = select(definition, CATALOGUES)
    resources = Resources(ram_descriptor=9)
    arguments = build_arguments(definition, selection, resources, receiving=True)
    assert arguments[arguments.index("-prom-env") + 1] == "boot-command=1 , 2 -sandbox off"
    assert arguments.count("-sandbox") == 1
    assert arguments[-2:] == ["-incoming", "defer"]


def test_optional_devices_are_given_where_qemu_has_them() -> None:
    definition = make_definition("pc", optional_devices=("crypto", "watchdog", "rng"))
    everything = {"virtio-rng-pci", "rng-builtin", "i6300esb", "virtio-crypto-pci"}
    for types, given in (
        (everything | {"cryptodev-backend-builtin"}, ["crypto", "watchdog", "rng"]),
        (everything, ["watchdog", "rng"]),  # a device without a backend is none
        (everything - {"rng-builtin"}, ["watchdog"]),
        (set(), []),
    ):
        catalogue = attrs.evolve(CATALOGUES[X86], types=frozenset(types))
        selection = select(definition, {X86: catalogue})
        assert list(selection.optional) == given
        arguments = build_arguments(
            definition, selection, Resources(ram_descriptor=9), receiving=False
        )
        devices = [json.loads(v) for o, v in itertools.pairwise(arguments) if o == "-device"]
        assert [device["id"] for device in devices] == given
        places = {device["id"]: device["addr"] for device in devices}
        # the same place, whichever others there are
        assert places.items() <= {"rng": "13.0", "watchdog": "14.0", "crypto": "15.0"}.items()
    assert select(attrs.evolve(definition, machine="microvm"), {X86: catalogue}).optional == ()


def test_a_vnet_tells_its_domain_the_mtu() -> None:
    net = VirtualNetwork(name="n0", switch="s", mac="52:54:00:00:00:01", mtu=9000)
    definition = attrs.evolve(make_definition("pc"), vnets=(net,))
    arguments = build_arguments(
        definition,
        select(definition, CATALOGUES),
        Resources(ram_descriptor=9, taps=(10,)),
        receiving=False,
    )
    (device,) = [json.loads(v) for o, v in itertools.pairwise(arguments) if o == "-device"]
    assert device["host_mtu"] == 9000


def test_devices_have_places_of_their_own() -> None:
    disks = tuple(VirtualDisk(name=f"d{i}", volume=f"v{i}", service="s") for i in range(64))
    nets = tuple(
        VirtualNetwork(name=f"n{i}", switch="s", mac=f"52:54:00:00:00:{i:02x}") for i in range(64)
    )
    definition = attrs.evolve(make_definition("pc"), vdisks=disks, vnets=nets)
    resources = Resources(
        ram_descriptor=9,
        disks=[Disk(path=Path(f"/v{i}"), block_device=True, direct=True) for i in range(64)],
        taps=range(10, 74),
    )
    selection = select(definition, CATALOGUES)
    arguments = build_arguments(definition, selection, resources, receiving=False)
    places = [
        json.loads(value)["addr"]
        for option, value in itertools.pairwise(arguments)
        if option == "-device"
    ]
    assert len(set(places)) == 128
    slots = {int(place.split(".")[0], 16) for place in places}
    assert min(slots) > 2
    assert max(slots) < 31
    assert {place.split(".")[0] + ".0" for place in places} <= set(places)


# --- the real thing -------------------------------------------------------------------------------


@pytest.mark.qemu
async def test_capabilities_are_of_what_is_installed(bench: Bench) -> None:
    found = await bench.hypervisor.capabilities()
    assert found.architecture == "x86_64"
    assert found.accelerator == "tcg"
    assert found.version >= (7,)
    versioned = found.details["machine:pc"]
    assert {"pc", "q35", "microvm", versioned} <= found.machines
    assert ("SS-5" in found.machines) == (shutil.which(SPARC) is not None)
    assert not {"none", "x-remote", "isapc"} & found.machines
    assert all(find_family(machine) for machine in found.machines)
    assert "qemu64" in found.details[f"cpus:{X86}"].split(",")
    assert found.optional_devices["pc"] == {"rng", "watchdog", "crypto"}
    assert found.optional_devices["microvm"] == {"rng", "crypto"}
    assert found.optional_devices.get("SS-5", frozenset()) == frozenset()


# --- the CPU --------------------------------------------------------------------------------------


@pytest.mark.qemu
async def test_the_features_of_a_cpu_are_those_that_qemu_gives(bench: Bench) -> None:
    """Asked of a domain that runs with it: QEMU's own word for each feature."""
    for cpu_arch in ("generic", "native", "qemu64", "Nehalem"):
        definition = make_definition("pc", cpu_arch=cpu_arch)
        model = await bench.hypervisor.describe_cpu(definition)
        assert {"sse2", "nx", "lm"} <= model.features
        domain = await bench.create(definition)
        async with open_qmp(domain.run_directory, "qmp.sock", answer_seconds=WAIT_SECONDS) as qmp:
            (cpu,) = await qmp.execute("query-cpus-fast")
            for feature in {*model.features, "avx512f"}:
                arguments = {"path": cpu["qom-path"], "property": feature}
                assert await qmp.execute("qom-get", arguments) == (feature in model.features), (
                    feature
                )
        await domain.destroy()


@pytest.mark.qemu
async def test_the_generic_cpu_leaves_out_what_hosts_were_seen_not_to_have(bench: Bench) -> None:
    generic = await bench.hypervisor.describe_cpu(make_definition("pc"))
    model = await bench.hypervisor.describe_cpu(make_definition("pc", cpu_arch="qemu64"))
    assert model.features - generic.features == {"pni"}
    assert generic.unavailable == frozenset()
    assert generic.model != model.model


@pytest.mark.qemu
async def test_a_cpu_that_would_lack_something_is_not_made(bench: Bench) -> None:
    """TCG has no EPYC's every feature: QEMU would leave some out, and another host others."""
    definition = make_definition("pc", cpu_arch="EPYC")
    model = await bench.hypervisor.describe_cpu(definition)
    assert "topoext" in model.unavailable
    assert not model.unavailable & model.features
    with pytest.raises(HypervisorError, match="support requested feature"):
        await bench.create(definition)
    with pytest.raises(HypervisorError, match="no CPU 'SuperSparc'"):
        await bench.hypervisor.describe_cpu(make_definition("pc", cpu_arch="SuperSparc"))


@pytest.mark.qemu
@pytest.mark.usefixtures("needs_kvm")
async def test_the_generic_cpu_is_made_with_kvm(bench: Bench) -> None:
    bench.hypervisor = QemuHypervisor(accelerator="kvm")
    model = await bench.hypervisor.describe_cpu(make_definition("pc"))
    assert model.unavailable == frozenset()
    await run_until_printed(await bench.create(make_definition("pc")))


# --- optional devices, huge pages -----------------------------------------------------------------


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["pc", "q35", "microvm"])
async def test_optional_devices_move_with_their_domain(bench: Bench, machine: str) -> None:
    definition = make_definition(machine, optional_devices=("rng", "watchdog"))
    source = await bench.create(definition)
    await run_until_printed(source)
    await source.suspend()
    state = await source.retrieve_device_state()
    assert (b"virtio-rng" in state, b"i6300esb" in state) == (True, machine != "microvm")
    target = await bench.create(definition, receiving=True)
    copy_ram(source, target)
    await target.install_device_state(state)
    await run_until_printed(target)


@pytest.mark.qemu
async def test_a_crypto_device_cannot_be_moved(bench: Bench) -> None:
    """What the capabilities say; with a QEMU that can, this is the place to mend."""
    assert (await bench.hypervisor.capabilities()).unmovable_devices == {"crypto"}
    domain = await bench.create(make_definition("pc", optional_devices=("crypto",)))
    with pytest.raises(HypervisorError, match="non-migratable"):
        await domain.retrieve_device_state()


@pytest.mark.qemu
async def test_no_huge_pages(bench: Bench) -> None:
    uneven = make_definition("pc", 17 * 2**20, huge_pages="2MiB")
    with pytest.raises(HypervisorError, match="17MiB is not a whole number of pages of 2MiB"):
        await bench.create(uneven)
    more_than_there_are = make_definition("pc", 2**40, huge_pages="2MiB")
    with pytest.raises(HypervisorError):
        await bench.create(more_than_there_are)
    assert [process.find(directory) for directory in bench.run_directories] == [None, None]


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """64 MiB more of them than there were."""
    before = int(NR_HUGE_PAGES.read_text())
    NR_HUGE_PAGES.write_text(str(before + 32))
    try:
        assert int(NR_HUGE_PAGES.read_text()) == before + 32, "too little memory in one piece"
        yield before
    finally:
        NR_HUGE_PAGES.write_text(str(before))


@pytest.mark.qemu
@pytest.mark.hugepages
@pytest.mark.usefixtures("huge_pages")
async def test_ram_in_huge_pages_moves(bench: Bench) -> None:
    definition = make_definition("pc", 16 * 2**20, huge_pages="2MiB")
    free = read_huge_pages(2 * 2**20)
    assert free is not None
    source = await bench.create(definition)
    target = await bench.create(definition, receiving=True)
    left = read_huge_pages(2 * 2**20)
    assert left is not None
    assert free.free_bytes - left.free_bytes == 2 * 16 * 2**20, "both are reserved at once"
    await run_until_printed(source)
    await source.suspend()
    state = await source.retrieve_device_state()
    copy_ram(source, target)
    await target.install_device_state(state)
    await run_until_printed(target)
    assert check_console(read_console(source) + read_console(target)).contiguous
    with ram_of(target) as (descriptor,):
        assert os.fstat(descriptor).st_blksize == 2 * 2**20


@pytest.mark.qemu
@pytest.mark.usefixtures("needs_kvm")
async def test_probe_for_kvm_does_not_outlive_a_killed_manager() -> None:
    code = (
        "import trio; from ldmd.hypervisor.qemu_catalogue import kvm_works;"
        f"trio.run(kvm_works, {X86!r})"
    )
    manager = await trio.lowlevel.open_process([sys.executable, "-c", code])
    try:
        await wait_until(lambda: bool(children_of(manager.pid)))
        probes = children_of(manager.pid)
        manager.kill()
        await wait_until(lambda: not any(map(is_running, probes)))
    finally:
        manager.kill()
        await manager.wait()


@pytest.mark.qemu
async def test_asking_qemu_does_not_outlive_a_killed_manager() -> None:
    """Killed as soon as there is a QEMU, which may not have read a word of it."""
    code = (
        "import trio; from ldmd.hypervisor.qemu_catalogue import ask_program;"
        f"trio.run(ask_program, {X86!r}, 'tcg')"
    )
    for _ in range(3):
        manager = await trio.lowlevel.open_process([sys.executable, "-c", code])
        try:
            await wait_until(lambda manager=manager: bool(children_of(manager.pid)))
            programs = children_of(manager.pid)
            manager.kill()
            await wait_until(lambda programs=programs: not any(map(is_running, programs)))
        finally:
            manager.kill()
            await manager.wait()


def is_running(pid: int) -> bool:
    """Not a zombie: the executable of one cannot be read."""
    try:
        return bool(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """Of a process that may have ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


async def test_nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HypervisorError, match="not installed") as caught:
        await QemuHypervisor().capabilities()
    assert "qemu-system" in caught.value.remedy


@pytest.mark.qemu
async def test_every_run_state_of_qemu_has_a_meaning(bench: Bench) -> None:
    """The names are asked of QEMU: a newer one may have more."""
    domain = await bench.create(make_definition("pc"))
    async with open_qmp(domain.run_directory, "qmp.sock", answer_seconds=WAIT_SECONDS) as qmp:
        schema = {entity["name"]: entity for entity in await qmp.execute("query-qmp-schema")}
    members = schema[schema["query-status"]["ret-type"]]["members"]
    (status,) = [member for member in members if member["name"] == "status"]
    # Never asked for: fault tolerance by two running copies, loading a snapshot.
    assert set(schema[status["type"]]["values"]) - set(RUN_STATUSES) <= {"colo", "restore-vm"}


@pytest.mark.qemu
async def test_ram_is_shared_both_ways_and_leaves_no_trace(bench: Bench) -> None:
    domain = await bench.create(make_definition("pc", 64 * 2**20), receiving=True)
    with ram_of(domain) as (descriptor,):
        assert os.fstat(descriptor).st_blocks == 0
        os.pwrite(descriptor, b"from the manager", 32 * 2**20)
        assert list(data_ranges(descriptor, 64 * 2**20)) == [(32 * 2**20, 32 * 2**20 + 4096)]
        async with open_qmp(domain.run_directory, "qmp.sock", answer_seconds=WAIT_SECONDS) as qmp:
            dump = {"val": 32 * 2**20, "size": 16, "filename": "seen"}
            await qmp.execute("pmemsave", dump)
        assert (domain.run_directory / "seen").read_bytes() == b"from the manager"
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 4096)
    await domain.destroy()
    with pytest.raises(HypervisorError):
        domain.open_ram()
    left = {path.name for path in domain.run_directory.iterdir()}
    assert left <= {
        "process.json", "qemu.json", "hypervisor.log", "console.log", "console.in", "console.out", "qmp.sock",
        "seen",
    }  # fmt: skip


@pytest.mark.qemu
async def test_device_state_holds_no_ram(bench: Bench) -> None:
    domain = await bench.create(make_definition("pc", 256 * 2**20))
    marker = os.urandom(4096)
    with ram_of(domain) as (descriptor,):
        for page in range(0, 128 * 2**20, 2**20):
            os.pwrite(descriptor, marker, 64 * 2**20 + page)
    state = await domain.retrieve_device_state()
    assert len(state) < 2**20
    assert marker[:64] not in state


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["q35", "microvm", "pc-i440fx-5.2"])
async def test_other_machines_move(bench: Bench, machine: str) -> None:
    definition = make_definition(machine)
    family = find_family(machine)
    assert family is not None
    source = await bench.create(definition)
    await run_until_printed(source)
    await source.suspend()
    target = await bench.create(definition, receiving=True)
    state = await source.retrieve_device_state()
    copy_ram(source, target)
    await target.install_device_state(state)
    await source.destroy()
    await run_until_printed(target)
    await target.suspend()
    memory = examine_memory(target, ORACLE_LAYOUTS[family.ram])
    assert memory.ok, memory.sentence
    console = check_console(read_console(target), read_console(source))
    assert console.contiguous, console.sentence


@pytest.mark.qemu
async def test_retrieved_state_is_kept_for_the_next_manager_and_never_too_long(
    bench: Bench,
) -> None:
    definition = make_definition("pc")
    domain = await bench.create(definition)
    await run_until_printed(domain)
    await domain.suspend()
    first = await domain.retrieve_device_state()
    next_one = await bench.hypervisor.adopt(definition, domain.run_directory)
    assert next_one is not None
    assert await next_one.retrieve_device_state() == first
    await run_until_printed(next_one, lines=10)
    await next_one.suspend()
    assert not (domain.run_directory / DEVICE_STATE_NAME).exists()
    second = await next_one.retrieve_device_state()
    assert second != first
    assert (domain.run_directory / DEVICE_STATE_NAME).read_bytes() == second
    # One that was lost is said to be lost, and the domain is none the worse for it.
    (domain.run_directory / DEVICE_STATE_NAME).unlink()
    third = await bench.hypervisor.adopt(definition, domain.run_directory)
    assert third is not None
    with pytest.raises(HypervisorError, match="not kept"):
        await third.retrieve_device_state()
    assert await third.status() is RunStatus.SUSPENDED
    await third.resume()


@pytest.mark.qemu
@pytest.mark.parametrize("missing_bytes", [1, 2, 100, 5000])
async def test_cut_device_state_is_refused(bench: Bench, missing_bytes: int) -> None:
    definition = make_definition("pc")
    source = await bench.create(definition)
    state = await source.retrieve_device_state()
    target = await bench.create(definition, receiving=True)
    with pytest.raises(HypervisorError):
        await target.install_device_state(state[:-missing_bytes])
    assert await target.status() is RunStatus.GONE


@pytest.mark.qemu
async def test_state_of_another_machine_is_refused_in_qemus_words(bench: Bench) -> None:
    source = await bench.create(make_definition("pc"))
    state = await source.retrieve_device_state()
    target = await bench.create(make_definition("pc-i440fx-5.2"), receiving=True)
    with pytest.raises(HypervisorError, match="load of migration failed"):
        await target.install_device_state(state)


@pytest.mark.qemu
async def test_create_fails_in_qemus_words(bench: Bench) -> None:
    with pytest.raises(HypervisorError, match="CPUs"):
        await bench.create(make_definition("pc", vcpus=1024))
    assert process.find(bench.run_directories[0]) is None


@pytest.mark.qemu
async def test_adopts_only_the_domain_it_is_asked_for(bench: Bench) -> None:
    definition = make_definition("pc")
    domain = await bench.create(definition)
    other = attrs.evolve(definition, uuid="00000000-0000-4000-8000-00000000ffff")
    with pytest.raises(OutcomeUnknown, match="not 00000000-0000-4000-8000-00000000ffff"):
        await bench.hypervisor.adopt(other, domain.run_directory)


@pytest.mark.sparc
@pytest.mark.slow
async def test_sparcstation_moves_in_the_middle_of_a_forth_loop(bench: Bench) -> None:
    if missing := missing_program(SPARC, "qemu-system-sparc"):
        pytest.skip(missing)
    definition = SPARC_ORACLE.define()
    domain = await bench.create(definition)
    printed = ""
    for _ in range(5):
        await run_until_printed(domain)
        await domain.suspend()
        target = await bench.create(definition, receiving=True)
        state = await domain.retrieve_device_state()
        copy_ram(domain, target)
        await target.install_device_state(state)
        printed += read_console(domain)
        await domain.destroy()
        domain = target
        memory = examine_memory(domain, SPARC_ORACLE.layout)
        assert memory.ok, memory.sentence
    await run_until_printed(domain)
    await domain.suspend()
    console = check_console(read_console(domain), printed)
    assert console.contiguous, console.sentence


# --- vdisks ---------------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume, with a comma.img"
    with path.open("wb") as file:
        file.truncate(2**20)
    return path


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["pc", "q35", "microvm"])
async def test_volume_is_locked_by_the_copy_that_may_run(
    bench: Bench, volume: Path, machine: str
) -> None:
    """The second fence: while the target's process lives, the source cannot be resumed."""
    definition = with_disk(make_definition(machine))
    attachments = Attachments(disks={"system": volume})
    source = await bench.create(definition, attachments)
    await run_until_printed(source)
    await source.suspend()
    target = await bench.create(definition, attachments, receiving=True)
    with pytest.raises(HypervisorError, match="lock"):
        await bench.create(definition, attachments)
    state = await source.retrieve_device_state()
    copy_ram(source, target)
    await target.install_device_state(state)
    with pytest.raises(HypervisorError, match="lock"):
        await source.resume()
    assert await source.status() is RunStatus.SUSPENDED
    await target.destroy()
    assert await source.retrieve_device_state() == state
    await source.resume()
    assert await source.status() is RunStatus.RUNNING


@pytest.mark.qemu
async def test_two_may_read_one_volume(bench: Bench, volume: Path) -> None:
    definition = with_disk(make_definition("pc"), read_only=True)
    attachments = Attachments(disks={"system": volume})
    for _ in range(2):
        await (await bench.create(definition, attachments)).resume()
    with volume.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


@pytest.mark.qemu
@pytest.mark.parametrize("attached", [{}, {"system": "missing.img"}, {"system": "."}])
async def test_volume_that_cannot_be_used(bench: Bench, attached: dict[str, str]) -> None:
    disks = {name: bench.root / path for name, path in attached.items()}
    with pytest.raises(HypervisorError, match="volume"):
        await bench.create(with_disk(make_definition("pc")), Attachments(disks=disks))


# --- vnets ----------------------------------------------------------------------------------------


@pytest.mark.qemu
async def test_vnet_joins_its_bridge(bench: Bench) -> None:
    """In a network namespace of its own, made by a process of its own."""
    probe = await trio.run_process(
        ["unshare", "--net", "ip", "link", "add", "ldmbr0", "type", "bridge"],
        check=False,
        capture_stderr=True,
    )
    if probe.returncode:
        pytest.skip(f"no bridge can be made here: {probe.stderr.decode().strip()[:200]}")
    command = [sys.executable, "-m", "tests.ldmd.hypervisor.vnet_scene", str(bench.root)]
    with trio.fail_after(120):
        done = await trio.run_process(
            ["unshare", "--net", *command], check=False, capture_stdout=True, capture_stderr=True
        )
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    assert seen["source"] == 1
    assert seen["both"] == 2
    assert seen["after"] == 0
    # The target said where its MAC address is when it was resumed, and nobody before.
    assert seen["announced-before"] == 0
    assert seen["announced"] >= 1


@pytest.mark.qemu
async def test_vnet_without_bridge(bench: Bench) -> None:
    vnet = VirtualNetwork(name="net0", switch="primary-vsw0", mac="52:54:00:12:34:56")
    definition = attrs.evolve(make_definition("pc"), vnets=(vnet,))
    with pytest.raises(HypervisorError, match="no bridge"):
        await bench.create(definition)
    with pytest.raises(HypervisorError, match="tap"):
        await bench.create(definition, Attachments(bridges={"net0": "no-such-bridge0"}))
