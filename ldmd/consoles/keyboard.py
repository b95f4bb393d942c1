"""What a user has typed and the domain has not taken: bounded, and kept while the domain moves."""

from __future__ import annotations

from typing import Final

import trio

from protocol.limits import CONSOLE_INPUT_WINDOW_BYTES

TYPED_BYTES_MAX: Final = CONSOLE_INPUT_WINDOW_BYTES


class Keyboard:
    def __init__(self) -> None:
        self.taken_bytes = 0
        """Since the session began; what was dropped counts."""
        self.enabled = True
        """Its user is the one who types; what others type is dropped."""
        self._typed = bytearray()
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._typed)

    async def put(self, data: bytes) -> None:
        """Waits for room."""
        while len(self._typed) >= TYPED_BYTES_MAX:
            await self._changed.wait()
        self.put_now(data)
        await trio.lowlevel.checkpoint()

    def put_now(self, data: bytes) -> None:
        """Of a sender that keeps to a window."""
        if self.enabled:
            self._typed += data
        else:
            self.taken_bytes += len(data)
        self._tell()

    def peek(self, start: int, size_bytes: int) -> bytes:
        return bytes(self._typed[start : start + size_bytes])

    def advance(self, size_bytes: int) -> None:
        """So many of the first bytes were taken."""
        del self._typed[:size_bytes]
        self.taken_bytes += size_bytes
        self._tell()

    def enable(self, enabled: bool, kept_bytes: int = 0) -> None:
        """Whether its user types now; if not, what waits is dropped, but for the first ``kept_bytes``."""
        self.enabled = enabled
        if not enabled:
            self.drop(kept_bytes)

    def drop(self, kept_bytes: int = 0) -> None:
        """Nobody will take what is here, but for the first ``kept_bytes``."""
        self.taken_bytes += max(0, len(self._typed) - kept_bytes)
        del self._typed[kept_bytes:]
        self._tell()

    async def wait_more(self, than_bytes: int = 0) -> None:
        """Until there is more than that."""
        while len(self._typed) <= than_bytes:
            await self._changed.wait()

    async def wait_change(self) -> None:
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
