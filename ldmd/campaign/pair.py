"""Two managers of the campaign's own on this machine, the wires between them, and the one domain that goes to and fro."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import trio
from attrs import define, field, frozen

from ldmd.campaign.consoles import Console, Consoles
from ldmd.campaign.logs import LogReader
from ldmd.campaign.machine import end_process, end_processes, find_processes
from ldmd.campaign.wire import Wire, open_wire
from ldmd.client import Document, connect
from ldmd.definition import DomainDefinition, to_document
from ldmd.demo.fleet import HOSTS, DemoFailed, Fleet, write_config, write_fleet
from ldmd.demo.journey import KINDS
from ldmd.errors import DaemonUnreachable
from ldmd.hypervisor.oracle import OracleLayout
from protocol import limits

DOMAIN: Final = "ldg1"
CALL_SECONDS: Final = 20.0
"""For every request but a migration: a manager that hangs is a failed run."""
STOP_SECONDS: Final = 20.0
"""For SIGTERM; the manager itself gives open migrations 10 s."""
RESTARTS_MAX: Final = 12
"""In one run. More is a manager that dies of itself."""


@frozen(kw_only=True)
class Kind:
    """A hypervisor of the campaign, its domain, and how long things may take there.

    ``settle_seconds``: the longest that a pair may take until the promise holds again; it covers the time-out of a link that
    stands still (``limits.KEEPALIVE_DEAD_SECONDS``) and a time-out of every operation after it. ``deadlines``: seconds, by
    the names of [migration].
    """

    hypervisor: str
    machine: str
    memory_bytes: int
    layout: OracleLayout
    settle_seconds: float
    deadlines: Mapping[str, float]


def _kind(hypervisor: str, memory_bytes: int, settle_seconds: float, **deadlines: float) -> Kind:
    demo = KINDS[hypervisor]
    return Kind(
        hypervisor=hypervisor,
        machine=demo.machine,
        memory_bytes=memory_bytes,
        layout=demo.layout,
        settle_seconds=settle_seconds,
        deadlines={key.replace("_", "-"): value for key, value in deadlines.items()},
    )


CAMPAIGN_KINDS: Final[Mapping[str, Kind]] = {
    "emulated": _kind(
        "emulated",
        4 * limits.MIB,
        25.0,
        connect_seconds=1.0,
        check_seconds=2.0,
        prepare_seconds=3.0,
        transfer_stall_seconds=1.0,
        handoff_seconds=1.0,
        hold_seconds=1.0,
        operation_seconds=2.0,
        probe_seconds=0.05,
        settle_retry_seconds_min=0.02,
        settle_retry_seconds_max=0.2,
    ),
    "qemu": _kind(
        "qemu",
        16 * limits.MIB,
        90.0,
        connect_seconds=2.0,
        check_seconds=10.0,
        prepare_seconds=10.0,
        transfer_stall_seconds=4.0,
        handoff_seconds=3.0,
        hold_seconds=4.0,
        operation_seconds=6.0,
        probe_seconds=0.05,
        settle_retry_seconds_min=0.02,
        settle_retry_seconds_max=0.2,
    ),
}


def write_manager(
    name: str, kind: Kind, wires: Mapping[str, Wire], armed: tuple[str, ...] = ()
) -> str:
    """The configuration of one manager, in TOML."""
    deadlines = "\n".join(f"{key} = {seconds}" for key, seconds in kind.deadlines.items())
    # a plan may have drawn one twice, and a configuration names each once
    faults = ", ".join(f'"{fault}"' for fault in dict.fromkeys(armed))
    return write_config(
        name,
        dict.fromkeys(HOSTS, 0),  # the kernel chooses: no port is taken while a manager is down
        kind.memory_bytes,
        reached_at={peer: wire.port for peer, wire in wires.items()},
        more=f"[migration]\n{deadlines}\n[faults]\nallowed = true\narmed = [{faults}]\n",
    )


@define(eq=False, kw_only=True)
class Pair:
    """Made by ``open_pair`` alone. ``location``: the host that the domain is on between two runs. ``deaths``: how often a
    manager has ended, since ``begin``, and with which status."""

    kind: Kind
    folder: Path
    fleet: Fleet
    wires: Mapping[str, Wire]
    definition: DomainDefinition
    location: str = HOSTS[0]
    logs: Mapping[str, LogReader] = field(init=False)
    consoles: Consoles = field(init=False)
    ready: set[str] = field(factory=set, init=False)
    """Hosts whose manager was started and can be reached by the other one."""
    deaths: dict[str, list[int]] = field(init=False)
    kills: dict[str, int] = field(init=False)
    """SIGKILLs that the campaign sent, since ``begin``."""
    recovery_faults: dict[str, tuple[str, ...]] = field(init=False)
    """What is armed in a manager when it starts next, by host; used up by that."""

    def __attrs_post_init__(self) -> None:
        self.logs = {name: LogReader(self.fleet.hosts[name].log) for name in HOSTS}
        self.consoles = Consoles(tuple(self.directory(name) / "console.log" for name in HOSTS))
        self.forget()

    def forget(self) -> None:
        """A new run begins: nothing has happened yet."""
        self.deaths = {name: [] for name in HOSTS}
        self.kills = dict.fromkeys(HOSTS, 0)
        self.recovery_faults = {}
        for log in self.logs.values():
            log.begin()

    def other(self, name: str) -> str:
        return HOSTS[1 - HOSTS.index(name)]

    def directory(self, name: str) -> Path:
        """The domain's run directory on that host, there or not (``ldmd/domains.py``)."""
        return self.domains_directory(name) / self.definition.uuid

    def domains_directory(self, name: str) -> Path:
        return self.fleet.hosts[name].config.host.run_directory / "domains"

    @property
    def all_ready(self) -> bool:
        """Both managers live, and nobody is about to start one."""
        alive = all(manager.poll() is None for manager in self.fleet.managers.values())
        return alive and len(self.ready) == len(HOSTS)

    # ---- managers --------------------------------------------------------------------------------

    async def call(
        self, name: str, verb: str, arguments: Mapping[str, object] | None = None
    ) -> Document:
        """Raises the LdmdError of the answer, DaemonUnreachable when none comes."""
        async with connect(self.fleet.hosts[name].config.host.control_socket) as client:
            return await client.call(verb, arguments, timeout_seconds=CALL_SECONDS)

    async def start(self, name: str) -> None:
        """Returns when the manager answers. Raises DemoFailed when it ends before that, or takes too long."""
        host = self.fleet.hosts[name]
        armed = self.recovery_faults.pop(name, ())
        host.config.path.write_text(write_manager(name, self.kind, self.wires, armed))
        self.ready.discard(name)
        self.wires[name].target_port = None
        await self.fleet.spawn(name)
        await self.fleet.wait_ready(name)
        self.wires[name].target_port = (await self.call(name, "status"))["port"]
        self.ready.add(name)

    async def keep(self, name: str) -> None:
        """Start the manager again whenever it has died, until cancelled. Raises DemoFailed when that does no good."""
        while True:
            status = await self.fleet.managers[name].wait()
            self.ready.discard(name)
            self.deaths[name].append(status)
            if len(self.deaths[name]) > RESTARTS_MAX:
                raise DemoFailed(f"the manager of {name} has died {RESTARTS_MAX} times in one run")
            try:
                await self.start(name)
            except (DemoFailed, DaemonUnreachable):
                if self.fleet.managers[name].poll() is None:
                    raise  # it lives and does not answer

    def kill(self, name: str) -> None:
        """SIGKILL, also to one that is being started."""
        manager = self.fleet.managers[name]
        if manager.poll() is None:
            self.kills[name] += 1
            self.ready.discard(name)  # at once: a moment passes until it is seen to be dead
            manager.kill()

    async def arm(self, name: str, fault: str) -> None:
        await self.call(name, "arm-fault", {"fault": fault})

    # ---- the domain ------------------------------------------------------------------------------

    async def start_domain(self) -> None:
        """Where it is bound. Raises LdmdError."""
        await self.call(self.location, "start-domain", {"domain": DOMAIN})

    async def kill_domain(self, name: str) -> bool:
        """SIGKILL to the copy there; False when there is none."""
        directory = self.directory(name)
        found = find_processes(self.folder)
        ended = [await end_process(pid, at) for pid, at in found.items() if at == directory]
        return any(ended)

    def find_console(self) -> Console | None:
        return self.consoles.find(self.directory(self.location) / "console.log")

    # ---- the end ---------------------------------------------------------------------------------

    async def stop(self) -> dict[str, int | None]:
        """SIGTERM to both managers; their exit statuses, None for one that does not end."""
        for manager in self.fleet.managers.values():
            if manager.poll() is None:
                manager.terminate()
        with trio.move_on_after(STOP_SECONDS):
            for manager in self.fleet.managers.values():
                await manager.wait()
        return {name: manager.poll() for name, manager in self.fleet.managers.items()}

    async def put_away(self) -> None:
        """End every process; bounded by the kernel alone."""
        for manager in self.fleet.managers.values():
            if manager.poll() is None:
                manager.kill()
                await manager.wait()
        self.consoles.close()
        await end_processes(self.folder)


