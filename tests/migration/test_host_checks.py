"""Checks of the hosts themselves between real managers: clocks, certificates, and what a definition forbids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from certs.issue import issue_host
from certs.store import write_identity
from ldmd.errors import ChecksFailed
from tests.faults.test_clock import LIBRARIES
from tests.managers import Fleet, make_fleet


async def ask(fleet: Fleet, source: str, target: str) -> list[tuple[str, str, bool]]:
    """(code, subject, hard) of every finding of a dry run."""
    arguments = {"domain": "ldg1", "peer": target, "dry_run": True}
    try:
        findings: Any = (await fleet[source].call("migrate-domain", arguments))["findings"]
    except ChecksFailed as error:
        findings = error.facts["findings"]
    return sorted((f["code"], f["subject"], f["hard"]) for f in findings)


@pytest.mark.faketime
async def test_clocks_that_are_apart_are_a_note(tmp_path: Path) -> None:
    """Whichever is ahead; and the migration is none the worse for it."""
    async with make_fleet(tmp_path, start=False) as fleet:
        fleet["host-b"].prefix = (
            "env",
            f"LD_PRELOAD={LIBRARIES[0]}",
            "FAKETIME=+90s",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "DONT_FAKE_MONOTONIC=1",
        )
        for manager in fleet.managers.values():
            await manager.start()
        await fleet.start_domain("host-a")
        apart = [("clocks", "host-b", False)]
        assert await ask(fleet, "host-a", "host-b") == apart
        result = await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        assert [f["code"] for f in result["findings"]] == ["clocks"]
        assert await ask(fleet, "host-b", "host-a") == [("clocks", "host-a", False)]


async def test_certificates_that_end_soon_are_a_note(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", "host-b", "host-c", start=False) as fleet:
        soon = issue_host(fleet.authority, "host-c", 1)
        write_identity(fleet["host-c"].folder / "tls", soon, force=True)
        for manager in fleet.managers.values():
            await manager.start()
        for host in ("host-a", "host-c"):
            await fleet.start_domain(host)
        assert await ask(fleet, "host-a", "host-b") == []
        assert await ask(fleet, "host-a", "host-c") == [
            ("certificate-expires", "host-c", False),
            ("name-taken", "ldg1", True),
        ]
        assert await ask(fleet, "host-c", "host-b") == [
            ("certificate-expires", "the source", False)
        ]


async def test_a_domain_that_may_not_be_migrated(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", **{"mig-allowed": False})
        for force in (False, True):
            with pytest.raises(ChecksFailed):
                await fleet["host-a"].call(
                    "migrate-domain", {"domain": "ldg1", "peer": "host-b", "force": force}
                )
        assert await ask(fleet, "host-a", "host-b") == [("not-migratable", "ldg1", True)]
        assert await fleet.copies() == {"host-a": "running"}
