"""One link: a TLS stream and the protocol's connection, with the tasks that move bytes between them.

Who owns a link runs ``Link.run`` in a nursery of its own; it ends when the link does, says so once (``lost``), and never
raises for what the peer or the network did. Control messages are queued by ``post`` and written by one task; state chunks
are written by whoever calls ``send_chunk``, straight from the caller's memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

import trio

from ldmd.errors import LinkError
from ldmd.link.identity import Peer
from ldmd.link.stream import BulkTLSStream
from protocol.codec import encode, make_printable
from protocol.connection import Connection
from protocol.errors import RemoteProtocolError
from protocol.frames import frame_header
from protocol.messages import ConsoleMessage, Error, Hello, Message, MigrationMessage, StateChunk

log = logging.getLogger("ldmd.link")

CLOSE_SECONDS: Final = 1.0
"""How long saying good-bye may take: nothing depends on it."""


class LinkUser(Protocol):
    """What a link delivers to. Both may raise RemoteProtocolError: the link ends with that code."""

    async def take_message(self, link: Link, message: MigrationMessage) -> None: ...
    def take_chunk(self, link: Link, chunk: StateChunk) -> None: ...
    def link_lost(self, link: Link, sentence: str) -> None: ...


@runtime_checkable
class ConsoleUser(Protocol):
    """Who carries a console too; every other link refuses what is said of one."""

    async def take_console(self, link: Link, message: ConsoleMessage) -> None: ...


class Link:
    """``peer`` is verified by its certificate; ``hello`` is what it said of itself, once ``run`` has started."""

    def __init__(self, stream: BulkTLSStream, peer: Peer, hello: Hello, user: LinkUser) -> None:
        self.peer = peer
        self.user = user
        self.hello: Hello | None = None
        self.clock_ahead_ms: int | None = None
        """How far the peer's clock is before ours, give or take the time that its HELLO took; known with ``hello``."""
        self._stream = stream
        self._connection = Connection(hello, now=trio.current_time())
        self._something_to_send = trio.Event()
        self._scope = trio.CancelScope()
        self._closing = False
        self._aborted = False
        self._cut_after_bytes: int | None = None
        self._last_words: str | None = None
        """Set to end the link when what is queued has been sent."""
        self._ended = trio.Event()
        self._hello_heard: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<link to {self.peer.name}>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until the link ends. Started when the peer's HELLO was accepted; raises LinkError when that fails."""
        started = False

        def hello_heard() -> None:
            nonlocal started
            started = True
            task_status.started()

        self._hello_heard = hello_heard
        try:
            sentence = await self._converse()
            if started and not self._closing:
                self.user.link_lost(self, sentence)  # first: saying good-bye may take its time
        finally:
            self._ended.set()
            seconds = 0 if self._aborted else CLOSE_SECONDS
            with trio.CancelScope(shield=True), trio.move_on_after(seconds):
                await self._say_goodbye()
        if not started:
            raise LinkError(f"no conversation with {self.peer.name}: {sentence}")

    async def _converse(self) -> str:
        """Read, write and keep time until it is over; returns why."""
        sentence: str | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch_time)
                    sentence = await self._read()
                    nursery.cancel_scope.cancel()
        except* (LinkError, RemoteProtocolError) as group:
            error = _first(group)
            sentence = getattr(error, "sentence", str(error))
            if isinstance(error, RemoteProtocolError):
                log.warning("link to %s: %s [%s]", self.peer.name, error.sentence, error.code)
                self._connection.fail(error)  # the good-bye says why
        return sentence or self._last_words or "the link was cut"

    async def _say_goodbye(self) -> None:
        try:
            if not self._aborted and (data := self._connection.data_to_send()):
                await self._stream.send_all(data)
        except (LinkError, trio.ClosedResourceError):
            pass  # it is gone already: that is why we are here
        finally:
            await self._stream.aclose()

    # ---- sending -----------------------------------------------------------------------------------------

    def post(self, message: Message) -> None:
        """Queue a control message; never waits. On a link that has ended it is lost."""
        if not self._ended.is_set() and not self._closing:
            self._connection.send(message)
            self._something_to_send.set()

    async def send_chunk(self, region: int, offset: int, payload: memoryview) -> None:
        """Raises LinkError. When it is cancelled, the link ends: half a chunk cannot be taken back."""
        try:
            header = self._connection.send_chunk_header(region, offset, len(payload))
            await self._send(header, payload)
        except trio.Cancelled:
            self.abort()
            raise

    def fail(self, error: RemoteProtocolError) -> None:
        """End the link because the peer broke the rules; it is told, and ``link_lost`` follows."""
        log.warning("link to %s: %s [%s]", self.peer.name, error.sentence, error.code)
        self._connection.fail(error)
        self._finish(f"{error.sentence} [{error.code}]")

    def close(self) -> None:
        """End the link on purpose, after what is queued; ``link_lost`` does not follow."""
        self._closing = True
        self._finish("the link was closed")

    def _finish(self, last_words: str) -> None:
        """The writer ends the link when the queue is empty, or time does."""
        self._last_words = last_words
        self._scope.deadline = trio.current_time() + CLOSE_SECONDS
        self._something_to_send.set()

    def abort(self) -> None:
        """End the link at once, unsaid; ``link_lost`` follows."""
        self._aborted = True
        self._scope.cancel()

    def cut_after(self, size_bytes: int) -> None:
        """End the link at once, unsaid, when so many bytes more have been sent: a fault for tests."""
        self._cut_after_bytes = size_bytes

    async def _send(self, *pieces: bytes | memoryview) -> None:
        if self._cut_after_bytes is None:
            await self._stream.send_all(*pieces)
            return
        allowed = []
        for piece in pieces:
            allowed.append(memoryview(piece)[: self._cut_after_bytes])
            self._cut_after_bytes -= len(allowed[-1])
        await self._stream.send_all(*allowed)
        if sum(map(len, allowed)) < sum(map(len, pieces)):
            self.abort()
            await trio.lowlevel.checkpoint()
            raise LinkError("the link was cut by a fault that was armed")

    @property
    def number(self) -> int:
        """Of a link that a peer made: higher for a later one."""
        return self._stream.number

    @property
    def ending(self) -> bool:
        """This side has said its last words: what the peer says after them is not heard."""
        return self._last_words is not None

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    # ---- tasks -------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send = trio.Event()
            if data := self._connection.data_to_send():
                await self._send(data)
            if self._last_words is not None:
                self._scope.cancel()

    async def _read(self) -> str:
        self._something_to_send.set()  # HELLO
        while True:
            count = await self._stream.receive_into(self._connection.get_buffer())
            if count == 0:
                self._connection.receive_eof(trio.current_time())
                return f"{self.peer.name} closed the link"
            self._connection.receive(count, trio.current_time())
            while (event := self._connection.next_event()) is not None:
                if isinstance(event, StateChunk):
                    self.user.take_chunk(self, event)
                elif isinstance(event, MigrationMessage):
                    await self.user.take_message(self, event)
                elif isinstance(event, ConsoleMessage):
                    await self._take_console(event)
                elif isinstance(event, Hello):
                    self._greet(event)
                elif isinstance(event, Error):
                    return f"{self.peer.name} ended the link: {event.sentence} [{event.code}]"
            self._something_to_send.set()  # PONG, or whatever the connection queued by itself

    async def _take_console(self, message: ConsoleMessage) -> None:
        if not isinstance(self.user, ConsoleUser):
            raise RemoteProtocolError(
                "unexpected-message", f"{message.TYPE} on a link that carries no console"
            )
        await self.user.take_console(self, message)

    def _greet(self, hello: Hello) -> None:
        if hello.host != self.peer.name:
            raise RemoteProtocolError(
                "wrong-host", f"HELLO says {hello.host}, the certificate says {self.peer.name}"
            )
        self.hello = hello
        self.clock_ahead_ms = hello.time_unix_ms - time.time_ns() // 1_000_000
        self._hello_heard()

    async def _watch_time(self) -> None:
        while True:
            deadline = self._connection.deadline
            await trio.sleep_until(trio.current_time() + 1 if deadline is None else deadline)
            self._connection.tick(trio.current_time())
            self._something_to_send.set()


def build_refusal(sentence: str) -> bytes:
    """What a manager that is no peer here is sent instead of HELLO, so that its operator can read why."""
    body = encode(Error(code="not-allowed", sentence=make_printable(sentence)))
    return frame_header(len(body)) + body


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


__all__ = ["ConsoleUser", "Link", "LinkUser"]
