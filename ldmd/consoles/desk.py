"""Who types on which console of this host: one user; the others look on, and the next one's turn comes when he leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import trio
from attrs import define, field

from protocol.messages import ConsoleAccess

NOBODY: Final = "nobody"
"""Types, as those are told who only look on."""


@define(eq=False)
class Seat:
    """One user at one console."""

    user: str
    wants: ConsoleAccess
    types: bool = False
    writer: str | None = NOBODY
    """Who types, when it is not this one."""
    changed: trio.Event = field(factory=trio.Event)


@define(eq=False)
class _Console:
    seats: list[Seat] = field(factory=list)
    pen: trio.Lock = field(factory=trio.Lock)
    """Held while a byte is being typed: two never do at once, not even when one takes over from the other."""


@define(eq=False)
class Desk:
    _consoles: dict[str, _Console] = field(factory=dict)

    @contextlib.contextmanager
    def sit(self, uuid: str, user: str, access: ConsoleAccess) -> Iterator[tuple[Seat, trio.Lock]]:
        """A place at that console, and what to hold while typing."""
        console = self._consoles.setdefault(uuid, _Console())
        seat = Seat(user, access)
        if access is ConsoleAccess.FORCE:
            for other in console.seats:
                other.types = False
        console.seats.append(seat)
        if access is ConsoleAccess.FORCE:
            seat.types = True
        self._settle(console)
        seat.changed = trio.Event()
        try:
            yield seat, console.pen
        finally:
            console.seats.remove(seat)
            self._settle(console)
            if not console.seats:
                self._consoles.pop(uuid, None)

    def _settle(self, console: _Console) -> None:
        """Somebody types if anybody wants to, and everybody knows who."""
        waiting = [s for s in console.seats if s.wants is not ConsoleAccess.READ]
        if waiting and not any(s.types for s in waiting):
            waiting[0].types = True
        writer = next((s.user for s in console.seats if s.types), NOBODY)
        for seat in console.seats:
            told = None if seat.types else writer
            if told != seat.writer:
                seat.writer = told
                seat.changed.set()
