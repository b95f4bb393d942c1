"""The main job between real managers: what moves, how, and that nothing stays behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmd.campaign.machine import find_processes
from ldmd.errors import Busy, ChecksFailed, DefinitionError, NotAllowed, NotFound
from ldmd.hypervisor.emulated import ORACLE_LAYOUT
from ldmd.hypervisor.oracle import check_console, check_memory
from ldmd.hypervisor.qemu import ORACLE_LAYOUTS
from tests.ldmd.hypervisor.qemu_cases import SPARC_ORACLE
from tests.managers import Fleet, make_fleet, wait_for
from tests.migration.oracle import assert_oracle, read_ram

ROUND_TRIPS = 25  # 50 migrations
ESTABLISHED = "01"
"""As in proc(5) /proc/net/tcp."""

DRIVERS = [
    pytest.param({"memory_mib": 4}, ORACLE_LAYOUT, id="emulated"),
    pytest.param(
        {"memory_mib": 16, "hypervisor": "qemu", "machine": "pc"},
        ORACLE_LAYOUTS["pc.ram"],
        id="qemu",
        marks=pytest.mark.qemu,
    ),
]


def paths(fleet: Fleet) -> set[str]:
    """Every file, folder and socket of the managers, but what belongs to a domain's process."""
    found = (str(path.relative_to(fleet.folder)) for path in fleet.folder.rglob("*"))
    return {path for path in found if "/run/domains/" not in path}


def leftovers(fleet: Fleet, known: set[str]) -> Iterator[str]:
    """Processes, sockets and files that belong to no domain any more."""
    yield from (str(p) for p in fleet.folder.glob("*/run/domains/*"))
    yield from sorted(paths(fleet) - known)
    yield from (f"process {pid} in {cwd}" for pid, cwd in find_processes(fleet.folder).items())
    for manager in fleet.managers.values():
        assert manager.process is not None
        # a child is listed with the thread that began it
        for children in Path(f"/proc/{manager.process.pid}/task").glob("*/children"):
            yield from (f"process {pid} of {manager.name}" for pid in children.read_text().split())
        with Path("/proc/net/tcp").open() as table:
            port = f":{manager.port:04X}"
            lines = [line.split() for line in table if port in line]
        yield from (f"link {line[1]} {line[2]}" for line in lines if line[3] == ESTABLISHED)


def open_files(fleet: Fleet) -> dict[str, int]:
    return {
        m.name: len(os.listdir(f"/proc/{m.process.pid}/fd"))
        for m in fleet.managers.values()
        if m.process is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "layout"), DRIVERS)
async def test_back_and_forth_fifty_times(
    domain: dict[str, Any], layout: Any, tmp_path: Path
) -> None:
    async with make_fleet(tmp_path) as fleet:
        uuid = await fleet.start_domain("host-a", **domain)
        text = ""
        at, other = "host-a", "host-b"
        files: dict[str, int] = {}
        known: set[str] = set()
        for number in range(2 * ROUND_TRIPS):
            console = Console(fleet, at, uuid)
            result = await fleet[at].call("migrate-domain", {"domain": "ldg1", "peer": other})
            assert result["digest_source"] == result["digest_target"]
            text += console.read()
            assert await fleet.copies() == {other: "running"}
            assert not list((fleet[at].folder / "run" / "domains").glob("*"))
            directory = fleet[other].folder / "run" / "domains" / uuid
            assert list(find_processes(fleet.folder).values()) == [directory]
            if number == 1:
                files, known = open_files(fleet), paths(fleet)
            at, other = other, at
        await fleet[at].call("suspend-domain", {"domain": "ldg1"})
        text += fleet.console(at, uuid)
        memory = check_memory(read_ram(fleet, at, uuid, layout), layout)
        console_report = check_console(text)
        assert memory.ok, memory.sentence
        assert console_report.contiguous, console_report.sentence
        assert console_report.lines > 50
        # a link that is just being closed may still count
        await wait_for(lambda: settled_files(fleet, files))
        await fleet[at].call("stop-domain", {"domain": "ldg1"})
        assert not list(leftovers(fleet, known))


@pytest.mark.sparc
@pytest.mark.slow
async def test_a_sparc_domain_moves(tmp_path: Path) -> None:
    """SPARCstation 5, OpenBIOS running a loop in Forth: as the original did, a SPARC domain moves."""
    domain = SPARC_ORACLE.definition
    async with make_fleet(tmp_path) as fleet:
        uuid = await fleet.start_domain(
            "host-a",
            memory_mib=domain.memory_bytes // 2**20,
            hypervisor="qemu",
            machine=domain.machine,
            firmware=domain.firmware,
            variables=dict(domain.variables),
        )
        await wait_for(lambda: counts(fleet, "host-a", uuid), timeout_seconds=90)
        text = ""
        for at, other in (("host-a", "host-b"), ("host-b", "host-a")):
            console = Console(fleet, at, uuid)
            result = await fleet[at].call("migrate-domain", {"domain": "ldg1", "peer": other})
            assert result["digest_source"] == result["digest_target"]
            text += console.read()
            assert await fleet.copies() == {other: "running"}
            await wait_for(lambda at=other: counts(fleet, at, uuid), timeout_seconds=90)
        await fleet["host-a"].call("suspend-domain", {"domain": "ldg1"})
        console_report = check_console(text + fleet.console("host-a", uuid))
        assert console_report.contiguous, console_report.sentence
        memory = check_memory(
            read_ram(fleet, "host-a", uuid, SPARC_ORACLE.layout), SPARC_ORACLE.layout
        )
        assert memory.ok, memory.sentence


