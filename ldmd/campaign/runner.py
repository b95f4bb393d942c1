"""One run: its plan carried out on a pair, and the promise checked afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
import trio
from attrs import define, field, frozen

from ldmd.campaign.episode import Episode
from ldmd.campaign.logs import point_and_kind
from ldmd.campaign.machine import read_memory
from ldmd.campaign.observation import list_migrations, observe
from ldmd.campaign.pair import DOMAIN, Pair
from ldmd.campaign.plans import Plan, Way
from ldmd.campaign.promise import Expectation, Judgement, find_reason_to_end, judge
from ldmd.demo.fleet import HOSTS
from ldmd.errors import DaemonUnreachable, LdmdError, operator_error
from ldmd.fault_points import Kind
from ldmd.hypervisor.oracle import ConsoleReport

GRACE_SECONDS: Final = 6.0
"""After nothing is open any more: a manager looks once a second for domains that have ended by themselves."""
POLL_SECONDS: Final = 0.03
CONSOLE_SECONDS: Final = 15.0
CONSOLE_BYTES: Final = 48
"""Three lines: by then it is certain that it runs."""


@frozen(kw_only=True)
class RunResult:
    """``ran_on``: "source" or "target" of the last migration, as they were when it began; None when the domain ended or
    it is not known. ``settle_seconds``: from the first thing that went wrong until the promise held, None when it did
    not. ``oracle``: None where there was no copy to look at. ``logs``: host -> what its manager wrote, of failed runs."""

    name: str
    violations: tuple[str, ...]
    ran_on: str | None
    ended: str | None
    """Why the domain ended, where that was justified and did happen."""
    settle_seconds: float | None
    oracle: bool | None
    decisions: tuple[str, str]
    armed: tuple[str, ...]
    fired: tuple[str, ...]
    deeds: tuple[str, ...]
    migrations: int
    """How often the domain was sent on its way in this run."""
    seconds: float
    logs: Mapping[str, str] = field(factory=dict)
    folder: str | None = None

    @property
    def held(self) -> bool:
        return not self.violations

    @property
    def outcome(self) -> str:
        """In a word: ``source``, ``target``, ``lost``, ``killed`` or ``unknown``."""
        if self.ended is not None:
            return "killed" if "killed" in self.ended else "lost"
        return self.ran_on or "unknown"

    def to_document(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "held": self.held, "outcome": self.outcome}


@define(eq=False)
class Run:
    pair: Pair
    plan: Plan
    violations: list[str] = field(factory=list, init=False)
    judgement: Judgement | None = field(default=None, init=False)
    settle_seconds: float | None = field(default=None, init=False)
    oracle: bool | None = field(default=None, init=False)
    ended: str | None = field(default=None, init=False)
    episodes: list[Episode] = field(factory=list, init=False)

    async def carry_out(self) -> RunResult:
        """Never raises for what the managers do: that is a violation."""
        began = trio.current_time()
        try:
            for way in self.plan.ways:
                await self._go(way)
                if self.violations or self.plan.wanted is None or self._has_fired(self.plan.wanted):
                    break
            else:
                self.violations.append(f"not reached: {self.plan.wanted} never fired")
        except (LdmdError, BaseExceptionGroup, OSError) as error:
            known = error if isinstance(error, OSError) else operator_error(error)
            if known is None:
                raise
            self.violations.append(str(known))
        return self._report(trio.current_time() - began)

    def _has_fired(self, fault: str) -> bool:
        return any(log.has_fired(fault) for log in self.pair.logs.values())

    async def _go(self, way: Way) -> None:
        """One way, and everything that must hold after it."""
        pair = self.pair
        pair.forget()
        start = pair.location
        known = await list_migrations(pair)
        episode = Episode(pair=pair, way=way, hosts={"source": start, "target": pair.other(start)})
        self.episodes.append(episode)
        with trio.move_on_after(pair.kind.settle_seconds) as limit:
            await episode.run()
        if limit.cancelled_caught:
            self.violations.append(
                f"not settled {pair.kind.settle_seconds:g} s after it was asked for: "
                + "; ".join([text async for text in _tell_open(pair)])
            )
        await self._judge(episode, known)
        self.violations += self._find_faults_of_managers(episode)
        if not self.violations:
            await self._examine()

    # ---- afterwards ------------------------------------------------------------------------------

    async def _judge(self, episode: Episode, known: frozenset[str]) -> None:
        """Ask and look until the promise holds; what does not hold in the end is a violation."""
        pair = self.pair
        patience_seconds = 0.0 if self.violations else GRACE_SECONDS
        deadline = trio.current_time() + patience_seconds
        expected = Expectation(
            start=episode.hosts["source"],
            uuid=pair.definition.uuid,
            memory_bytes=pair.definition.memory_bytes,
            may_end=self._find_reason_to_end(episode),
            answers=tuple(episode.answers),
        )
        while True:
            judgement = judge(await observe(pair, known), expected)
            now = trio.current_time()
            if not judgement.violations or now > deadline:
                break
            await trio.sleep(POLL_SECONDS)
        self.judgement = judgement
        self.violations += judgement.violations
        if judgement.location is not None:
            pair.location = judgement.location
        if not judgement.violations:
            disturbed = episode.first_disturbed
            self.settle_seconds = now - (episode.asked_at if disturbed is None else disturbed)
            self.ended = None if judgement.running else expected.may_end

    def _find_reason_to_end(self, episode: Episode) -> str | None:
        fired = [fault for log in self.pair.logs.values() for fault in log.fired]
        return find_reason_to_end(
            fired,
            target_restarted=bool(self.pair.deaths[episode.hosts["target"]]),
            killed=episode.domain_killed,
            operation_seconds=self.pair.kind.deadlines["operation-seconds"],
        )

    def _find_faults_of_managers(self, episode: Episode) -> Iterator[str]:
        for name in HOSTS:
            log = self.pair.logs[name]
            crashes = sum(point_and_kind(fault)[1] is Kind.CRASH for fault in log.fired)
            deaths = self.pair.deaths[name]
            yield from (
                f"the manager of {name} ended by itself with status {status}"
                for status in deaths
                if status != -signal.SIGKILL
            )
            if len(deaths) > crashes + self.pair.kills[name]:
                yield f"the manager of {name} died {len(deaths)} times, and was killed less often"
            yield from (f"the log of {name} says: {line}" for line in log.find_bugs())
        if not episode.domain_killed:
            yield from episode.refusals

    async def _examine(self) -> None:
        """The copy runs, and nothing of it was lost. A domain that ended is started afresh for the next run."""
        pair = self.pair
        if self.judgement is None or not self.judgement.running:
            self._check_console(pair.consoles.check(), lines_min=0)
            pair.consoles.pass_over(None)
            await pair.start_domain()
            await self._wait_printing()
            return
        if not await self._wait_printing():
            self.violations.append(f"the domain on {pair.location} runs, and prints nothing more")
            return
        shown = (await pair.call(pair.location, "suspend-domain", {"domain": DOMAIN}))["domain"]
        memory = await trio.to_thread.run_sync(
            read_memory, shown["pid"], pair.kind.memory_bytes, pair.kind.layout
        )
        if not memory.ok:
            self.violations.append(f"the memory on {pair.location}: {memory.sentence}")
        self._check_console(pair.consoles.check(), lines_min=1)
        self.oracle = not self.violations
        if self.oracle:
            pair.consoles.pass_over(pair.find_console())
            await pair.call(pair.location, "resume-domain", {"domain": DOMAIN})

    def _check_console(self, report: ConsoleReport, *, lines_min: int) -> None:
        if not report.contiguous and report.lines + lines_min > 0:
            self.violations.append(f"the console: {report.sentence}")

    async def _wait_printing(self) -> bool:
        """Until the domain has printed more than it had."""
        first: int | None = None
        with trio.move_on_after(CONSOLE_SECONDS):
            while True:
                console = self.pair.find_console()
                if console is not None:
                    first = console.size_bytes if first is None else first
                    if console.size_bytes >= first + CONSOLE_BYTES:
                        return True
                await trio.sleep(POLL_SECONDS)
        return False

    # ---- what is told ----------------------------------------------------------------------------

    def _report(self, seconds: float) -> RunResult:
        logs = self.pair.logs
        judgement = self.judgement
        ran_on = None
        if judgement is not None and judgement.running and self.episodes:
            sides = {host: side for side, host in self.episodes[-1].hosts.items()}
            ran_on = sides[judgement.location] if judgement.location else None
        for log in logs.values():
            log.read()
        episodes = self.episodes
        return RunResult(
            name=self.plan.name,
            violations=tuple(self.violations),
            ran_on=ran_on,
            ended=self.ended,
            settle_seconds=self.settle_seconds if not self.violations else None,
            oracle=self.oracle,
            decisions=judgement.decisions if judgement else ("?", "?"),
            armed=episodes[-1].way.faults if episodes else (),
            fired=tuple(fault for log in logs.values() for fault in log.fired),
            deeds=tuple(deed for episode in episodes for deed in episode.done),
            migrations=len(episodes),
            seconds=seconds,
            logs={name: log.text for name, log in logs.items()} if self.violations else {},
            folder=str(self.pair.folder) if self.violations else None,
        )


async def _tell_open(pair: Pair) -> Any:
    """What each manager says is still going on."""
    for name in HOSTS:
        try:
            domains = (await pair.call(name, "list-domains"))["domains"]
            migrations = (await pair.call(name, "list-migrations"))["migrations"]
        except DaemonUnreachable as error:
            yield f"{name}: {error.sentence}"
            continue
        for domain in domains:
            operation = domain["operation"]
            doing = operation["sentence"] if operation else "no operation"
            yield f"{name} has {domain['state']}, {domain['run_state']}: {doing}"
        for migration in migrations:
            if not migration["settled"]:
                kinds = " ".join(r["kind"] for r in migration["records"]) or "no record"
                yield f"{name}, {migration['role']}: {kinds}: {migration['sentence']}"
