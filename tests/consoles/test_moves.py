"""A session before, during and after migrations, between real managers: no gap, no repeat, every key once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.errors import LinkError, NotAllowed, NotFound
from ldmd.hypervisor.oracle import check_console
from tests.consoles.visitor import Visitor, visit
from tests.managers import Fleet, make_fleet, wait_for

ECHO: dict[str, Any] = {"firmware": "echo"}
FAR_LINES = 20


def assert_echoed(visitor: Visitor, typed: str) -> None:
    """Every key once, in order; prompts count up."""
    text = visitor.text
    number = 1
    for line in typed.split("\r"):
        prompt = f"{number}> {line}"
        assert text.startswith(prompt), (prompt, text[:80])
        text = text[len(prompt) :].removeprefix("\r\n")
        number += 1
    assert text == ""


async def migrate(fleet: Fleet, source: str, target: str) -> None:
    await fleet[source].call("migrate-domain", {"domain": "ldg1", "peer": target})


async def test_keys_and_output_go_on_there_and_back(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", **ECHO)
        async with visit(fleet["host-a"]) as visitor:
            await visitor.type("here\r")
            await visitor.wait_text("2> ")
            at, other = "host-a", "host-b"
            typed = "here\r"
            for number in range(3, 7):
                await migrate(fleet, at, other)
                await visitor.type(f"on {other}\r")
                typed += f"on {other}\r"
                await visitor.wait_text(f"{number}> ")
                at, other = other, at
            assert [e["host"] for e in visitor.of("moved")] == ["host-b", "host-a"] * 2
            assert [e["host"] for e in visitor.of("opened")] == [
                "host-a",
                *["host-b", "host-a"] * 2,
            ]
            assert visitor.of("notice") == []
            assert_echoed(visitor, typed)
        for manager in fleet.managers.values():
            assert "bug" not in manager.log()
        assert "opens the console of ldg1" in fleet["host-a"].log()
        assert "@host-a opens the console of ldg1" in fleet["host-b"].log()


async def test_somebody_who_types_on_and_on_does_not_notice(tmp_path: Path) -> None:
    """Keys are typed at every moment of four migrations; each is echoed once."""
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", **ECHO)
        async with visit(fleet["host-a"]) as visitor, trio.open_nursery() as nursery:
            typed = ""
            moving = True

            async def type_on() -> None:
                nonlocal typed
                number = 0
                while moving:
                    piece = f"{number} "
                    typed += piece
                    await visitor.type(piece)
                    number += 1
                    await trio.sleep(0.001)

            nursery.start_soon(type_on)
            for at, other in (("host-a", "host-b"), ("host-b", "host-a")) * 2:
                await migrate(fleet, at, other)
                before = len(visitor.output)
                await visitor.wait(lambda before=before: len(visitor.output) > before + 20)
            moving = False
            await visitor.wait(lambda: len(visitor.output) >= len("1> " + typed))
            assert_echoed(visitor, typed)
            assert sum(e["bytes"] for e in visitor.of("taken")[-1:]) == len(typed)


async def test_the_count_has_no_gap_and_no_repeat(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        async with visit(fleet["host-a"], replay_lines=0) as visitor:
            for at, other in (("host-a", "host-b"), ("host-b", "host-a"), ("host-a", "host-b")):
                before = visitor.text.count("\n")
                await visitor.wait(lambda n=before: visitor.text.count("\n") > n + FAR_LINES)
                await migrate(fleet, at, other)
            before = visitor.text.count("\n")
            await visitor.wait(lambda: visitor.text.count("\n") > before + FAR_LINES)
            assert visitor.skipped_bytes == 0
            report = check_console(visitor.text)
            assert report.contiguous, report.sentence


async def test_a_console_of_a_domain_that_moved_before_is_opened_by_its_name(
    tmp_path: Path,
) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", **ECHO)
        arguments = {"domain": "ldg1", "peer": "host-b", "new_name": "ldg9"}
        await fleet["host-a"].call("migrate-domain", arguments)
        async with visit(fleet["host-a"]) as visitor:
            await visitor.type("still\r")
            await visitor.wait_text("2> ")
            assert visitor.of("opened")[0]["host"] == "host-b"
            async with visit(fleet["host-b"], "ldg9") as other:
                assert other.of("opened")[0]["writer"].endswith("@host-a")
            await fleet["host-b"].call("stop-domain", {"domain": "ldg9"})
            await visitor.wait(lambda: visitor.ended)
            assert visitor.ended == {
                "event": "ended",
                "end": "stopped",
                "sentence": "ldg9 has stopped",
            }


async def test_a_peer_that_the_domain_did_not_come_from_is_refused_unless_it_may(
    tmp_path: Path,
) -> None:
    """a to b to c: host-c shows it to host-b, and to host-a only with may-console."""
    async with make_fleet(tmp_path, "host-a", "host-b", "host-c", start=False) as fleet:
        path = fleet["host-c"].folder / "ldmd.toml"
        forbidding = path.read_text()
        async with trio.open_nursery() as nursery:
            for manager in fleet.managers.values():
                nursery.start_soon(manager.start)
        await fleet.start_domain("host-a", **ECHO)
        async with visit(fleet["host-a"]) as visitor:
            await visitor.wait_text("1> ")
            await migrate(fleet, "host-a", "host-b")
            await visitor.wait(lambda: len(visitor.of("opened")) == 2)
            await migrate(fleet, "host-b", "host-c")
            await visitor.wait(lambda: visitor.error)
            assert isinstance(visitor.error, NotAllowed)
            assert visitor.error.sentence.startswith("host-c does not show that console to host-a")
        async with visit(fleet["host-b"]) as visitor:
            await visitor.type("from b\r")
            await visitor.wait_text("2> ")
        path.write_text(forbidding.replace("[peers.host-a]", "[peers.host-a]\nmay-console = true"))
        await fleet["host-c"].stop()
        await fleet["host-c"].start()
        async with visit(fleet["host-a"]) as visitor:
            # host-a asks host-b, which says where it went
            assert visitor.of("moved")[0]["host"] == "host-c"
            await visitor.type("from a\r")
            await visitor.wait_text("3> ")


async def test_the_keepers_manager_is_restarted(tmp_path: Path) -> None:
    """The session waits for it, and goes on where it was."""
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        async with visit(fleet["host-a"]) as visitor:
            await migrate(fleet, "host-a", "host-b")
            await visitor.wait(lambda: len(visitor.of("opened")) == 2)
            for number in (signal.SIGTERM, signal.SIGKILL):
                await fleet["host-b"].stop(number)
                await visitor.wait(lambda: visitor.of("notice"))
                visitor.events = [
                    e for e in visitor.events if e["event"] not in ("notice", "opened")
                ]
                await fleet["host-b"].start()
                await visitor.wait(lambda: visitor.of("opened"))
                before = visitor.text.count("\n")
                await visitor.wait(lambda n=before: visitor.text.count("\n") > n + FAR_LINES)
            report = check_console(visitor.text)
            assert report.contiguous, report.sentence
            assert visitor.skipped_bytes == 0


async def test_a_keeper_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", **ECHO)
        await migrate(fleet, "host-a", "host-b")
        await fleet["host-b"].stop()
        async with visit(fleet["host-a"]) as visitor:
            assert isinstance(visitor.error, LinkError)
            assert "the console of ldg1 on host-b cannot be reached" in visitor.error.sentence
        await fleet["host-b"].start()
        await fleet["host-b"].call("stop-domain", {"domain": "ldg1"})
        await fleet["host-b"].call("unbind-domain", {"domain": "ldg1"})
        await fleet["host-b"].call("remove-domain", {"domain": "ldg1"})
        async with visit(fleet["host-a"]) as visitor:
            assert isinstance(visitor.error, NotFound)


async def test_a_migration_that_is_given_up_is_not_seen(tmp_path: Path) -> None:
    failing = '[faults]\nallowed = true\narmed = ["target.install-state.before=fail"]\n'
    async with make_fleet(tmp_path, extra={"host-b": failing}) as fleet:
        await fleet.start_domain("host-a", **ECHO)
        async with visit(fleet["host-a"]) as visitor:
            await visitor.type("a\r")
            await visitor.wait_text("2> ")
            with pytest.raises(Exception, match="ldg1 stays on host-a"):
                await migrate(fleet, "host-a", "host-b")
            await visitor.type("b\r")
            await visitor.wait_text("3> ")
            assert_echoed(visitor, "a\rb\r")
            assert visitor.of("moved") == []


async def test_keys_typed_while_the_handoff_is_in_doubt_wait(tmp_path: Path) -> None:
    """The copy here is suspended and may be stale: no key goes into it, and none is lost."""
    doubting = '[faults]\nallowed = true\narmed = ["target.send-handoff-done.before=crash"]\n'
    async with make_fleet(tmp_path, extra={"host-b": doubting}) as fleet:
        await fleet.start_domain("host-a", **ECHO)
        async with visit(fleet["host-a"]) as visitor:
            await visitor.wait_text("1> ")
            async with trio.open_nursery() as nursery:

                async def move() -> None:
                    try:
                        await migrate(fleet, "host-a", "host-b")
                    except Exception as error:
                        assert "granted" in str(error)  # noqa: PT017

                nursery.start_soon(move)
                await fleet["host-b"].wait_dead()
                await visitor.type("kept\r")
                fleet["host-b"].configure({"host-a": fleet["host-a"].port})
                await fleet["host-b"].start()
            await wait_for(lambda: fleet.copies_at("host-b"))
            await visitor.wait_text("2> ")
            assert_echoed(visitor, "kept\r")
