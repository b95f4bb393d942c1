"""A definition in words, for people: what it is made of, and how one differs from another."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from ldmd.definition import DomainDefinition, VirtualDisk, VirtualNetwork
from ldmd.sizes import format_size


@frozen(kw_only=True)
class Change:
    """``what``: as ``describe`` names it; ``before`` and ``after`` are None where it is not there."""

    what: str
    before: str | None
    after: str | None


def describe(definition: DomainDefinition) -> dict[str, str]:
    """Everything but the uuid: ``memory`` -> ``2GiB``, ``vdisk boot`` -> ``vol1@vds0, cache none``."""
    return dict(_describe(definition))


def _describe(definition: DomainDefinition) -> Iterator[tuple[str, str]]:
    yield "name", definition.name
    yield "hypervisor", definition.hypervisor
    yield "machine", definition.machine
    yield "firmware", definition.firmware
    yield "vcpus", str(definition.vcpus)
    yield "cpu-arch", definition.cpu_arch
    yield "memory", format_size(definition.memory_bytes)
    yield "huge-pages", definition.huge_pages
    yield "mig-allowed", "yes" if definition.mig_allowed else "no"
    yield "optional-devices", ", ".join(definition.optional_devices) or "none"
    for disk in definition.vdisks:
        yield f"vdisk {disk.name}", _describe_vdisk(disk)
    for net in definition.vnets:
        yield f"vnet {net.name}", _describe_vnet(net)
    for name, value in definition.variables:
        yield f"variable {name}", value


def _describe_vdisk(disk: VirtualDisk) -> str:
    words = [f"{disk.volume}@{disk.service}", f"cache {disk.cache}"]
    if disk.read_only:
        words.append("read-only")
    if disk.mpgroup:
        words.append(f"mpgroup {disk.mpgroup}")
    return ", ".join(words)


def _describe_vnet(net: VirtualNetwork) -> str:
    return f"{net.switch}, {net.mac}, mtu {net.mtu}"


def describe_changes(before: DomainDefinition, after: DomainDefinition) -> list[Change]:
    old, new = describe(before), describe(after)
    return [
        Change(what=what, before=old.get(what), after=new.get(what))
        for what in (old | new)
        if old.get(what) != new.get(what)
    ]
