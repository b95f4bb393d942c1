"""A link whose user refuses what the peer said: the peer reads why, over a real connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from attrs import define, field

from ldmd.errors import LinkError
from ldmd.link.dialer import dial
from ldmd.link.identity import Peer
from ldmd.link.pump import Link
from ldmd.link.stream import BulkTLSStream
from protocol import messages as m
from protocol.connection import Connection
from protocol.errors import RemoteProtocolError
from tests.ldmd.link.fleet import Fleet, at, serving

SENTENCE = "no record of \x1b[2J" + "é" * 5000
"""As hostile as a sentence about what a peer said can be: the link must end in order all the same."""


def hello(host: str) -> m.Hello:
    return m.Hello(
        version_min=1,
        version_max=1,
        features=(),
        host=host,
        release="0.1",
        journal="a" * 32,
        time_unix_ms=1,
    )


@define(eq=False)
class Refusing:
    """Refuses whatever it is given: at once, or by ``Link.fail`` as a migration does."""

    at_once: bool = True
    lost: list[str] = field(factory=list)

    def _refuse(self, link: Link, code: str) -> None:
        error = RemoteProtocolError(code, SENTENCE)
        if self.at_once:
            raise error
        link.fail(error)

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        self._refuse(link, "unknown-migration")

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        self._refuse(link, "sequence")

    def link_lost(self, link: Link, sentence: str) -> None:
        self.lost.append(sentence)


async def say_handoff(connection: Connection, stream: BulkTLSStream) -> None:
    connection.send(m.Handoff(migration="0" * 32))
    await stream.send_all(connection.data_to_send())


async def say_chunk(connection: Connection, stream: BulkTLSStream) -> None:
    await stream.send_all(connection.send_chunk_header(0, 0, 4096), bytes(4096))


async def say_nothing(connection: Connection, stream: BulkTLSStream) -> None:
    pass


async def say_nonsense(connection: Connection, stream: BulkTLSStream) -> None:
    await stream.send_all(b"\xff")


async def listen_for_errors(
    stream: BulkTLSStream,
    own: m.Hello,
    say: Callable[[Connection, BulkTLSStream], Awaitable[None]],
) -> list[m.Error]:
    """Say HELLO, then ``say``, and read to the end -> every ERROR that came."""
    connection, errors = Connection(own, trio.current_time()), []
    await stream.send_all(connection.data_to_send())
    while count := await stream.receive_into(connection.get_buffer()):
        connection.receive(count, trio.current_time())
        while (event := connection.next_event()) is not None:
            if isinstance(event, m.Hello):
                await say(connection, stream)
            elif isinstance(event, m.Error):
                errors.append(event)
    return errors


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("claimed", "say", "code"),
    [
        ("host-a", say_handoff, "unknown-migration"),
        ("host-a", say_chunk, "sequence"),
        ("host-x", say_nothing, "wrong-host"),
        ("host-a", say_nonsense, "bad-frame"),
    ],
)
async def test_the_peer_reads_why(
    fleet: Fleet,
    claimed: str,
    say: Callable[[Connection, BulkTLSStream], Awaitable[None]],
    code: str,
    at_once: bool,
) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    user, ended = Refusing(at_once), trio.Event()

    async def serve(stream: BulkTLSStream, peer: Peer) -> None:
        try:
            with suppress(LinkError):  # wrong-host: the link never was
                await Link(stream, peer, hello("host-b"), user).run()
        finally:
            ended.set()

    with trio.fail_after(10):
        async with serving(b, [Peer(name="host-a")], serve) as port:
            secure = await dial(at(port), a)
            async with secure.stream:
                errors = await listen_for_errors(secure.stream, hello(claimed), say)
            await ended.wait()
    assert [error.code for error in errors] == [code]
    assert errors[0].sentence.isprintable()
    assert len(user.lost) == (0 if code == "wrong-host" else 1)
