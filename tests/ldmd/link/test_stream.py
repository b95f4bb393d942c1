"""The bulk stream: every byte, in both directions, in constant memory, and how it ends."""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from ldmd.errors import LinkError
from ldmd.link.identity import Peer
from ldmd.link.stream import BulkTLSStream
from ldmd.link.tls import load_client_context, load_server_context
from protocol.limits import MIB
from tests.ldmd.link.fleet import Fleet, expect_failure, receive_exactly

MEMORY_GROWTH_BYTES_MAX = 16 * MIB
"""Both ends are in this process: two ciphertext buffers, slices and BIOs, and the allocator's slack."""


@asynccontextmanager
async def _joined(fleet: Fleet) -> AsyncIterator[tuple[BulkTLSStream, BulkTLSStream]]:
    """A dialling and a dialled stream over loopback TCP."""
    a, b = fleet.add("host-a"), fleet.add("host-b")
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        outgoing = await trio.open_tcp_stream("127.0.0.1", port)
        incoming = await listener.accept()
    left = BulkTLSStream(
        outgoing,
        load_client_context(a, Peer(name="host-b")),
        server_side=False,
        peer_label="host-b",
    )
    right = BulkTLSStream(
        incoming,
        load_server_context(b, [Peer(name="host-a")]),
        server_side=True,
        peer_label="host-a",
    )
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for stream in (left, right):
                    nursery.start_soon(partial(stream.do_handshake, timeout_seconds=5))
            yield left, right
    finally:
        left.abort()
        right.abort()


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


async def _receive_all(stream: BulkTLSStream, buffer_bytes: int = MIB) -> tuple[int, str]:
    digest, total_bytes = hashlib.blake2b(), 0
    buffer = memoryview(bytearray(buffer_bytes))
    while got_bytes := await stream.receive_into(buffer):
        digest.update(buffer[:got_bytes])
        total_bytes += got_bytes
    return total_bytes, digest.hexdigest()


async def test_pieces_of_every_size_arrive_whole_and_in_order(fleet: Fleet) -> None:
    chance = random.Random(7)
    sizes = [0, 1, 2, 5, 16383, 16384, 16385, 262143, 262144, 262145, 3 * MIB + 1, 0, 1]
    pieces = [chance.randbytes(size) for size in sizes]
    expected = b"".join(pieces)
    async with _joined(fleet) as (left, right), trio.open_nursery() as nursery:

        async def send() -> None:
            for piece in pieces:
                await left.send_all(piece)
            await left.send_all(*pieces)
            await left.send_all()
            await left.aclose()

        nursery.start_soon(send)
        got = await _receive_all(right, 77_777)
        await right.aclose()
    assert got == (2 * len(expected), hashlib.blake2b(expected * 2).hexdigest())


async def test_a_receive_hands_over_what_is_there(fleet: Fleet) -> None:
    """It never waits to fill the buffer."""
    async with _joined(fleet) as (left, right):
        buffer = memoryview(bytearray(MIB))
        for size in (1, 1000, 16384):
            await left.send_all(bytes(size))
            done_bytes = 0
            while done_bytes < size:
                done_bytes += await right.receive_into(buffer)
            assert done_bytes == size


async def test_a_small_buffer_gets_the_rest_in_later_calls(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        await left.send_all(b"abcdefghij")
        assert [await receive_exactly(right, n) for n in (1, 2, 3, 4)] == [
            b"a",
            b"bc",
            b"def",
            b"ghij",
        ]
        with pytest.raises(ValueError, match="no room"):
            await right.receive_into(memoryview(bytearray()))


async def test_both_directions_at_once_in_constant_memory(fleet: Fleet) -> None:
    piece = memoryview(random.Random(1).randbytes(MIB))
    rounds = 96
    expected = hashlib.blake2b()
    for _ in range(rounds):
        expected.update(piece)
    peaks: list[int] = []
    results: list[tuple[int, str]] = []
    async with _joined(fleet) as streams:

        async def send(stream: BulkTLSStream) -> None:
            for _ in range(rounds):
                await stream.send_all(b"", piece[:5], piece[5:])
                peaks.append(_anonymous_bytes())

        async def receive(stream: BulkTLSStream) -> None:
            buffer, total_bytes, digest = memoryview(bytearray(MIB)), 0, hashlib.blake2b()
            while total_bytes < rounds * MIB:
                got_bytes = await stream.receive_into(buffer)
                digest.update(buffer[:got_bytes])
                total_bytes += got_bytes
            results.append((total_bytes, digest.hexdigest()))

        before = _anonymous_bytes()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, stream)
    assert results == [(rounds * MIB, expected.hexdigest())] * 2
    assert max(peaks) - before < MEMORY_GROWTH_BYTES_MAX


async def test_one_huge_piece_takes_no_memory_of_its_own(fleet: Fleet) -> None:
    piece = memoryview(bytearray(random.Random(2).randbytes(64 * MIB)))
    expected = hashlib.blake2b(piece).hexdigest()
    async with _joined(fleet) as (left, right):
        before, peaks = _anonymous_bytes(), []

        async def send() -> None:
            await left.send_all(piece)
            await left.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            buffer, digest = memoryview(bytearray(MIB)), hashlib.blake2b()
            while got_bytes := await right.receive_into(buffer):
                digest.update(buffer[:got_bytes])
                peaks.append(_anonymous_bytes())
            await right.aclose()
    assert digest.hexdigest() == expected
    assert max(peaks) - before < MEMORY_GROWTH_BYTES_MAX


