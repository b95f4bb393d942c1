"""Virtual disks: the volume that would serve each on the target, and whether it is the source's storage.

Facts of the source, by the definition's ``volume@service``: ``volumes`` has sizes, ``storage`` the rest. What the target saw
of its own volumes, and whether the source's proof holds, is in the view already (``ldmd/claims.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ldmd.checks.rules import ACTIVE, BOUND, EVERY, INACTIVE, CheckRule, Fault, Subject
from ldmd.claims import VolumeView
from ldmd.definition import VirtualDisk
from ldmd.volumes import DIRECT_CACHES

UPGRADE = "upgrade the source's manager"
"""A check that cannot be evaluated is a failed check."""


def _name(disk: VirtualDisk) -> str:
    return f"{disk.volume}@{disk.service}"


def _fact(s: Subject, disk: VirtualDisk, key: str) -> object:
    """What the source says of one of the vdisk's storage, unmeasured; None when it says nothing."""
    table = s.facts.get("storage")
    entry = table.get(_name(disk)) if isinstance(table, Mapping) else None
    return entry.get(key) if isinstance(entry, Mapping) else None


def _served(s: Subject) -> Iterator[tuple[VirtualDisk, VolumeView]]:
    """Vdisks that a volume here would serve: of the others ``volume-missing`` says all there is to say."""
    for disk in s.definition.vdisks:
        view = s.view.vdisks.get(disk.name, VolumeView())
        if view.name and not view.why:
            yield disk, view


def find_missing(s: Subject) -> Iterable[Fault]:
    for disk in s.definition.vdisks:
        view = s.view.vdisks.get(disk.name, VolumeView())
        if not view.name:
            group = f", nor another of the multipath group {disk.mpgroup}" if disk.mpgroup else ""
            yield Fault(
                disk.name,
                f"{s.view.host} has no volume {_name(disk)}{group}",
                f"add it to [vds.{disk.service}] on {s.view.host}",
            )
        elif view.why:
            yield Fault(
                disk.name,
                f"{s.view.host} cannot open the volume {view.why}",
                f"look at its path and permissions on {s.view.host}",
            )


def find_size(s: Subject) -> Iterable[Fault]:
    for disk, view in _served(s):
        there = s.fact_size("volumes", _name(disk))
        if view.size_bytes != there:
            yield Fault(
                disk.name,
                f"the volume {view.name} has {view.size_bytes} bytes on {s.view.host} and"
                f" {'an unknown number of' if there is None else there} at the source",
                "make both hosts serve the same storage under that name",
            )
        if _fact(s, disk, "format") != view.format:
            yield Fault(
                disk.name,
                f"the volume {view.name} is served as {view.format} on {s.view.host} and in another format,"
                " or in none that was said, at the source",
                UPGRADE,
            )


def find_options(s: Subject) -> Iterable[Fault]:
    for disk, view in _served(s):
        if view.read_only and not disk.read_only:
            yield Fault(
                disk.name,
                f"the volume {view.name} is read-only on {s.view.host}, and the vdisk is not",
                f"take read-only from it in the configuration of {s.view.host}",
            )
        if disk.mpgroup and view.group != disk.mpgroup:
            yield Fault(
                disk.name,
                f"the volume {view.name} is not in the multipath group {disk.mpgroup} on {s.view.host}",
                f"set mpgroup for it in the configuration of {s.view.host}",
            )
        direct = _fact(s, disk, "direct")
        if type(direct) is not bool:
            yield Fault(
                disk.name, "the source did not say whether its volume takes direct I/O", UPGRADE
            )
        elif direct and not view.direct and disk.cache in DIRECT_CACHES:
            yield Fault(
                disk.name,
                f"cache {disk.cache} bypasses the host's memory at the source, and the volume {view.name} on"
                f" {s.view.host} takes no direct I/O",
                "put it on a file system that does",
            )


def find_in_use(s: Subject) -> Iterable[Fault]:
    for disk in s.definition.vdisks:
        user = s.view.volumes_in_use.get((disk.service, disk.volume))
        if user is not None:
            yield Fault(
                disk.name,
                f"the volume {_name(disk)} is in use by {user} on {s.view.host}",
                f"unbind {user} on {s.view.host}, or take the volume away from it",
            )


def find_not_shared(s: Subject) -> Iterable[Fault]:
    for disk, view in _served(s):
        if not view.storage_same:
            yield Fault(
                disk.name,
                f"the volume {view.name} on {s.view.host} is not known to be the source's storage: {view.storage_why}",
                "a domain's storage must be shared: serve the same file or device on both hosts",
            )


def find_cache_unsafe(s: Subject) -> Iterable[Fault]:
    for disk in s.definition.vdisks:
        if disk.cache not in DIRECT_CACHES and not disk.read_only:
            yield Fault(
                disk.name,
                f"cache {disk.cache} keeps what the domain wrote in the source's memory, out of {s.view.host}'s sight",
                f"use cache {' or '.join(DIRECT_CACHES)}, or -f if the storage keeps the hosts' caches alike",
            )


def find_host_only(s: Subject) -> Iterable[Fault]:
    for disk in s.definition.vdisks:
        if _fact(s, disk, "host-only") is True:
            yield Fault(
                disk.name,
                f"the volume {_name(disk)} is the source's own (host-only)",
                "take the vdisk from the domain, or host-only from the volume if other hosts have it",
            )


RULES = (
    CheckRule(
        code="volume-missing",
        resource="vdisk",
        summary="the target has a volume of that name in a service of that name, or another of its multipath group, and can"
        " open it",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_missing,
    ),
    CheckRule(
        code="volume-size",
        resource="vdisk",
        summary="the volume has the same size and format on both hosts",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_size,
    ),
    CheckRule(
        code="volume-options",
        resource="vdisk",
        summary="the volume can be read, written and cached on the target as it is at the source, and is in the same"
        " multipath group",
        hard=ACTIVE,
        find=find_options,
    ),
    CheckRule(
        code="volume-in-use",
        resource="vdisk",
        summary="no bound or active domain of the target writes it",
        hard=ACTIVE | BOUND,
        find=find_in_use,
    ),
    CheckRule(
        code="storage-not-shared",
        resource="vdisk",
        summary="the volume on the target is the source's storage; the source's proof shows it",
        hard=ACTIVE | BOUND,
        find=find_not_shared,
    ),
    CheckRule(
        code="cache-unsafe",
        resource="vdisk",
        summary="its cache is `none` or `directsync`: nothing of shared storage is in one host's memory alone",
        hard=ACTIVE,
        forcible=True,
        find=find_cache_unsafe,
    ),
    CheckRule(
        code="host-only",
        resource="vdisk",
        summary="the volume is not marked `host-only` at the source: no other host has it",
        hard=EVERY,
        find=find_host_only,
    ),
)
