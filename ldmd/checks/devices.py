"""Virtual disks, by name."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, INACTIVE, CheckRule, Fault, Subject


def find_volume_missing(s: Subject) -> Iterable[Fault]:
    for disk in s.definition.vdisks:
        volumes = s.view.volumes.get(disk.service)
        name = f"{disk.volume}@{disk.service}"
        if volumes is None or disk.volume not in volumes:
            yield Fault(
                disk.name,
                f"{s.view.host} has no volume {name}",
                f"add it to [vds.{disk.service}] on {s.view.host}",
            )
        elif volumes[disk.volume] is None:
            yield Fault(
                disk.name,
                f"{s.view.host} cannot open the volume {name}",
                f"look at its path and permissions on {s.view.host}",
            )


def find_volume_size(s: Subject) -> Iterable[Fault]:
    for disk in s.definition.vdisks:
        name = f"{disk.volume}@{disk.service}"
        here = s.view.volumes.get(disk.service, {}).get(disk.volume)
        there = s.fact_size("volumes", name)
        if here is not None and here != there:
            yield Fault(
                disk.name,
                f"the volume {name} has {here} bytes on {s.view.host} and {there or 'an unknown number of'} at the source",
                "make both hosts serve the same storage under that name",
            )


def find_volume_in_use(s: Subject) -> Iterable[Fault]:
    for disk in s.definition.vdisks:
        user = s.view.volumes_in_use.get((disk.service, disk.volume))
        if user is not None:
            yield Fault(
                disk.name,
                f"the volume {disk.volume}@{disk.service} is in use by {user} on {s.view.host}",
                f"unbind {user} on {s.view.host}, or take the volume away from it",
            )


RULES = (
    CheckRule(
        code="volume-missing",
        resource="vdisk",
        summary="the target has a volume of that name in a service of that name, and can open it",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_volume_missing,
    ),
    CheckRule(
        code="volume-size",
        resource="vdisk",
        summary="the volume has the same size on both hosts",
        hard=ACTIVE | BOUND,
        find=find_volume_size,
    ),
    CheckRule(
        code="volume-in-use",
        resource="vdisk",
        summary="no bound or active domain of the target writes it",
        hard=ACTIVE | BOUND,
        find=find_volume_in_use,
    ),
)
