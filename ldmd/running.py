"""An operation under way: at most one a migration, and over before the next one begins."""

from __future__ import annotations

from typing import Final

import trio

from protocol.actions import OVERDUE, Operation
from protocol.events import Event

STOP_SECONDS: Final = 0.5
"""How long an operation that writes to the link may take to come to the end of a state chunk."""


class Running:
    """``over`` is set when it has ended, however; ``stopping`` when it is asked to."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.overdue: Event | None = OVERDUE.get(operation)
        """What it is taken for when it does not end in time; None: nothing ends it but its state's deadline."""
        self.scope = trio.CancelScope()
        self.stopping = trio.Event()
        self.over = trio.Event()

    async def stop(self) -> None:
        """End it and wait until it is over. One that writes to the link gets to the end of its state chunk."""
        self.stopping.set()
        if self.operation is Operation.SEND_STATE:
            with trio.move_on_after(STOP_SECONDS):
                await self.over.wait()
        self.scope.cancel()
        await self.over.wait()
