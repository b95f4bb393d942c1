"""Overrides: what a person decides for a host that is off and stays off, and when the manager refuses that."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.campaign.machine import find_processes
from ldmd.errors import BadRequest, LdmdError, NotAllowed, NotFound, WrongState
from ldmd.hypervisor.sockets import connect as connect_socket
from tests.managers import Fleet, make_fleet, switched_off, wait_for

ALLOWED = "[faults]\nallowed = true\n"
BOTH = {"host-a": ALLOWED, "host-b": ALLOWED}
KEEP, GIVE_UP = "keep-here", "give-up-here"


@asynccontextmanager
async def open_fleet(folder: Path) -> AsyncIterator[Fleet]:
    """An address where nothing answers is given up soon."""
    async with make_fleet(folder, extra=BOTH, start=False) as fleet:
        for manager in fleet.managers.values():
            path = manager.folder / "ldmd.toml"
            path.write_text(path.read_text().replace("connect-seconds = 5", "connect-seconds = 3"))
            await manager.start()
        yield fleet


async def migrate(fleet: Fleet) -> None:
    """Whoever asks need not hear the answer."""
    with contextlib.suppress(LdmdError):
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})


async def the_migration(fleet: Fleet, host: str) -> dict[str, Any]:
    (found,) = (await fleet[host].call("list-migrations"))["migrations"]
    return dict(found)


async def wait_state(fleet: Fleet, host: str, *states: str) -> dict[str, Any]:
    async def there() -> dict[str, Any] | None:
        for found in (await fleet[host].call("list-migrations"))["migrations"]:
            if found["state"] in states:
                return dict(found)
        return None

    found: dict[str, Any] = await wait_for(there)
    return found


async def recover(fleet: Fleet, host: str, decision: str, **more: str) -> Mapping[str, Any]:
    arguments = {"migration": (await the_migration(fleet, host))["migration"][:12]} | more
    arguments |= {"decision": decision, "reason": "host burnt down"}
    return await fleet[host].call("recover-migration", arguments)


async def fail_with(fleet: Fleet, host: str, fault: str) -> None:
    await fleet[host].call("arm-fault", {"fault": fault})


IN_DOUBT = ("in doubt", "in doubt, connecting")


async def test_keep_here_in_doubt(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fail_with(fleet, "host-b", "target.receive-handoff.before=crash")
        nursery.start_soon(migrate, fleet)
        await fleet["host-b"].wait_dead()
        doubt = await wait_state(fleet, "host-a", *IN_DOUBT)
        assert "recover-migration" in doubt["remedy"]
        assert "stays suspended" in doubt["meaning"]

        with switched_off(fleet["host-b"]):
            after = await recover(fleet, "host-a", KEEP)
        assert (after["decision"], after["state"]) == ("source", "kept")
        assert await fleet.copies_at("host-a") == "running"
        note = next(r["sentence"] for r in after["records"] if r["kind"] == "ABORTED")
        for words in (
            "overridden by",
            "uid 0",
            "stays here",
            "host burnt down",
            "nothing answers at",
        ):
            assert words in note
        with pytest.raises(WrongState, match="it has ended"):
            await recover(fleet, "host-a", KEEP)


async def test_give_up_here_in_doubt_and_again_for_the_good_bye(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        uuid = await fleet.start_domain("host-a")
        await fail_with(fleet, "host-b", "target.send-handoff-done.before=crash")
        nursery.start_soon(migrate, fleet)
        await fleet["host-b"].wait_dead()
        await wait_state(fleet, "host-a", *IN_DOUBT)
        with switched_off(fleet["host-b"]):
            after = await recover(fleet, "host-a", GIVE_UP)
        assert after["decision"] == "target"
        waits = ("waiting to release again", "connecting to release")
        released = await wait_state(fleet, "host-a", *waits)
        assert "--give-up-here" in released["remedy"]
        assert not (fleet["host-a"].folder / "run/domains" / uuid).exists()
        with switched_off(fleet["host-b"]):
            after = await recover(fleet, "host-a", GIVE_UP)
        assert (after["state"], after["settled"]) == ("moved", True)
        assert await fleet["host-a"].domains() == {}
        # the target comes back after all, and hears from nobody: it asks, and a person may end its wait
        await fleet["host-b"].start()
        after = await recover(fleet, "host-b", KEEP)
        assert (after["state"], after["settled"]) == ("moved", True)
        assert "host-a answers: it has settled it" in after["records"][-1]["sentence"]
        assert await fleet.copies() == {"host-b": "running"}


async def test_the_source_is_told_after_all_when_the_target_comes_back(tmp_path: Path) -> None:
    """Given up here while the target was thought to be gone, and it was right: both agree in the end."""
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fail_with(fleet, "host-b", "target.send-handoff-done.before=crash")
        nursery.start_soon(migrate, fleet)
        await fleet["host-b"].wait_dead()
        await wait_state(fleet, "host-a", *IN_DOUBT)
        with switched_off(fleet["host-b"]):
            await recover(fleet, "host-a", GIVE_UP)
        await fleet["host-b"].start()
        for host in ("host-a", "host-b"):
            after = await wait_state(fleet, host, "moved")
            assert after["decision"] == "target"
        assert await fleet.copies() == {"host-b": "running"}


async def test_keep_here_at_the_target(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fail_with(fleet, "host-a", "source.receive-handoff-done.before=crash")
        nursery.start_soon(migrate, fleet)
        await fleet["host-a"].wait_dead()
        running = await wait_state(fleet, "host-b", "running")
        assert "not started afresh or moved on" in running["meaning"]
        with switched_off(fleet["host-a"]):
            after = await recover(fleet, "host-b", KEEP)
        assert (after["state"], after["settled"]) == ("moved", True)
        assert "host burnt down" in after["records"][-1]["sentence"]
        for verb in ("stop-domain", "start-domain"):
            await fleet["host-b"].call(verb, {"domain": "ldg1"})


async def test_refused_while_the_peer_can_answer(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        # it lives and is slow to decide: in doubt, and its answer can be had
        await fail_with(fleet, "host-b", "target.record-committed.before=delay:9")
        nursery.start_soon(migrate, fleet)
        await wait_state(fleet, "host-a", *IN_DOUBT)
        with pytest.raises(NotAllowed, match=r"host-b (answers|is up)"):
            await recover(fleet, "host-a", KEEP)
        after = await wait_state(fleet, "host-a", "moved")
        assert after["decision"] == "target"
        assert await fleet.copies() == {"host-b": "running"}


async def test_refused_at_the_target_while_the_source_can_answer(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fail_with(fleet, "host-a", "source.record-completed.before=delay:3")
        nursery.start_soon(migrate, fleet)
        await wait_state(fleet, "host-b", "running")
        with pytest.raises(NotAllowed, match="host-a answers: it is on a link"):
            await recover(fleet, "host-b", KEEP)
        await wait_state(fleet, "host-b", "moved")


async def test_a_source_that_can_be_reached_comes_back_by_itself(tmp_path: Path) -> None:
    """No link yet, and one could be made: that is seen by dialling it."""
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fail_with(fleet, "host-a", "source.receive-handoff-done.before=cut")
        await fail_with(fleet, "host-a", "source.connect.before=delay:0")
        await fail_with(fleet, "host-a", "source.connect.before=delay:3")
        nursery.start_soon(migrate, fleet)
        await wait_state(fleet, "host-b", "running")
        with pytest.raises(NotAllowed, match="host-a answers"):
            await recover(fleet, "host-b", KEEP)
        await wait_state(fleet, "host-b", "moved")


@asynccontextmanager
async def in_doubt(fleet: Fleet, crash: str) -> AsyncIterator[str]:
    """Host-b died at that point, host-a waits for it; gives the domain's uuid."""
    uuid = await fleet.start_domain("host-a")
    await fail_with(fleet, "host-b", f"{crash}=crash")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate, fleet)
        await fleet["host-b"].wait_dead()
        await wait_state(fleet, "host-a", *IN_DOUBT)
        yield uuid
        nursery.cancel_scope.cancel()


