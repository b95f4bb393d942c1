"""What the target promises: exactly the room there is, from phase 1 to the end, and given back on every way out."""

from __future__ import annotations

import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.errors import Busy, ChecksFailed, LdmdError
from tests.managers import Fleet, make_fleet, wait_for

MIB = 1024 * 1024
MEMORY_MIB = 4
FAULTS = '[hypervisors]\nenabled = ["emulated"]\n[faults]\nallowed = true\n'

BEFORE_GRANTED = (
    "target.run-checks.after",
    "target.send-checked.after",
    "target.create-domain.after",
    "target.install-state.before",
)
"""Moments at which host-b holds the room, one or more in each of the first three phases."""
HELD_UP = tuple(point for point in BEFORE_GRANTED if ".send-" not in point)
"""Those of them at which an operation can hang and still be cancelled."""


@asynccontextmanager
async def tight_fleet(folder: Path, *names: str) -> AsyncIterator[Fleet]:
    """host-b has room for exactly one of the domains."""
    async with make_fleet(folder, *names, extra=dict.fromkeys(names, FAULTS), start=False) as fleet:
        path = fleet["host-b"].folder / "ldmd.toml"
        roomy = 'memory = "4GiB"\nvcpus = 64\n'
        assert roomy in path.read_text()
        tight = f'memory = "{MEMORY_MIB}MiB"\nvcpus = 1\n'
        path.write_text(path.read_text().replace(roomy, tight))
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(fleet[name].start)
        yield fleet


async def start_domain(fleet: Fleet, host: str, name: str, **more: object) -> str:
    return await fleet.start_domain(
        host, name=name, memory_mib=MEMORY_MIB, variables={"clock-mhz": "2"}, **more
    )


async def room(fleet: Fleet) -> tuple[int, int]:
    """MiB and virtual CPUs that are free on host-b."""
    status = await fleet["host-b"].call("status")
    return status["memory_free_bytes"] // MIB, status["vcpus_free"]


async def all_given_back(fleet: Fleet) -> bool:
    status = await fleet["host-b"].call("status")
    return await room(fleet) == (MEMORY_MIB, 1) and status["migrations"] == 0


async def arm(fleet: Fleet, host: str, fault: str) -> None:
    await fleet[host].call("arm-fault", {"fault": fault})


async def said(fleet: Fleet, host: str, line: str) -> bool:
    return line in fleet[host].log()


class Requests:
    """Migrations to host-b that somebody waits for: domain -> what was answered."""

    def __init__(self, fleet: Fleet, nursery: trio.Nursery) -> None:
        self.fleet, self.nursery = fleet, nursery
        self.answers: dict[str, Any] = {}

    def ask(self, source: str, name: str) -> None:
        self.answers.pop(name, None)
        self.nursery.start_soon(self._ask, source, name)

    async def _ask(self, source: str, name: str) -> None:
        try:
            answer: Any = await self.fleet[source].call(
                "migrate-domain", {"domain": name, "peer": "host-b"}
            )
        except LdmdError as error:
            answer = error
        self.answers[name] = answer

    async def ask_until(self, source: str, name: str, line: str) -> None:
        """Until host-b's log says ``line`` once more than before."""
        before = self.fleet["host-b"].log().count(line)

        async def once_more() -> bool:
            return self.fleet["host-b"].log().count(line) > before

        self.ask(source, name)
        await wait_for(once_more)

    async def answer(self, name: str) -> Any:
        async def answered() -> bool:
            return name in self.answers

        await wait_for(answered)
        return self.answers[name]


def codes(error: Any) -> list[str]:
    assert isinstance(error, ChecksFailed), error
    findings = error.facts["findings"]
    assert isinstance(findings, list)
    return [finding["code"] for finding in findings]


async def test_two_sources_at_once_and_room_for_one(tmp_path: Path) -> None:
    async with (
        tight_fleet(tmp_path, "host-a", "host-b", "host-c") as fleet,
        trio.open_nursery() as nursery,
    ):
        owners = {"ldg1": "host-a", "ldg2": "host-c"}
        for name, host in owners.items():
            await start_domain(fleet, host, name)
        requests = Requests(fleet, nursery)
        for _ in range(3):
            for name, host in owners.items():
                requests.ask(host, name)
            answers = {name: await requests.answer(name) for name in owners}
            (moved,) = [n for n, a in answers.items() if isinstance(a, dict)]
            (refused,) = set(owners) - {moved}
            assert codes(answers[refused]) == ["vcpus", "memory"]
            assert "needs 4MiB of memory, host-b has 0 free" in str(
                answers[refused].facts["findings"][1]["sentence"]
            )
            assert await room(fleet) == (0, 0)
            assert await fleet.copies(moved) == {"host-b": "running"}
            assert await fleet.copies(refused) == {owners[refused]: "running"}
            await fleet["host-b"].call("migrate-domain", {"domain": moved, "peer": owners[moved]})
            await wait_for(lambda: all_given_back(fleet))


async def test_the_room_is_held_from_phase_1_on(tmp_path: Path) -> None:
    async with (
        tight_fleet(tmp_path, "host-a", "host-b", "host-c") as fleet,
        trio.open_nursery() as nursery,
    ):
        await start_domain(fleet, "host-a", "ldg1")
        await start_domain(fleet, "host-c", "ldg2")
        requests = Requests(fleet, nursery)
        for point in HELD_UP:
            await arm(fleet, "host-b", f"{point}=hang")
            await requests.ask_until("host-a", "ldg1", f"fault point {point}: hang")
            assert await room(fleet) == (0, 0), point
            requests.ask("host-c", "ldg2")
            assert codes(await requests.answer("ldg2")) == ["vcpus", "memory"], point
            await fleet["host-a"].call("cancel-migration", {"domain": "ldg1"})
            await wait_for(lambda: all_given_back(fleet))
            await requests.answer("ldg1")
        requests.ask("host-c", "ldg2")
        assert (await requests.answer("ldg2"))["outcome"] == "completed"
        assert await room(fleet) == (0, 0)


