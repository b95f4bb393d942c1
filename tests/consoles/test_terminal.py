"""``ldm console`` on a terminal of its own (pty) and in a pipe: keys, escapes, ways out, what is left behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from ldmd.cli.console import TAKE_SECONDS, Visit
from ldmd.cli.terminal import Escape, Keys
from tests.consoles.visitor import visit
from tests.managers import Manager, make_fleet, wait_for

ECHO: dict[str, Any] = {"firmware": "echo"}
# what the tests were told to ignore (nohup, a shell's &) is inherited
LDM = [
    *("env", "--default-signal=HUP,INT"),
    *(sys.executable, "-c", "from ldmd.cli import main; main()"),
]
WAIT_SECONDS = 30.0


# ---- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"~."], [Escape.LEAVE]),
        ([b"a~."], [b"a~."]),
        ([b"a\r~."], [b"a\r", Escape.LEAVE]),
        ([b"a\n~", b"."], [b"a\n", Escape.LEAVE]),
        ([b"~", b"~", b"."], [b"~", b"."]),
        ([b"~~~."], [b"~~."]),
        ([b"~?~."], [Escape.HELP, Escape.LEAVE]),
        ([b"~x"], [b"~x"]),
        ([b"~\r~."], [b"~\r", Escape.LEAVE]),
        ([b"\x03"], [b"\x03"]),
        ([b""], []),
    ],
)
def test_escapes(pieces: list[bytes], expected: list[bytes | Escape]) -> None:
    keys = Keys()
    assert [item for piece in pieces for item in keys.feed(piece)] == expected


# ---- a person ----------------------------------------------------------------------------------------------


@define(eq=False)
class Terminal:
    """``ldm console`` behind a pty: what the person types and sees."""

    leader: int
    follower: int
    process: subprocess.Popen[bytes]
    before: list[Any]
    seen: bytearray = field(factory=bytearray)

    async def wait_seen(self, text: str, count: int = 1) -> None:
        with trio.fail_after(WAIT_SECONDS):
            while self.seen.decode(errors="replace").count(text) < count:
                await trio.lowlevel.wait_readable(self.leader)
                self.seen += os.read(self.leader, 4096)

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())

    async def wait_exit(self) -> int:
        with trio.fail_after(WAIT_SECONDS):
            while self.process.poll() is None:
                await trio.sleep(0.01)
        assert self.process.returncode is not None
        return self.process.returncode

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.follower)[3] & termios.ICANON

    @property
    def restored(self) -> bool:
        return bool(termios.tcgetattr(self.follower) == self.before)


@contextmanager
def at_terminal(manager: Manager, *arguments: str) -> Iterator[Terminal]:
    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    environment = os.environ | {"LDM_SOCKET": str(manager.socket)}
    with subprocess.Popen(
        [*LDM, "console", *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield Terminal(leader, follower, process, before)
        finally:
            process.kill()
            os.close(leader)
            os.close(follower)


async def test_a_person_types_gets_help_and_leaves(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a", **ECHO)
        with at_terminal(fleet["host-a"], "ldg1") as terminal:
            await terminal.wait_seen("the console of ldg1 on host-a; ~. leaves, ~? helps")
            await terminal.wait_seen("1> ")
            assert terminal.raw
            terminal.type("\x03 is for the domain ~.\r")
            await terminal.wait_seen("2> ")
            assert b"\x03 is for the domain ~.\r\n" in terminal.seen
            terminal.type("~?")
            await terminal.wait_seen("leave the console")
            terminal.type("~.")
            await terminal.wait_seen("left the console of ldg1")
            assert await terminal.wait_exit() == 0
            assert terminal.restored
        assert (await fleet["host-a"].domains())["ldg1"]["run_state"] == "running"


async def test_the_terminal_is_restored_on_every_way_out(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        manager = fleet["host-a"]
        await fleet.start_domain("host-a", **ECHO)

        async def end_domain(_: Terminal) -> None:
            await manager.call("stop-domain", {"domain": "ldg1"})

        async def end_manager(_: Terminal) -> None:
            await manager.stop(signal.SIGKILL)

        def send(number: int) -> Any:
            async def kill(terminal: Terminal) -> None:
                terminal.process.send_signal(number)

            return kill

        for way, status, said in (
            (send(signal.SIGTERM), 128 + signal.SIGTERM, "left the console"),
            (send(signal.SIGHUP), 128 + signal.SIGHUP, "left the console"),
            (send(signal.SIGINT), 130, ""),
            (end_domain, 3, "ldg1 has stopped"),
            (end_manager, 69, "the manager ended, and the console with it"),
        ):
            if way is end_manager:
                await manager.call("start-domain", {"domain": "ldg1"})
            with at_terminal(manager, "ldg1") as terminal:
                await terminal.wait_seen("1> ")
                assert terminal.raw
                await way(terminal)
                if said:
                    await terminal.wait_seen(said)
                assert await terminal.wait_exit() == status
                assert terminal.restored, status
        with at_terminal(manager, "ldg1") as terminal:  # it cannot begin
            await terminal.wait_seen("no manager answers")
            assert await terminal.wait_exit() == 69
            assert terminal.restored


async def test_a_migration_is_said_and_typing_goes_on(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", **ECHO)
        with at_terminal(fleet["host-a"], "ldg1") as terminal:
            terminal.type("before\r")
            await terminal.wait_seen("2> ")
            await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
            await terminal.wait_seen("[ldg1 has moved to host-b]")
            terminal.type("after\r")
            await terminal.wait_seen("3> ")
            with at_terminal(fleet["host-b"], "ldg1") as other:
                await other.wait_seen("in use by root@host-a; read only")
            terminal.type("~.")
            assert await terminal.wait_exit() == 0


# ---- a script ----------------------------------------------------------------------------------------------


async def run_ldm(manager: Manager, *arguments: str, typed: bytes = b"") -> Any:
    return await trio.run_process(
        [*LDM, "console", *arguments],
        stdin=typed,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=os.environ | {"LDM_SOCKET": str(manager.socket)},
    )


async def test_in_a_pipe_all_is_typed_and_the_answer_is_shown(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        uuid = await fleet.start_domain("host-a", **ECHO)
        manager = fleet["host-a"]
        await wait_for(lambda: prompted(fleet, uuid))
        done = await run_ldm(manager, "ldg1", typed=b"one\ntwo ~.\n")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == b"one\r\n2> two ~.\r\n3> "
        done = await run_ldm(manager, "ldg1", "--replay", "2", "--wait", "0.2")
        assert done.stdout == b"two ~.\r\n3> ".join([b"2> ", b""])
        file = tmp_path / "typed"
        file.write_bytes(b"from a file")
        with file.open() as stdin:
            done = await trio.run_process(
                [*LDM, "--socket", str(manager.socket), "console", "ldg1"],
                stdin=stdin,
                capture_stdout=True,
            )
        assert done.stdout == b"from a file"
        async with visit(manager):
            done = await run_ldm(manager, "ldg1", typed=b"x")
            assert (done.returncode, done.stdout) == (6, b"")
            assert b"in use by" in done.stderr
            done = await run_ldm(manager, "-f", "ldg1", typed=b"y")
            assert (done.returncode, done.stdout) == (0, b"y")
        done = await run_ldm(manager, "ldg7", typed=b"x")
        assert done.returncode == 4


async def prompted(fleet: Any, uuid: str) -> bool:
    return "1> " in fleet.console("host-a", uuid)


async def test_a_reader_that_goes_away_ends_it(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a")
        environment = os.environ | {"LDM_SOCKET": str(fleet["host-a"].socket)}
        with subprocess.Popen(
            [*LDM, "console", "-r", "ldg1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment,
        ) as process:
            assert process.stdout is not None
            line = await trio.to_thread.run_sync(process.stdout.readline)
            assert line.startswith(b"oracle ")
            process.stdout.close()
            with trio.fail_after(WAIT_SECONDS):
                while process.poll() is None:
                    await trio.sleep(0.01)
            assert process.returncode == 0


async def test_what_is_not_taken_is_not_waited_for_without_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    visit = Visit("ldg1", terminal=False, reads=True)
    visit._typed_bytes = 8
    async with trio.open_nursery() as nursery:

        async def take(*counts: int) -> None:
            for count in counts:
                await trio.sleep(TAKE_SECONDS * 0.9)
                visit._taken_bytes = count
                visit._tell()

        nursery.start_soon(take, 3, 5)
        assert not await visit._wait_taken()
        assert visit._taken_bytes == 5, "it was waited for as long as it went on"
        nursery.start_soon(take, 8)
        assert await visit._wait_taken()
