"""Checks of what is QEMU's, on QEMU: one source, and a target for each thing that its QEMU does not have.

A target's QEMU is the one that is installed, behind a program of its name on the target's PATH. That program gives it
options that make less of it, or changes what it answers when it is asked what it has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from ldmd.errors import ChecksFailed
from ldmd.hypervisor.qemu import ORACLE_LAYOUTS
from ldmd.hypervisor.qemu_command import SPARC, X86
from tests.conftest import NR_HUGE_PAGES
from tests.managers import Fleet, make_fleet
from tests.migration.oracle import assert_oracle

MIB = 2**20
SETTINGS = '[hypervisors.qemu]\naccelerator = "tcg"\n'

WITH_OPTIONS = '#!/bin/sh\nexec {program} "$@" {words}\n'
WITH_ANSWERS = """#!/bin/sh
case "$*" in
*"-qmp stdio"*) {program} "$@" | {sed} -u -e '{words}' ;;
*) exec {program} "$@" ;;
esac
"""


@frozen
class Target:
    """``programs``: those of QEMU's that it has. The one for x86 is behind ``script``, with ``words``."""

    programs: tuple[str, ...] = (X86, SPARC)
    script: str = WITH_OPTIONS
    words: str = ""


TARGETS: Mapping[str, Target] = {
    "same": Target(),
    "no-sparc": Target((X86,)),
    "no-x86": Target((SPARC,)),
    "older": Target((X86,), WITH_ANSWERS, 's/"major": [0-9]*/"major": 1/'),
    "no-rng": Target((X86,), WITH_ANSWERS, 's/"virtio-rng-pci"/"another-device"/'),
    "no-nehalem": Target((X86,), WITH_ANSWERS, 's/"Nehalem"/"Nehalex"/'),
    "no-sse2": Target((X86,), WITH_OPTIONS, "-global qemu64-x86_64-cpu.sse2=off"),
    "no-aes": Target((X86,), WITH_OPTIONS, "-global max-x86_64-cpu.aes=off"),
    "other-pc": Target((X86,), WITH_ANSWERS, 's/"alias": "pc"/"alias": "pd"/'),
}

PC: Mapping[str, object] = {"hypervisor": "qemu", "machine": "pc", "firmware": "oracle"}
SS5: Mapping[str, object] = {"hypervisor": "qemu", "machine": "SS-5", "firmware": "default"}

CASES: list[tuple[str, str, Mapping[str, object], list[str]]] = [
    # target, state of the domain, its definition, findings
    ("no-sparc", "bound", SS5, ["!machine-unknown"]),
    ("no-sparc", "inactive", SS5, ["~machine-unknown"]),
    ("other-pc", "active", PC, ["!machine-unknown"]),
    ("no-x86", "bound", {**SS5, "firmware": "oracle"}, ["!firmware-unknown"]),
    ("older", "active", PC, ["!hypervisor-older"]),
    ("older", "bound", PC, ["~hypervisor-older"]),
    ("no-sse2", "active", PC, ["!cpu-features"]),
    ("no-sse2", "bound", PC, []),
    ("no-nehalem", "active", {**PC, "cpu-arch": "Nehalem"}, ["!cpu-unknown"]),
    ("no-aes", "active", {**PC, "cpu-arch": "native"}, ["!cpu-differs"]),
    ("no-aes", "bound", {**PC, "cpu-arch": "native"}, ["!cpu-differs"]),
    ("no-aes", "active", PC, []),
    (
        "no-rng",
        "active",
        {**PC, "optional-devices": ["rng", "watchdog"]},
        ["!optional-differs", "~optional-missing"],
    ),
    ("no-rng", "bound", {**PC, "optional-devices": ["rng"]}, ["~optional-missing"]),
    ("same", "active", {**PC, "optional-devices": ["rng", "watchdog"]}, []),
    ("same", "active", {**PC, "optional-devices": ["crypto"]}, ["!device-unmovable"]),
    ("same", "bound", {**PC, "optional-devices": ["crypto"]}, []),
    ("same", "active", {**PC, "cpu-arch": "Nehalem"}, []),
    ("same", "active", {**PC, "cpu-arch": "native"}, []),
    ("same", "active", PC, []),
    ("same", "bound", SS5, []),
    ("same", "bound", {**SS5, "firmware": "oracle"}, []),
]


