"""The verbs of the control socket: what an operator may ask, and how it is answered."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any

import attrs
import trio
from attrs import define, field

from ldmd import __version__
from ldmd.confirming import require_latest
from ldmd.control import Arguments, Caller, Progress, Verb
from ldmd.definition import from_document, to_document, valid_name
from ldmd.domains import Domain, require_takeable
from ldmd.errors import (
    BadRequest,
    Busy,
    ChecksFailed,
    DefinitionError,
    LinkError,
    MigrationFailed,
    NotAllowed,
    NotFound,
    OutcomeUnknown,
    WrongState,
)
from ldmd.host import Host
from ldmd.hypervisor.driver import RunStatus
from ldmd.journal.records import DomainState, Side
from ldmd.migration import Migration
from ldmd.outgoing import Outgoing, Ticket, target_is_full
from ldmd.registry import Registry
from protocol.events import Event
from protocol.machine import Decision
from protocol.phases import RunState

log = logging.getLogger("ldmd.operations")

PROGRESS_SECONDS = 0.1
"""How often an operator who waits is shown how far it is."""

STATUS_SECONDS = 1.0
"""A domain that has not said by then how it is, is shown as unknown."""

ASKED_AT_ONCE = 32
"""Domains asked for their status at the same time: each takes a descriptor."""

SETTLE_WAIT_SECONDS = 2.0
"""A migration that is decided is reported then at the latest; the last message to the peer may take longer."""


@define(eq=False)
class Operations:
    host: Host
    registry: Registry
    outgoing: Outgoing
    port: int
    _asking: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(ASKED_AT_ONCE))

    def verbs(self) -> dict[str, Verb]:
        simple = {
            f"{name}-domain": self._verb_on_domain(name)
            for name in ("remove", "bind", "unbind", "start", "stop", "suspend", "resume")
        }
        return simple | {
            "status": self.show_status,
            "list-domains": self.list_domains,
            "show-definition": self.show_definition,
            "add-domain": self.add_domain,
            "migrate-domain": self.migrate_domain,
            "cancel-migration": self.cancel_migration,
        }

    # ---- the host ----------------------------------------------------------------------------------------

    async def show_status(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        Arguments.of(arguments)
        config = self.host.config
        return {
            "host": config.host.name,
            "release": __version__,
            "pid": os.getpid(),
            "port": self.port,
            "journal": self.host.journal.id,
            "hypervisors": sorted(self.host.hypervisors),
            "memory_bytes": config.resources.memory_bytes,
            "memory_free_bytes": self.host.inventory.memory_free_bytes,
            "vcpus": config.resources.vcpus,
            "vcpus_free": self.host.inventory.vcpus_free,
            "domains": len(list(self.host.domains)),
            "migrations": len(list(self.registry)),
            "queued": len(self.outgoing),
            "peers": [
                {
                    "name": peer.name,
                    "address": f"{peer.address[0]}:{peer.address[1]}" if peer.address else None,
                    "may_send": peer.may_send,
                    "may_receive": peer.may_receive,
                }
                for peer in config.peers.values()
            ],
        }

    # ---- domains -----------------------------------------------------------------------------------------

    async def list_domains(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        wanted = Arguments.of(arguments, "names").texts("names")
        domains = [self.host.domains.get(name) for name in wanted] or list(self.host.domains)
        # all at once: domains that do not answer cost one wait together
        described: dict[str, dict[str, Any]] = {}

        async def describe(domain: Domain) -> None:
            described[domain.definition.uuid] = await self._describe(domain)

        async with trio.open_nursery() as nursery:
            for domain in domains:
                if domain.state is DomainState.ACTIVE:
                    nursery.start_soon(describe, domain)
                else:
                    described[domain.definition.uuid] = self._describe_as(domain, None)
        return {
            "host": self.host.config.host.name,
            "domains": [described[domain.definition.uuid] for domain in domains],
        }

    async def _ask_run_state(self, domain: Domain) -> str | None:
        if domain.state is not DomainState.ACTIVE:
            return None
        process = domain.process  # another may be there, or none, when it is our turn to ask
        if process is None:
            # not found at start; or not there yet, or no more, while a migration holds it
            return RunStatus.GONE if domain.migration else "unknown"
        with trio.move_on_after(STATUS_SECONDS):
            async with self._asking:
                try:
                    return await process.status()
                except OutcomeUnknown:
                    return "unknown"
        return "unknown"

    async def _describe(self, domain: Domain) -> dict[str, Any]:
        return self._describe_as(domain, await self._ask_run_state(domain))

    def _describe_as(self, domain: Domain, run_state: str | None) -> dict[str, Any]:
        definition, process = domain.definition, domain.process
        return {
            "name": definition.name,
            "uuid": definition.uuid,
            "state": domain.state,
            "run_state": run_state,
            "hypervisor": definition.hypervisor,
            "machine": definition.machine,
            "vcpus": definition.vcpus,
            "memory_bytes": definition.memory_bytes,
            "console": str(process.console_path) if process else None,
            "pid": process.pid if process else None,
            "reconfiguration_pending": domain.pending is not None,
            "operation": self._describe_operation(domain),
            "vdisks": {
                disk.name: domain.path_notes.get(disk.name) or domain.serving.get(disk.name)
                for disk in definition.vdisks
            },
        }

    def _describe_operation(self, domain: Domain) -> dict[str, Any] | None:
        if domain.migration is None:
            return None
        migration = self.registry.get(domain.migration)
        if migration is None:
            return self.outgoing.describe_operation(domain.definition.uuid)
        progress = migration.progress
        return {
            "migration": migration.id,
            "kind": "migration",
            "role": migration.side,
            "phase": progress.phase,
            "position": None,
            "peer": migration.peer,
            "percent": progress.percent,
            "done_bytes": progress.done_bytes,
            "total_bytes": progress.total_bytes,
            "rate_bytes_per_second": progress.rate_bytes_per_second,
            "remaining_seconds": progress.remaining_seconds,
            "in_doubt": migration.decision is Decision.IN_DOUBT,
            "sentence": progress.sentence or migration.machine.state,
        }

    async def show_definition(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        name = Arguments.of(arguments, "domain").text("domain")
        domain = self.host.domains.get(name)
        return {
            "definition": to_document(domain.definition),
            "pending": to_document(domain.pending) if domain.pending else None,
        }

    async def add_domain(
        self, caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        document = Arguments.of(arguments, "definition").document("definition")
        domain = await self.host.domains.add(from_document(document))
        log.info("%s added domain %s (%s)", caller.user, domain.name, domain.definition.uuid)
        return {"name": domain.name, "uuid": domain.definition.uuid}

    def _verb_on_domain(self, verb: str) -> Verb:
        async def carry_out(
            caller: Caller, arguments: Mapping[str, object], _progress: Progress
        ) -> dict[str, Any]:
            name = Arguments.of(arguments, "domain").text("domain")
            settling = verb in ("stop", "suspend", "resume")
            async with self.host.domains.operation(name, while_settling=settling) as domain:
                # a client that goes away must not leave half a verb behind
                if verb in ("start", "resume"):
                    await require_latest(self.host, domain.definition)
                with trio.CancelScope(shield=True):
                    await getattr(self.host.domains, verb)(domain)
                    log.info("%s: %s-domain %s", caller.user, verb, domain.name)
                    description = await self._describe(domain)
                return {"domain": description}

        return carry_out

    # ---- migration ---------------------------------------------------------------------------------------

    async def migrate_domain(
        self, caller: Caller, arguments: Mapping[str, object], progress: Progress
    ) -> dict[str, Any]:
        given = Arguments.of(arguments, "domain", "peer", "new_name", "dry_run", "force")
        domain = self.host.domains.get(given.text("domain"))
        peer = self._require_receiver(given.text("peer"))
        new_name = given.optional_text("new_name")
        if new_name is not None and not valid_name(new_name):
            raise DefinitionError(f"{new_name!r} is not a name for a domain")
        force = given.boolean("force")
        if given.boolean("dry_run"):
            migration = await self._try_out(domain, peer, new_name, force=force)
            await progress({"event": "begun", "migration": migration.id})
            await self._show_progress(migration, progress)
        else:
            ticket = self.outgoing.ask(domain, peer, new_name, force=force)
            log.info("%s: migrate-domain %s to %s", caller.user, domain.name, peer)
            migration = await self._follow(ticket, progress)
        return self._report(migration)

    def _require_receiver(self, peer_name: str) -> str:
        peer = self.host.config.peers.get(peer_name)
        if peer is None:
            known = ", ".join(sorted(self.host.config.peers)) or "none"
            raise NotFound(
                f"there is no peer {peer_name} in the configuration (there is: {known})",
                remedy=f"add [peers.{peer_name}] to {self.host.config.path} and restart the manager",
            )
        if not peer.may_receive:
            raise NotAllowed(
                f"{peer_name} may not receive domains from this host",
                remedy=f"set may-receive = true in [peers.{peer_name}] of {self.host.config.path}",
            )
        return peer_name

    async def _try_out(
        self, domain: Domain, peer: str, new_name: str | None, *, force: bool
    ) -> Migration:
        """A dry run; it moves nothing, so it takes no place among those that do."""
        require_takeable(domain)
        migration = await self.outgoing.make(
            domain, peer, new_name, id=secrets.token_hex(16), dry_run=True, force=force
        )
        self.registry.start(migration)
        return migration

    async def _follow(self, ticket: Ticket, progress: Progress) -> Migration:
        """Its last migration, which has ended or is decided. Raises what kept it from beginning."""
        shown: dict[str, Any] = {}

        async def show_place() -> None:
            nonlocal shown
            document = self.outgoing.describe(ticket)
            if ticket.position and document != shown:
                shown = document
                await progress(document)

        migration = None
        while migration is None or target_is_full(migration):
            migration = await ticket.wait_begun(migration, show_place)
            await progress({"event": "begun", "migration": migration.id})
            await self._show_progress(migration, progress)
        return migration

    async def _show_progress(self, migration: Migration, progress: Progress) -> None:
        """Until it has ended, or is decided and only the good-bye to the peer is left."""
        shown: set[object] = set()

        async def show_once(key: object, document: dict[str, Any]) -> None:
            if key not in shown:
                shown.add(key)
                await progress(document)

        decided_at: float | None = None
        last_bytes = -1
        while not migration.ended.is_set():
            now = trio.current_time()
            for phase in migration.progress.entered:
                await show_once(
                    phase, {"event": "phase", "phase": phase, "migration": migration.id}
                )
            if migration.findings:
                await show_once("findings", {"event": "findings", "findings": _findings(migration)})
            if migration.decision is Decision.IN_DOUBT and migration.link is None:
                await show_once(
                    "in-doubt", {"event": "in-doubt", "sentence": _doubt_sentence(migration)}
                )
            if migration.decided:
                decided_at = decided_at or now
                if now - decided_at > SETTLE_WAIT_SECONDS:
                    return
            if migration.progress.done_bytes != last_bytes:
                last_bytes = migration.progress.done_bytes
                await progress({"event": "progress"} | _progress(migration))
            with trio.move_on_after(PROGRESS_SECONDS):
                await migration.wait_change(migration.progress.changes)
        for phase in migration.progress.entered:
            await show_once(phase, {"event": "phase", "phase": phase, "migration": migration.id})
        if migration.findings:
            await show_once("findings", {"event": "findings", "findings": _findings(migration)})

    def _report(self, migration: Migration) -> dict[str, Any]:
        """The result of a migration that moved (or a clean dry run). Raises what else became of it."""
        hard = [finding for finding in migration.findings if finding.hard]
        if hard and migration.decision is Decision.SOURCE:
            raise ChecksFailed(
                f"{migration.name} cannot move to {migration.peer}: {len(hard)} of the checks failed",
                facts={"findings": _findings(migration), "migration": migration.id},
            )
        reason = migration.reason
        if migration.dry_run:
            if reason is not None:
                raise LinkError(reason.sentence, remedy=reason.remedy)
            return {
                "migration": migration.id,
                "outcome": "dry-run",
                "findings": _findings(migration),
                "domain": migration.name,
            }
        if migration.decision is Decision.SOURCE:
            sentence = reason.sentence if reason else "the migration was given up"
            error = LinkError if reason and reason.code == "link" else MigrationFailed
            raise error(
                f"{migration.name} stays on {self.host.config.host.name}: {sentence}",
                remedy=reason.remedy if reason else "",
                facts={"migration": migration.id, "code": reason.code if reason else "aborted"},
            )
        if reason is not None and reason.code == "lost":
            raise MigrationFailed(
                f"{migration.name} is {migration.peer}'s, and does not run: {reason.sentence}",
                remedy=reason.remedy,
                facts={"migration": migration.id, "code": reason.code},
            )
        now = trio.current_time()
        return {
            "migration": migration.id,
            "outcome": "completed",
            "findings": _findings(migration),
            "phases": migration.progress.phase_seconds(now),
            "bytes": migration.bytes_sent,
            "digest_source": migration.digest_source.hex() if migration.digest_source else None,
            "digest_target": migration.digest_target.hex() if migration.digest_target else None,
            "downtime_ms": migration.downtime_ms,
            "running_on": migration.peer if migration.run_state is RunState.RUNNING else None,
            "domain": migration.new_name or migration.name,
        }

    async def cancel_migration(
        self, caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        """Ask it to stop, and give the true answer: who owns the domain in the end.

        By ``migration``, the whole id, or by ``domain``: then it is the one that holds the domain, or is about to.
        """
        given = Arguments.of(arguments, "domain", "migration")
        wanted, name = given.optional_text("migration"), given.optional_text("domain")
        if wanted is None and name is None:
            raise BadRequest("the argument 'domain' or 'migration' is missing")
        if wanted is not None and name is not None:
            raise BadRequest("'domain' and 'migration' cannot be given together")
        ticket = self._find_ticket(wanted, name)
        if ticket is not None and self.outgoing.withdraw(ticket):
            log.info("%s: cancel-operation migration %s, queued", caller.user, ticket.name)
            return {
                "outcome": "cancelled",
                "decision": "source",
                "sentence": str(ticket.error),
                "migration": ticket.id,
            }
        if ticket is not None and wanted is not None:
            wanted = ticket.id  # it may have been told an earlier one
        migration = self._find_open(wanted, name)
        log.info("%s: cancel-operation migration %s", caller.user, migration.name)
        too_late = migration.decision is not Decision.OPEN
        if not too_late:
            migration.post(Event.CANCEL_ASKED)
        decision = await migration.wait_decided()
        host = self.host.config.host.name
        source, target = (
            (host, migration.peer) if migration.side is Side.SOURCE else (migration.peer, host)
        )
        if decision is Decision.SOURCE:
            return {
                "outcome": "too-late" if too_late else "cancelled",
                "decision": "source",
                "sentence": f"{migration.name} stays on {source}",
                "migration": migration.id,
            }
        return {
            "outcome": "too-late",
            "decision": "target",
            "sentence": f"too late: past the point of no return; {migration.name} is on {target}",
            "migration": migration.id,
        }

    def _find_ticket(self, wanted: str | None, name: str | None) -> Ticket | None:
        if wanted is not None:
            return self.outgoing.find(wanted)
        domain = self.host.domains.lookup(name or "")
        return None if domain is None else self.outgoing.of_domain(domain.definition.uuid)

    def _find_open(self, wanted: str | None, name: str | None) -> Migration:
        """Raises NotFound, WrongState, Busy: what is not certainly meant is not cancelled."""
        if wanted is not None:
            migration = self.registry.get(wanted)
            if migration is None:
                raise WrongState(
                    f"no migration {wanted} is under way",
                    remedy="`ldm list-migrations` shows what became of it",
                )
            return migration
        assert name is not None
        domain = self.host.domains.lookup(name)
        if domain is not None and domain.migration is not None:
            held_by = self.registry.get(domain.migration)
            if held_by is None:
                raise Busy(f"a migration of {name} is only just beginning", remedy="ask again")
            found = [held_by]
        else:  # it comes, and is not here yet
            found = [
                m
                for m in self.registry
                if name in (m.name, m.definition.uuid) and m.side is Side.TARGET and not m.dry_run
            ]
        if len(found) == 1:
            return found[0]
        if found:
            raise Busy(
                f"several migrations of {name} are under way",
                remedy="`ldm list-migrations` shows them; cancel one by its id",
            )
        self.host.domains.get(name)
        raise WrongState(f"no migration of {name} is under way")


def _findings(migration: Migration) -> list[dict[str, Any]]:
    return [attrs.asdict(finding) for finding in migration.findings]


def _progress(migration: Migration) -> dict[str, Any]:
    progress = migration.progress
    return {
        "phase": progress.phase,
        "percent": progress.percent,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "rate_bytes_per_second": progress.rate_bytes_per_second,
        "remaining_seconds": progress.remaining_seconds,
    }


def _doubt_sentence(migration: Migration) -> str:
    why = f" ({migration.progress.sentence})" if migration.progress.sentence else ""
    return (
        f"{migration.name} was granted to {migration.peer} and its answer is not known{why}:"
        f" the copy here stays suspended, and {migration.peer} is asked again until it answers"
    )
