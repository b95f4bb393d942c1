"""What the shell tells a migration's table: one name per thing that can happen.

Three origins: the peer (a message), the shell's own operations (how one ended), and the world (link, timer, operator).
Only the peer's may be wrong: an event of ``PEER_EVENTS`` without a row is the peer's error, any other one is ours.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from protocol import messages as m


class Event(enum.StrEnum):
    # the peer's messages, read by the shell's guards where a message can mean two things
    CHECK = "CHECK"
    CHECKS_PASSED = "CHECKS_PASSED"
    CHECKS_FAILED = "CHECKS_FAILED"
    PREPARE = "PREPARE"
    PREPARE_PROGRESS = "PREPARE_PROGRESS"
    PREPARED = "PREPARED"
    DIGEST = "DIGEST"
    INSTALLED = "INSTALLED"
    DIGEST_DIFFERS = "DIGEST_DIFFERS"
    HANDOFF = "HANDOFF"
    HANDOFF_DONE = "HANDOFF_DONE"
    HANDOFF_LOST = "HANDOFF_LOST"
    HANDOFF_REFUSED = "HANDOFF_REFUSED"
    RELEASED = "RELEASED"
    SETTLED = "SETTLED"
    REFUSED = "REFUSED"
    CANCEL = "CANCEL"
    ASK = "ASK"
    STANDING = "STANDING"
    """These two belong to no migration's conversation, so no table has a row for them."""

    # how an operation ended
    CONNECTED = "CONNECTED"
    CONNECT_FAILED = "CONNECT_FAILED"
    JOURNAL_LOST = "JOURNAL_LOST"
    """Connected, and the target's journal is not the one it was."""
    CHECKS_CLEAN = "CHECKS_CLEAN"
    CHECKS_FOUND = "CHECKS_FOUND"
    CREATED = "CREATED"
    CREATE_FAILED = "CREATE_FAILED"
    SUSPENDED = "SUSPENDED"
    SUSPEND_FAILED = "SUSPEND_FAILED"
    STATE_SENT = "STATE_SENT"
    STATE_FAILED = "STATE_FAILED"
    STATE_INSTALLED = "STATE_INSTALLED"
    INSTALL_FAILED = "INSTALL_FAILED"
    RESUMED = "RESUMED"
    RESUME_FAILED = "RESUME_FAILED"
    """No instruction ran."""
    RESUME_NOT_ASKED = "RESUME_NOT_ASKED"
    """It did not say how it is, and was not told to run: no instruction ran by this resume."""
    RESUME_UNKNOWN = "RESUME_UNKNOWN"
    DESTROYED = "DESTROYED"
    DESTROY_FAILED = "DESTROY_FAILED"
    DOMAIN_RUNNING = "DOMAIN_RUNNING"
    DOMAIN_SUSPENDED = "DOMAIN_SUSPENDED"
    DOMAIN_GONE = "DOMAIN_GONE"
    DOMAIN_UNKNOWN = "DOMAIN_UNKNOWN"
    DOMAIN_SILENT = "DOMAIN_SILENT"
    """Unknown, and nothing could be learned of it for as long as is waited for that."""
    RECORD_FAILED = "RECORD_FAILED"
    """A record that may still be done without could not be written; what stood behind it was not done."""

    # the world
    START = "START"
    START_DRY_RUN = "START_DRY_RUN"
    LINK_LOST = "LINK_LOST"
    DEADLINE = "DEADLINE"
    CANCEL_ASKED = "CANCEL_ASKED"
    KEEP_ASKED = "KEEP_ASKED"
    """An operator: the domain stays here, the other side will never answer."""
    GIVE_UP_ASKED = "GIVE_UP_ASKED"
    """An operator: the domain is the other side's, which will never answer."""
    SUPERSEDED = "SUPERSEDED"
    """The source asks for another migration of the same domain: it knows that this one is over."""


OVERRIDES: Final = frozenset({Event.KEEP_ASKED, Event.GIVE_UP_ASKED})
"""Only possible in the states that have a row for them."""

PEER_EVENTS: Final = frozenset(
    {
        Event.CHECK,
        Event.CHECKS_PASSED,
        Event.CHECKS_FAILED,
        Event.PREPARE,
        Event.PREPARE_PROGRESS,
        Event.PREPARED,
        Event.DIGEST,
        Event.INSTALLED,
        Event.DIGEST_DIFFERS,
        Event.HANDOFF,
        Event.HANDOFF_DONE,
        Event.HANDOFF_LOST,
        Event.HANDOFF_REFUSED,
        Event.RELEASED,
        Event.SETTLED,
        Event.REFUSED,
        Event.CANCEL,
        Event.ASK,
        Event.STANDING,
    }
)

EVENT_OF_MESSAGE: Final[Mapping[type[m.MigrationMessage], Event]] = {
    m.Check: Event.CHECK,
    m.Prepare: Event.PREPARE,
    m.PrepareProgress: Event.PREPARE_PROGRESS,
    m.Prepared: Event.PREPARED,
    m.Digest: Event.DIGEST,
    m.Handoff: Event.HANDOFF,
    m.HandoffDone: Event.HANDOFF_DONE,
    m.HandoffLost: Event.HANDOFF_LOST,
    m.HandoffRefused: Event.HANDOFF_REFUSED,
    m.Released: Event.RELEASED,
    m.Settled: Event.SETTLED,
    m.Refused: Event.REFUSED,
    m.Cancel: Event.CANCEL,
    m.Ask: Event.ASK,
    m.Standing: Event.STANDING,
}


def event_of(message: m.MigrationMessage, *, digest_sent: bytes | None = None) -> Event:
    """The event that a message is. ``digest_sent`` is what INSTALLED is compared with."""
    match message:
        case m.Checked():
            return (
                Event.CHECKS_FAILED
                if any(f.hard for f in message.findings)
                else Event.CHECKS_PASSED
            )
        case m.Installed():
            return Event.INSTALLED if message.digest == digest_sent else Event.DIGEST_DIFFERS
        case _:
            return EVENT_OF_MESSAGE[type(message)]
