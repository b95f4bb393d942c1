"""Two managers with a proxy before each, domains that are caught at chosen moments of their migrations, and the promise.

Faults of this package come from outside: signals, limits, the disk, the clock, the network. The managers' own fault points
only hold migrations up, so that what is done falls into the phase that is meant. As many domains migrate at once as there
are moments: each point fires once, so each catches another domain, and one fault meets every phase.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, field, frozen

from ldmd.campaign.consoles import Consoles
from ldmd.campaign.machine import find_processes
from ldmd.errors import LdmdError
from tests.faults.moments import Moment
from tests.faults.proxy import Proxy, open_proxy
from tests.managers import DEADLINES, Fleet, Manager, make_fleet, wait_for
from tests.migration.oracle import assert_oracle

HOSTS = ("host-a", "host-b")
DEADLINE_SECONDS = 10.0
"""Each of the managers' here: longer than a migration is held, and than the time-out of a silent link (8 s)."""
HOLD_SECONDS = 7.0
"""How long a point holds a migration: until the last one is caught, on a machine that is busy."""
FAULT_SECONDS = 12.0
"""Longer than every deadline."""
SETTLE_SECONDS = 60.0
LOOK_SECONDS = 0.02

SCENE_DEADLINES = f"""
[migration]
connect-seconds = 3
check-seconds = {DEADLINE_SECONDS}
prepare-seconds = {DEADLINE_SECONDS}
transfer-stall-seconds = {DEADLINE_SECONDS}
handoff-seconds = {DEADLINE_SECONDS}
hold-seconds = {DEADLINE_SECONDS}
operation-seconds = {DEADLINE_SECONDS}
settle-retry-seconds-min = 0.05
settle-retry-seconds-max = 0.5
"""
FAULTS_ALLOWED = '[faults]\nallowed = true\n[hypervisors]\nenabled = ["emulated"]\n'
"""One hypervisor: finding out what another one can do takes time in the first check."""

DOMAIN: Mapping[str, Any] = {"memory_mib": 1, "variables": {"clock-mhz": "2"}}
"""Small and slow: a dozen of them leave the processors to the managers."""


@frozen(kw_only=True)
class Ending:
    """``running``: False when its process has ended and it is bound."""

    owner: str
    running: bool


@frozen(kw_only=True)
class View:
    """What one manager says, by domain's name and by migration's id."""

    status: dict[str, Any]
    domains: dict[str, dict[str, Any]]
    migrations: dict[str, dict[str, Any]]


