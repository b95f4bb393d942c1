"""The listener and strangers: bounded, logged, and never in the way of peers."""

from __future__ import annotations

import os
import random
import resource
import socket

import pytest
import trio

from ldmd.errors import ConfigurationError, LinkError
from ldmd.link.dialer import dial
from ldmd.link.identity import Peer
from ldmd.link.listener import adopt_listener, open_listeners, serve_links
from ldmd.link.stream import BulkTLSStream
from tests.ldmd.link.fleet import Fleet, at, echo, receive_exactly, serving, wait_logged

HOST_A = Peer(name="host-a")


async def _expect_echo(fleet: Fleet, port: int) -> None:
    with trio.fail_after(5):
        link = await dial(at(port), fleet.add("host-a"))
        await link.stream.send_all(b"still there?")
        assert await receive_exactly(link.stream, 12) == b"still there?"
        await link.stream.aclose()


@pytest.mark.parametrize("seed", range(6))
async def test_random_bytes(fleet: Fleet, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    chance = random.Random(seed)
    prefix = (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n")[seed % 3]
    async with serving(fleet.add("host-b"), [HOST_A], handshake_seconds=0.3) as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(prefix + chance.randbytes(chance.randrange(5, 4000)))
            await wait_logged(caplog, "refused a link from 127.0.0.1")
        await _expect_echo(fleet, port)
    assert len([r for r in caplog.records if "refused" in r.getMessage()]) == 1


async def test_a_connection_that_says_nothing(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(fleet.add("host-b"), [HOST_A], handshake_seconds=0.2) as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.fail_after(3):
                assert await stream.receive_some(1) == b""
        await wait_logged(caplog, "127.0.0.1", "[silent]")


async def _drip(stream: trio.SocketStream, content: bytes) -> int:
    """Bytes sent, ten milliseconds apart, until the other side ended it."""
    for sent_bytes, byte in enumerate(content):
        try:
            await stream.send_all(bytes([byte]))
            with trio.move_on_after(0.01):
                if await stream.receive_some(1) == b"":
                    return sent_bytes
        except trio.BrokenResourceError:
            return sent_bytes
    return len(content)


async def test_a_handshake_that_drips(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """The deadline is for all of the handshake, not for each byte."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    async with serving(fleet.add("host-b"), [HOST_A], handshake_seconds=0.3) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            with trio.fail_after(3):
                assert await _drip(stream, hello) < len(hello)
        await wait_logged(caplog, "[silent]")


async def test_a_connection_that_goes_at_once(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(fleet.add("host-b"), [HOST_A]) as port:
        for linger in (b"\0\0\0\0\0\0\0\0", b"\1\0\0\0\0\0\0\0"):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await _expect_echo(fleet, port)
        await wait_logged(caplog, "[closed-in-handshake]")


async def test_strangers_cannot_hold_every_place(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    b = fleet.add("host-b")
    async with serving(b, [HOST_A], handshakes_max=3, handshake_seconds=60) as port:
        strangers = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(8)]
        try:
            await _expect_echo(fleet, port)
            with trio.fail_after(3):
                assert await strangers[0].receive_some(1) == b""
            await wait_logged(caplog, "gave it up for newer", "[busy]")
            with trio.move_on_after(0.05) as scope:
                await strangers[-1].receive_some(1)
            assert scope.cancelled_caught, "the newest was given up"
        finally:
            for stranger in strangers:
                await stranger.aclose()


async def test_out_of_descriptors(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(fleet.add("host-b"), [HOST_A]) as port:
        with socket.socket() as sock:
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                sock.connect(("127.0.0.1", port))
                await wait_logged(caplog, "cannot take links for now", "limit of open files")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await _expect_echo(fleet, port)
    messages = [r.getMessage() for r in caplog.records]
    assert len([m for m in messages if "cannot take links" in m]) == 1


async def test_a_handler_that_loses_its_link_ends_alone(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(fleet.add("host-b"), [HOST_A]) as port:
        link = await dial(at(port), fleet.add("host-a"))
        await link.stream.send_all(b"x")
        await receive_exactly(link.stream, 1)
        link.stream.abort()
        await wait_logged(caplog, "the link from host-a", "[cut]")
        await _expect_echo(fleet, port)


async def test_a_bug_in_the_handler_is_not_hidden(fleet: Fleet) -> None:
    async def fail(_stream: BulkTLSStream, _peer: Peer) -> None:
        raise ZeroDivisionError

    a, b = fleet.add("host-a"), fleet.add("host-b")

    async def dial_it() -> None:
        async with serving(b, [HOST_A], fail) as port:
            with trio.fail_after(5):
                await dial(at(port), a)
                await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await dial_it()
    assert caught.group_contains(ZeroDivisionError)


async def test_links_outlast_the_listener(fleet: Fleet) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    async with trio.open_nursery() as links:
        async with serving(b, [HOST_A], handler_nursery=links) as port:
            link = await dial(at(port), a)
            await link.stream.send_all(b"1")
            assert await receive_exactly(link.stream, 1) == b"1"
        with trio.fail_after(5):
            await link.stream.send_all(b"2")
            assert await receive_exactly(link.stream, 1) == b"2"
            with pytest.raises(LinkError) as caught:
                await dial(at(port), a)
            await link.stream.aclose()
    assert caught.value.facts["reason"] == "connection-refused"


async def test_peers_are_asked_at_each_link(fleet: Fleet) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    peers: list[Peer] = []
    async with serving(b, lambda: peers) as port:
        link = await dial(at(port), a)
        assert await link.stream.receive_into(memoryview(bytearray(1))) == 0
        await link.stream.aclose()
        peers.append(HOST_A)
        await _expect_echo(fleet, port)


async def test_a_socket_that_somebody_else_opened(fleet: Fleet) -> None:
    b = fleet.add("host-b")
    opened = socket.create_server(("127.0.0.1", 0))
    port = opened.getsockname()[1]
    async with trio.open_nursery() as nursery:
        listener = adopt_listener(opened.detach())
        nursery.start_soon(serve_links, [listener], b, lambda: [HOST_A], echo)
        await _expect_echo(fleet, port)
        nursery.cancel_scope.cancel()


async def test_descriptors_that_are_no_listening_socket(tmp_path: os.PathLike[str]) -> None:
    with (
        socket.socket() as idle,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
        open(os.path.join(tmp_path, "file"), "w") as file,
    ):
        for something in (idle, unix, datagram, file):
            with pytest.raises(ConfigurationError, match="descriptor"):
                adopt_listener(something.fileno())
            os.fstat(something.fileno())  # still open: it is not ours


async def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1 port {port}"):
            await open_listeners("127.0.0.1", port)
