"""The target host: its own limits, and room for its records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ldmd.checks.rules import EVERY, CheckRule, Fault, Subject
from ldmd.definition import format_size
from protocol.limits import MIB

DISK_BYTES_MIN: Final = MIB
"""A definition has 20 KiB, a migration's records some more, a run directory's files too: never less is taken for enough."""


def find_no_room(s: Subject) -> Iterable[Fault]:
    if s.view.domains_free <= 0:
        yield Fault(
            s.view.host,
            f"{s.view.host} has as many domains as it may have",
            "raise [resources] domains-max there",
        )
    if s.view.incoming_free <= 0:
        yield Fault(
            s.view.host,
            f"{s.view.host} receives as many migrations as it may at once",
            "wait until one has ended, or raise [resources] incoming-max there",
        )


def find_disk_full(s: Subject) -> Iterable[Fault]:
    for directory, free in s.view.measured.disk_free_bytes.items():
        if free is None or free < DISK_BYTES_MIN:
            left = "an unknown amount" if free is None else f"{free // 1024}KiB"
            yield Fault(
                s.view.host,
                f"{s.view.host} has {left} of room in {directory}; {format_size(DISK_BYTES_MIN)} is the least for the"
                " definition and its records",
                f"make room there, or let the manager of {s.view.host} write to it",
            )


RULES = (
    CheckRule(
        code="limits",
        resource="host",
        summary="the target's limits leave room: `domains-max`, `incoming-max`",
        hard=EVERY,
        find=find_no_room,
    ),
    CheckRule(
        code="disk-space",
        resource="host",
        summary="1 MiB of room in each of the target's state and run directories",
        hard=EVERY,
        find=find_disk_full,
    ),
)
