"""One TLS connection that carries bulk.

``trio.SSLStream`` hands over one 16 KiB record a call and checkpoints each time, which makes it
three times slower than what Python can do. Here the ciphertext of one large receive is decrypted in
a tight loop, straight into the caller's buffer, and what that one receive gave is handed over:
never waiting to fill the buffer, which would stall an open stream. Sending encrypts a slice at a
time, so memory does not grow with what is sent.

Every call into OpenSSL is synchronous and happens in the trio thread, so the one SSLObject is never
used by two at once though one task sends while another receives. Whoever sends holds a lock for the
whole call; a receiver never sends, except for the alert that says why it gives up: what OpenSSL
wants to answer to a key update goes out before the next data, as RFC 8446, 4.6.3 asks.

End of a link: ``aclose`` sends close_notify, then reads until the other side has closed too, for a
bounded time: closing a socket with unread bytes resets the connection and may destroy the tail of
what was sent. An end without close_notify is a ``LinkError`` whose ``facts["reason"]`` is ``cut``.

In TLS 1.3 the client is done with its handshake before the server has looked at the client's
certificate: a refusal arrives as an alert at the client's first receive, or breaks its send.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

import trio

from ldmd.errors import LinkError
from ldmd.link import tls
from protocol import limits

RECEIVE_BYTES: Final = 256 * limits.KIB
"""Ciphertext taken in one receive; more was not faster, and it bounds the time between two
yields."""

SEND_SLICE_BYTES: Final = 256 * limits.KIB
"""Plaintext encrypted before it is sent: the ciphertext kept in memory, and the time between two
yields."""

CLOSE_SECONDS: Final = 1.0
"""How long a close waits for the other side to close too: a round trip and some scheduling."""

CLOSE_DRAIN_BYTES_MAX: Final = 64 * limits.MIB
"""Read and thrown away at a close: more than both sockets' buffers hold."""

FAREWELL_SECONDS: Final = 0.5
"""For the alert that says why a link ends: a courtesy, not worth more."""

KEEPALIVE_PROBES: Final = 3


