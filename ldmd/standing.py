"""How the other side stands to a migration and to its domain: asked on a link of its own, and answered from the journal."""

from __future__ import annotations

from typing import Final

import trio
from attrs import define, field, frozen

from ldmd.errors import LinkError
from ldmd.host import Host
from ldmd.journal.records import MigrationHistory, Side
from ldmd.link.dialer import dial
from ldmd.link.identity import Peer
from ldmd.link.pump import Link
from protocol import limits
from protocol import messages as m
from protocol.actions import RecordKind
from protocol.errors import RemoteProtocolError
from protocol.phases import Holding, Role
from protocol.standing import find_missing

UNDECIDED: Final = frozenset({RecordKind.GRANTED, RecordKind.PREPARED, RecordKind.COMMITTED})
"""Last records with which it is not known here whose the domain is."""


@frozen(kw_only=True)
class Standing:
    """``journal``: the id of the one that it was read in. ``kinds``: of the migration that was asked about."""

    journal: str
    holding: Holding
    trails: tuple[m.Trail, ...]
    kinds: tuple[str, ...]


async def ask(host: Host, peer: Peer, migration: str, uuid: str) -> Standing:
    """Raises LinkError when there is no answer, ConfigurationError when it cannot be asked."""
    seconds = host.config.migration.connect_seconds
    secure = await dial(peer, host.tls_files, timeout_seconds=seconds)
    asker = _Asker()
    link = Link(secure.stream, peer, host.hello(), asker)
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(link.run)
            link.post(m.Ask(migration=migration, uuid=uuid))
            with trio.move_on_after(host.config.migration.handoff_seconds):
                await asker.over.wait()
            link.close()
        finally:
            nursery.cancel_scope.cancel()
    if asker.standing is None:
        words = asker.lost or "it gave no answer in time"
        raise LinkError(f"{peer.name} did not say how it stands: {words}")
    assert link.hello is not None
    trails = asker.standing.trails
    kinds = next((trail.kinds for trail in trails if trail.migration == migration), ())
    return Standing(
        journal=link.hello.journal, holding=asker.standing.holding, trails=trails, kinds=kinds
    )


@define(eq=False)
class _Asker:
    standing: m.Standing | None = field(default=None, init=False)
    lost: str = field(default="", init=False)
    over: trio.Event = field(factory=trio.Event, init=False)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        if not isinstance(message, m.Standing):
            raise RemoteProtocolError(
                "unexpected-message", f"{message.TYPE} on a link that only asks"
            )
        self.standing = message
        self.over.set()

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        raise RemoteProtocolError("unexpected-message", "a state chunk on a link that only asks")

    def link_lost(self, link: Link, sentence: str) -> None:
        self.lost = sentence
        self.over.set()


async def answer(host: Host, peer: str, question: m.Ask) -> m.Standing:
    """Raises JournalError."""
    histories = await host.journal.load_migrations(uuid=question.uuid)
    shared = [h for h in histories if h.entry.peer == peer][-limits.TRAILS_MAX :]
    return m.Standing(
        migration=question.migration,
        holding=find_holding(host, question.uuid, histories),
        trails=tuple(
            m.Trail(
                migration=h.entry.id,
                role=role_of(h.entry.side),
                kinds=h.kinds[-limits.RECORDS_MAX :],
            )
            for h in shared
        ),
    )


def find_holding(host: Host, uuid: str, histories: list[MigrationHistory]) -> Holding:
    domain = host.domains.find(uuid)
    if domain is None:
        return Holding.PROCESS if uuid in host.inventory.living_orphans() else Holding.NOTHING
    last = next((h.kinds[-1] for h in histories if h.entry.id == domain.migration), None)
    return Holding.UNDECIDED if last in UNDECIDED else Holding.OWNED


def role_of(side: Side) -> Role:
    return Role(side.value)


async def find_contradiction(host: Host, peer: str, standing: Standing) -> str:
    """What the peer's journal holds that this one lacks the reason for; "" when there is nothing. Raises JournalError."""
    for trail in standing.trails:
        history = await host.journal.load_migration(trail.migration)
        ours = () if history is None else history.kinds
        if kind := find_missing(trail.role, trail.kinds, ours):
            return (
                f"{peer} has recorded {kind} of migration {trail.migration[:12]}, and this host's journal ends before what"
                " led to that: it is from an earlier moment"
            )
    return ""
