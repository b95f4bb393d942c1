"""Taking links: accept, TLS, who it is, then the handler.

Before a connection has proved whose it is, it gets next to nothing: one place among
``HANDSHAKES_MAX`` and ``HANDSHAKE_SECONDS``. When all places are taken the oldest one is given up
for the newest: an honest handshake takes milliseconds, so what is oldest is what dawdles, and
nobody shuts peers out by holding places.

Every refusal is one WARNING on ``ldmd.link`` with address, reason and, where it is known, the
fingerprint of the certificate.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import trio
from attrs import define, field

from ldmd.errors import ConfigurationError, LinkError
from ldmd.link.identity import Peer, verify_peer
from ldmd.link.stream import FAREWELL_SECONDS, BulkTLSStream
from ldmd.link.tls import TlsFiles, load_server_context

HANDSHAKES_MAX: Final = 64
"""Connections that have not yet proved whose they are; each holds some 300 KiB."""

HANDSHAKE_SECONDS: Final = 5.0
"""The same time as for HELLO: three round trips, with a packet lost and sent again."""

BACKLOG: Final = 128
"""Connections the kernel keeps for us; it drops SYNs beyond and their senders try again."""

ACCEPT_PAUSE_SECONDS: Final = 0.1
"""After running out of descriptors or memory: trying again at once would burn a core."""

LOAD_THREADS: Final = 2
"""Threads that read certificates for links: strangers must not use up those of the journal."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

Handler = Callable[[BulkTLSStream, Peer], Awaitable[None]]

logger = logging.getLogger("ldmd.link")


async def open_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
    """Listening sockets on every address of ``host`` (None: on all of this host's addresses).

    Port 0 lets the kernel choose. Raises ConfigurationError.
    """
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        where = f"{host or 'every address'} port {port}"
        words = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"cannot listen on {where}: {words}",
            remedy="correct the address to listen on in the configuration, or stop what is there",
        ) from error


def adopt_listener(descriptor: int) -> trio.SocketListener:
    """A listening TCP socket that somebody else opened (socket activation); takes it over.

    Raises ConfigurationError when the descriptor is something else.
    """
    remedy = "the socket unit must have ListenStream= and Accept=no"
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"descriptor {descriptor} is not a socket: {error.strerror}", remedy=remedy
        ) from error
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ConfigurationError(f"descriptor {descriptor} is not a TCP socket", remedy=remedy)
        sock.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except ValueError as error:
        sock.detach()
        raise ConfigurationError(
            f"descriptor {descriptor} is not a listening socket: {error}", remedy=remedy
        ) from error
    except ConfigurationError:
        sock.detach()
        raise


def describe_remote(transport: trio.SocketStream) -> str:
    """``10.0.0.2 port 40112``, or ``an unknown address`` when it has already gone."""
    try:
        host, port = transport.socket.getpeername()[:2]
    except OSError:
        return "an unknown address"
    return f"{host} port {port}"


