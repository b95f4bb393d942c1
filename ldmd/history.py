"""The verbs of the control socket for migrations that began some time: list, show, and decide what nobody else can."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import trio
from attrs import define

from ldmd.control import Arguments, Caller, Progress, Verb
from ldmd.errors import (
    BadRequest,
    ConfigurationError,
    LinkError,
    NotAllowed,
    NotFound,
    WrongState,
)
from ldmd.host import Host
from ldmd.journal.records import JournalRecord, MigrationHistory, Side
from ldmd.link.dialer import dial
from ldmd.link.pump import Link
from ldmd.migration import Migration
from ldmd.recovery import restore_machine
from ldmd.registry import Registry
from ldmd.situations import describe
from protocol import messages as m
from protocol.errors import RemoteProtocolError
from protocol.events import Event
from protocol.machine import Decision

log = logging.getLogger("ldmd.history")

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
        Arguments.of(arguments)
        return {"migrations": await self._describe_all()}

    async def show_migration(
        self, _caller: Caller, arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        return await self._find(Arguments.of(arguments, "migration").text("migration"))

    async def _describe_all(self) -> list[dict[str, Any]]:
        histories = await self.host.journal.load_migrations()
        shown = {history.entry.id for history in histories}
        young = [self._describe_young(m) for m in self.registry if m.id not in shown]
        return [self._describe(h) for h in histories] + young

    async def _find(self, wanted: str) -> dict[str, Any]:
        """By the beginning of its id. Raises NotFound."""
        found = [d for d in await self._describe_all() if d["migration"].startswith(wanted)]
        if len(found) != 1:
            raise NotFound(
                f"{'several migrations have an id that begins' if found else 'there is no migration'} with {wanted}",
                remedy="`ldm list-migrations` shows those there are",
            )
        return found[0]

    def _describe(self, history: MigrationHistory) -> dict[str, Any]:
        entry = history.entry
        running = self.registry.get(entry.id)
        if running is not None:
            machine = running.machine
        else:
            machine, _ = restore_machine(history)
        sentence = next((r.sentence for r in reversed(history.records) if r.sentence), "")
        if running is not None and running.progress.sentence:
            sentence = running.progress.sentence
        return {
            "migration": entry.id,
            "domain": entry.definition.name,
            "uuid": entry.definition.uuid,
            "role": entry.side,
            "peer": entry.peer,
            "decision": DECISIONS[machine.decision],
            "records": [_record(record) for record in history.records],
            "settled": history.settled,
            "sentence": sentence,
        } | _situation(entry.side, machine.state, entry.definition.name, entry.peer, entry.id)

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
        } | _situation(
            migration.side, migration.machine.state, migration.name, migration.peer, migration.id
        )

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
        _require_row(migration, event, decision)
        seen = await self._ask_peer(migration)
        note = f"overridden by {caller.user} (uid {caller.uid}): {SAID[decision]}; reason: {reason}; seen: {seen}"
        if not await migration.override(event, note):
            raise WrongState(
                f"meanwhile it went on: {(await self._find(migration.id))['meaning']}",
                remedy=f"`ldm show-migration {migration.id[:12]}` shows where it is now",
            )
        log.warning("%s: recover-migration %s %s", caller.user, migration.id, decision)
        await migration.wait_decided()
        return await self._find(migration.id)

    async def _ask_peer(self, migration: Migration) -> str:
        """What was seen when the peer was tried once more. Raises NotAllowed when it answers."""
        if migration.side is Side.TARGET:
            return await self._greet_source(migration)
        limits = self.host.config.migration
        await migration.try_now(limits.connect_seconds + limits.handoff_seconds)
        if migration.ended.is_set() or (migration.decided and migration.peer_answers):
            raise _answered(migration, "it has answered now, and there is nothing to override")
        if migration.peer_answers:
            raise _answered(migration, "its manager can be reached, so its answer can be had")
        return migration.progress.sentence

    async def _greet_source(self, migration: Migration) -> str:
        if migration.link is not None:
            raise _answered(migration, "it is on a link with this host now")
        peer = self.host.config.peers.get(migration.peer)
        if peer is None or peer.address is None:
            return f"{migration.peer} has no address in the configuration, so it was not asked"
        try:
            async with trio.open_nursery() as nursery:
                secure = await dial(
                    peer,
                    self.host.tls_files,
                    timeout_seconds=self.host.config.migration.connect_seconds,
                )
                link = Link(secure.stream, peer, self.host.hello(), _Silent())
                await nursery.start(link.run)
                link.close()
        except* (LinkError, ConfigurationError) as group:
            seen = str(group.exceptions[0])
        else:
            hello = link.hello
            assert hello is not None
            if hello.journal == migration.peer_journal:
                raise _answered(migration, "its manager can be reached, and comes back by itself")
            seen = f"{migration.peer} has lost its journal"
        return seen


class _Silent:
    """A link that is only to be greeted on."""

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        raise RemoteProtocolError(
            "unexpected-message", f"{message.TYPE} on a link that asks nothing"
        )

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        raise RemoteProtocolError("unexpected-message", "a state chunk on a link that asks nothing")

    def link_lost(self, link: Link, sentence: str) -> None: ...


def _require_row(migration: Migration, event: Event, decision: str) -> None:
    machine = migration.machine
    if (machine.state, event, machine.mode) not in machine.table.index:
        situation = describe(
            migration.side,
            machine.state,
            domain=migration.name,
            peer=migration.peer,
            id=migration.id,
        )
        raise WrongState(
            f"--{decision} is not for a migration that is {str(machine.state)!r}: {situation.meaning}",
            remedy=situation.remedy,
        )


def _answered(migration: Migration, why: str) -> NotAllowed:
    return NotAllowed(
        f"{migration.peer} answers: {why}",
        remedy=f"`ldm show-migration {migration.id[:12]}` shows how it goes on; an override is for a host that is off"
        " and stays off",
    )


def _situation(side: Side, state: object, domain: str, peer: str, id: str) -> dict[str, str]:
    situation = describe(side, state, domain=domain, peer=peer, id=id)
    return {"state": str(state), "meaning": situation.meaning, "remedy": situation.remedy}


def _record(record: JournalRecord) -> dict[str, Any]:
    return {
        "kind": record.kind,
        "time_unix_ms": record.time_unix_ms,
        "sentence": record.sentence,
    }
