"""Lines of JSON on the control socket, for both of its ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

from attrs import define, field

from ldmd.errors import LdmdError

RECEIVE_BYTES: Final = 64 * 1024


class Received(Protocol):
    """The half of a stream that lines come out of."""

    async def receive_some(self, max_bytes: int, /) -> bytes | bytearray: ...


class LineTooLong(Exception):
    """A line passed the bound; the connection cannot go on."""


@define(eq=False)
class LineReader:
    """Lines out of a stream, each at most ``line_bytes_max`` long without its newline."""

    stream: Received
    line_bytes_max: int
    ended: bool = field(default=False, init=False)
    _buffer: bytearray = field(factory=bytearray, init=False)
    _searched: int = field(default=0, init=False)

    @property
    def full(self) -> bool:
        return len(self._buffer) > self.line_bytes_max

    async def receive_more(self) -> None:
        """Wait for bytes or the end. Raises what the stream raises."""
        received = await self.stream.receive_some(RECEIVE_BYTES)
        self._buffer += received
        self.ended = not received

    async def next_line(self) -> bytes | None:
        """None at the end; bytes without a newline before it do not count. Raises LineTooLong."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self.full:
                raise LineTooLong
            if self.ended:
                return None
            await self.receive_more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        if len(line) > self.line_bytes_max:
            raise LineTooLong
        return line


def encode_line(document: Mapping[str, Any]) -> bytes:
    """Raises TypeError or ValueError for what JSON does not have."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def error_document(error: LdmdError) -> dict[str, Any]:
    return {
        "error": {
            "code": error.code,
            "sentence": error.sentence,
            "remedy": error.remedy,
            "exit_status": error.exit_status,
            "facts": error.facts,
        }
    }
