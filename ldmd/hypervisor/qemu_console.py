"""A QEMU domain's console: a file for what it prints, a FIFO for what is typed.

QEMU's chardev ``pipe`` opens two paths for reading and writing. The one for output is a plain file here: a file takes
everything at once, so a domain whose console nobody reads never waits (with a socket it would). The one for input is a
FIFO, which outlives the manager as the process does.

*No byte is left lying in the FIFO.* QEMU reads as much as the serial port has room for, also while the domain does not
run, and what it reads after the domain's state was retrieved is in no state: it would be lost when the domain moves. So a
call of ``write`` takes back what QEMU did not read, and whoever stops the domain takes it back before the state is
retrieved (``disable``). What was read by then is in the serial port, and moves with it.
"""

from __future__ import annotations

import array
import fcntl
import os
import termios
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from ldmd.errors import HypervisorError
from ldmd.hypervisor.qemu_command import CONSOLE_PIPE

CONSOLE_NAME: Final = "console.log"
INPUT_NAME: Final = CONSOLE_PIPE + ".in"
OUTPUT_NAME: Final = CONSOLE_PIPE + ".out"

PIECE_BYTES_MAX: Final = 4096
"""PIPE_BUF: written as a whole or not at all."""
PATIENCE_SECONDS: Final = 0.02
"""A domain that has read nothing for that long does not read now. A busy host may take that long for a byte: then it is
typed again, later."""
LOOK_SECONDS: Final = 0.001


def make_console(run_directory: Path) -> None:
    """Before the process is started. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    os.close(os.open(run_directory / CONSOLE_NAME, flags, 0o600))
    for name in (INPUT_NAME, OUTPUT_NAME):
        (run_directory / name).unlink(missing_ok=True)
    os.mkfifo(run_directory / INPUT_NAME, 0o600)
    (run_directory / OUTPUT_NAME).symlink_to(CONSOLE_NAME)


class ConsoleInput:
    """Holds no descriptor between two calls."""

    def __init__(self, run_directory: Path) -> None:
        self._path = run_directory / INPUT_NAME
        self._enabled = False
        self._returned_bytes = 0
        """What was taken back of what the call of ``write`` that is under way has written."""

    def enable(self) -> None:
        """The domain runs."""
        self._enabled = True

    def disable(self) -> None:
        """The domain has stopped; nothing more is typed, and what QEMU has not read is taken back."""
        self._enabled = False
        # None of an earlier manager's domains has one; and whatever else is wrong must not keep a domain from being
        # suspended: the keys of the last milliseconds may be lost then.
        with suppress(OSError):
            descriptor = self._open()
            try:
                self._take_back(descriptor)
            finally:
                os.close(descriptor)

    async def write(self, data: bytes) -> int:
        """How many of the first bytes QEMU has read. Raises HypervisorError."""
        if not (data and self._enabled):
            await trio.lowlevel.checkpoint()
            return 0
        try:
            descriptor = self._open()
        except FileNotFoundError:
            raise HypervisorError(
                "an earlier release of the manager started this domain: nothing can be typed on its console",
                remedy="it can when the domain was stopped and started again, or has moved",
            ) from None
        try:
            if _waiting_bytes(descriptor):  # of a manager that was killed while it typed
                await trio.sleep(PATIENCE_SECONDS)
                return 0
            self._returned_bytes = 0
            written_bytes = os.write(descriptor, data[:PIECE_BYTES_MAX])
            try:
                await self._wait_read(descriptor)
            finally:
                self._take_back(descriptor)
            return written_bytes - self._returned_bytes
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        # for both: opening never waits for QEMU, and writing never raises SIGPIPE
        return os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _take_back(self, descriptor: int) -> None:
        with suppress(BlockingIOError):
            while taken := os.read(descriptor, PIECE_BYTES_MAX):
                self._returned_bytes += len(taken)

    async def _wait_read(self, descriptor: int) -> None:
        """Until QEMU has read it all, or nothing for PATIENCE_SECONDS, or the domain was stopped."""
        before, since = -1, trio.current_time()
        while self._enabled and (left := _waiting_bytes(descriptor)):
            now = trio.current_time()
            if left != before:
                before, since = left, now
            elif now - since > PATIENCE_SECONDS:
                return
            await trio.sleep(LOOK_SECONDS)
        await trio.lowlevel.checkpoint()


def _waiting_bytes(descriptor: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]
