"""Domains on their way out of this host: who may go now, who waits, and in which order.

A *ticket* is one request to move a domain. It holds the domain from when it is asked for, and it is in the queue until one
of the ``outgoing-max`` places is free and its target has room for another incoming migration; then it becomes a migration.
Until then nothing has begun: no record, no row of a table, nothing said to the target. So a queued ticket can be withdrawn
at once, and a manager that ends forgets its queue: every domain in it is where it was.

A place is held while the domain is the source's or is being handed over. A migration that waits for a target that does not
answer (in doubt, or owing its good-bye) has given its place back: a lost host must not stop all others from being emptied.

A target that receives as many as it may says so in phase 1 (the check ``incoming``). That passes by itself, so such a
ticket goes back to where it was in the queue, with all others to that target, and the target is asked by dry runs, which
leave no record on either side, until it has room.
"""

from __future__ import annotations

import bisect
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from attrs import define, field

from ldmd.confirming import require_latest
from ldmd.domains import Domain
from ldmd.errors import Busy, LdmdError, MigrationFailed, WrongState
from ldmd.host import Host
from ldmd.journal.records import DomainState, Side
from ldmd.migration import Migration
from ldmd.registry import Registry
from protocol.events import Event
from protocol.machine import Decision, Machine
from protocol.phases import Mode
from protocol.source import SOURCE

log = logging.getLogger("ldmd.outgoing")

TARGET_FULL: Final = "incoming"
"""The check that fails only for as long as others are on their way to that target."""
ASK_AGAIN_SECONDS_MIN: Final = 0.5
ASK_AGAIN_SECONDS_MAX: Final = 10.0
"""Between two questions whether a full target has room; a migration takes seconds to minutes."""


@define(eq=False, kw_only=True)
class Ticket:
    """``id``: of its migration, or of the one that it will be. ``position``: in the queue, from 1; 0 when it has left it.

    ``state``: the domain's when it was queued; it moves as that or not at all. ``error``: why there will be no migration.
    ``withdrawn``: it must not come back to the queue. ``earlier_ids``: of its migrations that a full target refused;
    whoever was told one of them means this ticket.
    """

    id: str
    earlier_ids: list[str] = field(factory=list)
    number: int
    domain: Domain
    peer: str
    new_name: str | None
    force: bool
    state: DomainState
    position: int = 0
    migration: Migration | None = None
    error: Exception | None = None
    withdrawn: bool = False
    changed: trio.Event = field(factory=trio.Event)
    """Set when any of that changes; then there is a new one."""

    @property
    def name(self) -> str:
        return self.domain.name

    @property
    def uuid(self) -> str:
        return self.domain.definition.uuid

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def wait_begun(
        self, before: Migration | None, show: Callable[[], Awaitable[None]]
    ) -> Migration:
        """Its migration, another one than ``before``; ``show`` is called for each change until then. Raises ``error``."""
        while self.migration is None or self.migration is before:
            if self.error is not None:
                raise self.error
            changed = self.changed
            await show()
            await changed.wait()
        return self.migration


