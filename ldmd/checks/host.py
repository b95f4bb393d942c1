"""The target host: its own limits, and room for its records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ldmd.checks.rules import EVERY, CheckRule, Fault, Subject
from ldmd.sizes import format_size
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
    if s.view.incoming_max == 0:
        yield Fault(
            s.view.host,
            f"{s.view.host} receives no migrations",
            "raise [resources] incoming-max there",
        )


def find_too_many_incoming(s: Subject) -> Iterable[Fault]:
    """Of its own code: it passes by itself, so the source's queue waits for it (``ldmd/outgoing.py``)."""
    if s.view.incoming_free <= 0 < s.view.incoming_max:
        yield Fault(
            s.view.host,
            f"{s.view.host} receives as many migrations as it may at once ({s.view.incoming_max})",
            "a migration waits for its turn by itself; or raise [resources] incoming-max there",
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
        summary="the target's limits leave room: `domains-max`, and an `incoming-max` above 0",
        hard=EVERY,
        find=find_no_room,
    ),
    CheckRule(
        code="incoming",
        resource="host",
        summary="the target receives fewer migrations than its `incoming-max`; one that finds as many waits in its queue",
        hard=EVERY,
        find=find_too_many_incoming,
    ),
    CheckRule(
        code="disk-space",
        resource="host",
        summary="1 MiB of room in each of the target's state and run directories",
        hard=EVERY,
        find=find_disk_full,
    ),
)
