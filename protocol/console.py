"""What may come when on a link that carries a console, and how much of it at once.

The *opener* has a user who wants to see the console, the *keeper* has the domain. A link has one console, from CONSOLE_OPEN
to CONSOLE_CLOSED, and nothing of a migration; so a console can neither hold a migration up nor be held up by its state
chunks. Output and input have a window each: what was sent and has not gone on is bounded on both sides, and whoever does
not read or take costs that much and no more.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from attrs import define, field, frozen

from protocol import limits
from protocol import messages as m
from protocol.errors import LocalProtocolError, RemoteProtocolError


class ConsoleSide(enum.StrEnum):
    OPENER = "opener"
    KEEPER = "keeper"


class ConsoleState(enum.StrEnum):
    ASKING = "asking"
    """CONSOLE_OPEN is to come, or to be answered."""
    OPEN = "open"
    CLOSED = "closed"


@frozen
class ConsoleRow:
    """In ``state``, when ``message`` is said: go to ``next_state``."""

    state: ConsoleState
    message: type[m.ConsoleMessage]
    next_state: ConsoleState


St = ConsoleState

_OPENER_SAYS: Final = (
    ConsoleRow(St.OPEN, m.ConsoleInput, St.OPEN),
    ConsoleRow(St.OPEN, m.ConsoleTaken, St.OPEN),
    # on their way when the keeper closed it
    ConsoleRow(St.CLOSED, m.ConsoleInput, St.CLOSED),
    ConsoleRow(St.CLOSED, m.ConsoleTaken, St.CLOSED),
)
_KEEPER_SAYS: Final = (
    ConsoleRow(St.ASKING, m.ConsoleOpened, St.OPEN),
    ConsoleRow(St.ASKING, m.ConsoleClosed, St.CLOSED),
    ConsoleRow(St.OPEN, m.ConsoleOutput, St.OPEN),
    ConsoleRow(St.OPEN, m.ConsoleTaken, St.OPEN),
    ConsoleRow(St.OPEN, m.ConsoleWriter, St.OPEN),
    ConsoleRow(St.OPEN, m.ConsoleClosed, St.CLOSED),
)
SAYS: Final[Mapping[ConsoleSide, tuple[ConsoleRow, ...]]] = {
    ConsoleSide.OPENER: _OPENER_SAYS,
    ConsoleSide.KEEPER: _KEEPER_SAYS,
}
"""Who may say what behind CONSOLE_OPEN, which is the link's first message."""

_INDEX: Final = {
    (side, row.state, row.message): row.next_state for side, rows in SAYS.items() for row in rows
}
WINDOWS: Final[Mapping[ConsoleSide, int]] = {
    ConsoleSide.OPENER: limits.CONSOLE_INPUT_WINDOW_BYTES,
    ConsoleSide.KEEPER: limits.CONSOLE_OUTPUT_WINDOW_BYTES,
}
"""Of what that side sends."""


@define
class Flow:
    """Bytes one way: sent, and gone on. Both count up."""

    window_bytes: int
    sent_bytes: int = field(default=0, init=False)
    taken_bytes: int = field(default=0, init=False)

    @property
    def room_bytes(self) -> int:
        return self.window_bytes - (self.sent_bytes - self.taken_bytes)


class Conversation:
    """One link's console as ``side`` has it, behind CONSOLE_OPEN. Touches nothing but itself."""

    def __init__(self, side: ConsoleSide) -> None:
        other = next(s for s in ConsoleSide if s is not side)
        self.side = side
        self.other = other
        self.state = ConsoleState.ASKING
        self.ours = Flow(WINDOWS[side])
        self.theirs = Flow(WINDOWS[other])
        self._position = 0
        """Where the next output may begin."""

    def hear(self, message: m.ConsoleMessage) -> None:
        """The peer said it. Raises RemoteProtocolError when it may not be said now, or is too much."""
        fault = self._step(self.other, message)
        if fault is not None:
            raise RemoteProtocolError(*fault)

    def say(self, message: m.ConsoleMessage) -> None:
        """We are about to say it. Raises LocalProtocolError when the peer would not take it."""
        fault = self._step(self.side, message)
        if fault is not None:
            raise LocalProtocolError(fault[1])

    def _step(self, speaker: ConsoleSide, message: m.ConsoleMessage) -> tuple[str, str] | None:
        fault = self._find_fault(speaker, message)
        if fault is None:
            self.state = _INDEX[speaker, self.state, type(message)]
        return fault

    def _find_fault(
        self, speaker: ConsoleSide, message: m.ConsoleMessage
    ) -> tuple[str, str] | None:
        """Code and sentence; what is right is counted."""
        if (speaker, self.state, type(message)) not in _INDEX:
            return "unexpected-message", f"{message.TYPE} is not allowed while {self.state}"
        sent, back = (self.ours, self.theirs) if speaker is self.side else (self.theirs, self.ours)
        match message:
            case m.ConsoleOpened():
                self._position = message.position
            case m.ConsoleOutput() | m.ConsoleInput():
                if len(message.data) > sent.room_bytes:
                    return "oversize", f"{message.TYPE} is more than the window has room for"
                if isinstance(message, m.ConsoleOutput):
                    if message.position < self._position:
                        return "sequence", "CONSOLE_OUTPUT repeats what was sent"
                    self._position = message.position + len(message.data)
                sent.sent_bytes += len(message.data)
            case m.ConsoleTaken():
                if not back.taken_bytes <= message.count <= back.sent_bytes:
                    return "bad-value", "CONSOLE_TAKEN counts what was not sent"
                back.taken_bytes = message.count
        return None
