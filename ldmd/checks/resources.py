"""Memory, virtual CPUs, and room in the target's own limits."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, EVERY, CheckRule, Fault, Subject
from ldmd.sizes import format_size


def find_no_memory(s: Subject) -> Iterable[Fault]:
    free = max(0, s.view.memory_free_bytes)
    if s.definition.memory_bytes > free:
        yield Fault(
            s.definition.name,
            f"it needs {format_size(s.definition.memory_bytes)} of memory, {s.view.host} has {format_size(free)} free",
            f"unbind a domain on {s.view.host}, or raise its [resources] memory",
        )


def find_no_vcpus(s: Subject) -> Iterable[Fault]:
    free = max(0, s.view.vcpus_free)
    if s.definition.vcpus > free:
        yield Fault(
            s.definition.name,
            f"it needs {s.definition.vcpus} virtual CPUs, {s.view.host} has {free} free",
            f"unbind a domain on {s.view.host}, or raise its [resources] vcpus",
        )


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


RULES = (
    CheckRule(code="memory", resource="memory", hard=ACTIVE | BOUND, find=find_no_memory),
    CheckRule(code="vcpus", resource="cpu", hard=ACTIVE | BOUND, find=find_no_vcpus),
    CheckRule(code="limits", resource="host", hard=EVERY, find=find_no_room),
    CheckRule(code="incoming", resource="host", hard=EVERY, find=find_too_many_incoming),
)