@define(eq=False)
class Outgoing:
    host: Host
    registry: Registry
    _queue: list[Ticket] = field(factory=list, init=False)
    _by_uuid: dict[str, Ticket] = field(factory=dict, init=False)
    """In the queue, or out of it and able to come back."""
    _places_taken: int = field(default=0, init=False)
    _full: set[str] = field(factory=set, init=False)
    """Targets that are asked until they have room."""
    _asked_for: int = field(default=0, init=False)
    _closed: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def places_max(self) -> int:
        return self.host.config.migration.outgoing_max

    # ---- asking and withdrawing --------------------------------------------------------------------------

    def ask(
        self, domain: Domain, peer: str, new_name: str | None, *, force: bool = False
    ) -> Ticket:
        """Begin at once, or queue. Raises Busy when the domain is held or the queue is full."""
        if self._closed:
            raise self._stopping(domain.name)
        ticket = Ticket(
            id=secrets.token_hex(16),
            number=self._asked_for,
            domain=domain,
            peer=peer,
            new_name=new_name,
            force=force,
            state=domain.state,
        )
        self.host.domains.take(domain, ticket.id)
        self._asked_for += 1
        self._by_uuid[ticket.uuid] = ticket
        self._queue.append(ticket)
        self._advance()
        queue_max = self.host.config.migration.queue_max
        if ticket.position > queue_max:
            full = Busy(
                f"{self._why_waiting(ticket)}, and {queue_max} are queued, as many as may be",
                remedy="wait until some have ended, or raise outgoing-max or queue-max in [migration]",
            )
            self._fail(ticket, full)
            raise full
        return ticket

    def find(self, migration: str) -> Ticket | None:
        """By the id of its migration, or of an earlier one."""
        for ticket in self._by_uuid.values():
            if migration == ticket.id or migration in ticket.earlier_ids:
                return ticket
        return None

    def of_domain(self, uuid: str) -> Ticket | None:
        return self._by_uuid.get(uuid)

    def withdraw(self, ticket: Ticket) -> bool:
        """Never a migration from now on; False when it is one already, which has to be cancelled."""
        ticket.withdrawn = True
        if ticket.migration is not None:
            return False
        self._fail(ticket, self._withdrawn(ticket))
        return True

    def close(self) -> None:
        """The manager stops: what is queued will never begin, what has begun does not come back."""
        self._closed = True
        for ticket in list(self._by_uuid.values()):
            ticket.withdrawn = True
            if ticket.migration is None:
                self._fail(ticket, self._stopping(ticket.name))

    def _withdrawn(self, ticket: Ticket) -> MigrationFailed:
        return MigrationFailed(
            f"{ticket.name} stays on {self.host.config.host.name}: cancelled before it had begun",
            facts={"migration": ticket.id, "code": "cancelled"},
        )

    def _stopping(self, name: str) -> MigrationFailed:
        return MigrationFailed(
            f"{name} stays on {self.host.config.host.name}: the manager stops, and its migration had not begun",
            remedy="ask again when the manager is back: its queue is not kept",
            facts={"code": "stopping"},
        )

    # ---- showing -----------------------------------------------------------------------------------------

    def describe(self, ticket: Ticket) -> dict[str, Any]:
        """As a progress document has it."""
        return {
            "event": "queued",
            "migration": ticket.id,
            "peer": ticket.peer,
            "position": ticket.position,
            "waits_for": "incoming-max" if ticket.peer in self._full else "outgoing-max",
            "sentence": self._why_waiting(ticket),
        }

    def describe_operation(self, uuid: str) -> dict[str, Any] | None:
        """As a listing has it, of a domain that waits for its migration to begin."""
        ticket = self._by_uuid.get(uuid)
        if ticket is None or ticket.migration is not None:
            return None
        return {
            "migration": ticket.id,
            "kind": "migration",
            "role": Side.SOURCE,
            "phase": "queued",
            "position": ticket.position,
            "peer": ticket.peer,
            "percent": 0.0,
            "done_bytes": 0,
            "total_bytes": 0,
            "rate_bytes_per_second": 0.0,
            "remaining_seconds": None,
            "in_doubt": False,
            "sentence": self._why_waiting(ticket),
        }

    def _why_waiting(self, ticket: Ticket) -> str:
        if ticket.peer in self._full:
            return f"{ticket.peer} receives as many migrations as it may"
        are = "is" if self._places_taken == 1 else "are"
        return f"{self._places_taken} {are} under way, as many as may be"

    # ---- the queue ---------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Start all that may go. Without a checkpoint, so the order is that in which they were asked for."""
        if self._closed:
            return
        for ticket in list(self._queue):
            if self._places_taken >= self.places_max:
                break
            if ticket.peer not in self._full:
                self._places_taken += 1
                self._queue.remove(ticket)
                self.registry.nursery.start_soon(self._carry, ticket)
                ticket.position = 0
        for position, ticket in enumerate(self._queue, 1):
            if ticket.position != position:
                ticket.position = position
                ticket.tell()

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, LdmdError):
            log.error("%s cannot be migrated: a bug", ticket.name, exc_info=error)
        ticket.error = error
        self.host.domains.let_go(ticket.uuid, ticket.id)
        if ticket in self._queue:
            self._queue.remove(ticket)
            ticket.position = 0
        self._forget(ticket)
        ticket.tell()
        self._advance()

    def _forget(self, ticket: Ticket) -> None:
        if self._by_uuid.get(ticket.uuid) is ticket:
            del self._by_uuid[ticket.uuid]

    # ---- becoming a migration ----------------------------------------------------------------------------

    async def make(
        self,
        domain: Domain,
        peer: str,
        new_name: str | None,
        *,
        id: str,
        dry_run: bool,
        force: bool,
    ) -> Migration:
        """The source's side, not running yet. Raises LdmdError when the domain cannot be asked how it is."""
        await require_latest(self.host, domain.definition)
        await self.host.domains.readopt(domain)
        run_state = await domain.run_state()
        facts = await self.host.inventory.facts(
            domain.definition, run_state, pending=domain.pending is not None
        )
        claims = await self.host.inventory.proofs.claim(
            domain.definition,
            run_state,
            id,
            domain.serving,
            domain.process.pid if run_state.mode is Mode.WARM and domain.process else None,
        )
        migration = Migration(
            self.host,
            id=id,
            side=Side.SOURCE,
            peer=peer,
            machine=Machine(SOURCE, run_state.mode),
            definition=domain.definition,
            run_state=run_state,
            domain=domain,
        )
        migration.dry_run, migration.force, migration.new_name = dry_run, force, new_name
        migration.facts, migration.claims = facts | claims.facts, claims
        migration.post(Event.START_DRY_RUN if dry_run else Event.START)
        return migration

    async def _carry(self, ticket: Ticket) -> None:
        """One attempt, in a place of its own."""
        try:
            migration = await self._begin(ticket)
            seen = -1
            while migration is not None and _has_place(migration):
                seen = await migration.wait_change(seen)
        finally:
            self._places_taken -= 1
        self._advance()
        if migration is None:
            return
        if migration.decision is Decision.SOURCE:
            await migration.ended.wait()
        if target_is_full(migration):
            await self._come_back(ticket)
        else:
            self._forget(ticket)

    async def _begin(self, ticket: Ticket) -> Migration | None:
        """None when it cannot begin, or was withdrawn meanwhile: who waits for it is told."""
        try:
            await self.host.domains.begin(ticket.domain)
            if ticket.error is not None:
                return None
            if ticket.domain.state is not ticket.state:
                raise WrongState(
                    f"the process of {ticket.name} ended while its migration was queued",
                    remedy="ask again if it is to be moved as it is now",
                )
            migration = await self.make(
                ticket.domain,
                ticket.peer,
                ticket.new_name,
                id=ticket.id,
                dry_run=False,
                force=ticket.force,
            )
        except Exception as error:  # raised where it is waited for
            if ticket.error is None:
                self._fail(ticket, error)
            return None
        if (
            ticket.error is not None
        ):  # it never runs, so nobody else takes back what it has put there
            await migration.withdraw_claims()
            return None
        ticket.migration = migration
        self.registry.start(migration)
        ticket.tell()
        return migration

    # ---- a target that is full ---------------------------------------------------------------------------

    async def _come_back(self, ticket: Ticket) -> None:
        """Refused, and its migration has ended; the next one has an id of its own."""
        if ticket.withdrawn:
            self._fail(ticket, self._withdrawn(ticket))
            return
        ticket.earlier_ids.append(ticket.id)
        ticket.id, ticket.migration = secrets.token_hex(16), None
        try:
            await self.host.domains.take_in_turn(ticket.domain, ticket.id)
            ticket.state = ticket.domain.state
        except LdmdError as error:  # another migration was faster, or it was removed
            if ticket.error is None:
                self._fail(ticket, error)
            return
        if ticket.error is not None:  # withdrawn while it waited
            self.host.domains.let_go(ticket.uuid, ticket.id)
            return
        log.info("%s is queued again: %s receives as many as it may", ticket.name, ticket.peer)
        if ticket.peer not in self._full:
            self._full.add(ticket.peer)
            self.registry.nursery.start_soon(self._ask_until_room, ticket.peer)
        bisect.insort(self._queue, ticket, key=lambda t: t.number)
        self._advance()

    async def _ask_until_room(self, peer: str) -> None:
        longest = ASK_AGAIN_SECONDS_MIN
        full = True
        while full:
            await trio.sleep(longest * random.uniform(0.5, 1.0))
            longest = min(ASK_AGAIN_SECONDS_MAX, 2 * longest)
            ticket = next((t for t in self._queue if t.peer == peer), None)
            full = ticket is not None and await self._is_refused(ticket)
        self._full.discard(peer)
        self._advance()

    async def _is_refused(self, ticket: Ticket) -> bool:
        """A dry run; what else it finds, the migration itself will say."""
        probe_id = secrets.token_hex(16)
        try:
            probe = await self.make(
                ticket.domain,
                ticket.peer,
                ticket.new_name,
                id=probe_id,
                dry_run=True,
                force=ticket.force,
            )
        except Exception as error:
            if ticket.error is None:
                self._fail(ticket, error)
            return True
        self.registry.start(probe)
        await probe.ended.wait()
        return target_is_full(probe)


def _has_place(migration: Migration) -> bool:
    """Still the source's, or being handed over with the target on the link."""
    handing_over = migration.decision is Decision.IN_DOUBT and migration.link is not None
    return not migration.ended.is_set() and (migration.decision is Decision.OPEN or handing_over)


def target_is_full(migration: Migration) -> bool:
    """It was refused for nothing but that its target receives as many as it may."""
    hard = {finding.code for finding in migration.findings if finding.hard}
    return migration.decision is not Decision.TARGET and hard == {TARGET_FULL}
