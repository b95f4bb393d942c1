"""Runs one side of one migration: an event in, a step in the table, the actions out, in order.

Nothing is decided here. What may happen when is in ``protocol/source.py`` and ``protocol/target.py``; how an action is done
is in ``ldmd/phases``, ``performing.py`` and ``recording.py``. This module keeps the two promises that the tables rest on:

- actions are carried out one by one in the given order, and a Record is on disk before the next one begins;
- at most one operation runs, ends with one event, and is over before the next one begins.
"""

from __future__ import annotations

import collections
import logging
import random
from typing import TYPE_CHECKING, Any, Final

import trio

from ldmd.confirming import confirm
from ldmd.definition import DomainDefinition
from ldmd.fault_points import Kind, point_of, point_of_message
from ldmd.hearing import hear, note_deadline
from ldmd.host import Host
from ldmd.hypervisor.driver import DomainProcess
from ldmd.journal.records import JournalRecord, Side
from ldmd.link.pump import Link
from ldmd.performing import operate
from ldmd.phases import MESSAGES, transfer
from ldmd.progress import Progress
from ldmd.reason import Reason
from ldmd.recording import record
from ldmd.running import STOP_SECONDS, Running
from protocol import messages as m
from protocol.actions import (
    Action,
    CloseLink,
    Operation,
    Record,
    Send,
)
from protocol.codec import make_printable
from protocol.errors import RemoteProtocolError
from protocol.events import OVERRIDES, Event, event_of
from protocol.machine import Deadline, Decision, Machine
from protocol.phases import RunState
from protocol.standing import Verdict

if TYPE_CHECKING:
    from ldmd.domains import Domain

log = logging.getLogger("ldmd.migration")

MESSAGES_WAITING_MAX: Final = 32
"""Control messages of the peer that wait for their turn; then the link is not read any further."""

UNKNOWN_MIGRATION: Final = "[unknown-migration]"
"""In the last words of a peer that has no record of what it is asked about."""

_OF_THE_LINK: Final = frozenset(
    {Event.LINK_LOST, Event.CONNECT_FAILED, Event.JOURNAL_LOST, Event.DEADLINE}
)
"""Reasons to give up while that is possible; later they only delay."""

_PEER_ANSWERS: Final = {
    Event.CONNECTED: True,
    Event.CONNECT_FAILED: False,
    Event.JOURNAL_LOST: False,
}


class Override:
    """An operator's decision for a side that will never hear the other's. ``taken`` is None until it is known."""

    def __init__(self, note: str) -> None:
        self.note = note
        self.taken: bool | None = None


_RETRY_NOW: Final = object()
"""Origin of a DEADLINE that ends a back-off early."""


