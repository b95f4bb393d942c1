"""Consoles of QEMU's domains: a ROM that echoes, and the Forth prompt of a SPARCstation's OpenBIOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.consoles.test_moves import assert_echoed, migrate
from tests.consoles.visitor import visit
from tests.managers import make_fleet

ECHO: dict[str, Any] = {
    "hypervisor": "qemu",
    "machine": "pc",
    "firmware": "echo",
    "memory_mib": 16,
}
SPARC: dict[str, Any] = {
    "hypervisor": "qemu",
    "machine": "SS-5",
    "firmware": "default",
    "memory_mib": 32,
    "variables": {"auto-boot?": "false"},
}


@pytest.mark.qemu
async def test_keys_and_output_go_on_there_and_back(tmp_path: Path) -> None:
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

            await visitor.wait_text("1> ")
            nursery.start_soon(type_on)
            for at, other in (("host-a", "host-b"), ("host-b", "host-a")):
                await migrate(fleet, at, other)
                before = len(visitor.output)
                await visitor.wait(lambda before=before: len(visitor.output) > before + 20)
            moving = False
            await visitor.wait(lambda: len(visitor.output) >= len("1> " + typed))
            assert_echoed(visitor, typed)


@pytest.mark.qemu
async def test_a_later_manager_types_too(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a", **ECHO)
        async with visit(fleet["host-a"]) as visitor:
            await visitor.type("before\r")
            await visitor.wait_text("2> ")
        await fleet["host-a"].stop()
        await fleet["host-a"].start()
        async with visit(fleet["host-a"]) as visitor:
            await visitor.type("after\r")
            await visitor.wait_text("3> ")
            assert_echoed(visitor, "before\rafter\r")


@pytest.mark.sparc
@pytest.mark.slow
async def test_a_forth_prompt_is_talked_to(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", **SPARC)
        async with visit(fleet["host-a"]) as visitor:
            await visitor.wait_text("0 > ", timeout_seconds=120)
            await visitor.type("2 3 + .\r")
            await visitor.wait_text("2 3 + . 5")
            await visitor.type(': greet ." forth was " d# 42 . ;\r')
            await visitor.wait_text("ok")
            await migrate(fleet, "host-a", "host-b")
            await visitor.type("greet\r")
            await visitor.wait_text("greet forth was 2a")
            assert [e["host"] for e in visitor.of("opened")] == ["host-a", "host-b"]
