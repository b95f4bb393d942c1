"""Real managers for tests: daemon processes on loopback with their own certificates, state and run folders."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from certs.authority import Authority, create_authority
from certs.issue import issue_host
from certs.store import write_identity
from ldmd.client import connect
from ldmd.errors import DaemonUnreachable, LdmdError
from ldmd.hypervisor.oracle import check_console

START_SECONDS = 20.0

DEADLINES = """
[migration]
connect-seconds = 5
check-seconds = 10
prepare-seconds = 30
transfer-stall-seconds = 5
handoff-seconds = 3
hold-seconds = 3
probe-seconds = 2
settle-retry-seconds-min = 0.05
settle-retry-seconds-max = 0.5
outgoing-max = 16
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@define(eq=False)
class Manager:
    name: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()
    """Words before the manager's command, like those of env(1) and nsenter(1)."""

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "control.sock"

    @property
    def log_path(self) -> Path:
        return self.folder / "ldmd.log"

    def configure(self, peers: Mapping[str, int], extra: str = "") -> None:
        text = f"""
[host]
name = "{self.name}"
state-directory = "state"
run-directory = "run"
[listen]
address = "127.0.0.1"
port = {self.port}
[identity]
certificate = "tls/host.crt"
key = "tls/host.key"
authorities = ["tls/ca.crt"]
[resources]
memory = "4GiB"
vcpus = 64
{DEADLINES}
"""
        for name, port in peers.items():
            text += f'[peers.{name}]\naddress = "127.0.0.1:{port}"\n'
        (self.folder / "ldmd.toml").write_text(text + extra)

    async def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.prefix, sys.executable, "-m", "ldmd.daemon"),
                    *("--config", str(self.folder / "ldmd.toml")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with trio.fail_after(START_SECONDS):
            while True:
                try:
                    await self.call("status")
                    return
                except DaemonUnreachable:
                    if self.process.poll() is not None:
                        raise AssertionError(f"{self.name} ended:\n{self.log()}") from None
                    await trio.sleep(0.02)

    async def wait_dead(self, timeout_seconds: float = 20.0) -> int:
        assert self.process is not None
        with trio.fail_after(timeout_seconds):
            while (status := self.process.poll()) is None:
                await trio.sleep(0.01)
        return status

    async def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return await self.wait_dead()

    async def call(
        self, verb: str, arguments: Mapping[str, object] | None = None, **options: Any
    ) -> dict[str, Any]:
        async with connect(self.socket) as client:
            return await client.call(verb, arguments or {}, **options)

    async def domains(self) -> dict[str, dict[str, Any]]:
        return {d["name"]: d for d in (await self.call("list-domains"))["domains"]}

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


@define(eq=False)
class Fleet:
    """Managers that know each other, and what they have ever printed on the consoles of their domains."""

    folder: Path
    authority: Authority
    managers: dict[str, Manager] = field(factory=dict)

    def __getitem__(self, name: str) -> Manager:
        return self.managers[name]

    def configure(self, extra: Mapping[str, str] | None = None) -> None:
        ports = {m.name: m.port for m in self.managers.values()}
        for manager in self.managers.values():
            peers = {n: p for n, p in ports.items() if n != manager.name}
            manager.configure(peers, (extra or {}).get(manager.name, ""))

    async def start_domain(
        self, manager: str, *, name: str = "ldg1", memory_mib: int = 4, **more: object
    ) -> str:
        """An oracle domain, running; returns its uuid."""
        definition: dict[str, object] = {
            "name": name,
            "uuid": str(uuid.uuid4()),
            "hypervisor": "emulated",
            "machine": "riscv64-virt",
            "firmware": "oracle",
            "memory-bytes": memory_mib * 1024 * 1024,
        } | more
        await self[manager].call("add-domain", {"definition": definition})
        for verb in ("bind-domain", "start-domain"):
            await self[manager].call(verb, {"domain": name})
        return str(definition["uuid"])

    async def copies(self, name: str = "ldg1") -> dict[str, str]:
        """Manager -> run state of the domain's process there, for every copy that has one."""
        found = {}
        for manager in self.managers.values():
            domain = (await manager.domains()).get(name)
            if domain is not None and domain["state"] == "active":
                found[manager.name] = domain["run_state"]
        return found

    async def copies_at(self, manager: str, name: str = "ldg1") -> str | None:
        """The copy's run state there; for when the other manager is not running."""
        domain = (await self[manager].domains()).get(name)
        return None if domain is None else domain["run_state"]

    def console(self, manager: str, uuid: str) -> str:
        path = self[manager].folder / "run" / "domains" / uuid / "console.log"
        return path.read_bytes().decode(errors="replace") if path.exists() else ""


async def wait_for(condition: Any, timeout_seconds: float = 40.0) -> Any:
    """Until ``await condition()`` is true; returns what it gave."""
    with trio.fail_after(timeout_seconds):
        while True:
            try:
                if found := await condition():
                    return found
            except (DaemonUnreachable, LdmdError):
                pass
            await trio.sleep(0.02)


@contextmanager
def switched_off(manager: Manager) -> Iterator[None]:
    """As the other managers see it: nothing answers at its address. It has ended before.

    A listener whose queue is full drops what comes, as a host that is off does (listen(2)).
    """
    with socket.socket() as listener, socket.socket() as filler:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", manager.port))
        listener.listen(0)
        filler.connect(("127.0.0.1", manager.port))
        yield


@asynccontextmanager
async def make_fleet(
    folder: Path, *names: str, extra: Mapping[str, str] | None = None, start: bool = True
) -> AsyncIterator[Fleet]:
    """Managers that trust one authority; at the end every process that they started is gone."""
    fleet = Fleet(folder=folder, authority=create_authority("test authority"))
    for name in names or ("host-a", "host-b"):
        home = folder / name
        home.mkdir(parents=True)
        write_identity(home / "tls", issue_host(fleet.authority, name))
        fleet.managers[name] = Manager(name=name, folder=home, port=free_port())
    fleet.configure(extra)
    try:
        if start:
            async with trio.open_nursery() as nursery:
                for manager in fleet.managers.values():
                    nursery.start_soon(manager.start)
        yield fleet
    except BaseException:
        for manager in fleet.managers.values():  # pytest shows it with the failure
            print(f"---- {manager.name}\n{manager.log() if manager.log_path.exists() else ''}")
        raise
    finally:
        with trio.CancelScope(shield=True):
            for manager in fleet.managers.values():
                if manager.process is not None and manager.process.poll() is None:
                    await manager.stop(signal.SIGKILL)
            for record in folder.glob("*/run/domains/*/process.json"):
                end_process_of(record)


def end_process_of(record: Path) -> None:
    import json

    pid = json.loads(record.read_text())["pid"]
    try:
        cwd = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return
    if cwd == str(record.parent):  # ours, not a later process with that number
        os.kill(pid, signal.SIGKILL)


__all__ = ["Fleet", "Manager", "check_console", "make_fleet", "wait_for"]
