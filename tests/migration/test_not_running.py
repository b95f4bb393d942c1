"""Domains that do not run, through faults: either manager killed, or the link cut, in each phase that they have.

Bound and inactive ones have a definition alone, a suspended one has RAM that must not begin to change.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.errors import LdmdError
from tests.managers import Fleet, make_fleet, wait_for
from tests.migration.oracle import assert_oracle

ALLOWED = '[faults]\nallowed = true\n[hypervisors]\nenabled = ["emulated"]\n'

POINTS = (
    "source.send-check.after",
    "target.run-checks.before",
    "source.record-preparing.after",
    "target.record-prepared.after",
    "target.create-domain.after",
    "source.record-granted.after",
    "target.record-committed.after",
    "target.record-running.after",
    "source.record-completed.after",
)
"""Each side in check, prepare and handoff, and each record of the handoff."""

STATES = {
    "inactive": ("inactive", None),
    "bound": ("bound", None),
    "suspended": ("active", "suspended"),
}
"""Name -> what a listing says of it: state, run state."""


async def make_domain(fleet: Fleet, state: str) -> str:
    """In that state on host-a; returns its uuid."""
    uuid = await fleet.start_domain("host-a")
    verbs = {
        "inactive": ("stop-domain", "unbind-domain"),
        "bound": ("stop-domain",),
        "suspended": ("suspend-domain",),
    }
    for verb in verbs[state]:
        await fleet["host-a"].call(verb, {"domain": "ldg1"})
    return uuid


async def ask(fleet: Fleet) -> None:
    """The manager that is asked may be the one that dies; one in doubt answers when it is settled."""
    with contextlib.suppress(LdmdError):
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})


async def whereabouts(fleet: Fleet) -> dict[str, tuple[str, str | None]]:
    found = {}
    for manager in fleet.managers.values():
        if (domain := (await manager.domains()).get("ldg1")) is not None:
            found[manager.name] = (domain["state"], domain["run_state"])
    return found


async def settled(fleet: Fleet) -> str | None:
    """The one manager that has it, once both journals are settled and say so; None before."""
    decisions: dict[str, set[str]] = {}
    for manager in fleet.managers.values():
        for migration in (await manager.call("list-migrations"))["migrations"]:
            if not migration["settled"]:
                return None
            decisions.setdefault(migration["migration"], set()).add(migration["decision"])
    assert all(len(found) == 1 for found in decisions.values()), decisions
    owners = list(await whereabouts(fleet))
    return owners[0] if len(owners) == 1 else None


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["crash", "cut"])
@pytest.mark.parametrize("state", STATES)
async def test_it_is_in_one_place_and_as_it_was(state: str, fault: str, tmp_path: Path) -> None:
    async with make_fleet(tmp_path, extra={"host-a": ALLOWED, "host-b": ALLOWED}) as fleet:
        uuid = await make_domain(fleet, state)
        definition = await fleet["host-a"].call("show-definition", {"domain": "ldg1"})
        moves: dict[str, Any] = {}
        for point in POINTS:
            victim = fleet["host-a" if point.startswith("source") else "host-b"]
            await victim.call("arm-fault", {"fault": f"{point}={fault}"})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, fleet)
                if fault == "crash":
                    await victim.wait_dead()
                    await victim.start()
            owner = await wait_for(lambda: settled(fleet))
            assert await whereabouts(fleet) == {owner: STATES[state]}, point
            shown = await fleet[owner].call("show-definition", {"domain": "ldg1"})
            assert shown == definition, point
            moves[point] = owner
            # the next migration of it succeeds, and it is back for the next point
            for at, other in (("host-a", "host-b"), ("host-b", "host-a")):
                if at in await whereabouts(fleet):
                    await fleet[at].call("migrate-domain", {"domain": "ldg1", "peer": other})
                    assert await whereabouts(fleet) == {other: STATES[state]}, point
        assert set(moves.values()) == {"host-a", "host-b"}, moves
        await use(fleet, state)
        await assert_oracle(fleet, "host-a", uuid)


async def use(fleet: Fleet, state: str) -> None:
    """It can be run."""
    verbs = {
        "inactive": ("bind-domain", "start-domain"),
        "bound": ("start-domain",),
        "suspended": ("resume-domain",),
    }
    for verb in verbs[state]:
        await fleet["host-a"].call(verb, {"domain": "ldg1"})
    assert await fleet.copies() == {"host-a": "running"}
