"""Several users at one console, and clients that do not behave: one types, nobody holds up the domain or the manager."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.client import connect
from ldmd.console_client import open_console
from ldmd.consoles.verb import SESSIONS_MAX
from ldmd.control_lines import encode_line
from ldmd.errors import BadRequest, Busy, NotFound, WrongState
from tests.consoles.visitor import Visitor, visit
from tests.managers import Fleet, Manager, make_fleet, wait_for

ECHO: dict[str, Any] = {"firmware": "echo"}
PASTE_BYTES = 1_000_000
PRINTED_BYTES = 8_000_000
"""More than lies in the buffers between a manager and its client, less than a console that is trimmed."""
GROWTH_KIB_MAX = 4096


async def test_one_types_others_look_on_and_the_next_ones_turn_comes(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a", **ECHO)
        manager = fleet["host-a"]
        async with visit(manager) as second_place, visit(manager) as second:
            assert second_place.of("opened")[0]["writer"] is None
            assert second.of("opened")[0]["writer"]
            await second.type("dropped")
            await second.wait(lambda: second.of("taken"))
            async with visit(manager, access="read") as reader:
                assert reader.of("opened")[0]["writer"]
                async with visit(manager, access="force") as forcing:
                    assert forcing.of("opened")[0]["writer"] is None
                    await second_place.wait(lambda: second_place.of("writer"))
                    assert second_place.of("writer")[0]["writer"]
                    await second_place.type("dropped too")
                    await forcing.type("mine\r")
                    for visitor in (second_place, second, reader, forcing):
                        await visitor.wait_text("2> ")
                        assert visitor.text == "1> mine\r\n2> "
                await second_place.wait(lambda: second_place.of("writer")[-1]["writer"] is None)
                await second_place.type("again")
                await reader.wait_text("again")
                assert reader.text == "1> mine\r\n2> again"


async def test_the_last_lines_are_shown_first(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        uuid = await fleet.start_domain("host-a")
        await wait_for(lambda: printed(fleet, uuid, 40))
        await fleet["host-a"].call("suspend-domain", {"domain": "ldg1"})
        text = fleet.console("host-a", uuid)
        for lines in (0, 1, 10, 1000):
            async with visit(fleet["host-a"], replay_lines=lines) as visitor:
                expected = "".join(text.splitlines(keepends=True)[-lines:] if lines else [])
                if expected.endswith("\n") and lines != 1000:
                    expected = expected.partition("\n")[2]  # the last line is the unfinished one
                await visitor.wait(lambda: visitor.text == expected)  # noqa: B023
                # connected and silent
                await fleet["host-a"].call("status")
                assert visitor.text == expected


async def printed(fleet: Fleet, uuid: str, lines: int) -> bool:
    return fleet.console("host-a", uuid).count("\n") >= lines


async def test_a_domain_that_stops_ends_its_consoles(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        uuid = await fleet.start_domain("host-a", **ECHO)
        async with visit(fleet["host-a"]) as one, visit(fleet["host-a"]) as other:
            await one.type("last words")
            await one.wait_text("last words")
            await fleet["host-a"].call("stop-domain", {"domain": "ldg1"})
            for visitor in (one, other):
                await visitor.wait(lambda v=visitor: v.ended)
                assert visitor.ended is not None
                assert visitor.ended["end"] == "stopped"
                assert visitor.text == "1> last words"
        async with visit(fleet["host-a"]) as refused:
            assert isinstance(refused.error, WrongState)
        await fleet["host-a"].call("start-domain", {"domain": "ldg1"})
        async with visit(fleet["host-a"]) as again:
            await again.wait_text("1> ")
            # a process that ends by itself
            domain = (await fleet["host-a"].domains())["ldg1"]
            os.kill(domain["pid"], signal.SIGKILL)
            await again.wait(lambda: again.ended)
        async with visit(fleet["host-a"], "ldg7") as unknown:
            assert isinstance(unknown.error, NotFound)
        assert not list((fleet["host-a"].folder / "run" / "domains").glob(f"{uuid}/console.log"))


async def test_a_client_that_is_killed_frees_its_place_at_once(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a", **ECHO)
        command = [sys.executable, "-c", "from ldmd.cli import main; main()", "console", "ldg1"]
        environment = os.environ | {"LDM_SOCKET": str(fleet["host-a"].socket)}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        ) as client:
            assert client.stdin is not None
            client.stdin.write(b"from a pipe\r")
            client.stdin.flush()
            async with visit(fleet["host-a"], access="read") as reader:
                await reader.wait_text("2> ")
            async with visit(fleet["host-a"]) as visitor:
                assert visitor.of("opened")[0]["writer"]
                client.kill()
                await visitor.wait(lambda: visitor.of("writer"))
                assert visitor.of("writer")[0]["writer"] is None
                await visitor.type("mine")
                await visitor.wait_text("mine")


async def test_who_never_reads_costs_a_bounded_amount_and_holds_nobody_up(tmp_path: Path) -> None:
    """Its domain prints, moves, and its console is shown to others; what it was not shown comes when it reads."""
    async with make_fleet(tmp_path) as fleet:
        uuid = await fleet.start_domain("host-a")
        manager = fleet["host-a"]
        path = manager.folder / "run" / "domains" / uuid / "console.log"
        async with (
            connect(manager.socket) as client,
            open_console(client, "ldg1", replay_lines=1000) as stream,
        ):
            async with visit(manager, replay_lines=0, access="read") as other:
                assert other.of("opened")[0]["writer"], "the one who does not read has begun"
                first = await stream.next_event()  # and is shown what follows from here on
                assert first["event"] == "opened"
                with path.open("ab") as console, path.open("rb") as printed:
                    before_kib = anonymous_kib(manager)
                    for number in range(PRINTED_BYTES // 100):  # as if the domain had printed it
                        console.write(f"{number:099d}\n".encode())
                    console.flush()
                    await other.wait(lambda: len(other.output) > PRINTED_BYTES)
                    assert anonymous_kib(manager) - before_kib < GROWTH_KIB_MAX
                    await manager.call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
                    await other.wait(lambda: len(other.of("opened")) == 2)
                    at_the_source = printed.read()
            late = Visitor(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(late.listen)
                await late.wait(lambda: len(late.of("opened")) == 1)
                assert late.output.startswith(at_the_source)
                await late.wait(lambda: late.output[len(at_the_source) :].count(b"\n") > 5)
                nursery.cancel_scope.cancel()
            assert late.skipped_bytes == 0


def anonymous_kib(manager: Manager) -> int:
    assert manager.process is not None
    text = Path(f"/proc/{manager.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))


async def test_a_paste_is_taken_at_the_domains_pace(tmp_path: Path) -> None:
    """A megabyte to a suspended domain waits in the client, but for a few buffers; then all of it is read in order."""
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a", variables={"clock-mhz": "1000"}, **ECHO)
        manager = fleet["host-a"]
        text = "".join(f"{n:06d} " for n in range(PASTE_BYTES // 7 // 10))
        await manager.call("suspend-domain", {"domain": "ldg1"})
        async with visit(manager) as visitor, trio.open_nursery() as nursery:
            sent = trio.Event()

            async def paste() -> None:
                await visitor.type(text)
                sent.set()

            nursery.start_soon(paste)
            await manager.call("list-domains")
            assert visitor.of("taken") == []
            await manager.call("resume-domain", {"domain": "ldg1"})
            await visitor.wait(lambda: len(visitor.output) >= len(text) + 3)
            await sent.wait()
            assert visitor.text == "1> " + text
            await manager.call("list-domains")


async def test_lines_that_are_none_end_the_session_with_a_reason(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a", **ECHO)
        long = base64.b64encode(bytes(20_000)).decode()
        for line in (
            b"x\n",
            b"[]\n",
            b'{"input": 1}\n',
            b'{"input": "?"}\n',
            b'{"verb": "status"}\n',
            encode_line({"input": long}),
            b'"' + b"x" * 40_000 + b'"\n',
        ):
            async with visit(fleet["host-a"]) as visitor:
                await visitor.stream.stream.send_all(line)
                await visitor.wait(lambda: visitor.error)
                assert isinstance(visitor.error, BadRequest), line[:20]
        for arguments in ({"access": "admin"}, {"replay_lines": 5000}, {"domain": "ldg1", "x": 1}):
            with pytest.raises(BadRequest):
                await fleet["host-a"].call("console", {"domain": "ldg1"} | arguments)
        assert "bug" not in fleet["host-a"].log()


async def test_consoles_that_are_left_open_shut_nobody_out(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a", **ECHO)

        async def stay(*, task_status: trio.TaskStatus[None]) -> None:
            async with visit(fleet["host-a"], access="read") as visitor:
                assert visitor.error is None
                task_status.started()
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for _ in range(SESSIONS_MAX):
                await nursery.start(stay)
            async with visit(fleet["host-a"]) as visitor:
                assert isinstance(visitor.error, Busy)
            await fleet["host-a"].call("list-domains")
            nursery.cancel_scope.cancel()
        async with visit(fleet["host-a"]) as visitor:
            assert visitor.error is None


async def test_consoles_max_is_kept(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", start=False) as fleet:
        path = fleet["host-a"].folder / "ldmd.toml"
        path.write_text(path.read_text().replace("[resources]", "[resources]\nconsoles-max = 1"))
        await fleet["host-a"].start()
        await fleet.start_domain("host-a", **ECHO)
        with pytest.raises(Busy, match="consoles"):
            await fleet.start_domain("host-a", name="ldg2")
