"""QMP over a unix socket: a pump between ``qmp_codec`` and a stream.

A connection lives for one operation of the driver, not for the domain's life. QEMU serves one client at a time, so
nothing may sit on the socket, and events that nobody reads would pile up in QEMU. Connecting costs under a millisecond.

A command that was cancelled or ran out of time takes its connection with it, and that is not enough: QEMU (seen with
7.2) gives the late answer to the *next* client, before its greeting or after. So every connection counts its commands
from a number of its own, and answers to others are passed over.

What can go wrong is kept apart: an error that QEMU answered is a ``HypervisorError`` with QEMU's words. Everything
after which the command may have been carried out is ``OutcomeUnknown``.
"""

from __future__ import annotations

import secrets
import socket
from array import array
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field

from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import sockets
from ldmd.hypervisor.qmp_codec import (
    ErrorReply,
    Event,
    Greeting,
    Message,
    QmpCodec,
    QmpFault,
    Reply,
    encode_command,
)

RECEIVE_BYTES: Final = 64 * 1024
EVENTS_KEPT: Final = 256
"""Of one operation; the newest. An operation waits for a handful."""


@define(eq=False)
class Qmp:
    """One connection with the capabilities negotiated; for one task. Make it with ``open_qmp``."""

    version: tuple[int, ...]
    events: deque[Event]
    """What came since the connection was made, oldest first."""
    _stream: trio.SocketStream
    _codec: QmpCodec
    _answer_seconds: float
    event_count: int = field(default=0, init=False)
    _last_id: int = field(factory=lambda: secrets.randbits(48), init=False)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        descriptor: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Carry out one command; gives QEMU's answer. ``descriptor`` goes along with it (SCM_RIGHTS).

        Raises HypervisorError with QEMU's words when QEMU answers with an error, OutcomeUnknown when no answer comes in
        ``timeout_seconds`` (the connection's own by default) or the connection is lost.
        """
        self._last_id += 1
        line = encode_command(command, arguments or {}, self._last_id)
        seconds = self._answer_seconds if timeout_seconds is None else timeout_seconds
        with _outcome_unknown(f"what became of {command} is not known"):
            with trio.fail_after(seconds):
                await self._send(line, descriptor)
                reply = await self._wait_reply()
        if isinstance(reply, ErrorReply):
            raise HypervisorError(
                f"QEMU refuses {command}: {reply.sentence}",
                facts={"command": command, "class": reply.error_class, "desc": reply.sentence},
            )
        return reply.value

    async def getfd(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of ``descriptor`` under ``name``; the caller keeps, and closes, its own."""
        await self.execute("getfd", {"fdname": name}, descriptor=descriptor)

    async def wait_event_after(self, count: int) -> None:
        """Wait until more than ``count`` events have come (``event_count``); the caller sets the deadline.

        Raises OutcomeUnknown.
        """
        with _outcome_unknown("QEMU does not tell any more what happens"):
            while self.event_count <= count:
                if isinstance(await self._receive(), Greeting):
                    raise QmpFault("it greets twice")

    def saw(self, event: str) -> bool:
        return any(e.name == event for e in self.events)

    async def _send(self, line: bytes, descriptor: int | None) -> None:
        if descriptor is not None:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))
            sent = await self._stream.socket.sendmsg([line], [rights])
            line = line[sent:]
        if line:
            await self._stream.send_all(line)

    async def _wait_reply(self) -> Reply | ErrorReply:
        ours = (self._last_id, None)  # None: QEMU could not read the command
        while True:
            message = await self._receive()
            # any other answers a command of a connection that was given up
            if isinstance(message, Reply | ErrorReply) and message.command_id in ours:
                return message

    async def _wait_greeting(self) -> tuple[int, ...]:
        while True:
            message = await self._receive()
            if isinstance(message, Greeting):
                self.events.clear()  # what was told before is the earlier connection's
                return message.version

    async def _receive(self) -> Message:
        while (message := self._codec.next_message()) is None:
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise QmpFault("the connection was closed")
            self._codec.receive_bytes(bytes(data))
        if isinstance(message, Event):
            self.events.append(message)
            self.event_count += 1
        return message


@asynccontextmanager
async def open_qmp(run_directory: Path, name: str, *, answer_seconds: float) -> AsyncIterator[Qmp]:
    """Connect to the socket ``name`` in ``run_directory``, read the greeting, negotiate.

    Raises OSError when nobody listens, OutcomeUnknown when QEMU accepts but does not answer within ``answer_seconds``.
    ``answer_seconds`` is for connecting, and for each command without a deadline of its own.
    """
    with trio.move_on_after(answer_seconds) as scope:
        stream = await sockets.connect(run_directory, name)
    if scope.cancelled_caught:
        raise OutcomeUnknown("QEMU does not accept another connection: it serves one at a time")
    async with stream:
        codec = QmpCodec()
        qmp = Qmp((), deque(maxlen=EVENTS_KEPT), stream, codec, answer_seconds)
        with _outcome_unknown("QEMU does not answer"):
            with trio.fail_after(answer_seconds):
                qmp.version = await qmp._wait_greeting()
        await qmp.execute("qmp_capabilities")
        yield qmp


@contextmanager
def _outcome_unknown(sentence: str) -> Iterator[None]:
    """Time-outs, lost connections and garbage -> OutcomeUnknown, beginning with ``sentence``."""
    try:
        yield
    except trio.TooSlowError as error:
        raise OutcomeUnknown(f"{sentence}: QEMU did not answer in time") from error
    except (QmpFault, trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise OutcomeUnknown(f"{sentence}: {error}") from error
