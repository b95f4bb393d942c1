"""The terminal of a console session: raw and restored, its keys and their escapes, its output."""

from __future__ import annotations

import contextlib
import enum
import os
import termios
import tty
from collections.abc import Iterator
from typing import Final

import trio

READ_BYTES: Final = 4096


class Escape(enum.Enum):
    LEAVE = "."
    HELP = "?"


class Keys:
    """Finds the escapes, which begin with a tilde at the start of a line, as in the consoles of LDoms and in ssh."""

    def __init__(self) -> None:
        self._line_begins = True
        self._tilde = False

    def feed(self, data: bytes) -> list[bytes | Escape]:
        """What to type, and what to do, in order. ``~~`` is one tilde."""
        found: list[bytes | Escape] = []
        typed = bytearray()
        escapes = {ord(e.value): e for e in Escape}
        for key in data:
            if self._tilde:
                self._tilde = False
                if key in escapes:
                    if typed:
                        found.append(bytes(typed))
                        typed.clear()
                    found.append(escapes[key])
                    self._line_begins = True
                    continue
                typed += b"~"
                if key == ord("~"):
                    self._line_begins = False
                    continue
            elif self._line_begins and key == ord("~"):
                self._tilde = True
                continue
            typed.append(key)
            self._line_begins = key in b"\r\n"
        if typed:
            found.append(bytes(typed))
        return found


@contextlib.contextmanager
def raw_terminal(descriptor: int) -> Iterator[bool]:
    """Every key goes to the domain, also Ctrl-C; as before on every way out. False when it is no terminal."""
    if not os.isatty(descriptor):
        yield False
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


async def read_keys(descriptor: int) -> bytes:
    """Empty at the end. Raises OSError."""
    while True:
        try:
            await trio.lowlevel.wait_readable(descriptor)
        except PermissionError:  # a plain file, which is always readable
            await trio.lowlevel.checkpoint()
        try:
            return os.read(descriptor, READ_BYTES)
        except BlockingIOError:  # somebody shares it, and was faster
            continue


async def write_output(descriptor: int, data: bytes) -> None:
    """Waits as long as the terminal does. Raises OSError."""

    def write() -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]

    await trio.to_thread.run_sync(write, abandon_on_cancel=True)
