"""What the targets' inputs are made of: the golden vectors, one message of each kind, and fragments no message may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgpack
from attrs import evolve

from protocol import codec, frames, limits
from protocol import messages as m
from protocol.errors import RemoteProtocolError
from protocol.phases import Holding, Role, RunState

VECTORS: Final = Path(__file__).parents[2] / "protocol" / "vectors"

ID: Final = "0123456789abcdef" * 2
OTHER_ID: Final = "f" * 32
UUID: Final = "01234567-89ab-cdef-0123-456789abcdef"
DIGEST: Final = bytes(range(limits.DIGEST_BYTES))

HELLO: Final = m.Hello(
    version_min=1,
    version_max=1,
    features=("alpha",),
    host="host-a",
    release="0.1.0",
    journal=ID,
    time_unix_ms=1,
)
PEER_HELLO: Final = evolve(HELLO, host="host-b", features=("alpha", "beta"))

_FINDING: Final = m.Finding(
    code="memory", subject="host-b", sentence="too little", remedy="add some", hard=True
)


def _documents() -> dict[str, Any]:
    (vector, *_) = (v for v in load("messages") if v["message"]["type"] == "CHECK")
    return {key: vector["message"][key] for key in ("domain", "facts")}


def load(name: str) -> list[dict[str, Any]]:
    """The golden vectors of one kind, as they stand in the file."""
    vectors: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text())
    return vectors


def vector_frames() -> list[bytes]:
    """Every frame of the golden vectors, the invalid ones too."""
    names = ("messages", "chunks", "invalid")
    return [bytes.fromhex(vector["frame"]) for name in names for vector in load(name)]


def vector_streams() -> list[bytes]:
    return [bytes.fromhex(vector["stream"]) for vector in load("conversations")]


MESSAGES: Final[dict[type[m.MigrationMessage], m.MigrationMessage]] = {
    type(message): message
    for message in (
        m.Check(
            migration=ID,
            dry_run=False,
            force=False,
            run_state=RunState.RUNNING,
            new_name=None,
            **_documents(),
        ),
        m.Checked(migration=ID, findings=()),
        m.Prepare(migration=ID, regions=(m.Region(name="ram", size_bytes=1 << 20),)),
        m.PrepareProgress(migration=ID, done_bytes=1, total_bytes=1 << 20),
        m.Prepared(migration=ID),
        m.Digest(migration=ID, digest=DIGEST, chunks=3, device_bytes=1),
        m.Installed(migration=ID, digest=DIGEST),
        m.Handoff(migration=ID),
        m.HandoffDone(migration=ID),
        m.HandoffLost(migration=ID),
        m.HandoffRefused(migration=ID, code="busy", sentence="no"),
        m.Released(migration=ID),
        m.Settled(migration=ID),
        m.Refused(migration=ID, code="cancelled", sentence="as asked"),
        m.Cancel(migration=ID, code="cancelled", sentence="an operator"),
        m.Ask(migration=ID, uuid=UUID),
        m.Standing(
            migration=ID,
            holding=Holding.OWNED,
            trails=(m.Trail(migration=ID, role=Role.TARGET, kinds=("PREPARED", "ABORTED")),),
        ),
    )
}
"""One of each; those that stand for two events in the form that goes on."""

CONSOLE: Final[tuple[m.ConsoleMessage, ...]] = (
    m.ConsoleOpen(
        uuid="00112233-4455-6677-8899-aabbccddeeff",
        user="alice",
        access=m.ConsoleAccess.WRITE,
        stay=ID,
        position=None,
        replay_lines=24,
    ),
    m.ConsoleOpened(stay=ID, position=0, writer=None),
    m.ConsoleOutput(position=0, data=b"login: "),
    m.ConsoleInput(data=b"\r"),
    m.ConsoleTaken(count=1),
    m.ConsoleWriter(writer="bob@host-b"),
    m.ConsoleClosed(code="moved", sentence="it has moved", moved_to="host-c"),
)

NOT_CLEAN: Final = m.Checked(migration=ID, findings=(_FINDING,))
GIVING_UP: Final = RemoteProtocolError("stopping", "the manager is stopping")
OTHER_DIGEST: Final = m.Installed(migration=ID, digest=bytes(limits.DIGEST_BYTES))


def frame(message: m.Message) -> bytes:
    body = codec.encode(message)
    return frames.frame_header(len(body)) + body


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def split_fields(message: m.Message) -> list[tuple[bytes, bytes]]:
    """(key, value) of each, as they stand in the message's body."""
    plain = msgpack.unpackb(codec.encode(message))
    return [(pack(name), pack(value)) for name, value in plain.items()]


def _nested(depth: int) -> Any:
    return [_nested(depth - 1)] if depth else 0


HOSTILE: Final[tuple[bytes, ...]] = (
    *map(pack, (None, True, 0, 1, -1, 127, 128, 255, 2**16, 2**32, 2**63, 2**64 - 1, -(2**63))),
    *map(pack, (limits.RAM_BYTES_MAX, limits.RAM_BYTES_MAX + limits.PAGE_BYTES, 4096, 4097)),
    *map(pack, ("", "a", "A b", "\x1b[2J", "\u202e", "é" * 32, ID, OTHER_ID, "running", "bound")),
    *(pack("x" * n) for n in (64, 65, limits.TEXT_BYTES_MAX, limits.TEXT_BYTES_MAX + 1)),
    pack("\U0001f600" + "x" * (limits.TEXT_BYTES_MAX - 4)),
    *(pack(bytes(n)) for n in (0, 15, 16, 17)),
    *(pack(bytes(limits.BINARY_BYTES_MAX + n)) for n in (0, 1)),
    *map(pack, ([], {}, ["a", "a"], [{}], [[]], {"a": {"b": [1]}}, 1.5)),
    *(pack(_nested(n)) for n in (6, 7, 8, 9, 200)),
    *(pack([0] * n) for n in (16, 17, 32, 33, 256, 257, 1024, 1025)),
    pack(["\U0001f600" + "x" * 4000] * 60),
    pack([{}] * 1000),
    pack([[{"": 0}] * 12] * 400),
    pack([[0] * 15] * 1000),
    pack([[0] * 20] * 1000),
    pack([{"name": f"r{n}", "size_bytes": 4096} for n in range(17)]),
    pack([{"name": "r", "size_bytes": 4096}] * 2),
    bytes.fromhex("82a16100a16100"),  # a key that comes twice
    bytes.fromhex("810000"),  # a key that is no string
    bytes.fromhex("a1ff"),  # not UTF-8
    bytes.fromhex("a3eda080"),  # a surrogate
    *(bytes.fromhex(lead + "ffffffff") for lead in ("c6", "db", "dd", "df", "c9")),
    *(bytes.fromhex(lead + "ffff") for lead in ("c5", "da", "dc", "de", "c8")),
    bytes.fromhex("d6ff00000000"),  # a timestamp
    bytes.fromhex("c1"),
    bytes.fromhex("cf0000000000000001"),
    bytes.fromhex("db0000000161"),
)
"""Values as bytes: edges of every limit, formats that the profile lacks, lengths that lie, spellings that are too long."""


def words() -> list[bytes]:
    """The msgpack strings and the short fragments that mutations should know of."""
    texts = {cls.TYPE for cls in m.MESSAGES} | {"type"}
    for cls in (*m.MESSAGES, m.Finding, m.Region, m.Trail):
        texts |= codec.field_types(cls).keys()
    texts |= {str(state) for state in RunState}
    return [pack(text) for text in sorted(texts)] + [v for v in HOSTILE if 0 < len(v) <= 40]
