"""Makes faults happen: what is armed, by configuration or ``ldm fault arm``, fires once when its point is reached.

Nothing can be armed unless the configuration says ``[faults] allowed = true``. Which points and kinds there are is in
``ldmd/fault_points.py``. An armed fault is in memory alone: a manager that was killed comes back without it.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable
from typing import Final

import trio

from ldmd.errors import BadRequest, NotAllowed
from ldmd.fault_points import POINTS, Fault, Kind, parse
from ldmd.link.pump import Link

log = logging.getLogger("ldmd.faults")

FIRED_KEPT: Final = 1000

NOTHING: Final = Fault("", Kind.DELAY)
"""What ``reach`` gives where nothing is armed."""


class Faults:
    """``armed``: not fired yet, in the order in which they fire where two have one point. ``fired``: since the start."""

    def __init__(self, *, allowed: bool, armed: Iterable[str] = ()) -> None:
        """Raises ValueError for what is no fault."""
        self.allowed = allowed
        self.armed: list[Fault] = [parse(text) for text in armed] if allowed else []
        self.fired: list[Fault] = []

    def arm(self, text: str) -> Fault:
        """Raises NotAllowed, BadRequest."""
        if not self.allowed:
            raise NotAllowed(
                "faults may not be armed on this manager",
                remedy="for a test, say allowed = true in [faults] of its configuration and restart it",
            )
        try:
            fault = parse(text)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        self.armed.append(fault)
        log.warning("armed %s", fault)
        return fault

    def disarm(self) -> None:
        self.armed.clear()

    async def reach(self, point: str, link: Link | None = None) -> Fault:
        """The fault that fires here; crash, cut, hang and delay are done already, the others are the caller's to do."""
        fault = next((f for f in self.armed if f.point == point), None)
        if fault is None:
            return NOTHING
        self.armed.remove(fault)
        self.fired = [*self.fired[-FIRED_KEPT:], fault]
        log.warning("fault point %s: %s", point, str(fault).partition("=")[2])
        match fault.kind:
            case Kind.CRASH:
                os.kill(os.getpid(), signal.SIGKILL)
            case Kind.CUT if link is not None:
                link.abort()
                await link.wait_ended()
            case Kind.HANG:
                await trio.sleep_forever()
            case Kind.DELAY:
                await trio.sleep(fault.number)
            case Kind.CUT_AFTER if link is not None:
                link.cut_after(int(fault.number))
        return fault


__all__ = ["POINTS", "Fault", "Faults", "Kind"]
