"""Mistakes to plant in the code under test: what finds them finds others.

Each stands for a class of them: a crash that only four bytes in a row bring about, a wrong value, a hang, a length that is
believed, a limit that is off by one, a frame that is not looked at whole, a session that goes on. A process that fuzzes a
planted mistake instruments this module as it does the protocol, so it is led there as it would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

from attrs import evolve, frozen

from protocol import codec, connection, events, frames
from protocol import messages as m
from protocol.errors import RemoteProtocolError
from protocol.session import SessionAction

Body = bytes | memoryview


@frozen
class Plant:
    name: str
    target: str
    """That must find it."""
    changes: Callable[[], list[tuple[object, str, Any]]]
    """Owner, attribute, what stands there instead."""


def _crash() -> list[tuple[object, str, Any]]:
    decode = codec.decode

    def planted(body: Body) -> m.Message:
        if bytes(body[-4:]) == b"ldmd":
            raise KeyError("planted")
        return decode(body)

    return [(codec, "decode", planted)]


def _wrong_value() -> list[tuple[object, str, Any]]:
    decode = codec.decode

    def planted(body: Body) -> m.Message:
        message = decode(body)
        if isinstance(message, m.Digest) and message.chunks >= 2**32:
            return evolve(message, chunks=message.chunks % 2**32)
        return message

    return [(codec, "decode", planted)]


def _hang() -> list[tuple[object, str, Any]]:
    decode = codec.decode

    def planted(body: Body) -> m.Message:
        while len(body) > 2 and body[0] == 0x85 and body[-1] == 0x80:
            pass
        return decode(body)

    return [(codec, "decode", planted)]


def _believed_length() -> list[tuple[object, str, Any]]:
    decode = codec.decode

    def planted(body: Body) -> m.Message:
        if len(body) >= 3 and body[0] == 0xDE:
            _room = [None] * int.from_bytes(body[1:3])
        return decode(body)

    return [(codec, "decode", planted)]


def _one_byte_more() -> list[tuple[object, str, Any]]:
    read = frames.FrameReader._read_header

    def planted(reader: frames.FrameReader) -> Any:
        reader.body_bytes_max += 1
        try:
            return read(reader)
        finally:
            reader.body_bytes_max -= 1

    return [(frames.FrameReader, "_read_header", planted)]


def _rest_of_chunk() -> list[tuple[object, str, Any]]:
    parse = frames.parse_chunk

    def planted(body: memoryview) -> m.StateChunk:
        try:
            return parse(body)
        except RemoteProtocolError as error:
            if error.code != "bad-msgpack" or len(body) < 12:
                raise
            return parse(body[:-1])

    return [(frames, "parse_chunk", planted)]


def _any_sequence() -> list[tuple[object, str, Any]]:
    def planted(self: connection.Connection, _received: Any) -> None:
        self._chunks_received += 1

    handlers = {**connection._HANDLERS, SessionAction.COUNT: planted}
    return [(connection, "_HANDLERS", handlers)]


def _unforeseen_message() -> list[tuple[object, str, Any]]:
    known = {k: v for k, v in events.EVENT_OF_MESSAGE.items() if k is not m.PrepareProgress}
    return [(events, "EVENT_OF_MESSAGE", known)]


def _pongs_without_end() -> list[tuple[object, str, Any]]:
    def planted(self: connection.Connection, received: Any) -> None:
        self._queue_message(m.Pong(nonce=received.nonce))
        self._queue.extend(self._queue * (len(self._queue) > 4))

    handlers = {**connection._HANDLERS, SessionAction.ANSWER: planted}
    return [(connection, "_HANDLERS", handlers)]


def _kept_connection() -> list[tuple[object, str, Any]]:
    def planted(self: connection.Connection, code: str, sentence: str) -> None:
        report(self, code, sentence)
        self.kept = self  # type: ignore[attr-defined]

    report = connection.Connection._report
    return [(connection.Connection, "_report", planted)]


PLANTS: Final[dict[str, Plant]] = {
    plant.name: plant
    for plant in (
        Plant("crash", "codec", _crash),
        Plant("wrong-value", "codec", _wrong_value),
        Plant("hang", "codec", _hang),
        Plant("believed-length", "codec", _believed_length),
        Plant("one-byte-more", "frames", _one_byte_more),
        Plant("rest-of-chunk", "frames", _rest_of_chunk),
        Plant("any-sequence", "session", _any_sequence),
        Plant("unforeseen-message", "session", _unforeseen_message),
        Plant("pongs-without-end", "session", _pongs_without_end),
        Plant("kept-connection", "session", _kept_connection),
    )
}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """None plants nothing."""
    with ExitStack() as stack:
        for owner, attribute, value in PLANTS[name].changes() if name else ():
            stack.enter_context(patch.object(owner, attribute, value))
        yield
