"""The network between two managers: every link goes through here, and can be made to stand still.

A link that stands still is what a pulled plug or a firewall leaves behind: nothing arrives and nothing is refused, so that
neither manager hears of it. (A link that breaks audibly is the managers' own fault ``cut``.)
"""

from __future__ import annotations

import contextlib

import trio
from attrs import define, field

PIECE_BYTES = 256 * 1024
CONNECT_SECONDS = 2.0
BACKLOG = 64
LOOPBACK = "127.0.0.1"


@define(eq=False)
class Wire:
    """``port`` of loopback leads to the manager that listens at ``target_port``, while that is not None."""

    listener: trio.SocketListener
    target_port: int | None = None
    _frozen: bool = field(default=False, init=False)
    """New links stand still too."""
    _living: set[_Connection] = field(factory=set, init=False)

    @property
    def port(self) -> int:
        port: int = self.listener.socket.getsockname()[1]
        return port

    def freeze(self, *, new_ones: bool) -> None:
        """Links there are stand still until ``clear``; those made from now on too, if ``new_ones``."""
        self._frozen = self._frozen or new_ones
        for connection in self._living:
            connection.frozen = True

    def clear(self) -> None:
        """New links go through again; those that stand still are broken."""
        self._frozen = False
        for connection in self._living:
            if connection.frozen:
                connection.scope.cancel()

    async def serve(self) -> None:
        """Until cancelled."""
        await trio.serve_listeners(self._carry, [self.listener])

    async def _carry(self, near: trio.SocketStream) -> None:
        connection = _Connection(frozen=self._frozen)
        self._living.add(connection)
        try:
            with connection.scope:
                async with near:
                    await self._join(near, connection)
        finally:
            self._living.discard(connection)

    async def _join(self, near: trio.SocketStream, connection: _Connection) -> None:
        if connection.frozen:
            await trio.sleep_forever()
        far: trio.SocketStream | None = None
        if self.target_port is not None:
            with contextlib.suppress(OSError), trio.move_on_after(CONNECT_SECONDS):
                far = await trio.open_tcp_stream(LOOPBACK, self.target_port)
        if far is None:
            return  # nobody listens: the caller sees the link close
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(connection.pass_on, near, far, nursery.cancel_scope)
            nursery.start_soon(connection.pass_on, far, near, nursery.cancel_scope)


@define(eq=False)
class _Connection:
    frozen: bool
    scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    async def pass_on(
        self, giver: trio.SocketStream, taker: trio.SocketStream, both: trio.CancelScope
    ) -> None:
        """Until one end closes; what it sent before has arrived then."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while piece := await giver.receive_some(PIECE_BYTES):
                if self.frozen:
                    break
                await taker.send_all(piece)
        if self.frozen:
            await trio.sleep_forever()  # the end of a link is not heard either
        both.cancel()


async def open_wire() -> Wire:
    """On a port that the kernel chooses. Raises OSError."""
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK, backlog=BACKLOG)
    return Wire(listener)
