"""Frames and state chunks: one buffer, no copies, nothing too long."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.frames import FrameReader, chunk_header, frame_header, parse_chunk

CHUNK_MAX = limits.CHUNK_PAYLOAD_BYTES_MAX


def fill(reader: FrameReader, data: memoryview) -> int:
    """One receive: as much as there is room for -> how much that was."""
    buffer = reader.get_buffer()
    count = min(len(buffer), len(data))
    assert count > 0
    buffer[:count] = data[:count]
    reader.buffer_filled(count)
    return count


def read_all(stream: bytes, steps: list[int]) -> list[bytes]:
    """``steps`` are the sizes of what the receives give, over and over."""
    reader, bodies, left, turn = FrameReader(), [], memoryview(stream), 0
    while left:
        left = left[fill(reader, left[: steps[turn % len(steps)]]) :]
        turn += 1
        while (body := reader.next_frame()) is not None:
            bodies.append(bytes(body))
    assert reader.buffered_bytes == 0
    return bodies


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 4000) | st.integers(100_000, CHUNK_MAX), min_size=1, max_size=12),
    st.lists(st.integers(1, 64) | st.integers(10_000, 2_000_000), min_size=1, max_size=5),
)
def test_any_split(sizes: list[int], steps: list[int]) -> None:
    if sum(sizes) > 200_000:  # a megabyte in single bytes takes seconds and shows nothing more
        steps = [max(step, 1000) for step in steps]
    bodies = [bytes([n + 1]) * size for n, size in enumerate(sizes)]
    stream = b"".join(frame_header(len(body)) + body for body in bodies)
    assert read_all(stream, steps) == bodies


@pytest.mark.parametrize("size", [1, 4096, CHUNK_MAX, limits.FRAME_BODY_BYTES_MAX])
@pytest.mark.parametrize("step", [limits.RECEIVE_BUFFER_BYTES, 16_384, 99_991])
def test_the_buffer_goes_round(size: int, step: int) -> None:
    count = 3 * limits.RECEIVE_BUFFER_BYTES // (size + 5) + 2 if size > 1 else 500_000
    bodies = read_all((frame_header(size) + b"x" * size) * count, [step])
    assert len(bodies) == count


def test_the_buffer_is_one_and_is_not_moved_without_need() -> None:
    reader = FrameReader()
    first = reader.get_buffer()
    size = limits.RECEIVE_BUFFER_BYTES
    assert len(first) == size
    half = frame_header(1000) + b"x" * 400
    fill(reader, memoryview(half))
    assert reader.next_frame() is None
    rest = reader.get_buffer()
    assert len(rest) == size - len(half)  # what is there stays where it is
    rest[:600] = b"y" * 600
    reader.buffer_filled(600)
    body = reader.next_frame()
    assert body is not None
    assert bytes(body) == b"x" * 400 + b"y" * 600
    assert body.readonly
    first[5:8] = b"abc"
    assert bytes(body[:3]) == b"abc"  # a view, not a copy


def test_a_chunk_is_not_copied() -> None:
    reader = FrameReader()
    buffer = reader.get_buffer()
    payload = b"p" * CHUNK_MAX
    data = chunk_header(0, 2, 65536, len(payload)) + payload
    fill(reader, memoryview(data))
    body = reader.next_frame()
    assert body is not None
    chunk = parse_chunk(body)
    assert (chunk.sequence, chunk.region, chunk.offset) == (0, 2, 65536)
    assert chunk.payload == payload
    buffer[len(data) - 1] = 0
    assert chunk.payload[-1] == 0


def test_bad_frames_are_seen_early() -> None:
    reader = FrameReader()
    fill(reader, memoryview(b"\x16"))
    with pytest.raises(RemoteProtocolError, match="bad-frame"):
        reader.next_frame()
    reader = FrameReader(limits.HELLO_BYTES_MAX)
    fill(reader, memoryview(b"\xce\x00\x00\x10\x01"))
    with pytest.raises(RemoteProtocolError, match="oversize"):
        reader.next_frame()
    reader.body_bytes_max = limits.HELLO_BYTES_MAX + 1
    assert reader.next_frame() is None


def test_misuse_is_ours() -> None:
    reader = FrameReader()
    for count in (-1, limits.RECEIVE_BUFFER_BYTES + 1):
        with pytest.raises(LocalProtocolError):
            reader.buffer_filled(count)
    reader.get_buffer()[:] = (frame_header(11) + b"x" * 11) * (limits.RECEIVE_BUFFER_BYTES // 16)
    reader.buffer_filled(limits.RECEIVE_BUFFER_BYTES)
    with pytest.raises(LocalProtocolError, match="nobody took"):
        reader.get_buffer()
    for body_bytes in (0, limits.FRAME_BODY_BYTES_MAX + 1):
        with pytest.raises(LocalProtocolError):
            frame_header(body_bytes)


@pytest.mark.parametrize(
    ("sequence", "region", "offset", "size"),
    [
        (-1, 0, 0, 1),
        (2**64, 0, 0, 1),
        (0, -1, 0, 1),
        (0, limits.REGIONS_MAX + 1, 0, 1),
        (0, 0, -1, 1),
        (0, 0, limits.RAM_BYTES_MAX, 1),
        (0, 0, 0, 0),
        (0, 0, 0, CHUNK_MAX + 1),
    ],
)
def test_chunks_outside_the_limits(sequence: int, region: int, offset: int, size: int) -> None:
    with pytest.raises(LocalProtocolError):
        chunk_header(sequence, region, offset, size)
    if sequence == 2**64:  # no encoding has it
        return
    body = memoryview(msgpack.packb([sequence, region, offset, bytes(size)]))
    with pytest.raises(RemoteProtocolError) as caught:
        parse_chunk(body)
    assert caught.value.code in ("bad-value", "oversize")


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, limits.REGIONS_MAX),
    st.integers(0, limits.RAM_BYTES_MAX - 100),
    st.binary(min_size=1, max_size=100),
)
def test_any_encoding_of_the_integers(
    sequence: int, region: int, offset: int, payload: bytes
) -> None:
    ours = chunk_header(sequence, region, offset, len(payload)) + payload
    shortest = msgpack.packb([sequence, region, offset, payload])
    assert msgpack.unpackb(ours[5:]) == [sequence, region, offset, payload]
    for body in (memoryview(ours)[5:], memoryview(shortest)):
        chunk = parse_chunk(body)
        assert (chunk.sequence, chunk.region, chunk.offset) == (sequence, region, offset)
        assert chunk.payload == payload


@given(st.binary(max_size=60))
def test_any_bytes_as_a_chunk(tail: bytes) -> None:
    body = memoryview(b"\x94" + tail)
    try:
        chunk = parse_chunk(body)
    except RemoteProtocolError:
        return
    # what we take, msgpack reads as the same
    assert msgpack.unpackb(body) == [
        chunk.sequence,
        chunk.region,
        chunk.offset,
        bytes(chunk.payload),
    ]