@define(eq=False)
class Scene:
    """``uuids``: of the domains, by name; ``answers``: what who asked for a migration was told last, by domain."""

    fleet: Fleet
    proxies: Mapping[str, Proxy]
    nursery: trio.Nursery
    uuids: dict[str, str] = field(factory=dict)
    answers: dict[str, Mapping[str, Any] | LdmdError] = field(factory=dict)
    consoles: dict[str, Consoles] = field(factory=dict)

    def __getitem__(self, host: str) -> Manager:
        return self.fleet[host]

    # ---- domains -----------------------------------------------------------------------------------------

    async def start_domains(self, count: int, host: str = "host-a", **definition: object) -> None:
        for _ in range(count):
            name = f"ldg{len(self.uuids) + 1}"
            uuid = await self.fleet.start_domain(host, name=name, **{**DOMAIN, **definition})
            self.uuids[name] = uuid
            paths = tuple(self.run_directory(h, name) / "console.log" for h in HOSTS)
            self.consoles[name] = Consoles(paths)

    def run_directory(self, host: str, name: str) -> Path:
        return self.fleet[host].folder / "run" / "domains" / self.uuids[name]

    def find_process(self, host: str, name: str) -> int | None:
        """The pid of the domain's hypervisor process on that host."""
        directory = self.run_directory(host, name)
        found = [pid for pid, cwd in find_processes(self.fleet.folder).items() if cwd == directory]
        assert len(found) <= 1, f"{len(found)} processes of {name} on {host}"
        return found[0] if found else None

    async def watch(self) -> None:
        """Open every console that comes, so that nothing that any copy ever printed is lost."""
        while True:
            for consoles in self.consoles.values():
                consoles.look()
            await trio.sleep(LOOK_SECONDS)

    # ---- migrations --------------------------------------------------------------------------------------

    async def arm(self, host: str, fault: str) -> None:
        await self.fleet[host].call("arm-fault", {"fault": fault})

    async def wait_fired(self, host: str, faults: Collection[str]) -> None:
        async def fired() -> bool:
            listed = (await self.fleet[host].call("list-faults"))["fired"]
            return all(listed.count(fault) for fault in faults)

        await wait_for(fired)

    def ask(self, name: str, source: str = "host-a") -> None:
        """Migrate it to the other host; whoever asks may not hear the answer."""
        self.nursery.start_soon(self._migrate, name, source)

    async def _migrate(self, name: str, source: str) -> None:
        arguments = {"domain": name, "peer": other(source)}
        try:
            self.answers[name] = await self.fleet[source].call("migrate-domain", arguments)
        except LdmdError as error:
            self.answers[name] = error

    async def warm_up(self) -> None:
        """The first check asks the hypervisor what it can do, and that takes longer than all the others."""
        name = next(iter(self.uuids))
        arguments = {"domain": name, "peer": "host-b", "dry_run": True}

        async def checked() -> bool:
            answer = await self.fleet["host-a"].call("migrate-domain", arguments)
            return bool(answer["outcome"] == "dry-run")

        await wait_for(checked, SETTLE_SECONDS)

    async def catch(
        self, moments: Iterable[Moment], hold_seconds: float = HOLD_SECONDS
    ) -> dict[str, Moment]:
        """Start a domain for each moment, migrate all at once; returns which domain is held at which.

        Fewer than there are moments on a machine that is too busy: who was held first is on its way again.
        """
        moments = tuple(moments)
        await self.start_domains(len(moments) - len(self.uuids))
        await self.warm_up()
        faults: dict[str, list[str]] = {host: [] for host in HOSTS}
        for moment in moments:
            faults[moment.host].append(f"{moment.point}=delay:{hold_seconds:g}")
            await self.arm(moment.host, faults[moment.host][-1])
        for name in list(self.uuids)[: len(moments)]:
            self.ask(name)
        for host in HOSTS:
            await self.wait_fired(host, faults[host])
        return await self.find_moments(moments)

    async def find_moments(self, moments: Iterable[Moment]) -> dict[str, Moment]:
        views = {host: await self.look(host) for host in HOSTS}
        states = {
            name: tuple(
                next((m["state"] for m in views[h].migrations.values() if m["uuid"] == uuid), "")
                for h in HOSTS
            )
            for name, uuid in self.uuids.items()
        }
        by_states = {moment.states: moment for moment in moments}
        return {name: by_states[s] for name, s in states.items() if s in by_states}

    async def find_granted(self) -> set[str]:
        """Domains whose source has passed the point of no return, by host-a's journal."""
        migrations = (await self.fleet["host-a"].call("list-migrations"))["migrations"]
        return {
            m["domain"]
            for m in migrations
            if m["role"] == "source" and any(r["kind"] == "GRANTED" for r in m["records"])
        }

    async def all_run_that_were_not_granted(self) -> bool:
        """Before the point of no return nobody waits for the other side to come back."""
        domains = (await self.look("host-a")).domains
        waiting = [n for n in self.uuids if n in domains and domains[n]["run_state"] != "running"]
        return set(waiting) <= await self.find_granted()

    # ---- signals -----------------------------------------------------------------------------------------

    def signal(self, host: str, number: int) -> None:
        process = self.fleet[host].process
        assert process is not None
        process.send_signal(number)

    async def kill(self, *hosts: str) -> None:
        for host in hosts:
            self.signal(host, signal.SIGKILL)
        for host in hosts:
            await self.fleet[host].wait_dead()

    async def start(self, *hosts: str) -> None:
        async with trio.open_nursery() as nursery:
            for host in hosts:
                nursery.start_soon(self.fleet[host].start)

    # ---- the promise -------------------------------------------------------------------------------------

    async def look(self, host: str) -> View:
        manager = self.fleet[host]
        domains = (await manager.call("list-domains"))["domains"]
        migrations = (await manager.call("list-migrations"))["migrations"]
        return View(
            status=await manager.call("status"),
            domains={d["name"]: d for d in domains},
            migrations={m["migration"]: m for m in migrations},
        )

    def is_suspended(self, name: str, view: View) -> bool:
        return bool(view.domains[name]["run_state"] == "suspended")

    async def wait_settled(self, timeout_seconds: float = SETTLE_SECONDS) -> dict[str, Ending]:
        """Until the promise holds of every domain, and how each ended; AssertionError says what does not hold."""
        problems = ["nothing was seen"]
        with trio.move_on_after(timeout_seconds):
            while problems:
                try:
                    views = {host: await self.look(host) for host in HOSTS}
                    problems = [*self._find_problems(views)]
                except LdmdError as error:
                    problems = [str(error)]
                await trio.sleep(LOOK_SECONDS)
        assert not problems, "\n".join(problems)
        endings = {}
        for name in self.uuids:
            owner = next(host for host in HOSTS if name in views[host].domains)
            running = views[owner].domains[name]["run_state"] == "running"
            endings[name] = Ending(owner=owner, running=running)
        return endings

    def _find_problems(self, views: Mapping[str, View]) -> Iterable[str]:
        for name, uuid in self.uuids.items():
            yield from (f"{name}: {p}" for p in self._find_problems_of(name, uuid, views))
        for host, view in views.items():
            if count := view.status["migrations"]:
                yield f"{count} migrations are open on {host}"
            held = view.status["memory_bytes"] - view.status["memory_free_bytes"]
            wanted = sum(d["memory_bytes"] for d in view.domains.values())
            if held != wanted:
                yield f"{host} holds {held} bytes of memory for domains of {wanted}"

    def _find_problems_of(self, name: str, uuid: str, views: Mapping[str, View]) -> Iterable[str]:
        owners = [host for host in HOSTS if name in views[host].domains]
        if len(owners) != 1:
            yield f"managers that have it: {owners}"
            return
        domain = views[owners[0]].domains[name]
        if (domain["state"], domain["run_state"]) not in (("active", "running"), ("bound", None)):
            yield f"it is {domain['state']}, {domain['run_state']} on {owners[0]}"
        active = [owners[0]] if domain["state"] == "active" else []
        processes = {h: pid for h in HOSTS if (pid := self.find_process(h, name)) is not None}
        if list(processes) != active or processes.get(owners[0]) != domain["pid"]:
            yield f"processes {processes}; {owners[0]} says {domain['state']}, {domain['pid']}"
        directories = [host for host in HOSTS if self.run_directory(host, name).exists()]
        if directories != active:
            yield f"run directories on {directories}"
        decisions = self._join_decisions(uuid, views)
        for migration, found in decisions.items():
            agreed = len({decision for decision, _ in found}) == 1
            if not agreed or not all(settled for _, settled in found):
                yield f"migration {migration[:8]}: {found}"
        moved = sum(found[0][0] == "target" for found in decisions.values())
        if owners[0] != HOSTS[moved % 2]:
            yield f"it has moved {moved} times and is on {owners[0]}"

    def _join_decisions(
        self, uuid: str, views: Mapping[str, View]
    ) -> dict[str, list[tuple[str, bool]]]:
        joined: dict[str, list[tuple[str, bool]]] = {}
        for view in views.values():
            for ident, m in view.migrations.items():
                if m["uuid"] == uuid:
                    joined.setdefault(ident, []).append((m["decision"], m["settled"]))
        return joined

    async def assert_promise(self, ended: Collection[str] = ()) -> dict[str, Ending]:
        """Settled, nothing lost or run twice, and the next migration of each succeeds; how it was before that.

        ``ended``: domains that may have ended (they are started afresh then).
        """
        endings = await self.wait_settled()
        for name, ending in endings.items():
            console = self.consoles[name].check()
            assert console.contiguous, f"{name}: {console.sentence}"
            if ending.running:
                await assert_oracle(self.fleet, ending.owner, self.uuids[name], name=name)
            else:
                assert name in ended, f"{name} does not run on {ending.owner}"
                await self.fleet[ending.owner].call("start-domain", {"domain": name})
        async with trio.open_nursery() as nursery:
            for name, ending in endings.items():
                nursery.start_soon(self._move_on, name, ending.owner)
        after = await self.wait_settled()
        for name, ending in endings.items():
            assert after[name] == Ending(owner=other(ending.owner), running=True)
        return endings

    async def _move_on(self, name: str, owner: str) -> None:
        arguments = {"domain": name, "peer": other(owner)}
        answer = await self.fleet[owner].call("migrate-domain", arguments)
        assert answer["outcome"] == "completed", answer


