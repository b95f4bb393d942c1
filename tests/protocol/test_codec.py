"""Control messages: every one there and back, and nothing else."""

from __future__ import annotations

import tracemalloc
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol import messages as m
from protocol.codec import RULES, UNPRINTABLE, decode, encode, field_types, make_printable
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.phases import RunState
from tests.protocol.strategies import MESSAGES
from tests.protocol.test_vectors import load

ID = "0123456789abcdef" * 2
CHECK = m.Check(
    migration=ID,
    dry_run=False,
    force=False,
    run_state=RunState.RUNNING,
    domain={"name": "web1"},
    new_name=None,
    facts={},
)


def attempt(body: bytes) -> tuple[str | None, Any]:
    """(the code it is refused with, or None; the message)."""
    try:
        return None, decode(body)
    except RemoteProtocolError as error:
        return error.code, None


def refusal(body: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(body)
    assert caught.value.code in m.ERROR_CODES
    assert not UNPRINTABLE.search(caught.value.sentence)
    assert len(caught.value.sentence) < 1000
    return caught.value.code


@pytest.mark.parametrize("cls", m.MESSAGES, ids=lambda cls: cls.TYPE)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_round_trip(cls: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(MESSAGES[cls])
    body = encode(message)
    assert decode(body) == message
    assert decode(memoryview(body)) == message
    assert len(body) <= limits.MESSAGE_BYTES_MAX
    assert next(iter(msgpack.unpackb(body))) == "type"


@pytest.mark.parametrize("cls", m.MESSAGES, ids=lambda cls: cls.TYPE)
def test_every_field_is_needed_and_typed(cls: type[m.Message]) -> None:
    """For each field of each message: left out, and empty bytes, which no field may have."""
    fields = dict.fromkeys(field_types(cls), 0)
    for name in fields:
        without = {key: value for key, value in fields.items() if key != name}
        assert refusal(msgpack.packb({"type": cls.TYPE, **without})) == "missing-key"
    sample = next(
        msgpack.unpackb(bytes.fromhex(vector["frame"])[limits.FRAME_HEADER_BYTES :])
        for vector in load("messages")
        if vector["message"]["type"] == cls.TYPE
    )
    for name in fields:
        assert refusal(msgpack.packb({**sample, name: b""})) in ("wrong-type", "bad-value")


def test_no_rule_is_for_nothing() -> None:
    used = {
        name for cls in (*m.MESSAGES, m.Finding, m.Region, m.Trail) for name in field_types(cls)
    }
    assert set(RULES) <= used


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    code, message = attempt(body)
    assert code in m.ERROR_CODES or decode(encode(message)) == message


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(-(2**63), 2**64 - 1), inner),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(PLAIN, st.sampled_from(m.MESSAGES))
def test_any_msgpack(value: Any, cls: type[m.Message]) -> None:
    for body in (
        msgpack.packb(value),
        msgpack.packb({"type": cls.TYPE, **dict.fromkeys(field_types(cls), value)}),
        msgpack.packb({**msgpack.unpackb(encode(CHECK)), "facts": {"x": value}}),
    ):
        code, message = attempt(body)
        assert code in m.ERROR_CODES or decode(encode(message)) == message


def wrap(facts: bytes) -> bytes:
    body = msgpack.packb({"type": "CHECK", **msgpack.unpackb(encode(CHECK)), "facts": 0})
    return body[:-1] + facts


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (b"\x81\xa1x" * 80_000 + b"\xc0", "too-deep"),
        (b"\x81\xa1x" + b"\x91" * 250_000, "too-deep"),
        (b"\x81\xa1x\xdd\x00\x00\x04\x01" + b"\xc0" * 1025, "oversize"),
        (b"\x81\xa1x" + (b"\xdc\x04\x00" + (b"\xdc\x00\xf0" + b"\x80" * 240) * 1024), "oversize"),
        (b"\x81\xa1x\xdb\x7f\xff\xff\xff", "oversize"),
        (b"\xdf\x7f\xff\xff\xff", "oversize"),
        (b"\x81\xa1x\xc9\x7f\xff\xff\xff\x01", "wrong-type"),
    ],
    ids=["maps", "arrays", "long array", "empty maps", "text", "map", "extension"],
)
def test_bombs_cost_nothing(facts: bytes, code: str) -> None:
    body = wrap(facts)
    decode(wrap(b"\x80"))  # whatever is made once is made now
    tracemalloc.start()
    try:
        found = refusal(body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == code
    assert peak_bytes < 64 * limits.KIB


def test_the_dearest_message_that_is_allowed() -> None:
    """As many empty maps as the count of values allows: a few MiB, not a hundred times the message."""
    groups = limits.MESSAGE_VALUES_MAX // 1024 - 1
    body = wrap(b"\x81\xa1x" + bytes([0x90 | groups]) + (b"\xdc\x03\xf0" + b"\x80" * 1008) * groups)
    tracemalloc.start()
    try:
        decode(body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * limits.MIB


def test_the_whole_is_bounded() -> None:
    assert refusal(bytes(limits.MESSAGE_BYTES_MAX + 1)) == "oversize"
    finding = m.Finding(
        code="x", subject="s", sentence="t" * limits.TEXT_BYTES_MAX, remedy="", hard=True
    )
    with pytest.raises(LocalProtocolError, match="oversize"):
        encode(m.Checked(migration=ID, findings=(finding,) * 65))


@pytest.mark.parametrize(
    "message",
    [
        m.Ping(nonce=-1),
        m.Ping(nonce=True),
        m.Ping(nonce=2**64),
        m.Ping(nonce=1.0),  # type: ignore[arg-type]
        m.Ping(nonce=None),  # type: ignore[arg-type]
        m.Handoff(migration=ID.upper()),
        m.Error(code="busy", sentence="a\nb"),
        m.Error(code="busy", sentence="\ud800"),
        m.Error(code="busy", sentence="x" * (limits.TEXT_BYTES_MAX + 1)),
        m.Error(code="Busy", sentence=""),
        m.Installed(migration=ID, digest=b""),
        attrs.evolve(CHECK, facts={"x": 0.5}),
        attrs.evolve(CHECK, facts={"x": {1}}),
        attrs.evolve(CHECK, facts={"x": b"bytes"}),
        attrs.evolve(CHECK, facts={1: 1}),  # type: ignore[dict-item]
        attrs.evolve(CHECK, facts={"x": [[[[[[[1]]]]]]]}),
        attrs.evolve(CHECK, run_state="dead"),  # type: ignore[arg-type]
        m.Message(),
        m.Region(name="r", size_bytes=4096),
    ],
    ids=repr,
)
def test_our_own_messages_obey(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


def test_a_document_that_holds_itself() -> None:
    facts: dict[str, object] = {}
    facts["x"] = facts
    with pytest.raises(LocalProtocolError):
        encode(attrs.evolve(CHECK, facts=facts))


def test_nothing_of_the_buffer_is_kept() -> None:
    buffer = bytearray(encode(m.Installed(migration=ID, digest=bytes(16))))
    message = decode(memoryview(buffer))
    buffer[:] = b"\xff" * len(buffer)
    assert message == m.Installed(migration=ID, digest=bytes(16))


@given(st.text(), st.integers(0, 30))
def test_make_printable(text: str, bytes_max: int) -> None:
    made = make_printable(text, bytes_max)
    assert len(made.encode()) <= bytes_max
    assert not UNPRINTABLE.search(made)
    if not UNPRINTABLE.search(text) and len(text.encode()) <= bytes_max:
        assert made == text
    encode(m.Error(code="busy", sentence=make_printable(text)))