async def test_calls_of_several_tasks_are_not_mixed(fleet: Fleet) -> None:
    size = 600_000
    async with _joined(fleet) as (left, right), trio.open_nursery() as nursery:
        for letter in b"xyz":
            nursery.start_soon(left.send_all, bytes([letter]) * size, bytes([letter]) * size)
        got = await receive_exactly(right, 6 * size)
    runs = [got[i * 2 * size : (i + 1) * 2 * size] for i in range(3)]
    assert sorted(run[:1] for run in runs) == [b"x", b"y", b"z"]
    assert all(run == run[:1] * (2 * size) for run in runs)


async def test_a_busy_stream_lets_other_tasks_run(fleet: Fleet) -> None:
    turns, done = 0, False
    async with _joined(fleet) as (left, right), trio.open_nursery() as nursery:

        async def count() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(count)
        nursery.start_soon(left.send_all, bytes(32 * MIB))
        buffer, total_bytes = memoryview(bytearray(MIB)), 0
        while total_bytes < 32 * MIB:
            total_bytes += await right.receive_into(buffer)
        done = True
    assert turns >= 32


# ---- how it ends -------------------------------------------------------------------------------


async def test_an_orderly_end_is_zero_for_ever(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(left.aclose)
        buffer = memoryview(bytearray(10))
        assert [await right.receive_into(buffer) for _ in range(3)] == [0, 0, 0]
        await right.aclose()
        await right.aclose()


async def test_a_cut_is_not_an_end(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        await left.send_all(b"half a ")
        left.abort()
        assert await receive_exactly(right, 7) == b"half a "
        for _ in range(2):
            error = await expect_failure(right)
            assert error.facts["reason"] == "cut"
            assert "host-a" in error.sentence


async def test_a_reset_is_a_cut(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        left._transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        left.abort()
        assert (await expect_failure(right)).facts["reason"] == "cut"
        with pytest.raises(LinkError, match="cut"):
            await right.send_all(bytes(MIB))


async def test_a_record_cut_in_two_is_a_cut(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        left._tls.write(b"never whole")
        await left._transport.send_all(left._outgoing.read()[:-3])
        left.abort()
        assert (await expect_failure(right)).facts["reason"] == "cut"


async def test_damage_on_the_way_is_seen_and_told(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        await left.send_all(b"good")
        left._tls.write(b"to be damaged")
        ciphertext = bytearray(left._outgoing.read())
        ciphertext[-1] ^= 1
        await left._transport.send_all(ciphertext)
        assert await receive_exactly(right, 4) == b"good"
        assert (await expect_failure(right)).facts["reason"] == "damaged"
        assert (await expect_failure(left)).facts["reason"] == "refused"


async def test_the_tail_survives_a_close_with_unread_bytes(fleet: Fleet) -> None:
    """Closing a socket that has unread bytes resets it, unless it is drained first."""
    size = 4 * MIB
    async with _joined(fleet) as (left, right):
        await right.send_all(bytes(100_000))  # never read by left
        async with trio.open_nursery() as nursery:

            async def send_and_close() -> None:
                await left.send_all(bytes(size))
                await left.aclose()

            nursery.start_soon(send_and_close)
            got = await _receive_all(right)
            await right.aclose()
    assert got[0] == size


async def test_a_close_waits_for_nobody_for_long(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, _silent):
        with trio.fail_after(3):
            await left.aclose()


async def test_a_close_while_a_send_is_stuck(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, _silent), trio.open_nursery() as nursery:
        stuck: list[LinkError] = []

        async def send() -> None:
            with pytest.raises(LinkError) as caught:
                await left.send_all(bytes(64 * MIB))
            stuck.append(caught.value)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(3):
            await left.aclose()
    assert stuck[0].facts["reason"] == "closed"


async def test_after_a_close_or_an_abort_every_call_says_so(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        async with trio.open_nursery() as nursery:
            waiting: list[LinkError] = []

            async def receive() -> None:
                waiting.append(await expect_failure(right))

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            right.abort()
        await left.aclose()
        for stream in (left, right):
            assert (await expect_failure(stream)).facts["reason"] == "closed"
            with pytest.raises(LinkError) as caught:
                await stream.send_all(b"x")
            assert caught.value.facts["reason"] == "closed"
    assert waiting[0].facts["reason"] == "closed"


async def test_a_cancelled_receive_has_lost_nothing(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        buffer = memoryview(bytearray(1000))
        for _ in range(20):
            with trio.move_on_after(0.001):
                await right.receive_into(buffer)
        await left.send_all(b"all of it")
        with trio.CancelScope() as scope:
            scope.cancel()
            await right.receive_into(buffer)
        assert await receive_exactly(right, 9) == b"all of it"


async def test_after_a_cancelled_send_the_link_is_of_no_use(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        with trio.move_on_after(0.05) as scope:
            await left.send_all(bytes(64 * MIB))
        assert scope.cancelled_caught
        with pytest.raises(LinkError) as caught:
            await left.send_all(b"more")
        assert caught.value.facts["reason"] == "send-cancelled"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.aclose)
            with pytest.raises(LinkError) as cut:
                await _receive_all(right)
            right.abort()
        assert cut.value.facts["reason"] == "cut"


async def test_two_receivers_are_a_bug(fleet: Fleet) -> None:
    async with _joined(fleet) as (_left, right), trio.open_nursery() as nursery:
        buffer = memoryview(bytearray(10))
        nursery.start_soon(right.receive_into, buffer)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await right.receive_into(buffer)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_close_still_closes(fleet: Fleet) -> None:
    async with _joined(fleet) as (left, right):
        with trio.CancelScope() as scope:
            scope.cancel()
            await left.aclose()
        assert scope.cancelled_caught
        assert (await expect_failure(right)).facts["reason"] == "cut"
