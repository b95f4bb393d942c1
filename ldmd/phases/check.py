"""Phase 1: facts go to the target, the target runs its checks and reserves what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldmd import checks
from ldmd.definition import to_document
from ldmd.errors import ConfigurationError, LinkError
from ldmd.link.dialer import dial
from ldmd.link.pump import Link
from protocol import messages as m
from protocol.events import Event
from protocol.phases import RunState

if TYPE_CHECKING:
    from ldmd.migration import Migration


async def connect(migration: Migration) -> Event:
    """A new link to the target: the first one before CHECK, later ones to settle."""
    host = migration.host
    peer = host.config.peers.get(migration.peer)
    if peer is None:
        return migration.explain(
            Event.CONNECT_FAILED,
            "unknown-peer",
            f"{migration.peer} is not a peer of this host any more",
            f"add [peers.{migration.peer}] to the configuration",
        )
    try:
        secure = await dial(
            peer, host.tls_files, timeout_seconds=host.config.migration.connect_seconds
        )
        link = Link(secure.stream, peer, host.hello(), migration)
        await migration.nursery.start(link.run)
    except (LinkError, ConfigurationError) as error:
        return migration.explain(Event.CONNECT_FAILED, error.code, error.sentence, error.remedy)
    assert link.hello is not None
    if link.ended:
        return migration.explain(
            Event.CONNECT_FAILED, "link-lost", f"{peer.name} closed the link at once"
        )
    migration.new_link = link
    if migration.peer_journal and link.hello.journal != migration.peer_journal:
        return migration.explain(
            Event.JOURNAL_LOST,
            "journal-lost",
            f"{migration.peer} has lost its journal: it cannot say whether it took the domain",
            f"restore the journal on {migration.peer}",
        )
    migration.peer_journal = link.hello.journal
    return Event.CONNECTED


def build_check(migration: Migration) -> m.Check:
    return m.Check(
        migration=migration.id,
        dry_run=migration.dry_run,
        force=migration.force,
        run_state=migration.run_state,
        domain=to_document(migration.definition),
        new_name=migration.new_name,
        facts=migration.facts,
    )


async def run_checks(migration: Migration) -> Event:
    """All checks on one snapshot; without a hard finding what was asked for is held in the same instant."""
    host = migration.host
    vdisks, found = await host.inventory.proofs.examine(
        migration.definition, migration.run_state, migration.id, migration.peer, migration.facts
    )
    view = await host.inventory.view(host.domains, migration.definition, vdisks)
    subject = checks.Subject(
        definition=migration.definition,
        run_state=migration.run_state,
        facts=migration.facts,
        view=view,
        clock_ahead_ms=migration.link.clock_ahead_ms if migration.link else None,
    )
    migration.findings = checks.run(checks.ALL, subject, force=migration.force)
    hard = [finding for finding in migration.findings if finding.hard]
    if hard:
        return migration.explain(
            Event.CHECKS_FOUND, "checks-failed", "; ".join(f.sentence for f in hard)
        )
    if migration.dry_run:
        return Event.CHECKS_FOUND
    host.inventory.hold(
        migration.id,
        migration.definition,
        resources=migration.run_state is not RunState.INACTIVE,
        incoming=True,
    )
    migration.proved = found
    return Event.CHECKS_CLEAN


def build_checked(migration: Migration) -> m.Checked:
    return m.Checked(migration=migration.id, findings=migration.findings)
