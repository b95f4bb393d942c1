"""One domain in a QEMU process: what ``driver.DomainProcess`` asks for, in QMP.

*RAM* is a memfd of the manager's that QEMU inherited; its number in the process is on record (``qemu.json``), so that
any later manager opens the same memory through ``/proc/PID/fd``. It is sealed: no side can make it shorter under the
other.

*The device stream* is QEMU's migration stream with the capability ``x-ignore-shared``, which leaves shared RAM out.
QEMU gives it once: a domain whose state was retrieved is in ``postmigrate``, where another ``migrate`` is refused until
it ran. As nothing changes before it runs, the stream is kept (in the run directory too, for the next manager) and given
again. Kept bytes are taken for the state only in ``postmigrate``, and are removed before QEMU is asked for new ones, so
they can never be older than the state.

*The peer's bytes.* A stream can bring QEMU into any run state, and one that is broken ends the process. So what counts
after installing is what QEMU says then, and a domain that runs although nobody resumed it is ended on the spot.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio
from attrs import asdict, define, field, frozen, validators

from ldmd.definition import VirtualDisk
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import process, qemu_disks, qemu_stream
from ldmd.hypervisor.driver import DisksReport, DomainProcess, RamRegion, RunStatus
from ldmd.hypervisor.process import ProcessIdentity
from ldmd.hypervisor.qemu_command import QMP_NAME
from ldmd.hypervisor.qemu_console import CONSOLE_NAME, ConsoleInput
from ldmd.hypervisor.qmp import Qmp, open_qmp
from protocol import limits

RECORD_NAME: Final = "qemu.json"
RECORD_BYTES_MAX: Final = 4096
DEVICE_STATE_NAME: Final = "device-state"

END_SECONDS: Final = 10.0
"""For a process to end by itself or of SIGKILL; terabytes of RAM are given back slowly."""
RETRY_SECONDS: Final = 0.005

RAM_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

RUN_STATUSES: Final = {
    "running": RunStatus.RUNNING,
    # ACPI S3: the domain sleeps and wakes up by itself. It is switched off on the command line; if it comes
    # nevertheless, it must not be taken for stopped.
    "suspended": RunStatus.RUNNING,
    # Before the first instruction, stopped by us, stopped and retrieved.
    "prelaunch": RunStatus.SUSPENDED,
    "paused": RunStatus.SUSPENDED,
    "postmigrate": RunStatus.SUSPENDED,
    # On the way there: no CPU runs any more. Seen while the state is retrieved.
    "finish-migrate": RunStatus.SUSPENDED,
    "save-vm": RunStatus.SUSPENDED,
    # A volume is full or broken, QEMU stopped the domain; `cont` tries again.
    "io-error": RunStatus.SUSPENDED,
    # Stopped, and QEMU will refuse `cont`: the state is all there (it can be moved or looked at), but only destroying
    # the domain gets it out of that.
    "internal-error": RunStatus.SUSPENDED,
    "guest-panicked": RunStatus.SUSPENDED,
    "shutdown": RunStatus.SUSPENDED,
    "watchdog": RunStatus.SUSPENDED,
    "debug": RunStatus.SUSPENDED,
    "inmigrate": RunStatus.RECEIVING,
    # Never asked for: colo, restore-vm. Anything that is not here raises OutcomeUnknown.
}


@frozen(kw_only=True)
class QemuRecord:
    """What a later manager has to know of the process; written before it is started.

    ``received``: made by ``create_receiving``. ``vnets``: how many there are.
    """

    uuid: str = field(validator=validators.instance_of(str))
    ram_descriptor: int = field(validator=[validators.instance_of(int), validators.ge(3)])
    region: str = field(validator=validators.instance_of(str))
    size_bytes: int = field(validator=[validators.instance_of(int), validators.gt(0)])
    received: bool = field(validator=validators.instance_of(bool))
    vnets: int = field(validator=validators.instance_of(int))


def write_record(run_directory: Path, record: QemuRecord) -> None:
    """Raises OSError."""
    _write_file(run_directory, RECORD_NAME, json.dumps(asdict(record)).encode())


def read_record(run_directory: Path) -> QemuRecord:
    """Raises OutcomeUnknown: it is read when the process lives, and then it is needed."""
    path = run_directory / RECORD_NAME
    try:
        with path.open("rb") as file:
            return QemuRecord(**json.loads(file.read(RECORD_BYTES_MAX)))
    except (OSError, ValueError, TypeError) as error:
        raise OutcomeUnknown(
            f"{path} cannot be read, so the domain's process cannot be spoken to: {error}",
            remedy="end the process named in process.json and remove the run directory",
        ) from error


@define(eq=False)
class QemuDomain(DomainProcess):
    """Holds no descriptor and no connection between two calls."""

    record: QemuRecord
    run_directory: Path
    identity: ProcessIdentity
    answer_seconds: float
    vdisks: tuple[VirtualDisk, ...] = ()
    keyboard: ConsoleInput = field(init=False)
    _kept_state: bytes | None = field(default=None, init=False)
    uuid: str = field(init=False)
    pid: int = field(init=False)
    regions: tuple[RamRegion, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.uuid = self.record.uuid
        self.pid = self.identity.pid
        self.keyboard = ConsoleInput(self.run_directory)
        self.regions = (RamRegion(name=self.record.region, size_bytes=self.record.size_bytes),)

    @property
    def console_path(self) -> Path:
        return self.run_directory / CONSOLE_NAME

    async def write_console(self, data: bytes) -> int:
        if process.gone(self.identity):
            raise self._gone()
        return await self.keyboard.write(data)

    def open_ram(self) -> list[int]:
        try:
            descriptor = os.open(
                f"/proc/{self.pid}/fd/{self.record.ram_descriptor}", os.O_RDWR | os.O_CLOEXEC
            )
        except OSError as error:
            raise HypervisorError(
                f"the RAM of process {self.pid} cannot be opened: {error}"
            ) from error
        try:
            # Looked at after opening: if the process is still the one on record, so was the one that was opened.
            if process.gone(self.identity):
                raise self._gone()
            self._check_ram(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return [descriptor]

    def _check_ram(self, descriptor: int) -> None:
        """Not shorter than expected, ever: reading a mapping beyond the end would kill the manager."""
        try:
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & RAM_SEALS == RAM_SEALS
        except OSError:
            sealed = False
        if not sealed or os.fstat(descriptor).st_size != self.record.size_bytes:
            raise HypervisorError(f"process {self.pid} does not hold the domain's RAM any more")

    async def wait_answer(self) -> RunStatus:
        """``status`` of a process that must live: raises HypervisorError with its last words when it does not."""
        async with self._connected() as qmp:
            return await query_status(qmp)

    async def status(self) -> RunStatus:
        try:
            async with self._connected() as qmp:
                return await query_status(qmp)
        except (HypervisorError, OutcomeUnknown) as error:
            # It may just be ending: its socket is closed a moment before it is gone.
            if await process.wait_gone(self.identity, self._moment_seconds):
                return RunStatus.GONE
            if isinstance(error, HypervisorError):
                raise OutcomeUnknown(error.sentence) from error
            raise

    def has_ended(self) -> bool:
        return process.gone(self.identity)

    async def suspend(self) -> None:
        async with self._connected() as qmp:
            status = await query_status(qmp)
            if status is RunStatus.SUSPENDED:
                self.keyboard.disable()
                return
            if status is not RunStatus.RUNNING:
                raise HypervisorError(f"the domain is {status}, so it cannot be suspended")
            await qmp.execute("stop")
            self.keyboard.disable()
            state = await query_state(qmp)
            if run_status(state) is not RunStatus.SUSPENDED:
                raise HypervisorError(f"the domain did not stop: QEMU says {state}")

    async def resume(self) -> None:
        async with self._connected() as qmp:
            status = await query_status(qmp)
            if status is RunStatus.RUNNING:
                self.keyboard.enable()
                return
            # In a receiving domain QEMU takes `cont` for "run as soon as you are complete".
            if status is not RunStatus.SUSPENDED:
                raise HypervisorError(f"the domain is {status}, so it cannot be resumed")
            await self._continue(qmp)
            self.keyboard.enable()
            self._kept_state = None
            with suppress(OSError):
                (self.run_directory / DEVICE_STATE_NAME).unlink(missing_ok=True)
            if self.record.received and self.record.vnets:
                await qemu_stream.announce(qmp)

    async def _continue(self, qmp: Qmp) -> None:
        """``cont``, and a definite failure only when it is certain that nothing ran.

        QEMU tells RESUME before the CPUs start, and before it answers.
        """
        try:
            await qmp.execute("cont")
        except HypervisorError as error:
            state = await query_state(qmp)
            if qmp.saw("RESUME") or run_status(state) is not RunStatus.SUSPENDED:
                raise OutcomeUnknown(f"{error.sentence}; then QEMU says {state}") from error
            raise
        if not qmp.saw("RESUME") and await query_status(qmp) is not RunStatus.RUNNING:
            raise HypervisorError("QEMU took the resume and did nothing")

    async def destroy(self) -> None:
        await process.kill(self.identity, END_SECONDS)
        self._kept_state = None

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def report_disks(self) -> DisksReport:
        async with self._connected() as qmp:
            stopped = await query_state(qmp) == "io-error"
            return DisksReport(stopped=stopped, disks=await qemu_disks.ask(qmp, self.vdisks))

    async def switch_disk(self, vdisk: str, path: Path) -> None:
        disk = await qemu_disks.find_disk(path)
        async with self._connected() as qmp:
            state = await query_state(qmp)
            if state != "io-error":
                raise HypervisorError(f"QEMU says that the domain is {state}: no disk has failed")
            await qemu_disks.switch(qmp, self.vdisks, vdisk, disk)

    async def retrieve_device_state(self) -> bytes:
        async with self._connected() as qmp:
            state = await query_state(qmp)
            status = run_status(state)
            if status is not RunStatus.SUSPENDED:
                raise HypervisorError(f"the domain is {status}, so its state cannot be retrieved")
            self.keyboard.disable()  # what QEMU reads of it from now on is in no state
            if state == "postmigrate":
                return self._find_kept_state()
            self._kept_state = None
            path = self.run_directory / DEVICE_STATE_NAME
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise HypervisorError(f"{path} cannot be removed: {error}") from error
            stream = await qemu_stream.retrieve(qmp)
            self._kept_state = stream
        try:
            await trio.to_thread.run_sync(_write_file, self.run_directory, path.name, stream)
        except OSError as error:
            raise HypervisorError(f"the device state cannot be kept in {path}: {error}") from error
        return stream

    def _find_kept_state(self) -> bytes:
        if self._kept_state is None:
            try:
                with (self.run_directory / DEVICE_STATE_NAME).open("rb") as file:
                    self._kept_state = file.read(limits.DEVICE_STATE_BYTES_MAX + 1)
            except OSError as error:
                raise HypervisorError(
                    "QEMU gave the device state already, and what it gave was not kept",
                    remedy="resume the domain, then migrate it again",
                ) from error
        return self._kept_state

    async def install_device_state(self, state: bytes) -> None:
        async with self._connected() as qmp:
            status = await query_status(qmp)
            if status is not RunStatus.RECEIVING:
                raise HypervisorError(f"the domain is {status}, so it cannot receive state")
            try:
                await self._install(qmp, state)
            except HypervisorError:
                # Half of a state may be in it, and some versions of QEMU live on then: it must never run.
                await self.destroy()
                raise

    async def _install(self, qmp: Qmp, state: bytes) -> None:
        if len(state) > limits.DEVICE_STATE_BYTES_MAX:
            raise HypervisorError(
                f"the device state is larger than {limits.DEVICE_STATE_BYTES_MAX} bytes"
            )
        try:
            await qemu_stream.install(qmp, state)
            result = await query_state(qmp)
        except OutcomeUnknown as error:
            # A QEMU that rejects a stream ends; then it is certain that the state is not installed.
            if await process.wait_gone(self.identity, END_SECONDS):
                words = last_words(self.run_directory)
                raise HypervisorError(f"QEMU rejects the device state: {words}") from error
            raise
        if run_status(result) is not RunStatus.SUSPENDED:
            raise HypervisorError(f"the device state left the domain {result}, so it was ended")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Qmp]:
        """A QMP connection, for one operation. Raises HypervisorError when the process is gone, OutcomeUnknown."""
        async with AsyncExitStack() as stack:
            yield await self._connect(stack)

    async def _connect(self, stack: AsyncExitStack) -> Qmp:
        """A process that was started just now does not listen yet: that is waited for."""
        deadline = trio.current_time() + self.answer_seconds
        while True:
            connection = open_qmp(self.run_directory, QMP_NAME, answer_seconds=self.answer_seconds)
            try:
                return await stack.enter_async_context(connection)
            except OutcomeUnknown as error:
                # Nothing was asked yet. A process that ends closes its socket a moment before it is gone.
                if await process.wait_gone(self.identity, self._moment_seconds):
                    raise self._gone() from error
                raise
            except OSError as error:
                if process.gone(self.identity):
                    raise self._gone() from error
                if trio.current_time() >= deadline:
                    raise OutcomeUnknown(
                        f"process {self.pid} lives but QEMU does not listen: {error}"
                    ) from error
            await trio.sleep(RETRY_SECONDS)

    @property
    def _moment_seconds(self) -> float:
        return min(self.answer_seconds, 0.5)

    def _gone(self) -> HypervisorError:
        return HypervisorError(
            f"the domain's process {self.pid} has ended: {last_words(self.run_directory)}"
        )


async def query_state(qmp: Qmp) -> str:
    """QEMU's own word for what the domain does."""
    answer = await qmp.execute("query-status")
    if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
        raise OutcomeUnknown(f"QEMU says of its status {str(answer)[:80]!r}")
    return str(answer["status"])


async def query_status(qmp: Qmp) -> RunStatus:
    return run_status(await query_state(qmp))


def run_status(state: str) -> RunStatus:
    """Raises OutcomeUnknown for a word that is not in the table."""
    try:
        return RUN_STATUSES[state]
    except KeyError:
        raise OutcomeUnknown(f"QEMU says that the domain is {state[:40]!r}") from None


def last_words(run_directory: Path) -> str:
    """The last line of the process's log that is not a mere warning."""
    lines = process.log_tail(run_directory).splitlines()
    return next((line for line in reversed(lines) if "warning:" not in line), "no word in its log")


def _write_file(run_directory: Path, name: str, content: bytes) -> None:
    """As a whole or not at all, for its owner only. Raises OSError."""
    temporary = run_directory / (name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(run_directory / name)
