"""The truth table of phase 1: every state of a domain x what the target is like x how it is asked, on real managers.

A cell says what becomes of the domain, and which checks speak:

    yes, no        the answer of a dry run: it would succeed, it would fail; nothing changes on either host
    moves, stays   of a migration
    !code, ~code   a hard finding, a soft one

*stays* (and each dry run): both hosts have the domains, the run states and the definitions that they had before.
*moves*: the source has nothing of the domain; the target has it in the run state that it had, with the same definition,
under the new name where it was given one; its other domains are as they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field, frozen

from ldmd.errors import ChecksFailed
from tests.managers import Fleet, Manager, make_fleet, wait_for

MIB = 1024 * 1024
NAME, NEW_NAME = "web1", "web9"
UUID = "0a1b2c3d-0000-4000-8000-000000000001"
MAC = "52:54:00:00:00:01"
STATES = ("running", "suspended", "bound", "inactive")
MODES = ("-n", "plain", "-f", "rename")

EMULATED = """
target is like | state     | -n                  | plain                  | -f                     | rename
free           | running   | yes                 | moves                  | moves                  | moves
free           | suspended | yes                 | moves                  | moves                  | moves
free           | bound     | yes                 | moves                  | moves                  | moves
free           | inactive  | yes                 | moves                  | moves                  | moves
has the domain | running   | no !uuid-taken      | stays !uuid-taken      | stays !uuid-taken      | stays !uuid-taken
has the domain | suspended | no !uuid-taken      | stays !uuid-taken      | stays !uuid-taken      | stays !uuid-taken
has the domain | bound     | no !uuid-taken      | stays !uuid-taken      | stays !uuid-taken      | stays !uuid-taken
has the domain | inactive  | no !uuid-taken      | stays !uuid-taken      | stays !uuid-taken      | stays !uuid-taken
name taken     | running   | no !name-taken      | stays !name-taken      | stays !name-taken      | moves
name taken     | suspended | no !name-taken      | stays !name-taken      | stays !name-taken      | moves
name taken     | bound     | no !name-taken      | stays !name-taken      | stays !name-taken      | moves
name taken     | inactive  | no !name-taken      | stays !name-taken      | stays !name-taken      | moves
no room        | running   | no !memory          | stays !memory          | stays !memory          | stays !memory
no room        | suspended | no !memory          | stays !memory          | stays !memory          | stays !memory
no room        | bound     | no !memory          | stays !memory          | stays !memory          | stays !memory
no room        | inactive  | yes                 | moves                  | moves                  | moves
no volume      | bound     | no !volume-missing  | stays !volume-missing  | stays !volume-missing  | stays !volume-missing
no volume      | inactive  | yes ~volume-missing | moves ~volume-missing  | moves ~volume-missing  | moves ~volume-missing
other volume   | bound     | no !volume-size !storage-not-shared | stays !volume-size !storage-not-shared | stays !volume-size !storage-not-shared | stays !volume-size !storage-not-shared
other volume   | inactive  | yes ~volume-size | moves ~volume-size | moves ~volume-size | moves ~volume-size
no switch      | bound     | no !switch-missing  | stays !switch-missing  | stays !switch-missing  | stays !switch-missing
no switch      | inactive  | yes ~switch-missing | moves ~switch-missing  | moves ~switch-missing  | moves ~switch-missing
"""
"""An emulated machine has no devices, so an active domain with some is QEMU's."""

QEMU = """
target is like | state     | -n                  | plain                  | -f                     | rename
no volume      | running   | no !volume-missing  | stays !volume-missing  | stays !volume-missing  | stays !volume-missing
no volume      | suspended | no !volume-missing  | stays !volume-missing  | stays !volume-missing  | stays !volume-missing
other volume   | running   | no !volume-size !storage-not-shared | stays !volume-size !storage-not-shared | stays !volume-size !storage-not-shared | stays !volume-size !storage-not-shared
other volume   | suspended | no !volume-size !storage-not-shared | stays !volume-size !storage-not-shared | stays !volume-size !storage-not-shared | stays !volume-size !storage-not-shared
other CPU      | running   | no !cpu-differs     | stays !cpu-differs     | stays !cpu-differs     | stays !cpu-differs
other CPU      | suspended | no !cpu-differs     | stays !cpu-differs     | stays !cpu-differs     | stays !cpu-differs
other CPU      | bound     | no !cpu-differs     | stays !cpu-differs     | stays !cpu-differs     | stays !cpu-differs
other CPU      | inactive  | yes                 | moves                  | moves                  | moves
"""

