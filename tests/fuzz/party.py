"""One side of a migration as a link's user sees it: a connection, and the table behind it.

This is the shell's part (``ldmd/link/pump.py`` and ``ldmd/migration.py``) with nothing behind it: operations end as the
input says, a message of the peer is a step of the table, what breaks the rules ends the link. Whatever is not a
RemoteProtocolError comes out.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import define, field

from protocol import connection as connections
from protocol import events, limits
from protocol import messages as m
from protocol.actions import Action, CloseLink, Send
from protocol.errors import RemoteProtocolError
from protocol.events import Event
from protocol.machine import Decision, Machine, Table
from protocol.phases import Mode
from protocol.source import SOURCE
from protocol.target import TARGET
from tests.fuzz import samples

TABLES: Final[dict[str, Table[Any]]] = {"source": SOURCE, "target": TARGET}

QUEUED_BYTES_MAX: Final = 64 * limits.KIB
"""What may wait to be sent after one step: PONGs, PING, ERROR, and one message of a migration."""

_DECIDED: Final = frozenset({Decision.SOURCE, Decision.TARGET, Decision.LOST})


@define
class Party:
    """``side`` is what we are; the peer is the other one."""

    side: str
    mode: Mode
    now: float = 0.0
    connection: connections.Connection = field(init=False)
    machine: Machine[Any] = field(init=False)
    chunks: int = 0
    """Given out; what the next one's number must be."""
    received_bytes: int = 0
    code: str | None = None
    """Why the link ended, if the peer broke the rules."""
    closed: bool = False
    """We closed the link: nothing is received any more."""
    finished: bool = False
    """The peer closed its side."""
    spoken: list[str] = field(factory=list)
    """Kinds of what was given out."""
    last_sent: bytes = b""

    def __attrs_post_init__(self) -> None:
        self.connection = connections.Connection(samples.HELLO, self.now)
        self.machine = Machine(TABLES[self.side], self.mode)

    # ---- what the peer does ----------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview, piece_bytes: int) -> None:
        """Bytes from the peer, in pieces of at most so many."""
        left = memoryview(data)
        while left and not self.closed and not self.finished:
            buffer = self.connection.get_buffer()
            assert 0 < len(buffer) <= limits.RECEIVE_BUFFER_BYTES
            count = min(len(buffer), len(left), piece_bytes)
            buffer[:count] = left[:count]
            left = left[count:]
            self.received_bytes += count
            self.connection.receive(count, self.now)
            self._drain()

    def end_stream(self) -> None:
        if not self.finished:
            self.finished = True
            self.connection.receive_eof(self.now)
            self._drain()
            assert self.connection.over, "the link outlives its stream"

    def _drain(self) -> None:
        try:
            while (event := self.connection.next_event()) is not None:
                assert not self.connection.over or isinstance(event, m.Error), "given out after it"
                self._take(event)
        except RemoteProtocolError as error:
            self._refuse(error)

    def _refuse(self, error: RemoteProtocolError) -> None:
        """As the pump does: the connection has ended itself, or is told to."""
        assert error.code in m.ERROR_CODES, error.code
        assert self.code in (None, error.code), "refused, and then for another reason"
        self.code = error.code
        self.connection.fail(error)
        assert self.connection.over, "refused, and not over"

    def _take(self, event: connections.Received) -> None:
        self.spoken.append("chunk" if isinstance(event, m.StateChunk) else event.TYPE)
        assert self.spoken[0] == m.Hello.TYPE or isinstance(event, m.Error), "before HELLO"
        if isinstance(event, m.StateChunk):
            self._take_chunk(event)
        elif isinstance(event, m.MigrationMessage):
            self._take_message(event)
        elif isinstance(event, m.ConsoleMessage):
            raise RemoteProtocolError("unexpected-message", "this link carries a migration")
        else:
            assert isinstance(event, m.Hello | m.Error), event

    def _take_chunk(self, chunk: m.StateChunk) -> None:
        assert chunk.sequence == self.chunks, "out of order"
        assert chunk.payload.readonly
        assert 0 < len(chunk.payload) <= limits.CHUNK_PAYLOAD_BYTES_MAX
        assert chunk.offset + len(chunk.payload) <= limits.RAM_BYTES_MAX
        self.chunks += 1
        if self.side == "source":
            raise RemoteProtocolError("unexpected-message", "a state chunk is not allowed now")

    def _take_message(self, message: m.MigrationMessage) -> None:
        if message.migration != samples.ID:
            raise RemoteProtocolError("wrong-migration", "this link is for another migration")
        event = events.event_of(message, digest_sent=samples.DIGEST)
        before, decision, ended = self.machine.state, self.machine.decision, self.machine.finished
        try:
            actions = self.machine.step(event)
        except RemoteProtocolError:
            assert self.machine.state is before, "refused, and taken"
            raise
        if decision in _DECIDED:
            assert self.machine.decision is decision, f"{event} decided anew"
        if ended:
            assert self.machine.finished
            assert all(isinstance(action, Send) for action in actions), "it had ended"
        self._act(actions)

    # ---- what we do ------------------------------------------------------------------------------------

    def happen(self, event: Event) -> None:
        """Something of our own, if it can happen now."""
        if (self.machine.state, event, self.mode) in self.machine.table.index:
            self._act(self.machine.step(event))

    def own_events(self) -> list[Event]:
        """What of our own can happen now."""
        return [
            event
            for event in Event
            if event not in events.PEER_EVENTS
            and (self.machine.state, event, self.mode) in self.machine.table.index
        ]

    def _act(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            if isinstance(action, Send) and self.connection.peer is not None:
                self.connection.send(samples.MESSAGES[action.message])
            elif isinstance(action, CloseLink):
                self.closed = True

    def send_chunk(self, region: int, offset: int, payload_bytes: int) -> None:
        if self.connection.peer is not None:
            self.connection.send_chunk_header(region, offset, payload_bytes)

    def take_queue(self) -> None:
        """As the sender does, which comes after each step."""
        data = self.connection.data_to_send()
        assert len(data) <= QUEUED_BYTES_MAX, "too much waits"
        if data:
            self.last_sent = data

    def pass_time(self, seconds: float) -> None:
        """The clock goes on, and what is due happens: afterwards nothing is due at once, or the caller would spin."""
        self.now += seconds
        was_over = self.connection.over
        try:
            self.connection.tick(self.now)
        except RemoteProtocolError as error:
            self._refuse(error)
        assert was_over == self.connection.over or self.code == "too-slow"
        deadline = self.connection.deadline
        assert deadline is None or deadline > self.now, "due for ever"
