"""Carries an operation out: with its limit, its fault points, and one event at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ldmd.fault_points import FAILS, UNKNOWNS, Kind, point_of
from ldmd.phases import OPERATIONS
from ldmd.phases.handoff import judge_silence
from ldmd.running import Running
from protocol import messages as m
from protocol.actions import Operation
from protocol.events import Event

if TYPE_CHECKING:
    from ldmd.migration import Migration

_SIMULATED: Final = frozenset({Kind.FAIL, Kind.UNKNOWN})

SIMULATED_FINDING: Final = m.Finding(
    code="fault",
    subject="fault",
    sentence="a fault that was armed: the checks fail",
    remedy="",
    hard=True,
)


async def operate(migration: Migration, running: Running) -> None:
    """Carry it out and post how it ended, once; not when it is stopped."""
    operation = running.operation
    seconds = float("inf")
    if running.overdue is not None:
        seconds = migration.host.config.migration.operation_seconds
    try:
        with running.scope:
            event = None
            with trio.move_on_after(seconds) as limit:
                event = await _perform(migration, operation)
            if limit.cancelled_caught:
                event = running.overdue
                assert event is not None, "without a limit of its own it ends with an event"
                migration.drop_new_link()
                migration.explain(event, "too-slow", f"{operation} did not end in {seconds:g} s")
            assert event is not None
            if operation is Operation.PROBE_DOMAIN:
                event = judge_silence(migration, event)
            migration.trace(f"{operation} ends {event}")
            migration.post(event, running)
    finally:
        running.over.set()


async def _perform(migration: Migration, operation: Operation) -> Event:
    point = point_of(migration.side, operation)
    fault = await migration.host.faults.reach(f"{point}.before", migration.link)
    if fault.kind in _SIMULATED:
        return _simulate(migration, operation, fault.kind)
    if fault.kind is Kind.FLIP:
        migration.flip_bit = int(fault.number)
    event = await OPERATIONS[operation](migration)
    fault = await migration.host.faults.reach(
        f"{point}.after", migration.new_link or migration.link
    )
    return _simulate(migration, operation, fault.kind) if fault.kind in _SIMULATED else event


def _simulate(migration: Migration, operation: Operation, kind: Kind) -> Event:
    event = (FAILS if kind is Kind.FAIL else UNKNOWNS)[operation]
    if event is Event.CHECKS_FOUND:
        migration.findings = (SIMULATED_FINDING,)
    return migration.explain(event, "fault", f"a fault that was armed: {operation} {kind}")