def make_path(folder: Path, target: Target) -> str:
    folder.mkdir()
    for program in target.programs:
        found = shutil.which(program)
        assert found is not None
        script = target.script if program == X86 else WITH_OPTIONS
        words = target.words if program == X86 else ""
        path = folder / program
        path.write_text(script.format(program=found, words=words, sed=shutil.which("sed")))
        path.chmod(0o700)
    return str(folder)


@asynccontextmanager
async def many_targets(folder: Path) -> AsyncIterator[Fleet]:
    names = ("host-a", *TARGETS)
    async with make_fleet(
        folder, *names, extra=dict.fromkeys(names, SETTINGS), start=False
    ) as fleet:
        for name, target in TARGETS.items():
            fleet[name].prefix = ("env", f"PATH={make_path(folder / f'bin-{name}', target)}")
        for manager in fleet.managers.values():
            await manager.start()
        yield fleet


async def ask(fleet: Fleet, target: str, **more: object) -> list[str]:
    arguments = {"domain": "ldg1", "peer": target, "dry_run": True, **more}
    try:
        findings: Any = (await fleet["host-a"].call("migrate-domain", arguments))["findings"]
    except ChecksFailed as error:
        findings = error.facts["findings"]
    return sorted(("!" if f["hard"] else "~") + f["code"] for f in findings)


async def make_domain(fleet: Fleet, state: str, definition: Mapping[str, object]) -> None:
    base = {"name": "ldg1", "uuid": "0a1b2c3d-0000-4000-8000-000000000001"}
    base |= {"memory-bytes": 16 * MIB}  # type: ignore[dict-item]
    await fleet["host-a"].call("add-domain", {"definition": {**base, **definition}})
    verbs = {"inactive": (), "bound": ("bind",), "active": ("bind", "start")}[state]
    for verb in verbs:
        await fleet["host-a"].call(f"{verb}-domain", {"domain": "ldg1"})


async def remove_domain(fleet: Fleet, state: str) -> None:
    verbs = {"inactive": (), "bound": ("unbind",), "active": ("stop", "unbind")}[state]
    for verb in (*verbs, "remove"):
        await fleet["host-a"].call(f"{verb}-domain", {"domain": "ldg1"})


@pytest.mark.qemu
@pytest.mark.sparc
@pytest.mark.slow
async def test_what_a_targets_qemu_does_not_have(tmp_path: Path) -> None:
    wrong = []
    async with many_targets(tmp_path) as fleet:
        for target, state, definition, expected in CASES:
            await make_domain(fleet, state, definition)
            found = await ask(fleet, target)
            if found != expected:
                wrong.append(f"{target}, {state}, {definition}: {found} instead of {expected}")
            await remove_domain(fleet, state)
    assert not wrong, "\n".join(wrong)


def ram_page_bytes(pid: int) -> set[int]:
    """Of each memfd of the process: hugetlbfs gives the size of its pages as that of a block."""
    links = [p for p in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(p).startswith("/memfd:")]
    return {link.stat().st_blksize for link in links}


@pytest.mark.qemu
@pytest.mark.hugepages
async def test_huge_pages(tmp_path: Path) -> None:
    """Found missing when the source has the last of them; moved into those that are there."""
    before = int(NR_HUGE_PAGES.read_text())
    domain = {**PC, "huge-pages": "2MiB"}
    extra = dict.fromkeys(("host-a", "host-b"), SETTINGS)
    try:
        async with make_fleet(tmp_path, extra=extra) as fleet:
            NR_HUGE_PAGES.write_text(str(before + 8))
            uuid = await fleet.start_domain("host-a", memory_mib=16, **domain)
            assert await ask(fleet, "host-b") == ["!huge-pages"]
            NR_HUGE_PAGES.write_text(str(before + 16))
            assert await ask(fleet, "host-b") == []
            result = await fleet["host-a"].call(
                "migrate-domain", {"domain": "ldg1", "peer": "host-b"}
            )
            assert result["digest_source"] == result["digest_target"]
            pid = (await fleet["host-b"].domains())["ldg1"]["pid"]
            assert ram_page_bytes(pid) == {2 * MIB}
            await assert_oracle(fleet, "host-b", uuid, layout=ORACLE_LAYOUTS["pc.ram"])
            await fleet["host-b"].call("stop-domain", {"domain": "ldg1"})
    finally:
        NR_HUGE_PAGES.write_text(str(before))
