"""The ``emulated`` hypervisor: a small riscv64 machine that needs pip alone, and no root.

Every domain is a process running ``ldmd/hypervisor/emulated_machine.py`` (which describes the
machine). This module never imports the emulator.

A request has a connection of its own on the domain's ``control.sock``, and the domain does not
carry out the request of somebody who has hung up: after a timeout or a cancellation nothing of the
old request happens later. A process that ends while it is to change something leaves
OutcomeUnknown.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import trio

from ldmd.definition import DomainDefinition
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import process, sockets
from ldmd.hypervisor.driver import (
    Attachments,
    Capabilities,
    CpuModel,
    DomainProcess,
    Hypervisor,
    RamRegion,
    RunStatus,
)
from ldmd.hypervisor.oracle import OracleLayout

MACHINE: Final = "riscv64-virt"
FIRMWARES: Final = frozenset({"default", "oracle", "echo"})
REGION: Final = "ram"
CPU: Final = CpuModel(model="unicorn-riscv64", features=frozenset("imafdc"))
"""The one that there is, whatever the host: ``generic`` and ``native`` both mean it."""
CPU_ARCHES: Final = ("generic", "native")
MODULE: Final = "ldmd.hypervisor.emulated_machine"
CONTROL_NAME: Final = "control.sock"
CONSOLE_NAME: Final = "console.log"

VERSION: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
CLOCK_VARIABLE: Final = "clock-mhz"
CLOCK_MHZ_DEFAULT: Final = 10
"""A sixth of one CPU of a small host, so that many domains fit on it."""
CLOCK_MHZ_MAX: Final = 1000

STATE_BYTES_MAX: Final = 16 * 1024
TYPED_BYTES_MAX: Final = 1024
"""Of one request; the domain's buffer is smaller."""
ANSWER_BYTES_MAX: Final = 64 * 1024

ORACLE_LAYOUT: Final = OracleLayout(region=REGION, ranges=((4096, None),), word_base=0x8000_0000)


