"""The target's front door: links that peers make to us, and which migration each belongs to.

The first message of a link says which: CHECK begins a migration; HANDOFF, RELEASED or CANCEL come back to one that is
running here or stands in the journal. A peer reaches only migrations that it began itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import trio
from attrs import define, field

from ldmd.definition import from_document, valid_name
from ldmd.errors import DefinitionError, JournalError, LinkError
from ldmd.host import Host
from ldmd.journal.records import Side
from ldmd.link.identity import Peer
from ldmd.link.pump import Link
from ldmd.link.stream import BulkTLSStream
from ldmd.migration import Migration
from ldmd.recovery import recall
from ldmd.registry import Registry
from ldmd.standing import answer
from protocol import limits
from protocol import messages as m
from protocol.codec import make_printable
from protocol.errors import RemoteProtocolError
from protocol.events import Event
from protocol.machine import Machine
from protocol.target import TARGET

log = logging.getLogger("ldmd.reception")

SUPERSEDE_SECONDS: Final = limits.KEEPALIVE_DEAD_SECONDS / 2
"""How long a new CHECK waits for the end of the older migration of that domain: its link is not read meanwhile."""


@define(eq=False)
class Reception:
    host: Host
    registry: Registry
    _visitors: dict[str, dict[Link, Visitor]] = field(factory=dict, init=False)
    """By peer, the oldest link first."""

    async def serve(self, stream: BulkTLSStream, peer: Peer) -> None:
        """One link, from its first byte to its last. Never raises for what the peer did."""
        visitor = Visitor(self)
        link = Link(stream, peer, self.host.hello(), visitor)
        visitors = self._visitors.setdefault(peer.name, {})
        if len(visitors) < self.host.config.listen.links_per_peer_max:
            visitors[link] = visitor
            _give_up_silent(visitors)
        else:
            words = f"{peer.name} has {len(visitors)} links with {self.host.config.host.name}"
            link.fail(RemoteProtocolError("busy", f"{words} already: no more are taken"))
        try:
            await link.run()
        except LinkError as error:
            log.warning("%s", error.sentence)
        finally:
            visitors.pop(link, None)

    async def find(self, link: Link, message: m.MigrationMessage) -> Migration | None:
        """The migration that a link's first message is for; None when it was answered and is none."""
        try:
            if isinstance(message, m.Check):
                return await self._begin(link, message)
            return await self._find_again(link, message)
        except JournalError as error:
            log.error("a link from %s cannot be served: %s", link.peer.name, error)
            raise RemoteProtocolError("busy", "the journal cannot be read now") from error

    async def stand(self, link: Link, question: m.Ask) -> m.Standing:
        """How this host stands to a domain; any peer may know it of the migrations that it shares."""
        try:
            assert link.hello is not None
            return await answer(self.host, link.peer.name, link.hello.journal, question)
        except JournalError as error:
            raise RemoteProtocolError("busy", "the journal cannot be read now") from error

    async def _find_again(self, link: Link, message: m.MigrationMessage) -> Migration:
        running = self.registry.get(message.migration)
        if running is not None:
            self._require_owner(running.peer, running.side, link)
            return running
        history = await self.host.journal.load_migration(message.migration)
        if history is None:
            raise RemoteProtocolError(
                "unknown-migration", f"there is no record of {message.migration} here"
            )
        self._require_owner(history.entry.peer, history.entry.side, link)
        migration, _ = recall(self.host, history)
        migration.ended.set()  # only unsettled ones run, and those are in the registry
        return migration

    def _require_owner(self, peer: str, side: Side, link: Link) -> None:
        if side is not Side.TARGET or peer != link.peer.name:
            raise RemoteProtocolError("not-allowed", f"that migration is not {link.peer.name}'s")

    async def _begin(self, link: Link, check: m.Check) -> Migration | None:
        refuse = _refusal(link, check)
        if not link.peer.may_send:
            return refuse(
                "not-allowed",
                f"{link.peer.name} may not send domains to {self.host.config.host.name}",
            )
        try:
            definition = from_document(check.domain)
        except DefinitionError as error:
            return refuse(error.code, error.sentence)
        if check.new_name is not None:
            if not valid_name(check.new_name):
                return refuse("definition", f"{check.new_name!r} is not a name for a domain")
            definition = attrs.evolve(definition, name=check.new_name)
        if not check.dry_run:  # it changes nothing, and ends nothing
            others = self._others(definition.uuid, link.peer)
            if any(other.began_on > link.number for other in others):
                return refuse("superseded", f"a later migration of {definition.name} has begun")
            for older in others:
                if not await self._supersede(older):
                    why = older.progress.sentence or older.machine.state
                    words = f"an earlier migration of {older.name} is not settled: {why}"
                    return refuse("busy", words)
        known = await self.host.journal.load_migration(check.migration)
        if known is not None or self.registry.get(check.migration) is not None:
            raise RemoteProtocolError("bad-value", "a migration with that id was here before")
        migration = Migration(
            self.host,
            id=check.migration,
            side=Side.TARGET,
            peer=link.peer.name,
            machine=Machine(TARGET, check.run_state.mode),
            definition=definition,
            run_state=check.run_state,
            domain=None,
        )
        migration.dry_run = check.dry_run
        migration.began_on = link.number
        migration.facts = check.facts
        assert link.hello is not None
        migration.peer_journal = link.hello.journal
        self.registry.start(migration)
        return migration

    def _others(self, uuid: str, peer: Peer) -> list[Migration]:
        """Migrations of the domain that this peer has begun and that have not ended, save dry runs."""
        return [
            other
            for other in self.registry.of_domain(uuid)
            if other.side is Side.TARGET and other.peer == peer.name and not other.dry_run
        ]

    async def _supersede(self, older: Migration) -> bool:
        """The source begins anew: an older migration of the domain that it brought is over, as it knows.

        False if that one has not ended in time, as when the journal cannot be written.
        """
        older.post(Event.SUPERSEDED)
        with trio.move_on_after(SUPERSEDE_SECONDS):
            await older.ended.wait()
            return True
        return False


