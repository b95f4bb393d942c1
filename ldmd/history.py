"""The verbs of the control socket for migrations that began some time: list, show, and decide what nobody else can."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from attrs import define

from ldmd.control import Arguments, Caller, Progress, Verb
from ldmd.errors import BadRequest, NotFound, WrongState
from ldmd.host import Host
from ldmd.journal.records import JournalRecord, MigrationSummary, Side
from ldmd.migration import Migration
from ldmd.recovery import restore_machine
from ldmd.registry import Registry
from ldmd.situations import CONFIRMING, describe, describe_unproven, find_ways_on
from ldmd.witnesses import Witnesses
from protocol.events import Event
from protocol.machine import Decision

log = logging.getLogger("ldmd.history")

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 500
"""Migrations of one answer: nothing else is done while they are read and written down."""

DECISIONS: Final[Mapping[Decision, str]] = {
    Decision.OPEN: "running",
    Decision.IN_DOUBT: "in doubt",
    Decision.SOURCE: "source",
    Decision.TARGET: "target",
    Decision.LOST: "target",
}

OVERRIDES: Final = {"keep-here": Event.KEEP_ASKED, "give-up-here": Event.GIVE_UP_ASKED}
SAID: Final = {
    "keep-here": "the domain stays here",
    "give-up-here": "the domain is the other side's",
}


@define(eq=False)
class History:
    host: Host
    registry: Registry

    def verbs(self) -> dict[str, Verb]:
        return {
            "list-migrations": self.list_migrations,
            "show-migration": self.show_migration,
            "recover-migration": self.recover_migration,
        }

    async def list_migrations(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        """Newest first, in pages: ``before`` is the last one of the page before. What is under way is on the first."""
        given = Arguments.of(arguments, "limit", "before")
        limit = given.whole("limit", 1, PAGE_MAX, default=PAGE_DEFAULT)
        before = given.optional_text("before")
        journal = self.host.journal
        running = {migration.id for migration in self.registry}
        found = await journal.list_migrations(limit + 1, before=before)
        page, more = found[:limit], len(found) > limit
        described = [self._describe(s) for s in page if before is None or s.id not in running]
        if before is None:
            older = await journal.list_these(running - {summary.id for summary in page})
            shown = {summary.id for summary in (*page, *older)}
            young = [self._describe_young(m) for m in self.registry if m.id not in shown]
            described = young[::-1] + described + [self._describe(s) for s in older]
        return {"migrations": described, "next": page[-1].id if more else None}

    async def show_migration(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        return await self._find(Arguments.of(arguments, "migration").text("migration"))

    async def _find(self, wanted: str) -> dict[str, Any]:
        """By the beginning of its id. Raises NotFound."""
        recorded = await self.host.journal.find_migrations(wanted, limit=2)
        shown = {summary.id for summary in recorded}
        young = [m for m in self.registry if m.id.startswith(wanted) and m.id not in shown]
        found = [self._describe(s) for s in recorded] + [self._describe_young(m) for m in young]
        if len(found) != 1:
            raise NotFound(
                f"{'several migrations have an id that begins' if found else 'there is no migration'} with {wanted}",
                remedy="`ldm list-migrations` shows those there are",
            )
        return found[0]

    def _describe(self, summary: MigrationSummary) -> dict[str, Any]:
        running = self.registry.get(summary.id)
        if running is not None:
            machine = running.machine
        else:
            machine, _ = restore_machine(summary, summary.kinds)
        sentence = next((r.sentence for r in reversed(summary.records) if r.sentence), "")
        if running is not None and running.progress.sentence:
            sentence = running.progress.sentence
        return {
            "migration": summary.id,
            "domain": summary.name,
            "uuid": summary.uuid,
            "role": summary.side,
            "peer": summary.peer,
            "decision": DECISIONS[machine.decision],
            "records": [_record(record) for record in summary.records],
            "settled": summary.settled,
            "sentence": sentence,
        } | (
            _situation(summary.side, machine.state, summary.name, summary.peer, summary.id)
            if running is None
            else _situation_of(running)
        )

    def _describe_young(self, migration: Migration) -> dict[str, Any]:
        return {
            "migration": migration.id,
            "domain": migration.name,
            "uuid": migration.definition.uuid,
            "role": migration.side,
            "peer": migration.peer,
            "decision": DECISIONS[migration.decision],
            "records": [],
            "settled": False,
            "sentence": migration.progress.sentence,
        } | _situation_of(migration)

    # ---- overrides ---------------------------------------------------------------------------------------

    async def recover_migration(
        self, caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        """Decide for a peer that will never answer. Refused where it can be had what the peer decided."""
        given = Arguments.of(arguments, "migration", "decision", "reason")
        decision, reason = given.text("decision"), given.text("reason").strip()
        if decision not in OVERRIDES:
            raise BadRequest(f"the decision {decision!r:.80} is none of {', '.join(OVERRIDES)}")
        if not reason:
            raise BadRequest("a reason is needed: it is kept in the journal")
        found = await self._find(given.text("migration"))
        migration = self.registry.get(found["migration"])
        event = OVERRIDES[decision]
        if migration is None:
            raise WrongState(f"it has ended: {found['meaning']}")
        _require_possible(migration, event, decision)
        seen = await Witnesses(self.host, migration, event).hear()
        note = f"overridden by {caller.user} (uid {caller.uid}): {SAID[decision]}; reason: {reason}; seen: {seen}"
        if not await migration.override(event, note):
            raise WrongState(
                f"meanwhile it went on: {(await self._find(migration.id))['meaning']}",
                remedy=f"`ldm show-migration {migration.id[:12]}` shows where it is now",
            )
        log.warning("%s: recover-migration %s %s", caller.user, migration.id, decision)
        await migration.wait_decided()
        return await self._find(migration.id)


def _require_possible(migration: Migration, event: Event, decision: str) -> None:
    machine = migration.machine
    if migration.confirming:
        possible = event in find_ways_on(migration.side, migration.decision)
    else:
        possible = (machine.state, event, machine.mode) in machine.table.index
    if not possible:
        found = _situation_of(migration)
        raise WrongState(
            f"--{decision} is not for a migration that is {found['state']!r}: {found['meaning']}",
            remedy=found["remedy"],
        )


def _situation_of(migration: Migration) -> dict[str, str]:
    words = {"domain": migration.name, "peer": migration.peer, "id": migration.id}
    if not migration.confirming:
        return _situation(migration.side, migration.machine.state, **words)
    situation = describe_unproven(migration.side, migration.decision, migration.verdict, **words)
    return {"state": CONFIRMING, "meaning": situation.meaning, "remedy": situation.remedy}


def _situation(side: Side, state: object, domain: str, peer: str, id: str) -> dict[str, str]:
    situation = describe(side, state, domain=domain, peer=peer, id=id)
    return {"state": str(state), "meaning": situation.meaning, "remedy": situation.remedy}


def _record(record: JournalRecord) -> dict[str, Any]:
    return {
        "kind": record.kind,
        "time_unix_ms": record.time_unix_ms,
        "sentence": record.sentence,
    }
