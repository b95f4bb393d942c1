"""What must be seen before a person may decide for the other side: that host is off, or it answers and cannot know.

An override is for a host that is off and stays off. One that takes or refuses connections at its address is up: its
manager is slow, hangs, or is not running, and a copy may run there. A manager that answers and cannot know, because it has
another journal, or no record of this migration, is asked what it has of the domain instead.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from ldmd.confirming import REMEDY
from ldmd.errors import (
    ConfigurationError,
    HypervisorError,
    LinkError,
    NotAllowed,
    OutcomeUnknown,
)
from ldmd.host import Host
from ldmd.hypervisor.driver import RunStatus
from ldmd.journal.records import Side
from ldmd.link.dialer import find_life
from ldmd.link.identity import Peer
from ldmd.migration import Migration
from ldmd.standing import Standing, ask
from protocol.actions import RecordKind
from protocol.events import Event
from protocol.machine import Decision
from protocol.overrides import may_override
from protocol.phases import Holding, Mode
from protocol.standing import Verdict

IT_IS_FOR: Final = "an override is for a host that is off and stays off"

INSTEAD: Final = {
    Event.KEEP_ASKED: "settle or end there what it has, then ask again",
    Event.GIVE_UP_ASKED: "the copy here may be the only one; --keep-here keeps it",
}
_HELD: Final = {
    Holding.NOTHING: "it has nothing of {domain}",
    Holding.UNDECIDED: "a migration holds {domain} there",
    Holding.OWNED: "it has {domain}",
    Holding.PROCESS: "a process of {domain} lives there, which its journal does not know",
}


@frozen
class Witnesses:
    """For one override: ``event`` says which way."""

    host: Host
    migration: Migration
    event: Event

    async def hear(self) -> str:
        """What was seen, for the record. Raises NotAllowed, saying what to do instead."""
        if self.event is Event.GIVE_UP_ASKED and self.migration.decision is Decision.IN_DOUBT:
            await self._require_standstill()
        if self.migration.confirming:
            seen = await self._confirm_again()
            if seen:
                return seen
        elif self.migration.side is Side.SOURCE:
            await self._try_again()
        elif self.migration.link is not None:
            raise self._answered("it is on a link with this host now")
        peer = self.host.config.peers.get(self.migration.peer)
        if peer is None or peer.address is None:
            raise NotAllowed(
                f"{self.migration.peer} has no address in the configuration, so it cannot be seen to be off",
                remedy=f"put its address into [peers.{self.migration.peer}], restart the manager, and ask again",
            )
        if self.migration.confirming:
            return await self._require_off(peer, LinkError(self.migration.progress.sentence))
        try:
            standing = await ask(self.host, peer, self.migration.id, self.migration.definition.uuid)
        except (LinkError, ConfigurationError) as error:
            return await self._require_off(peer, error)
        return self._judge(standing)

    async def _require_standstill(self) -> None:
        """What runs cannot be given up, whoever started it."""
        domain = self.migration.domain
        if domain is None or self.migration.run_state.mode is Mode.COLD:
            return
        remedy = (
            "a copy that runs is not given up: look at its process, and suspend or end it first"
        )
        try:
            process = await self.host.domains.readopt(domain)
            status = RunStatus.GONE if process is None else await process.status()
        except (OutcomeUnknown, HypervisorError) as error:
            words = f"it is not known whether the copy of {domain.name} here runs: {error}"
            raise NotAllowed(words, remedy=remedy) from error
        if status is RunStatus.RUNNING:
            raise NotAllowed(f"the copy of {domain.name} here runs", remedy=remedy)

    async def _confirm_again(self) -> str:
        """Whether its journal is the latest is being asked: "" when there is still no answer."""
        migration, limits = self.migration, self.host.config.migration
        await migration.try_now(2 * limits.connect_seconds + 2 * limits.handoff_seconds)
        if not migration.confirming:
            raise self._answered("it has answered now, and there is nothing to override")
        sentence = migration.progress.sentence
        if migration.verdict is Verdict.UNSURE:
            return sentence
        if migration.verdict is Verdict.OLDER:
            raise NotAllowed(sentence, remedy=REMEDY)
        if migration.peer_answers:
            raise self._answered(sentence)
        return ""

    async def _try_again(self) -> None:
        """The source: whatever answer there is to be had, it takes."""
        limits = self.host.config.migration
        await self.migration.try_now(limits.connect_seconds + limits.handoff_seconds)
        if self.migration.ended.is_set() or (
            self.migration.decided and self.migration.peer_answers
        ):
            raise self._answered("it has answered now, and there is nothing to override")
        if self.migration.peer_answers:
            raise self._answered("its manager can be reached, so its answer can be had")

    async def _require_off(self, peer: Peer, error: LinkError | ConfigurationError) -> str:
        name = peer.name
        try:
            life = await find_life(peer, timeout_seconds=self.host.config.migration.connect_seconds)
        except (LinkError, ConfigurationError) as unasked:
            raise NotAllowed(
                f"it cannot be seen whether {name} is off: {unasked}",
                remedy=f"{unasked.remedy or 'mend that'}, then ask again",
            ) from unasked
        if life:
            raise NotAllowed(
                f"{name} is up, and may run {self.migration.name}: {life}; {error.sentence}",
                remedy="start its manager, or end one that hangs and start it again: then it answers, also"
                f" without its journal; {IT_IS_FOR}",
            )
        return f"nothing answers at the address of {name}: {error.sentence}"

    def _judge(self, standing: Standing) -> str:
        """Its manager answers. Only what it cannot know is a person's to decide."""
        migration, name = self.migration, self.migration.peer
        same = standing.journal == migration.peer_journal
        settled = RecordKind.SETTLED in standing.kinds
        if same and standing.kinds and not (migration.side is Side.TARGET and settled):
            raise self._answered("its manager can be reached, and has a record of it")
        held = _HELD[standing.holding].format(domain=migration.name)
        in_doubt = migration.decision is Decision.IN_DOUBT
        if in_doubt and not may_override(self.event, standing.holding):
            raise NotAllowed(f"{name} answers: {held}", remedy=INSTEAD[self.event])
        why = "it has lost its journal" if not same else "it has no record of the migration"
        return f"{name} answers: {'it has settled it' if settled else why}, and {held}"

    def _answered(self, why: str) -> NotAllowed:
        return NotAllowed(
            f"{self.migration.peer} answers: {why}",
            remedy=f"`ldm show-migration {self.migration.id[:12]}` shows how it goes on; {IT_IS_FOR}",
        )
