"""QMP: the codec on bytes, the pump against a real QEMU and against peers that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import process
from ldmd.hypervisor.qemu_command import X86
from ldmd.hypervisor.qmp import Qmp, open_qmp
from ldmd.hypervisor.qmp_codec import (
    ErrorReply,
    Event,
    Greeting,
    QmpCodec,
    QmpFault,
    Reply,
    encode_command,
    parse_line,
)
from tests.ldmd.hypervisor.qemu_cases import missing_program

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'
)
SESSION = (
    GREETING
    + b'{"return": {}, "id": 1}\r\n'
    + b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n'
    + b'{"id": 2, "error": {"class": "GenericError", "desc": "no such thing"}}\r\n'
    + b'{"event": "MIGRATION", "data": {"status": "setup"}}\r\n'
)
MESSAGES = [
    Greeting(version=(7, 2, 22)),
    Reply(command_id=1, value={}),
    Event(name="STOP", data={}),
    ErrorReply(command_id=2, error_class="GenericError", sentence="no such thing"),
    Event(name="MIGRATION", data={"status": "setup"}),
]


@given(st.lists(st.integers(0, len(SESSION)), max_size=20).map(sorted))
def test_codec_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    codec = QmpCodec()
    found = []
    for first, end in zip([0, *cuts], [*cuts, len(SESSION)], strict=True):
        codec.receive_bytes(SESSION[first:end])
        while (message := codec.next_message()) is not None:
            found.append(message)
    assert found == MESSAGES


def test_command_is_one_line_of_json() -> None:
    line = encode_command("getfd", {"fdname": "a\nb"}, 7)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == {"execute": "getfd", "arguments": {"fdname": "a\nb"}, "id": 7}
    assert "arguments" not in json.loads(encode_command("stop", {}, 8))


@pytest.mark.parametrize("whole", [True, False])
def test_codec_bounds_a_line(whole: bool) -> None:
    codec = QmpCodec(line_bytes_max=100)
    codec.receive_bytes(b'{"event": "' + b"x" * 86 + b'"}\n')
    assert isinstance(codec.next_message(), Event)
    codec.receive_bytes(b'{"event": "' + b"x" * 88 + (b'"}\n' if whole else b""))
    codec.receive_bytes(b"" if whole else b"xx")
    with pytest.raises(QmpFault):
        codec.next_message()


@pytest.mark.parametrize(
    "line",
    [
        b"QMP",
        b"[]",
        b"{}",
        b'"return"',
        b'{"return": {}}',
        b'{"return": {}, "id": "x"}',
        b'{"return": {}, "id": Infinity}',
        b'{"error": {"class": "GenericError"}, "id": 1}',
        b'{"error": [], "id": 1}',
        b'{"event": "X", "data": 5}',
        b'{"QMP": {"version": {"qemu": {"major": 7}}}}',
        b"[" * 100_000,
        b'{"event": "\xff"}',
    ],
)
def test_what_is_not_qmp_is_a_fault(line: bytes) -> None:
    with pytest.raises(QmpFault):
        parse_line(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_fault(line: bytes) -> None:
    with contextlib.suppress(QmpFault):
        assert parse_line(line) is not None


LATE = b'{"return": {"status": "not-ours"}, "id": 2}\r\n{"event": "RESET"}\r\n'
"""What a real QEMU still says of the connection before."""


def _numbered(answer: bytes, command: bytes) -> bytes:
    """``answer`` with the command's id in place of ID."""
    return answer.replace(b"ID", str(json.loads(command)["id"]).encode())


Peer = Callable[[trio.SocketStream], Awaitable[None]]


