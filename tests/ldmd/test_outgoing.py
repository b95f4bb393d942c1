"""The queue by itself: which ticket a cancel takes, and what a ticket does that comes back or is withdrawn."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define

from ldmd import storage_proof
from ldmd.control import Caller
from ldmd.definition import VirtualDisk
from ldmd.domains import Domain
from ldmd.errors import LdmdError, NotFound, WrongState
from ldmd.faults import Faults
from ldmd.host import Host
from ldmd.journal.records import DomainState
from ldmd.link.tls import TlsFiles
from ldmd.migration import Migration
from ldmd.operations import Operations
from ldmd.outgoing import Outgoing, Ticket
from ldmd.registry import Registry
from ldmd.trace import Trace
from tests.ldmd.host import configure, open_domains
from tests.ldmd.host import define as a_domain

CALLER = Caller(uid=0, gid=0, pid=1, user="root")
PEER = "host-b"


@define(eq=False)
class Scene:
    host: Host
    outgoing: Outgoing
    operations: Operations

    async def add(self, **more: Any) -> Domain:
        return await self.host.domains.add(a_domain(**more))

    def queue(self, domain: Domain) -> Ticket:
        """Behind a target that is full, so that it begins when this says so."""
        self.outgoing._full.add(PEER)
        return self.outgoing.ask(domain, PEER, None)

    async def cancel(self, **what: str) -> Mapping[str, Any]:
        async def hear(_document: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()

        return await self.operations.cancel_migration(CALLER, what, hear)


@asynccontextmanager
async def open_scene(folder: Path, **tables: Mapping[str, object]) -> AsyncIterator[Scene]:
    config = configure(folder, **tables)
    async with open_domains(config) as domains, trio.open_nursery() as nursery:
        files = TlsFiles(certificate=folder / "c", key=folder / "k", authorities=folder / "a")
        host = Host(
            config=config,
            journal=domains.journal,
            inventory=domains.inventory,
            hypervisors=domains.hypervisors,
            domains=domains,
            faults=Faults(allowed=False),
            trace=Trace(None),
            tls_files=files,
        )
        registry = Registry(nursery)
        outgoing = Outgoing(host, registry)
        yield Scene(host, outgoing, Operations(host, registry, outgoing, 0))
        nursery.cancel_scope.cancel()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path) as made:
        yield made


# ---- which one is meant ------------------------------------------------------------------------------------


async def test_a_name_that_looks_like_anothers_uuid(scene: Scene) -> None:
    meant = await scene.add(uuid="a3c3fdaa-8b9c-4782-b7bf-872d6984727b")
    misnamed = await scene.add(name=meant.definition.uuid)
    first, second = scene.queue(misnamed), scene.queue(meant)
    answer = await scene.cancel(domain=meant.definition.uuid)
    assert answer["migration"] == second.id
    assert first.error is None
    assert misnamed.migration == first.id


async def test_a_name_is_no_id_and_an_id_no_name(scene: Scene) -> None:
    ticket = scene.queue(await scene.add())
    with pytest.raises(NotFound):
        await scene.cancel(domain=ticket.id)
    for wrong in (ticket.name, ticket.uuid):
        with pytest.raises(LdmdError, match="no migration"):
            await scene.cancel(migration=wrong)
    assert not ticket.withdrawn
    assert (await scene.cancel(migration=ticket.id))["outcome"] == "cancelled"


# ---- coming back -------------------------------------------------------------------------------------------


async def refuse(scene: Scene, ticket: Ticket) -> str:
    """As if its target had been full: it is out of the queue, its domain free, and it comes back. Its id until then."""
    earlier = ticket.id
    scene.outgoing._queue.remove(ticket)
    ticket.position = 0
    scene.host.domains.let_go(ticket.uuid, earlier)
    scene.outgoing.registry.nursery.start_soon(scene.outgoing._come_back, ticket)
    await trio.testing.wait_all_tasks_blocked()
    return earlier


async def test_one_that_came_back_is_known_by_its_earlier_ids(scene: Scene) -> None:
    ticket = scene.queue(await scene.add())
    earlier = [await refuse(scene, ticket) for _ in range(2)]
    assert ticket.position == 1
    assert len({*earlier, ticket.id}) == 3
    answer = await scene.cancel(migration=earlier[0])
    assert (answer["outcome"], answer["migration"]) == ("cancelled", ticket.id)
    assert ticket.domain.migration is None


async def test_it_waits_for_what_has_its_domain_at_that_moment(scene: Scene) -> None:
    ticket = scene.queue(await scene.add())
    async with ticket.domain.lock:
        await refuse(scene, ticket)
        assert ticket.position == 0
        assert ticket.error is None
    await trio.testing.wait_all_tasks_blocked()
    assert ticket.position == 1
    assert ticket.domain.migration == ticket.id


async def test_it_can_be_cancelled_while_it_waits_for_that(scene: Scene) -> None:
    ticket = scene.queue(await scene.add())
    async with ticket.domain.lock:
        await refuse(scene, ticket)
        answer = await scene.cancel(domain=ticket.name)
        assert answer["outcome"] == "cancelled"
    await trio.testing.wait_all_tasks_blocked()
    assert ticket.position == 0
    assert ticket.domain.migration is None
    assert len(scene.outgoing) == 0


async def test_a_domain_that_was_removed_meanwhile_does_not_come_back(scene: Scene) -> None:
    ticket = scene.queue(await scene.add())
    async with ticket.domain.lock:
        await refuse(scene, ticket)
        await scene.host.domains.remove(ticket.domain)
    await trio.testing.wait_all_tasks_blocked()
    assert isinstance(ticket.error, NotFound)
    assert len(scene.outgoing) == 0


# ---- held, and watched still -------------------------------------------------------------------------------


async def test_one_that_begins_waits_for_what_is_done_to_its_domain(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    async def make(_self: Outgoing, domain: Domain, *_: Any, **__: Any) -> Migration:
        assert not domain.queued
        made.append(domain.name)
        raise WrongState("that is enough")

    monkeypatch.setattr(Outgoing, "make", make)
    ticket = scene.queue(await scene.add())
    assert ticket.domain.queued
    async with ticket.domain.lock:
        scene.outgoing._full.clear()
        scene.outgoing._advance()
        await trio.testing.wait_all_tasks_blocked()
        assert made == []
        assert not ticket.domain.queued
    await trio.testing.wait_all_tasks_blocked()
    assert made == ["ldg1"]
    assert ticket.domain.migration is None


async def test_one_that_came_back_is_watched_again(scene: Scene) -> None:
    ticket = scene.queue(await scene.add())
    ticket.domain.queued = False
    await refuse(scene, ticket)
    assert ticket.domain.queued
    await scene.cancel(domain="ldg1")
    assert not ticket.domain.queued


# ---- withdrawn while it begins -----------------------------------------------------------------------------


async def test_what_was_put_beside_the_volumes_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    (storage / "root").write_bytes(bytes(8192))
    putting, go_on = trio.Event(), threading.Event()
    real = storage_proof.put

    def put(*arguments: Any, **more: Any) -> storage_proof.Token:
        trio.from_thread.run_sync(putting.set)
        assert go_on.wait(30)
        return real(*arguments, **more)

    monkeypatch.setattr(storage_proof, "put", put)
    vds = {"vds0": {"root": {"path": str(storage / "root")}}}
    async with open_scene(tmp_path, vds=vds) as scene:
        domain = await scene.add(vdisks=(VirtualDisk(name="d0", volume="root", service="vds0"),))
        domain.state = DomainState.BOUND
        ticket = scene.outgoing.ask(domain, PEER, None)
        with trio.fail_after(10):
            await putting.wait()
            assert (await scene.cancel(domain="ldg1"))["outcome"] == "cancelled"
            before = set(storage.iterdir())
            go_on.set()
            while scene.outgoing._places_taken:
                await trio.sleep(0.01)
        assert before == {storage / "root"}
        assert set(storage.iterdir()) == before, "nobody would remove it before the next start"
        assert ticket.migration is None