async def counts(fleet: Fleet, manager: str, uuid: str) -> bool:
    return fleet.console(manager, uuid).count("oracle ") >= 2


async def settled_files(fleet: Fleet, wanted: dict[str, int]) -> bool:
    return all(count <= wanted[name] for name, count in open_files(fleet).items())


class Console:
    """The console of a copy that will be destroyed: the file is held open, so that its end can still be read."""

    def __init__(self, fleet: Fleet, manager: str, uuid: str) -> None:
        path = fleet[manager].folder / "run" / "domains" / uuid / "console.log"
        self._file = path.open("rb")

    def read(self) -> str:
        with self._file:
            return self._file.read().decode()


@pytest.mark.parametrize("state", ["inactive", "bound"])
async def test_cold_domains_move_with_their_state(state: str, tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        await fleet["host-a"].call("stop-domain", {"domain": "ldg1"})
        if state == "inactive":
            await fleet["host-a"].call("unbind-domain", {"domain": "ldg1"})
        before = await fleet["host-a"].call("show-definition", {"domain": "ldg1"})
        result = await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        assert result["digest_source"] is None
        assert await fleet["host-a"].domains() == {}
        assert (await fleet["host-b"].domains())["ldg1"]["state"] == state
        assert await fleet["host-b"].call("show-definition", {"domain": "ldg1"}) == before
        # and it can be used there
        if state == "inactive":
            await fleet["host-b"].call("bind-domain", {"domain": "ldg1"})
        await fleet["host-b"].call("start-domain", {"domain": "ldg1"})
        assert await fleet.copies() == {"host-b": "running"}


async def test_a_suspended_domain_stays_suspended(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        uuid = await fleet.start_domain("host-a")
        await fleet["host-a"].call("suspend-domain", {"domain": "ldg1"})
        result = await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        assert result["downtime_ms"] is None
        assert await fleet.copies() == {"host-b": "suspended"}
        assert fleet.console("host-b", uuid) == ""
        await fleet["host-b"].call("resume-domain", {"domain": "ldg1"})
        await assert_oracle(fleet, "host-b", uuid)


async def test_a_new_name_at_the_target(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        uuid = await fleet.start_domain("host-a")
        arguments = {"domain": "ldg1", "peer": "host-b", "new_name": "ldg9"}
        result = await fleet["host-a"].call("migrate-domain", arguments)
        assert result["domain"] == "ldg9"
        assert await fleet.copies("ldg9") == {"host-b": "running"}
        await assert_oracle(fleet, "host-b", uuid, name="ldg9")


async def test_all_findings_come_at_once_and_nothing_changes(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-b")
        await fleet.start_domain("host-a", memory_mib=4096)  # all that a host of these tests has
        for dry_run in (True, False):
            with pytest.raises(ChecksFailed) as caught:
                await fleet["host-a"].call(
                    "migrate-domain", {"domain": "ldg1", "peer": "host-b", "dry_run": dry_run}
                )
            codes = {f["code"] for f in caught.value.facts["findings"]}  # type: ignore[attr-defined]
            # a machine that has no 4 GiB to spare says so, too
            assert codes - {"memory-available"} == {"name-taken", "memory"}
        assert await fleet.copies() == {"host-a": "running", "host-b": "running"}


async def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        before = [await m.call("list-domains") for m in fleet.managers.values()]
        result = await fleet["host-a"].call(
            "migrate-domain", {"domain": "ldg1", "peer": "host-b", "dry_run": True}
        )
        assert result["outcome"] == "dry-run"
        assert [await m.call("list-domains") for m in fleet.managers.values()] == before
        for manager in fleet.managers.values():
            assert (await manager.call("list-migrations"))["migrations"] == []


async def test_requests_that_cannot_be(tmp_path: Path) -> None:
    forbidden = '[peers.host-c]\naddress = "127.0.0.1:9"\nmay-receive = false\n'
    async with make_fleet(tmp_path, extra={"host-a": forbidden}) as fleet:
        await fleet.start_domain("host-a")
        for arguments, error in (
            ({"domain": "ldg1", "peer": "host-x"}, NotFound),
            ({"domain": "ldg1", "peer": "host-c"}, NotAllowed),
            ({"domain": "ldg7", "peer": "host-b"}, NotFound),
            ({"domain": "ldg1", "peer": "host-b", "new_name": "a/b"}, DefinitionError),
        ):
            with pytest.raises(error):
                await fleet["host-a"].call("migrate-domain", arguments)
        assert await fleet.copies() == {"host-a": "running"}


async def test_the_same_domain_twice(tmp_path: Path) -> None:
    slow = '[faults]\nallowed = true\narmed = ["target.create-domain.after=hang"]\n'
    async with make_fleet(tmp_path, extra={"host-b": slow}) as fleet:
        import trio

        await fleet.start_domain("host-a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                fleet["host-a"].call, "migrate-domain", {"domain": "ldg1", "peer": "host-b"}
            )

            async def under_way() -> bool:
                operation = (await fleet["host-a"].domains())["ldg1"]["operation"]
                return operation is not None and operation["phase"] == "prepare"

            await wait_for(under_way)
            for verb, more in (("migrate-domain", {"peer": "host-b"}), ("stop-domain", {})):
                with pytest.raises(Busy, match="is held by the migration"):
                    await fleet["host-a"].call(verb, {"domain": "ldg1", **more})
            nursery.cancel_scope.cancel()
