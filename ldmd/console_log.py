"""Consoles of domains grow for ever; the disk does not. What is old of a console's file becomes a hole.

The domain's process goes on appending where it is: no rename, nothing lost in between, offsets stay what they were.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from protocol.limits import MIB

ALLOCATED_BYTES_MAX: Final = 16 * MIB
KEPT_BYTES: Final = 1 * MIB

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
"""fallocate(2); Python offers posix_fallocate alone."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def trim(path: Path) -> bool:
    """Give back what is older than the last MiB once a console takes more than 16; true when it did. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_blocks * 512 <= ALLOCATED_BYTES_MAX:
            return False
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(descriptor, mode, 0, max(status.st_size - KEPT_BYTES, 1)):
            raise OSError(ctypes.get_errno(), f"{path}: cannot punch a hole")
        return True
    finally:
        os.close(descriptor)
