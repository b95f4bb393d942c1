r"""The oracle: a firmware that tells, from a stopped domain's memory and console, whether its state
moved to the bit.

Every hypervisor ships one. The rules are the same for each, so one checker serves all:

1. The *counted pages* are the 4096-byte pages of the RAM region in the layout's ranges, all that
   the program may write freely, going up. For ever, it visits them in turn from the lowest to the
   highest and begins again.
2. A visit does, in this order: write the page's *word* (its own address: ``word_base`` plus the
   page's offset in the region; ``word_bytes`` bytes in ``byte_order`` at ``word_offset`` in the
   page), then increment the *byte* at ``byte_offset`` in the page, modulo 256, with one store. RAM
   is zero before the first visit.
3. After every so many pages (for 20 to 200 lines a second) it prints a line ``oracle NUMBER\n`` to
   its console: NUMBER is decimal without leading zeros and grows by one from line to line, starting
   anywhere, without end. ``\r`` beside ``\n`` does not matter, nor do other lines before the first
   of these; after the first there is nothing else.

So on a stopped domain, going up the pages, each byte equals the one before or is one less (modulo
256), with at most one such edge; every word is right, but for pages above the edge of the first
pass, which are untouched. A page that was lost, stale, torn or misplaced breaks that. A number that
is missing or there twice on the console means that instructions were lost or ran twice.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

from attrs import frozen

from ldmd.definition import DomainDefinition
from ldmd.hypervisor.driver import DomainProcess, Hypervisor, RunStatus

PAGE_BYTES: Final = 4096
LINE: Final = re.compile(r"oracle (0|[1-9][0-9]{0,19})")


@frozen(kw_only=True)
class OracleLayout:
    """Where the counted pages are and what lies in each.

    ``region``: name of the RAM region. ``ranges``: (first, end) offsets in the region, multiples of
    4096, going up; an end of None is the region's end. ``word_bytes`` is 4 or 8; ``word_offset`` is
    a multiple of it.
    """

    region: str
    ranges: tuple[tuple[int, int | None], ...]
    word_base: int = 0
    word_offset: int = 0
    word_bytes: Literal[4, 8] = 8
    byte_order: Literal["little", "big"] = "little"
    byte_offset: int = 8


@frozen(kw_only=True)
class OracleReport:
    """``edges``: steps from one page to the next where the byte changes. ``pages``: counted pages
    looked at. ``visited``: how many of them have their word; fewer than ``pages`` in the first
    pass, and then what was lost above the edge cannot be seen. A domain that never ran is not ok.
    """

    ok: bool
    edges: int
    pages: int
    visited: int
    sentence: str


@frozen(kw_only=True)
class ConsoleReport:
    """``first`` and ``last``: numbers of the first and last whole line, None without any (not
    contiguous then).
    """

    contiguous: bool
    first: int | None
    last: int | None
    lines: int
    sentence: str


def check_memory(ram: memoryview | mmap.mmap, layout: OracleLayout) -> OracleReport:
    """Rules 1 and 2 on the region's bytes (of a stopped domain). The view is released before it
    returns.
    """
    with memoryview(ram) as view, view.cast("B") as octets:
        counts = b"".join(
            bytes(octets[a + layout.byte_offset : b : PAGE_BYTES])
            for a, b in _ranges(len(octets), layout)
        )
        words = array(_word_code(layout))
        for a, b in _ranges(len(octets), layout):
            words.frombytes(_words(octets[a:b], layout))
    if layout.byte_order != sys.byteorder:
        words.byteswap()
    expected = array(_word_code(layout), _addresses(len(ram), layout))
    pages = len(counts)
    edges = _count_edges(counts)
    fault = _memory_fault(counts, words, expected, edges)
    return OracleReport(
        ok=fault is None,
        edges=edges,
        pages=pages,
        visited=_count_visited(words, expected),
        sentence=fault or f"{pages} pages are as they must be",
    )


def check_console(text: str, follows: str = "") -> ConsoleReport:
    """Rule 3 on the console of a domain: ``follows`` is what the source printed, ``text`` what the
    target did.

    The two are put together before they are looked at, since a migration may cut a line in two; an
    unfinished last line must be the beginning of the right one.
    """
    *whole, rest = (follows + text).replace("\r", "").split("\n")
    first: int | None = None
    last: int | None = None
    lines = 0
    for line in whole:
        match = LINE.fullmatch(line)
        if match is None and first is None:
            continue
        if match is None or (last is not None and int(match[1]) != last + 1):
            return ConsoleReport(
                contiguous=False,
                first=first,
                last=last,
                lines=lines,
                sentence=f"after 'oracle {last}' comes {line[:80]!r}",
            )
        last = int(match[1])
        first = last if first is None else first
        lines += 1
    if last is None:
        return ConsoleReport(
            contiguous=False,
            first=None,
            last=None,
            lines=0,
            sentence="the console has no whole line",
        )
    if not f"oracle {last + 1}".startswith(rest):
        sentence = f"after 'oracle {last}' begins {rest[:80]!r}"
        return ConsoleReport(
            contiguous=False, first=first, last=last, lines=lines, sentence=sentence
        )
    sentence = f"{lines} lines from {first} to {last}"
    return ConsoleReport(contiguous=True, first=first, last=last, lines=lines, sentence=sentence)


@frozen(kw_only=True)
class DomainReport:
    """``status``: what the domain was when it was found."""

    status: RunStatus
    memory: OracleReport
    console: ConsoleReport

    @property
    def ok(self) -> bool:
        return self.memory.ok and self.console.contiguous


async def examine_domain(
    hypervisor: Hypervisor,
    definition: DomainDefinition,
    run_directory: Path,
    layout: OracleLayout,
    *,
    follows: str = "",
) -> DomainReport | None:
    """Adopt the domain that lives there, check it suspended, and leave it as it was found; None
    when none lives. ``follows`` is what it printed on its hosts before. Raises what the driver
    raises.
    """
    domain = await hypervisor.adopt(definition, run_directory)
    if domain is None:
        return None
    try:
        status = await domain.status()
        await domain.suspend()
        try:
            memory = examine_memory(domain, layout)
            console = check_console(read_console(domain), follows)
        finally:
            if status is RunStatus.RUNNING:
                await domain.resume()
    finally:
        await domain.aclose()
    return DomainReport(status=status, memory=memory, console=console)


def examine_memory(domain: DomainProcess, layout: OracleLayout) -> OracleReport:
    """``check_memory`` on a suspended domain's RAM."""
    descriptors = domain.open_ram()
    try:
        index = [region.name for region in domain.regions].index(layout.region)
        size_bytes = domain.regions[index].size_bytes
        with mmap.mmap(descriptors[index], size_bytes, prot=mmap.PROT_READ) as ram:
            return check_memory(ram, layout)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def read_console(domain: DomainProcess) -> str:
    """All that the domain printed on this host; bytes that are no UTF-8 become U+FFFD."""
    try:
        return domain.console_path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _ranges(size_bytes: int, layout: OracleLayout) -> Iterator[tuple[int, int]]:
    for first, end in layout.ranges:
        yield first, size_bytes if end is None else min(end, size_bytes)


