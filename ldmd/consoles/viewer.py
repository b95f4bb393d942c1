"""What the parts of the console service say to each other: what is wanted, who looks, how it ended."""

from __future__ import annotations

import enum
from typing import Protocol

from attrs import frozen

from ldmd.consoles.keyboard import Keyboard
from protocol.messages import ConsoleAccess


@frozen(kw_only=True)
class Opening:
    """Which console, for whom, from where on; the fields mean what CONSOLE_OPEN's do (docs/protocol.md)."""

    uuid: str
    user: str
    access: ConsoleAccess
    stay: str | None = None
    position: int | None = None
    replay_lines: int = 0


class Viewer(Protocol):
    """Whom a console is shown to. Each call returns when there is room for the next one.

    ``writer`` is who types when that is not this viewer's user.
    """

    keyboard: Keyboard

    async def opened(self, stay: str, position: int, writer: str | None) -> None: ...
    async def output(self, position: int, data: bytes) -> None: ...
    async def taken(self) -> None:
        """``keyboard.taken_bytes`` has grown."""

    async def writer_changed(self, writer: str | None) -> None: ...


class End(enum.StrEnum):
    """Why a console is not shown any more; the codes of CONSOLE_CLOSED, and LOST."""

    MOVED = "moved"
    STOPPED = "stopped"
    NOT_FOUND = "not-found"
    NOT_ALLOWED = "not-allowed"
    ANOTHER_STAY = "another-stay"
    BUSY = "busy"
    STOPPING = "stopping"
    LOST = "lost"
    """The link to the keeper."""


@frozen(kw_only=True)
class Outcome:
    end: End
    sentence: str
    moved_to: str | None = None
    lost_bytes: int = 0
    """Typed, sent, and not known to have been taken."""
