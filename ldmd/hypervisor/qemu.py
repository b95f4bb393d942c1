"""The hypervisor driver for QEMU, with KVM or TCG: makes domain processes and finds them again.

Needs ``qemu-system-x86_64`` for machines pc, q35 and microvm, ``qemu-system-sparc`` for SS-5 (a SPARCstation 5);
either is enough. Seen working with 7.2.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, Final, Literal

import trio
from attrs import define, field

from ldmd.definition import DomainDefinition
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import process
from ldmd.hypervisor.driver import Attachments, Capabilities, CpuModel, Hypervisor, RunStatus
from ldmd.hypervisor.oracle import OracleLayout
from ldmd.hypervisor.qemu_catalogue import ask_cpu, ask_program
from ldmd.hypervisor.qemu_command import (
    FAMILIES,
    SPARC,
    UNMOVABLE_DEVICES,
    X86,
    Catalogue,
    CpuChoice,
    Disk,
    Resources,
    build_arguments,
    choose_cpu,
    find_family,
    find_machine,
    select,
)
from ldmd.hypervisor.qemu_console import make_console
from ldmd.hypervisor.qemu_disks import find_disk
from ldmd.hypervisor.qemu_domain import (
    END_SECONDS,
    RAM_SEALS,
    QemuDomain,
    QemuRecord,
    read_record,
    write_record,
)
from ldmd.hypervisor.qemu_tap import open_tap
from ldmd.sizes import format_size, parse_size

ANSWER_SECONDS: Final = 10.0
START_SECONDS: Final = 30.0
"""Until a new process answers; seen: 0.1 s."""

ORACLE_LAYOUTS: Final = {
    family.ram: OracleLayout(
        region=family.ram, ranges=((2**20, 2**31),), word_bytes=4, byte_offset=8
    )
    for family in FAMILIES
    if "oracle" in family.firmwares
}
"""By the name of the RAM region: where firmware/oracle-x86.S counts."""

HUGE_PAGE_FLAGS: Final = {
    "none": 0,
    "2MiB": os.MFD_HUGETLB | os.MFD_HUGE_2MB,
    "1GiB": os.MFD_HUGETLB | os.MFD_HUGE_1GB,
}
PAGE_BYTES: Final = {"2MiB": parse_size("2MiB"), "1GiB": parse_size("1GiB")}

ARCHITECTURES: Final = {X86: "x86_64", SPARC: "sparc"}


@define(eq=False)
class QemuHypervisor(Hypervisor):
    """``answer_seconds``: after that without an answer, the outcome is unknown. ``accelerator``: kvm and tcg insist."""

    kind: ClassVar[str] = "qemu"

    answer_seconds: float = ANSWER_SECONDS
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    _catalogues: Mapping[str, Catalogue] | None = field(default=None, init=False)
    _cpus: dict[tuple[str, CpuChoice], CpuModel] = field(factory=dict, init=False)

    async def capabilities(self) -> Capabilities:
        """``details``: "machine:ALIAS" -> the versioned machine; "cpus:PROGRAM" -> names with commas between;
        "accelerator:PROGRAM"; "version:PROGRAM".

        A definition with an alias means another machine on a host with another QEMU: compare the details.
        """
        catalogues = await self._load_catalogues()
        first = next(iter(catalogues.values()))
        details: dict[str, str] = {}
        for program, catalogue in catalogues.items():
            details |= {f"machine:{alias}": name for alias, name in catalogue.aliases.items()}
            details[f"accelerator:{program}"] = catalogue.accelerator
            details[f"version:{program}"] = ".".join(map(str, catalogue.version))
            details[f"cpus:{program}"] = ",".join(sorted({"generic", *catalogue.cpus}))
        families = [f for f in FAMILIES if f.program in catalogues]
        return Capabilities(
            kind=self.kind,
            version=first.version,
            machines=frozenset().union(*(c.machines for c in catalogues.values())),
            firmwares=frozenset().union(*(f.firmwares for f in families)),
            architecture=ARCHITECTURES[first.program],
            accelerator=first.accelerator,
            optional_devices={
                machine: catalogue.optional_devices(family)
                for catalogue in catalogues.values()
                for machine in catalogue.machines
                if (family := find_family(machine))
            },
            unmovable_devices=UNMOVABLE_DEVICES,
            details=details,
        )

    async def describe_cpu(self, definition: DomainDefinition) -> CpuModel:
        """Asked of QEMU once for each model."""
        catalogues = await self._load_catalogues()
        family, catalogue = find_machine(definition, catalogues)
        choice = choose_cpu(definition, family, catalogue)
        if choice is None:
            return CpuModel(model=definition.machine, features=frozenset())
        key = catalogue.program, choice
        if key not in self._cpus:
            self._cpus[key] = await ask_cpu(catalogue, choice)
        return self._cpus[key]

    async def create(
        self, definition: DomainDefinition, run_directory: Path, attachments: Attachments
    ) -> QemuDomain:
        return await self._create(definition, run_directory, attachments, RunStatus.SUSPENDED)

    async def create_receiving(
        self, definition: DomainDefinition, run_directory: Path, attachments: Attachments
    ) -> QemuDomain:
        return await self._create(definition, run_directory, attachments, RunStatus.RECEIVING)

    async def adopt(self, definition: DomainDefinition, run_directory: Path) -> QemuDomain | None:
        identity = process.find(run_directory)
        if identity is None:
            return None
        record = read_record(run_directory)
        if record.uuid != definition.uuid:
            raise OutcomeUnknown(
                f"{run_directory} holds the process of domain {record.uuid}, not {definition.uuid}"
            )
        domain = QemuDomain(record, run_directory, identity, self.answer_seconds, definition.vdisks)
        status = await domain.status()
        if status is RunStatus.GONE:
            return None
        if status is RunStatus.RUNNING:
            domain.keyboard.enable()
        return domain

    async def require_possible(self, definition: DomainDefinition) -> None:
        select(definition, await self._load_catalogues())

    async def _create(
        self,
        definition: DomainDefinition,
        run_directory: Path,
        attachments: Attachments,
        expected: RunStatus,
    ) -> QemuDomain:
        selection = select(definition, await self._load_catalogues())
        receiving = expected is RunStatus.RECEIVING
        disks = [await find_disk(path) for path in _find_volumes(definition, attachments)]
        with _resources(definition, attachments, disks) as resources:
            record = QemuRecord(
                uuid=definition.uuid,
                ram_descriptor=resources.ram_descriptor,
                region=selection.family.ram,
                size_bytes=definition.memory_bytes,
                received=receiving,
                vnets=len(definition.vnets),
            )
            arguments = build_arguments(definition, selection, resources, receiving=receiving)
            if process.find(run_directory) is not None:
                raise HypervisorError(f"a domain's process lives in {run_directory} already")
            try:
                write_record(run_directory, record)
                make_console(run_directory)
            except OSError as error:
                raise HypervisorError(f"{run_directory} cannot be written: {error}") from error
            domain = await self._start(arguments, run_directory, record, resources, expected)
            domain.vdisks = definition.vdisks
            return domain

    async def _start(
        self,
        arguments: list[str],
        run_directory: Path,
        record: QemuRecord,
        resources: Resources,
        expected: RunStatus,
    ) -> QemuDomain:
        """Nothing is left running when this raises."""
        try:
            identity = await process.spawn(
                arguments, run_directory, pass_fds=(resources.ram_descriptor, *resources.taps)
            )
            starting = QemuDomain(
                record, run_directory, identity, max(START_SECONDS, self.answer_seconds)
            )
            status = await starting.wait_answer()
            if status is not expected:
                raise HypervisorError(f"the new domain is {status} instead of {expected}")
        except BaseException as error:
            with trio.CancelScope(shield=True):
                left = process.find(run_directory)
                if left is not None:
                    await process.kill(left, END_SECONDS)
            if isinstance(error, OutcomeUnknown):
                raise HypervisorError(f"the new domain was ended: {error.sentence}") from error
            raise
        return QemuDomain(record, run_directory, identity, self.answer_seconds)

    async def _load_catalogues(self) -> Mapping[str, Catalogue]:
        if self._catalogues is None:
            found = [await ask_program(program, self.accelerator) for program in ARCHITECTURES]
            self._catalogues = {c.program: c for c in found if c is not None}
        if not self._catalogues:
            raise HypervisorError(
                "QEMU is not installed on this host",
                remedy="install qemu-system-x86 (machines pc, q35, microvm)"
                " or qemu-system-sparc (machine SS-5)",
            )
        return self._catalogues


@contextmanager
def _resources(
    definition: DomainDefinition, attachments: Attachments, disks: Sequence[Disk]
) -> Iterator[Resources]:
    """Made for one process; it has inherited what it needs when they are closed. Raises HypervisorError."""
    with ExitStack() as stack:
        ram = _make_ram(definition)
        stack.callback(os.close, ram)
        taps = []
        for vnet in definition.vnets:
            bridge = attachments.bridges.get(vnet.name)
            if bridge is None:
                raise HypervisorError(f"vnet {vnet.name} has no bridge on this host")
            tap = open_tap(bridge)
            stack.callback(os.close, tap)
            taps.append(tap)
        yield Resources(ram_descriptor=ram, disks=disks, taps=taps)


def _make_ram(definition: DomainDefinition) -> int:
    """A memfd, of huge pages if the domain wants them: QEMU reserves them when it maps it, or does not start."""
    page_bytes = PAGE_BYTES.get(definition.huge_pages, 1)
    if definition.memory_bytes % page_bytes:
        raise HypervisorError(
            f"{format_size(definition.memory_bytes)} is not a whole number of pages of {definition.huge_pages}",
            remedy=f"give the domain a multiple of {definition.huge_pages}, or set huge-pages to none",
        )
    try:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | HUGE_PAGE_FLAGS[definition.huge_pages]
        descriptor = os.memfd_create("ram", flags)
        try:
            os.ftruncate(descriptor, definition.memory_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, RAM_SEALS)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise HypervisorError(f"no memory for the domain: {error}") from error
    return descriptor


def _find_volumes(definition: DomainDefinition, attachments: Attachments) -> list[Path]:
    missing = [vdisk.name for vdisk in definition.vdisks if vdisk.name not in attachments.disks]
    if missing:
        raise HypervisorError(f"vdisk {missing[0]} has no volume on this host")
    return [attachments.disks[vdisk.name] for vdisk in definition.vdisks]