class EmulatedDomain(DomainProcess):
    """One domain. Made by ``EmulatedHypervisor`` alone."""

    def __init__(
        self,
        definition: DomainDefinition,
        run_directory: Path,
        identity: process.ProcessIdentity,
        hypervisor: EmulatedHypervisor,
    ) -> None:
        self.uuid = definition.uuid
        self.pid = identity.pid
        self.regions = (RamRegion(name=REGION, size_bytes=definition.memory_bytes),)
        self._run_directory = run_directory
        self._identity = identity
        self._hypervisor = hypervisor
        self._ram_descriptor = -1

    def open_ram(self) -> list[int]:
        try:
            descriptor = os.open(f"/proc/{self.pid}/fd/{self._ram_descriptor}", os.O_RDWR)
        except OSError as error:
            raise self._ended() from error
        # Looked at after it was opened: then the file is of this process and no later one.
        if process.gone(self._identity):
            os.close(descriptor)
            raise self._ended()
        return [descriptor]

    async def status(self) -> RunStatus:
        try:
            answer = await self._request("status")
        except HypervisorError:
            return RunStatus.GONE
        return RunStatus(answer["status"])

    def has_ended(self) -> bool:
        return process.gone(self._identity)

    async def suspend(self) -> None:
        await self._command("suspend")

    async def resume(self) -> None:
        await self._command("resume")

    async def destroy(self) -> None:
        await process.kill(self._identity, self._hypervisor.kill_seconds)

    async def retrieve_device_state(self) -> bytes:
        answer = await self._command("retrieve")
        try:
            return base64.b64decode(answer["state"], validate=True)
        except (KeyError, ValueError, TypeError) as error:
            raise HypervisorError("the domain's process gave no device state") from error

    async def install_device_state(self, state: bytes) -> None:
        # One that is too long goes as none at all: the domain must know that its state was refused.
        given = state if len(state) <= STATE_BYTES_MAX else b""
        try:
            await self._command("install", state=base64.b64encode(given).decode())
        except HypervisorError as error:
            if given is state:
                raise
            raise HypervisorError(
                f"the device state has {len(state)} bytes; {STATE_BYTES_MAX} are allowed"
            ) from error

    @property
    def console_path(self) -> Path:
        return self._run_directory / CONSOLE_NAME

    async def write_console(self, data: bytes) -> int:
        answer = await self._command("type", data=base64.b64encode(data[:TYPED_BYTES_MAX]).decode())
        taken = answer.get("taken")
        if type(taken) is not int or not 0 <= taken <= len(data):
            raise OutcomeUnknown("the domain's process gave an answer that makes no sense")
        return taken

    async def aclose(self) -> None:
        """Nothing is kept open between requests."""
        await trio.lowlevel.checkpoint()

    async def _meet(self, timeout_seconds: float) -> None:
        """The first request: waits until the process serves, and holds it against the definition.

        Raises HypervisorError when it ended instead, OutcomeUnknown when it does not answer.
        """
        answer = await self._request("status", timeout_seconds=timeout_seconds)
        region = self.regions[0]
        if (answer["uuid"], answer["memory_bytes"]) != (self.uuid, region.size_bytes):
            raise OutcomeUnknown(
                f"process {self.pid} in {self._run_directory} runs domain {answer['uuid']} with "
                f"{answer['memory_bytes']} bytes, not {self.uuid} with {region.size_bytes}",
                remedy="find out which definition is right, and destroy the domain by hand",
            )
        self._ram_descriptor = int(answer["ram"])

    async def _command(self, verb: str, **fields: str) -> dict[str, Any]:
        answer = await self._request(verb, fields)
        if "refused" in answer:
            raise HypervisorError(str(answer["refused"]))
        return answer

    async def _request(
        self,
        verb: str,
        fields: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Raises HypervisorError when the process ended before it was asked, OutcomeUnknown when it
        did not answer or ended while it was to change something.
        """
        seconds = self._hypervisor.answer_seconds if timeout_seconds is None else timeout_seconds
        line = json.dumps({"verb": verb, **(fields or {})}).encode() + b"\n"
        sent = False
        with trio.move_on_after(seconds):
            stream = await self._connect()
            async with stream:
                sent = True
                try:
                    await stream.send_all(line)
                    return _parse_answer(await _receive_line(stream))
                except trio.BrokenResourceError:
                    ended = await process.wait_gone(self._identity, math.inf)
                    assert ended
                    if verb in ("status", "retrieve", "type"):  # nothing that outlives the process
                        raise self._ended() from None
                    raise OutcomeUnknown(
                        f"process {self.pid} ended while it was to {verb}"
                    ) from None
        if not sent and process.gone(self._identity):
            raise self._ended()
        raise OutcomeUnknown(
            f"process {self.pid} of domain {self.uuid} did not answer '{verb}' in {seconds:g} s",
            remedy="look whether the process is stopped (SIGSTOP) or the host is overloaded",
        )

    async def _connect(self) -> trio.SocketStream:
        """Waits while the process lives and does not serve yet. Raises HypervisorError."""
        while True:
            try:
                return await sockets.connect(self._run_directory, CONTROL_NAME)
            except OSError as error:
                if process.gone(self._identity):
                    raise self._ended() from error
                await trio.sleep(sockets.RETRY_SECONDS)

    def _ended(self) -> HypervisorError:
        words = process.log_tail(self._run_directory)
        return HypervisorError(
            f"process {self.pid} of domain {self.uuid} has ended" + (f": {words}" if words else "")
        )


class EmulatedHypervisor(Hypervisor):
    """Deadlines in seconds: for an answer, for the start of a domain, for its end after SIGKILL."""

    kind: ClassVar[str] = "emulated"

    def __init__(
        self, *, answer_seconds: float = 5.0, start_seconds: float = 15.0, kill_seconds: float = 5.0
    ) -> None:
        self.answer_seconds = answer_seconds
        self.start_seconds = start_seconds
        self.kill_seconds = kill_seconds
        self._version: tuple[int, ...] | None = None

    async def capabilities(self) -> Capabilities:
        if self._version is None:
            self._version = await self._ask_version()
        return Capabilities(
            kind=self.kind,
            version=self._version,
            machines=frozenset({MACHINE}),
            firmwares=FIRMWARES,
            architecture="riscv64",
            accelerator="unicorn",
            details={"clock-mhz-max": str(CLOCK_MHZ_MAX), "vcpus-max": "1"},
        )

    async def describe_cpu(self, definition: DomainDefinition) -> CpuModel:
        await trio.lowlevel.checkpoint()
        if definition.cpu_arch not in CPU_ARCHES:
            raise HypervisorError(
                f"the emulated machine has no CPU {definition.cpu_arch}",
                remedy="set cpu-arch to generic",
            )
        return CPU

    async def create(
        self, definition: DomainDefinition, run_directory: Path, attachments: Attachments
    ) -> DomainProcess:
        return await self._create(definition, run_directory, attachments, receiving=False)

    async def create_receiving(
        self, definition: DomainDefinition, run_directory: Path, attachments: Attachments
    ) -> DomainProcess:
        return await self._create(definition, run_directory, attachments, receiving=True)

    async def adopt(
        self, definition: DomainDefinition, run_directory: Path
    ) -> DomainProcess | None:
        identity = process.find(run_directory)
        if identity is None:
            return None
        domain = EmulatedDomain(definition, run_directory, identity, self)
        try:
            await domain._meet(self.answer_seconds)
        except HypervisorError:
            return None
        return domain

    async def _create(
        self,
        definition: DomainDefinition,
        run_directory: Path,
        attachments: Attachments,
        *,
        receiving: bool,
    ) -> EmulatedDomain:
        clock_mhz = _check_definition(definition)
        argv = [sys.executable, "-P", "-m", MODULE, "--uuid", definition.uuid]
        argv += ["--memory-bytes", str(definition.memory_bytes), "--clock-mhz", str(clock_mhz)]
        argv += ["--firmware", definition.firmware, *(["--receiving"] if receiving else [])]
        identity = await process.spawn(argv, run_directory)
        domain = EmulatedDomain(definition, run_directory, identity, self)
        try:
            await domain._meet(self.start_seconds)
        except BaseException as error:
            with trio.CancelScope(shield=True):  # bounded by kill_seconds
                await domain.destroy()
            if isinstance(error, OutcomeUnknown):
                raise HypervisorError(f"the domain did not start: {error}") from error
            raise
        return domain

    async def require_possible(self, definition: DomainDefinition) -> None:
        await trio.lowlevel.checkpoint()
        _check_definition(definition)

    async def _ask_version(self) -> tuple[int, ...]:
        """Starts the machine's program: the package may be there and its library not load."""
        remedy = "install unicorn: pip install 'unicorn>=2.1.2'"
        with trio.move_on_after(self.start_seconds):
            done = await trio.run_process(
                [sys.executable, "-P", "-m", MODULE, "--version"],
                capture_stdout=True,
                capture_stderr=True,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            words = done.stdout.decode(errors="replace").strip()
            if done.returncode == 0 and (match := VERSION.match(words)):
                return tuple(int(part) for part in match[0].split("."))
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no words"])[-1]
            raise HypervisorError(f"the emulator does not start: {last}", remedy=remedy)
        raise HypervisorError(
            f"the emulator did not start in {self.start_seconds:g} s", remedy=remedy
        )


def _check_definition(definition: DomainDefinition) -> int:
    """What this machine cannot be made of; gives the clock in MHz. Raises HypervisorError."""
    devices = [d.name for d in definition.vdisks] + [n.name for n in definition.vnets]
    faults = (
        (
            definition.machine != MACHINE,
            f"has no machine type {definition.machine}, only {MACHINE}",
        ),
        (definition.firmware not in FIRMWARES, f"has no firmware {definition.firmware}"),
        (definition.vcpus != 1, f"has one vcpu, not {definition.vcpus}"),
        (definition.cpu_arch not in CPU_ARCHES, f"has no CPU {definition.cpu_arch}"),
        (
            definition.huge_pages != "none",
            f"has no huge pages, and the domain wants those of {definition.huge_pages}",
        ),
        (bool(devices), f"has no vdisks and no vnets; the domain has {', '.join(devices)}"),
    )
    for wrong, sentence in faults:
        if wrong:
            raise HypervisorError(
                f"the emulated machine {sentence}",
                remedy="change the definition, or define the domain for qemu",
            )
    text = dict(definition.variables).get(CLOCK_VARIABLE, str(CLOCK_MHZ_DEFAULT))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= CLOCK_MHZ_MAX):
        raise HypervisorError(
            f"the emulated machine's {CLOCK_VARIABLE} is a number from 1 to {CLOCK_MHZ_MAX}, "
            f"not {text!r}"
        )
    return int(text)


async def _receive_line(stream: trio.SocketStream) -> bytes:
    """Raises BrokenResourceError when the stream ends before the line does."""
    received = bytearray()
    while b"\n" not in received:
        more = await stream.receive_some(ANSWER_BYTES_MAX)
        if not more or len(received) + len(more) > ANSWER_BYTES_MAX:
            raise trio.BrokenResourceError
        received += more
    return bytes(received.partition(b"\n")[0])


def _parse_answer(line: bytes) -> dict[str, Any]:
    """The process is confined, not trusted: what it says must have the right form."""
    try:
        answer = json.loads(line)
        RunStatus(answer["status"])
        types = {"uuid": str, "memory_bytes": int, "ram": int}
        if all(type(answer[key]) is kind for key, kind in types.items()):
            return dict(answer)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise OutcomeUnknown("the domain's process gave an answer that makes no sense")
