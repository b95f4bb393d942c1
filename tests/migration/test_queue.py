"""Several migrations at once, the queue behind them, and a target that receives as many as it may."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from ldmd.client import connect
from ldmd.errors import Busy, ChecksFailed, DaemonUnreachable, LdmdError, MigrationFailed
from tests.managers import Fleet, Manager, make_fleet, wait_for

EMULATED = '[hypervisors]\nenabled = ["emulated"]\n'
SMALL: Mapping[str, Any] = {"memory_mib": 1, "variables": {"clock-mhz": "2"}}


ANSWER_SECONDS = 60.0


def faults(*armed: str) -> str:
    return f"[faults]\nallowed = true\narmed = {list(armed)}\n".replace("'", '"')


@asynccontextmanager
async def crowd(
    folder: Path,
    *names: str,
    settings: Mapping[str, Mapping[str, int]],
    extra: Mapping[str, str] | None = None,
) -> AsyncIterator[Fleet]:
    """``settings``: manager -> keys of [migration] and [resources]."""
    texts = {name: EMULATED + (extra or {}).get(name, "") for name in names}
    async with make_fleet(folder, *names, extra=texts, start=False) as fleet:
        for name, keys in settings.items():
            path = fleet[name].folder / "ldmd.toml"
            text = path.read_text()
            for key, value in keys.items():
                table = "[resources]" if key == "incoming-max" else "[migration]"
                text = re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)
                text = text.replace(table, f"{table}\n{key} = {value}")
            path.write_text(text)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(fleet[name].start)
        yield fleet


@define(eq=False)
class Request:
    """Somebody who asked for a migration and waits: what was said, and the answer."""

    manager: Manager
    domain: str
    peer: str
    said: list[dict[str, Any]] = field(factory=list)
    answer: Any = None
    answered: trio.Event = field(factory=trio.Event)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        def hear(document: dict[str, Any]) -> None:
            if not self.said:
                task_status.started()
            self.said.append(document)

        async with connect(self.manager.socket) as client:
            try:
                self.answer = await client.migrate_domain(self.domain, self.peer, on_progress=hear)
            except LdmdError as error:
                self.answer = error
        self.answered.set()

    async def wait_answered(self) -> None:
        with trio.fail_after(ANSWER_SECONDS):
            await self.answered.wait()

    @property
    def places(self) -> list[int]:
        return [d["position"] for d in self.said if d["event"] == "queued"]

    @property
    def phases(self) -> list[str]:
        return [d["phase"] for d in self.said if d["event"] == "phase"]


async def ask(
    nursery: trio.Nursery, manager: Manager, domain: str, peer: str = "host-b"
) -> Request:
    """Until the first thing that is said about it."""
    request = Request(manager, domain, peer)
    await nursery.start(request.run)
    return request


async def hold_up_first(nursery: trio.Nursery, fleet: Fleet) -> Request:
    """host-b hangs in the middle of taking ldg1: it keeps its place until somebody cancels it."""
    request = await ask(nursery, fleet["host-a"], "ldg1")
    await wait_for(lambda: said(fleet["host-b"], "fault point target.create-domain.after: hang"))
    return request


async def places(manager: Manager) -> dict[str, int]:
    """Of the domains in the queue."""
    return {
        name: d["operation"]["position"]
        for name, d in (await manager.domains()).items()
        if d["operation"] and d["operation"]["phase"] == "queued"
    }


async def is_queue(manager: Manager, *names: str) -> bool:
    return await places(manager) == {name: n for n, name in enumerate(names, 1)}


async def free_and_running(manager: Manager, name: str) -> bool:
    domain = (await manager.domains())[name]
    return domain["run_state"] == "running" and domain["operation"] is None


async def first_records(manager: Manager) -> dict[str, int]:
    """Domain -> when its migration was first recorded, of those that were given to the peer."""
    listed = (await manager.call("list-migrations"))["migrations"]
    return {
        m["domain"]: m["records"][0]["time_unix_ms"]
        for m in listed
        if m["records"][0]["kind"] == "PREPARING"
    }


async def test_the_queue_in_the_order_asked(tmp_path: Path) -> None:
    names = ["ldg1", "ldg2", "ldg3", "ldg4"]
    async with (
        crowd(
            tmp_path,
            "host-a",
            "host-b",
            settings={"host-a": {"outgoing-max": 1}},
            extra={"host-b": faults("target.create-domain.after=hang")},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        host = fleet["host-a"]
        for name in names:
            await fleet.start_domain("host-a", name=name, **SMALL)
        first = await hold_up_first(nursery, fleet)
        waiting = {name: await ask(nursery, host, name) for name in names[1:]}
        assert await is_queue(host, "ldg2", "ldg3", "ldg4")
        status = await host.call("status")
        assert (status["migrations"], status["queued"]) == (1, 3)
        assert waiting["ldg4"].said[0]["sentence"] == "1 is under way, as many as may be"

        # nothing of a queued one has begun, and nobody else may have it
        listed = (await host.call("list-migrations"))["migrations"]
        assert {m["domain"] for m in listed} == {"ldg1"}
        held = (await host.domains())["ldg2"]["operation"]["migration"]
        for verb in ("stop-domain", "suspend-domain"):
            with pytest.raises(Busy, match=f"ldg2 is held by the migration {held}"):
                await host.call(verb, {"domain": "ldg2"})
        for dry_run in (False, True):
            arguments = {"domain": "ldg2", "peer": "host-b", "dry_run": dry_run}
            with pytest.raises(Busy, match=held):
                await host.call("migrate-domain", arguments)

        # a cancel of a queued one is immediate and true, and the others move up
        answer = await host.call("cancel-migration", {"domain": "ldg3"})
        assert (answer["outcome"], answer["decision"]) == ("cancelled", "source")
        assert await free_and_running(host, "ldg3")
        assert await is_queue(host, "ldg2", "ldg4")
        await waiting["ldg3"].wait_answered()
        assert isinstance(waiting["ldg3"].answer, MigrationFailed)
        assert "ldg3 stays on host-a: cancelled before it had begun" in str(waiting["ldg3"].answer)
        assert "ldg3" not in await fleet["host-b"].domains()

        await host.call("cancel-migration", {"domain": "ldg1"})
        for request in (first, *waiting.values()):
            await request.wait_answered()
        assert isinstance(first.answer, MigrationFailed)
        assert waiting["ldg2"].answer["outcome"] == waiting["ldg4"].answer["outcome"] == "completed"
        assert waiting["ldg4"].places == [3, 2, 1]
        assert waiting["ldg4"].phases == ["check", "prepare", "transfer", "handoff"]
        moments = await first_records(host)
        assert moments["ldg2"] < moments["ldg4"]
        assert await fleet.copies("ldg3") == {"host-a": "running"}
        assert (await host.call("status"))["queued"] == 0


async def test_as_many_at_once_as_may_be_each_on_its_own_link(tmp_path: Path) -> None:
    points = ("target.create-domain.after=delay:3",)
    async with (
        crowd(
            tmp_path,
            "host-a",
            "host-b",
            settings={"host-a": {"outgoing-max": 2}},
            extra={"host-b": faults(*points)},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        host = fleet["host-a"]
        for name in ("ldg1", "ldg2", "ldg3"):
            await fleet.start_domain("host-a", name=name, **SMALL)
        held = await ask(nursery, host, "ldg1")
        # the second passes by the one that is held up, and makes room for the third
        others = [await ask(nursery, host, name) for name in ("ldg2", "ldg3")]
        for request in others:
            await request.wait_answered()
            assert request.answer["outcome"] == "completed"
        assert not held.answered.is_set()
        await held.wait_answered()
        assert held.answer["outcome"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_manager_that_ends_forgets_its_queue(number: int, tmp_path: Path) -> None:
    async with (
        crowd(
            tmp_path,
            "host-a",
            "host-b",
            settings={"host-a": {"outgoing-max": 1}},
            extra={"host-b": faults("target.create-domain.after=hang")},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        host = fleet["host-a"]
        for name in ("ldg1", "ldg2"):
            await fleet.start_domain("host-a", name=name, **SMALL)
        first = await hold_up_first(nursery, fleet)
        second = await ask(nursery, host, "ldg2")
        assert second.places == [1]
        await host.stop(number)
        for request in (first, second):
            await request.wait_answered()
        if number == signal.SIGTERM:
            assert isinstance(second.answer, MigrationFailed)
            assert "the manager stops, and its migration had not begun" in str(second.answer)
            assert "its queue is not kept" in second.answer.remedy
            assert isinstance(first.answer, MigrationFailed)
            assert "ldg1 stays on host-a" in str(first.answer)
        else:
            assert isinstance(second.answer, DaemonUnreachable)
            assert "the manager ended while ldg2 was queued: it stays" in str(second.answer)
        await host.start()
        await wait_for(lambda: free_and_running(host, "ldg1"))
        assert await free_and_running(host, "ldg2")
        listed = (await host.call("list-migrations"))["migrations"]
        assert {m["domain"] for m in listed} == {"ldg1"}
        assert (await host.call("status"))["queued"] == 0
        again = await host.call("migrate-domain", {"domain": "ldg2", "peer": "host-b"})
        assert again["outcome"] == "completed"


async def said(manager: Manager, line: str) -> bool:
    return line in manager.log()


async def test_who_asked_may_go_away(tmp_path: Path) -> None:
    async with (
        crowd(
            tmp_path,
            "host-a",
            "host-b",
            settings={"host-a": {"outgoing-max": 1}},
            extra={"host-b": faults("target.create-domain.after=hang")},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        host = fleet["host-a"]
        for name in ("ldg1", "ldg2"):
            await fleet.start_domain("host-a", name=name, **SMALL)
        await hold_up_first(nursery, fleet)
        async with trio.open_nursery() as passing:
            await ask(passing, host, "ldg2")
            passing.cancel_scope.cancel()
        await wait_for(lambda: said(host, "left before the answer"))
        assert await is_queue(host, "ldg2")
        await host.call("cancel-migration", {"domain": "ldg1"})
        await wait_for(lambda: runs_on(fleet, "ldg2", "host-b"))


async def runs_on(fleet: Fleet, name: str, host: str) -> bool:
    return await fleet.copies(name) == {host: "running"}


async def test_a_target_that_does_not_answer_keeps_no_place(tmp_path: Path) -> None:
    async with (
        crowd(
            tmp_path,
            "host-a",
            "host-b",
            "host-c",
            settings={"host-a": {"outgoing-max": 1}},
            extra={"host-b": faults("target.record-committed.after=crash")},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        host = fleet["host-a"]
        for name in ("ldg1", "ldg2"):
            await fleet.start_domain("host-a", name=name, **SMALL)
        doubtful = await ask(nursery, host, "ldg1", "host-b")
        await fleet["host-b"].wait_dead()
        other = await ask(nursery, host, "ldg2", "host-c")
        await other.wait_answered()
        assert other.answer["outcome"] == "completed"
        assert not doubtful.answered.is_set()
        await fleet["host-b"].start()
        await doubtful.wait_answered()
        assert doubtful.answer["outcome"] == "completed"


async def test_a_queue_that_is_full(tmp_path: Path) -> None:
    async with (
        crowd(
            tmp_path,
            "host-a",
            "host-b",
            settings={"host-a": {"outgoing-max": 1, "queue-max": 1}},
            extra={"host-b": faults("target.create-domain.after=hang")},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        host = fleet["host-a"]
        for name in ("ldg1", "ldg2", "ldg3"):
            await fleet.start_domain("host-a", name=name, **SMALL)
        await hold_up_first(nursery, fleet)
        await ask(nursery, host, "ldg2")
        with pytest.raises(Busy, match="1 are queued, as many as may be"):
            await host.call("migrate-domain", {"domain": "ldg3", "peer": "host-b"})
        assert await free_and_running(host, "ldg3")
        assert await is_queue(host, "ldg2")
        for name in ("ldg2", "ldg1"):
            await host.call("cancel-migration", {"domain": name})


async def test_a_domain_that_ended_in_the_queue_is_not_moved(tmp_path: Path) -> None:
    async with (
        crowd(
            tmp_path,
            "host-a",
            "host-b",
            settings={"host-a": {"outgoing-max": 1}},
            extra={"host-b": faults("target.create-domain.after=hang")},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        host = fleet["host-a"]
        for name in ("ldg1", "ldg2"):
            await fleet.start_domain("host-a", name=name, **SMALL)
        await hold_up_first(nursery, fleet)
        second = await ask(nursery, host, "ldg2")
        os.kill((await host.domains())["ldg2"]["pid"], signal.SIGKILL)
        await wait_for(lambda: is_state(host, "ldg2", "bound"))
        assert await is_queue(host, "ldg2")
        await host.call("cancel-migration", {"domain": "ldg1"})
        await second.wait_answered()
        assert "the process of ldg2 ended while its migration was queued" in str(second.answer)
        assert await is_state(host, "ldg2", "bound")
        assert (await host.domains())["ldg2"]["operation"] is None


async def is_state(manager: Manager, name: str, state: str) -> bool:
    return bool((await manager.domains())[name]["state"] == state)


# ---- a target that receives as many as it may ------------------------------------------------------------


async def test_two_hosts_are_emptied_into_one_that_takes_one_at_a_time(tmp_path: Path) -> None:
    sources = ("host-a", "host-c")
    async with (
        crowd(
            tmp_path,
            *sources,
            "host-b",
            settings={"host-b": {"incoming-max": 1}},
            extra={"host-b": faults("target.create-domain.after=delay:1")},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        names = [(source, f"{source}-{n}") for source in sources for n in range(2)]
        for source, name in names:
            await fleet.start_domain(source, name=name, **SMALL)
        requests = [await ask(nursery, fleet[source], name) for source, name in names]
        with trio.fail_after(60):
            for request in requests:
                await request.wait_answered()
        assert [r.answer["outcome"] for r in requests] == ["completed"] * 4
        waited = [d for r in requests for d in r.said if d["event"] == "queued"]
        assert "incoming-max" in {d["waits_for"] for d in waited}
        assert "host-b receives as many migrations as it may" in {d["sentence"] for d in waited}
        for _, name in names:
            assert await fleet.copies(name) == {"host-b": "running"}
        # asking again leaves no records: a refusal has one pair each, and few are refused
        refused = [
            m
            for source in sources
            for m in (await fleet[source].call("list-migrations"))["migrations"]
            if m["decision"] == "source"
        ]
        assert 1 <= len(refused) <= 12
        assert all(m["settled"] for m in refused)


async def test_one_that_waits_for_its_target_is_cancelled_at_once(tmp_path: Path) -> None:
    async with (
        crowd(
            tmp_path,
            "host-a",
            "host-b",
            settings={"host-b": {"incoming-max": 1}},
            extra={"host-b": faults("target.create-domain.after=hang")},
        ) as fleet,
        trio.open_nursery() as nursery,
    ):
        host = fleet["host-a"]
        for name in ("ldg1", "ldg2"):
            await fleet.start_domain("host-a", name=name, **SMALL)
        await hold_up_first(nursery, fleet)
        second = await ask(nursery, host, "ldg2")
        await wait_for(lambda: is_queue(host, "ldg2"))
        answer = await host.call("cancel-migration", {"domain": "ldg2"})
        assert (answer["outcome"], answer["decision"]) == ("cancelled", "source")
        await second.wait_answered()
        assert "cancelled before it had begun" in str(second.answer)
        assert await free_and_running(host, "ldg2")
        await host.call("cancel-migration", {"domain": "ldg1"})
        moved = await host.call("migrate-domain", {"domain": "ldg2", "peer": "host-b"})
        assert moved["outcome"] == "completed"


async def test_a_target_that_receives_none_refuses(tmp_path: Path) -> None:
    async with crowd(
        tmp_path, "host-a", "host-b", settings={"host-b": {"incoming-max": 0}}
    ) as fleet:
        await fleet.start_domain("host-a", **SMALL)
        with pytest.raises(ChecksFailed) as refused:
            await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        findings = refused.value.facts["findings"]
        assert isinstance(findings, list)
        assert [f["code"] for f in findings] == ["limits"]
        assert await free_and_running(fleet["host-a"], "ldg1")
