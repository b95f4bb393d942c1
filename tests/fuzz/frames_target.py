"""Any bytes, cut anywhere, into a frame reader of any size, or into a whole connection.

An input is a mode byte, the sizes of the pieces, and the stream. Mode, from the lowest bit: 2 bits the size of the buffer,
1 bit the longest body (or, for a connection, whether HELLO comes first), 5 bits how many sizes of pieces follow. The buffer
is scaled down so that a short stream goes round it many times. A connection, which has a buffer of its real size and costs
ten times as much, gets the streams whose length says so: one in ``CONNECTION_EACH``.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgpack
from attrs import define, field

from protocol import connection as connections
from protocol import frames, limits
from protocol import messages as m
from protocol.errors import RemoteProtocolError
from tests.fuzz import samples
from tests.fuzz.target import PACKING_BYTES, SLACK_BYTES, Target, message_bytes

BUFFERS_BYTES: Final = (256, 400, 1024, 4096)
INPUT_BYTES_MAX: Final = 1500
PIECES_MAX: Final = 64
CONNECTION_EACH: Final = 12
SENT_BYTES_MAX: Final = 8 * limits.KIB
"""HELLO, as many PONGs as may wait, ERROR with the longest sentence."""

LARGE_PIECE: Final = 200
"""A size above it stands for 64 bytes more with each step."""

_HELLO_FRAME: Final = samples.frame(samples.PEER_HELLO)
_HEADER: Final = struct.Struct(">BI")


@define
class Plan:
    """What an input asks for."""

    buffer_bytes: int
    body_bytes_max: int
    is_connection: bool
    pieces: list[memoryview]
    stream: bytes


@define
class Seen:
    bodies: list[Any] = field(factory=list)
    """Of frames: bytes. Of a connection: messages, and a chunk's four values."""
    chunks: list[tuple[int, int, int, bytes] | None] = field(factory=list)
    """For each body that begins like a chunk: its values, None when refused."""
    code: str | None = None
    fed_bytes: int = 0
    last_bytes: int = 0
    """Of the last piece."""


