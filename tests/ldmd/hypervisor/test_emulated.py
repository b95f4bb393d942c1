"""What the emulated machine promises beyond the contract of all drivers."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import msgpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ldmd import console_log
from ldmd.definition import VirtualDisk, VirtualNetwork
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import emulated, emulated_machine, sockets
from ldmd.hypervisor.driver import Attachments, RunStatus
from ldmd.hypervisor.emulated import EmulatedHypervisor
from ldmd.hypervisor.emulated_console import INPUT_BYTES_MAX, TRIM_STEP_BYTES, Console
from ldmd.hypervisor.emulated_machine import REGISTERS, Refused, decode_state
from ldmd.hypervisor.oracle import read_console
from tests.ldmd.hypervisor.emulated_cases import EMULATED
from tests.ldmd.hypervisor.rig import Rig, processes_in

MEMORY_BYTES = EMULATED.definition.memory_bytes
DISK = VirtualDisk(name="disk0", volume="vol0", service="primary-vds")
NET = VirtualNetwork(name="net0", switch="primary-vsw", mac="52:54:00:12:34:56")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig.from_case(EMULATED, tmp_path)
    yield made
    await made.aclose()


def make_state(**changes: Any) -> dict[str, Any]:
    state = {
        "version": 2,
        "machine": "riscv64-virt",
        "memory-bytes": MEMORY_BYTES,
        "instructions": 1,
        "halted": False,
        "console-bytes": 2,
        "console-input": b"typed",
        "registers": dict.fromkeys(REGISTERS, 0) | {"pc": 0x8000_0000, "priv": 3},
    }
    return state | changes


# ---- the device stream -----------------------------------------------------------------------------


def test_right_state_is_taken() -> None:
    assert decode_state(msgpack.packb(make_state()), MEMORY_BYTES) == make_state()


WRONG_STATES = {
    "another version": make_state(version=1),
    "a version of another type": make_state(version=True),
    "another machine": make_state(machine="riscv64-other"),
    "another memory": make_state(**{"memory-bytes": MEMORY_BYTES * 2}),
    "one key more": make_state(more=1),
    "a number key": make_state() | {1: 1},
    "negative": make_state(instructions=-1),
    "typed of another type": make_state(**{"console-input": "typed"}),
    "typed too much": make_state(**{"console-input": bytes(INPUT_BYTES_MAX + 1)}),
    "halted of another type": make_state(halted=1),
    "a float": make_state(instructions=1.0),
    "a register less": make_state(registers={"pc": 1}),
    "a register more": make_state(registers=dict.fromkeys([*REGISTERS, "x32"], 0)),
    "a register of another type": make_state(registers=dict.fromkeys(REGISTERS, True)),
    "registers of another type": make_state(registers=0),
    "an array": make_state(registers=[1]),
    "no map": 7,
    "none": None,
}


@pytest.mark.parametrize("state", WRONG_STATES.values(), ids=WRONG_STATES.keys())
def test_wrong_state_is_refused(state: object) -> None:
    with pytest.raises(Refused):
        decode_state(msgpack.packb(state), MEMORY_BYTES)


@pytest.mark.parametrize("key", make_state())
def test_missing_key_is_refused(key: str) -> None:
    state = make_state()
    del state[key]
    with pytest.raises(Refused):
        decode_state(msgpack.packb(state), MEMORY_BYTES)


def test_repeated_key_is_refused() -> None:
    stream = bytearray(msgpack.packb(make_state()))
    assert stream[0] == 0x80 | len(make_state())
    stream[0] += 1
    with pytest.raises(Refused):
        decode_state(bytes(stream) + msgpack.packb("version") + b"\x01", MEMORY_BYTES)


def test_every_truncation_and_addition_is_refused() -> None:
    stream = msgpack.packb(make_state())
    for size in range(len(stream)):
        with pytest.raises(Refused):
            decode_state(stream[:size], MEMORY_BYTES)
    for more in (b"\0", stream, bytes(emulated_machine.STATE_BYTES_MAX)):
        with pytest.raises(Refused):
            decode_state(stream + more, MEMORY_BYTES)


@given(
    st.binary(max_size=300)
    | st.sampled_from([b"\x81" * 5000, b"\x91" * 5000, b"\xdf" + b"\xff" * 99])
)
def test_any_bytes_are_refused(stream: bytes) -> None:
    with pytest.raises(Refused):
        decode_state(stream, MEMORY_BYTES)


@given(st.integers(0, 600), st.integers(1, 255))
def test_any_changed_byte_is_refused_or_a_state(position: int, change: int) -> None:
    stream = bytearray(msgpack.packb(make_state()))
    stream[position % len(stream)] ^= change
    with contextlib.suppress(Refused):
        state = decode_state(bytes(stream), MEMORY_BYTES)
        assert set(state["registers"]) == set(REGISTERS)
        assert all(0 <= value < 2**64 for value in state["registers"].values())


@pytest.mark.parametrize("mode", [0, 1, 3])
@pytest.mark.parametrize("status", [0x0, 0x8000_0000_0000_6088])
async def test_every_register_moves(rig: Rig, mode: int, status: int) -> None:
    """Numbers that each register can hold, into one process, out of it, into the next."""
    registers = {name: 0x1234_5678_9ABC_0000 + 4 * i for i, name in enumerate(REGISTERS)}
    masks = {"mie": 0x888, "mip": 0x222, "medeleg": 0xB0B1FF, "mideleg": 0x222, "fcsr": 0xE5}
    registers |= masks | {"priv": mode, "mstatus": status, "satp": 0}
    registers |= {"mcounteren": 7, "scounteren": 5}
    state = msgpack.packb(make_state(registers=registers, instructions=2**40))
    for _ in range(2):
        domain = await rig.create_receiving()
        await domain.install_device_state(state)
        for _ in range(2):
            taken = msgpack.unpackb(await domain.retrieve_device_state())
            assert taken["registers"] == registers
            assert taken["instructions"] == 2**40


@pytest.mark.parametrize("change", [{"mtvec": 3}, {"priv": 9}, {"fcsr": 2**32}, {"mie": 2**63}])
async def test_value_that_a_register_cannot_hold_is_refused(
    rig: Rig, change: dict[str, int]
) -> None:
    domain = await rig.create_receiving()
    registers = make_state()["registers"] | change
    with pytest.raises(HypervisorError, match=next(iter(change))):
        await domain.install_device_state(msgpack.packb(make_state(registers=registers)))
    with pytest.raises(HypervisorError):
        await domain.install_device_state(msgpack.packb(make_state()))
    assert await domain.status() is RunStatus.RECEIVING


async def test_halted_processor_stays_halted_when_it_moves(rig: Rig) -> None:
    definition = EMULATED.define()
    domain = await rig.create_receiving(definition)
    registers = make_state()["registers"] | {"pc": 0x4000}  # no memory is there
    await domain.install_device_state(msgpack.packb(make_state(registers=registers)))
    await domain.resume()
    log = rig.run_directories[0] / "hypervisor.log"
    await rig.wait_until(lambda: "halted at 0x4000" in log.read_text())
    assert await domain.status() is RunStatus.RUNNING
    await domain.suspend()
    assert msgpack.unpackb(await domain.retrieve_device_state())["halted"] is True
    target = await rig.move(domain, definition)
    await target.resume()
    await rig.assert_still(target)
    assert msgpack.unpackb(await _suspended_state(target))["halted"] is True


async def _suspended_state(domain: Any) -> bytes:
    await domain.suspend()
    state: bytes = await domain.retrieve_device_state()
    return state


# ---- definitions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"vcpus": 2},
        {"vdisks": (DISK,)},
        {"vnets": (NET,)},
        {"machine": "pc"},
        {"firmware": "openbios"},
        {"cpu_arch": "rv128"},
        {"huge_pages": "2MiB"},
        *({"variables": (("clock-mhz", text),)} for text in ("", "0", "1001", "-1", "x", "1.5")),
    ],
)
async def test_what_the_machine_cannot_be_is_refused(rig: Rig, change: dict[str, Any]) -> None:
    run_directory = rig.make_run_directory()
    with pytest.raises(HypervisorError, match="emulated machine"):
        await rig.hypervisor.create(
            attrs.evolve(EMULATED.define(), **change), run_directory, Attachments()
        )
    assert list(run_directory.iterdir()) == []


async def test_clock_sets_the_speed(rig: Rig) -> None:
    """Between two states, instructions come to no more than the clock allows, and to most of it."""
    counts = {}
    for clock_mhz in (1, 20):
        variables = (("clock-mhz", str(clock_mhz)),)
        domain = await rig.create(attrs.evolve(EMULATED.define(), variables=variables))
        begun = trio.current_time()
        await domain.resume()
        await trio.sleep(0.3)
        await domain.suspend()
        seconds = trio.current_time() - begun
        state = msgpack.unpackb(await domain.retrieve_device_state())
        counts[clock_mhz] = state["instructions"]
        slice_instructions = clock_mhz * 1_000_000 * emulated_machine.SLICE_SECONDS
        lag = emulated_machine.LAG_SECONDS_MAX
        assert 0 < counts[clock_mhz] <= clock_mhz * 1e6 * (seconds + lag) + slice_instructions
    assert counts[20] > 2 * counts[1]


# ---- the process -----------------------------------------------------------------------------------


def test_manager_does_not_load_the_emulator() -> None:
    script = "import ldmd.hypervisor.emulated, sys; sys.exit('unicorn' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


async def test_emulator_that_does_not_start_is_named(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "MODULE", "ldmd.hypervisor.no_such_machine")
    with pytest.raises(HypervisorError, match="no_such_machine") as caught:
        await rig.hypervisor.capabilities()
    assert "pip install" in caught.value.remedy
    run_directory = rig.make_run_directory()
    with pytest.raises(HypervisorError, match="no_such_machine"):
        await rig.hypervisor.create(EMULATED.define(), run_directory, Attachments())
    assert processes_in(run_directory) == []


async def test_other_definition_does_not_adopt(rig: Rig) -> None:
    await rig.create()
    with pytest.raises(OutcomeUnknown, match="runs domain"):
        await rig.hypervisor.adopt(EMULATED.define(), rig.run_directories[0])


async def test_request_that_was_given_up_is_not_carried_out(rig: Rig) -> None:
    rig.hypervisor = EmulatedHypervisor(answer_seconds=0.2)
    domain = await rig.create()
    await domain.resume()
    os.kill(domain.pid, signal.SIGSTOP)
    for _ in range(3):
        with pytest.raises(OutcomeUnknown):
            await domain.suspend()
    os.kill(domain.pid, signal.SIGCONT)
    lines = read_console(domain).count("\n")
    await rig.wait_until(lambda: read_console(domain).count("\n") >= lines + 3)
    assert await domain.status() is RunStatus.RUNNING


async def test_suspend_waits_for_the_last_instruction(rig: Rig) -> None:
    domain = await rig.create(attrs.evolve(EMULATED.define(), variables=(("clock-mhz", "1000"),)))
    for _ in range(20):
        await domain.resume()
        await domain.suspend()
        first = await domain.retrieve_device_state()
        assert first == await domain.retrieve_device_state()


@pytest.mark.parametrize(
    "words",
    [b"\n", b"{}\n", b"[]\n", b'"suspend"\n', b'{"verb": []}\n', b"[" * 20_000 + b"\n", b"\xff\n"],
)
async def test_nonsense_gets_an_answer_and_changes_nothing(rig: Rig, words: bytes) -> None:
    domain = await rig.create()
    await domain.resume()
    async with await sockets.connect(rig.run_directories[0], "control.sock") as stream:
        await stream.send_all(words)
        with trio.fail_after(5):
            assert b'"refused": "that is not a request"' in await stream.receive_some(4096)
    assert await domain.status() is RunStatus.RUNNING


async def test_silent_and_endless_clients_do_not_block_others(rig: Rig) -> None:
    domain = await rig.create()
    async with contextlib.AsyncExitStack() as stack:
        for index in range(emulated_machine.CLIENTS_MAX * 3):
            stream = await sockets.connect(rig.run_directories[0], "control.sock")
            await stack.enter_async_context(stream)
            with contextlib.suppress(trio.BrokenResourceError):  # too long: it was hung up on
                await stream.send_all(b"{" * (index % 2) * 2 * emulated_machine.LINE_BYTES_MAX)
            assert await domain.status() is RunStatus.SUSPENDED
    await rig.run_until_printed(domain)


async def test_ram_cannot_be_taken_away(rig: Rig) -> None:
    """A manager that maps it would die of SIGBUS."""
    domain = await rig.create()
    [descriptor] = domain.open_ram()
    try:
        for size_bytes in (0, MEMORY_BYTES * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)


async def test_domain_outlives_a_console_that_takes_nothing(rig: Rig) -> None:
    domain = await rig.create()
    await rig.run_until_printed(domain, 1)
    # As on a full disk: every write fails, of the log too.
    resource.prlimit(domain.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    size_bytes = domain.console_path.stat().st_size
    await domain.suspend()
    await domain.resume()
    with trio.fail_after(10):
        while True:
            await domain.suspend()
            state = msgpack.unpackb(await domain.retrieve_device_state())
            if state["console-bytes"] > size_bytes + 100:
                break
            await domain.resume()
            await trio.sleep(0.01)
    resource.prlimit(domain.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    lines = read_console(domain).count("\n")
    await rig.run_until_printed(domain, lines + 2)


def test_long_console_keeps_its_end_without_a_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is old becomes a hole; offsets stay what they were."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * (console_log.ALLOCATED_BYTES_MAX + 4096))
    before_bytes = path.stat().st_size
    console = Console()
    for number in range(TRIM_STEP_BYTES + 1):
        console.write_register(None, 0, 1, number, None)
    console.flush()
    assert path.stat().st_size == before_bytes + TRIM_STEP_BYTES + 1
    assert path.stat().st_blocks * 512 < 2 * console_log.KEPT_BYTES
    assert path.read_bytes()[before_bytes + 5 :][:4] == bytes([5, 6, 7, 8])


async def test_process_is_small_and_confined(rig: Rig) -> None:
    domain = await rig.create()
    await rig.run_whole_pass(domain)
    text = await trio.Path(f"/proc/{domain.pid}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert int(facts["RssAnon"].split()[0]) < 48 * 1024  # KiB
    assert facts["NoNewPrivs"] == "1"
    assert resource.prlimit(domain.pid, resource.RLIMIT_CORE) == (0, 0)
    mode = (rig.run_directories[0] / "console.log").stat().st_mode
    assert mode & 0o077 == 0


async def test_process_that_ends_in_a_request_leaves_the_outcome_unknown(rig: Rig) -> None:
    domain = await rig.create()
    os.kill(domain.pid, signal.SIGSTOP)

    async def end_it() -> None:
        await trio.sleep(0.1)
        os.kill(domain.pid, signal.SIGKILL)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_it)
            with pytest.raises(OutcomeUnknown, match="ended"):
                await domain.resume()
    assert await domain.status() is RunStatus.GONE


async def test_process_that_answers_nonsense_leaves_the_outcome_unknown(rig: Rig) -> None:
    """Somebody else listens where the domain did."""
    domain = await rig.create()
    run_directory = rig.run_directories[0]
    (run_directory / "control.sock").unlink()
    directory = os.open(run_directory, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory}/control.sock")
        os.close(directory)
        listener.listen()
        for answer in (b"{}\n", b"[]\n", b'{"status": "running"}\n', b"\xff\n"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, _answer, listener, answer)
                with trio.fail_after(5), pytest.raises(OutcomeUnknown):
                    await domain.status()


def _answer(listener: socket.socket, answer: bytes) -> None:
    connection, _address = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(answer)
