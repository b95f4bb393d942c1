"""The session: what a link may carry when. HELLO first, from both sides; then messages, chunks and keepalive.

The table has one row for everything that is allowed or has a consequence. What the peer sends without a row is refused
with the code of ``UNEXPECTED``; what we do without a row is our bug.

*Keepalive.* Each side sees to it that the other hears something: whoever has sent nothing for KEEPALIVE_IDLE_SECONDS, or
heard nothing, sends PING, and PING is answered by PONG. Both reasons are needed. While state flows one way for minutes,
the source's own PINGs lie in the queue behind it; what keeps the link alive then is the PING that the target sends because
it has nothing else to say. Any byte heard is a sign of life, so a chunk on a slow link is one too.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from attrs import define, field, frozen

from protocol import limits
from protocol import messages as m
from protocol.errors import LocalProtocolError, RemoteProtocolError


class SessionState(enum.StrEnum):
    GREETING = "waiting for HELLO"
    OPEN = "open"
    FAILED = "failed"
    """We ended it: ERROR is our last message, and nothing that comes is looked at."""
    ENDED = "ended"
    """The peer ended it, with ERROR or without a word."""


class SessionEvent(enum.StrEnum):
    # the peer's
    HELLO = "HELLO"
    PING = "PING"
    PONG = "PONG"
    ERROR = "ERROR"
    MIGRATION_MESSAGE = "MIGRATION_MESSAGE"
    CONSOLE_MESSAGE = "CONSOLE_MESSAGE"
    STATE_CHUNK = "STATE_CHUNK"
    END = "END"
    """The peer's side of the stream has ended."""

    # ours
    FAULT = "FAULT"
    """Something against the rules was found in what came."""
    QUIET = "QUIET"
    """Either side has been silent for KEEPALIVE_IDLE_SECONDS."""
    OVERDUE = "OVERDUE"
    """No HELLO within HELLO_SECONDS, or no byte within KEEPALIVE_DEAD_SECONDS."""


class SessionAction(enum.StrEnum):
    AGREE = "AGREE"
    """Choose version and features; may turn out to be a FAULT."""
    DELIVER = "DELIVER"
    """Hand it to our user."""
    COUNT = "COUNT"
    """The chunk's sequence number must be the next one; may turn out to be a FAULT."""
    ANSWER = "ANSWER"
    """Send PONG."""
    MATCH = "MATCH"
    """The PONG must be the next one due; may turn out to be a FAULT."""
    ASK = "ASK"
    """Send PING."""
    REPORT = "REPORT"
    """Send ERROR and tell our user."""


@frozen
class SessionRow:
    """In ``state``, at ``event``: go to ``next_state`` and do ``actions`` in order. ``()`` is to ignore it, on purpose."""

    state: SessionState
    event: SessionEvent
    next_state: SessionState
    actions: tuple[SessionAction, ...] = ()


St = SessionState
Ev = SessionEvent
Do = SessionAction

ROWS: Final[tuple[SessionRow, ...]] = (
    SessionRow(St.GREETING, Ev.HELLO, St.OPEN, (Do.AGREE, Do.DELIVER)),
    SessionRow(St.GREETING, Ev.ERROR, St.ENDED, (Do.DELIVER,)),
    SessionRow(St.GREETING, Ev.END, St.ENDED),
    SessionRow(St.GREETING, Ev.FAULT, St.FAILED, (Do.REPORT,)),
    SessionRow(St.GREETING, Ev.OVERDUE, St.FAILED, (Do.REPORT,)),
    SessionRow(St.OPEN, Ev.MIGRATION_MESSAGE, St.OPEN, (Do.DELIVER,)),
    SessionRow(St.OPEN, Ev.CONSOLE_MESSAGE, St.OPEN, (Do.DELIVER,)),
    SessionRow(St.OPEN, Ev.STATE_CHUNK, St.OPEN, (Do.COUNT, Do.DELIVER)),
    SessionRow(St.OPEN, Ev.PING, St.OPEN, (Do.ANSWER,)),
    SessionRow(St.OPEN, Ev.PONG, St.OPEN, (Do.MATCH,)),
    SessionRow(St.OPEN, Ev.QUIET, St.OPEN, (Do.ASK,)),
    SessionRow(St.OPEN, Ev.ERROR, St.ENDED, (Do.DELIVER,)),
    SessionRow(St.OPEN, Ev.END, St.ENDED),
    SessionRow(St.OPEN, Ev.FAULT, St.FAILED, (Do.REPORT,)),
    SessionRow(St.OPEN, Ev.OVERDUE, St.FAILED, (Do.REPORT,)),
)

