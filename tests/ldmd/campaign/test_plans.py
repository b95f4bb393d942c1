"""Plans are complete, can be armed as they stand, and are the same for the same seed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ldmd import config
from ldmd.campaign.logs import point_and_kind
from ldmd.campaign.pair import CAMPAIGN_KINDS, write_manager
from ldmd.campaign.plans import (
    LATE_POINTS,
    STRAIGHT,
    WAYS,
    Deed,
    Plan,
    find_ways,
    list_faults,
    plan_all,
    plan_random,
)
from ldmd.campaign.wire import open_wire
from ldmd.fault_points import POINTS, parse


def every_fault(plan: Plan) -> list[str]:
    return [
        fault
        for way in plan.ways
        for fault in (
            *way.faults,
            *way.recovery_faults,
            *(step.after for step in way.steps if step.after is not None),
        )
    ]


def test_there_is_a_run_for_each_kind_at_each_point() -> None:
    wanted = {(point, kind) for point, kinds in POINTS.items() for kind in kinds}
    names = [plan.name for plan in plan_all()]
    assert {point_and_kind(name) for name in names} == wanted
    assert len(names) == len(wanted)


def test_every_fault_of_every_plan_can_be_armed() -> None:
    for plan in [*plan_all(), *plan_random(500, seed=7)]:
        for fault in every_fault(plan):
            assert parse(fault).point == fault.partition("=")[0]


def test_the_fault_that_must_fire_is_armed_last_on_every_way() -> None:
    for plan in plan_all():
        assert plan.wanted == plan.name
        assert all(way.faults[-1] == plan.wanted for way in plan.ways)


def test_the_first_way_is_the_one_that_names_the_point_and_all_others_follow() -> None:
    for way, patterns in WAYS:
        for pattern in patterns:
            ways = find_ways(pattern.replace("*", "before") + "=crash")
            assert ways[0] == ways[-1]
            assert {id(w) for w in ways} == {id(w) for w, _ in WAYS}
            if pattern != "*":
                assert ways[0] is way
    assert find_ways("source.connect.before=crash")[0] is STRAIGHT


def test_every_pattern_of_the_ways_names_points_that_there_are() -> None:
    for _, patterns in WAYS:
        for pattern in patterns:
            assert list_faults(pattern), pattern


def test_a_pattern_may_mean_points_or_whole_faults() -> None:
    assert {point_and_kind(f)[0] for f in list_faults("target.send-*.after")} >= {
        "target.send-settled.after"
    }
    assert all(f.endswith("=crash") for f in list_faults("*=crash"))
    assert len(list_faults("*=crash")) == sum("crash" in kinds for kinds in POINTS.values())
    assert list_faults("nothing*") == []


def test_the_same_seed_gives_the_same_plan() -> None:
    assert list(plan_random(50, seed=3)) == list(plan_random(50, seed=3))
    assert list(plan_random(20, seed=3)) == list(plan_random(50, seed=3))[:20]
    assert [p.ways for p in plan_random(50, seed=3)] != [p.ways for p in plan_random(50, seed=4)]


def test_random_plans_do_everything_that_there_is_to_do() -> None:
    plans = list(plan_random(2000, seed=1))
    deeds = {step.deed for plan in plans for step in plan.ways[0].steps}
    assert deeds == set(Deed) - {Deed.FREEZE, Deed.ASK_AGAIN}
    armed = {point_and_kind(fault) for plan in plans for fault in plan.ways[0].faults}
    assert armed == {(point, kind) for point, kinds in POINTS.items() for kind in kinds}
    assert any(plan.ways[0].recovery_faults for plan in plans)
    assert {plan.wanted for plan in plans} == {None}


def test_whoever_is_parted_is_joined_again() -> None:
    for plan in plan_random(2000, seed=1):
        steps = plan.ways[0].steps
        parted = [step for step in steps if step.deed is Deed.PART]
        joined = [step for step in steps if step.deed is Deed.JOIN]
        assert [s.after for s in parted] == [s.after for s in joined]
        assert all(a.seconds < b.seconds for a, b in zip(parted, joined, strict=True))


def test_random_plans_keep_to_the_pattern() -> None:
    for plan in plan_random(100, seed=1, pattern="source.connect.*"):
        points = {fault.partition("=")[0] for fault in plan.ways[0].faults}
        assert points <= {"source.connect.before", "source.connect.after"}


@pytest.mark.parametrize(
    ("point", "late"),
    [
        ("source.record-granted.after", True),
        ("target.record-committed.before", True),
        ("target.receive-handoff.before", True),
        ("source.send-check.before", False),
        ("target.receive-check.before", False),
        ("target.create-domain.after", False),
    ],
)
def test_late_points_are_those_of_the_handoff(point: str, late: bool) -> None:
    assert (point in LATE_POINTS) is late


async def test_what_is_drawn_twice_is_armed_once() -> None:
    """A manager that is started with faults reads a configuration that it takes."""
    fault = "target.record-running.after=crash"
    wire = await open_wire()
    async with wire.listener:
        kind = CAMPAIGN_KINDS["emulated"]
        text = write_manager("host-b", kind, {"host-a": wire}, (fault, fault))
    settings = config.from_document(tomllib.loads(text), path=Path("/nowhere/ldmd.toml"))
    assert settings.faults.armed == (fault,)
