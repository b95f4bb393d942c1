"""A manager and a peer that was written from ``docs/protocol.md``: what the document says is enough to move a domain."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from ldmd.hypervisor.emulated import ORACLE_LAYOUT
from ldmd.hypervisor.oracle import check_memory
from tests.managers import Fleet, make_fleet
from tests.migration.oracle import assert_oracle
from tests.protocol.foreign import ForeignTarget, send_domain

TO_DOMAIN_STATE = {
    "running": (),
    "suspended": ("suspend-domain",),
    "bound": ("stop-domain",),
    "inactive": ("stop-domain", "unbind-domain"),
}


async def move_there(fleet: Fleet) -> ForeignTarget:
    """The foreign side is in host-b's place, with its certificate."""
    host_b = fleet["host-b"]
    with socket.create_server(("127.0.0.1", host_b.port)) as listener, trio.fail_after(60):
        taken = ForeignTarget(listener, host_b.folder / "tls", "host-b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, taken.take_one)
            result = await fleet["host-a"].call(
                "migrate-domain", {"domain": "ldg1", "peer": "host-b"}
            )
    assert result["outcome"] == "completed"
    assert result["digest_source"] == result["digest_target"]
    assert await fleet["host-a"].domains() == {}
    return taken


async def move_back(fleet: Fleet, taken: ForeignTarget) -> None:
    host_a, tls = fleet["host-a"], fleet["host-b"].folder / "tls"
    with trio.fail_after(60):
        await trio.to_thread.run_sync(send_domain, host_a.port, tls, "host-b", taken)
    for migration in (await host_a.call("list-migrations"))["migrations"]:
        assert (migration["decision"], migration["settled"]) == ("target", True)


@pytest.mark.parametrize("state", TO_DOMAIN_STATE)
async def test_it_moves_there_and_back(state: str, tmp_path: Path) -> None:
    async with make_fleet(tmp_path, start=False) as fleet:
        host_a = fleet["host-a"]
        await host_a.start()
        uuid = await fleet.start_domain("host-a")
        for verb in TO_DOMAIN_STATE[state]:
            await host_a.call(verb, {"domain": "ldg1"})
        before = (await host_a.domains())["ldg1"]
        definition = await host_a.call("show-definition", {"domain": "ldg1"})

        taken = await move_there(fleet)
        assert taken.check["run_state"] == state
        for ram in taken.regions:
            report = check_memory(memoryview(ram), ORACLE_LAYOUT)
            assert report.ok, report.sentence
        await move_back(fleet, taken)

        after = (await host_a.domains())["ldg1"]
        for key in ("uuid", "state", "run_state"):
            assert after[key] == before[key], key
        assert await host_a.call("show-definition", {"domain": "ldg1"}) == definition
        if state == "running":
            await assert_oracle(fleet, "host-a", uuid)