async def test_the_same_domain_asked_for_twice(tmp_path: Path) -> None:
    """Of two sources (a domain that was restored from a copy, say) and of one: the second is told which the first is."""
    async with (
        tight_fleet(tmp_path, "host-a", "host-b", "host-c") as fleet,
        trio.open_nursery() as nursery,
    ):
        same = str(uuid.uuid4())
        for host in ("host-a", "host-c"):
            await start_domain(fleet, host, "ldg1", uuid=same)
        requests = Requests(fleet, nursery)
        for point in HELD_UP[:2]:
            await arm(fleet, "host-b", f"{point}=hang")
            await requests.ask_until("host-a", "ldg1", f"fault point {point}: hang")
            first = (await fleet["host-a"].domains())["ldg1"]["operation"]["migration"]
            with pytest.raises(ChecksFailed) as refused:
                await fleet["host-c"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
            assert "migration-unsettled" in codes(refused.value)
            findings = refused.value.facts["findings"]
            assert isinstance(findings, list)
            assert first in " ".join(f["sentence"] for f in findings)
            with pytest.raises(Busy, match=first):
                await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
            await fleet["host-a"].call("cancel-migration", {"domain": "ldg1"})
            await wait_for(lambda: all_given_back(fleet))
            await requests.answer("ldg1")


async def test_checks_that_fail_and_dry_runs_hold_nothing(tmp_path: Path) -> None:
    async with tight_fleet(tmp_path, "host-a", "host-b") as fleet:
        await start_domain(fleet, "host-a", "ldg1")
        await start_domain(fleet, "host-a", "ldg2", **{"memory-bytes": 2 * MEMORY_MIB * MIB})
        with pytest.raises(ChecksFailed):
            await fleet["host-a"].call("migrate-domain", {"domain": "ldg2", "peer": "host-b"})
        assert await all_given_back(fleet)
        arguments = {"domain": "ldg1", "peer": "host-b", "dry_run": True}
        assert (await fleet["host-a"].call("migrate-domain", arguments))["outcome"] == "dry-run"
        assert await all_given_back(fleet)
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        assert await room(fleet) == (0, 0)


@pytest.mark.parametrize("way", ["cut", "target killed", "source killed"])
async def test_given_back_on_every_way_out(way: str, tmp_path: Path) -> None:
    async with (
        tight_fleet(tmp_path, "host-a", "host-b") as fleet,
        trio.open_nursery() as nursery,
    ):
        await start_domain(fleet, "host-a", "ldg1")
        requests = Requests(fleet, nursery)
        for point in HELD_UP if way == "source killed" else BEFORE_GRANTED:
            kind = {"cut": "cut", "target killed": "crash", "source killed": "hang"}[way]
            await arm(fleet, "host-b", f"{point}={kind}")
            await requests.ask_until("host-a", "ldg1", f"fault point {point}: {kind}")
            if way == "target killed":
                await fleet["host-b"].wait_dead()
                await fleet["host-b"].start()
            elif way == "source killed":
                assert await room(fleet) == (0, 0), point
                await fleet["host-a"].stop(signal.SIGKILL)
                # the target lets go without the source
                await wait_for(lambda: all_given_back(fleet))
                await fleet["host-a"].start()
            await wait_for(lambda: all_given_back(fleet))
            assert isinstance(await requests.answer("ldg1"), LdmdError)
            await wait_for(lambda: is_free(fleet, "host-a"))
            assert await fleet.copies() == {"host-a": "running"}, point
        # and who comes next gets the room
        requests.ask("host-a", "ldg1")
        assert (await requests.answer("ldg1"))["outcome"] == "completed"
        assert await room(fleet) == (0, 0)


async def is_free(fleet: Fleet, host: str) -> bool:
    domain = (await fleet[host].domains())["ldg1"]
    return domain["operation"] is None and domain["run_state"] == "running"


@pytest.mark.parametrize(
    "point", ["target.record-committed.after", "target.send-handoff-done.before"]
)
async def test_past_the_point_of_no_return_it_is_held_once_and_for_good(
    point: str, tmp_path: Path
) -> None:
    async with (
        tight_fleet(tmp_path, "host-a", "host-b") as fleet,
        trio.open_nursery() as nursery,
    ):
        await start_domain(fleet, "host-a", "ldg1")
        await start_domain(fleet, "host-a", "ldg2")
        requests = Requests(fleet, nursery)
        await arm(fleet, "host-b", f"{point}=crash")
        requests.ask("host-a", "ldg1")
        await fleet["host-b"].wait_dead()
        await fleet["host-b"].start()
        assert await room(fleet) == (0, 0)
        assert (await requests.answer("ldg1"))["outcome"] == "completed"
        assert await room(fleet) == (0, 0)
        requests.ask("host-a", "ldg2")
        assert codes(await requests.answer("ldg2")) == ["vcpus", "memory"]
        await wait_for(lambda: settled(fleet))
        await fleet["host-b"].call("migrate-domain", {"domain": "ldg1", "peer": "host-a"})
        await wait_for(lambda: all_given_back(fleet))


async def settled(fleet: Fleet) -> bool:
    return (await fleet["host-b"].call("status"))["migrations"] == 0