def _addresses(size_bytes: int, layout: OracleLayout) -> Iterator[int]:
    for first, end in _ranges(size_bytes, layout):
        yield from range(layout.word_base + first, layout.word_base + end, PAGE_BYTES)


def _word_code(layout: OracleLayout) -> str:
    return {4: "I", 8: "Q"}[layout.word_bytes]


def _words(octets: memoryview, layout: OracleLayout) -> bytes:
    words = octets.cast(_word_code(layout))  # type: ignore[call-overload]
    return bytes(words[layout.word_offset // layout.word_bytes :: PAGE_BYTES // layout.word_bytes])


def _count_edges(counts: bytes) -> int:
    """How often the byte changes from one page to the next."""
    return sum(below != above for below, above in pairwise(counts))


def _memory_fault(counts: bytes, words: array[int], expected: array[int], edges: int) -> str | None:
    """The first broken rule in words, or None."""
    if not counts:
        return "the region has no counted page"
    head = len(counts) - len(counts.lstrip(counts[:1]))
    if edges:
        below, above = counts[head - 1], counts[head]
        if above != (below - 1) % 256:
            return f"the byte steps from {below} to {above} at address {expected[head]:#x}"
        if edges > 1:
            first = expected[head]
            return f"the byte changes {edges} times from page to page, first at address {first:#x}"
    if words == expected:
        return None
    visited = _count_visited(words, expected)
    # In the first pass the pages above the edge are untouched; the last one visited may have its
    # word and not its byte yet.
    untouched = not any(counts[visited:]) and not any(words[visited:])
    if visited and untouched and counts[: visited - 1] == b"\x01" * (visited - 1):
        return None
    return f"the page at address {expected[visited]:#x} holds the word {words[visited]:#x}"


def _count_visited(words: array[int], expected: array[int]) -> int:
    """How many pages from the lowest up have their word."""
    if words == expected:
        return len(words)
    return next(
        i for i, (word, address) in enumerate(zip(words, expected, strict=True)) if word != address
    )
