"""The golden vectors are the truth: what is on disk is read, never made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protocol import limits
from protocol import messages as m
from protocol.codec import decode, encode
from protocol.connection import Connection
from protocol.errors import RemoteProtocolError
from protocol.frames import CHUNK_LEAD, FrameReader, chunk_header, frame_header, parse_chunk
from protocol.phases import Holding, Role, RunState

FOLDER = Path(__file__).parents[2] / "protocol" / "vectors"
CLASSES = {cls.TYPE: cls for cls in m.MESSAGES}
CODEC_CODES = {
    "bad-frame",
    "oversize",
    "bad-msgpack",
    "too-deep",
    "bad-utf8",
    "unknown-type",
    "unknown-key",
    "missing-key",
    "wrong-type",
    "bad-value",
}
SESSION_CODES = {"hello-expected", "unexpected-message", "no-common-version", "sequence"}


def load(name: str) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())
    return vectors


def each(name: str) -> pytest.MarkDecorator:
    vectors = load(name)
    return pytest.mark.parametrize("vector", vectors, ids=[v["name"] for v in vectors])


def read_frame(data: bytes) -> m.Message | m.StateChunk:
    reader = FrameReader()
    reader.get_buffer()[: len(data)] = data
    reader.buffer_filled(len(data))
    body = reader.next_frame()
    assert body is not None
    received = parse_chunk(body) if body[0] == CHUNK_LEAD else decode(body)
    assert reader.next_frame() is None
    assert reader.buffered_bytes == 0
    return received


def from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: from_json(item) for key, item in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value


def make(document: dict[str, Any]) -> m.Message:
    fields = from_json(document)
    cls = CLASSES[fields.pop("type")]
    convert = {
        "run_state": RunState,
        "access": m.ConsoleAccess,
        "features": tuple,
        "findings": lambda items: tuple(m.Finding(**item) for item in items),
        "holding": Holding,
        "trails": lambda items: tuple(
            m.Trail(migration=i["migration"], role=Role(i["role"]), kinds=tuple(i["kinds"]))
            for i in items
        ),
        "regions": lambda items: tuple(m.Region(**item) for item in items),
    }
    return cls(**{k: convert[k](v) if k in convert else v for k, v in fields.items()})


@each("messages")
def test_messages(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["frame"])
    message = make(vector["message"])
    assert read_frame(data) == message
    body = encode(message)
    assert (frame_header(len(body)) + body == data) is vector["canonical"]


@each("chunks")
def test_chunks(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["frame"])
    wanted = from_json(vector["chunk"])
    chunk = read_frame(data)
    assert isinstance(chunk, m.StateChunk)
    payload = bytes(chunk.payload)
    assert (chunk.sequence, chunk.region, chunk.offset, payload) == (
        wanted["sequence"],
        wanted["region"],
        wanted["offset"],
        wanted["payload"],
    )
    header = chunk_header(chunk.sequence, chunk.region, chunk.offset, len(payload))
    assert (header + payload == data) is vector["canonical"]


@each("invalid")
def test_invalid(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read_frame(bytes.fromhex(vector["frame"]))
    assert caught.value.code == vector["code"], caught.value.sentence


@each("conversations")
def test_conversations(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["stream"])
    connection = Connection(make(load("messages")[0]["message"]), now=0.0)  # type: ignore[arg-type]
    connection.get_buffer()[: len(data)] = data
    connection.receive(len(data), 0.0)
    events: list[str] = []
    code = None
    try:
        while (event := connection.next_event()) is not None:
            events.append("chunk" if isinstance(event, m.StateChunk) else event.TYPE)
    except RemoteProtocolError as error:
        code = error.code
    assert (events, code) == (vector["events"], vector["code"])


def test_everything_has_a_vector() -> None:
    assert {v["message"]["type"] for v in load("messages") if v["canonical"]} == set(CLASSES)
    assert {v["code"] for v in load("invalid")} == CODEC_CODES
    assert {v["code"] for v in load("conversations")} >= SESSION_CODES
    assert set(m.ERROR_CODES) >= CODEC_CODES | SESSION_CODES
    for name in ("messages", "chunks", "invalid", "conversations"):
        names = [v["name"] for v in load(name)]
        assert len(names) == len(set(names)), name


def test_the_vectors_of_size_stand_at_the_limits() -> None:
    """They have numbers written out; this says when a limit has moved away from them."""
    assert limits.FRAME_BODY_BYTES_MAX == 262_144 + 33
    assert (limits.TEXT_BYTES_MAX, limits.NAME_BYTES_MAX) == (4096, 64)
    assert limits.BINARY_BYTES_MAX == limits.CONSOLE_DATA_BYTES_MAX == 16_384
    assert limits.CONSOLE_REPLAY_LINES_MAX == 1000
    assert (limits.FEATURES_MAX, limits.REGIONS_MAX, limits.NESTING_DEPTH_MAX) == (32, 16, 8)
    assert (limits.HELLO_BYTES_MAX, limits.PINGS_UNANSWERED_MAX) == (4096, 16)
