"""The network between two managers carries, stands still, and goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from ldmd.campaign.wire import Wire, open_wire

SHORT_SECONDS = 0.2
LONG_SECONDS = 10.0


@pytest.fixture
async def wire(nursery: trio.Nursery) -> AsyncIterator[Wire]:
    """To a server that gives back what it gets and says goodbye when the other side ends."""

    async def echo(stream: trio.SocketStream) -> None:
        try:
            while piece := await stream.receive_some():
                await stream.send_all(piece)
            await stream.send_all(b"goodbye")
        except trio.BrokenResourceError:
            pass

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, echo, [listener])
    wire = await open_wire()
    nursery.start_soon(wire.serve)
    wire.target_port = listener.socket.getsockname()[1]
    yield wire
    nursery.cancel_scope.cancel()


async def call(wire: Wire) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", wire.port)


async def answered(stream: trio.SocketStream, seconds: float) -> bytes | None:
    with trio.move_on_after(seconds):
        await stream.send_all(b"hello")
        return bytes(await stream.receive_some())
    return None


async def test_what_is_sent_arrives_and_the_end_too(wire: Wire) -> None:
    async with await call(wire) as stream:
        assert await answered(stream, LONG_SECONDS) == b"hello"
        await stream.send_eof()
        with trio.fail_after(LONG_SECONDS):
            while await stream.receive_some():
                pass


async def test_links_there_are_stand_still_and_new_ones_do_not(wire: Wire) -> None:
    async with await call(wire) as old:
        assert await answered(old, LONG_SECONDS) == b"hello"
        wire.freeze(new_ones=False)
        assert await answered(old, SHORT_SECONDS) is None
        async with await call(wire) as new:
            assert await answered(new, LONG_SECONDS) == b"hello"
            wire.clear()
            with trio.fail_after(
                LONG_SECONDS
            ):  # the old one is broken now; what was lost stays lost
                assert not await receive_end(old)
            assert await answered(new, LONG_SECONDS) == b"hello"


async def receive_end(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


async def test_new_links_stand_still_until_it_is_cleared(wire: Wire) -> None:
    wire.freeze(new_ones=True)
    async with await call(wire) as stream:
        assert await answered(stream, SHORT_SECONDS) is None
    wire.clear()
    async with await call(wire) as stream:
        assert await answered(stream, LONG_SECONDS) == b"hello"


@pytest.mark.parametrize("port", [None, "free"])
async def test_where_nobody_listens_the_link_closes(wire: Wire, port: str | None) -> None:
    if port == "free":
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            wire.target_port = sock.getsockname()[1]
    else:
        wire.target_port = None
    async with await call(wire) as stream:
        with trio.fail_after(LONG_SECONDS):
            assert await receive_end(stream) == b""
