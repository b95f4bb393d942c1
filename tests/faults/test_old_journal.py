"""A journal that was put back from an earlier moment, witness and all: from a backup, or a snapshot of the state directory.

Where the host has not been booted since, it is seen at once. Where it has, the peers are asked before anything is done, and
nothing is done where their records say more than this journal can know.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.campaign.machine import end_processes, find_processes
from ldmd.errors import JournalError, LdmdError, NotAllowed, WrongState
from tests.managers import Fleet, Manager, make_fleet, switched_off, wait_for

ALLOWED = "[faults]\nallowed = true\n"
HOSTS = ("host-a", "host-b")
HOLD = 1
KEEP, GIVE_UP = "keep-here", "give-up-here"


@asynccontextmanager
async def open_fleet(folder: Path) -> AsyncIterator[Fleet]:
    async with make_fleet(folder, extra=dict.fromkeys(HOSTS, ALLOWED), start=False) as fleet:
        for manager in fleet.managers.values():
            path = manager.folder / "ldmd.toml"
            path.write_text(path.read_text().replace("connect-seconds = 5", "connect-seconds = 3"))
            await manager.start()
        yield fleet


async def migrate(fleet: Fleet, source: str = "host-a") -> None:
    target = HOSTS[1 - HOSTS.index(source)]
    with contextlib.suppress(LdmdError):
        await fleet[source].call("migrate-domain", {"domain": "ldg1", "peer": target})


async def hold(
    fleet: Fleet, nursery: trio.Nursery, point: str, kind: str = f"delay:{HOLD}"
) -> None:
    """Migrate; returns when it has come to the point."""
    manager = fleet["host-a" if point.startswith("source") else "host-b"]
    await manager.call("arm-fault", {"fault": f"{point}={kind}"})
    nursery.start_soon(migrate, fleet)
    words = f"fault point {point}"

    async def there() -> bool:
        return words in manager.log()

    await wait_for(there)


def keep(manager: Manager, name: str = "kept") -> Path:
    """A copy of the state directory as it is now."""
    copy = manager.folder / name
    shutil.copytree(manager.folder / "state", copy)
    return copy


def put_back(manager: Manager, copy: Path) -> None:
    shutil.rmtree(manager.folder / "state")
    shutil.copytree(copy, manager.folder / "state")


async def switch_off_and_on(manager: Manager) -> None:
    """What a host loses when it is booted: every process, and the run directory. Its manager is not started."""
    if manager.process is not None and manager.process.poll() is None:
        await manager.stop(signal.SIGKILL)
    await end_processes(manager.folder / "run")
    shutil.rmtree(manager.folder / "run")


async def last_of(manager: Manager) -> dict[str, Any]:
    return dict((await manager.call("list-migrations"))["migrations"][0])


async def wait_state(manager: Manager, *states: str) -> dict[str, Any]:
    async def there() -> dict[str, Any] | None:
        found = await last_of(manager)
        return found if found["state"] in states else None

    found: dict[str, Any] = await wait_for(there)
    return found


async def wait_asked(manager: Manager, words: str) -> dict[str, Any]:
    """Until its peer has said how it stands."""

    async def said() -> dict[str, Any] | None:
        found = await last_of(manager)
        return found if found["state"] == "confirming" and words in found["meaning"] else None

    found: dict[str, Any] = await wait_for(said)
    return found


async def recover(manager: Manager, decision: str) -> dict[str, Any]:
    asked = {"migration": (await last_of(manager))["migration"], "decision": decision}
    return await manager.call("recover-migration", asked | {"reason": "a test"})


async def has_settled(manager: Manager, state: str) -> bool:
    found = await wait_state(manager, state)
    return bool(found["settled"])


async def settle(fleet: Fleet, *states: str) -> None:
    for host, state in zip(HOSTS, states, strict=True):
        await wait_for(partial(has_settled, fleet[host], state))


async def start(manager: Manager) -> None:
    """Afresh, when the manager has seen that its process is gone."""
    await wait_for(lambda: manager.call("start-domain", {"domain": "ldg1"}))


def processes(manager: Manager) -> int:
    return len(find_processes(manager.folder / "run"))


# ---- the host has not been booted ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "point"),
    [
        ("host-a", "source.record-granted.before"),
        ("host-b", "target.record-committed.before"),
    ],
)
async def test_it_is_refused(host: str, point: str, tmp_path: Path) -> None:
    """The source would resume what it handed over; the target would deny what it runs."""
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        manager = fleet[host]
        await hold(fleet, nursery, point)
        copy = keep(manager)
        await settle(fleet, "moved", "moved")
        await manager.stop()
        latest = keep(manager, "latest")
        put_back(manager, copy)
        done = subprocess.run(
            [sys.executable, "-m", "ldmd.daemon", "--config", str(manager.folder / "ldmd.toml")],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == JournalError.exit_status, done.stderr
        assert "is from an earlier moment" in done.stderr
        assert "put the latest one back" in done.stderr
        assert (processes(fleet["host-a"]), processes(fleet["host-b"])) == (0, 1)
        put_back(manager, latest)
        await manager.start()
        assert await fleet.copies() == {"host-b": "running"}


# ---- the host was booted ---------------------------------------------------------------------------------


async def test_a_source_does_not_take_back_what_it_handed_over(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        manager = fleet["host-a"]
        await hold(fleet, nursery, "source.record-granted.before")
        copy = keep(manager)
        await settle(fleet, "moved", "moved")
        await manager.stop()
        latest = keep(manager, "latest")
        await switch_off_and_on(manager)
        put_back(manager, copy)
        await manager.start()
        found = await wait_asked(manager, "from an earlier moment")
        assert "put the latest journal" in found["remedy"]
        assert "host-b has" in found["sentence"]
        with pytest.raises(LdmdError):
            await manager.call("start-domain", {"domain": "ldg1"})
        with pytest.raises(NotAllowed, match="host-b"):
            await recover(manager, KEEP)
        await manager.stop()
        put_back(manager, latest)
        await manager.start()
        await settle(fleet, "moved", "moved")
        assert await fleet.copies() == {"host-b": "running"}


async def test_a_source_that_was_only_booted_gives_up_with_its_target(tmp_path: Path) -> None:
    """Its journal is the latest. The target, which was waiting, gives up because it is told to."""
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        path = fleet["host-b"].folder / "ldmd.toml"
        path.write_text(path.read_text().replace("hold-seconds = 3", "hold-seconds = 600"))
        await fleet["host-b"].stop()
        await fleet["host-b"].start()
        await fleet.start_domain("host-a")
        await hold(fleet, nursery, "source.record-granted.before", "crash")
        await fleet["host-a"].wait_dead()
        await switch_off_and_on(fleet["host-a"])
        assert (await wait_state(fleet["host-b"], "ready"))["records"]
        await fleet["host-a"].start()
        await settle(fleet, "kept", "aborted")
        await start(fleet["host-a"])
        assert await fleet.copies() == {"host-a": "running"}


async def test_a_source_whose_target_is_off_waits_for_a_person(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        await hold(fleet, nursery, "source.record-granted.before", "crash")
        await fleet["host-a"].wait_dead()
        for host in HOSTS:
            await switch_off_and_on(fleet[host])
        await fleet["host-a"].start()
        found = await wait_asked(fleet["host-a"], "only host-b can say")
        assert "--keep-here" in found["remedy"]
        with pytest.raises(NotAllowed, match="host-b is up"):
            await recover(fleet["host-a"], KEEP)
        with pytest.raises(WrongState, match="--give-up-here is not for"):
            await recover(fleet["host-a"], GIVE_UP)
        with switched_off(fleet["host-b"]):
            await recover(fleet["host-a"], KEEP)
        found = await wait_state(fleet["host-a"], "kept")
        assert "a test" in next(r["sentence"] for r in found["records"] if r["kind"] == "ABORTED")
        await start(fleet["host-a"])


@pytest.mark.parametrize("older", [True, False])
async def test_a_target_does_not_deny_what_it_may_have_run(older: bool, tmp_path: Path) -> None:
    """The source is in doubt and cannot know. Only where the journal is the latest may a person deny it."""
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        manager = fleet["host-b"]
        if older:
            await hold(fleet, nursery, "target.record-committed.before")
            copy = keep(manager)
            fault = "target.send-handoff-done.before=crash"
            await manager.call("arm-fault", {"fault": fault})
        else:
            await hold(fleet, nursery, "target.record-committed.before", "crash")
        await manager.wait_dead()
        latest = keep(manager, "latest")
        await switch_off_and_on(manager)
        if older:
            put_back(manager, copy)
        await manager.start()
        found = await wait_asked(manager, "only the latest journal can say")
        assert "--give-up-here" in found["remedy"]
        assert await fleet.copies_at("host-a") == "suspended"
        if older:
            await manager.stop()
            put_back(manager, latest)
            await manager.start()
            await settle(fleet, "moved", "moved")
            assert await fleet["host-a"].domains() == {}
        else:
            await recover(manager, GIVE_UP)
            await settle(fleet, "kept", "aborted")
            assert await fleet.copies() == {"host-a": "running"}


async def test_a_target_that_may_have_denied_it_waits_for_a_person(tmp_path: Path) -> None:
    """It was committed and resumed, and the power cut came before that was recorded: so it counts as having run."""
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        manager = fleet["host-b"]
        await hold(fleet, nursery, "target.record-running.before", "crash")
        await manager.wait_dead()
        await switch_off_and_on(manager)
        await manager.start()
        found = await wait_asked(manager, "only the latest journal can say")
        assert "--keep-here" in found["remedy"]
        await recover(manager, KEEP)
        await settle(fleet, "moved", "lost, settled")
        assert await fleet["host-a"].domains() == {}
        await start(manager)


async def test_what_came_back_is_not_destroyed_for_an_older_migration(tmp_path: Path) -> None:
    """There and back again; the journal is put back to where the copy was about to be destroyed."""
    async with open_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        manager = fleet["host-a"]
        await hold(fleet, nursery, "source.destroy-domain.before")
        copy = keep(manager)
        await settle(fleet, "moved", "moved")
        await migrate(fleet, "host-b")
        await settle(fleet, "moved", "moved")
        assert await fleet.copies() == {"host-a": "running"}
        await manager.stop()
        latest = keep(manager, "latest")
        await switch_off_and_on(manager)
        put_back(manager, copy)
        await manager.start()
        await wait_asked(manager, "from an earlier moment")
        assert "ldg1" in await manager.domains()
        await manager.stop()
        put_back(manager, latest)
        await manager.start()
        await start(manager)


async def test_what_was_handed_over_is_not_booted_afresh(tmp_path: Path) -> None:
    """From a backup that knows of no migration at all."""
    async with open_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        manager = fleet["host-a"]
        await manager.call("stop-domain", {"domain": "ldg1"})
        copy = keep(manager)
        await manager.call("start-domain", {"domain": "ldg1"})
        await migrate(fleet)
        await settle(fleet, "moved", "moved")
        await switch_off_and_on(manager)
        put_back(manager, copy)
        await manager.start()
        for _ in range(2):
            with pytest.raises(WrongState, match="host-b has it") as caught:
                await manager.call("start-domain", {"domain": "ldg1"})
            assert "put the latest journal" in caught.value.remedy
            await manager.stop()
            await manager.start()  # asked again: nobody has confirmed it
        assert (processes(fleet["host-a"]), processes(fleet["host-b"])) == (0, 1)
        await fleet["host-b"].call("stop-domain", {"domain": "ldg1"})
        for verb in ("unbind-domain", "remove-domain"):
            await fleet["host-b"].call(verb, {"domain": "ldg1"})
