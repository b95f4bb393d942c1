"""How many transactions there must be: a second, tiny file beside the journal that says so.

SQLite takes a write-ahead log whose end is damaged for one whose last transactions were never committed, and goes on from an
older state. For a journal of decisions that is the worst there is: a source would resume what it has handed over. So its
transactions are counted here too, each when it is on disk and before anything is done about it. A journal with fewer
transactions than were counted is damaged.

The file is overwritten in place: 24 bytes, the count and the digest of it. It comes into being whole, under another name: a
witness without its 24 bytes is a damaged one, and never one that was only begun.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import xxhash
from attrs import frozen

COUNT_BYTES: Final = 8


@frozen
class Witness:
    path: Path

    def read(self) -> int:
        """How many transactions there were; 0 when there is no file. Raises OSError, ValueError for what is no count."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        count, digest = content[:COUNT_BYTES], content[COUNT_BYTES:]
        if digest != xxhash.xxh3_128_digest(count):
            raise ValueError(f"{self.path} is not what was written")
        return int.from_bytes(count, "big")

    def write(self, count: int) -> None:
        """On disk when it returns. Raises OSError."""
        new = not self.path.exists()
        path = self.path.with_name(self.path.name + ".new") if new else self.path
        content = count.to_bytes(COUNT_BYTES, "big")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, content + xxhash.xxh3_128_digest(content), 0)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            path.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
