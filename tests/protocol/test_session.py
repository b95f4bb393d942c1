"""The session's table, and its times."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol import messages as m
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.session import (
    PEER_EVENTS,
    ROWS,
    UNEXPECTED,
    Keepalive,
    Session,
    SessionEvent,
    SessionState,
    agree,
    event_of,
)
from tests.protocol.strategies import MESSAGES

IDLE = limits.KEEPALIVE_IDLE_SECONDS
DEAD = limits.KEEPALIVE_DEAD_SECONDS


def test_one_row_each() -> None:
    keys = [(row.state, row.event) for row in ROWS]
    assert len(keys) == len(set(keys))
    assert {row.next_state for row in ROWS} | {SessionState.GREETING} == set(SessionState)
    assert {row.event for row in ROWS} == set(SessionEvent)


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(SessionState, SessionEvent)), ids=str
)
def test_every_pair(state: SessionState, event: SessionEvent) -> None:
    session = Session()
    session.state = state
    row = next((r for r in ROWS if (r.state, r.event) == (state, event)), None)
    if row is not None:
        assert session.step(event) == row.actions
        assert session.state is row.next_state
    elif event in PEER_EVENTS and state in UNEXPECTED:
        with pytest.raises(RemoteProtocolError) as caught:
            session.step(event)
        assert caught.value.code == UNEXPECTED[state]
    else:
        with pytest.raises(LocalProtocolError):
            session.step(event)


def test_a_fault_can_be_met_wherever_the_peer_is_listened_to() -> None:
    for state in UNEXPECTED:
        for event in (SessionEvent.FAULT, SessionEvent.OVERDUE):
            session = Session()
            session.state = state
            session.step(event)
            assert session.state is SessionState.FAILED


def test_each_message_is_an_event() -> None:
    own = {m.Hello: "HELLO", m.Ping: "PING", m.Pong: "PONG", m.Error: "ERROR"}
    for cls in m.MESSAGES:
        message = cls.__new__(cls)
        kind = "CONSOLE_MESSAGE" if issubclass(cls, m.ConsoleMessage) else "MIGRATION_MESSAGE"
        assert event_of(message) == own.get(cls, kind)
    chunk = m.StateChunk(sequence=0, region=0, offset=0, payload=memoryview(b"x"))
    assert event_of(chunk) is SessionEvent.STATE_CHUNK


@given(MESSAGES[m.Hello], MESSAGES[m.Hello])
def test_both_sides_agree_alike(one: m.Hello, other: m.Hello) -> None:
    common = set(range(one.version_min, one.version_max + 1)) & set(
        range(other.version_min, other.version_max + 1)
    )
    if not common:
        for ours, theirs in ((one, other), (other, one)):
            with pytest.raises(RemoteProtocolError, match="no-common-version"):
                agree(ours, theirs)
        return
    agreed = agree(one, other)
    assert agree(other, one) == agreed
    assert agreed.version == max(common)
    assert agreed.features == set(one.features) & set(other.features)


@pytest.mark.parametrize(
    ("ours", "theirs", "version"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 2), (1, 1), 1),
        ((1, 2), (2, 3), 2),
        ((1, 1), (2, 3), None),
        ((4, 9), (2, 3), None),
    ],
)
def test_versions(ours: tuple[int, int], theirs: tuple[int, int], version: int | None) -> None:
    one = m.Hello(
        version_min=ours[0],
        version_max=ours[1],
        features=("a", "b"),
        host="h",
        release="1",
        journal="0" * 32,
        time_unix_ms=0,
    )
    other = attrs.evolve(
        one, version_min=theirs[0], version_max=theirs[1], features=("b", "c"), host="g"
    )
    if version is None:
        with pytest.raises(RemoteProtocolError, match="no-common-version"):
            agree(one, other)
    else:
        assert agree(one, other).version == version
        assert agree(one, other).features == {"b"}


def test_a_silent_peer_is_asked_and_given_up() -> None:
    keepalive = Keepalive(100.0)
    asked, now = [], 100.0
    while True:
        now = min(keepalive.ask_at, keepalive.dead_at)
        event = keepalive.pass_time(now)
        if event is SessionEvent.OVERDUE:
            break
        assert event is SessionEvent.QUIET
        asked.append(now)
        keepalive.note_sent()
    assert now == 100.0 + DEAD
    assert asked == [100.0 + IDLE * n for n in range(1, int(DEAD / IDLE))]


def test_who_only_hears_says_something() -> None:
    """State flows to us for minutes: our PING is what tells its sender that we live."""
    keepalive = Keepalive(0.0)
    asked = []
    for tenth in range(1, 100):
        keepalive.note_heard(tenth / 10)
        if keepalive.pass_time(tenth / 10) is not None:
            keepalive.note_sent()
            asked.append(tenth / 10)
    assert asked == [2.0, 4.0, 6.0, 8.0]


def test_who_slept_does_not_blame_the_peer() -> None:
    keepalive = Keepalive(0.0)
    keepalive.note_heard(1.0)
    assert keepalive.pass_time(1000.0) is SessionEvent.QUIET
    assert keepalive.dead_at == 1000.0 + IDLE
    keepalive.note_sent()
    assert keepalive.pass_time(1000.0 + IDLE) is SessionEvent.OVERDUE


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["hear", "send", "pass"]))))
def test_time_always_goes_on(steps: list[tuple[float, str]]) -> None:
    """After what is due was done, the next thing due lies ahead: no caller's loop can spin."""
    keepalive, now = Keepalive(0.0), 0.0
    for seconds, what in steps:
        now += seconds
        if what == "hear":
            keepalive.note_heard(now)
        elif what == "send":
            keepalive.note_sent()
        elif keepalive.pass_time(now) is SessionEvent.OVERDUE:
            assert now >= keepalive.dead_at
            return
        else:
            assert min(keepalive.ask_at, keepalive.dead_at) > now
