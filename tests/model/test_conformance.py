"""Recordings of real managers are paths of the model, and recordings that were tampered with are not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from protocol.source import SOURCE
from protocol.target import TARGET
from tests.faults.test_promise import fired, migrate_into_the_fault, settled_owner
from tests.managers import Fleet, make_fleet, wait_for
from tests.model.conformance import Entry, _Replay, read, replay
from tests.model.world import Kind, Model

TRACED = "[faults]\nallowed = true\ntrace = true\n"
BOTH = {"host-a": TRACED, "host-b": TRACED}

FAULTS = [
    "source.connect.after=cut",
    "source.suspend-domain.before=fail",
    "source.send-state.before=flip:9",
    "source.record-granted.after=fail",
    "source.record-granted.after=crash",
    "source.send-handoff.after=cut",
    "source.record-completed.after=crash",
    "source.destroy-domain.before=fail",
    "target.record-prepared.after=fail",
    "target.receive-handoff.before=crash",
    "target.record-committed.before=fail",
    "target.record-committed.after=crash",
    "target.resume-domain.before=fail",
    "target.resume-domain.before=unknown",
    "target.resume-domain.after=unknown",
    "target.resume-domain.after=crash",
    "target.record-running.after=crash",
    "target.send-handoff-done.after=cut",
]


def recordings(fleet: Fleet) -> list[list[Entry]]:
    return list(read(*fleet.folder.glob("*/run/trace.jsonl")).values())


def assert_paths(fleet: Fleet, count: int) -> None:
    found = recordings(fleet)
    assert len(found) == count
    for entries in found:
        mismatch = replay(entries)
        assert mismatch is None, str(mismatch)


async def settled(fleet: Fleet) -> bool:
    for manager in fleet.managers.values():
        for migration in (await manager.call("list-migrations"))["migrations"]:
            if not migration["settled"]:
                return False
    return True


@pytest.mark.parametrize("verbs", [("start", "suspend"), ("start",), (), None], ids=str)
async def test_each_kind_of_domain(tmp_path: Path, verbs: Sequence[str] | None) -> None:
    """Suspended, running, bound, inactive."""
    async with make_fleet(tmp_path, extra=BOTH) as fleet:
        await fleet.start_domain("host-a")
        call = fleet["host-a"].call
        for verb in {("start", "suspend"): ["suspend"], (): ["stop"], None: ["stop", "unbind"]}.get(
            verbs, []
        ):
            await call(f"{verb}-domain", {"domain": "ldg1"})
        await call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        await wait_for(lambda: settled(fleet))
        assert_paths(fleet, 1)


async def test_a_cancelled_one(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, extra=BOTH) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fleet["host-a"].call("arm-fault", {"fault": "source.send-state.after=hang"})
        nursery.start_soon(migrate_into_the_fault, fleet)
        await wait_for(lambda: fired(fleet["host-a"], "fault point"))
        await fleet["host-a"].call("cancel-migration", {"domain": "ldg1"})
        await wait_for(lambda: settled(fleet))
        assert_paths(fleet, 1)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_faulted_one(tmp_path: Path, fault: str) -> None:
    victim = "host-a" if fault.startswith("source") else "host-b"
    async with make_fleet(tmp_path, extra=BOTH) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fleet[victim].call("arm-fault", {"fault": fault})
        nursery.start_soon(migrate_into_the_fault, fleet)
        await wait_for(lambda: fired(fleet[victim], f"fault point {fault.partition('=')[0]}"))
        if fault.endswith("crash"):
            await fleet[victim].wait_dead()
            await fleet[victim].start()
        await settled_owner(fleet)
        assert_paths(fleet, 1)


# ---- a replay that cannot fail proves nothing ------------------------------------------------------------


def walk(seed: int) -> list[Entry]:
    """A recording made by the model itself, of a random run in which no fault comes."""
    chance = random.Random(seed)
    model = Model.of(Kind.RUNNING, SOURCE, TARGET)
    replaying = _Replay(model, (), deaths=False)
    entries = [Entry(0, "source", "m", "takes START", "connecting")]
    world = model.start
    while not model.is_good_end(world):
        steps = [step for step in model.steps(world) if not step.fault]
        patient = [step for step in steps if "DEADLINE" not in step.label]
        step = chance.choice(patient if patient and chance.random() < 0.95 else steps)
        if (token := replaying._token(step)) is not None:
            entries.append(Entry(len(entries), token[0], "m", token[1]))
        world = step.world
        if len(entries) > 300:
            return walk(seed + 1000)
    return entries


@pytest.mark.parametrize("seed", range(6))
def test_the_models_own_runs_replay(seed: int) -> None:
    entries = walk(seed)
    assert len(entries) > 10
    assert replay(entries) is None


def _drop(entries: list[Entry], place: int) -> list[Entry]:
    return entries[:place] + entries[place + 1 :]


def _repeat(entries: list[Entry], place: int) -> list[Entry]:
    return entries[: place + 1] + entries[place:]


def _swap(entries: list[Entry], place: int) -> list[Entry]:
    """With the next step of the same side."""
    mine = entries[place]
    later = range(place + 1, len(entries))
    other = next(n for n in later if entries[n].side == mine.side and entries[n].step != mine.step)
    changed = list(entries)
    changed[place], changed[other] = changed[other], changed[place]
    return changed


@pytest.mark.parametrize("tamper", [_drop, _repeat, _swap])
async def test_what_was_tampered_with_does_not_replay(
    tmp_path: Path, tamper: Callable[[list[Entry], int], list[Entry]]
) -> None:
    async with make_fleet(tmp_path, extra=BOTH) as fleet:
        await fleet.start_domain("host-a")
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        await wait_for(lambda: settled(fleet))
        (entries,) = recordings(fleet)
    assert replay(entries) is None
    places: list[Any] = [
        n for n, e in enumerate(entries[:-4]) if e.step.startswith(("record ", "send "))
    ]
    assert len(places) > 10
    for place in places:
        assert replay(tamper(entries, place)) is not None, entries[place]


def test_another_state_does_not_replay() -> None:
    entries = walk(1)
    place = next(n for n, e in enumerate(entries) if e.step == "takes CHECKS_PASSED")
    assert replay(entries) is None
    entries[place] = attrs.evolve(entries[place], state="resuming")
    mismatch = replay(entries)
    assert mismatch is not None
    assert "! source takes CHECKS_PASSED -> resuming" in str(mismatch)
