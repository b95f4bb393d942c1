"""A target with a valid certificate that lies: the source believes nothing that its table refuses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from ldmd.config import load
from ldmd.errors import LdmdError, LinkError
from ldmd.link.listener import open_listeners, serve_links
from ldmd.link.pump import Link, LinkUser
from ldmd.link.tls import TlsFiles
from ldmd.migration import MESSAGES_WAITING_MAX
from protocol import messages as m
from tests import managers
from tests.managers import Fleet, make_fleet, wait_for

Answer = Callable[[m.MigrationMessage], tuple[m.MigrationMessage, ...]]
FINDING = m.Finding(code="bogus", subject="s", sentence="a bogus finding", remedy="r", hard=True)


def answer_honestly(message: m.MigrationMessage) -> tuple[m.MigrationMessage, ...]:
    ident = message.migration
    match message:
        case m.Check():
            return (m.Checked(migration=ident, findings=()),)
        case m.Prepare():
            return (m.Prepared(migration=ident),)
        case m.Digest():
            return (m.Installed(migration=ident, digest=message.digest),)
        case m.Handoff():
            return (m.HandoffDone(migration=ident),)
        case m.Released():
            return (m.Settled(migration=ident),)
        case _:
            return (m.Refused(migration=ident, code="cancelled", sentence="as asked"),)


@define(eq=False)
class Liar:
    """Answers honestly but once: to the first message of ``kind`` with ``lies`` before or instead of the truth."""

    kind: type[m.MigrationMessage]
    lies: Callable[[str], tuple[m.MigrationMessage, ...]]
    then_truth: bool
    told: bool = field(default=False, init=False)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        answers = answer_honestly(message)
        if isinstance(message, self.kind) and not self.told:
            self.told = True
            answers = self.lies(message.migration) + (answers if self.then_truth else ())
        for answer in answers:
            link.post(answer)

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        pass

    def link_lost(self, link: Link, sentence: str) -> None:
        pass


CASES = {
    "a finding in answer to HANDOFF": (
        m.Handoff,
        lambda i: (m.Checked(migration=i, findings=(FINDING,)),),
        False,
        "target",
    ),
    "lost before it was handed off": (
        m.Prepare,
        lambda i: (m.HandoffLost(migration=i),),
        False,
        "source",
    ),
    "done before it was handed off": (
        m.Prepare,
        lambda i: (m.HandoffDone(migration=i),),
        False,
        "source",
    ),
    "lost after it was done": (m.Released, lambda i: (m.HandoffLost(migration=i),), True, "target"),
    "installed before anything was sent": (
        m.Prepare,
        lambda i: (m.Prepared(migration=i), m.Installed(migration=i, digest=bytes(16))),
        False,
        "source",
    ),
    "another digest": (
        m.Digest,
        lambda i: (m.Installed(migration=i, digest=bytes(16)),),
        False,
        "source",
    ),
    "another migration": (m.Prepare, lambda _: (m.Prepared(migration="ab" * 16),), False, "source"),
}


@pytest.mark.parametrize("case", CASES)
async def test_what_the_table_refuses_is_not_believed(case: str, tmp_path: Path) -> None:
    kind, lies, then_truth, owner = CASES[case]
    liar = Liar(kind, lies, then_truth)
    async with make_fleet(tmp_path, start=False) as fleet, trio.open_nursery() as nursery:
        await fleet["host-a"].start()
        await nursery.start(serve_liar, fleet, liar)
        await fleet.start_domain("host-a")
        source = fleet["host-a"]
        try:
            with trio.fail_after(20):
                answer: Any = await source.call(
                    "migrate-domain", {"domain": "ldg1", "peer": "host-b"}
                )
        except LdmdError as error:
            answer = error
        assert liar.told
        decisions = await wait_for(lambda: settled(fleet))
        assert decisions == [owner]
        if owner == "source":
            assert isinstance(answer, LdmdError)
            assert "stays on host-a" in answer.sentence
            assert "start-domain" not in answer.remedy
            assert (await source.domains())["ldg1"]["run_state"] == "running"
        else:
            assert answer["outcome"] == "completed"
            assert await source.domains() == {}
        nursery.cancel_scope.cancel()


async def settled(fleet: Fleet) -> list[str] | None:
    found = (await fleet["host-a"].call("list-migrations"))["migrations"]
    return [h["decision"] for h in found] if all(h["settled"] for h in found) else None


def build_hello(host: str) -> m.Hello:
    return m.Hello(
        version_min=1,
        version_max=1,
        features=(),
        host=host,
        release="0",
        journal="cd" * 16,
        time_unix_ms=time.time_ns() // 1_000_000,
    )


async def serve_liar(
    fleet: Fleet, liar: LinkUser, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    config = load(fleet["host-b"].folder / "ldmd.toml")

    async def handle(stream: Any, peer: Any) -> None:
        with contextlib.suppress(LinkError):
            link = Link(stream, peer, build_hello("host-b"), liar)
            async with trio.open_nursery() as conversation:
                await conversation.start(link.run)
                if isinstance(liar, Flooder):
                    liar.begin(link)

    files = TlsFiles(
        certificate=config.identity.certificate,
        key=config.identity.key,
        authorities=config.identity.authorities,
    )
    listeners = await open_listeners("127.0.0.1", fleet["host-b"].port)
    await serve_links(listeners, files, config.peers.values, handle, task_status=task_status)


@define(eq=False)
class Flooder:
    """Cuts the link at the first HANDOFF, says more than can wait on the next link before it is asked, and is honest then.

    The source is made to give that next link up without having looked at what came on it.
    """

    fleet: Fleet
    migration: str = field(default="", init=False)
    links: int = field(default=0, init=False)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        if isinstance(message, m.Handoff) and not self.migration:
            self.migration = message.migration
            fault = {"fault": "source.connect.after=hang"}
            await self.fleet["host-a"].call("arm-fault", fault)
            link.abort()
            return
        for answer in answer_honestly(message):
            link.post(answer)

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        pass

    def link_lost(self, link: Link, sentence: str) -> None:
        pass

    def begin(self, link: Link) -> None:
        self.links += 1
        if self.links == 2:
            for _ in range(2 * MESSAGES_WAITING_MAX):
                link.post(m.HandoffDone(migration=self.migration))


async def test_a_link_that_was_given_up_makes_nobody_deaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managers, "DEADLINES", managers.DEADLINES + "operation-seconds = 1.5\n")
    extra = {"host-a": "[faults]\nallowed = true\n"}
    async with (
        make_fleet(tmp_path, start=False, extra=extra) as fleet,
        trio.open_nursery() as nursery,
    ):
        await fleet["host-a"].start()
        flooder = Flooder(fleet)
        await nursery.start(serve_liar, fleet, flooder)
        await fleet.start_domain("host-a")
        with trio.fail_after(20):
            await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        assert flooder.links >= 3
        assert await wait_for(lambda: settled(fleet)) == ["target"]
        nursery.cancel_scope.cancel()
