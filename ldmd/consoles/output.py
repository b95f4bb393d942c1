"""What a domain has printed during one stay on this host: a file that grows, read from any position.

The descriptor is held, so the end of it can be read after the domain has gone and its run directory with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio
from attrs import define

from protocol.limits import CONSOLE_DATA_BYTES_MAX

REPLAY_BYTES_MAX: Final = 64 * 1024
READERS_MAX: Final = 4
"""Threads that read consoles, so that they cannot use up those of the journal."""

_readers = trio.CapacityLimiter(READERS_MAX)


@define(eq=False)
class ConsoleFile:
    descriptor: int

    async def read(self, position: int) -> tuple[int, bytes]:
        """Where the next output is, and some of it; empty when there is none yet. What is gone is passed over.

        Raises OSError.
        """
        if position >= os.fstat(self.descriptor).st_size:
            await trio.lowlevel.checkpoint()
            return position, b""
        return await trio.to_thread.run_sync(self._read, position, limiter=_readers)

    def _read(self, position: int) -> tuple[int, bytes]:
        try:
            position = os.lseek(self.descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return position, b""  # all that is left is a hole: it was trimmed just now
        return position, os.pread(self.descriptor, CONSOLE_DATA_BYTES_MAX, position)

    async def find_last_lines(self, lines: int) -> int:
        """The position from which on there are so many lines, the unfinished one counted. Raises OSError."""
        return await trio.to_thread.run_sync(self._find_last_lines, lines, limiter=_readers)

    def _find_last_lines(self, lines: int) -> int:
        end = os.fstat(self.descriptor).st_size
        first = max(0, end - REPLAY_BYTES_MAX)
        tail = os.pread(self.descriptor, end - first, first)
        at = len(tail)
        for _ in range(lines):
            if at < 0:
                return first
            at = tail.rfind(b"\n", 0, at)
        return first + at + 1 if lines else end


@contextlib.contextmanager
def open_console(path: Path) -> Iterator[ConsoleFile]:
    """Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield ConsoleFile(descriptor)
    finally:
        os.close(descriptor)
