"""Frames: ``0xce``, the body's length as a big-endian uint32, the body.

``0xce`` and the length are themselves a msgpack uint32, so the whole stream is a sequence of msgpack values and any
msgpack tool can read a capture of it.

Bulk is why this is written as it is: state chunks are received into one fixed buffer and handed out as views of it, and a
chunk is sent as a header and the caller's own memory. Nothing copies a payload but the moving of a frame that would not
fit before the buffer's end, once per round of the buffer.

Source of the format bytes: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from protocol import limits
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import StateChunk

FRAME_LEAD: Final = 0xCE
CHUNK_LEAD: Final = 0x94
"""An array of four: only a state chunk begins like this, and it begins in no other way."""

_FRAME_HEADER: Final = struct.Struct(">BI")
_CHUNK_HEADER: Final = struct.Struct(">BIBBQBQBQBI")
_CHUNK_BODY: Final = struct.Struct(">BBQBQBQBI")
"""What ``chunk_header`` writes, without the frame's header."""

_UINT64: Final = 0xCF
_BIN32: Final = 0xC6

_INTS: Final[Mapping[int, struct.Struct]] = {
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_BINARIES: Final[Mapping[int, struct.Struct]] = {
    0xC4: struct.Struct(">B"),
    0xC5: struct.Struct(">H"),
    0xC6: struct.Struct(">I"),
}


def frame_header(body_bytes: int) -> bytes:
    """What stands before a body of so many bytes. Raises LocalProtocolError for a length no peer accepts."""
    if not 0 < body_bytes <= limits.FRAME_BODY_BYTES_MAX:
        raise LocalProtocolError(f"a frame cannot have a body of {body_bytes} bytes")
    return _FRAME_HEADER.pack(FRAME_LEAD, body_bytes)


def chunk_header(sequence: int, region: int, offset: int, payload_bytes: int) -> bytes:
    """Everything of a state chunk's frame but the payload, which follows it on the wire.

    Integers are written at full width: the header's length is constant. Raises LocalProtocolError for what
    ``parse_chunk`` would not accept.
    """
    fault = _find_fault(sequence, region, offset, payload_bytes)
    if fault is not None:
        raise LocalProtocolError(f"a state chunk cannot be sent: {fault[1]}")
    return _CHUNK_HEADER.pack(
        FRAME_LEAD,
        _CHUNK_BODY.size + payload_bytes,
        CHUNK_LEAD,
        _UINT64,
        sequence,
        _UINT64,
        region,
        _UINT64,
        offset,
        _BIN32,
        payload_bytes,
    )


def parse_chunk(body: memoryview) -> StateChunk:
    """A frame's body that begins with ``CHUNK_LEAD`` -> the chunk, whose payload is a slice of ``body``.

    Integers and the binary may have any of their msgpack encodings. Raises RemoteProtocolError.
    """
    if (
        len(body) > _CHUNK_BODY.size
        and body[1] == body[10] == body[19] == _UINT64
        and body[28] == _BIN32
    ):
        _, _, sequence, _, region, _, offset, _, payload_bytes = _CHUNK_BODY.unpack_from(body)
        start = _CHUNK_BODY.size
    else:
        sequence, position = _parse_int(body, 1, "sequence")
        region, position = _parse_int(body, position, "region")
        offset, position = _parse_int(body, position, "offset")
        payload_bytes, start = _parse_binary_header(body, position)
    fault = _find_fault(sequence, region, offset, payload_bytes)
    if fault is not None:
        raise RemoteProtocolError(*fault)
    if start + payload_bytes != len(body):
        raise RemoteProtocolError("bad-msgpack", "a state chunk is not as long as its frame says")
    return StateChunk(sequence=sequence, region=region, offset=offset, payload=body[start:])


def _find_fault(
    sequence: int, region: int, offset: int, payload_bytes: int
) -> tuple[str, str] | None:
    """(code, sentence) of what a chunk may not have, whoever it comes from."""
    if payload_bytes > limits.CHUNK_PAYLOAD_BYTES_MAX:
        return "oversize", f"a state chunk's payload has {payload_bytes} bytes"
    if payload_bytes <= 0:
        return "bad-value", "a state chunk has no payload"
    if not 0 <= region <= limits.REGIONS_MAX:
        return "bad-value", f"a state chunk's region is {region}"
    if not 0 <= offset <= limits.RAM_BYTES_MAX - payload_bytes:
        return "bad-value", f"a state chunk's offset is {offset}"
    if not 0 <= sequence < 2**64:
        return "bad-value", f"a state chunk's sequence number is {sequence}"
    return None


def _parse_int(body: memoryview, position: int, name: str) -> tuple[int, int]:
    """(value, position behind it) of a msgpack integer."""
    if position >= len(body):
        raise RemoteProtocolError("bad-msgpack", f"a state chunk ends before its {name}")
    lead = body[position]
    if lead <= 0x7F:
        return lead, position + 1
    if lead >= 0xE0:
        return lead - 0x100, position + 1
    width = _INTS.get(lead)
    if width is None:
        raise RemoteProtocolError("wrong-type", f"a state chunk's {name} is not an integer")
    if position + 1 + width.size > len(body):
        raise RemoteProtocolError("bad-msgpack", f"a state chunk ends inside its {name}")
    (value,) = width.unpack_from(body, position + 1)
    return value, position + 1 + width.size


def _parse_binary_header(body: memoryview, position: int) -> tuple[int, int]:
    """(length, position of the first byte) of a msgpack binary."""
    if position >= len(body):
        raise RemoteProtocolError("bad-msgpack", "a state chunk ends before its payload")
    width = _BINARIES.get(body[position])
    if width is None:
        raise RemoteProtocolError("wrong-type", "a state chunk's payload is not a binary")
    if position + 1 + width.size > len(body):
        raise RemoteProtocolError("bad-msgpack", "a state chunk ends before its payload")
    (length,) = width.unpack_from(body, position + 1)
    return length, position + 1 + width.size


@frozen
class _Span:
    """Where a frame lies in the stream: body length, and the length of header and body."""

    body_bytes: int
    frame_bytes: int


class FrameReader:
    """One fixed receive buffer, and the frames in it.

    ``body_bytes_max`` may be changed at any time and holds for every frame whose header was not read yet.

    The use is: ``get_buffer``, write into it, ``buffer_filled``, then ``next_frame`` until it gives None. A body that
    ``next_frame`` gave is a read-only view of the buffer and valid **until the next call of get_buffer or next_frame**.
    """

    def __init__(self, body_bytes_max: int = limits.FRAME_BODY_BYTES_MAX) -> None:
        self.body_bytes_max = body_bytes_max
        self._buffer = memoryview(bytearray(limits.RECEIVE_BUFFER_BYTES))
        self._content = self._buffer.toreadonly()
        self._start = 0
        self._end = 0
        self._span: _Span | None = None
        """Of the frame at ``_start``, once its header has been read."""

    @property
    def buffered_bytes(self) -> int:
        """Received, and not handed out as a frame."""
        return self._end - self._start

    def get_buffer(self) -> memoryview:
        """Where to receive to; never empty. Raises LocalProtocolError when frames were not taken out in time."""
        size_bytes = len(self._buffer)
        if self._start == self._end:
            self._start = self._end = 0
        wanted_bytes = limits.FRAME_HEADER_BYTES if self._span is None else self._span.frame_bytes
        if self._start + wanted_bytes > size_bytes or self._end == size_bytes:
            count = self.buffered_bytes
            self._buffer[:count] = self._buffer[self._start : self._end]
            self._start, self._end = 0, count
        if self._end == size_bytes:
            raise LocalProtocolError("the receive buffer is full of frames that nobody took")
        return self._buffer[self._end :]

    def buffer_filled(self, count: int) -> None:
        """The first ``count`` bytes of what ``get_buffer`` gave have been received."""
        if not 0 <= count <= len(self._buffer) - self._end:
            raise LocalProtocolError(f"{count} bytes do not fit into the receive buffer")
        self._end += count

    def discard(self) -> None:
        """Forget what was received."""
        self._start = self._end = 0
        self._span = None

    def next_frame(self) -> memoryview | None:
        """The next body; None when it has not arrived completely.

        Raises RemoteProtocolError (``bad-frame``, ``oversize``) as soon as that can be known; there is no next frame
        after that.
        """
        if self._span is None:
            self._span = self._read_header()
        if self._span is None or self.buffered_bytes < self._span.frame_bytes:
            return None
        body_start = self._start + limits.FRAME_HEADER_BYTES
        self._start = body_start + self._span.body_bytes
        self._span = None
        return self._content[body_start : self._start]

    def _read_header(self) -> _Span | None:
        if self._start == self._end:
            return None
        if self._buffer[self._start] != FRAME_LEAD:
            raise RemoteProtocolError(
                "bad-frame", f"a frame begins with 0x{self._buffer[self._start]:02x}, not 0xce"
            )
        if self.buffered_bytes < limits.FRAME_HEADER_BYTES:
            return None
        _, body_bytes = _FRAME_HEADER.unpack_from(self._buffer, self._start)
        if body_bytes == 0:
            raise RemoteProtocolError("bad-frame", "a frame has no body")
        if body_bytes > self.body_bytes_max:
            raise RemoteProtocolError(
                "oversize",
                f"a frame has a body of {body_bytes} bytes, {self.body_bytes_max} are allowed now",
            )
        return _Span(body_bytes, limits.FRAME_HEADER_BYTES + body_bytes)
