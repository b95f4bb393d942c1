"""The targets without atheris: their seeds, kept cases, hypothesis' bytes; and that each finds what is planted for it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import codec
from protocol import messages as m
from protocol.connection import Connection
from protocol.errors import RemoteProtocolError
from tests.fuzz import samples, target
from tests.fuzz.codec_target import build_body
from tests.fuzz.plants import PLANTS, planted
from tests.fuzz.session_target import Play, feed, put
from tests.fuzz.target import InputHung, MemoryExceeded, examine, watching
from tests.fuzz.targets import TARGETS

CASES: Final = sorted((Path(__file__).parent / "cases").iterdir())
SEEDS: Final = {name: each.seeds() for name, each in TARGETS.items()}
NAMES: Final = pytest.mark.parametrize("name", TARGETS)


@pytest.fixture(autouse=True)
def _watching() -> Iterator[None]:
    with watching():
        yield


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_what_failed_once(path: Path) -> None:
    examine(TARGETS[path.name.split("-")[0]], path.read_bytes(), measured=True)


@NAMES
def test_seeds(name: str) -> None:
    for number, seed in enumerate(SEEDS[name]):
        assert len(seed) <= TARGETS[name].input_bytes_max
        examine(TARGETS[name], seed, measured=number % 16 == 0)


@NAMES
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_seeds(name: str, data: st.DataObject) -> None:
    stream = bytearray(data.draw(st.sampled_from(SEEDS[name]) | st.binary(max_size=64)))
    places = st.tuples(st.integers(0, 4096), st.integers(0, 255), st.booleans())
    for place, byte, inserted in data.draw(st.lists(places, max_size=6)):
        at = place % (len(stream) + 1)
        stream[at : at + (not inserted)] = bytes([byte])
    examine(TARGETS[name], bytes(stream), measured=False)


# ---- the targets reach what they are for -------------------------------------------------------------------


def play(*steps: int) -> Play:
    return feed(bytes(steps))


def test_scripts_go_through() -> None:
    """Each side, warm and cold, ends with the domain where it belongs."""
    parties = [play(how, 0, 15).party for how in range(4)]
    assert [party.machine.state for party in parties] == ["moved"] * 4
    assert {(party.side, str(party.mode)) for party in parties} == {
        (side, mode) for side in ("source", "target") for mode in ("warm", "cold")
    }
    assert [party.code for party in parties] == [None] * 4


def test_all_that_a_session_refuses_is_reached() -> None:
    codes = {feed(seed).party.code for seed in SEEDS["session"]}
    assert codes >= {
        None,
        "bad-frame",
        "bad-msgpack",
        "bad-value",
        "hello-expected",
        "missing-key",
        "no-common-version",
        "oversize",
        "sequence",
        "too-deep",
        "too-slow",
        "unexpected-message",
        "unknown-key",
        "wrong-migration",
        "wrong-type",
    }


def test_all_that_the_codec_refuses_is_reached() -> None:
    seen = [TARGETS["codec"].feed(seed) for seed in SEEDS["codec"]]
    assert {type(each.message) for each in seen if each.message} == set(m.MESSAGES)
    assert {each.code for each in seen if each.code} == {
        "bad-msgpack",
        "bad-utf8",
        "bad-value",
        "missing-key",
        "oversize",
        "too-deep",
        "unknown-key",
        "unknown-type",
        "wrong-type",
    }


def test_a_field_alone_is_replaced() -> None:
    body = build_body(bytes([2, 1]) + samples.pack(2**40))
    assert codec.decode(body) == m.Ping(nonce=2**40)


# ---- what is planted is found ------------------------------------------------------------------------------

WITNESSES: Final[dict[str, tuple[bytes, type[BaseException]]]] = {
    "crash": (b"\x81\xa1ldmd", KeyError),
    "wrong-value": (
        codec.encode(
            m.Digest(migration=samples.ID, digest=samples.DIGEST, chunks=2**32, device_bytes=0)
        ),
        AssertionError,
    ),
    "hang": (b"\x85\x00\x80", InputHung),
    "believed-length": (b"\xde\xff\xff", MemoryExceeded),
    "one-byte-more": (b"\x00" + put(bytes(81)), AssertionError),
    "rest-of-chunk": (b"\x00" + put(b"\x94\x00\x00\x00\xc4\x07chunk 0!"), AssertionError),
    "any-sequence": (bytes([1, 0, 0, 7, 4, 0]), AssertionError),
    "unforeseen-message": (bytes([0, 0, 15]), KeyError),
    "pongs-without-end": (bytes([0, 0, 0, *[10, 1] * 16]), AssertionError),
    "kept-connection": (bytes([0, 13, 0]), MemoryExceeded),
}


@pytest.mark.parametrize("name", PLANTS)
def test_what_is_planted_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, error = WITNESSES[name]
    found_by = TARGETS[PLANTS[name].target]
    examine(found_by, data, measured=True)
    monkeypatch.setattr(target, "CPU_SECONDS_MAX", 0.2)
    with planted(name), pytest.raises(error):
        examine(found_by, data, measured=True)
    examine(found_by, data, measured=True)  # and dug up again


# ---- what was found ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "now"),
    [
        (b"GET / HTTP/1.1", 0.0),
        (put(b"\xc1"), 0.0),
        (samples.frame(samples.PEER_HELLO) * 2, 0.0),
        (b"", 6.0),
        (samples.frame(samples.PEER_HELLO), 9.0),
    ],
    ids=["no frame", "no message", "not now", "no HELLO", "silent"],
)
def test_a_link_that_ended_badly_holds_no_memory(stream: bytes, now: float) -> None:
    """Its receive buffer is gone with it, and not when the collector of cycles comes by: peers can fail faster than that."""
    gc.collect()
    gc.disable()
    try:
        connection = Connection(samples.HELLO, 0.0)
        buffer = weakref.ref(connection._frames)
        connection.get_buffer()[: len(stream)] = stream
        connection.receive(len(stream), 0.0)
        with pytest.raises(RemoteProtocolError) as caught:
            _use_up(connection, now)
        del caught, connection
        assert buffer() is None
    finally:
        gc.enable()


def _use_up(connection: Connection, now: float) -> None:
    while connection.next_event() is not None:
        pass
    for second in range(round(now) + 1):
        connection.tick(float(second))
