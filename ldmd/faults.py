"""Fault points: named places in the migration path where a test can make something go wrong.

Off unless the configuration says ``[faults] allowed = true``. A point is named ``SIDE.ACTION.before`` or ``.after``, as in
``target.record-committed.after``, and fires once.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable

import trio

from ldmd.link.pump import Link
from protocol.actions import Action, CloseLink, Operation, Record, Send

log = logging.getLogger("ldmd.faults")

FAULTS = ("crash", "cut", "hang")
"""crash: SIGKILL to this manager. cut: the link breaks without a word. hang: nothing happens for ever."""


def point_of(side: str, action: Action) -> str:
    """The point's name without ``.before`` or ``.after``: ``source.record-granted``, ``target.resume-domain``."""
    match action:
        case Record(kind):
            name = f"record-{kind}"
        case Send(message):
            name = f"send-{message.TYPE}"
        case CloseLink():
            name = "close-link"
        case Operation():
            name = action
    return f"{side}.{name.lower().replace('_', '-')}"


class Faults:
    def __init__(self, armed: Iterable[str]) -> None:
        """``armed``: ``POINT=FAULT``."""
        self._armed = dict(entry.split("=") for entry in armed)

    async def reach(self, point: str, link: Link | None) -> None:
        if not self._armed:
            return
        fault = self._armed.pop(point, None)
        if fault is None:
            return
        log.warning("fault point %s: %s", point, fault)
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "cut" and link is not None:
            link.abort()
            await link.wait_ended()
        elif fault == "hang":
            await trio.sleep_forever()
