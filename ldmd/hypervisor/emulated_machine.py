"""The emulated machine: one domain of the ``emulated`` hypervisor, in a process of its own.

    python -m ldmd.hypervisor.emulated_machine --uuid UUID --memory-bytes N --firmware NAME
        --clock-mhz N [--receiving]

Started by ``ldmd/hypervisor/emulated.py`` with the domain's run directory as its working directory.
This module alone imports Unicorn (GPLv2); nothing of the manager runs here.

*Machine* ``riscv64-virt``: one RV64 hart (no interrupts, no traps: an exception halts it), RAM from
0x8000_0000, a console at 0x1000_0000 (data and line status of a 16550; ``emulated_console.py``). It starts at RAM's
first byte, where the firmware lies, with 0 in a0 and RAM's size in bytes in a1.

*State*: RAM is a sealed memfd that the manager maps as well. The rest is ``registers`` in the
device stream: every register that Unicorn lets out. Not among them and so not to be used by a
firmware: physical memory protection and the counters (cycle, instret), which show the host's time.

*Running*: slices of a counted number of instructions, in a thread, at no more than the clock's
rate: ``count`` must be given always, since after one ``emu_start`` without it Unicorn ignores a
later one. Between slices the thread looks whether it should stop, so no stop comes from outside.

*Control*: ``control.sock`` takes one JSON map a line, ``{"verb": ...}``, and answers each with one.
A request whose sender has hung up is not carried out: a manager that gave up waiting for an answer,
or died, cannot change the domain behind the back of what was asked later.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import fcntl
import json
import mmap
import os
import resource
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack
import unicorn as unicorn_package
from unicorn import riscv_const

from ldmd.hypervisor.emulated_console import INPUT_BYTES_MAX, Console, note

unicorn: Any = unicorn_package
"""It says that it is typed (py.typed) and is not: neither its exports nor its functions."""

CONTROL_NAME: Final = "control.sock"
FIRMWARES: Final = {
    "default": "oracle-riscv64.bin",
    "oracle": "oracle-riscv64.bin",
    "echo": "echo-riscv64.bin",
}

STATE_VERSION: Final = 2
STATE_BYTES_MAX: Final = 16 * 1024
"""A stream has about 1.2 KiB, and what was typed and not read."""
LINE_BYTES_MAX: Final = 2 * STATE_BYTES_MAX
CLIENTS_MAX: Final = 8
SEND_SECONDS: Final = 1.0

RAM_ADDRESS: Final = 0x8000_0000
CONSOLE_ADDRESS: Final = 0x1000_0000
CONSOLE_REGISTERS_BYTES: Final = 0x1000

SLICE_SECONDS: Final = 0.005
SLICE_INSTRUCTIONS_MAX: Final = 100_000
"""2 ms on a slow host: what a suspend may have to wait."""
LAG_SECONDS_MAX: Final = 0.1
"""A host that was busy for longer owes the domain nothing."""

MACHINE_MODE: Final = 3
FLOAT_STATUS: Final = 0x6000
"""mstatus.FS. Unicorn reads and writes a register with the rights of the mode that the hart is in,
and gives what lay in its own memory, without an error, for one that this mode may not touch: fcsr
while FS is 0, machine-mode registers in another mode.
"""


def _register_ids() -> dict[str, int]:
    names = ["PC", "PRIV", "MSTATUS", "FCSR"]
    names += [f"X{i}" for i in range(1, 32)] + [f"F{i}" for i in range(32)]
    names += ["MTVEC", "MEPC", "MCAUSE", "MTVAL", "MSCRATCH", "MIE", "MIP", "MEDELEG", "MIDELEG"]
    names += ["MCOUNTEREN", "SATP", "STVEC", "SEPC", "SCAUSE", "STVAL", "SSCRATCH", "SCOUNTEREN"]
    return {name.lower(): getattr(riscv_const, "UC_RISCV_REG_" + name) for name in names}


REGISTERS: Final = _register_ids()


class Refused(Exception):
    """The request was not carried out; the text is a sentence for the manager."""


class Ram:
    """A memfd of fixed size, mapped shared."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.descriptor = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, size_bytes)
        # The manager maps it too: a domain's process must not be able to take the pages away.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self.mapping = mmap.mmap(self.descriptor, size_bytes, mmap.MAP_SHARED)

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))


