"""What a migration learns from its peer, and from its silence, besides the event that it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ldmd.reason import Reason
from protocol import messages as m
from protocol.events import Event
from protocol.machine import Deadline
from protocol.phases import RunState

if TYPE_CHECKING:
    from ldmd.migration import Migration


def hear(migration: Migration, message: m.MigrationMessage) -> None:
    """Keep what a message of the peer says; what it means for the migration is the table's to say."""
    match message:
        case m.Checked():
            migration.findings = message.findings
            migration.nursery.start_soon(migration.withdraw_claims)
            if any(f.hard for f in message.findings):
                migration.reason = Reason(
                    "checks-failed", "; ".join(f.sentence for f in message.findings if f.hard)
                )
        case m.Prepare():
            migration.regions = message.regions
        case m.PrepareProgress():
            migration.note_progress(message.done_bytes, message.total_bytes)
        case m.Digest():
            migration.announced = message
            migration.digest_source = message.digest
        case m.Installed():
            migration.digest_target = message.digest
        case m.Refused() | m.HandoffRefused():
            if migration.reason is None:
                migration.reason = Reason(message.code, f"{migration.peer}: {message.sentence}")
        case m.Cancel():
            if migration.reason is None:
                migration.reason = Reason(message.code, f"{migration.peer}: {message.sentence}")
        case m.HandoffLost():
            migration.reason = Reason(
                "lost",
                f"it counts as having run on {migration.peer} and ended there",
                f"`ldm start-domain {migration.new_name or migration.name}` on {migration.peer} starts it afresh",
            )
        case m.HandoffDone():
            if migration.suspended_at is not None and migration.run_state is RunState.RUNNING:
                migration.downtime_ms = (time.monotonic() - migration.suspended_at) * 1000


def note_deadline(migration: Migration) -> None:
    """Say that the peer was too slow; the end of a back-off needs no words."""
    deadline = migration.machine.deadline
    if deadline is not None and deadline is not Deadline.RETRY:
        migration.explain(
            Event.DEADLINE,
            "too-slow",
            f"{migration.peer} did not go on in time while {migration.machine.state}",
            f"look at {migration.peer}, or raise the deadline in [migration]",
        )
