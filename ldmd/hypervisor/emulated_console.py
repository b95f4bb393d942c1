"""The emulated machine's console: a 16550's data and line status registers, without interrupts.

What the domain prints is appended to console.log; what is typed waits in a bounded buffer until the domain reads it, and
is part of the domain's state meanwhile.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final

from ldmd import console_log

CONSOLE_NAME: Final = "console.log"
INPUT_BYTES_MAX: Final = 256
"""What a person types while a program looks elsewhere for a moment; a paste is taken at the domain's pace."""
TRIM_STEP_BYTES: Final = 1024 * 1024
"""The domain itself sees to it that it does not fill the host's disk: no manager may be there to do it."""

DATA, LINE_STATUS = 0, 5
DATA_READY: Final = 0x01
TRANSMITTER_EMPTY: Final = 0x60


def note(sentence: str) -> None:
    """Into hypervisor.log, if there is room."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


class Console:
    """Bytes that the domain prints are kept back for one slice at most.

    The processor's thread reads and writes the registers, the control thread types: each end of a deque is one
    thread's.
    """

    def __init__(self) -> None:
        self.sent_bytes = 0
        self._typed: collections.deque[int] = collections.deque()
        self._pending = bytearray()
        self._losing = False
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(CONSOLE_NAME, flags, 0o600)
        self._untrimmed_bytes = 0

    # ---- the domain's side ----------------------------------------------------------------------

    def write_register(self, _uc: Any, offset: int, _size: int, value: int, _data: Any) -> None:
        if offset == DATA:
            self._pending.append(value & 0xFF)

    def read_register(self, _uc: Any, offset: int, _size: int, _data: Any) -> int:
        if offset == LINE_STATUS:
            return TRANSMITTER_EMPTY | (DATA_READY if self._typed else 0)
        if offset == DATA and self._typed:
            return self._typed.popleft()
        return 0

    # ---- the host's side ------------------------------------------------------------------------

    def type(self, data: bytes) -> int:
        """How many of the first bytes there was room for."""
        taken = data[: max(0, INPUT_BYTES_MAX - len(self._typed))]
        self._typed.extend(taken)
        return len(taken)

    @property
    def typed(self) -> bytes:
        """What the domain has not read yet; of a stopped processor."""
        return bytes(self._typed)

    @typed.setter
    def typed(self, data: bytes) -> None:
        self._typed = collections.deque(data)

    def flush(self) -> None:
        """A console that cannot be written (disk full) loses its output; the domain goes on."""
        data, self._pending = self._pending, bytearray()
        self.sent_bytes += len(data)
        try:
            while data:
                count = os.write(self._descriptor, data)
                del data[:count]
                self._untrimmed_bytes += count
                self._losing = False
            if self._untrimmed_bytes > TRIM_STEP_BYTES:
                self._untrimmed_bytes = 0
                console_log.trim(Path(CONSOLE_NAME))
        except OSError as error:
            if not self._losing:
                note(f"console output is being lost: {error}")
            self._losing = True
