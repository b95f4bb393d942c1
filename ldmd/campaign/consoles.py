"""Everything that a domain prints on its consoles, on both hosts, also of copies that are gone by now.

A copy's console file goes with the copy. So each is opened as soon as it is seen and read to its end later: what a
copy printed that should not have run is found that way. The texts are put together in the order in which the copies
came: they must be one count without a gap or a repeat (``ldmd/hypervisor/oracle.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import define, field

from ldmd.hypervisor.oracle import ConsoleReport, check_console

LINE_BYTES_MAX: Final = 64
READ_BYTES: Final = 64 * 1024


@define(eq=False)
class Console:
    """``start``: what lies before was looked at earlier, and ends where a line begins."""

    descriptor: int
    path: Path
    start: int = 0

    def read(self) -> str:
        """From ``start`` to the end. Raises OSError."""
        position = self.start
        pieces = []
        while piece := os.pread(self.descriptor, READ_BYTES, position):
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces).decode(errors="replace")

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.descriptor).st_size

    def pass_over(self) -> None:
        """What is there now was looked at; the last whole line stays, so that the next one is held against it."""
        end = self.size_bytes
        first = max(self.start, end - LINE_BYTES_MAX)
        tail = os.pread(self.descriptor, end - first, first)
        last_line_end = tail.rfind(b"\n")
        before = tail.rfind(b"\n", 0, max(last_line_end, 0))
        if before >= 0:
            self.start = first + before + 1


@define(eq=False)
class Consoles:
    """``paths``: where a copy's console can be, on either host."""

    paths: tuple[Path, ...]
    _seen: dict[tuple[int, int], Console] = field(factory=dict, init=False)

    def look(self) -> None:
        """Open the consoles that have come since. Must be called often while a copy may come and go."""
        for path in self.paths:
            try:
                status = path.stat()
                if (status.st_dev, status.st_ino) in self._seen:
                    continue
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue  # there is none, or none any more
            status = os.fstat(descriptor)
            self._seen[status.st_dev, status.st_ino] = Console(descriptor, path)

    def find(self, path: Path) -> Console | None:
        """The console that lies there now."""
        self.look()
        try:
            status = path.stat()
        except OSError:
            return None
        return self._seen.get((status.st_dev, status.st_ino))

    def check(self) -> ConsoleReport:
        """All that was printed since ``pass_over``."""
        return check_console("".join(console.read() for console in self._seen.values()))

    def pass_over(self, living: Console | None) -> None:
        """What was printed until now is done with; only the ``living`` copy goes on."""
        for key, console in list(self._seen.items()):
            if console is not living:
                os.close(console.descriptor)
                del self._seen[key]
        if living is not None:
            living.pass_over()

    def close(self) -> None:
        self.pass_over(None)

    def texts(self) -> Iterable[tuple[Path, str]]:
        """For a report of what is wrong."""
        return [(console.path, console.read()) for console in self._seen.values()]
