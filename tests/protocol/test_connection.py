"""Two connections, joined in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol import limits
from protocol import messages as m
from protocol.codec import decode, encode
from protocol.connection import Connection, Received
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.frames import FrameReader, chunk_header, frame_header
from protocol.phases import RunState

ID = "0123456789abcdef" * 2
IDLE = limits.KEEPALIVE_IDLE_SECONDS
DEAD = limits.KEEPALIVE_DEAD_SECONDS


def hello(host: str, *features: str, versions: tuple[int, int] = (1, 1)) -> m.Hello:
    return m.Hello(
        version_min=versions[0],
        version_max=versions[1],
        features=features,
        host=host,
        release="0.1.0",
        journal=ID,
        time_unix_ms=1,
    )


def framed(*messages: m.Message) -> bytes:
    return b"".join(frame_header(len(body)) + body for body in map(encode, messages))


def feed(connection: Connection, data: bytes, now: float = 0.0) -> list[Received]:
    """Chunks are given back with a payload of their own."""
    events: list[Received] = []
    left = memoryview(data)
    while left:
        buffer = connection.get_buffer()
        count = min(len(buffer), len(left))
        buffer[:count] = left[:count]
        left = left[count:]
        connection.receive(count, now)
        while (event := connection.next_event()) is not None:
            if isinstance(event, m.StateChunk):
                event = m.StateChunk(
                    sequence=event.sequence,
                    region=event.region,
                    offset=event.offset,
                    payload=memoryview(bytes(event.payload)),
                )
            events.append(event)
    return events


def read_frames(data: bytes) -> list[m.Message]:
    reader, messages = FrameReader(), []
    reader.get_buffer()[: len(data)] = data
    reader.buffer_filled(len(data))
    while (body := reader.next_frame()) is not None:
        messages.append(decode(body))
    return messages


def move(one: Connection, other: Connection, now: float = 0.0) -> list[Received]:
    return feed(other, one.data_to_send(), now)


def joined(now: float = 0.0) -> tuple[Connection, Connection]:
    source, target = (
        Connection(hello("host-a", "x", "y"), now),
        Connection(hello("host-b", "y"), now),
    )
    assert move(source, target, now) == [source.hello]
    assert move(target, source, now) == [target.hello]
    return source, target


def opened(now: float = 0.0) -> Connection:
    return joined(now)[0]


def refused(connection: Connection, act: Callable[[], object], code: str) -> None:
    """It raises that code, tells the peer so, and is over."""
    connection.data_to_send()
    with pytest.raises(RemoteProtocolError) as caught:
        act()
    assert caught.value.code == code
    assert connection.over
    assert connection.deadline is None
    said = read_frames(connection.data_to_send())
    assert [type(message) for message in said].count(m.Error) == 1
    assert isinstance(said[-1], m.Error)
    assert said[-1].code == code
    connection.send(m.Handoff(migration=ID))
    connection.fail(RemoteProtocolError("busy", "again"))
    connection.tick(1e9)
    assert connection.data_to_send() == b""
    with pytest.raises(RemoteProtocolError, match=code):
        connection.next_event()
    for _ in range(3):  # whatever comes is thrown away
        connection.receive(len(connection.get_buffer()), 0.0)


def test_hello_both_ways() -> None:
    source, target = joined()
    assert source.peer == target.hello
    assert target.peer == source.hello
    assert source.version == target.version == 1
    assert source.features == target.features == {"y"}
    assert not source.over
    assert source.data_to_send() == target.data_to_send() == b""


def test_nothing_is_agreed_before() -> None:
    connection = Connection(hello("host-a", "x"), 0.0)
    assert (connection.peer, connection.version, connection.features) == (None, None, frozenset())
    assert feed(opened(), b"") == []


def test_a_warm_migration() -> None:
    source, target = joined()
    check = m.Check(
        migration=ID,
        dry_run=False,
        force=False,
        run_state=RunState.RUNNING,
        domain={"name": "web1"},
        new_name=None,
        facts={},
    )
    region = m.Region(name="pc.ram", size_bytes=limits.MIB)
    talk: list[tuple[Connection, Connection, m.Message]] = [
        (source, target, check),
        (target, source, m.Checked(migration=ID, findings=())),
        (source, target, m.Prepare(migration=ID, regions=(region,))),
        (target, source, m.PrepareProgress(migration=ID, done_bytes=1, total_bytes=2)),
        (target, source, m.Prepared(migration=ID)),
    ]
    for sender, receiver, message in talk:
        sender.send(message)
        assert move(sender, receiver) == [message]
    payloads = [bytes([n]) * limits.CHUNK_PAYLOAD_BYTES_MAX for n in range(6)]
    stream = b"".join(
        source.send_chunk_header(n // 4, n % 4 * limits.CHUNK_PAYLOAD_BYTES_MAX, len(p)) + p
        for n, p in enumerate(payloads)
    )
    chunks = feed(target, stream)
    assert [bytes(c.payload) for c in chunks if isinstance(c, m.StateChunk)] == payloads
    assert [c.sequence for c in chunks if isinstance(c, m.StateChunk)] == list(range(6))
    digest = m.Digest(migration=ID, digest=bytes(16), chunks=6, device_bytes=5)
    for sender, receiver, message in [
        (source, target, digest),
        (target, source, m.Installed(migration=ID, digest=bytes(16))),
        (source, target, m.Handoff(migration=ID)),
        (target, source, m.HandoffDone(migration=ID)),
        (source, target, m.Released(migration=ID)),
        (target, source, m.Settled(migration=ID)),
    ]:
        sender.send(message)
        assert move(sender, receiver) == [message]


def test_byte_by_byte() -> None:
    target = Connection(hello("host-b"), 0.0)
    stream = framed(hello("host-a"), m.Handoff(migration=ID)) + chunk_header(0, 0, 0, 3) + b"abc"
    events: list[Received] = []
    for byte in stream:
        events += feed(target, bytes([byte]))
    assert events[:2] == [hello("host-a"), m.Handoff(migration=ID)]
    assert isinstance(events[2], m.StateChunk)
    assert events[2].payload == b"abc"


def test_only_hello_is_small() -> None:
    """4 KiB before HELLO; the limit is lifted for the very next frame, in the same receive."""
    connection = Connection(hello("host-a"), 0.0)
    large = m.Error(code="busy", sentence="x" * limits.TEXT_BYTES_MAX)
    refused(connection, lambda: feed(connection, framed(large)), "oversize")
    connection = Connection(hello("host-a"), 0.0)
    assert feed(connection, framed(hello("host-b"), large)) == [hello("host-b"), large]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (framed(m.Handoff(migration=ID)), "hello-expected"),
        (chunk_header(0, 0, 0, 1) + b"x", "hello-expected"),
        (framed(hello("b", versions=(2, 2))), "no-common-version"),
        (framed(hello("b"), hello("b")), "unexpected-message"),
        (framed(hello("b")) + chunk_header(1, 0, 0, 1) + b"x", "sequence"),
        (framed(hello("b"), m.Pong(nonce=0)), "bad-value"),
        (framed(hello("b")) + b"GET", "bad-frame"),
        (framed(hello("b")) + b"\xce\x00\x00\x00\x01\xc1", "bad-msgpack"),
    ],
)
def test_broken_rules(stream: bytes, code: str) -> None:
    connection = Connection(hello("host-a"), 0.0)
    refused(connection, lambda: feed(connection, stream), code)


def test_what_came_before_the_fault_is_given_out() -> None:
    connection = opened()
    data = framed(m.Handoff(migration=ID)) + b"\xff"
    connection.get_buffer()[: len(data)] = data
    connection.receive(len(data), 0.0)
    assert connection.next_event() == m.Handoff(migration=ID)
    with pytest.raises(RemoteProtocolError, match="bad-frame"):
        connection.next_event()


def test_error_is_the_last_word() -> None:
    source, target = joined()
    target.send(m.Error(code="stopping", sentence="the manager is stopping"))
    target.send(m.Handoff(migration=ID))
    assert target.over
    said = target.data_to_send() + b"anything at all"
    assert feed(source, said) == [m.Error(code="stopping", sentence="the manager is stopping")]
    assert source.over
    assert source.next_event() is None
    assert source.deadline is None
    source.send(m.Handoff(migration=ID))
    assert source.data_to_send() == b""
    assert target.next_event() is None  # we ended it ourselves: nothing to raise


def test_error_instead_of_hello() -> None:
    connection = Connection(hello("host-a"), 0.0)
    error = m.Error(code="not-allowed", sentence="no peer here")
    assert feed(connection, framed(error)) == [error]
    assert connection.over


def test_fail_makes_any_sentence_printable() -> None:
    source, target = joined()
    target.fail(RemoteProtocolError("wrong-host", "says \x1b[2J\n" + "é" * limits.TEXT_BYTES_MAX))
    (error,) = move(target, source)
    assert isinstance(error, m.Error)
    assert error.code == "wrong-host"
    assert error.sentence.startswith("says  [2J é")


def test_the_end_of_the_stream_comes_in_order() -> None:
    connection = opened()
    data = framed(m.HandoffDone(migration=ID))
    connection.get_buffer()[: len(data)] = data
    connection.receive(len(data), 0.0)
    connection.receive_eof(0.0)
    assert not connection.over
    assert connection.deadline is None
    assert connection.next_event() == m.HandoffDone(migration=ID)
    assert connection.next_event() is None
    assert connection.over


def test_the_end_in_the_middle_of_a_frame() -> None:
    connection = opened()
    assert feed(connection, framed(m.HandoffDone(migration=ID))[:-1]) == []
    connection.receive_eof(0.0)
    with pytest.raises(RemoteProtocolError, match="bad-frame"):
        connection.next_event()


@pytest.mark.parametrize(
    "message", [hello("a"), m.Ping(nonce=0), m.Pong(nonce=0)], ids=lambda x: x.TYPE
)
def test_the_connection_says_its_own_itself(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError):
        opened().send(message)


def test_nothing_before_hello() -> None:
    connection = Connection(hello("host-a"), 0.0)
    with pytest.raises(LocalProtocolError):
        connection.send(m.Handoff(migration=ID))
    with pytest.raises(LocalProtocolError):
        connection.send_chunk_header(0, 0, 1)


def test_sending_on_a_link_that_is_over_is_lost_not_a_bug() -> None:
    connection = opened()
    connection.fail(RemoteProtocolError("busy", "x"))
    connection.data_to_send()
    connection.send(m.Handoff(migration=ID))
    assert connection.send_chunk_header(0, 0, 1) == chunk_header(0, 0, 0, 1)
    assert connection.data_to_send() == b""


# ---- time ----------------------------------------------------------------------------------------------


def test_no_hello_in_time() -> None:
    connection = Connection(hello("host-a"), 10.0)
    assert connection.deadline == 10.0 + limits.HELLO_SECONDS
    connection.tick(10.0 + limits.HELLO_SECONDS - 0.01)
    refused(connection, lambda: connection.tick(10.0 + limits.HELLO_SECONDS), "too-slow")


def test_slow_drops_of_bytes_do_not_put_hello_off() -> None:
    connection = Connection(hello("host-a"), 0.0)
    for second, byte in enumerate(framed(hello("host-b"))[:4]):
        assert feed(connection, bytes([byte]), float(second)) == []
    refused(connection, lambda: connection.tick(limits.HELLO_SECONDS), "too-slow")


def test_idle_links_live_for_ever() -> None:
    """An hour: each side ticks at its deadline, and a PING is answered. Neither speaks more than it must."""
    source, target = joined()
    now, sent_bytes = 0.0, 0
    while now < 3600:
        assert source.deadline is not None
        assert target.deadline is not None
        now = min(source.deadline, target.deadline)
        for one, other in ((source, target), (target, source)):
            one.tick(now)
            data = one.data_to_send()
            sent_bytes += len(data)
            assert feed(other, data, now) == []
            assert feed(one, other.data_to_send(), now) == []
    assert sent_bytes < 3600 / IDLE * 2 * len(framed(m.Ping(nonce=2**20)))


def test_a_busy_one_way_link_lives() -> None:
    """Chunks flow for a minute; the source's PINGs are stuck behind them, the target's keep it alive."""
    source, target = joined()
    for tenth in range(1, 600):
        now = tenth / 10
        feed(target, source.send_chunk_header(0, 0, 1) + b"x", now)
        source.tick(now)
        target.tick(now)
        move(target, source, now)
        source.data_to_send()  # and never gets through
    assert not source.over
    assert not target.over


def test_a_dead_link() -> None:
    connection = opened(100.0)
    pings = []
    while connection.deadline is not None and connection.deadline < 100.0 + DEAD:
        connection.tick(connection.deadline)
        pings.append(connection.data_to_send())
    assert pings == [framed(m.Ping(nonce=n)) for n in range(3)]
    refused(connection, lambda: connection.tick(100.0 + DEAD), "too-slow")


def test_any_byte_is_a_sign_of_life() -> None:
    connection = opened()
    frame = chunk_header(0, 0, 0, 100) + bytes(100)
    for second, byte in enumerate(frame[:60]):
        feed(connection, bytes([byte]), float(second))
        connection.tick(second + 0.5)
    assert not connection.over


def test_pings_are_answered_in_order() -> None:
    source, target = joined()
    for now in (IDLE, 2 * IDLE):
        source.tick(now)
    assert move(source, target, 2 * IDLE) == []
    answer = target.data_to_send()
    assert answer == framed(m.Pong(nonce=0), m.Pong(nonce=1))
    assert feed(source, answer, 2 * IDLE) == []
    refused(source, lambda: feed(source, framed(m.Pong(nonce=1))), "bad-value")


def test_pings_of_a_peer_that_does_not_read() -> None:
    connection = opened()
    for _ in range(5):
        feed(connection, framed(m.Ping(nonce=1)) * limits.PINGS_UNANSWERED_MAX)
        connection.data_to_send()
    flood = framed(m.Ping(nonce=1)) * (limits.PINGS_UNANSWERED_MAX + 1)
    refused(connection, lambda: feed(connection, flood), "unexpected-message")
