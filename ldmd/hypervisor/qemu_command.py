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
OPTIONAL_SLOT: Final = 19
"""Slots 3 to 10, 11 to 18 and 19 to 21; 0 to 2 and 31 are the machines' own."""

GENERIC_CPU: Final = "qemu64"
GENERIC_WITHOUT: Final = ("pni",)
"""Features of the generic CPU's model that hosts were seen not to have: no domain with it gets them anywhere."""


STOPS_WHEN_IT_FAILS: Final = {"werror": "stop", "rerror": "stop"}
"""The domain does not hear of an error: it is stopped, and asks again when it is resumed on another path."""


@frozen
class Cache:
    """``write_cache``: the device says that it has one, and is told when to flush it. ``direct``: past the host's page
    cache. ``no_flush``: flushes are taken for done.
    """

    write_cache: bool
    direct: bool
    no_flush: bool


CACHES: Final[Mapping[str, Cache]] = {
    "none": Cache(write_cache=True, direct=True, no_flush=False),
    "directsync": Cache(write_cache=False, direct=True, no_flush=False),
    "writethrough": Cache(write_cache=False, direct=False, no_flush=False),
    "writeback": Cache(write_cache=True, direct=False, no_flush=False),
    "unsafe": Cache(write_cache=True, direct=False, no_flush=True),
}
"""As qemu(1) has them, ``-drive cache=``: cache.writeback, cache.direct, cache.no-flush."""


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
    optional: Mapping[str, str] = field(factory=dict)
    """Optional device -> QEMU's."""
    variables: bool = False
    options: tuple[str, ...] = ()


_X86_FIRMWARES: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "oracle": ("-bios", str(ORACLE_FIRMWARE)),
    "echo": ("-bios", str(ECHO_FIRMWARE)),
}

_OPTIONAL_PCI: Final[Mapping[str, str]] = {
    "rng": "virtio-rng-pci",
    "watchdog": "i6300esb",
    "crypto": "virtio-crypto-pci",
}
_OPTIONAL_MMIO: Final[Mapping[str, str]] = {
    "rng": "virtio-rng-device",
    "crypto": "virtio-crypto-device",
}
_BACKENDS: Final[Mapping[str, tuple[str, str]]] = {
    "rng": ("rng", "rng-builtin"),
    "crypto": ("cryptodev", "cryptodev-backend-builtin"),
}
"""Optional device -> the property that names its backend, and the backend: both without a file of the host."""

UNMOVABLE_DEVICES: Final = frozenset({"crypto"})
"""QEMU: "State blocked by non-migratable device"; seen with 7.2."""

X86: Final = "qemu-system-x86_64"
SPARC: Final = "qemu-system-sparc"

