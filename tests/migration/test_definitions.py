"""Definitions between real managers: what is pending survives and stays; what moves is the same but for its name."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.errors import Busy, ChecksFailed, LdmdError, MigrationFailed
from tests.managers import Fleet, make_fleet, wait_for
from tests.migration.oracle import assert_oracle

MIB = 2**20
DOMAIN = {"domain": "ldg1"}
MOVE = {"domain": "ldg1", "peer": "host-b"}
RICH = {
    "mig-allowed": True,
    "cpu-arch": "generic",
    "variables": {"clock-mhz": "1"},
    "version": 1,
}


async def definitions(fleet: Fleet, manager: str, name: str = "ldg1") -> dict[str, Any]:
    return await fleet[manager].call("show-definition", {"domain": name})


async def test_what_was_answered_is_on_disk(tmp_path: Path) -> None:
    """The manager is killed at once after each answer: pending, cancelled, pending again, made."""
    async with make_fleet(tmp_path, "host-a") as fleet:
        manager = fleet["host-a"]
        await fleet.start_domain("host-a")
        pid = (await manager.domains())["ldg1"]["pid"]

        async def killed() -> dict[str, Any]:
            await manager.stop(signal.SIGKILL)
            await manager.start()
            assert (await manager.domains())["ldg1"]["pid"] == pid
            return await definitions(fleet, "host-a")

        four = {"domain": "ldg1", "settings": {"memory-bytes": 8 * MIB, "mig-allowed": False}}
        answer = await manager.call("set-domain", four)
        assert [change["what"] for change in answer["pending"]] == ["memory"]
        found = await killed()
        assert found["definition"]["memory-bytes"] == 4 * MIB
        assert found["definition"]["mig-allowed"] is False
        assert found["pending"] == found["definition"] | {"memory-bytes": 8 * MIB}
        assert (await manager.domains())["ldg1"]["reconfiguration_pending"] is True
        await manager.call("cancel-reconf", DOMAIN)
        found = await killed()
        assert (found["definition"]["memory-bytes"], found["pending"]) == (4 * MIB, None)
        await manager.call("add-memory", {"domain": "ldg1", "amount": 4 * MIB})
        await manager.call("stop-domain", DOMAIN)
        await manager.stop(signal.SIGKILL)
        await manager.start()
        found = await definitions(fleet, "host-a")
        assert (found["definition"]["memory-bytes"], found["pending"]) == (8 * MIB, None)
        await manager.call("start-domain", DOMAIN)
        domain = (await manager.domains())["ldg1"]
        assert (domain["memory_bytes"], domain["run_state"]) == (8 * MIB, "running")


async def test_every_verb_changes_what_it_says(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", start=False) as fleet:
        manager = fleet["host-a"]
        manager.configure({}, '[vds.vds0]\nvol1 = "disk"\n[vsw.vsw0]\nbridge = "lo"\n')
        (manager.folder / "disk").write_bytes(b"")
        await manager.start()
        await fleet.start_domain("host-a")
        await manager.call("stop-domain", DOMAIN)
        disk = {"name": "d0", "volume": "vol1", "service": "vds0"}
        for verb, arguments in (
            ("add-vcpu", {"amount": 2}),
            ("remove-vcpu", {"amount": 1}),
            ("add-memory", {"amount": 4 * MIB}),
            ("remove-memory", {"amount": 2 * MIB}),
            ("add-vdisk", {"vdisk": disk}),
            ("set-vdisk", {"name": "d0", "settings": {"read-only": True}}),
            ("add-vnet", {"vnet": {"name": "n0", "switch": "vsw0"}}),
            ("set-vnet", {"name": "n0", "settings": {"mtu": 9000}}),
            ("add-variable", {"variables": {"a": "1", "b": "2"}}),
            ("set-variable", {"variables": {"a": "3"}}),
            ("remove-variable", {"names": ["b"]}),
            ("rename-domain", {"new_name": "ldg2"}),
        ):
            name = "ldg1"
            answer = await manager.call(verb, DOMAIN | arguments)
            assert answer["changes"], verb
            assert answer["pending"] == []
            with pytest.raises(LdmdError, match="unknown argument 'colour'"):
                await manager.call(verb, DOMAIN | arguments | {"colour": 1})
        name = "ldg2"
        found = (await definitions(fleet, "host-a", name))["definition"]
        (net,) = found["vnets"]
        assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", net.pop("mac"))
        assert net == {"name": "n0", "switch": "vsw0", "mtu": 9000}
        assert found["vdisks"] == [disk | {"read-only": True, "cache": "none", "mpgroup": ""}]
        assert (found["vcpus"], found["memory-bytes"], found["variables"]) == (
            2,
            6 * MIB,
            {"a": "3"},
        )
        for kind, device in (("vdisk", "d0"), ("vnet", "n0")):
            await manager.call(f"remove-{kind}", {"domain": name, "name": device})
        document = found | {"name": "ldg3", "vdisks": [], "vnets": []}
        await manager.call("set-definition", {"definition": document})
        assert (await definitions(fleet, "host-a", "ldg3"))["definition"] == document
        with pytest.raises(LdmdError, match="neither a uuid nor a name"):
            await manager.call("set-definition", {"definition": {}})


async def test_a_domain_with_something_pending_stays_until_it_is_made_or_taken_back(
    tmp_path: Path,
) -> None:
    async with make_fleet(tmp_path) as fleet:
        uuid = await fleet.start_domain("host-a")
        call = fleet["host-a"].call
        await call("set-domain", {"domain": "ldg1", "settings": {"memory-bytes": 8 * 2**20}})
        with pytest.raises((MigrationFailed, ChecksFailed)) as caught:
            await call("migrate-domain", MOVE)
        assert "reconfiguration" in caught.value.sentence + str(caught.value.facts)
        assert await fleet.copies() == {"host-a": "running"}
        assert (await definitions(fleet, "host-a"))["pending"]["memory-bytes"] == 8 * 2**20
        assert await fleet["host-b"].domains() == {}
        await call("cancel-reconf", DOMAIN)
        await call("migrate-domain", MOVE)
        assert await fleet.copies() == {"host-b": "running"}
        await assert_oracle(fleet, "host-b", uuid)
        found = await definitions(fleet, "host-b")
        assert (found["definition"]["memory-bytes"], found["pending"]) == (4 * 2**20, None)


async def test_a_migration_under_way_is_not_interfered_with(tmp_path: Path) -> None:
    extra = dict.fromkeys(("host-a", "host-b"), "[faults]\nallowed = true\n")
    async with make_fleet(tmp_path, extra=extra) as fleet:
        await fleet.start_domain("host-a", **RICH)
        before = await definitions(fleet, "host-a")
        await fleet["host-a"].call("arm-fault", {"fault": "source.send-state.before=hang"})
        async with trio.open_nursery() as nursery:

            async def move() -> None:
                with pytest.raises(MigrationFailed):
                    await fleet["host-a"].call("migrate-domain", MOVE)

            nursery.start_soon(move)
            await wait_for(lambda: prepared(fleet))
            for manager in ("host-a", "host-b"):
                for verb, arguments in (
                    ("set-domain", {"settings": {"mig-allowed": False}}),
                    ("add-vcpu", {"amount": 1}),
                    ("rename-domain", {"new_name": "other"}),
                    ("cancel-reconf", {}),
                ):
                    with pytest.raises(Busy, match="is held by the migration"):
                        await fleet[manager].call(verb, DOMAIN | arguments)
            await fleet["host-a"].call("cancel-migration", DOMAIN)
        assert await fleet.copies() == {"host-a": "running"}
        assert await definitions(fleet, "host-a") == before


async def prepared(fleet: Fleet) -> bool:
    domain = (await fleet["host-b"].domains()).get("ldg1")
    return domain is not None and domain["operation"] is not None


@pytest.mark.parametrize("state", ["active", "suspended", "bound", "inactive"])
@pytest.mark.parametrize("new_name", [None, "ldg9"])
async def test_what_arrives_is_the_same_but_for_its_name(
    new_name: str | None, state: str, tmp_path: Path
) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", **RICH)
        for verb in {"active": (), "suspended": ("suspend",), "bound": ("stop",)}.get(
            state, ("stop", "unbind")
        ):
            await fleet["host-a"].call(f"{verb}-domain", DOMAIN)
        before = await definitions(fleet, "host-a")
        await fleet["host-a"].call("migrate-domain", MOVE | {"new_name": new_name})
        name = new_name or "ldg1"
        await wait_for(lambda: gone(fleet))
        assert list(await fleet["host-b"].domains()) == [name]
        after = await definitions(fleet, "host-b", name)
        assert after["definition"] == before["definition"] | {"name": name}
        assert after["pending"] is None
        shown = (await fleet["host-b"].domains())[name]
        assert shown["state"] == ("active" if state == "suspended" else state)
        assert shown["run_state"] == {"active": "running", "suspended": "suspended"}.get(state)


async def gone(fleet: Fleet) -> bool:
    return await fleet["host-a"].domains() == {}