@define(eq=False)
class Visitor:
    """What a link is before its first message, and what it is connected to from then on."""

    reception: Reception
    migration: Migration | None = field(default=None, init=False)
    spoken: bool = field(default=False, init=False)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        self.spoken = True
        if self.migration is None:
            if isinstance(message, m.Ask):
                link.post(await self.reception.stand(link, message))
                return
            self.migration = await self.reception.find(link, message)
            if self.migration is None:
                return
            if not self.migration.ended.is_set():
                self.migration.attach(link)
        await self.migration.take_message(link, message)

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        if self.migration is None:
            raise RemoteProtocolError("unexpected-message", "a state chunk before any migration")
        self.migration.take_chunk(link, chunk)

    def link_lost(self, link: Link, sentence: str) -> None:
        if self.migration is not None:
            self.migration.link_lost(link, sentence)


def _give_up_silent(visitors: Mapping[Link, Visitor]) -> None:
    """An honest peer says at once what a link is for: what is oldest among those that have not is what dawdles."""
    silent = [link for link, visitor in visitors.items() if not visitor.spoken and not link.ending]
    for link in silent[: -limits.LINKS_SILENT_MAX]:
        words = "given up for newer links before it said what it is for"
        link.fail(RemoteProtocolError("busy", words))


def _refusal(link: Link, check: m.Check) -> Callable[[str, str], None]:
    def refuse(code: str, sentence: str) -> None:
        log.warning("%s asks for a migration: refused: %s [%s]", link.peer.name, sentence, code)
        link.post(
            m.Refused(
                migration=check.migration,
                code=code,
                sentence=make_printable(sentence),
            )
        )

    return refuse