BRIDGES = """
target is like | state     | -n                  | plain                  | -f                     | rename
no switch      | running   | no !switch-missing  | stays !switch-missing  | stays !switch-missing  | stays !switch-missing
no switch      | suspended | no !switch-missing  | stays !switch-missing  | stays !switch-missing  | stays !switch-missing
other MTU      | running   | no !mtu-differs     | stays !mtu-differs     | moves ~mtu-differs     | stays !mtu-differs
other MTU      | suspended | no !mtu-differs     | stays !mtu-differs     | moves ~mtu-differs     | stays !mtu-differs
other MTU      | bound     | no !mtu-differs     | stays !mtu-differs     | moves ~mtu-differs     | stays !mtu-differs
other MTU      | inactive  | yes ~mtu-differs    | moves ~mtu-differs     | moves ~mtu-differs     | moves ~mtu-differs
"""


@frozen(kw_only=True)
class Situation:
    """``domain``: keys of the domain's definition; ``other``: those of a domain that the target has already."""

    domain: Mapping[str, object] = field(factory=dict)
    other: Mapping[str, object] | None = None
    other_bound: bool = False


def with_volume(name: str) -> Mapping[str, object]:
    return {"vdisks": [{"name": "disk0", "volume": name, "service": "vds0"}]}


def with_switch(name: str) -> Mapping[str, object]:
    return {"vnets": [{"name": "net0", "switch": name, "mac": MAC}]}


SITUATIONS: Mapping[str, Situation] = {
    "free": Situation(),
    "has the domain": Situation(other={"name": "other", "uuid": UUID}),
    "name taken": Situation(other={"name": NAME}),
    "no room": Situation(other={"name": "big", "memory-bytes": 4095 * MIB}, other_bound=True),
    "no volume": Situation(domain=with_volume("gone")),
    "other volume": Situation(domain=with_volume("other")),
    "no switch": Situation(domain=with_switch("gone")),
    "other MTU": Situation(domain=with_switch("jumbo")),
    "other CPU": Situation(domain={"cpu-arch": "native"}),
}

HARDWARE: Mapping[str, Mapping[str, object]] = {
    "emulated": {"hypervisor": "emulated", "machine": "riscv64-virt", "memory-bytes": 4 * MIB},
    "qemu": {"hypervisor": "qemu", "machine": "pc", "memory-bytes": 16 * MIB},
}

EXTRA = {
    "host-a": """
[hypervisors.qemu]
accelerator = "tcg"
[vds.vds0]
gone = "gone.img"
other = "other.img"
[vsw.gone]
bridge = "ldmbr0"
[vsw.jumbo]
bridge = "ldmbr0"
mtu = 1500
""",
    "host-b": """
[hypervisors.qemu]
accelerator = "tcg"
[vds.vds0]
other = "other.img"
[vsw.jumbo]
bridge = "ldmbr0"
mtu = 1600
""",
}

WRAPPER = """#!/bin/sh
exec {program} "$@" -global max-x86_64-cpu.aes=off
"""
"""QEMU on a host whose own CPU has no AES: what it makes there lacks it, and it says so when it is asked."""


