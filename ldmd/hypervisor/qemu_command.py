"""QEMU's command line for a domain's definition: pure, and the only place that knows options.

A definition may come from a peer, so none of its strings becomes an option. Machine, CPU and firmware are looked up in
lists of this host and the list's own entry is used; the name and the OpenBoot variables stand where QEMU takes a whole
argument as one value; paths come from the manager alone and go as JSON, where no comma ends them. Numbers are numbers.

The same definition gives the same devices at the same places on both hosts: places are counted from the position in the
definition and written out, never left to QEMU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from ldmd.definition import DomainDefinition, VirtualDisk
from ldmd.errors import HypervisorError

QMP_NAME: Final = "qmp.sock"
CONSOLE_PIPE: Final = "console"
"""QEMU's chardev ``pipe`` adds .in and .out (``qemu_console.py``)."""

FIRMWARE_DIRECTORY: Final = Path(__file__).parent / "firmware"
ORACLE_FIRMWARE: Final = FIRMWARE_DIRECTORY / "oracle-x86.bin"
ECHO_FIRMWARE: Final = FIRMWARE_DIRECTORY / "echo-x86.bin"

SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

DEVICES_PER_SLOT: Final = 8
"""Functions of a PCI slot: 64 vdisks and 64 vnets are more than a bus has slots."""
VDISK_SLOT: Final = 3
VNET_SLOT: Final = 11
"""Slots 3 to 10 and 11 to 18; 0 to 2 and 31 are the machines' own."""


@frozen(kw_only=True)
class Family:
    """Machines that take the same options.

    ``machines`` matches names in QEMU's list. ``ram`` is the id of the RAM block, which QEMU compares when a state is
    installed. ``bus`` is the PCI bus; without one, devices are virtio-mmio (``devices`` = "device") or there are none.
    ``generic_cpu`` is "" where the machine's own is the only sensible one.
    """

    program: str
    machines: re.Pattern[str]
    ram: str
    firmwares: Mapping[str, tuple[str, ...]]
    generic_cpu: str = ""
    bus: str = ""
    devices: str = ""
    """What virtio device names end in: "pci", "device", or "" when there are none."""
    variables: bool = False
    options: tuple[str, ...] = ()


_X86_FIRMWARES: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "oracle": ("-bios", str(ORACLE_FIRMWARE)),
    "echo": ("-bios", str(ECHO_FIRMWARE)),
}

X86: Final = "qemu-system-x86_64"
SPARC: Final = "qemu-system-sparc"

FAMILIES: Final = (
    Family(
        program=X86,
        machines=re.compile(r"pc(-i440fx-\d+\.\d+)?"),
        ram="pc.ram",
        firmwares=_X86_FIRMWARES,
        generic_cpu="qemu64",
        bus="pci.0",
        devices="pci",
        # A domain that put itself to sleep (ACPI S3) is neither running nor stopped: it would wake up behind a
        # suspend's back. So no domain can.
        options=("-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.disable_s4=1"),
    ),
    Family(
        program=X86,
        machines=re.compile(r"q35|pc-q35-\d+\.\d+(\.\d+)?"),
        ram="pc.ram",
        firmwares=_X86_FIRMWARES,
        generic_cpu="qemu64",
        bus="pcie.0",
        devices="pci",
        options=("-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1"),
    ),
    Family(
        program=X86,
        machines=re.compile(r"microvm"),
        ram="microvm.ram",
        firmwares=_X86_FIRMWARES,
        generic_cpu="qemu64",
        devices="device",
    ),
    Family(
        program=SPARC,
        machines=re.compile(r"SS-5"),
        ram="sun4m.ram",
        firmwares={"default": ()},
        variables=True,
    ),
)


@frozen(kw_only=True)
class Catalogue:
    """What one QEMU binary of this host has. ``aliases``: "pc" -> "pc-i440fx-7.2". ``accelerator``: kvm or tcg."""

    program: str
    version: tuple[int, ...]
    machines: frozenset[str]
    aliases: Mapping[str, str]
    cpus: frozenset[str]
    accelerator: str


