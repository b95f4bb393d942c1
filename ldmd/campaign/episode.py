"""One migration and what goes wrong in it: faults armed, the migration asked for, deeds done at their instants, dead
managers started again, until nothing is open any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import trio
from attrs import define, field

from ldmd.campaign.pair import DOMAIN, Pair
from ldmd.campaign.plans import Deed, Step, Way
from ldmd.campaign.promise import Answer
from ldmd.client import connect
from ldmd.errors import DaemonUnreachable, LdmdError

POLL_SECONDS: Final = 0.01
ASK_SECONDS: Final = 600.0
"""The run's own limit is far shorter."""
AGAIN_SECONDS: Final = 5.0
"""How long the domain may be held by the migration that is being cancelled."""

VICTIMS: Final[Mapping[Deed, tuple[str, ...]]] = {
    Deed.KILL_SOURCE: ("source",),
    Deed.KILL_TARGET: ("target",),
    Deed.KILL_BOTH: ("source", "target"),
}


@define(eq=False, kw_only=True)
class Episode:
    """``hosts``: "source" and "target" -> host, as they are when it begins."""

    pair: Pair
    way: Way
    hosts: Mapping[str, str]
    answers: list[Answer] = field(factory=list, init=False)
    refusals: list[str] = field(factory=list, init=False)
    """What a manager answered to a migration or a cancel that is no answer at all."""
    done: list[str] = field(factory=list, init=False)
    """Deeds that did something."""
    domain_killed: bool = field(default=False, init=False)
    first_disturbed: float | None = field(default=None, init=False)
    asked_at: float = field(default=0.0, init=False)
    _asking: int = field(default=0, init=False)
    _steps_left: list[Step] = field(factory=list, init=False)

    async def run(self) -> None:
        """Until nothing is open on either side. The caller limits the time. Raises LdmdError for what never works."""
        self._steps_left = list(self.way.steps)
        for fault in self.way.faults:
            await self.pair.arm(self.hosts[fault.partition(".")[0]], fault)
        for fault in self.way.recovery_faults:
            name = self.hosts[fault.partition(".")[0]]
            armed = self.pair.recovery_faults.get(name, ())
            self.pair.recovery_faults[name] = (*armed, fault)
        async with trio.open_nursery() as nursery:
            for name in self.hosts.values():
                nursery.start_soon(self.pair.keep, name)
            nursery.start_soon(self._watch)
            self.asked_at = trio.current_time()
            self._asking += 1
            nursery.start_soon(self._ask)
            for step in self.way.steps:
                nursery.start_soon(self._take_step, step, nursery)
            await self.wait_quiet()
            for wire in self.pair.wires.values():
                wire.clear()
            for fault_host in self.hosts.values():
                await self._disarm(fault_host)
            nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        """Consoles come and go; faults fire."""
        while True:
            self._look()
            await trio.sleep(POLL_SECONDS)

    def _look(self) -> None:
        self.pair.consoles.look()
        for log in self.pair.logs.values():
            log.read()
            if log.fired:
                self._disturbed()

    def _disturbed(self) -> None:
        if self.first_disturbed is None:
            self.first_disturbed = trio.current_time()

    async def wait_quiet(self) -> None:
        """Until every request is answered, every deed done that can be, and no migration open on either side."""
        while True:
            steps_over = not self._steps_left  # before the look: a deed during it counts
            if not self._asking and not await self._is_open() and not self._asking:
                self._look()
                if steps_over or self._waits_in_vain():
                    return
            await trio.sleep(POLL_SECONDS)

    async def _is_open(self) -> bool:
        if not self.pair.all_ready:
            return True
        try:
            for name in self.hosts.values():
                if (await self.pair.call(name, "status"))["migrations"]:
                    return True
        except DaemonUnreachable:
            return True
        return not self.pair.all_ready

    def _waits_in_vain(self) -> bool:
        """Nothing goes on, and each deed that is left waits for a fault that has not fired."""
        return all(
            step.after is not None and not self._has_fired(step.after) for step in self._steps_left
        )

    def _has_fired(self, fault: str) -> bool:
        return any(log.has_fired(fault) for log in self.pair.logs.values())

    async def _disarm(self, name: str) -> None:
        with contextlib.suppress(DaemonUnreachable):  # it is being started again, and has nothing
            await self.pair.call(name, "disarm-faults")

    # ---- what an operator does -------------------------------------------------------------------

    async def _ask(self) -> None:
        """``_asking`` was counted up by whoever starts this."""
        source, target = self.hosts["source"], self.hosts["target"]
        try:
            await self._request("migrate-domain", source, {"domain": DOMAIN, "peer": target})
        finally:
            self._asking -= 1

    async def _cancel(self, name: str) -> None:
        try:
            await self._request("cancel-migration", name, {"domain": DOMAIN})
        finally:
            self._asking -= 1

    async def _request(self, verb: str, name: str, arguments: Mapping[str, object]) -> None:
        try:
            async with connect(self.pair.fleet.hosts[name].config.host.control_socket) as client:
                result = await client.call(verb, arguments, timeout_seconds=ASK_SECONDS)
        except DaemonUnreachable:
            return  # it was killed: no answer is one too
        except LdmdError as error:
            self._note_error(verb, error)
            return
        decision = result.get("decision", "target")
        self.answers.append(Answer(verb=verb, migration=result["migration"], decision=decision))

    def _note_error(self, verb: str, error: LdmdError) -> None:
        migration = error.facts.get("migration")
        if isinstance(migration, str):
            decision = "target" if error.facts.get("code") == "lost" else "source"
            self.answers.append(Answer(verb=verb, migration=migration, decision=decision))
        elif verb == "migrate-domain":
            self.refusals.append(f"{verb}: {error.sentence} [{error.code}]")

    # ---- what happens from outside ---------------------------------------------------------------

    async def _take_step(self, step: Step, nursery: trio.Nursery) -> None:
        began = self.asked_at
        if step.after is not None:
            while not self._has_fired(step.after):  # noqa: ASYNC110 (a log file grows)
                await trio.sleep(POLL_SECONDS)
            began = trio.current_time()
        await trio.sleep_until(began + step.seconds)
        if await self._do(step.deed, nursery):
            self.done.append(str(step))
            self._disturbed()
        self._steps_left.remove(step)

    async def _do(self, deed: Deed, nursery: trio.Nursery) -> bool:
        """False when there was nothing to do it to."""
        pair = self.pair
        match deed:
            case Deed.KILL_SOURCE | Deed.KILL_TARGET | Deed.KILL_BOTH:
                for side in VICTIMS[deed]:
                    pair.kill(self.hosts[side])
            case Deed.CANCEL_AT_SOURCE | Deed.CANCEL_AT_TARGET:
                self._asking += 1
                nursery.start_soon(self._cancel, self.hosts[deed.rpartition(" ")[2]])
            case Deed.FREEZE | Deed.PART:
                for wire in pair.wires.values():
                    wire.freeze(new_ones=deed is Deed.PART)
            case Deed.JOIN:
                for wire in pair.wires.values():
                    wire.clear()
            case Deed.KILL_DOMAIN_AT_SOURCE | Deed.KILL_DOMAIN_AT_TARGET:
                killed = await pair.kill_domain(self.hosts[deed.rpartition(" ")[2]])
                self.domain_killed = self.domain_killed or killed
                return killed
            case Deed.ASK_AGAIN:
                await self._wait_free()
                self._asking += 1
                nursery.start_soon(self._ask)
        return True

    async def _wait_free(self) -> None:
        """Until the first request is answered: the domain is held as long."""
        with trio.move_on_after(AGAIN_SECONDS):
            while self._asking:  # noqa: ASYNC110 (two tasks count it, a look now and then is enough)
                await trio.sleep(POLL_SECONDS)
