"""Writes ``protocol/vectors/*.json``: ``python -m tests.protocol.make_vectors``. Only a person runs this; no test does.

Frames are put together from bytes and msgpack here, not with the project's codec: what the vectors say is what
``docs/protocol.md`` says, and the code is measured against it.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgpack

FOLDER = Path(__file__).parents[2] / "protocol" / "vectors"
ID = "00112233445566778899aabbccddeeff"
DIGEST = bytes(range(16))


def frame(body: bytes) -> bytes:
    return b"\xce" + struct.pack(">I", len(body)) + body


def pack(name: str, **fields: Any) -> bytes:
    body: bytes = msgpack.packb({"type": name, **fields})
    return frame(body)


def hello(**changes: Any) -> dict[str, Any]:
    return {
        "version_min": 1,
        "version_max": 1,
        "features": ["alpha", "beta"],
        "host": "host-a.example",
        "release": "0.1.0",
        "journal": ID,
        "time_unix_ms": 1_790_000_000_000,
        **changes,
    }


FINDING = {
    "code": "volume-missing",
    "subject": "vdisk disk0",
    "sentence": "there is no volume web1 — look at the service",
    "remedy": "add it",
    "hard": True,
}
DOMAIN = {
    "name": "web1",
    "memory-bytes": 536_870_912,
    "vdisks": [{"name": "disk0", "volume": "web1", "service": "primary", "read-only": False}],
    "variables": {"auto-boot?": "true"},
}
CHECK = {
    "migration": ID,
    "dry_run": False,
    "force": False,
    "run_state": "running",
    "domain": DOMAIN,
    "new_name": None,
    "facts": {"hypervisor-version": [7, 2, 0], "offset": -1, "volumes": {"web1@primary": 2**40}},
}
WHY = {"migration": ID, "code": "cancelled", "sentence": "cancelled by an operator"}
CONSOLE = {
    "uuid": "00112233-4455-6677-8899-aabbccddeeff",
    "user": "alice",
    "access": "write",
    "stay": None,
    "position": None,
    "replay_lines": 24,
}
UUID = "01234567-89ab-cdef-0123-456789abcdef"
TRAIL = {"migration": ID, "role": "target", "kinds": ["PREPARED", "COMMITTED", "RUNNING"]}
REGIONS = [{"name": "pc.ram", "size_bytes": 2**29}, {"name": "pc.rom", "size_bytes": 2**18}]

VALID: list[tuple[str, str, dict[str, Any]]] = [
    ("hello", "HELLO", hello()),
    ("hello without features", "HELLO", hello(features=[], version_max=65535)),
    ("ping", "PING", {"nonce": 0}),
    ("ping with the largest nonce", "PING", {"nonce": 2**64 - 1}),
    ("pong", "PONG", {"nonce": 7}),
    ("error", "ERROR", {"code": "stopping", "sentence": "the manager is stopping"}),
    ("error with a code of a later release", "ERROR", {"code": "not-known-yet", "sentence": ""}),
    ("check", "CHECK", CHECK),
    (
        "check, dry run under another name",
        "CHECK",
        {**CHECK, "dry_run": True, "run_state": "inactive", "new_name": "web2", "facts": {}},
    ),
    ("check, forced", "CHECK", {**CHECK, "force": True, "run_state": "suspended"}),
    ("checked", "CHECKED", {"migration": ID, "findings": [FINDING, {**FINDING, "hard": False}]}),
    ("checked, nothing found", "CHECKED", {"migration": ID, "findings": []}),
    ("prepare", "PREPARE", {"migration": ID, "regions": REGIONS}),
    ("prepare, cold", "PREPARE", {"migration": ID, "regions": []}),
    (
        "prepare progress",
        "PREPARE_PROGRESS",
        {"migration": ID, "done_bytes": 2**20, "total_bytes": 2**29},
    ),
    ("prepared", "PREPARED", {"migration": ID}),
    (
        "digest",
        "DIGEST",
        {"migration": ID, "digest": DIGEST, "chunks": 2**32, "device_bytes": 200_000},
    ),
    ("installed", "INSTALLED", {"migration": ID, "digest": DIGEST}),
    ("handoff", "HANDOFF", {"migration": ID}),
    ("handoff done", "HANDOFF_DONE", {"migration": ID}),
    ("handoff lost", "HANDOFF_LOST", {"migration": ID}),
    ("handoff refused", "HANDOFF_REFUSED", WHY),
    ("released", "RELEASED", {"migration": ID}),
    ("settled", "SETTLED", {"migration": ID}),
    ("refused", "REFUSED", WHY),
    ("cancel", "CANCEL", WHY),
    ("console open", "CONSOLE_OPEN", CONSOLE),
    (
        "console open, going on where it was",
        "CONSOLE_OPEN",
        {**CONSOLE, "access": "force", "stay": ID, "position": 2**40, "replay_lines": 0},
    ),
    ("console opened", "CONSOLE_OPENED", {"stay": ID, "position": 0, "writer": None}),
    (
        "console opened, in use",
        "CONSOLE_OPENED",
        {"stay": ID, "position": 7, "writer": "bob@host-c"},
    ),
    ("console output", "CONSOLE_OUTPUT", {"position": 7, "data": b"login: \x1b[0m"}),
    ("console input", "CONSOLE_INPUT", {"data": b"\x03"}),
    ("console taken", "CONSOLE_TAKEN", {"count": 2**40}),
    ("console writer", "CONSOLE_WRITER", {"writer": "bob"}),
    ("console writer, the opener again", "CONSOLE_WRITER", {"writer": None}),
    (
        "console closed, the domain has moved",
        "CONSOLE_CLOSED",
        {"code": "moved", "sentence": "web1 has moved to host-c", "moved_to": "host-c"},
    ),
    (
        "console closed, the domain has stopped",
        "CONSOLE_CLOSED",
        {"code": "stopped", "sentence": "web1 has stopped", "moved_to": None},
    ),
    ("ask", "ASK", {"migration": ID, "uuid": UUID}),
    ("standing", "STANDING", {"migration": ID, "holding": "owned", "trails": [TRAIL]}),
    ("standing of nothing", "STANDING", {"migration": ID, "holding": "nothing", "trails": []}),
]

BLOCK = bytes(range(64))


def chunk(sequence: bytes, region: bytes, offset: bytes, binary: bytes) -> bytes:
    return frame(b"\x94" + sequence + region + offset + binary)


CHUNKS: list[tuple[str, bool, bytes, tuple[int, int, int]]] = [
    (
        "state chunk",
        True,
        chunk(
            b"\xcf" + struct.pack(">Q", 3),
            b"\xcf" + struct.pack(">Q", 1),
            b"\xcf" + struct.pack(">Q", 65536),
            b"\xc6" + struct.pack(">I", len(BLOCK)) + BLOCK,
        ),
        (3, 1, 65536),
    ),
    (
        "state chunk, integers at their shortest",
        False,
        chunk(b"\x03", b"\x01", b"\xce\x00\x01\x00\x00", b"\xc4\x40" + BLOCK),
        (3, 1, 65536),
    ),
    (
        "state chunk, signed integers",
        False,
        chunk(b"\xd0\x03", b"\xd1\x00\x01", b"\xd2\x00\x01\x00\x00", b"\xc5\x00\x40" + BLOCK),
        (3, 1, 65536),
    ),
]

NON_CANONICAL: list[tuple[str, str, bytes, dict[str, Any]]] = [
    (
        "ping, type last and the nonce as a uint64",
        "PING",
        frame(b"\x82\xa5nonce\xcf" + struct.pack(">Q", 5) + b"\xa4type\xa4PING"),
        {"nonce": 5},
    ),
    (
        "ping, map16 and str8",
        "PING",
        frame(b"\xde\x00\x02\xd9\x04type\xd9\x04PING\xd9\x05nonce\x05"),
        {"nonce": 5},
    ),
]


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


ERROR_BODY = {"code": "busy", "sentence": "x"}
INVALID: list[tuple[str, str, bytes]] = [
    ("first byte is no frame's", "bad-frame", b"\x16\x03\x01\x02\x00"),
    ("HTTP", "bad-frame", b"GET / HTTP/1.1\r\n\r\n"),
    ("body of nothing", "bad-frame", b"\xce\x00\x00\x00\x00"),
    ("body longer than any", "oversize", b"\xce\xff\xff\xff\xff"),
    ("body one byte too long", "oversize", b"\xce" + struct.pack(">I", 262_144 + 33 + 1)),
    ("text too long", "oversize", pack("ERROR", code="busy", sentence="x" * 4097)),
    ("name too long", "oversize", pack("HELLO", **hello(host="h" * 65))),
    ("binary too long", "oversize", pack("INSTALLED", migration=ID, digest=bytes(16_385))),
    ("console output too long", "oversize", pack("CONSOLE_INPUT", data=bytes(16_385))),
    ("too many lines", "bad-value", pack("CONSOLE_OPEN", **{**CONSOLE, "replay_lines": 1001})),
    ("input of nothing", "bad-value", pack("CONSOLE_INPUT", data=b"")),
    (
        "uuid of a console in upper case",
        "bad-value",
        pack("CONSOLE_OPEN", **{**CONSOLE, "uuid": "A" * 36}),
    ),
    ("no such access", "bad-value", pack("CONSOLE_OPEN", **{**CONSOLE, "access": "admin"})),
    ("user with an escape", "bad-value", pack("CONSOLE_OPEN", **{**CONSOLE, "user": "a\x1bb"})),
    ("binary that says it is 4 GiB", "oversize", frame(b"\x81\xa1x\xc6\xff\xff\xff\xff")),
    ("text that says it is 4 GiB", "oversize", frame(b"\x81\xa1x\xdb\xff\xff\xff\xff")),
    ("array that says it has 2**32-1 items", "oversize", frame(b"\x81\xa1x\xdd\xff\xff\xff\xff")),
    ("map that says it has 2**32-1 items", "oversize", frame(b"\xdf\xff\xff\xff\xff")),
    (
        "too many features",
        "oversize",
        pack("HELLO", **hello(features=[f"f{n}" for n in range(33)])),
    ),
    (
        "too many regions",
        "oversize",
        pack(
            "PREPARE",
            migration=ID,
            regions=[{"name": f"r{n}", "size_bytes": 4096} for n in range(17)],
        ),
    ),
    ("reserved byte", "bad-msgpack", frame(b"\xc1")),
    ("value broken off", "bad-msgpack", frame(b"\x82\xa4type\xa4PING\xa5nonce")),
    ("text broken off", "bad-msgpack", frame(b"\x81\xa4type\xa4PI")),
    (
        "bytes behind the message",
        "bad-msgpack",
        frame(msgpack.packb({"type": "PING", "nonce": 1}) + b"\xc0"),
    ),
    ("array bomb", "too-deep", frame(b"\x91" * 4096)),
    ("map bomb", "too-deep", frame(b"\x81\xa1x" * 1024)),
    ("nine levels", "too-deep", pack("CHECK", **{**CHECK, "facts": {"x": nested(7)}})),
    ("text is not UTF-8", "bad-utf8", frame(b"\x82\xa4type\xa4PING\xa5nonce\xa1\xff")),
    ("text has a surrogate", "bad-utf8", frame(b"\x82\xa4type\xa3\xed\xa0\x80\xa5nonce\x01")),
    ("type of no message", "unknown-type", pack("HELO")),
    ("unknown field", "unknown-key", pack("PING", nonce=1, more=2)),
    ("field twice", "unknown-key", frame(b"\x83\xa4type\xa4PING\xa5nonce\x01\xa5nonce\x02")),
    ("type twice", "unknown-key", frame(b"\x82\xa4type\xa4PING\xa4type\xa4PING")),
    (
        "key twice inside a document",
        "unknown-key",
        frame(
            msgpack.packb({"type": "CHECK", **CHECK, "facts": 0})[:-1] + b"\x82\xa1x\x01\xa1x\x02"
        ),
    ),
    ("field missing", "missing-key", pack("PING")),
    ("type missing", "missing-key", frame(msgpack.packb({"nonce": 1}))),
    (
        "field of a finding missing",
        "missing-key",
        pack("CHECKED", migration=ID, findings=[{k: v for k, v in FINDING.items() if k != "hard"}]),
    ),
    ("message is a number", "wrong-type", frame(b"\x01")),
    ("message is an array of two", "wrong-type", frame(b"\x92\x01\x02")),
    ("type is a number", "wrong-type", frame(b"\x81\xa4type\x01")),
    ("boolean where an integer belongs", "wrong-type", pack("PING", nonce=True)),
    ("integer where a boolean belongs", "wrong-type", pack("CHECK", **{**CHECK, "dry_run": 1})),
    ("float", "wrong-type", pack("PING", nonce=1.0)),
    ("float inside a document", "wrong-type", pack("CHECK", **{**CHECK, "facts": {"x": 0.5}})),
    ("extension", "wrong-type", pack("PING", nonce=msgpack.ExtType(1, b"x"))),
    ("timestamp", "wrong-type", pack("PING", nonce=msgpack.Timestamp(1, 0))),
    ("binary inside a document", "wrong-type", pack("CHECK", **{**CHECK, "facts": {"x": b""}})),
    ("key is a number", "wrong-type", frame(b"\x82\xa4type\xa4PING\x01\x01")),
    ("key is an array", "wrong-type", frame(b"\x82\xa4type\xa4PING\x90\x01")),
    ("text where a binary belongs", "wrong-type", pack("INSTALLED", migration=ID, digest="x" * 16)),
    ("null where nothing may be left out", "wrong-type", pack("PING", nonce=None)),
    ("negative integer", "bad-value", pack("PING", nonce=-1)),
    ("migration in upper case", "bad-value", pack("HANDOFF", migration=ID.upper())),
    ("migration too short", "bad-value", pack("HANDOFF", migration=ID[:-1])),
    ("migration with a line end", "bad-value", pack("HANDOFF", migration=ID + "\n")),
    ("digest too short", "bad-value", pack("INSTALLED", migration=ID, digest=DIGEST[:-1])),
    ("no such run state", "bad-value", pack("CHECK", **{**CHECK, "run_state": "dead"})),
    ("code with a space", "bad-value", pack("ERROR", **{**ERROR_BODY, "code": "to busy"})),
    ("terminal escape", "bad-value", pack("ERROR", **{**ERROR_BODY, "sentence": "\x1b[2J"})),
    ("C1 control", "bad-value", pack("ERROR", **{**ERROR_BODY, "sentence": "\x9b2J"})),
    ("line end", "bad-value", pack("ERROR", **{**ERROR_BODY, "sentence": "a\nb"})),
    ("turned text", "bad-value", pack("ERROR", **{**ERROR_BODY, "sentence": "\u202eb"})),
    ("control in a document's key", "bad-value", pack("CHECK", **{**CHECK, "facts": {"\x07": 1}})),
    ("host without a name", "bad-value", pack("HELLO", **hello(host=""))),
    ("versions the wrong way round", "bad-value", pack("HELLO", **hello(version_min=2))),
    ("feature twice", "bad-value", pack("HELLO", **hello(features=["x", "x"]))),
    (
        "region of a half page",
        "bad-value",
        pack("PREPARE", migration=ID, regions=[{"name": "r", "size_bytes": 2048}]),
    ),
    ("region twice", "bad-value", pack("PREPARE", migration=ID, regions=[REGIONS[0]] * 2)),
    (
        "regions too large together",
        "bad-value",
        pack(
            "PREPARE",
            migration=ID,
            regions=[{"name": n, "size_bytes": 3 * 2**40} for n in ("a", "b")],
        ),
    ),
    (
        "more done than there is",
        "bad-value",
        pack("PREPARE_PROGRESS", migration=ID, done_bytes=2, total_bytes=1),
    ),
    ("uuid in upper case", "bad-value", pack("ASK", migration=ID, uuid=UUID.upper())),
    (
        "trail twice",
        "bad-value",
        pack("STANDING", migration=ID, holding="nothing", trails=[TRAIL, TRAIL]),
    ),
    (
        "too many records",
        "oversize",
        pack("STANDING", migration=ID, holding="nothing", trails=[TRAIL | {"kinds": ["X"] * 17}]),
    ),
    (
        "no such holding",
        "bad-value",
        pack("STANDING", migration=ID, holding="both", trails=[]),
    ),
    ("chunk without payload", "bad-value", chunk(b"\x00", b"\x00", b"\x00", b"\xc4\x00")),
    ("chunk with a negative offset", "bad-value", chunk(b"\x00", b"\x00", b"\xff", b"\xc4\x01x")),
    ("chunk of region 17", "bad-value", chunk(b"\x00", b"\x11", b"\x00", b"\xc4\x01x")),
    (
        "chunk that says it has too much",
        "oversize",
        chunk(b"\x00", b"\x00", b"\x00", b"\xc6" + struct.pack(">I", 262_145) + b"x"),
    ),
    (
        "chunk longer than its payload",
        "bad-msgpack",
        chunk(b"\x00", b"\x00", b"\x00", b"\xc4\x01xy"),
    ),
    (
        "chunk shorter than its payload",
        "bad-msgpack",
        chunk(b"\x00", b"\x00", b"\x00", b"\xc4\x02x"),
    ),
    ("chunk that ends in its offset", "bad-msgpack", chunk(b"\x00", b"\x00", b"\xcf\x00", b"")),
    ("chunk with a text", "wrong-type", chunk(b"\x00", b"\x00", b"\x00", b"\xa1x")),
    ("chunk with a null", "wrong-type", chunk(b"\x00", b"\xc0", b"\x00", b"\xc4\x01x")),
    ("chunk of five", "wrong-type", frame(b"\x95\x00\x00\x00\xc4\x01x\x00")),
]

HELLO_B = pack("HELLO", **hello(host="host-b"))
PREPARED = pack("PREPARED", migration=ID)


def numbered(sequence: int) -> bytes:
    return chunk(bytes([sequence]), b"\x00", b"\x00", b"\xc4\x01x")


CONVERSATIONS: list[tuple[str, list[str], str | None, bytes]] = [
    ("a message after HELLO", ["HELLO", "PREPARED"], None, HELLO_B + PREPARED),
    (
        "a console's message after HELLO",
        ["HELLO", "CONSOLE_OPEN"],
        None,
        HELLO_B + pack("CONSOLE_OPEN", **CONSOLE),
    ),
    ("a console's message before HELLO", [], "hello-expected", pack("CONSOLE_TAKEN", count=1)),
    ("chunks in order", ["HELLO", "chunk", "chunk"], None, HELLO_B + numbered(0) + numbered(1)),
    ("ERROR is the last", ["HELLO", "ERROR"], None, HELLO_B + pack("ERROR", **ERROR_BODY) + b"xyz"),
    ("ERROR instead of HELLO", ["ERROR"], None, pack("ERROR", **ERROR_BODY)),
    ("PING is not given out", ["HELLO"], None, HELLO_B + pack("PING", nonce=9)),
    ("no HELLO", [], "hello-expected", PREPARED),
    ("PING before HELLO", [], "hello-expected", pack("PING", nonce=0) + HELLO_B),
    ("chunk before HELLO", [], "hello-expected", numbered(0)),
    ("more than 4 KiB before HELLO", [], "oversize", b"\xce" + struct.pack(">I", 4097)),
    ("HELLO twice", ["HELLO"], "unexpected-message", HELLO_B + HELLO_B),
    (
        "version 2 alone",
        [],
        "no-common-version",
        pack("HELLO", **hello(version_min=2, version_max=3)),
    ),
    ("first chunk is number 1", ["HELLO"], "sequence", HELLO_B + numbered(1)),
    ("chunk twice", ["HELLO", "chunk"], "sequence", HELLO_B + numbered(0) + numbered(0)),
    ("chunk left out", ["HELLO", "chunk"], "sequence", HELLO_B + numbered(0) + numbered(2)),
    ("PONG without PING", ["HELLO"], "bad-value", HELLO_B + pack("PONG", nonce=0)),
    ("17 PINGs at once", ["HELLO"], "unexpected-message", HELLO_B + pack("PING", nonce=0) * 17),
]


def to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    return value


def build() -> dict[str, list[dict[str, Any]]]:
    messages = [
        {
            "name": n,
            "canonical": True,
            "frame": pack(t, **f).hex(),
            "message": {"type": t, **to_json(f)},
        }
        for n, t, f in VALID
    ] + [
        {"name": n, "canonical": False, "frame": b.hex(), "message": {"type": t, **to_json(f)}}
        for n, t, b, f in NON_CANONICAL
    ]
    chunks = [
        {
            "name": name,
            "canonical": canonical,
            "frame": body.hex(),
            "chunk": dict(zip(("sequence", "region", "offset"), place, strict=True))
            | {"payload": {"hex": BLOCK.hex()}},
        }
        for name, canonical, body, place in CHUNKS
    ]
    invalid = [{"name": n, "code": c, "frame": b.hex()} for n, c, b in INVALID]
    conversations = [
        {"name": n, "events": e, "code": c, "stream": s.hex()} for n, e, c, s in CONVERSATIONS
    ]
    return {
        "messages": messages,
        "chunks": chunks,
        "invalid": invalid,
        "conversations": conversations,
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, vectors in build().items():
        text = json.dumps(vectors, indent=1, ensure_ascii=True)
        (FOLDER / f"{name}.json").write_text(text + "\n")
