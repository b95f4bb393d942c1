"""The promise on real processes: either manager killed, or the link cut, around every action of every phase.

Afterwards, without a person: one running copy, nothing lost of it, no other process, both journals agreeing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.errors import LdmdError
from ldmd.hypervisor.emulated import ORACLE_LAYOUT
from ldmd.hypervisor.oracle import OracleLayout
from ldmd.hypervisor.qemu import ORACLE_LAYOUTS
from tests.managers import Fleet, Manager, make_fleet, wait_for
from tests.migration.oracle import assert_oracle

SOURCE_POINTS = [
    "connect",
    "send-check",
    "record-preparing",
    "send-prepare",
    "suspend-domain",
    "send-state",
    "send-digest",
    "record-granted",
    "send-handoff",
    "record-completed",
    "destroy-domain",
    "send-released",
    "record-settled",
]
TARGET_POINTS = [
    "run-checks",
    "send-checked",
    "record-prepared",
    "create-domain",
    "send-prepared",
    "install-state",
    "send-installed",
    "probe-domain",
    "record-committed",
    "resume-domain",
    "record-running",
    "send-handoff-done",
    "record-settled",
    "send-settled",
]
POINTS = [
    f"{side}.{action}.{when}"
    for side, actions in (("source", SOURCE_POINTS), ("target", TARGET_POINTS))
    for action in actions
    for when in ("before", "after")
]


QEMU_POINTS = [
    "source.send-check.after",
    "target.run-checks.before",
    "source.suspend-domain.after",
    "target.create-domain.after",
    "source.send-state.before",
    "target.install-state.after",
    "source.send-handoff.after",
    "target.record-committed.after",
    "target.resume-domain.after",
]
"""Each side in each phase, and the middle of the handoff."""


@pytest.mark.parametrize("fault", ["crash", "cut"])
@pytest.mark.parametrize("point", POINTS)
async def test_one_copy_runs_after(point: str, fault: str, tmp_path: Path) -> None:
    await go_through(point, fault, tmp_path, ORACLE_LAYOUT, {})


@pytest.mark.qemu
@pytest.mark.parametrize("fault", ["crash", "cut"])
@pytest.mark.parametrize("point", QEMU_POINTS)
async def test_one_copy_runs_after_on_qemu(point: str, fault: str, tmp_path: Path) -> None:
    domain = {"memory_mib": 16, "hypervisor": "qemu", "machine": "pc"}
    await go_through(point, fault, tmp_path, ORACLE_LAYOUTS["pc.ram"], domain)


async def go_through(
    point: str, fault: str, tmp_path: Path, layout: OracleLayout, domain: dict[str, Any]
) -> None:
    victim = "host-a" if point.startswith("source") else "host-b"
    armed = f'[faults]\nallowed = true\narmed = ["{point}={fault}"]\n'
    async with make_fleet(tmp_path, extra={victim: armed}) as fleet, trio.open_nursery() as nursery:
        uuid = await fleet.start_domain("host-a", **domain)
        nursery.start_soon(migrate_into_the_fault, fleet)
        await wait_for(lambda: fired(fleet[victim], f"fault point {point}: {fault}"))
        if fault == "crash":
            await fleet[victim].wait_dead()
            fleet.configure()  # nothing armed any more
            await fleet[victim].start()
        owner = await settled_owner(fleet)
        await assert_oracle(fleet, owner, uuid, layout=layout)
        assert await next_migration_succeeds(fleet, owner)


async def fired(victim: Manager, line: str) -> bool:
    return line in victim.log()


async def migrate_into_the_fault(fleet: Fleet) -> None:
    """The manager that is asked may be the one that dies: no answer is one too."""
    with contextlib.suppress(LdmdError):
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})


async def settled_owner(fleet: Fleet) -> str:
    """Waits until one copy runs, no other process of it lives, and both journals say the same."""

    async def settled() -> str | None:
        copies = await fleet.copies()
        decisions = {}
        for manager in fleet.managers.values():
            for migration in (await manager.call("list-migrations"))["migrations"]:
                if not migration["settled"]:
                    return None
                decisions[manager.name] = migration["decision"]
        if list(copies.values()) != ["running"]:
            return None
        owner = next(iter(copies))
        wanted = "source" if owner == "host-a" else "target"
        assert set(decisions.values()) <= {wanted}, (owner, decisions)
        return owner

    owner: str = await wait_for(settled)
    processes = list(fleet.folder.glob("*/run/domains/*/process.json"))
    assert [p.parts[-5] for p in processes] == [owner]
    return owner


async def next_migration_succeeds(fleet: Fleet, owner: str) -> bool:
    other = "host-b" if owner == "host-a" else "host-a"
    await fleet[owner].call("migrate-domain", {"domain": "ldg1", "peer": other})
    return await fleet.copies() == {other: "running"}