class Processor:
    """The hart and the thread that runs it. All methods are for the control thread."""

    def __init__(self, ram: Ram, console: Console, clock_mhz: int) -> None:
        self.instructions = 0
        self.halted = False
        self._console = console
        self._clock_hz = clock_mhz * 1_000_000
        self._slice = min(int(self._clock_hz * SLICE_SECONDS), SLICE_INSTRUCTIONS_MAX)
        self._changed = threading.Condition()
        self._wanted = False
        self._running = False
        self._uc = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV64)
        self._uc.mem_map_ptr(RAM_ADDRESS, ram.size_bytes, unicorn.UC_PROT_ALL, ram.address)
        self._uc.mmio_map(
            CONSOLE_ADDRESS,
            CONSOLE_REGISTERS_BYTES,
            console.read_register,
            None,
            console.write_register,
            None,
        )
        self._write("pc", RAM_ADDRESS)
        self._write("x11", ram.size_bytes)
        threading.Thread(target=self._run, name="processor", daemon=True).start()

    @property
    def running(self) -> bool:
        return self._wanted

    def start(self) -> None:
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def stop(self) -> None:
        """No instruction runs when it returns, and the console has all that was printed."""
        with self._changed:
            self._wanted = False
            self._changed.notify_all()
            while self._running:
                self._changed.wait()

    def read_registers(self) -> dict[str, int]:
        """Of a stopped processor, which is the same afterwards."""
        privilege = self._read("priv")
        self._write("priv", MACHINE_MODE)
        status = self._read("mstatus")
        self._write("mstatus", status | FLOAT_STATUS)
        values = {name: self._read(name) for name in REGISTERS}
        self._write("mstatus", status)
        self._write("priv", privilege)
        return values | {"priv": privilege, "mstatus": status}

    def write_registers(self, values: dict[str, int]) -> None:
        """Raises Refused when a register did not take its value: then it is no state of this CPU."""
        self._write("priv", MACHINE_MODE)
        self._write("mstatus", values["mstatus"] | FLOAT_STATUS)
        for name in REGISTERS:
            if name not in ("priv", "mstatus"):
                self._write(name, values[name])
        self._write("mstatus", values["mstatus"])
        self._write("priv", values["priv"])
        taken = self.read_registers()
        wrong = [name for name in REGISTERS if taken[name] != values[name]]
        if wrong:
            raise Refused(f"register {wrong[0]} cannot hold {values[wrong[0]]:#x}")

    def _read(self, name: str) -> int:
        return int(self._uc.reg_read(REGISTERS[name]))

    def _write(self, name: str, value: int) -> None:
        try:
            self._uc.reg_write(REGISTERS[name], value)
        except unicorn.UcError as error:
            raise Refused(f"register {name} cannot be written: {error}") from error

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while True:
                with self._changed:
                    self._running = False
                    self._changed.notify_all()
                    while (pause := self._pause_seconds(due)) != 0:
                        self._changed.wait(pause)
                    self._running = True
                due = max(due, time.monotonic() - LAG_SECONDS_MAX) + self._slice / self._clock_hz
                self._run_slice()
        except BaseException:
            # A machine without its processor would answer for ever and do nothing.
            sys.excepthook(*sys.exc_info())
            os._exit(70)

    def _pause_seconds(self, due: float) -> float | None:
        """How long not to run: None until something changes, 0 not at all."""
        if not self._wanted or self.halted:
            return None
        return max(0.0, due - time.monotonic())

    def _run_slice(self) -> None:
        try:
            self._uc.emu_start(self._read("pc"), 2**64 - 1, count=self._slice)
            self.instructions += self._slice
        except unicorn.UcError as error:
            self.halted = True
            where = self._read("pc")
            note(f"the processor halted at {where:#x}: {error}")
        self._console.flush()