@frozen(kw_only=True)
class Selection:
    """A definition matched with a catalogue: every string here is from a list of this host or of this file."""

    family: Family
    program: str
    machine: str
    """With aliases resolved, so that it is the same machine for ever."""
    accelerator: str
    cpu: str
    """"" for the machine's own."""
    firmware: tuple[str, ...]


@frozen(kw_only=True)
class Disk:
    """A vdisk's volume on this host. ``block_device`` or regular file; ``direct``: opened with O_DIRECT."""

    path: Path
    block_device: bool
    direct: bool


@frozen(kw_only=True)
class Resources:
    """What the manager made for the process: descriptors that it inherits, and the volumes.

    ``taps``: one tap descriptor for each vnet, in the definition's order. ``disks``: the same for vdisks.
    """

    ram_descriptor: int
    disks: Sequence[Disk] = field(factory=tuple)
    taps: Sequence[int] = field(factory=tuple)


def find_family(machine: str) -> Family | None:
    return next((f for f in FAMILIES if f.machines.fullmatch(machine)), None)


def select(definition: DomainDefinition, catalogues: Mapping[str, Catalogue]) -> Selection:
    """Match the definition with what this host has. Raises HypervisorError saying what it has not."""
    family = find_family(definition.machine)
    catalogue = catalogues.get(family.program) if family else None
    if family is None or catalogue is None or definition.machine not in catalogue.machines:
        known = sorted(set().union(*(c.aliases for c in catalogues.values()))) or ["none"]
        raise HypervisorError(
            f"this host's QEMU has no machine {definition.machine!r}",
            remedy=f"use one that 'ldm list-hypervisors' shows, for example {', '.join(known)}",
        )
    if definition.firmware not in family.firmwares:
        raise HypervisorError(
            f"machine {definition.machine} has no firmware {definition.firmware!r},"
            f" only {', '.join(sorted(family.firmwares))}"
        )
    if definition.variables and not family.variables:
        raise HypervisorError(
            f"machine {definition.machine} has no OpenBoot, so it takes no variables",
            remedy="remove the variables from the definition, or use machine SS-5",
        )
    if (definition.vdisks or definition.vnets) and not family.devices:
        raise HypervisorError(
            f"machine {definition.machine} takes no vdisks and no vnets with this hypervisor"
        )
    return Selection(
        family=family,
        program=catalogue.program,
        machine=catalogue.aliases.get(definition.machine, definition.machine),
        accelerator=catalogue.accelerator,
        cpu=_select_cpu(definition, family, catalogue),
        firmware=family.firmwares[definition.firmware],
    )


def _select_cpu(definition: DomainDefinition, family: Family, catalogue: Catalogue) -> str:
    if definition.cpu_arch == "generic":
        return family.generic_cpu
    if not family.generic_cpu:
        raise HypervisorError(
            f"machine {definition.machine} has one CPU only: set cpu-arch to generic"
        )
    if definition.cpu_arch == "native":
        return "host" if catalogue.accelerator == "kvm" else "max"
    if definition.cpu_arch in catalogue.cpus:
        return definition.cpu_arch
    raise HypervisorError(
        f"this host's QEMU has no CPU {definition.cpu_arch!r}",
        remedy="use generic, native or one that 'ldm list-hypervisors' shows",
    )