def pid_of(fleet: Fleet, host: str, uuid: str) -> int:
    (pid,) = find_processes(fleet[host].folder / "run" / "domains" / uuid)
    return pid


@pytest.mark.parametrize("decision", [KEEP, GIVE_UP])
async def test_a_host_that_is_up_is_not_overridden(decision: str, tmp_path: Path) -> None:
    """Its manager is down, or hangs: the copy there may run all the same."""
    async with open_fleet(tmp_path) as fleet, in_doubt(fleet, "target.send-handoff-done.before"):
        with pytest.raises(NotAllowed, match=r"host-b is up.* refuses connections") as caught:
            await recover(fleet, "host-a", decision)
        assert "start its manager" in caught.value.remedy
        with (
            socket.create_server(("127.0.0.1", fleet["host-b"].port)),  # the kernel answers
            pytest.raises(NotAllowed, match=r"host-b is up.* takes connections"),
        ):
            await recover(fleet, "host-a", decision)
        assert await fleet.copies_at("host-a") == "suspended"
        await fleet["host-b"].start()
        await wait_state(fleet, "host-a", "moved")
        assert await fleet.copies() == {"host-b": "running"}


async def test_a_manager_that_stands_still_is_not_overridden(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fail_with(fleet, "host-b", "target.send-handoff-done.before=delay:5")
        nursery.start_soon(migrate, fleet)
        await wait_state(fleet, "host-b", "running")
        process = fleet["host-b"].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            await wait_state(fleet, "host-a", *IN_DOUBT)
            with pytest.raises(NotAllowed, match=r"host-b (is up|answers)"):
                await recover(fleet, "host-a", KEEP)
        finally:
            process.send_signal(signal.SIGCONT)
        await wait_state(fleet, "host-a", "moved")
        assert await fleet.copies() == {"host-b": "running"}


async def test_a_peer_that_cannot_be_asked_is_not_taken_for_off(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, in_doubt(fleet, "target.send-handoff-done.before"):
        manager = fleet["host-a"]
        path = manager.folder / "ldmd.toml"
        text = path.read_text()
        await manager.stop()
        path.write_text(text.replace("[peers.host-b]", "[peers.host-z]"))
        await manager.start()
        await wait_state(fleet, "host-a", *IN_DOUBT)
        with pytest.raises(NotAllowed, match="cannot be seen to be off"):
            await recover(fleet, "host-a", KEEP)
        await manager.stop()
        path.write_text(text)
        await manager.start()
        await fleet["host-b"].start()
        await wait_state(fleet, "host-a", "moved")


async def test_a_target_that_lost_its_journal_is_asked_what_it_has(tmp_path: Path) -> None:
    async with (
        open_fleet(tmp_path) as fleet,
        in_doubt(fleet, "target.send-handoff-done.before") as uuid,
    ):
        shutil.rmtree(fleet["host-b"].folder / "state")
        await fleet["host-b"].start()
        assert uuid in fleet["host-b"].log()  # the process that it forgot is named
        with pytest.raises(NotAllowed, match="a process of ldg1 lives there"):
            await recover(fleet, "host-a", KEEP)
        os.kill(pid_of(fleet, "host-b", uuid), signal.SIGKILL)

        async def kept() -> Mapping[str, Any]:
            return await recover(fleet, "host-a", KEEP)  # refused until it has ended

        after = await wait_for(kept)
        assert after["decision"] == "source"
        note = next(r["sentence"] for r in after["records"] if r["kind"] == "ABORTED")
        assert "lost its journal, and it has nothing of ldg1" in note
        assert await fleet.copies_at("host-a") == "running"


async def test_the_only_copy_is_not_given_up(tmp_path: Path) -> None:
    """The target answers that it never had it: then the one that waits is all there is."""
    async with (
        open_fleet(tmp_path) as fleet,
        in_doubt(fleet, "target.receive-handoff.before") as uuid,
    ):
        os.kill(pid_of(fleet, "host-b", uuid), signal.SIGKILL)
        for directory in ("state", "run"):
            shutil.rmtree(fleet["host-b"].folder / directory)
        await fleet["host-b"].start()
        with pytest.raises(NotAllowed, match="it has nothing of ldg1") as caught:
            await recover(fleet, "host-a", GIVE_UP)
        assert "the only one" in caught.value.remedy
        assert await fleet.copies_at("host-a") == "suspended"
        assert (await recover(fleet, "host-a", KEEP))["decision"] == "source"


async def test_what_runs_is_not_given_up(tmp_path: Path) -> None:
    """Somebody has resumed the copy past the manager."""
    async with (
        open_fleet(tmp_path) as fleet,
        in_doubt(fleet, "target.receive-handoff.before") as uuid,
    ):
        os.kill(pid_of(fleet, "host-b", uuid), signal.SIGKILL)
        directory = fleet["host-a"].folder / "run" / "domains" / uuid
        async with await connect_socket(directory, "control.sock") as stream:
            await stream.send_all(b'{"verb": "resume", "state": null}\n')
            await stream.receive_some()
        with (
            switched_off(fleet["host-b"]),
            pytest.raises(NotAllowed, match="the copy of ldg1 here runs"),
        ):
            await recover(fleet, "host-a", GIVE_UP)
        assert await fleet.copies_at("host-a") == "running"


async def test_what_is_no_override(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await fail_with(fleet, "host-a", "source.suspend-domain.before=delay:2")
        nursery.start_soon(migrate, fleet)
        found = await wait_state(fleet, "host-a", "suspending")
        with pytest.raises(WrongState, match="that is 'suspending'") as caught:
            await recover(fleet, "host-a", KEEP)
        assert "cancel-operation" in caught.value.remedy
        manager, asked = fleet["host-a"], {"migration": found["migration"], "reason": "r"}
        with pytest.raises(BadRequest, match="none of keep-here, give-up-here"):
            await manager.call("recover-migration", asked | {"decision": "whatever"})
        with pytest.raises(BadRequest, match="a reason is needed"):
            await manager.call("recover-migration", asked | {"decision": KEEP, "reason": " "})
        with pytest.raises(NotFound):
            await manager.call(
                "recover-migration", asked | {"decision": KEEP, "migration": "f" * 9}
            )
        assert await manager.stop(signal.SIGTERM) == 0
        nursery.cancel_scope.cancel()