async def _talk(directory: Path, peer: Peer, use: Callable[[Qmp], Awaitable[None]]) -> None:
    """``use`` a connection to a listener that behaves as ``peer`` does, after a right negotiation."""
    with socket.socket(socket.AF_UNIX) as listening:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            listening.bind(f"/proc/self/fd/{descriptor}/qmp.sock")
        finally:
            os.close(descriptor)
        listening.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

        async def serve() -> None:
            async with await listener.accept() as stream:
                await stream.send_all(LATE + GREETING + LATE)
                command = await stream.receive_some()
                assert b"qmp_capabilities" in command
                await stream.send_all(LATE + _numbered(b'{"return": {}, "id": ID}\r\n', command))
                await peer(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with open_qmp(directory, "qmp.sock", answer_seconds=5) as qmp:
                await use(qmp)


def _answer(answer: bytes) -> Peer:
    async def peer(stream: trio.SocketStream) -> None:
        command = await stream.receive_some()
        await stream.send_all(LATE + _numbered(answer, command))
        await stream.receive_some()

    return peer


async def test_error_reply_is_a_definite_failure(tmp_path: Path) -> None:
    answer = (
        b'{"event": "STOP"}\r\n{"id": ID, "error": {"class": "GenericError", "desc": "no way"}}\r\n'
    )

    async def use(qmp: Qmp) -> None:
        with pytest.raises(HypervisorError, match="no way") as caught:
            await qmp.execute("cont")
        assert caught.value.facts["class"] == "GenericError"
        assert qmp.saw("STOP")
        assert not qmp.saw("RESUME")

    await _talk(tmp_path, _answer(answer), use)


@pytest.mark.parametrize(
    "answer",
    [b"", b"}\r\n", LATE, b'{"return": {}', b"x" * 2_000_000],
    ids=["closed", "garbage", "other-id", "cut", "endless"],
)
async def test_no_right_answer_leaves_the_outcome_unknown(tmp_path: Path, answer: bytes) -> None:
    async def peer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        try:
            await stream.send_all(answer)
        except trio.BrokenResourceError:
            assert len(answer) > 1_000_000  # it was read to the bound, and no further

    async def use(qmp: Qmp) -> None:
        with pytest.raises(OutcomeUnknown, match="cont"):
            await qmp.execute("cont")

    await _talk(tmp_path, peer, use)


async def test_no_answer_in_time_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    async def peer(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async def use(qmp: Qmp) -> None:
        with pytest.raises(OutcomeUnknown, match="in time"):
            await qmp.execute("cont", timeout_seconds=0.05)

    await _talk(tmp_path, peer, use)


async def test_descriptor_arrives(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    async def peer(stream: trio.SocketStream) -> None:
        data, rights, _, _ = await stream.socket.recvmsg(4096, socket.CMSG_SPACE(4))
        assert json.loads(data)["arguments"] == {"fdname": "state"}
        got = int.from_bytes(rights[0][2], "little")
        os.write(got, b"through")
        os.close(got)
        await stream.send_all(_numbered(b'{"return": {}, "id": ID}\r\n', data))
        await stream.receive_some()

    async def use(qmp: Qmp) -> None:
        await qmp.getfd("state", writing)

    try:
        await _talk(tmp_path, peer, use)
        assert os.read(reading, 100) == b"through"
    finally:
        os.close(reading)
        os.close(writing)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with open_qmp(tmp_path, "qmp.sock", answer_seconds=1):
            raise AssertionError("there is nothing to connect to")


@pytest.mark.qemu
async def test_speaks_with_qemu(tmp_path: Path) -> None:
    if missing := missing_program(X86, "qemu-system-x86"):
        pytest.skip(missing)
    arguments = [X86, "-machine", "none", "-nodefaults", "-display", "none", "-S"]
    arguments += ["-qmp", "unix:qmp.sock,server=on,wait=off"]
    identity = await process.spawn(arguments, tmp_path)
    try:
        with trio.fail_after(30):
            while not (tmp_path / "qmp.sock").exists():
                assert not process.gone(identity), process.log_tail(tmp_path)
                await trio.sleep(0.01)
        for _ in range(3):  # one after the other: none is in the next one's way
            async with open_qmp(tmp_path, "qmp.sock", answer_seconds=30) as qmp:
                assert qmp.version >= (4, 0, 0)
                assert (await qmp.execute("query-status"))["status"] == "prelaunch"
                with pytest.raises(HypervisorError, match="make-coffee"):
                    await qmp.execute("make-coffee")
        async with open_qmp(tmp_path, "qmp.sock", answer_seconds=30):
            with pytest.raises(OutcomeUnknown):
                async with open_qmp(tmp_path, "qmp.sock", answer_seconds=0.2):
                    raise AssertionError("QEMU serves one client at a time")
    finally:
        await process.kill(identity, 10)