def build_arguments(
    definition: DomainDefinition, selection: Selection, resources: Resources, *, receiving: bool
) -> list[str]:
    """The whole argv; paths that are the process's own are relative to its run directory."""
    family = selection.family
    machine = f"{selection.machine},accel={selection.accelerator},memory-backend={family.ram}"
    return [
        selection.program,
        *("-name", definition.name),
        *("-uuid", definition.uuid),
        # Without suppress-vmdesc a description in JSON follows the state: two thirds of the stream, and QEMU takes a
        # stream that was cut off in there for complete.
        *("-machine", f"{machine},dump-guest-core=off,suppress-vmdesc=on"),
        *(("-cpu", selection.cpu) if selection.cpu else ()),
        *("-smp", str(definition.vcpus)),
        *("-m", f"{definition.memory_bytes // 2**20}M"),
        *("-object", _json(_memory(definition, family, resources))),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-nic", "none"),
        *("-sandbox", SANDBOX),
        *("-qmp", f"unix:{QMP_NAME},server=on,wait=off"),
        *("-chardev", f"pipe,id=console,path={CONSOLE_PIPE}"),
        *("-serial", "chardev:console"),
        *family.options,
        *selection.firmware,
        *_variables(definition),
        *_vdisks(definition, family, resources),
        *_vnets(definition, family, resources),
        "-S",
        *(("-incoming", "defer") if receiving else ()),
    ]


def _memory(
    definition: DomainDefinition, family: Family, resources: Resources
) -> Mapping[str, Any]:
    return {
        "qom-type": "memory-backend-file",
        "id": family.ram,
        "mem-path": f"/proc/self/fd/{resources.ram_descriptor}",
        "size": definition.memory_bytes,
        "share": True,
    }


def _variables(definition: DomainDefinition) -> list[str]:
    return [a for name, text in definition.variables for a in ("-prom-env", f"{name}={text}")]


def _vdisks(definition: DomainDefinition, family: Family, resources: Resources) -> list[str]:
    arguments = []
    for index, (vdisk, disk) in enumerate(zip(definition.vdisks, resources.disks, strict=True)):
        device = {
            "driver": f"virtio-blk-{family.devices}",
            "id": f"vdisk{index}",
            "drive": f"volume{index}",
            "bootindex": index,
            **_place(family, VDISK_SLOT, index),
        }
        volume = _volume(vdisk, disk, index)
        arguments += ["-blockdev", _json(volume), "-device", _json(device)]
    return arguments


def _volume(vdisk: VirtualDisk, disk: Disk, index: int) -> Mapping[str, Any]:
    """Locks are on, always: with a volume on shared storage they are the second fence against two running copies.

    A receiving domain takes them when its state is installed, a source lets go of them when its state was retrieved
    and takes them again when it is resumed. Direct I/O where the file system has it; where it has not, QEMU drops
    the page cache of the volume when it takes over (``drop-cache`` of its file driver).
    """
    return {
        "driver": "raw",
        "node-name": f"volume{index}",
        "read-only": vdisk.read_only,
        "cache": {"direct": disk.direct, "no-flush": False},
        "file": {
            "driver": "host_device" if disk.block_device else "file",
            "filename": str(disk.path),
            "locking": "on",
            "aio": "threads",
        },
    }


def _vnets(definition: DomainDefinition, family: Family, resources: Resources) -> list[str]:
    arguments = []
    for index, (vnet, tap) in enumerate(zip(definition.vnets, resources.taps, strict=True)):
        device = {
            "driver": f"virtio-net-{family.devices}",
            "id": f"vnet{index}",
            "netdev": f"tap{index}",
            "mac": vnet.mac,
            **_place(family, VNET_SLOT, index),
        }
        # No option ROM: its size differs between versions of QEMU, and nothing boots from a vnet.
        if family.devices == "pci":
            device["romfile"] = ""
        netdev = f"tap,id=tap{index},fd={tap},vhost=off"
        arguments += ["-netdev", netdev, "-device", _json(device)]
    return arguments


def _place(family: Family, slot_first: int, index: int) -> Mapping[str, Any]:
    if not family.bus:
        return {}
    slot, function = divmod(index, DEVICES_PER_SLOT)
    return {
        "bus": family.bus,
        "addr": f"{slot_first + slot:x}.{function}",
        "multifunction": True,
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
