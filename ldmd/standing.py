"""How the other side stands to a migration and to its domain: asked on a link of its own, and answered from the journal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio
from attrs import define, field, frozen

from ldmd.errors import ConfigurationError, LinkError
from ldmd.host import Host
from ldmd.journal.records import MigrationSummary, Side
from ldmd.link.dialer import dial
from ldmd.link.identity import Peer
from ldmd.link.pump import Link
from protocol import limits
from protocol import messages as m
from protocol.actions import RecordKind
from protocol.errors import RemoteProtocolError
from protocol.phases import Holding, Role
from protocol.standing import Verdict, judge

UNDECIDED: Final = frozenset({RecordKind.GRANTED, RecordKind.PREPARED, RecordKind.COMMITTED})
"""Last records with which it is not known here whose the domain is."""


@frozen(kw_only=True)
class Standing:
    """``journal``: the id of the one that it was read in. ``kinds``: of the migration that was asked about."""

    journal: str
    holding: Holding
    trails: tuple[m.Trail, ...]
    kinds: tuple[str, ...]


@asynccontextmanager
async def open_questions(host: Host, peer: Peer) -> AsyncIterator[Questions]:
    """A link that only asks. Raises LinkError when there is none, ConfigurationError when it cannot be made."""
    seconds = host.config.migration.connect_seconds
    secure = await dial(peer, host.tls_files, timeout_seconds=seconds)
    questions = Questions(host)
    link = questions.link = Link(secure.stream, peer, host.hello(), questions)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        try:
            yield questions
        finally:
            link.close()
            nursery.cancel_scope.cancel()


async def ask(host: Host, peer: Peer, migration: str, uuid: str) -> Standing:
    """Raises LinkError when there is no answer, ConfigurationError when it cannot be asked."""
    with _alone():
        async with open_questions(host, peer) as questions:
            return await questions.ask(migration, uuid)
    raise AssertionError("it returns or raises")


async def ask_to_give_up(host: Host, peer: Peer, migration: str) -> None:
    """Raises LinkError when the target does not say that it has given it up, ConfigurationError."""
    with _alone():
        async with open_questions(host, peer) as questions:
            await questions.withdraw(migration)


@contextmanager
def _alone() -> Iterator[None]:
    """The one error of a link, without the group of the nursery around it."""
    try:
        yield
    except* (LinkError, ConfigurationError) as group:
        found: BaseException = group
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        error = found
    else:
        return
    raise error


@define(eq=False)
class Questions:
    host: Host
    link: Link = field(init=False)
    _answers: dict[type[m.MigrationMessage], m.MigrationMessage] = field(factory=dict, init=False)
    _lost: str = field(default="", init=False)
    _news: trio.Event = field(factory=trio.Event, init=False)

    async def ask(self, migration: str, uuid: str) -> Standing:
        """Raises LinkError."""
        found = await self._exchange(m.Ask(migration=migration, uuid=uuid), m.Standing)
        assert isinstance(found, m.Standing)
        assert self.link.hello is not None
        kinds = next((trail.kinds for trail in found.trails if trail.migration == migration), ())
        return Standing(
            journal=self.link.hello.journal,
            holding=found.holding,
            trails=found.trails,
            kinds=kinds,
        )

    async def withdraw(self, migration: str) -> None:
        """A source: the target gives it up, and says so, whatever it has not looked at yet. Raises LinkError otherwise."""
        code, sentence = "given-up", "the source starts again and gives it up"
        await self._exchange(m.Cancel(migration=migration, code=code, sentence=sentence), m.Refused)

    async def _exchange(
        self, question: m.MigrationMessage, kind: type[m.MigrationMessage]
    ) -> m.MigrationMessage:
        self.link.post(question)
        with trio.move_on_after(self.host.config.migration.handoff_seconds):
            while kind not in self._answers and not self._lost:
                await self._news.wait()
                self._news = trio.Event()
        if kind not in self._answers:
            words = self._lost or "it gave no answer in time"
            raise LinkError(f"{self.link.peer.name} did not say how it stands: {words}")
        return self._answers.pop(kind)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        if not isinstance(message, m.Standing | m.Refused):
            raise RemoteProtocolError(
                "unexpected-message", f"{message.TYPE} on a link that only asks"
            )
        self._answers[type(message)] = message
        self._news.set()

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        raise RemoteProtocolError("unexpected-message", "a state chunk on a link that only asks")

    def link_lost(self, link: Link, sentence: str) -> None:
        self._lost = sentence
        self._news.set()


async def answer(host: Host, peer: str, journal: str, question: m.Ask) -> m.Standing:
    """Only what was agreed with the journal that the peer has now: a new one knows nothing of it. Raises JournalError."""
    summaries = await host.journal.list_of_domain(question.uuid)
    theirs = [s for s in summaries if (s.peer, s.peer_journal) == (peer, journal)]
    shared = theirs[: limits.TRAILS_MAX][::-1]
    return m.Standing(
        migration=question.migration,
        holding=find_holding(host, question.uuid, summaries),
        trails=tuple(
            m.Trail(
                migration=s.id,
                role=role_of(s.side),
                kinds=s.kinds[-limits.RECORDS_MAX :],
            )
            for s in shared
        ),
    )


def find_holding(host: Host, uuid: str, summaries: list[MigrationSummary]) -> Holding:
    domain = host.domains.find(uuid)
    if domain is None:
        return Holding.PROCESS if uuid in host.inventory.living_orphans() else Holding.NOTHING
    last = next((s.kinds[-1] for s in summaries if s.id == domain.migration), None)
    return Holding.UNDECIDED if last in UNDECIDED else Holding.OWNED


def role_of(side: Side) -> Role:
    return Role(side.value)


async def judge_all(host: Host, peer: str, standing: Standing) -> tuple[Verdict, str]:
    """What all that the peer has says of this host's journal, and a sentence on it. Raises JournalError."""
    unsure: tuple[Verdict, str] = (Verdict.STANDS, "")
    summaries = await host.journal.list_these(trail.migration for trail in standing.trails)
    known = {summary.id: summary.kinds for summary in summaries}
    for trail in standing.trails:
        verdict, kind = judge(trail.role, trail.kinds, known.get(trail.migration, ()))
        words = f"{peer} has recorded {kind} of migration {trail.migration[:12]}"
        if verdict is Verdict.OLDER:
            return (
                verdict,
                f"{words}, and this host's journal lacks what led to that: it is from an earlier moment",
            )
        if verdict is Verdict.UNSURE:
            unsure = (
                verdict,
                f"{words}, and only the latest journal of this host can say what became of that",
            )
    return unsure