def rows(table: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(what the target is like, state, a cell for each mode)."""
    head, *lines = [[c.strip() for c in line.split("|")] for line in table.strip().splitlines()]
    assert tuple(head[2:]) == MODES
    for situation, state, *cells in lines:
        yield situation, state, tuple(cells)


def test_the_table_is_whole() -> None:
    """Each state with each target, once."""
    there = [(s, state) for table in (EMULATED, QEMU, BRIDGES) for s, state, _ in rows(table)]
    assert sorted(there) == sorted((s, state) for s in SITUATIONS for state in STATES)


# ---- what is compared --------------------------------------------------------------------------------------


async def look(manager: Manager) -> dict[str, tuple[str, Any, Any]]:
    """Name -> state, run state, definition of every domain there."""
    found = {}
    for name, domain in (await manager.domains()).items():
        shown = await manager.call("show-definition", {"domain": name})
        found[name] = (domain["state"], domain["run_state"], shown["definition"])
    return found


async def look_at_room(manager: Manager) -> list[int]:
    """What is free there: a promise that stayed would lack."""
    status = await manager.call("status")
    return [status[key] for key in ("memory_free_bytes", "vcpus_free", "domains", "migrations")]


def fingerprint(manager: Manager) -> dict[str, str]:
    """Every file that the manager has: what is in it; of the journal, also every row. A console may grow meanwhile."""
    found: dict[str, str] = {}
    for root in ("state", "run"):
        for path in sorted((manager.folder / root).rglob("*")):
            name = str(path.relative_to(manager.folder))
            content = b""
            if path.is_file() and path.name not in ("console.log", "console.out"):
                content = path.read_bytes()
            found[name] = hashlib.sha256(content).hexdigest()
    found["rows"] = dump_journal(manager.folder / "state")
    return found


def differing(before: list[dict[str, str]], after: list[dict[str, str]]) -> list[str]:
    """Names of what is not the same on both hosts."""
    pairs = zip(before, after, strict=True)
    return sorted({name for one, other in pairs for name, _ in one.items() ^ other.items()})


def dump_journal(state: Path) -> str:
    """Every row, out of a copy: the manager has locked its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("journal.sqlite", "journal.sqlite-wal"):
            if (state / name).exists():
                shutil.copy(state / name, folder)
        with contextlib.closing(sqlite3.connect(Path(folder, "journal.sqlite"))) as database:
            return "\n".join(database.iterdump())


async def settled(manager: Manager) -> bool:
    return bool((await manager.call("status"))["migrations"] == 0)


def show_findings(findings: list[dict[str, Any]]) -> list[str]:
    return sorted(("!" if f["hard"] else "~") + f["code"] for f in findings)


# ---- one cell ----------------------------------------------------------------------------------------------


@define(eq=False)
class Play:
    """One row: the domain on host-a, made anew whenever it has gone."""

    fleet: Fleet
    hypervisor: str
    situation: Situation
    state: str

    @property
    def definition(self) -> dict[str, object]:
        return {
            "name": NAME,
            "uuid": UUID,
            "firmware": "oracle",
            **HARDWARE[self.hypervisor],
            **self.situation.domain,
        }

    async def make_domain(self) -> None:
        source = self.fleet["host-a"]
        await source.call("add-domain", {"definition": self.definition})
        verbs = {
            "inactive": [],
            "bound": ["bind"],
            "running": ["bind", "start"],
            "suspended": ["bind", "start", "suspend"],
        }[self.state]
        for verb in verbs:
            await source.call(f"{verb}-domain", {"domain": NAME})

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        other = self.situation.other
        if other is not None:
            definition = {
                "uuid": "ffffffff-0000-4000-8000-000000000002",
                **HARDWARE["emulated"],
                **other,
            }
            await self.fleet["host-b"].call("add-domain", {"definition": definition})
            if self.situation.other_bound:
                await self.fleet["host-b"].call("bind-domain", {"domain": other["name"]})
        await self.make_domain()
        yield
        for manager in self.fleet.managers.values():
            await remove_all(manager)

    async def ask(self, mode: str) -> tuple[bool, list[str]]:
        """Whether it was or would be done, and what the checks found."""
        arguments: dict[str, object] = {"domain": NAME, "peer": "host-b"}
        arguments |= {"-n": {"dry_run": True}, "-f": {"force": True}}.get(mode, {})
        if mode == "rename":
            arguments["new_name"] = NEW_NAME
        try:
            result = await self.fleet["host-a"].call("migrate-domain", arguments)
        except ChecksFailed as error:
            findings: Any = error.facts["findings"]
            return False, show_findings(findings)
        return True, show_findings(result["findings"])

    def fingerprints(self) -> list[dict[str, str]]:
        return [fingerprint(manager) for manager in self.fleet.managers.values()]

    async def play(self, mode: str, cell: str) -> str:
        """What is not as the cell says; empty when all is."""
        expected, *codes = cell.split()
        source, target = self.fleet["host-a"], self.fleet["host-b"]
        for manager in (source, target):
            await wait_for(lambda m=manager: settled(m))
        before = await look(source), await look(target)
        room = await look_at_room(source), await look_at_room(target)
        files = self.fingerprints() if mode == "-n" else None
        done, found = await self.ask(mode)
        if files is not None and (changed := differing(files, self.fingerprints())):
            return f"a dry run changed {changed}"
        for manager in (source, target):
            await wait_for(lambda m=manager: settled(m))
        after = await look(source), await look(target)
        moved = mode != "-n" and done
        said = ("yes" if done else "no") if mode == "-n" else ("moves" if done else "stays")
        if (said, found) != (expected, sorted(codes)):
            return f"it is {said} {' '.join(found)}"
        if not moved:
            if (await look_at_room(source), await look_at_room(target)) != room:
                return "room is held"
            return "" if after == before else f"something changed: {before} -> {after}"
        name = NEW_NAME if mode == "rename" else NAME
        state, run_state, definition = before[0][NAME]
        there = dict(before[1]) | {name: (state, run_state, {**definition, "name": name})}
        if after != ({}, there):
            return f"after the move: {after} instead of {there} there and nothing here"
        await remove(target, name)
        await self.make_domain()
        return ""


async def remove_all(manager: Manager) -> None:
    await wait_for(lambda: settled(manager))
    for name in await manager.domains():
        await remove(manager, name)


async def remove(manager: Manager, name: str) -> None:
    state = (await manager.domains())[name]["state"]
    verbs = {"active": ["stop", "unbind"], "bound": ["unbind"], "inactive": []}[state]
    for verb in [*verbs, "remove"]:
        await manager.call(f"{verb}-domain", {"domain": name})


async def play_table(fleet: Fleet, table: str, drivers: Mapping[str, str]) -> None:
    """Every cell; all that is not as it says, at once. ``drivers``: state -> hypervisor."""
    wrong = []
    for situation, state, cells in rows(table):
        hypervisor = "qemu" if situation == "other CPU" else drivers[state]
        play = Play(fleet, hypervisor, SITUATIONS[situation], state)
        async with play.prepared():
            for mode, cell in zip(MODES, cells, strict=True):
                if fault := await play.play(mode, cell):
                    wrong.append(f"{situation}, {state}, {mode}: {cell!r}: {fault}")
                    break  # the domain may be anywhere now
    assert not wrong, "\n".join(wrong)


ALL_EMULATED = dict.fromkeys(STATES, "emulated")
ACTIVE_QEMU = ALL_EMULATED | dict.fromkeys(("running", "suspended"), "qemu")


def make_volumes(fleet: Fleet) -> None:
    for path, size in (("host-a/gone", 1), ("host-a/other", 1), ("host-b/other", 2)):
        (fleet.folder / f"{path}.img").write_bytes(bytes(size * MIB))


@asynccontextmanager
async def pair(folder: Path, *prefix: str, without_aes: bool = False) -> AsyncIterator[Fleet]:
    async with make_fleet(folder, extra=EXTRA, start=False) as fleet:
        make_volumes(fleet)
        for manager in fleet.managers.values():
            manager.prefix = prefix
        if without_aes:
            fleet["host-b"].prefix = (*prefix, "env", f"PATH={make_wrapper(folder)}")
        for manager in fleet.managers.values():
            await manager.start()
        yield fleet


def make_wrapper(folder: Path) -> str:
    """A PATH on which QEMU is that of a host without AES."""
    program = "qemu-system-x86_64"
    wrapper = folder / "bin" / program
    wrapper.parent.mkdir()
    wrapper.write_text(WRAPPER.format(program=shutil.which(program)))
    wrapper.chmod(0o700)
    return f"{wrapper.parent}:{os.environ['PATH']}"


@contextmanager
def network_namespace() -> Iterator[tuple[str, ...]]:
    """The words that start a program in a network of its own: loopback, and a bridge for jumbo frames."""
    script = (
        "ip link set lo up && ip link add ldmbr0 type bridge && ip link set ldmbr0 mtu 9000 up"
        " && echo ready && exec cat"
    )
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        try:
            yield ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        finally:
            holder.terminate()


@pytest.mark.slow
async def test_truth_table(tmp_path: Path) -> None:
    async with pair(tmp_path) as fleet:
        await play_table(fleet, EMULATED, ALL_EMULATED)


@pytest.mark.slow
@pytest.mark.qemu
async def test_truth_table_of_qemu(tmp_path: Path) -> None:
    async with pair(tmp_path, without_aes=True) as fleet:
        await play_table(fleet, QEMU, ACTIVE_QEMU)


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.bridges
async def test_truth_table_of_switches(tmp_path: Path) -> None:
    with network_namespace() as words:
        async with pair(tmp_path, *words) as fleet:
            await play_table(fleet, BRIDGES, ACTIVE_QEMU)