def _set_options(sock: trio.socket.SocketType) -> None:
    """Dead hosts are noticed within ``KEEPALIVE_DEAD_SECONDS`` whether or not anything is being
    sent."""
    tcp, interval = socket.IPPROTO_TCP, max(1, round(limits.KEEPALIVE_IDLE_SECONDS))
    # trio has set TCP_NOTSENT_LOWAT to 16 KiB: 512 KiB and 4 MiB carried 40 % less over loopback.
    for level, option, value in (
        (tcp, socket.TCP_NODELAY, 1),
        (tcp, socket.TCP_USER_TIMEOUT, round(limits.KEEPALIVE_DEAD_SECONDS * 1000)),
        (tcp, socket.TCP_KEEPIDLE, interval),
        (tcp, socket.TCP_KEEPINTVL, interval),
        (tcp, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ):
        with contextlib.suppress(OSError):  # already gone: the first use says so
            sock.setsockopt(level, option, value)


def _is_tcp(sock: trio.socket.SocketType) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


class BulkTLSStream:
    """TLS over one TCP connection, made for bulk. One task may receive while others send.

    ``peer_label`` names the other side in errors: a peer's name once it is known, its address
    before.
    """

    def __init__(
        self,
        transport: trio.SocketStream,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        peer_label: str,
        server_hostname: str | None = None,
    ) -> None:
        assert not context.options & ssl.OP_IGNORE_UNEXPECTED_EOF, "a cut would look like an end"
        self.peer_label = peer_label
        self.number = 0
        """How many connections the listener had taken by then, this one counted: in the order in which peers made them."""
        self._transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self._ciphertext = memoryview(bytearray(RECEIVE_BYTES))
        self._send_lock = trio.StrictFIFOLock()
        self._receiving = False
        self._established = False
        self._closed = False
        self._ended = False
        self._abandoned = False
        self._receive_failed = trio.Event()
        self._receive_error: LinkError | None = None
        self._send_error: LinkError | None = None
        if _is_tcp(transport.socket):
            _set_options(transport.socket)

    # ---- facts -----------------------------------------------------------------------------------

    @property
    def peer_certificate(self) -> bytes | None:
        """DER; None before the handshake."""
        return self._tls.getpeercert(binary_form=True) if self._established else None

    @property
    def alpn(self) -> str | None:
        return self._tls.selected_alpn_protocol()

    @property
    def cipher(self) -> str:
        """Such as ``TLS_AES_256_GCM_SHA384``; empty before the handshake."""
        cipher = self._tls.cipher()
        return cipher[0] if cipher else ""

    # ---- handshake -------------------------------------------------------------------------------

    async def do_handshake(self, *, timeout_seconds: float) -> None:
        """Raises LinkError with a reason and a remedy; the other side is told why by an alert.

        After an error only ``aclose`` is of use.
        """
        try:
            with trio.fail_after(timeout_seconds):
                await self._shake_hands()
        except trio.TooSlowError:
            self._abandoned = True
            error = tls.build_error(tls.SILENT, self.peer_label, timeout_seconds=timeout_seconds)
            self._receive_error = self._send_error = error
            raise error from None
        except LinkError as error:
            self._receive_error = self._send_error = error
            raise

    async def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._receive_ciphertext():
                    self._incoming.write_eof()
            except ssl.SSLError as error:
                await self._send_farewell()
                raise tls.explain(error, self.peer_label, in_handshake=True) from error
            else:
                break
        await self._flush()
        self._established = True
        if self.alpn != tls.ALPN:
            raise tls.build_error(tls.NOT_A_MANAGER, self.peer_label, alpn=self.alpn)

    # ---- receiving -------------------------------------------------------------------------------

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill the front of ``buffer`` with what one receive gave -> bytes; 0 is the peer's orderly
        end.

        Raises LinkError: ``facts["reason"]`` is ``cut`` when it ended without close_notify,
        ``refused`` when the peer's alert says so, ``closed`` after ``aclose`` or ``abort``, else
        see ``tls.py``. A cancelled call has lost nothing.
        """
        if not len(buffer):
            raise ValueError("the buffer has no room")
        if self._closed:
            raise self._closed_error()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this link")
        self._receiving = True
        try:
            waited = False
            while True:
                done_bytes = await self._decrypt_into(buffer, waited)
                if done_bytes is not None:
                    return done_bytes
                waited = True
                if not await self._receive_ciphertext():
                    self._incoming.write_eof()
        finally:
            self._receiving = False

    async def _decrypt_into(self, buffer: memoryview, waited: bool) -> int | None:
        """Bytes decrypted, 0 at the end, None when more ciphertext is needed."""
        if not waited and (self._tls.pending() or self._incoming.pending):
            # At most RECEIVE_BYTES are handed over before the next receive, which yields.
            await trio.lowlevel.checkpoint_if_cancelled()
        if self._receive_error is None and not self._ended:
            done_bytes = self._decrypt(buffer)
            if done_bytes or (self._receive_error is None and not self._ended):
                return done_bytes or None
        if not waited:
            await trio.lowlevel.checkpoint()
        if self._receive_error is not None:
            await self._send_farewell()
            raise self._receive_error
        return 0

    def _decrypt(self, buffer: memoryview) -> int:
        """As much as is there. Notes the end or the error, so that bytes before it come first."""
        size_bytes, done_bytes = len(buffer), 0
        read = cast(Callable[[int, memoryview], int], self._tls.read)  # typeshed forgets the buffer
        try:
            while done_bytes < size_bytes:
                got_bytes = read(size_bytes - done_bytes, buffer[done_bytes:])
                if not got_bytes:
                    self._ended = True
                    break
                done_bytes += got_bytes
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            self._note_receive_error(tls.explain(error, self.peer_label, in_handshake=False), error)
        return done_bytes

    def _note_receive_error(self, error: LinkError, cause: BaseException) -> None:
        error.__cause__ = cause
        self._receive_error = error
        self._receive_failed.set()

    async def _receive_ciphertext(self) -> int:
        try:
            got_bytes = await self._transport.socket.recv_into(self._ciphertext)
        except OSError as error:
            if self._closed:
                raise self._closed_error() from None
            lost = self._explain_lost(error)
            self._note_receive_error(lost, error)
            raise lost from error
        except trio.ClosedResourceError:
            raise self._closed_error() from None
        if got_bytes:
            self._incoming.write(self._ciphertext[:got_bytes])
        return got_bytes

    # ---- sending ---------------------------------------------------------------------------------

    async def send_all(self, *pieces: bytes | bytearray | memoryview) -> None:
        """Everything of every piece, in order, nothing of another call between them.

        Pieces must not change until it returns. Raises LinkError when the link is lost, with the
        peer's own reason if it gave one. After a cancelled call the link can only be closed: some
        of it was sent.
        """
        async with self._send_lock:
            if self._closed:
                raise self._closed_error()
            if self._send_error is not None:
                raise self._send_error
            try:
                for piece in pieces:
                    await self._encrypt(memoryview(piece).cast("B"))
                await self._flush()
            except LinkError as error:
                self._send_error = error
                if self._closed:
                    raise
                self._send_error = await self._find_reason(error)
                raise self._send_error from error
            except BaseException:
                self._send_error = tls.build_error(tls.SEND_CANCELLED, self.peer_label)
                raise

    async def _encrypt(self, piece: memoryview) -> None:
        start, size_bytes = 0, len(piece)
        while start < size_bytes:
            room_bytes = SEND_SLICE_BYTES - self._outgoing.pending
            try:
                start += self._tls.write(piece[start : start + max(room_bytes, 1)])
            except ssl.SSLError as error:
                raise tls.explain(error, self.peer_label, in_handshake=False) from error
            if self._outgoing.pending >= SEND_SLICE_BYTES:
                await self._flush()

    async def _flush(self) -> None:
        """Send what OpenSSL has ready; the caller holds the lock, or nobody else can be sending."""
        if not self._outgoing.pending:
            await trio.lowlevel.checkpoint()
        while self._outgoing.pending:
            ciphertext = self._outgoing.read()
            try:
                await self._transport.send_all(ciphertext)
            except trio.BrokenResourceError as error:
                cause = error.__cause__
                known = cause if isinstance(cause, OSError) else OSError(errno.EPIPE, "closed")
                raise self._explain_lost(known) from error
            except trio.ClosedResourceError:
                raise self._closed_error() from None

    async def _find_reason(self, broken: LinkError) -> LinkError:
        """A send broke: what the peer said before it went is the better reason."""
        scratch = memoryview(bytearray(RECEIVE_BYTES))
        with trio.move_on_after(FAREWELL_SECONDS):
            if self._receiving:
                await self._receive_failed.wait()
            while self._receive_error is None:
                # Data that arrives here can no longer matter: the link is lost for both directions.
                try:
                    if not await self.receive_into(scratch):
                        break
                except LinkError:
                    break
        reason = self._receive_error
        if reason is not None and reason.facts.get("reason") != "cut":
            return reason
        return broken

    # ---- the end ---------------------------------------------------------------------------------

    async def _send_farewell(self) -> None:
        """The alert that OpenSSL has ready, if the line is free."""
        if self._closed or not self._outgoing.pending:
            return
        with trio.move_on_after(FAREWELL_SECONDS), contextlib.suppress(LinkError):
            async with self._send_lock:
                await self._flush()

    def _explain_lost(self, error: OSError) -> LinkError:
        return tls.explain_lost(error, self.peer_label, in_handshake=not self._established)

    def _closed_error(self) -> LinkError:
        return tls.build_error(tls.CLOSED, self.peer_label)

    def abort(self) -> None:
        """Close the connection at once, nothing said: the peer sees a cut. Idempotent, never waits.

        Other tasks' calls end with LinkError, reason ``closed``.
        """
        self._closed = True
        self._transport.socket.close()

    async def aclose(self) -> None:
        """Orderly and bounded in time: close_notify, then wait for the other side's end.
        Idempotent.

        When cancelled, or after a failed send, the connection is just closed; the peer sees a cut.
        Never raises LinkError.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            with trio.move_on_after(CLOSE_SECONDS if self._established else FAREWELL_SECONDS):
                await self._say_goodbye()
        except (LinkError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # lost already: nobody is left to be polite to
        except trio.BusyResourceError:
            pass  # another task receives and will see the end by itself
        finally:
            self.abort()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _say_goodbye(self) -> None:
        async with self._send_lock:
            if self._established and self._send_error is None:
                with contextlib.suppress(ssl.SSLError):  # WantRead: theirs may still come
                    self._tls.unwrap()
            if self._send_error is None or not self._established:
                await self._flush()
            await self._transport.send_eof()
            self._send_error = self._send_error or tls.build_error(tls.CLOSING, self.peer_label)
        if self._abandoned:
            return
        left_bytes = CLOSE_DRAIN_BYTES_MAX
        while left_bytes > 0:
            got_bytes = await self._transport.socket.recv_into(self._ciphertext)
            if not got_bytes:
                return
            left_bytes -= got_bytes

    async def __aenter__(self) -> BulkTLSStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
