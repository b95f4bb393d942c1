"""Before anything is done on the word of a journal that may be from an earlier moment: the peers are asked.

That is so after the host was booted (``ldmd/journal/position.py``). A source that gives up makes the target give up too, so
that nothing which the target has not looked at yet can make it go on. A contradiction is not resolved here: nothing is
touched, and a person puts the right journal in its place.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import trio

from ldmd.definition import DomainDefinition
from ldmd.errors import ConfigurationError, JournalError, LinkError, WrongState
from ldmd.host import Host
from ldmd.journal.records import Side
from ldmd.link.identity import Peer
from ldmd.standing import Standing, ask, ask_to_give_up, judge_all
from protocol.actions import RecordKind
from protocol.phases import Holding
from protocol.standing import Verdict

if TYPE_CHECKING:
    from ldmd.migration import Migration

log = logging.getLogger("ldmd.confirming")

NO_MIGRATION: Final = "0" * 32
ELSEWHERE: Final = (Holding.OWNED, Holding.PROCESS)
GIVEN_UP: Final = (RecordKind.PREPARING, RecordKind.ABORTED)
"""Last records of a source that has, or will have, its domain back."""

REMEDY: Final = "nothing was touched: stop this manager, put the latest journal into its state-directory, and start it"


async def confirm(migration: Migration) -> None:
    """Return when what the journal says of the migration may be acted on; ask for as long as that is not known.

    Ends early when a person has decided that it may (``Migration.stands``).
    """
    tries = 0
    while (sentence := await _find_obstacle(migration)) is not None:
        log.warning("migration %s of %s: %s", migration.id[:8], migration.name, sentence)
        migration.progress.sentence = sentence
        await migration.tell_change()
        limits = migration.host.config.migration
        longest = min(
            limits.settle_retry_seconds_max, limits.settle_retry_seconds_min * 2 ** min(tries, 30)
        )
        tries += 1
        await migration.wait_nudge(longest * random.uniform(0.5, 1.0))


async def _find_obstacle(migration: Migration) -> str | None:
    """Why it may not be acted on yet; None when it may, and that is kept."""
    try:
        if not migration.stands.is_set():
            verdict, sentence = await _ask_peers(migration)
            migration.verdict = verdict
            migration.attempts += 1
            if verdict is not Verdict.STANDS:
                return sentence
        await migration.host.journal.confirm(migration.definition.uuid)
    except JournalError as error:
        return f"that this host's journal is the latest cannot be kept: {error.sentence}"
    return None


async def _ask_peers(migration: Migration) -> tuple[Verdict | None, str]:
    """None: the one that it is with was not to be had, or this host's own journal was not."""
    try:
        verdict, sentence = await _ask_its_peer(migration)
        if verdict is Verdict.STANDS:
            verdict, sentence = await _ask_others(
                migration.host, migration.definition, without=migration.peer
            )
    except (LinkError, ConfigurationError, JournalError) as error:
        words = f"whether this host's journal is the latest is not known: {error.sentence}"
        return None, words
    return verdict, sentence


async def _ask_its_peer(migration: Migration) -> tuple[Verdict | None, str]:
    """None: it is no peer any more. Raises LinkError, ConfigurationError, JournalError."""
    host = migration.host
    peer = host.config.peers.get(migration.peer)
    migration.peer_answers = False
    if peer is None:
        return None, f"{migration.peer} is not a peer of this host any more, and must be asked"
    gives_up = migration.side is Side.SOURCE and migration.records[-1].kind in GIVEN_UP
    standing = await ask(host, peer, migration.id, migration.definition.uuid)
    migration.peer_answers = True
    if gives_up and standing.holding in ELSEWHERE:
        return (
            Verdict.OLDER,
            f"{peer.name} has {migration.name}, and this host's journal does not know why",
        )
    verdict, sentence = await judge_all(host, peer.name, standing)
    if gives_up and verdict is Verdict.STANDS and standing.kinds:
        await ask_to_give_up(host, peer, migration.id)
    return verdict, sentence


async def _ask_others(
    host: Host, definition: DomainDefinition, *, without: str
) -> tuple[Verdict, str]:
    """Whether any other peer that answers has the domain. Those that are away cannot be waited for. Raises JournalError."""
    peers = [p for p in host.config.peers.values() if p.name != without and p.address is not None]
    for peer, standing in (await _ask_all(host, peers, definition.uuid)).items():
        sentence = await _find_objection(host, peer, standing, definition)
        if sentence:
            return Verdict.OLDER, sentence
    return Verdict.STANDS, ""


async def require_latest(host: Host, definition: DomainDefinition) -> None:
    """Before a domain of this host runs: that no peer which answers has it. Raises WrongState, JournalError.

    Asked once after each boot of the host, until all peers have answered.
    """
    if definition.uuid not in host.journal.unconfirmed:
        return
    peers = [p for p in host.config.peers.values() if p.address is not None]
    answers = await _ask_all(host, peers, definition.uuid)
    for peer, standing in answers.items():
        if sentence := await _find_objection(host, peer, standing, definition):
            raise WrongState(f"{definition.name} may not run here: {sentence}", remedy=REMEDY)
    if len(answers) == len(peers):
        await host.journal.confirm(definition.uuid)
    else:
        away = ", ".join(sorted(p.name for p in peers if p.name not in answers))
        log.warning("%s: whether %s has it could not be asked", definition.name, away)


async def _ask_all(host: Host, peers: Iterable[Peer], uuid: str) -> dict[str, Standing]:
    """Peer's name -> its answer, for those that gave one."""
    found: dict[str, Standing] = {}

    async def ask_one(peer: Peer) -> None:
        try:
            found[peer.name] = await ask(host, peer, NO_MIGRATION, uuid)
        except (LinkError, ConfigurationError) as error:
            log.info("%s", error.sentence)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(ask_one, peer)
    return found


async def _find_objection(
    host: Host, peer: str, standing: Standing, definition: DomainDefinition
) -> str:
    """Empty when there is none. Raises JournalError."""
    if standing.holding in ELSEWHERE:
        return f"{peer} has it, and this host's journal does not know why"
    verdict, sentence = await judge_all(host, peer, standing)
    return "" if verdict is Verdict.STANDS else sentence
