"""The QEMU Machine Protocol without I/O: bytes in, messages out; a command in, bytes out.

Lines of JSON, as docs/interop/qmp-spec of QEMU says: first a greeting, then for every command one reply that carries
the command's id, and events in between at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field, frozen

LINE_BYTES_MAX: Final = 1024 * 1024
"""One line from QEMU. The largest seen is the answer to query-cpu-definitions: 90 KB."""

ERROR_TEXT_MAX: Final = 1000
"""Characters kept of a sentence of QEMU's: it ends up in logs and in findings for the peer."""


class QmpFault(Exception):
    """What came is not QMP: what the command did is unknown. Nothing more can be read from this stream."""


@frozen(kw_only=True)
class Greeting:
    """``version``: major, minor, micro."""

    version: tuple[int, ...]


@frozen(kw_only=True)
class Event:
    name: str
    data: Mapping[str, Any]


@frozen(kw_only=True)
class Reply:
    command_id: int
    value: Any


@frozen(kw_only=True)
class ErrorReply:
    """``sentence`` is QEMU's ``desc``. ``command_id`` is None when QEMU could not read the command."""

    command_id: int | None
    error_class: str
    sentence: str


Message = Greeting | Event | Reply | ErrorReply


def encode_command(name: str, arguments: Mapping[str, Any], command_id: int) -> bytes:
    command: dict[str, Any] = {"execute": name, "id": command_id}
    if arguments:
        command["arguments"] = dict(arguments)
    return json.dumps(command, separators=(",", ":")).encode() + b"\n"


@define(eq=False)
class QmpCodec:
    """One connection's incoming side. ``receive_bytes``, then ``next_message`` until it gives None."""

    line_bytes_max: int = LINE_BYTES_MAX
    _buffer: bytearray = field(factory=bytearray, init=False)
    _searched_bytes: int = field(default=0, init=False)

    def receive_bytes(self, data: bytes) -> None:
        self._buffer += data

    def next_message(self) -> Message | None:
        """The next message that is whole, or None. Raises QmpFault."""
        while True:
            end = self._buffer.find(b"\n", self._searched_bytes)
            length = len(self._buffer) if end < 0 else end
            if length > self.line_bytes_max:
                raise QmpFault(f"a line of more than {self.line_bytes_max} bytes")
            if end < 0:
                self._searched_bytes = length
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched_bytes = 0
            if line.strip():
                return parse_line(line)


def parse_line(line: bytes) -> Message:
    """One line -> one message. Raises QmpFault."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QmpFault(f"a line that is not JSON: {line[:80]!r}") from error
    if isinstance(document, dict):
        for key, parse in _PARSERS.items():
            if key in document:
                try:
                    return parse(document)
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise QmpFault(f"a broken {key} message: {line[:80]!r}") from error
    raise QmpFault(f"a message of no known kind: {line[:80]!r}")


def _parse_greeting(document: Mapping[str, Any]) -> Greeting:
    return Greeting(version=parse_version(document["QMP"]["version"]))


def parse_version(version: Mapping[str, Any]) -> tuple[int, ...]:
    """``version`` of the greeting, or the answer to query-version. Raises KeyError, TypeError, ValueError."""
    numbers = version["qemu"]
    return tuple(int(numbers[part]) for part in ("major", "minor", "micro"))


def _parse_event(document: Mapping[str, Any]) -> Event:
    return Event(name=str(document["event"]), data=dict(document.get("data") or {}))


def _parse_reply(document: Mapping[str, Any]) -> Reply:
    return Reply(command_id=int(document["id"]), value=document["return"])


def _parse_error(document: Mapping[str, Any]) -> ErrorReply:
    command_id = document.get("id")
    return ErrorReply(
        command_id=None if command_id is None else int(command_id),
        error_class=str(document["error"]["class"]),
        sentence=str(document["error"]["desc"])[:ERROR_TEXT_MAX],
    )


_PARSERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Message]]] = {
    "QMP": _parse_greeting,
    "return": _parse_reply,
    "error": _parse_error,
    "event": _parse_event,
}
