"""Hostile streams: whatever comes, in whatever pieces, only RemoteProtocolError comes out, and memory stays where it was."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol import messages as m
from protocol.connection import Connection
from protocol.errors import RemoteProtocolError
from protocol.frames import chunk_header, frame_header
from tests.protocol.strategies import MESSAGES
from tests.protocol.test_connection import framed, hello
from tests.protocol.test_vectors import load

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
HELLO = framed(hello("host-b"))
VECTORS = [
    bytes.fromhex(vector["frame"])
    for name in ("messages", "chunks", "invalid")
    for vector in load(name)
]


def converse(pieces: list[bytes], *, now: float = 0.0) -> tuple[list[Any], str | None]:
    """(events, code) of a connection that is fed these pieces and keeps being used after it ended."""
    connection = Connection(hello("host-a"), now)
    events: list[Any] = []
    code: str | None = None
    for piece in pieces:
        left = memoryview(piece)
        while left:
            buffer = connection.get_buffer()
            assert 0 < len(buffer) <= limits.RECEIVE_BUFFER_BYTES
            count = min(len(buffer), len(left))
            buffer[:count] = left[:count]
            left = left[count:]
            now += 0.01
            connection.receive(count, now)
            found = drain(connection, events, now)
            assert found in m.ERROR_CODES or found is None
            assert code in (None, found)  # once refused, refused for ever, for the same reason
            assert found is None or connection.over
            code = found
            assert len(connection.data_to_send()) <= limits.RECEIVE_BUFFER_BYTES
    return events, code


def drain(connection: Connection, events: list[Any], now: float) -> str | None:
    """Append what there is to ``events`` -> the code of what is wrong with the rest."""
    try:
        while (event := connection.next_event()) is not None:
            is_chunk = isinstance(event, m.StateChunk)
            events.append(bytes(event.payload) if is_chunk else event)
        connection.tick(now)
    except RemoteProtocolError as error:
        return error.code
    return None


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[a:b] for a, b in itertools.pairwise(marks)]


def chunk(sequence: int, payload: bytes) -> bytes:
    return chunk_header(sequence, 0, 0, len(payload)) + payload


def of_migration() -> st.SearchStrategy[bytes]:
    kinds = [
        MESSAGES[cls]
        for cls in m.MESSAGES
        if issubclass(cls, m.MigrationMessage | m.ConsoleMessage)
    ]
    return st.one_of(kinds).map(lambda message: framed(message))


@st.composite
def valid_streams(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(of_migration() | st.binary(min_size=1, max_size=300), max_size=6))
    stream, sequence = HELLO, 0
    for part in parts:
        if part[:1] == b"\xce":
            stream += part
        else:
            stream += chunk(sequence, part)
            sequence += 1
    return stream


PLACES = st.lists(st.integers(0, 2**20), max_size=12)


@FUZZ
@given(st.lists(st.binary(max_size=300), max_size=10))
def test_any_bytes(pieces: list[bytes]) -> None:
    converse(pieces)


@FUZZ
@given(st.lists(st.sampled_from(VECTORS) | st.binary(max_size=20), max_size=10), PLACES)
def test_any_frames_after_hello(frames: list[bytes], places: list[int]) -> None:
    events, _ = converse(cut(HELLO + b"".join(frames), places))
    assert events[0] == hello("host-b")


@FUZZ
@given(st.binary(min_size=1, max_size=300), PLACES)
def test_any_body_after_hello(body: bytes, places: list[int]) -> None:
    converse(cut(HELLO + frame_header(len(body)) + body, places))


@FUZZ
@given(valid_streams(), PLACES)
def test_pieces_make_no_difference(stream: bytes, places: list[int]) -> None:
    whole = converse([stream])
    assert whole[1] is None
    assert converse(cut(stream, places)) == whole


@FUZZ
@given(
    valid_streams(),
    st.lists(
        st.tuples(
            st.integers(0, 2**20), st.integers(0, 255), st.sampled_from(["set", "in", "out"])
        ),
        min_size=1,
        max_size=4,
    ),
    PLACES,
)
def test_damaged_streams(
    stream: bytes, damage: list[tuple[int, int, str]], places: list[int]
) -> None:
    damaged = bytearray(stream)
    for place, byte, how in damage:
        at = place % max(len(damaged), 1)
        width = 0 if how == "in" else 1
        damaged[at : at + width] = b"" if how == "out" else bytes([byte])
    pieces = cut(bytes(damaged), places)
    assert converse(pieces) == converse([bytes(damaged)])  # the same end, however it comes


@FUZZ
@given(valid_streams(), st.integers(0, 2**20))
def test_broken_off_streams(stream: bytes, place: int) -> None:
    """A prefix is never an error until the stream ends, and gives a prefix of the events."""
    whole, _ = converse([stream])
    events, code = converse([stream[: place % (len(stream) + 1)]])
    assert code is None
    assert whole[: len(events)] == events


def test_memory_stays_where_it_was() -> None:
    """64 MiB of chunks, and messages go through; what is held is the one buffer."""
    payload = bytes(limits.CHUNK_PAYLOAD_BYTES_MAX)
    message = framed(m.Handoff(migration="0" * 32))
    connection = Connection(hello("host-a"), 0.0)
    stream = memoryview(bytearray(len(payload) + 43 + len(message)))
    tracemalloc.start()
    try:
        start_bytes, _ = tracemalloc.get_traced_memory()
        for sequence in range(-1, 256):
            data: bytes | memoryview = HELLO
            if sequence >= 0:
                header = chunk_header(sequence, 0, 0, len(payload))
                size = len(header) + len(payload) + len(message)
                stream[: len(header)] = header
                stream[size - len(message) : size] = message
                data = stream[:size]
            left = memoryview(data)
            while left:
                buffer = connection.get_buffer()
                count = min(len(buffer), len(left), 100_003)
                buffer[:count] = left[:count]
                left = left[count:]
                connection.receive(count, 0.0)
                while connection.next_event() is not None:
                    pass
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes - start_bytes < 64 * limits.KIB
