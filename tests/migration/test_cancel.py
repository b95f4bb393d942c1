"""Cancel: before the point of no return the domain runs on at the source; after it, the true answer."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.errors import BadRequest, LdmdError, MigrationFailed, WrongState
from tests.managers import Fleet, make_fleet, wait_for
from tests.migration.oracle import assert_oracle

LARGE_MIB = 512
"""Takes long enough to be caught in the middle."""


def hang(point: str, kind: str = "hang") -> str:
    return f'[faults]\nallowed = true\narmed = ["{point}={kind}"]\n'


async def begin(fleet: Fleet, nursery: trio.Nursery, outcome: list[Any]) -> None:
    async def migrate() -> None:
        try:
            outcome.append(
                await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
            )
        except LdmdError as error:
            outcome.append(error)

    nursery.start_soon(migrate)


def in_phase(fleet: Fleet, manager: str, phase: str) -> Any:
    async def reached() -> dict[str, Any] | None:
        domain = (await fleet[manager].domains()).get("ldg1")
        operation = domain and domain["operation"]
        return operation if operation and operation["phase"] == phase else None

    return reached


async def history(fleet: Fleet) -> dict[str, list[tuple[str, bool]]]:
    return {
        m.name: [
            (h["decision"], h["settled"]) for h in (await m.call("list-migrations"))["migrations"]
        ]
        for m in fleet.managers.values()
    }


@pytest.mark.parametrize("asked_at", ["host-a", "host-b"])
@pytest.mark.parametrize(
    ("phase", "point"),
    [
        ("prepare", "target.create-domain.after"),
        ("transfer", "target.install-state.before"),
        ("transfer", "source.send-state.after"),
    ],
)
async def test_cancel_brings_it_back(phase: str, point: str, asked_at: str, tmp_path: Path) -> None:
    victim = "host-a" if point.startswith("source") else "host-b"
    async with (
        make_fleet(tmp_path, extra={victim: hang(point)}) as fleet,
        trio.open_nursery() as nursery,
    ):
        uuid = await fleet.start_domain("host-a")
        outcome: list[Any] = []
        await begin(fleet, nursery, outcome)
        await wait_for(in_phase(fleet, "host-a", phase))
        await wait_for(lambda: said(fleet, victim, f"fault point {point}"))
        started = trio.current_time()
        answer = await fleet[asked_at].call("cancel-migration", {"domain": "ldg1"})
        assert answer["outcome"] == "cancelled"
        assert answer["decision"] == "source"
        await wait_for(lambda: runs_on(fleet, {"host-a": "running"}))
        assert trio.current_time() - started < 5
        await wait_for(lambda: anything(outcome))
        assert isinstance(outcome[0], MigrationFailed)
        assert "cancelled by an operator" in outcome[0].sentence
        await assert_oracle(fleet, "host-a", uuid)
        for decisions in (await history(fleet)).values():
            assert decisions == [("source", True)]
        # and the next one succeeds: the fault fires once
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        assert await fleet.copies() == {"host-b": "running"}


async def said(fleet: Fleet, manager: str, line: str) -> bool:
    return line in fleet[manager].log()


async def runs_on(fleet: Fleet, wanted: dict[str, str]) -> bool:
    return await fleet.copies() == wanted


async def anything(outcome: list[Any]) -> bool:
    return bool(outcome)


async def test_cancel_in_the_middle_of_the_bulk(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        uuid = await fleet.start_domain(
            "host-a", memory_mib=LARGE_MIB, variables={"clock-mhz": "200"}
        )
        outcome: list[Any] = []
        await begin(fleet, nursery, outcome)
        operation = await wait_for(in_phase(fleet, "host-a", "transfer"))
        assert operation["role"] == "source"
        shown = await wait_for(in_phase(fleet, "host-b", "transfer"))
        assert (shown["role"], shown["peer"]) == ("target", "host-a")
        answer = await fleet["host-a"].call("cancel-migration", {"domain": "ldg1"})
        assert answer["decision"] == "source"
        assert await fleet.copies() == {"host-a": "running"}
        await assert_oracle(fleet, "host-a", uuid)


async def test_too_late_tells_the_truth(tmp_path: Path) -> None:
    """The target hangs behind its COMMITTED record: the cancel waits and then says where the domain is."""
    point = "target.record-committed.after"
    async with (
        make_fleet(tmp_path, extra={"host-b": hang(point, "delay:60")}) as fleet,
        trio.open_nursery() as nursery,
    ):
        await fleet.start_domain("host-a")
        outcome: list[Any] = []
        answers: list[Any] = []
        await begin(fleet, nursery, outcome)
        await wait_for(lambda: said(fleet, "host-b", f"fault point {point}"))

        async def cancel() -> None:
            answers.append(await fleet["host-a"].call("cancel-migration", {"domain": "ldg1"}))

        nursery.start_soon(cancel)
        with trio.move_on_after(0.3):
            await wait_for(lambda: anything(answers))
        assert answers == []  # it is not known yet
        await fleet["host-b"].stop(9)
        fleet.configure()
        await fleet["host-b"].start()
        await wait_for(lambda: anything(answers))
        assert (answers[0]["outcome"], answers[0]["decision"]) == ("too-late", "target")
        assert "past the point of no return" in answers[0]["sentence"]
        await wait_for(lambda: runs_on(fleet, {"host-b": "running"}))


async def test_nothing_to_cancel(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        with pytest.raises(WrongState, match="no migration of ldg1"):
            await fleet["host-a"].call("cancel-migration", {"domain": "ldg1"})


async def test_a_client_that_goes_away_does_not_stop_it(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", memory_mib=64)
        async with trio.open_nursery() as nursery:
            await begin(fleet, nursery, [])
            await wait_for(lambda: said(fleet, "host-a", "checking"))
            nursery.cancel_scope.cancel()
        await wait_for(lambda: runs_on(fleet, {"host-b": "running"}))


async def test_the_one_that_is_meant(tmp_path: Path) -> None:
    """A dry run of the domain hangs and began first: by its name the migration is cancelled, by its id the dry run."""
    faults = '[faults]\nallowed = true\narmed = ["source.connect.before=hang"]\n'
    held = hang("target.create-domain.after")
    async with (
        make_fleet(tmp_path, extra={"host-a": faults, "host-b": held}) as fleet,
        trio.open_nursery() as nursery,
    ):
        await fleet.start_domain("host-a")
        asked = {"domain": "ldg1", "peer": "host-b"}
        dry: list[Any] = []

        async def run_dry() -> None:
            with contextlib.suppress(LdmdError):
                dry.append(await fleet["host-a"].call("migrate-domain", asked | {"dry_run": True}))

        nursery.start_soon(run_dry)
        await wait_for(lambda: said(fleet, "host-a", "fault point source.connect.before"))
        (dry_run,) = (await fleet["host-a"].call("list-migrations"))["migrations"]
        with pytest.raises(WrongState, match="no migration of ldg1"):
            await fleet["host-a"].call("cancel-migration", {"domain": "ldg1"})
        outcome: list[Any] = []
        await begin(fleet, nursery, outcome)
        await wait_for(lambda: said(fleet, "host-b", "fault point target.create-domain.after"))
        answer = await fleet["host-a"].call("cancel-migration", {"domain": "ldg1"})
        assert answer["outcome"] == "cancelled"
        assert answer["migration"] != dry_run["migration"]
        await wait_for(lambda: anything(outcome))
        assert not dry
        asked = {"migration": dry_run["migration"]}
        answer = await fleet["host-a"].call("cancel-migration", asked)
        assert answer["migration"] == dry_run["migration"]
        with pytest.raises(WrongState, match="is under way"):
            await fleet["host-a"].call("cancel-migration", asked)
        with pytest.raises(BadRequest, match="cannot be given together"):
            await fleet["host-a"].call("cancel-migration", asked | {"domain": "ldg1"})
        nursery.cancel_scope.cancel()
