"""Addresses of unix sockets, whatever the length of their paths."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SOCKET_PATH_BYTES_MAX: Final = 107
"""``sun_path`` of unix(7) has 108 bytes, one of them the closing zero."""


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """A unix socket's address for ``path``, however long: by way of its folder's descriptor.

    Raises OSError when the folder cannot be opened.
    """
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