FAMILIES: Final = (
    Family(
        program=X86,
        machines=re.compile(r"pc(-i440fx-\d+\.\d+)?"),
        ram="pc.ram",
        firmwares=_X86_FIRMWARES,
        generic_cpu=GENERIC_CPU,
        bus="pci.0",
        devices="pci",
        optional=_OPTIONAL_PCI,
        # A domain that put itself to sleep (ACPI S3) is neither running nor stopped: it would wake up behind a
        # suspend's back. So no domain can.
        options=("-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.disable_s4=1"),
    ),
    Family(
        program=X86,
        machines=re.compile(r"q35|pc-q35-\d+\.\d+(\.\d+)?"),
        ram="pc.ram",
        firmwares=_X86_FIRMWARES,
        generic_cpu=GENERIC_CPU,
        bus="pcie.0",
        devices="pci",
        optional=_OPTIONAL_PCI,
        options=("-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1"),
    ),
    Family(
        program=X86,
        machines=re.compile(r"microvm"),
        ram="microvm.ram",
        firmwares=_X86_FIRMWARES,
        generic_cpu=GENERIC_CPU,
        devices="device",
        optional=_OPTIONAL_MMIO,
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
    types: frozenset[str] = frozenset()
    """Of devices and backends among others."""

    def optional_devices(self, family: Family) -> frozenset[str]:
        """Those of ``OPTIONAL_DEVICES`` that domains of the family's machines get."""
        return frozenset(
            name
            for name, device in family.optional.items()
            if {device, *_BACKENDS.get(name, ())[1:]} <= self.types
        )


@frozen
class CpuChoice:
    """A CPU model of QEMU's; ``without``: features of it that are left out; ``of_the_host``: another one on each host."""

    name: str
    without: tuple[str, ...] = ()
    of_the_host: bool = False

    def __str__(self) -> str:
        return ",".join([self.name, *(f"-{feature}" for feature in self.without)])


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
    optional: tuple[str, ...] = ()
    """Those of the definition's optional devices that it gets."""


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


def find_machine(
    definition: DomainDefinition, catalogues: Mapping[str, Catalogue]
) -> tuple[Family, Catalogue]:
    """The definition's machine type here. Raises HypervisorError when there is none."""
    family = find_family(definition.machine)
    catalogue = catalogues.get(family.program) if family else None
    if family is None or catalogue is None or definition.machine not in catalogue.machines:
        known = sorted(set().union(*(c.aliases for c in catalogues.values()))) or ["none"]
        raise HypervisorError(
            f"this host's QEMU has no machine {definition.machine!r}",
            remedy=f"use one that it has, for example {', '.join(known)}",
        )
    return family, catalogue


def select(definition: DomainDefinition, catalogues: Mapping[str, Catalogue]) -> Selection:
    """Match the definition with what this host has. Raises HypervisorError saying what it has not."""
    family, catalogue = find_machine(definition, catalogues)
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
        optional=tuple(
            device
            for device in definition.optional_devices
            if device in catalogue.optional_devices(family)
        ),
    )


def _select_cpu(definition: DomainDefinition, family: Family, catalogue: Catalogue) -> str:
    """With ``enforce`` QEMU makes no domain whose CPU would lack anything: what runs has all of it, on every host."""
    choice = choose_cpu(definition, family, catalogue)
    return f"{choice},enforce" if choice else ""


def choose_cpu(
    definition: DomainDefinition, family: Family, catalogue: Catalogue
) -> CpuChoice | None:
    """None for the machine's own. Raises HypervisorError when this host does not have it."""
    if definition.cpu_arch == "generic":
        return CpuChoice(family.generic_cpu, GENERIC_WITHOUT) if family.generic_cpu else None
    if not family.generic_cpu:
        raise HypervisorError(
            f"machine {definition.machine} has one CPU only: set cpu-arch to generic"
        )
    if definition.cpu_arch == "native":
        return CpuChoice("host" if catalogue.accelerator == "kvm" else "max", of_the_host=True)
    if definition.cpu_arch in catalogue.cpus:
        return CpuChoice(definition.cpu_arch)
    raise HypervisorError(
        f"this host's QEMU has no CPU {definition.cpu_arch!r}",
        remedy=f"use generic, native, or a model that `{catalogue.program} -cpu help` lists",
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
        *_optional(selection),
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
        cache = CACHES[vdisk.cache]
        device = {
            "driver": f"virtio-blk-{family.devices}",
            "id": f"vdisk{index}",
            "drive": f"volume{index}",
            "bootindex": index,
            "write-cache": "on" if cache.write_cache else "off",
            **(STOPS_WHEN_IT_FAILS if vdisk.mpgroup else {}),
            **_place(family, VDISK_SLOT, index),
        }
        volume = build_volume(vdisk, disk, f"volume{index}")
        arguments += ["-blockdev", _json(volume), "-device", _json(device)]
    return arguments


def build_volume(vdisk: VirtualDisk, disk: Disk, node_name: str) -> Mapping[str, Any]:
    """A block node for a volume.

    Locks are on, always: with a volume on shared storage they are the second fence against two running copies.

    A receiving domain takes them when its state is installed, a source lets go of them when its state was retrieved
    and takes them again when it is resumed. Direct I/O, where the vdisk's cache asks for it, as far as the file system has
    it; where it has not, QEMU drops the page cache of the volume when it takes over (``drop-cache`` of its file driver).
    """
    cache = CACHES[vdisk.cache]
    return {
        "driver": "raw",
        "node-name": node_name,
        "read-only": vdisk.read_only,
        "cache": {"direct": cache.direct and disk.direct, "no-flush": cache.no_flush},
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
            "host_mtu": vnet.mtu,
            **_place(family, VNET_SLOT, index),
        }
        # No option ROM: its size differs between versions of QEMU, and nothing boots from a vnet.
        if family.devices == "pci":
            device["romfile"] = ""
        netdev = f"tap,id=tap{index},fd={tap},vhost=off"
        arguments += ["-netdev", netdev, "-device", _json(device)]
    return arguments


def _optional(selection: Selection) -> list[str]:
    """Each at a place of its own, whichever others there are."""
    family, arguments = selection.family, []
    for name in selection.optional:
        slot = OPTIONAL_SLOT + list(family.optional).index(name)
        place = {"bus": family.bus, "addr": f"{slot:x}.0"} if family.bus else {}
        device: dict[str, Any] = {"driver": family.optional[name], "id": name, **place}
        if name in _BACKENDS:
            link, backend = _BACKENDS[name]
            device[link] = f"{name}-backend"
            arguments += ["-object", _json({"qom-type": backend, "id": f"{name}-backend"})]
        arguments += ["-device", _json(device)]
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