def other(host: str) -> str:
    return HOSTS[1 - HOSTS.index(host)]


def configure(fleet: Fleet, proxies: Mapping[str, Proxy], extra: str, deadlines: str) -> None:
    """Each manager reaches the other by way of that one's proxy."""
    fleet.configure(dict.fromkeys(HOSTS, extra))
    for host in HOSTS:
        path = fleet[host].folder / "ldmd.toml"
        direct = f'address = "127.0.0.1:{fleet[other(host)].port}"'
        text = path.read_text()
        assert direct in text
        assert DEADLINES in text
        text = text.replace(direct, f'address = "127.0.0.1:{proxies[other(host)].port}"')
        path.write_text(text.replace(DEADLINES, deadlines))


@asynccontextmanager
async def open_scene(
    folder: Path,
    *,
    start: bool = True,
    extra: str = FAULTS_ALLOWED,
    deadlines: str = SCENE_DEADLINES,
) -> AsyncIterator[Scene]:
    with _alone():
        async with AsyncExitStack() as stack:
            fleet = await stack.enter_async_context(make_fleet(folder, start=False))
            proxies = {
                host: await stack.enter_async_context(open_proxy(fleet[host].port))
                for host in HOSTS
            }
            configure(fleet, proxies, extra, deadlines)
            nursery = await stack.enter_async_context(trio.open_nursery())
            scene = Scene(fleet, proxies, nursery)
            try:
                nursery.start_soon(scene.watch)
                if start:
                    await scene.start(*HOSTS)
                yield scene
            finally:
                for consoles in scene.consoles.values():
                    consoles.close()
                nursery.cancel_scope.cancel()


@contextmanager
def _alone() -> Iterator[None]:
    """What failed, without the groups of the nurseries around it, if it is one thing."""
    try:
        yield
    except BaseExceptionGroup as group:
        failed: BaseException = group
        while isinstance(failed, BaseExceptionGroup) and len(failed.exceptions) == 1:
            (failed,) = failed.exceptions
        raise failed from None
