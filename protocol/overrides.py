"""Which way a person may decide where the target answers and cannot know, by what it has of the domain."""

from __future__ import annotations

from protocol.events import Event
from protocol.phases import Holding


def may_override(event: Event, holding: Holding) -> bool:
    """``event``: KEEP_ASKED or GIVE_UP_ASKED of a source in doubt.

    To keep what the target has as well would make two; to give up what is not its own, none: a process that its journal
    does not know may never have run, and nobody there has a hold of it.
    """
    if event is Event.KEEP_ASKED:
        return holding is Holding.NOTHING
    return holding is Holding.OWNED