@contextlib.asynccontextmanager
async def open_pair(folder: Path, kind: Kind) -> AsyncIterator[Pair]:
    """Two managers that run, and the domain running on the first; at the end every process is gone, and the folder is left.

    Raises LdmdError when that much does not work.
    """
    await trio.Path(folder).mkdir(parents=True)
    async with trio.open_nursery() as nursery:
        wires = {name: await open_wire() for name in HOSTS}
        for wire in wires.values():
            nursery.start_soon(wire.serve)
        definition = DomainDefinition(
            name=DOMAIN,
            uuid=str(uuid.uuid4()),
            hypervisor=kind.hypervisor,
            machine=kind.machine,
            firmware="oracle",
            memory_bytes=kind.memory_bytes,
        )
        texts = {name: write_manager(name, kind, wires) for name in HOSTS}
        fleet = write_fleet(folder, texts)
        pair = Pair(kind=kind, folder=folder, fleet=fleet, wires=wires, definition=definition)
        try:
            for name in HOSTS:
                await pair.start(name)
            for verb, arguments in (
                ("add-domain", {"definition": to_document(definition)}),
                ("bind-domain", {"domain": DOMAIN}),
                ("start-domain", {"domain": DOMAIN}),
            ):
                await pair.call(pair.location, verb, arguments)
            pair.forget()
            yield pair
        finally:
            with trio.CancelScope(shield=True):
                await pair.put_away()
            nursery.cancel_scope.cancel()
