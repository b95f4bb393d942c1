"""A file of nothing beside the journal: room on the disk that is given free when the journal needs it.

A full disk must not keep a migration from being decided. So each one begins only with the reserve in place, and a
transaction that finds the disk full gives it free and is tried again.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen

log = logging.getLogger("ldmd.journal")

RESERVE_BYTES: Final = 1024 * 1024
"""A record takes a few pages of 4 KiB in the write-ahead log: enough to settle a hundred migrations."""


@frozen
class Reserve:
    path: Path

    def fill(self) -> None:
        """Idempotent. Raises OSError when there is no room for it; then none is taken."""
        with suppress(OSError):
            if self.path.stat().st_size == RESERVE_BYTES:
                return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        except OSError:
            self.path.unlink()
            raise
        finally:
            os.close(descriptor)

    def spend(self) -> bool:
        """Give the room free; False when there was none."""
        try:
            self.path.unlink()
        except OSError:
            return False
        log.warning("the disk is full: the journal lives on its reserve, %s", self.path)
        return True
