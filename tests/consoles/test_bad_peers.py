"""A peer that breaks the rules of a console: it is told, the link ends, the domain and the manager go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from ldmd.config import load
from ldmd.errors import LinkError, NotAllowed
from ldmd.link.dialer import dial
from ldmd.link.listener import open_listeners, serve_links
from ldmd.link.pump import Link, LinkUser
from ldmd.link.tls import TlsFiles
from protocol import limits
from protocol import messages as m
from tests.consoles.visitor import visit
from tests.managers import Fleet, make_fleet

STAY = "ab" * 16
ECHO: dict[str, Any] = {"firmware": "echo"}


def build_hello(host: str, *features: str) -> m.Hello:
    return m.Hello(
        version_min=1,
        version_max=1,
        features=features,
        host=host,
        release="0",
        journal="cd" * 16,
        time_unix_ms=time.time_ns() // 1_000_000,
    )


def open_message(uuid: str, **more: Any) -> m.ConsoleOpen:
    fields: dict[str, Any] = {
        "user": "eve",
        "access": m.ConsoleAccess.WRITE,
        "stay": None,
        "position": None,
        "replay_lines": 1000,
    }
    return m.ConsoleOpen(uuid=uuid, **(fields | more))


@define(eq=False)
class Stranger:
    """One end of a link, by hand. ``answers``: what a keeper says when it is asked."""

    answers: Sequence[m.Message] = ()
    heard: list[m.ConsoleMessage] = field(factory=list)
    last_words: str = ""
    spoken_to: trio.Event = field(factory=trio.Event)

    async def take_console(self, link: Link, message: m.ConsoleMessage) -> None:
        self.heard.append(message)
        self.spoken_to.set()
        if isinstance(message, m.ConsoleOpen):
            for answer in self.answers:
                link.post(answer)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None: ...
    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None: ...

    def link_lost(self, link: Link, sentence: str) -> None:
        self.last_words = sentence


def files_of(config: Any) -> TlsFiles:
    return TlsFiles(
        certificate=config.identity.certificate,
        key=config.identity.key,
        authorities=config.identity.authorities,
    )


@asynccontextmanager
async def linked(fleet: Fleet, user: LinkUser) -> AsyncIterator[Link]:
    """host-a dials host-b, without its manager."""
    config = load(fleet["host-a"].folder / "ldmd.toml")
    peer = config.peers["host-b"]
    async with trio.open_nursery() as nursery:
        secure = await dial(peer, files_of(config))
        link = Link(secure.stream, peer, build_hello("host-a", m.FEATURE_CONSOLE), user)
        await nursery.start(link.run)
        yield link
        nursery.cancel_scope.cancel()


INPUT = m.ConsoleInput(data=b"x" * 100)
BREACHES: dict[str, tuple[list[m.Message], str]] = {
    "input first": ([INPUT], "unexpected-message"),
    "opened twice": ([], "unexpected-message"),
    "a migration on the same link": ([m.Handoff(migration="0" * 32)], "unexpected-message"),
    "more was taken than sent": ([m.ConsoleTaken(count=2**40)], "bad-value"),
    "the keeper's words": ([m.ConsoleWriter(writer=None)], "unexpected-message"),
    "more than the window": (
        [m.ConsoleInput(data=bytes(limits.CONSOLE_DATA_BYTES_MAX))] * 2,
        "oversize",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
async def test_an_opener_that_breaks_the_rules(breach: str, tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        uuid = await fleet.start_domain("host-a", **ECHO)
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        await fleet["host-b"].call("suspend-domain", {"domain": "ldg1"})  # so that input waits
        said, code = BREACHES[breach]
        opening = open_message(uuid)
        user = Stranger()
        async with linked(fleet, user) as link:
            if breach != "input first":
                link.post(opening)
                await user.spoken_to.wait()
            for message in said or [opening]:
                link.post(message)
            with trio.fail_after(10):
                await link.wait_ended()
        assert f"[{code}]" in user.last_words
        await fleet["host-b"].call("resume-domain", {"domain": "ldg1"})
        async with visit(fleet["host-b"]) as visitor:  # its seat is free
            assert visitor.of("opened")[0]["writer"] is None
            await visitor.type("mine")
            await visitor.wait_text("mine")


@pytest.mark.parametrize("known", [True, False])
async def test_a_peer_that_may_not_see_it_learns_nothing(known: bool, tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        uuid = await fleet.start_domain("host-b", **ECHO)
        user = Stranger()
        async with linked(fleet, user) as link:
            link.post(
                open_message(uuid if known else "0" * 8 + uuid[8:], access=m.ConsoleAccess.FORCE)
            )
            with trio.fail_after(10):
                await link.wait_ended()
        (closed,) = user.heard
        assert isinstance(closed, m.ConsoleClosed)
        assert closed.code == "not-allowed"
        assert closed.sentence.startswith("host-b does not show that console to host-a")
        assert "may not see the console" in fleet["host-b"].log()


OPENED = m.ConsoleOpened(stay=STAY, position=0, writer=None)
LIES: dict[str, Sequence[m.Message]] = {
    "output first": [m.ConsoleOutput(position=0, data=b"x")],
    "a repeat": [OPENED, *[m.ConsoleOutput(position=0, data=b"x")] * 2],
    "taken and never sent": [OPENED, m.ConsoleTaken(count=1)],
    "more than the window": [
        OPENED,
        *(
            m.ConsoleOutput(position=n * 16_384, data=bytes(16_384))
            for n in range(5)  # the first four are the window; the user does not read
        ),
    ],
    "gaps and gaps": [OPENED, *(m.ConsoleOutput(position=2 * n, data=b"x") for n in range(200))],
    "moved to nobody": [OPENED, m.ConsoleClosed(code="moved", sentence="away", moved_to=None)],
    "moved to a stranger": [
        OPENED,
        m.ConsoleClosed(code="moved", sentence="away", moved_to="host-x"),
    ],
    "a code of a later release": [
        OPENED,
        m.ConsoleClosed(code="eclipse", sentence="dark", moved_to=None),
    ],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_keeper_that_lies(lie: str, tmp_path: Path) -> None:
    """The session ends with a reason, or the keeper is asked again; the manager goes on."""
    async with make_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a", **ECHO)
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        await fleet["host-b"].stop()
        await nursery.start(serve_stranger, fleet, Stranger(LIES[lie]))
        async with visit(fleet["host-a"]) as visitor:
            await visitor.wait(lambda: visitor.error or visitor.of("notice"))
        assert (await fleet["host-a"].call("status"))["host"] == "host-a"
        assert "bug" not in fleet["host-a"].log()
        nursery.cancel_scope.cancel()


async def test_a_peer_of_an_earlier_release_is_not_asked(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a", **ECHO)
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        await fleet["host-b"].stop()
        user = Stranger()
        await nursery.start(serve_stranger, fleet, user, ())
        async with visit(fleet["host-a"]) as visitor:
            await visitor.wait(lambda: visitor.error)
            assert isinstance(visitor.error, NotAllowed)
            assert "too old" in visitor.error.sentence
        assert user.heard == []
        nursery.cancel_scope.cancel()


async def serve_stranger(
    fleet: Fleet,
    user: LinkUser,
    features: tuple[str, ...] = (m.FEATURE_CONSOLE,),
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """host-b, without its manager."""
    config = load(fleet["host-b"].folder / "ldmd.toml")

    async def handle(stream: Any, peer: Any) -> None:
        with contextlib.suppress(LinkError):
            await Link(stream, peer, build_hello("host-b", *features), user).run()

    listeners = await open_listeners("127.0.0.1", fleet["host-b"].port)
    await serve_links(
        listeners, files_of(config), config.peers.values, handle, task_status=task_status
    )
