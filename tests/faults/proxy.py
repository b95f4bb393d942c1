"""The network between two managers, in the hands of a test: a relay of TCP that can lose, reset and count.

A ``Proxy`` stands before one manager; the other's configuration names its port. ``lose`` is what a pulled plug leaves: what
is sent that way does not arrive, nothing is refused, nobody is told; what lies in between arrives after ``heal``, as it does
when TCP repeats it. ``reset`` is what a firewall or a dying host does: RST, to both ends or to one, and then the other end
hears nothing at all.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import trio
from attrs import define, field

PIECE_BYTES = 256 * 1024
LOOPBACK = "127.0.0.1"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of nothing: close(2) sends RST (socket(7))."""


class Way(enum.StrEnum):
    TO = "to"
    """From who dials to who listens: from the source of a migration to its target."""
    FRO = "fro"

    @property
    def back(self) -> Way:
        return Way.FRO if self is Way.TO else Way.TO


class End(enum.StrEnum):
    NEAR = "near"
    """Who dialled."""
    FAR = "far"


BOTH_WAYS = frozenset(Way)
BOTH_ENDS = frozenset(End)


@define(eq=False)
class Proxy:
    """``carried``: bytes that have gone each way, on all links together. ``cuts``: how often ``cut_after`` has fired."""

    listener: trio.SocketListener
    port_behind: int
    carried: dict[Way, int] = field(init=False)
    cuts: int = field(default=0, init=False)
    _open: dict[Way, trio.Event] = field(init=False)
    _allowance: dict[Way, int] = field(factory=dict, init=False)
    _links: set[_Carried] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self.carried = dict.fromkeys(Way, 0)
        self._open = {way: trio.Event() for way in Way}
        self.heal()

    @property
    def port(self) -> int:
        return int(self.listener.socket.getsockname()[1])

    def lose(self, *ways: Way) -> None:
        """From now on nothing arrives that is sent those ways, and no new link can be made."""
        for way in ways:
            self._open[way] = trio.Event()

    def heal(self) -> None:
        """Everything arrives again. Ends that were left without an other end are reset."""
        for event in self._open.values():
            event.set()
        for link in list(self._links):
            if link.deaf:
                link.reset(BOTH_ENDS)

    def reset(self, ends: Collection[End] = BOTH_ENDS) -> None:
        """Every link there is. An end that is not reset hears nothing more until ``heal``."""
        for link in list(self._links):
            link.reset(ends)

    def cut_after(self, way: Way, size_bytes: int) -> None:
        """Reset the link that carries the byte behind the next ``size_bytes``; nothing of that byte arrives."""
        self._allowance[way] = size_bytes

    def forget_cut(self) -> None:
        self._allowance.clear()

    async def wait_passable(self, way: Way) -> None:
        while not self._open[way].is_set():
            await self._open[way].wait()

    def allow(self, way: Way, size_bytes: int) -> int:
        """How many of these may pass; notes that they do."""
        allowed = min(size_bytes, self._allowance.get(way, size_bytes))
        if way in self._allowance:
            self._allowance[way] -= allowed
            if allowed < size_bytes:
                self._allowance.clear()
                self.cuts += 1
        self.carried[way] += allowed
        return allowed

    async def _carry(self, near: trio.SocketStream) -> None:
        await self.wait_passable(Way.TO)  # the first packet would have been lost
        try:
            far = await trio.open_tcp_stream(LOOPBACK, self.port_behind)
        except OSError:
            _close(near, reset=True)
            return
        link = _Carried(self, {End.NEAR: near, End.FAR: far})
        self._links.add(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.pass_on, Way.TO)
                nursery.start_soon(link.pass_on, Way.FRO)
        finally:
            self._links.discard(link)
            link.reset(BOTH_ENDS)

    async def serve(self) -> None:
        """Until cancelled."""
        await trio.serve_listeners(self._carry, [self.listener])


@define(eq=False)
class _Carried:
    """One link. ``deaf``: one end was reset alone, and the other one is left in silence."""

    proxy: Proxy
    streams: dict[End, trio.SocketStream]
    deaf: bool = field(default=False, init=False)
    _over: trio.Event = field(factory=trio.Event, init=False)

    def reset(self, ends: Collection[End]) -> None:
        for end in ends:
            _close(self.streams[end], reset=True)
        self.deaf = len(ends) < len(End)
        if not self.deaf:
            self._over.set()

    async def pass_on(self, way: Way) -> None:
        """Until both ends are closed, or one is and the other has heard so."""
        giver, taker = self.streams[End.NEAR], self.streams[End.FAR]
        if way is Way.FRO:
            giver, taker = taker, giver
        try:
            while await self._pass_piece(way, giver, taker):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if not self.deaf:
                await self._tell_broken(way)
        if self.deaf:
            await self._over.wait()

    async def _pass_piece(
        self, way: Way, giver: trio.SocketStream, taker: trio.SocketStream
    ) -> bool:
        piece = await giver.receive_some(PIECE_BYTES)
        await self.proxy.wait_passable(way)
        if self.deaf:
            return False
        if not piece:
            with contextlib.suppress(OSError):
                await taker.send_eof()
            return False
        allowed = self.proxy.allow(way, len(piece))
        if allowed:
            await taker.send_all(piece[:allowed])
        if allowed < len(piece):
            self.reset(BOTH_ENDS)
            return False
        return True

    async def _tell_broken(self, way: Way) -> None:
        """One end reset the link or is gone: the other hears so when its way is passable."""
        await self.proxy.wait_passable(way)
        await self.proxy.wait_passable(way.back)
        self.reset(BOTH_ENDS)


def _close(stream: trio.SocketStream, *, reset: bool) -> None:
    if stream.socket.fileno() == -1:
        return
    if reset:
        with contextlib.suppress(OSError):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    stream.socket.close()


@asynccontextmanager
async def open_proxy(port_behind: int) -> AsyncIterator[Proxy]:
    """Before who listens at ``port_behind`` of loopback, now or later."""
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    proxy = Proxy(listener, port_behind)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()
