"""A fleet of two managers on this machine: a folder, an authority, two certificates, two processes."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final

import trio
from attrs import define, frozen

from certs.authority import create_authority
from certs.issue import issue_host
from certs.store import write_authority, write_identity
from ldmd.client import ControlClient, connect
from ldmd.config import Config, load
from ldmd.errors import DaemonUnreachable, LdmdError

SOURCE: Final = "host-a"
TARGET: Final = "host-b"
HOSTS: Final = (SOURCE, TARGET)
READY_SECONDS: Final = 30.0
"""For a cold start of two interpreters on a small, busy machine; seen: under 1 s."""
READY_POLL_SECONDS: Final = 0.05
STOP_SECONDS: Final = 20.0
LOG_LINES_SHOWN: Final = 15


class DemoFailed(LdmdError):
    """Something of the demo itself did not work; the sentence has the end of a manager's log."""

    code = "demo-failed"
    exit_status = 1


@frozen(kw_only=True)
class DemoHost:
    name: str
    folder: Path
    config: Config

    @property
    def log(self) -> Path:
        return self.folder / "ldmd.log"

    def read_log_end(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(lines[-LOG_LINES_SHOWN:]) or "(the log is empty)"


@define(eq=False)
class Fleet:
    """``hosts`` by name; ``managers`` are the processes that live."""

    hosts: Mapping[str, DemoHost]
    managers: dict[str, trio.Process]

    @contextlib.asynccontextmanager
    async def connect(self, name: str) -> AsyncIterator[ControlClient]:
        async with connect(self.hosts[name].config.host.control_socket) as client:
            yield client

    async def start(self, name: str) -> None:
        """Returns when the manager answers. Raises DemoFailed."""
        await self.spawn(name)
        await self.wait_ready(name)

    async def spawn(self, name: str) -> None:
        """Begin to start the manager; the one before it must have ended."""
        host = self.hosts[name]
        with host.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the demo, which ends the managers in order.
            self.managers[name] = await trio.lowlevel.open_process(
                [sys.executable, "-m", "ldmd.daemon", "--config", str(host.config.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def wait_ready(self, name: str) -> None:
        """Until the manager answers. Raises DemoFailed when it ends or takes too long."""
        with trio.move_on_after(READY_SECONDS):
            while self.managers[name].poll() is None:
                with contextlib.suppress(DaemonUnreachable):
                    async with self.connect(name) as client:
                        await client.status()
                        return
                await trio.sleep(READY_POLL_SECONDS)
        ended = self.managers[name].poll()
        how = "does not answer" if ended is None else f"ended with status {ended}"
        log = self.hosts[name].read_log_end()
        raise DemoFailed(f"the manager of {name} {how}; its log ends with\n{log}")

    async def stop_all(self) -> None:
        """SIGTERM, and SIGKILL for one that does not end. The domains go on."""
        for manager in self.managers.values():
            if manager.poll() is None:
                manager.terminate()
        for manager in self.managers.values():
            with trio.move_on_after(STOP_SECONDS) as patience:
                await manager.wait()
            if patience.cancelled_caught:
                manager.kill()
                await manager.wait()
        self.managers.clear()


@contextlib.contextmanager
def make_fleet(memory_bytes: int) -> Iterator[Fleet]:
    """Everything but the running managers, in a folder that goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ldmd-demo-"))
    try:
        ports = dict(zip(HOSTS, find_free_ports(len(HOSTS)), strict=True))
        texts = {name: write_config(name, ports, memory_bytes) for name in HOSTS}
        yield write_fleet(folder, texts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_fleet(folder: Path, configs: Mapping[str, str]) -> Fleet:
    """An authority, and of each host its identity and its configuration; nothing runs yet."""
    authority = create_authority("ldmd demo authority", days=2)
    write_authority(folder / "authority", authority)
    hosts = {}
    for name, text in configs.items():
        write_identity(folder / name / "tls", issue_host(authority, name, days=2))
        path = folder / name / "ldmd.toml"
        path.write_text(text)
        hosts[name] = DemoHost(name=name, folder=folder / name, config=load(path))
    return Fleet(hosts, {})


def find_free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def write_config(
    name: str,
    ports: Mapping[str, int],
    memory_bytes: int,
    *,
    reached_at: Mapping[str, int] | None = None,
    more: str = "",
) -> str:
    """One manager's configuration, in TOML. ``reached_at``: the ports that peers are called at, where these are not those
    they listen on; ``more``: further tables."""
    peer = next(host for host in ports if host != name)
    peer_port = (reached_at or ports)[peer]
    room = 2 ** math.ceil(math.log2(memory_bytes)) * 2
    return f"""\
[host]
name = "{name}"
state-directory = "state"
run-directory = "run"

[listen]
address = "127.0.0.1"
port = {ports[name]}

[identity]
certificate = "tls/host.crt"
key = "tls/host.key"
authorities = ["tls/ca.crt"]

[peers.{peer}]
address = "127.0.0.1:{peer_port}"

[resources]
memory = {room}
vcpus = {max(2, len(os.sched_getaffinity(0)))}
{more}"""
