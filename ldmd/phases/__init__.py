"""How the actions of each phase are carried out: the two tables that a migration looks them up in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from ldmd.phases import check, handoff, prepare, transfer
from protocol import messages as m
from protocol.actions import Operation
from protocol.events import Event

if TYPE_CHECKING:
    from ldmd.migration import Migration

Carry = Callable[["Migration"], Awaitable[Event]]
"""Carries an operation out and says how it ended: one of ``OUTCOMES`` of that operation."""
Build = Callable[["Migration"], m.MigrationMessage]

OPERATIONS: Final[Mapping[Operation, Carry]] = {
    Operation.CONNECT: check.connect,
    Operation.RUN_CHECKS: check.run_checks,
    Operation.CREATE_DOMAIN: prepare.create_domain,
    Operation.SUSPEND_DOMAIN: prepare.suspend_domain,
    Operation.SEND_STATE: transfer.send_state,
    Operation.INSTALL_STATE: transfer.install_state,
    Operation.PROBE_DOMAIN: handoff.probe_domain,
    Operation.RESUME_DOMAIN: handoff.resume_domain,
    Operation.DESTROY_DOMAIN: handoff.destroy_domain,
    Operation.END_DOMAIN: handoff.end_domain,
}


def _bare(kind: type[m.MigrationMessage]) -> Build:
    return lambda migration: kind(migration=migration.id)


MESSAGES: Final[Mapping[type[m.MigrationMessage], Build]] = {
    m.Check: check.build_check,
    m.Checked: check.build_checked,
    m.Prepare: prepare.build_prepare,
    m.Prepared: _bare(m.Prepared),
    m.Digest: transfer.build_digest,
    m.Installed: transfer.build_installed,
    m.Handoff: _bare(m.Handoff),
    m.HandoffDone: _bare(m.HandoffDone),
    m.HandoffLost: _bare(m.HandoffLost),
    m.HandoffRefused: handoff.build_handoff_refused,
    m.Released: _bare(m.Released),
    m.Settled: _bare(m.Settled),
    m.Refused: handoff.build_refused,
    m.Cancel: handoff.build_cancel,
}
