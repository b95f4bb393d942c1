"""What a table asks of the shell, as data.

The shell carries the actions of a row out one by one in the given order; a crash may fall between any two of them, and
inside each. Of one row only the last action may be an *operation*: something that takes time and ends with exactly one
event. An operation that begins ends the one that is under way; a row without one leaves it alone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from protocol import messages as m
from protocol.events import Event


class RecordKind(enum.StrEnum):
    """Durable records (``docs/decisions`` and the design's handoff). One journal, both sides."""

    PREPARING = "PREPARING"  # source: before it suspends
    GRANTED = "GRANTED"  # source: before HANDOFF
    COMPLETED = "COMPLETED"  # source: before it destroys its copy
    PREPARED = "PREPARED"  # target: before it creates the receiving domain
    COMMITTED = "COMMITTED"  # target: before it resumes; the decision
    RUNNING = "RUNNING"  # target: before HANDOFF_DONE
    LOST = "LOST"  # target: before HANDOFF_LOST
    ABORTED = "ABORTED"  # both: before the source's copy may run, before the target's is destroyed
    SETTLED = "SETTLED"  # both: nothing is open


GIVE_UP_POSSIBLE: Final = frozenset(
    {RecordKind.PREPARING, RecordKind.GRANTED, RecordKind.PREPARED, RecordKind.COMMITTED}
)
"""Failing to write one of these is an event (RECORD_FAILED); any other record is tried again until it is written,
because what it says is already so."""


@frozen
class Record:
    """On disk, fsync returned, before the next action."""

    kind: RecordKind


@frozen
class Send:
    """Queue a message on the link; without a link it is lost, as it may be on one."""

    message: type[m.MigrationMessage]


@frozen
class CloseLink:
    """Say good-bye and let the link go; no LINK_LOST follows."""


class Operation(enum.StrEnum):
    CONNECT = "CONNECT"
    RUN_CHECKS = "RUN_CHECKS"
    CREATE_DOMAIN = "CREATE_DOMAIN"
    SUSPEND_DOMAIN = "SUSPEND_DOMAIN"
    SEND_STATE = "SEND_STATE"
    INSTALL_STATE = "INSTALL_STATE"
    PROBE_DOMAIN = "PROBE_DOMAIN"
    RESUME_DOMAIN = "RESUME_DOMAIN"
    """Bring this side's copy to the run state that the domain had; for a cold one, give its definition free."""
    DESTROY_DOMAIN = "DESTROY_DOMAIN"
    """End this side's copy: process, run directory, definition."""
    END_DOMAIN = "END_DOMAIN"
    """End the process alone: the definition is ours, and what ran of it is over."""


Action = Record | Send | CloseLink | Operation

OUTCOMES: Final[Mapping[Operation, frozenset[Event]]] = {
    Operation.CONNECT: frozenset({Event.CONNECTED, Event.CONNECT_FAILED, Event.JOURNAL_LOST}),
    Operation.RUN_CHECKS: frozenset({Event.CHECKS_CLEAN, Event.CHECKS_FOUND}),
    Operation.CREATE_DOMAIN: frozenset({Event.CREATED, Event.CREATE_FAILED}),
    Operation.SUSPEND_DOMAIN: frozenset({Event.SUSPENDED, Event.SUSPEND_FAILED}),
    Operation.SEND_STATE: frozenset({Event.STATE_SENT, Event.STATE_FAILED}),
    Operation.INSTALL_STATE: frozenset({Event.STATE_INSTALLED, Event.INSTALL_FAILED}),
    Operation.PROBE_DOMAIN: frozenset(
        {
            Event.DOMAIN_RUNNING,
            Event.DOMAIN_SUSPENDED,
            Event.DOMAIN_GONE,
            Event.DOMAIN_UNKNOWN,
            Event.DOMAIN_SILENT,
        }
    ),
    Operation.RESUME_DOMAIN: frozenset(
        {
            Event.RESUMED,
            Event.RESUME_FAILED,
            Event.RESUME_NOT_ASKED,
            Event.RESUME_UNKNOWN,
            Event.DOMAIN_GONE,
        }
    ),
    Operation.DESTROY_DOMAIN: frozenset({Event.DESTROYED, Event.DESTROY_FAILED}),
    Operation.END_DOMAIN: frozenset({Event.DESTROYED, Event.DESTROY_FAILED}),
}
"""How each operation can end. A table must have a row for each outcome in each state that waits for it."""

OVERDUE: Final[Mapping[Operation, Event]] = {
    Operation.CONNECT: Event.CONNECT_FAILED,
    Operation.PROBE_DOMAIN: Event.DOMAIN_UNKNOWN,
    Operation.RESUME_DOMAIN: Event.RESUME_UNKNOWN,
    Operation.DESTROY_DOMAIN: Event.DESTROY_FAILED,
    Operation.END_DOMAIN: Event.DESTROY_FAILED,
}
"""What an operation that does not end in time is taken for. The others are ended by the deadline of their state."""
