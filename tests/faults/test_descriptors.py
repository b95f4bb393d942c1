"""A manager that is out of descriptors, by its limit or by a peer that holds links, goes on, and so do its domains."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd.campaign.machine import find_processes
from ldmd.config import load
from ldmd.errors import LdmdError, LinkError
from ldmd.link.dialer import dial
from ldmd.link.pump import Link
from ldmd.link.tls import TlsFiles
from protocol import limits
from protocol import messages as m
from tests.managers import Fleet, Manager, make_fleet, wait_for
from tests.migration.test_lying_target import build_hello

EMULATED = '[hypervisors]\nenabled = ["emulated"]\n'
FAULTS = EMULATED + "[faults]\nallowed = true\n"
LOOKS_SECONDS = 3.0
"""The manager looks after its domains every second."""


def limit_descriptors(manager: Manager, count: int | None = None) -> None:
    """To ``count``, or to what it has open now."""
    assert manager.process is not None
    pid = manager.process.pid
    wanted = len(os.listdir(f"/proc/{pid}/fd")) if count is None else count
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, most))


async def assert_lives(manager: Manager, seconds: float) -> None:
    with pytest.raises(trio.TooSlowError):
        await manager.wait_dead(seconds)


async def test_a_manager_without_descriptors_goes_on(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", extra={"host-a": EMULATED}) as fleet:
        manager = fleet["host-a"]
        await fleet.start_domain("host-a")
        limit_descriptors(manager)
        await assert_lives(manager, LOOKS_SECONDS)
        limit_descriptors(manager, 1024)

        async def runs() -> bool:
            return (await manager.domains())["ldg1"]["run_state"] == "running"

        await wait_for(runs)


async def test_a_target_without_descriptors_in_the_handoff(tmp_path: Path) -> None:
    """COMMITTED, and its copy cannot be reached: it is not told to run, and the source's goes on."""
    extra = {"host-a": EMULATED, "host-b": FAULTS}
    async with make_fleet(tmp_path, extra=extra) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        target = fleet["host-b"]
        held_up = "target.resume-domain.before=delay:5"
        await target.call("arm-fault", {"fault": held_up})

        async def migrate() -> None:
            with suppress(LdmdError):
                await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})

        nursery.start_soon(migrate)

        async def caught() -> bool:
            return held_up in (await target.call("list-faults"))["fired"]

        await wait_for(caught)
        limit_descriptors(target)

        async def denied() -> bool:
            return "of ldg1: denying" in target.log()

        await wait_for(denied)
        limit_descriptors(target, 1024)

        async def settled() -> bool:
            open_ones = [(await m.call("status"))["migrations"] for m in fleet.managers.values()]
            return open_ones == [0, 0]

        await wait_for(settled)
        assert await fleet.copies() == {"host-a": "running"}
        assert not find_processes(target.folder)


# ---- links -----------------------------------------------------------------------------------------------


class Quiet:
    """A peer that says nothing but HELLO, and notes how its links end."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None: ...
    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None: ...
    def link_lost(self, link: Link, sentence: str) -> None:
        self.lost.append(sentence)


async def open_link(fleet: Fleet, user: Quiet, nursery: trio.Nursery) -> Link:
    """From host-b to host-a, with host-b's certificate."""
    config = load(fleet["host-b"].folder / "ldmd.toml")
    files = TlsFiles(
        certificate=config.identity.certificate,
        key=config.identity.key,
        authorities=config.identity.authorities,
    )
    peer = config.peers["host-a"]
    secure = await dial(peer, files, timeout_seconds=10)
    link = Link(secure.stream, peer, build_hello("host-b"), user)
    await nursery.start(link.run)
    return link


@asynccontextmanager
async def lone_manager(folder: Path, listen: str) -> AsyncIterator[Fleet]:
    """host-a alone, with these lines in [listen]; host-b is its peer."""
    async with make_fleet(folder, start=False, extra={"host-a": EMULATED}) as fleet:
        path = fleet["host-a"].folder / "ldmd.toml"
        path.write_text(path.read_text().replace("[listen]\n", f"[listen]\n{listen}"))
        await fleet["host-a"].start()
        yield fleet


async def test_a_peer_has_so_many_links_and_no_more(tmp_path: Path) -> None:
    listen = "links-per-peer-max = 20\n"
    async with lone_manager(tmp_path, listen) as fleet, trio.open_nursery() as nursery:
        held, late = Quiet(), Quiet()
        links = [await open_link(fleet, held, nursery) for _ in range(20)]
        await (await open_link(fleet, late, nursery)).wait_ended()
        assert "[busy]" in late.lost[0]
        assert held.lost == []
        assert "host-b has 20 links with host-a already" in fleet["host-a"].log()
        links[0].abort()  # room for another one

        async def taken() -> Any:
            link = await open_link(fleet, late, nursery)
            with trio.move_on_after(0.5):
                await link.wait_ended()
            return not link.ended

        await wait_for(taken)
        nursery.cancel_scope.cancel()


async def test_links_that_say_nothing_make_room(tmp_path: Path) -> None:
    async with lone_manager(tmp_path, "") as fleet, trio.open_nursery() as nursery:
        user = Quiet()
        links = [await open_link(fleet, user, nursery) for _ in range(limits.LINKS_SILENT_MAX)]
        links.append(await open_link(fleet, user, nursery))
        with trio.fail_after(5):
            await links[0].wait_ended()
        assert len(user.lost) == 1
        assert "given up for newer links" in user.lost[0]
        assert "given up for newer links" in fleet["host-a"].log()
        nursery.cancel_scope.cancel()


async def test_a_peer_that_holds_every_descriptor_ends_nobody(tmp_path: Path) -> None:
    async with lone_manager(tmp_path, "") as fleet, trio.open_nursery() as nursery:
        manager, user = fleet["host-a"], Quiet()
        await fleet.start_domain("host-a")
        limit_descriptors(manager, 60)
        with trio.move_on_after(LOOKS_SECONDS):
            while True:
                try:
                    await open_link(fleet, user, nursery)
                except* LinkError:  # it takes no more, or has given it up
                    await trio.sleep(0.1)
        await assert_lives(manager, LOOKS_SECONDS)
        nursery.cancel_scope.cancel()