class Machine:
    """The domain: what ``control.sock`` offers. ``status`` is a value of driver.RunStatus."""

    def __init__(
        self, *, uuid: str, memory_bytes: int, firmware: str, receiving: bool, clock_mhz: int
    ) -> None:
        self.uuid = uuid
        self.ram = Ram(memory_bytes)
        self.console = Console()
        self.processor = Processor(self.ram, self.console, clock_mhz)
        self._receiving = receiving
        self._spoiled = False
        if not receiving:
            code = (Path(__file__).parent / "firmware" / FIRMWARES[firmware]).read_bytes()
            self.ram.mapping[: len(code)] = code
        self.verbs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "status": lambda _request: {},
            "suspend": self._suspend,
            "resume": self._resume,
            "retrieve": self._retrieve,
            "install": self._install,
            "type": self._type,
        }

    @property
    def status(self) -> str:
        if self._receiving:
            return "receiving"
        return "running" if self.processor.running else "suspended"

    def answer(self, request: object) -> dict[str, Any]:
        try:
            if not isinstance(request, dict) or request.get("verb") not in list(self.verbs):
                raise Refused("that is not a request")
            more = self.verbs[request["verb"]](request)
        except Refused as refused:
            more = {"refused": str(refused)}
        facts = {"uuid": self.uuid, "memory_bytes": self.ram.size_bytes, "ram": self.ram.descriptor}
        return {"status": self.status, **facts, **more}

    def _suspend(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._require_complete()
        self.processor.stop()
        return {}

    def _resume(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._require_complete()
        self.processor.start()
        return {}

    def _retrieve(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._require_complete()
        if self.processor.running:
            raise Refused("the domain runs: its state can be retrieved when it is suspended")
        stream = msgpack.packb(
            {
                "version": STATE_VERSION,
                "machine": "riscv64-virt",
                "memory-bytes": self.ram.size_bytes,
                "instructions": self.processor.instructions,
                "halted": self.processor.halted,
                "console-bytes": self.console.sent_bytes,
                "console-input": self.console.typed,
                "registers": self.processor.read_registers(),
            }
        )
        return {"state": base64.b64encode(stream).decode()}

    def _install(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self._receiving:
            raise Refused("the domain was not made to receive state, or has it already")
        if self._spoiled:
            raise Refused("the domain was given a state before that could not be installed")
        self._spoiled = True  # until all of it was taken
        try:
            stream = base64.b64decode(request.get("state", ""), validate=True)
        except (ValueError, TypeError) as error:
            raise Refused("the device state is not base64") from error
        state = decode_state(stream, self.ram.size_bytes)
        self.processor.write_registers(state["registers"])
        self.processor.instructions = state["instructions"]
        self.processor.halted = state["halted"]
        self.console.sent_bytes = state["console-bytes"]
        self.console.typed = state["console-input"]
        self._receiving = self._spoiled = False
        return {}

    def _type(self, request: dict[str, Any]) -> dict[str, Any]:
        """Nothing is taken of a domain that does not run: its state may have been retrieved already."""
        try:
            data = base64.b64decode(request.get("data", ""), validate=True)
        except (ValueError, TypeError) as error:
            raise Refused("what is typed is not base64") from error
        return {"taken": self.console.type(data) if self.processor.running else 0}

    def _require_complete(self) -> None:
        if self._receiving:
            raise Refused("the domain is receiving and not complete")


def decode_state(stream: bytes, memory_bytes: int) -> dict[str, Any]:
    """An untrusted device stream -> its map, every key, type and range checked. Raises Refused."""
    if not 0 < len(stream) <= STATE_BYTES_MAX:
        raise Refused(
            f"the device state has {len(stream)} bytes; 1 to {STATE_BYTES_MAX} are allowed"
        )
    try:
        state = msgpack.unpackb(
            stream,
            object_pairs_hook=_map_without_repeats,
            max_map_len=len(REGISTERS),
            max_array_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise Refused(f"the device state is not a msgpack map: {type(error).__name__}") from error
    exact = {"version": STATE_VERSION, "machine": "riscv64-virt", "memory-bytes": memory_bytes}
    numbers = {"instructions", "console-bytes"}
    keys = {*exact, *numbers, "halted", "registers", "console-input"}
    if not isinstance(state, dict) or set(state) != keys:
        raise Refused("the device state does not have exactly the keys of a riscv64-virt state")
    for key, value in exact.items():
        if type(state[key]) is not type(value) or state[key] != value:
            raise Refused(f"the device state's {key} is not {value!r}")
    registers = state["registers"]
    if not isinstance(registers, dict) or set(registers) != set(REGISTERS):
        raise Refused("the device state does not have exactly the registers of a riscv64-virt")
    for key, value in [*((key, state[key]) for key in numbers), *registers.items()]:
        if type(value) is not int or not 0 <= value < 2**64:
            raise Refused(f"the device state's {key} is not a number of 64 bits")
    typed = state["console-input"]
    if type(typed) is not bytes or len(typed) > INPUT_BYTES_MAX:
        raise Refused(f"the device state's console-input is not up to {INPUT_BYTES_MAX} bytes")
    if type(state["halted"]) is not bool:
        raise Refused("the device state's halted is not true or false")
    return state


def _map_without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


class ControlServer:
    """Serves ``control.sock``: requests one at a time, of several connections."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._selector = selectors.DefaultSelector()
        self._buffers: dict[socket.socket, bytearray] = {}
        Path(CONTROL_NAME).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(CONTROL_NAME)
        self._listener.listen(CLIENTS_MAX)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _events in self._selector.select():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                if client is self._listener:
                    self._accept()
                elif client in self._buffers:
                    self._receive(client)

    def _accept(self) -> None:
        client, _address = self._listener.accept()
        client.settimeout(SEND_SECONDS)
        if len(self._buffers) >= CLIENTS_MAX:
            self._drop(next(iter(self._buffers)))
        self._buffers[client] = bytearray()
        self._selector.register(client, selectors.EVENT_READ)

    def _receive(self, client: socket.socket) -> None:
        buffer = self._buffers[client]
        try:
            received = client.recv(LINE_BYTES_MAX)
            buffer += received
            line, newline, rest = buffer.partition(b"\n")
            if newline and not _has_hung_up(client):
                self._buffers[client] = rest
                client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
            elif newline or not received or len(buffer) > LINE_BYTES_MAX:
                self._drop(client)
        except OSError:
            self._drop(client)

    def _answer(self, line: bytearray) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        return self._machine.answer(request)

    def _drop(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._buffers[client]
        client.close()


def _has_hung_up(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


def _confine() -> None:
    """RAM does not belong in a core file, and nothing here needs more rights than it has."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    set_no_new_privileges = 38  # PR_SET_NO_NEW_PRIVS, prctl(2)
    ctypes.CDLL(None, use_errno=True).prctl(set_no_new_privileges, 1, 0, 0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="version", version=unicorn.__version__)
    parser.add_argument("--uuid", required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--firmware", choices=sorted(FIRMWARES), required=True)
    parser.add_argument("--clock-mhz", type=int, required=True)
    parser.add_argument("--receiving", action="store_true")
    arguments = parser.parse_args()
    _confine()
    ControlServer(Machine(**vars(arguments))).serve()


if __name__ == "__main__":
    main()