@define(eq=False)
class _Accepting:
    """What the tasks of one ``serve_links`` share."""

    files: TlsFiles
    peers: Callable[[], Collection[Peer]]
    handler: Handler
    refusal: Callable[[LinkError], bytes] | None
    handshakes_max: int
    handshake_seconds: float
    strangers: trio.Nursery
    links: trio.Nursery
    limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(LOAD_THREADS))
    accepted: int = 0
    waiting: dict[trio.CancelScope, None] = field(factory=dict)
    """One for each handshake, the oldest first."""

    async def accept(self, listener: trio.SocketListener) -> None:
        exhausted = False
        while True:
            try:
                transport = await listener.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                if not exhausted:
                    logger.error(
                        "cannot take links for now: %s; raise this service's limit of open files",
                        os.strerror(error.errno),
                    )
                exhausted = True
                self.give_up_oldest()
                await trio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            exhausted = False
            self.accepted += 1
            if len(self.waiting) >= self.handshakes_max:
                self.give_up_oldest()
            scope = trio.CancelScope()
            self.waiting[scope] = None
            self.strangers.start_soon(self.receive_stranger, transport, scope, self.accepted)

    def give_up_oldest(self) -> None:
        oldest = next(iter(self.waiting), None)
        if oldest is not None:
            del self.waiting[oldest]
            oldest.cancel()

    async def receive_stranger(
        self, transport: trio.SocketStream, scope: trio.CancelScope, number: int
    ) -> None:
        remote = describe_remote(transport)
        stream: BulkTLSStream | None = None
        peer: Peer | None = None
        try:
            with scope:
                stream = await self.open_stream(transport, remote)
                if stream is not None:
                    stream.number = number
                    peer = await self.authenticate(stream, remote)
            if scope.cancelled_caught:
                logger.warning(
                    "refused a link from %s: gave it up for newer ones before it said who it is "
                    "[busy]",
                    remote,
                )
                peer = None
        finally:
            self.waiting.pop(scope, None)
            if stream is None or peer is None:
                transport.socket.close()
        if stream is not None and peer is not None:
            self.links.start_soon(self.handle, stream, peer, remote)

    async def open_stream(self, transport: trio.SocketStream, remote: str) -> BulkTLSStream | None:
        """None when our own files are unusable: fail closed, and say so for every link refused."""
        try:
            context: ssl.SSLContext = await trio.to_thread.run_sync(
                load_server_context, self.files, tuple(self.peers()), limiter=self.limiter
            )
        except ConfigurationError as error:
            logger.error("refused a link from %s: %s; %s", remote, error.sentence, error.remedy)
            return None
        return BulkTLSStream(transport, context, server_side=True, peer_label=remote)

    async def authenticate(self, stream: BulkTLSStream, remote: str) -> Peer | None:
        """None when refused: logged, told and closed by then."""
        established = False
        try:
            await stream.do_handshake(timeout_seconds=self.handshake_seconds)
            established = True
            der = stream.peer_certificate
            assert der is not None, "CERT_REQUIRED gave no certificate"
            peer = await trio.to_thread.run_sync(
                verify_peer, der, tuple(self.peers()), limiter=self.limiter
            )
        except LinkError as error:
            logger.warning(
                "refused a link from %s: %s; %s [%s]",
                remote,
                error.sentence,
                error.remedy,
                error.facts.get("reason"),
            )
            await self.send_refusal(stream, error if established else None)
        except ConfigurationError as error:
            logger.error("refused a link from %s: %s; %s", remote, error.sentence, error.remedy)
            await self.send_refusal(stream, None)
        else:
            stream.peer_label = peer.name
            return peer
        return None

    async def send_refusal(self, stream: BulkTLSStream, error: LinkError | None) -> None:
        if error is not None and self.refusal is not None:
            with trio.move_on_after(FAREWELL_SECONDS), contextlib.suppress(LinkError):
                await stream.send_all(self.refusal(error))
        await stream.aclose()

    async def handle(self, stream: BulkTLSStream, peer: Peer, remote: str) -> None:
        logger.debug("link from %s (%s), %s", peer.name, remote, stream.cipher)
        try:
            await self.handler(stream, peer)
        except LinkError as error:
            logger.warning(
                "the link from %s (%s) ended: %s; %s [%s]",
                peer.name,
                remote,
                error.sentence,
                error.remedy,
                error.facts.get("reason"),
            )
        finally:
            await stream.aclose()


async def serve_links(
    listeners: Sequence[trio.SocketListener],
    files: TlsFiles,
    peers: Callable[[], Collection[Peer]],
    handler: Handler,
    *,
    refusal: Callable[[LinkError], bytes] | None = None,
    handler_nursery: trio.Nursery | None = None,
    handshakes_max: int = HANDSHAKES_MAX,
    handshake_seconds: float = HANDSHAKE_SECONDS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take links until cancelled; closes the listeners then.

    ``peers`` is asked at each link, so a reloaded configuration counts at once. ``handler(stream,
    peer)`` gets what is proved; the stream is closed when it returns. A LinkError that it raises is
    logged and ends that link alone; anything else is a bug and propagates. With ``handler_nursery``
    the handlers live there and outlast the cancelling of this call: stop taking links first, end
    the links later.

    ``refusal(error)``: bytes to send to a manager that the authority vouches for and that is no
    peer here, so that it can say why; None sends just close_notify.
    """
    async with contextlib.AsyncExitStack() as stack:
        for listener in listeners:
            await stack.enter_async_context(listener)
        strangers = await stack.enter_async_context(trio.open_nursery())
        accepting = _Accepting(
            files=files,
            peers=peers,
            handler=handler,
            refusal=refusal,
            handshakes_max=handshakes_max,
            handshake_seconds=handshake_seconds,
            strangers=strangers,
            links=strangers if handler_nursery is None else handler_nursery,
        )
        for listener in listeners:
            strangers.start_soon(accepting.accept, listener)
        task_status.started()