class Migration:
    """One side. Make it, ``attach`` or start with an event, then ``run`` it in a nursery of the daemon's."""

    def __init__(
        self,
        host: Host,
        *,
        id: str,
        side: Side,
        peer: str,
        machine: Machine[Any],
        definition: DomainDefinition,
        run_state: RunState,
        domain: Domain | None,
    ) -> None:
        self.host = host
        self.id = id
        self.side = side
        self.peer = peer
        self.machine = machine
        self.definition = definition
        self.run_state = run_state
        self.domain = domain
        self.dry_run = False
        self.began_on = 0
        """Target: the number of the link that CHECK came on. A source begins its migrations one after the other."""
        self.new_name: str | None = None
        self.peer_journal = ""
        self.facts: m.Document = {}
        self.findings: tuple[m.Finding, ...] = ()
        self.reason: Reason | None = None
        self.progress = Progress(machine.phase)

        self.link: Link | None = None
        self.new_link: Link | None = None
        """Made by an operation that has not ended yet; its loss counts from when it has."""
        self.regions: tuple[m.Region, ...] = ()
        self.receiver: transfer.Receiver | None = None
        self.announced: m.Digest | None = None
        self.digest_source: bytes | None = None
        self.digest_target: bytes | None = None
        self.device_bytes = 0
        self.chunks = 0
        self.bytes_sent = 0
        self.flip_bit: int | None = None
        """A fault that was armed: this bit of the next state chunk that has it is sent as its opposite."""
        self.silent_since: float | None = None
        """When the target's copy did not answer a probe, and has not answered since."""
        self.suspended_at: float | None = None
        self.downtime_ms: float | None = None
        self.records: list[JournalRecord] = []
        self.confirming = False
        """After a restart: whether the journal is the latest one is being asked, and nothing is done before."""
        self.stands = trio.Event()
        """It is, or a person says so."""
        self.verdict: Verdict | None = None
        """What the peer's records say of it, when they were to be had."""
        self.override_note = ""
        self.peer_answers = True
        """Whether the last attempt to reach the peer found it, with the journal and the record that it should have."""
        self.attempts = 0
        """How often a wait for the next attempt has begun."""

        self.nursery: trio.Nursery
        self.ended = trio.Event()
        self._changed = trio.Condition()
        self._nudge = trio.Event()
        self._own_events: collections.deque[tuple[Event, object]] = collections.deque()
        self._early: list[tuple[Event, object]] = []
        """Of a new link, before the operation that made it has ended."""
        self._wakeup = trio.Event()
        self._peer_turn = trio.Semaphore(MESSAGES_WAITING_MAX)
        self._operation: Running | None = None
        self._waiting_since = trio.current_time()
        self._active_at = self._waiting_since
        self._retries = 0
        self._retry_seconds = 0.0

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def decision(self) -> Decision:
        decision: Decision = self.machine.decision
        return decision

    # ---- what the phases use ---------------------------------------------------------------------------

    def explain(self, event: Event, code: str, sentence: str, remedy: str = "") -> Event:
        """Note why; gives the event back."""
        log.warning("migration %s of %s: %s [%s]", self.id[:8], self.name, sentence, code)
        if self.reason is None and (self.decision is Decision.OPEN or event not in _OF_THE_LINK):
            self.reason = Reason(code, sentence, remedy)
        self.progress.sentence = sentence
        return event

    def require_process(self) -> DomainProcess:
        assert self.domain is not None
        assert self.domain.process is not None
        return self.domain.process

    def say_why(self, otherwise: str) -> tuple[str, str]:
        """Code and sentence for the peer; control characters and great lengths are not sent."""
        code, sentence = (
            (self.reason.code, self.reason.sentence) if self.reason else ("aborted", otherwise)
        )
        return code, make_printable(sentence)

    def note_progress(self, done_bytes: int, total_bytes: int) -> None:
        self._active_at = trio.current_time()
        self.progress.note(done_bytes, total_bytes, self._active_at)

    def send(self, message: m.MigrationMessage) -> None:
        if self.link is not None:
            self.link.post(message)

    def count_overdue_as(self, event: Event) -> None:
        """From an operation, of itself: what it is taken for if it does not end in time from here on."""
        assert self._operation is not None
        self._operation.overdue = event

    async def at_boundary(self) -> None:
        """Between two state chunks: the only place where an operation that writes to the link ends early."""
        running = self._operation
        if running is not None and running.stopping.is_set():
            running.scope.cancel()
        await trio.lowlevel.checkpoint()

    async def send_chunk(self, link: Link, region: int, offset: int, payload: memoryview) -> None:
        """Raises LinkError."""
        await self.at_boundary()
        if self.flip_bit is not None and self.flip_bit // 8 < len(payload):
            payload = memoryview(bytearray(payload))
            payload[self.flip_bit // 8] ^= 1 << self.flip_bit % 8
            self.flip_bit = None
        await link.send_chunk(region, offset, payload)
        self.chunks += 1
        self.bytes_sent += len(payload)

    async def close_receiver(self) -> None:
        """Unmapping takes a while for a large domain: in a thread, and nobody waits for it in the handoff."""
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(receiver.close)

    # ---- what happens to it ----------------------------------------------------------------------------

    def post(self, event: Event, origin: object = None) -> None:
        """An event of our own. ``origin``: the link or operation it is about; stale ones are dropped."""
        self._own_events.append((event, origin))
        self._wakeup.set()

    def attach(self, link: Link) -> None:
        """Target: the source has come back on another link. The old one is over."""
        if self.link is not None and self.link is not link:
            self.link.close()
        self.link = link

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        """From the link's reader. Raises RemoteProtocolError."""
        if message.migration != self.id:
            raise RemoteProtocolError(
                "wrong-migration", f"this link is for {self.id}, not {message.migration}"
            )
        if self.ended.is_set():
            self._answer(link, message)
            return
        if self.confirming:
            raise RemoteProtocolError("busy", "whether the journal here is the latest is not known")
        await self._peer_turn.acquire()
        if self.ended.is_set():  # meanwhile
            self._answer(link, message)
            return
        self._own_events.append(
            (event_of(message, digest_sent=self.digest_source), (link, message))
        )
        self._wakeup.set()

    def _answer(self, link: Link, message: m.MigrationMessage) -> None:
        """It has ended: a repeated question gets the recorded answer."""
        if not self.machine.finished:  # the manager is stopping: the next one answers
            raise RemoteProtocolError("stopping", "the manager is stopping")
        event = event_of(message)
        for action in self.machine.step(event):
            assert isinstance(action, Send), "an ended migration only speaks"
            link.post(MESSAGES[action.message](self))
        self.trace(f"answers {event}")

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        if link is not self.link or self.decision is not Decision.OPEN:
            return  # on its way when we gave up
        if self.receiver is None or self.announced is not None:
            raise RemoteProtocolError("unexpected-message", "a state chunk is not allowed now")
        self.receiver.take(chunk)
        total_bytes = sum(len(area) for area in self.receiver.areas)
        self.note_progress(self.receiver.done_bytes, total_bytes)

    def link_lost(self, link: Link, sentence: str) -> None:
        if self.confirming:  # it was refused
            self.link = None if self.link is link else self.link
            return
        self.post(Event.LINK_LOST, (link, sentence))

    # ---- what others wait for --------------------------------------------------------------------------

    async def wait_change(self, seen: int) -> int:
        """Until ``progress.changes`` is no longer ``seen``; for those who show it."""
        async with self._changed:
            while self.progress.changes == seen and not self.ended.is_set():
                await self._changed.wait()
        return self.progress.changes

    @property
    def decided(self) -> bool:
        """It is known who owns the domain, and a source that keeps it has also resumed it; records may be owed."""
        return (
            self.ended.is_set()
            or self.decision in (Decision.TARGET, Decision.LOST)
            or self.machine.finished
        )

    async def wait_decided(self) -> Decision:
        seen = -1
        while not self.decided:
            seen = await self.wait_change(seen)
        return self.decision

    async def override(self, event: Event, note: str) -> bool:
        """Whether it was taken: only some states can be overridden, and it may have gone on meanwhile."""
        override, seen = Override(note), -1
        if self.confirming:
            self.stands.set()
            self._nudge.set()
            if (self.machine.state, event, self.machine.mode) not in self.machine.table.index:
                self._note_override(
                    note
                )  # it goes on as the journal says, and that is what was meant
                return True
        self.post(event, override)
        while override.taken is None and not self.ended.is_set():
            seen = await self.wait_change(seen)
        return bool(override.taken)

    async def try_now(self, timeout_seconds: float) -> None:
        """End the back-off, and wait until the attempt is over (or ``timeout_seconds``)."""
        before, seen = self.attempts, -1
        if self.confirming:
            self._nudge.set()
        else:
            self.post(Event.DEADLINE, _RETRY_NOW)
        with trio.move_on_after(timeout_seconds):
            while self.attempts == before and not self.ended.is_set():
                seen = await self.wait_change(seen)

    async def wait_nudge(self, seconds: float) -> None:
        """Until somebody wants another attempt now."""
        self._nudge = trio.Event()
        with trio.move_on_after(seconds):
            await self._nudge.wait()

    # ---- the run ---------------------------------------------------------------------------------------

    async def run(self, first: tuple[Action, ...] = ()) -> None:
        """Until the table's end. ``first``: what recovery has to do before anything else."""
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                if self.records:
                    if self.confirming:
                        await confirm(self)
                        self.confirming = False
                    self.trace("restored", self.machine.state)
                await self._carry_out(first)
                while not self.machine.finished:
                    event, origin = await self._next_event()
                    await self._take(event, origin)
                if self.side is Side.SOURCE and self.link is not None:
                    self.link.close()
                    with trio.move_on_after(STOP_SECONDS):
                        await self.link.wait_ended()
                nursery.cancel_scope.cancel()
        finally:
            await self.close_receiver()
            self.host.inventory.release(self.id)
            if self.machine.finished:
                self.host.domains.let_go(self.definition.uuid, self.id)
            self.ended.set()
        self._answer_leftovers()
        await self.tell_change()

    def _answer_leftovers(self) -> None:
        """What the peer said while the last step was taken."""
        for _, origin in self._own_events:
            if isinstance(origin, tuple) and isinstance(origin[1], m.MigrationMessage):
                self._peer_turn.release()  # somebody may wait to be heard
                link, message = origin
                try:
                    self._answer(link, message)
                except RemoteProtocolError as error:
                    link.fail(error)
        self._own_events.clear()

    async def _next_event(self) -> tuple[Event, object]:
        while True:
            late = trio.current_time() >= self._deadline_at()
            # a peer that never stops talking does not put its deadline off; a failed record comes first of all
            if self._own_events and not (
                late and self._own_events[0][0] is not Event.RECORD_FAILED
            ):
                return self._own_events.popleft()
            if late:
                return Event.DEADLINE, None
            self._wakeup = trio.Event()
            with trio.move_on_at(self._deadline_at()):
                await self._wakeup.wait()

    async def _take(self, event: Event, origin: object) -> None:
        if isinstance(origin, tuple):  # of a link
            link, detail = origin
            if link is self.new_link:
                self._early.append((event, origin))
                return
            if isinstance(detail, m.MigrationMessage):
                self._peer_turn.release()
                if (
                    link.ending
                ):  # the peer broke the rules: what came behind that is not believed either
                    return
            if link is not self.link:
                return
            if event is Event.LINK_LOST:
                self.link = None
                self.explain(event, "link-lost", str(detail))
                if UNKNOWN_MIGRATION in str(detail):
                    self.peer_answers = False
            elif isinstance(detail, m.MigrationMessage):
                await self.host.faults.reach(point_of_message(self.side, detail), link)
                self._retries = 0  # the peer answers
                if self._is_news(event):
                    hear(self, detail)
        elif isinstance(origin, Running):
            if origin is not self._operation:
                return
            self._operation = None
            self.peer_answers = _PEER_ANSWERS.get(event, self.peer_answers)
            if self.new_link is not None:
                self.link, self.new_link = self.new_link, None
                self._own_events.extendleft(reversed(self._early))
                self._early.clear()
        elif isinstance(origin, Override):
            origin.taken = (
                self.machine.state,
                event,
                self.machine.mode,
            ) in self.machine.table.index
            if not origin.taken:
                await self.tell_change()
                return
            assert event in OVERRIDES
            self._note_override(origin.note)
        elif origin is _RETRY_NOW:
            if self.machine.deadline is not Deadline.RETRY:
                return
        elif event is Event.CANCEL_ASKED:
            self.explain(event, "cancelled", f"cancelled by an operator at the {self.side}")
        elif event is Event.DEADLINE:
            note_deadline(self)
        await self._step(event)

    def _note_override(self, note: str) -> None:
        self.override_note = note
        self.reason = Reason("override", note)
        log.warning("migration %s of %s: %s", self.id[:8], self.name, note)

    def _is_news(self, event: Event) -> bool:
        """Whether the table takes it and goes on by it: what it refuses or ignores is not believed either."""
        row = self.machine.table.index.get((self.machine.state, event, self.machine.mode))
        if row is None:
            return False
        return row.next_state != self.machine.state or event is Event.PREPARE_PROGRESS

    async def _step(self, event: Event) -> None:
        before = self.machine.state
        try:
            actions = self.machine.step(event)
        except RemoteProtocolError as error:
            if self.link is not None:
                self.link.fail(error)
            return
        self.trace(f"takes {event}", self.machine.state)
        if self.machine.state != before:
            self._enter()
            log.info("migration %s of %s: %s", self.id[:8], self.name, self.machine.state)
        await self._carry_out(actions)
        if self.machine.state != before:
            self._waiting_since = self._active_at = trio.current_time()
        await self.tell_change()

    def _enter(self) -> None:
        if self.machine.deadline is Deadline.RETRY:
            limits = self.host.config.migration
            longest = min(
                limits.settle_retry_seconds_max, limits.settle_retry_seconds_min * 2**self._retries
            )
            self._retries = min(self._retries + 1, 30)
            self._retry_seconds = longest * random.uniform(0.5, 1.0)
            self.attempts += 1
        if self.decision is not Decision.SOURCE:
            self.progress.enter(self.machine.phase, trio.current_time())

    def trace(self, step: str, state: str | None = None) -> None:
        self.host.trace.note(self.side, self.id, step, state)

    async def tell_change(self) -> None:
        self.progress.changes += 1
        async with self._changed:
            self._changed.notify_all()

    def _deadline_at(self) -> float:
        deadline = self.machine.deadline
        if deadline is None:
            return float("inf")
        limits = self.host.config.migration
        if deadline is Deadline.STALL:
            return self._active_at + limits.transfer_stall_seconds
        if deadline is Deadline.RETRY:
            return self._waiting_since + self._retry_seconds
        seconds = {
            Deadline.CHECK: limits.check_seconds,
            Deadline.PREPARE: limits.prepare_seconds,
            Deadline.HANDOFF: limits.handoff_seconds,
            Deadline.HOLD: limits.hold_seconds,
        }[deadline]
        return self._waiting_since + seconds

    # ---- actions ---------------------------------------------------------------------------------------

    async def _carry_out(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            if isinstance(action, Operation):
                await self._begin(action)
                continue
            point = point_of(self.side, action)
            before = await self.host.faults.reach(f"{point}.before", self.link)
            match action:
                case Record(kind):
                    done = await record(self, kind, fail_first=before.kind is Kind.FAIL)
                case Send(message):
                    self.send(MESSAGES[message](self))
                    self.trace(f"send {message.TYPE.replace('-', '_').upper()}")
                    done = True
                case CloseLink():
                    if self.link is not None:
                        self.link.close()
                        self.link = None
                    self.trace("close link")
                    done = True
            after = await self.host.faults.reach(f"{point}.after", self.link)
            if not done or after.kind is Kind.FAIL:
                # first of all: the table's row for it belongs to the state that has just been entered
                self._own_events.appendleft((Event.RECORD_FAILED, None))
                return

    async def _begin(self, operation: Operation) -> None:
        if self._operation is not None:
            await self._operation.stop()
            self.drop_new_link()  # it was made, and nobody wants it any more
        self.trace(f"begin {operation}")
        running = self._operation = Running(operation)
        self.nursery.start_soon(operate, self, running)

    def drop_new_link(self) -> None:
        if self.new_link is not None:
            self.new_link.close()
            self.new_link = None
            for _, origin in self._early:
                if isinstance(origin, tuple) and isinstance(origin[1], m.MigrationMessage):
                    self._peer_turn.release()
            self._early.clear()
