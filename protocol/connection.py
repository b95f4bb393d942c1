"""One link's conversation: frames, codec and session behind bytes in, events out, bytes out, a deadline.

Nothing here waits, sends or reads a clock. The caller's loop is::

    connection = Connection(hello, now=now())
    send(connection.data_to_send())                    # HELLO
    while count := receive_into(connection.get_buffer()):
        connection.receive(count, now())
        while (event := connection.next_event()) is not None:
            ...
        send(connection.data_to_send())
    connection.receive_eof(now())

and, beside it, ``tick(now())`` whenever ``deadline`` has come.

A link can end in three ways, and after each of them ``over`` is true, what arrives is thrown away, and what is queued is
lost, as it may be on any link: the peer broke the rules (RemoteProtocolError, and ERROR is queued), our user ended it
(``fail`` or ``send(Error(...))``), or the peer did (ERROR is given out, or the end of the stream).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from protocol import frames, limits
from protocol.codec import decode, encode, make_printable
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import (
    ConsoleMessage,
    Error,
    Hello,
    Message,
    MigrationMessage,
    Ping,
    Pong,
    StateChunk,
)
from protocol.session import (
    Agreement,
    Keepalive,
    Session,
    SessionAction,
    SessionEvent,
    SessionState,
    agree,
    event_of,
)

Received = Message | StateChunk


class Connection:
    """``hello`` is what we say of ourselves. It is queued first, so it is the first thing the peer hears."""

    def __init__(self, hello: Hello, now: float) -> None:
        self.hello: Final = hello
        self.peer: Hello | None = None
        """What the peer says of itself, once it was accepted."""
        self._agreement: Agreement | None = None
        self._frames = frames.FrameReader(limits.HELLO_BYTES_MAX)
        self._session = Session()
        self._keepalive = Keepalive(now)
        self._hello_due_at: Final = now + limits.HELLO_SECONDS
        self._fault: tuple[str, str] | None = None
        """Code and sentence of what the peer did."""
        self._peer_finished = False
        self._queue: list[bytes] = []
        self._pongs_queued = 0
        self._pings_sent = 0
        self._pongs_heard = 0
        self._chunks_sent = 0
        self._chunks_received = 0
        self._queue_message(hello)

    # ---- what holds ----------------------------------------------------------------------------------------

    @property
    def version(self) -> int | None:
        """Of the protocol, as agreed; None before the peer's HELLO."""
        return None if self._agreement is None else self._agreement.version

    @property
    def features(self) -> frozenset[str]:
        """That both sides have; empty before the peer's HELLO."""
        return frozenset() if self._agreement is None else self._agreement.features

    @property
    def over(self) -> bool:
        return self._session.over

    # ---- receiving -----------------------------------------------------------------------------------------

    def get_buffer(self) -> memoryview:
        """Where to receive to; never empty. Makes every chunk that was given out before invalid."""
        if self.over:  # its content will not be looked at
            self._frames.discard()
        return self._frames.get_buffer()

    def receive(self, count: int, now: float) -> None:
        """``count`` bytes have been written to the front of what ``get_buffer`` gave."""
        self._frames.buffer_filled(count)
        if count:
            self._keepalive.note_heard(now)

    def receive_eof(self, now: float) -> None:
        """The peer will send no more. What came before is still given out by ``next_event``."""
        self._keepalive.note_heard(now)
        self._peer_finished = True

    def next_event(self) -> Received | None:
        """What the peer said next; None when more bytes are needed, and when the link is over.

        HELLO is given out once, then messages of a migration or a console and state chunks, and at last ERROR;
        PING and PONG are not. A chunk's payload is valid until the next call of ``next_event`` or ``get_buffer``.

        Raises RemoteProtocolError when the peer broke the rules, from then on at each call; ERROR is queued.
        """
        if self._fault is not None:
            raise RemoteProtocolError(*self._fault)
        while not self.over:
            try:
                body = self._frames.next_frame()
                if body is None:
                    self._take_end()
                    return None
                received = (
                    frames.parse_chunk(body) if body[0] == frames.CHUNK_LEAD else decode(body)
                )
                if SessionAction.DELIVER in self._take(received):
                    return received
            except RemoteProtocolError as error:
                self._session.step(SessionEvent.FAULT)
                self._report(error.code, error.sentence)
                raise
        return None

    def _take_end(self) -> None:
        """Everything that came was given out: if the stream has ended, the session has."""
        if not self._peer_finished:
            return
        if self._frames.buffered_bytes:
            raise RemoteProtocolError("bad-frame", "the link was closed in the middle of a frame")
        self._session.step(SessionEvent.END)

    def _take(self, received: Received) -> tuple[SessionAction, ...]:
        actions = self._session.step(event_of(received))
        for action in actions:
            if action in _HANDLERS:
                _HANDLERS[action](self, received)
        return actions

    def _agree(self, received: Received) -> None:
        assert isinstance(received, Hello)
        self._agreement = agree(self.hello, received)
        self.peer = received
        self._frames.body_bytes_max = limits.FRAME_BODY_BYTES_MAX

    def _count(self, received: Received) -> None:
        assert isinstance(received, StateChunk)
        if received.sequence != self._chunks_received:
            raise RemoteProtocolError(
                "sequence",
                f"state chunk {received.sequence} came where {self._chunks_received} was due",
            )
        self._chunks_received += 1

    def _answer(self, received: Received) -> None:
        assert isinstance(received, Ping)
        if self._pongs_queued == limits.PINGS_UNANSWERED_MAX:
            raise RemoteProtocolError(
                "unexpected-message", f"more than {self._pongs_queued} PINGs before an answer"
            )
        self._pongs_queued += 1
        self._queue_message(Pong(nonce=received.nonce))

    def _match(self, received: Received) -> None:
        assert isinstance(received, Pong)
        if received.nonce != self._pongs_heard or self._pongs_heard == self._pings_sent:
            raise RemoteProtocolError("bad-value", f"PONG {received.nonce} answers no PING")
        self._pongs_heard += 1

    # ---- sending -------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a migration's or a console's message, or ERROR, which ends the link. Lost when the link is over.

        Raises LocalProtocolError for a message that ``encode`` does not take, that is the connection's own (HELLO, PING,
        PONG), or that comes before HELLO was exchanged.
        """
        if self.over:
            return
        if isinstance(message, Error):
            encode(message)
            self.fail(RemoteProtocolError(message.code, message.sentence))
        elif not isinstance(message, MigrationMessage | ConsoleMessage):
            raise LocalProtocolError(f"{message.TYPE} is the connection's to send")
        elif self._session.state is not SessionState.OPEN:
            raise LocalProtocolError(f"{message.TYPE} before HELLO was exchanged")
        else:
            self._queue_message(message)

    def send_chunk_header(self, region: int, offset: int, payload_bytes: int) -> bytes:
        """The next state chunk's header; the payload must follow it on the wire at once, whatever is queued.

        Raises LocalProtocolError for a chunk that the peer would not take or that comes before HELLO was exchanged. When
        the link is over the header is still given: the chunk is lost, as it may be on any link.
        """
        if self._agreement is None and not self.over:
            raise LocalProtocolError("a state chunk before HELLO was exchanged")
        header = frames.chunk_header(self._chunks_sent, region, offset, payload_bytes)
        self._chunks_sent += 1
        self._keepalive.note_sent()
        return header

    def fail(self, error: RemoteProtocolError) -> None:
        """End the link because of what our user found in the conversation: queue ERROR, look at nothing more.

        Does nothing when the link is over.
        """
        if self.over:
            return
        self._session.step(SessionEvent.FAULT)
        self._queue_message(Error(code=error.code, sentence=make_printable(error.sentence)))

    def data_to_send(self) -> bytes:
        """What is queued, once: frames in whole."""
        data = b"".join(self._queue)
        self._queue.clear()
        self._pongs_queued = 0
        return data

    def _queue_message(self, message: Message) -> None:
        body = encode(message)
        self._queue.append(frames.frame_header(len(body)) + body)
        self._keepalive.note_sent()

    # ---- time ----------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When ``tick`` has something to do; None when never again. May move at every call of anything."""
        if self.over or self._peer_finished:
            return None
        if self._session.state is SessionState.GREETING:
            return self._hello_due_at
        return min(self._keepalive.ask_at, self._keepalive.dead_at)

    def tick(self, now: float) -> None:
        """Let time pass: may queue a PING. Too early does no harm.

        Raises RemoteProtocolError (too-slow) when the peer said no HELLO in time or has fallen silent; ERROR is queued.
        """
        deadline = self.deadline
        if deadline is None:
            return
        if self._session.state is SessionState.GREETING:
            event = SessionEvent.OVERDUE if now >= deadline else None
        else:
            event = self._keepalive.pass_time(now)
        if event is None:
            return
        actions = self._session.step(event)
        if SessionAction.ASK in actions:
            self._queue_message(Ping(nonce=self._pings_sent))
            self._pings_sent += 1
        if SessionAction.REPORT in actions:
            self._report("too-slow", _OVERDUE[self.peer is None])
            raise RemoteProtocolError("too-slow", _OVERDUE[self.peer is None])

    # ---- the end -------------------------------------------------------------------------------------------

    def _report(self, code: str, sentence: str) -> None:
        """Only what it says is kept, never an exception that is raised: its traceback holds this connection, and the two
        together would hold the receive buffer until the garbage collector comes by, for every peer that ends like this.
        """
        self._fault = (code, sentence)
        self._queue_message(Error(code=code, sentence=make_printable(sentence)))


_HANDLERS: Final[Mapping[SessionAction, Callable[[Connection, Received], None]]] = {
    SessionAction.AGREE: Connection._agree,
    SessionAction.COUNT: Connection._count,
    SessionAction.ANSWER: Connection._answer,
    SessionAction.MATCH: Connection._match,
}

_OVERDUE: Final[Mapping[bool, str]] = {
    True: f"no HELLO within {limits.HELLO_SECONDS:g} seconds",
    False: f"nothing was heard for {limits.KEEPALIVE_DEAD_SECONDS:g} seconds",
}
