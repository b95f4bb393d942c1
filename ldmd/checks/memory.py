"""Memory: what the configuration allows, what is there now, and huge pages."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, CheckRule, Fault, Subject
from ldmd.measured import PAGE_BYTES
from ldmd.sizes import format_size
from protocol.limits import MIB


def find_no_memory(s: Subject) -> Iterable[Fault]:
    free = max(0, s.view.memory_free_bytes)
    if s.definition.memory_bytes > free:
        yield Fault(
            s.definition.name,
            f"it needs {format_size(s.definition.memory_bytes)} of memory, {s.view.host} has {format_size(free)} free",
            f"unbind a domain on {s.view.host}, or raise its [resources] memory",
        )


def find_not_available(s: Subject) -> Iterable[Fault]:
    """Whatever the configuration allows, and less what others were promised and have not taken yet."""
    if s.definition.huge_pages != "none":
        return
    available = s.view.measured.memory_available_bytes
    if available is None:
        yield Fault(
            s.definition.name,
            f"{s.view.host} cannot say how much memory it has available",
            f"look at /proc/meminfo on {s.view.host}",
        )
        return
    left = max(0, available - s.view.memory_promised_bytes) // MIB * MIB
    if s.definition.memory_bytes > left:
        yield Fault(
            s.definition.name,
            f"it needs {format_size(s.definition.memory_bytes)} of memory, {s.view.host} has {format_size(left)}"
            " available now",
            f"end something that takes memory on {s.view.host}, or lower its [resources] memory",
        )


def find_no_huge_pages(s: Subject) -> Iterable[Fault]:
    """All in one NUMA node: a domain of huge pages that is spread over several is slower than it was."""
    size, memory_bytes = s.definition.huge_pages, s.definition.memory_bytes
    if size == "none":
        return
    if memory_bytes % PAGE_BYTES[size]:
        yield Fault(
            s.definition.name,
            f"{format_size(memory_bytes)} is not a whole number of pages of {size}",
            f"give the domain a multiple of {size}, or set huge-pages to none",
        )
        return
    pages = s.view.measured.huge_pages.get(size)
    if pages is None:
        yield Fault(
            s.definition.name,
            f"{s.view.host} has no huge pages of {size}",
            "set huge-pages of the domain to none, or to a size that both hosts have",
        )
        return
    promised = s.view.huge_promised_bytes.get(size, 0)
    block = max(0, min(pages.largest_node_bytes, pages.free_bytes - promised))
    if memory_bytes > block:
        yield Fault(
            s.definition.name,
            f"it needs {format_size(memory_bytes)} in pages of {size}, the largest free block on {s.view.host}"
            f" has {format_size(block)}",
            f"reserve more of them on {s.view.host} (vm.nr_hugepages)",
        )


RULES = (
    CheckRule(
        code="memory",
        resource="memory",
        summary="enough of `[resources] memory` is free, with what is promised to others",
        hard=ACTIVE | BOUND,
        find=find_no_memory,
    ),
    CheckRule(
        code="memory-available",
        resource="memory",
        summary="the target's host has it available now, less what is promised and not taken yet",
        hard=ACTIVE | BOUND,
        find=find_not_available,
    ),
    CheckRule(
        code="huge-pages",
        resource="memory",
        summary="`huge-pages`: enough pages of that size are free in one NUMA node",
        hard=ACTIVE | BOUND,
        find=find_no_huge_pages,
    ),
)