def read_plan(data: bytes) -> Plan:
    mode = data[0] if data else 0
    count = mode >> 3
    sizes = [s if s <= LARGE_PIECE else (s - LARGE_PIECE) * 64 for s in data[1 : 1 + count] if s]
    stream = data[1 + count :]
    is_connection = len(stream) % CONNECTION_EACH == CONNECTION_EACH - 1
    if is_connection and mode & 4:
        stream = _HELLO_FRAME + stream
    buffer_bytes = BUFFERS_BYTES[mode & 3]
    body_bytes_max = (buffer_bytes if mode & 4 else buffer_bytes // 3) - limits.FRAME_HEADER_BYTES
    body_bytes_max = min(body_bytes_max, limits.FRAME_BODY_BYTES_MAX)
    return Plan(buffer_bytes, body_bytes_max, is_connection, _cut(stream, sizes), stream)


def _cut(stream: bytes, sizes: list[int]) -> list[memoryview]:
    whole = memoryview(stream)
    if not sizes:
        return [whole] if stream else []
    pieces: list[memoryview] = []
    start, least = 0, len(stream) // PIECES_MAX
    for size in itertools.cycle(sizes):
        if start >= len(stream):
            return pieces
        pieces.append(whole[start : start + max(size, least)])
        start += max(size, least)
    raise AssertionError("a cycle ended")


# ---- frames --------------------------------------------------------------------------------------------


def feed(data: bytes) -> tuple[Plan, Seen]:
    plan = read_plan(data)
    if plan.is_connection:
        return plan, _feed_connection(plan.pieces)
    return plan, _feed_reader(plan)


def make_reader(buffer_bytes: int, body_bytes_max: int) -> frames.FrameReader:
    """A reader whose buffer is not of the size that ``limits.py`` says."""
    real_bytes = limits.RECEIVE_BUFFER_BYTES
    limits.RECEIVE_BUFFER_BYTES = buffer_bytes  # type: ignore[misc]
    try:
        return frames.FrameReader(body_bytes_max)
    finally:
        limits.RECEIVE_BUFFER_BYTES = real_bytes  # type: ignore[misc]


def _feed_reader(plan: Plan) -> Seen:
    reader = make_reader(plan.buffer_bytes, plan.body_bytes_max)
    seen = Seen()
    for piece in plan.pieces:
        left = piece
        while left:
            buffer = reader.get_buffer()
            assert 0 < len(buffer) <= plan.buffer_bytes
            seen.last_bytes = count = min(len(buffer), len(left))
            buffer[:count] = left[:count]
            left = left[count:]
            reader.buffer_filled(count)
            seen.fed_bytes += count
            if not _drain_reader(reader, seen):
                return seen
            assert reader.buffered_bytes <= plan.body_bytes_max + limits.FRAME_HEADER_BYTES
    return seen


def _drain_reader(reader: frames.FrameReader, seen: Seen) -> bool:
    """Whether the stream is good so far."""
    try:
        while (body := reader.next_frame()) is not None:
            assert body.readonly
            seen.bodies.append(bytes(body))
            if body[0] == frames.CHUNK_LEAD:
                seen.chunks.append(_read_chunk(body))
    except RemoteProtocolError as error:
        seen.code = error.code
        return False
    return True


def _read_chunk(body: memoryview) -> tuple[int, int, int, bytes] | None:
    try:
        chunk = frames.parse_chunk(body)
    except RemoteProtocolError as error:
        _check_code(error.code)
        return None
    return chunk.sequence, chunk.region, chunk.offset, bytes(chunk.payload)


def _check_code(code: str) -> str:
    assert code in m.ERROR_CODES, code
    return code


# ---- a connection --------------------------------------------------------------------------------------


def _feed_connection(pieces: list[memoryview]) -> Seen:
    connection = connections.Connection(samples.HELLO, 0.0)
    seen = Seen()
    for piece in pieces:
        left = piece
        while left:
            buffer = connection.get_buffer()
            count = min(len(buffer), len(left))
            buffer[:count] = left[:count]
            left = left[count:]
            connection.receive(count, 0.0)
            code = _drain_connection(connection, seen)
            assert seen.code in (None, code), "refused, and then not, or for another reason"
            assert code is None or connection.over
            seen.code = code
            seen.fed_bytes += count
    # taken but once: how many PINGs may wait for an answer is counted from one taking to the next
    assert len(connection.data_to_send()) <= SENT_BYTES_MAX
    return seen


def _drain_connection(connection: connections.Connection, seen: Seen) -> str | None:
    try:
        while (event := connection.next_event()) is not None:
            if isinstance(event, m.StateChunk):
                assert event.payload.readonly
                payload = bytes(event.payload)
                seen.bodies.append((event.sequence, event.region, event.offset, payload))
            else:
                seen.bodies.append(event)
    except RemoteProtocolError as error:
        return _check_code(error.code)
    return None


# ---- what should have come out -------------------------------------------------------------------------


def split(stream: bytes, body_bytes_max: int) -> tuple[list[bytes], str | None, int]:
    """(bodies, code, how many bytes show that): the reference for a frame reader."""
    bodies: list[bytes] = []
    at = 0
    while at < len(stream):
        if stream[at] != 0xCE:
            return bodies, "bad-frame", at + 1
        if at + 5 > len(stream):
            break
        _, length = _HEADER.unpack_from(stream, at)
        if not 0 < length <= body_bytes_max:
            return bodies, "oversize" if length else "bad-frame", at + 5
        if at + 5 + length > len(stream):
            break
        bodies.append(stream[at + 5 : at + 5 + length])
        at += 5 + length
    return bodies, None, len(stream)


def refer_chunk(body: bytes) -> tuple[int, int, int, bytes] | None:
    """What msgpack reads in a chunk's body, if the limits allow it: the reference for ``parse_chunk``."""
    try:
        values = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return None
    sequence, region, offset, payload = values
    if not (type(sequence) is type(region) is type(offset) is int and type(payload) is bytes):
        return None
    within = (
        0 <= sequence < 2**64
        and 0 <= region <= limits.REGIONS_MAX
        and 0 < len(payload) <= limits.CHUNK_PAYLOAD_BYTES_MAX
        and 0 <= offset <= limits.RAM_BYTES_MAX - len(payload)
    )
    return (sequence, region, offset, payload) if within else None


def judge(_data: bytes, fed: tuple[Plan, Seen]) -> None:
    plan, seen = fed
    if plan.is_connection:
        whole = _feed_connection([memoryview(plan.stream)] if plan.stream else [])
        assert (seen.bodies, seen.code) == (whole.bodies, whole.code), "pieces make a difference"
        return
    bodies, code, known_bytes = split(plan.stream, plan.body_bytes_max)
    assert (seen.bodies, seen.code) == (bodies, code)
    if code is not None:
        assert known_bytes <= seen.fed_bytes < known_bytes + seen.last_bytes, "seen too late"
    chunks = [body for body in bodies if body[0] == frames.CHUNK_LEAD]
    assert seen.chunks == [refer_chunk(body) for body in chunks]
    for chunk in filter(None, seen.chunks):
        _judge_header(*chunk)


def _judge_header(sequence: int, region: int, offset: int, payload: bytes) -> None:
    """What was taken can be said again, and means the same to msgpack."""
    header = frames.chunk_header(sequence, region, offset, len(payload))
    body = header[limits.FRAME_HEADER_BYTES :] + payload
    assert _HEADER.unpack_from(header) == (0xCE, len(body))
    assert msgpack.unpackb(body) == [sequence, region, offset, payload]


def allow_bytes(data: bytes, fed: tuple[Plan, Seen]) -> int:
    """The buffer, what was handed out (kept here for the judge), and one message."""
    plan, _ = fed
    kept = 4 * len(plan.stream) + 256 * len(plan.pieces) + SLACK_BYTES
    if plan.is_connection:
        return limits.RECEIVE_BUFFER_BYTES + PACKING_BYTES + message_bytes(len(data)) + kept
    return plan.buffer_bytes + 64 * len(data) + kept


# ---- seeds ---------------------------------------------------------------------------------------------


def make_connection(head: bytes, stream: bytes) -> bytes:
    """An input for a connection: the beginning of another frame makes the length what it must be."""
    missing = CONNECTION_EACH - 1 - len(stream) % CONNECTION_EACH
    return head + stream + (b"\xce\x00\x00\x00\x20" + bytes(missing))[:missing]


def seeds() -> list[bytes]:
    return list(_seeds())


def _seeds() -> Iterator[bytes]:
    small = [frame for frame in samples.vector_frames() if len(frame) < INPUT_BYTES_MAX // 2]
    streams = [stream for stream in samples.vector_streams() if len(stream) < INPUT_BYTES_MAX]
    for number, frame in enumerate(small):
        yield bytes([number % 4 | 4]) + frame
        yield bytes([2 | 4 | 3 << 3, 3, 70, 1 + number % LARGE_PIECE]) + frame + small[number - 1]
        yield make_connection(bytes([4 | 2 << 3, 9, 40]), frame)
    for number, stream in enumerate(streams):
        yield make_connection(bytes([1 << 3, 30 + number]), stream)
    for mode in range(8):
        longest = read_plan(bytes([mode])).body_bytes_max
        if longest < INPUT_BYTES_MAX:
            for length in (longest - 1, longest, longest + 1):
                yield bytes([mode]) + _HEADER.pack(0xCE, length) + bytes(length)
    rounds = b"".join(_HEADER.pack(0xCE, n) + bytes(n) for n in (1, 60, 75, 3, 80, 79, 20, 40))
    yield bytes([4 << 3, 5, 100, 80, 85]) + rounds
    yield bytes([1 << 3, 84]) + rounds


TARGET: Final = Target(
    name="frames",
    share=4,
    input_bytes_max=INPUT_BYTES_MAX,
    feed=feed,
    judge=judge,
    allow_bytes=allow_bytes,
    seeds=seeds,
    words=samples.words,
)