PEER_EVENTS: Final = frozenset(
    {
        Ev.HELLO,
        Ev.PING,
        Ev.PONG,
        Ev.ERROR,
        Ev.MIGRATION_MESSAGE,
        Ev.CONSOLE_MESSAGE,
        Ev.STATE_CHUNK,
        Ev.END,
    }
)

UNEXPECTED: Final[Mapping[SessionState, str]] = {
    St.GREETING: "hello-expected",
    St.OPEN: "unexpected-message",
}
"""The code for what has no row. In the other two states nothing is looked at any more."""

_INDEX: Final = {(row.state, row.event): row for row in ROWS}

_EVENT_OF_MESSAGE: Final[Mapping[type[m.Message], SessionEvent]] = {
    m.Hello: Ev.HELLO,
    m.Ping: Ev.PING,
    m.Pong: Ev.PONG,
    m.Error: Ev.ERROR,
}


def event_of(received: m.Message | m.StateChunk) -> SessionEvent:
    if isinstance(received, m.StateChunk):
        return Ev.STATE_CHUNK
    if isinstance(received, m.ConsoleMessage):
        return Ev.CONSOLE_MESSAGE
    return _EVENT_OF_MESSAGE.get(type(received), Ev.MIGRATION_MESSAGE)


class Session:
    """One link's place in the table. Touches nothing but its own ``state``."""

    def __init__(self) -> None:
        self.state = SessionState.GREETING

    @property
    def over(self) -> bool:
        return self.state not in UNEXPECTED

    def step(self, event: SessionEvent) -> tuple[SessionAction, ...]:
        """Go on by one event; what to do, in order.

        Raises RemoteProtocolError for the peer's event that has no row, LocalProtocolError for ours.
        """
        row = _INDEX.get((self.state, event))
        if row is None:
            if event in PEER_EVENTS and not self.over:
                raise RemoteProtocolError(
                    UNEXPECTED[self.state], f"{event} is not allowed while {self.state}"
                )
            raise LocalProtocolError(f"session: no row for {event} in {self.state}")
        self.state = row.next_state
        return row.actions


# ---- what both sides compute, and must compute alike -----------------------------------------------------


@frozen
class Agreement:
    """What holds on a link, the same at both ends."""

    version: int
    features: frozenset[str]


def agree(one: m.Hello, other: m.Hello) -> Agreement:
    """The highest common version and the common features; symmetrical. Raises RemoteProtocolError (no-common-version)."""
    version = min(one.version_max, other.version_max)
    if version < max(one.version_min, other.version_min):
        raise RemoteProtocolError(
            "no-common-version",
            f"{one.host} speaks versions {one.version_min} to {one.version_max}, "
            f"{other.host} {other.version_min} to {other.version_max}",
        )
    return Agreement(version, frozenset(one.features) & frozenset(other.features))


@define
class Keepalive:
    """When what is due. All times are the caller's ``now``, in seconds, of one monotonic clock."""

    now: float
    """The latest that we were told: what is sent between two calls counts as sent then, which is never too late."""
    heard_at: float = field(init=False)
    sent_at: float = field(init=False)
    asked_at: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.heard_at = self.sent_at = self.asked_at = self.now

    def note_heard(self, now: float) -> None:
        self.now = self.heard_at = max(now, self.now)

    def note_sent(self) -> None:
        self.sent_at = self.now

    @property
    def ask_at(self) -> float:
        """When the next PING is due."""
        quiet_since = min(self.heard_at, self.sent_at)
        return max(quiet_since, self.asked_at) + limits.KEEPALIVE_IDLE_SECONDS

    @property
    def dead_at(self) -> float:
        return self.heard_at + limits.KEEPALIVE_DEAD_SECONDS

    def pass_time(self, now: float) -> SessionEvent | None:
        """QUIET, OVERDUE or nothing is due at ``now``.

        A caller that comes late by half the time a link may be silent has slept itself (stopped, starved, its host
        suspended): what the peer said meanwhile lies unread, so the peer gets another KEEPALIVE_IDLE_SECONDS.
        """
        slept = now - self.now >= limits.KEEPALIVE_DEAD_SECONDS / 2
        self.now = max(now, self.now)
        if self.now >= self.dead_at:
            if not slept:
                return SessionEvent.OVERDUE
            self.heard_at = self.now + limits.KEEPALIVE_IDLE_SECONDS - limits.KEEPALIVE_DEAD_SECONDS
        if self.now >= self.ask_at:
            self.asked_at = self.now
            return SessionEvent.QUIET
        return None
