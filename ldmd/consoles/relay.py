"""A console that a peer keeps, shown to a user of this host, over a link of its own."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio
from attrs import define, evolve, field

from ldmd.consoles.viewer import End, Opening, Outcome, Viewer
from ldmd.errors import ConfigurationError, LinkError
from ldmd.host import Host
from ldmd.link.dialer import dial
from ldmd.link.identity import Peer
from ldmd.link.pump import Link
from protocol import limits
from protocol import messages as m
from protocol.codec import make_printable
from protocol.console import ConsoleSide, ConsoleState, Conversation
from protocol.errors import RemoteProtocolError

OPEN_SECONDS: Final = 10.0
"""From CONSOLE_OPEN to its answer."""
GAPS_MAX: Final = 64
"""Pieces of output that wait here and do not follow each other."""
PIECE_BYTES: Final = 4096
ENDS: Final = {str(end): end for end in End} | {"stopping": End.LOST}
"""Code of CONSOLE_CLOSED -> what it means here. A manager that stops is soon there again, as a link may be."""


async def attend(host: Host, peer: Peer, opening: Opening, viewer: Viewer) -> Outcome:
    """Show it, and send what is typed, until the peer closes it or the link is lost."""
    seconds = host.config.migration.connect_seconds
    remote = Remote(viewer)
    try:
        async with trio.open_nursery() as nursery:
            secure = await dial(peer, host.tls_files, timeout_seconds=seconds)
            link = Link(secure.stream, peer, host.hello(), remote)
            await nursery.start(link.run)
            outcome = await remote.run(link, opening)
            link.close()
    except* (LinkError, ConfigurationError) as group:
        error = group.exceptions[0]
        outcome = Outcome(end=End.LOST, sentence=getattr(error, "sentence", str(error)))
    return outcome


@define
class _Piece:
    position: int
    data: bytearray


@define(eq=False)
class Remote:
    """The opener's side of one link; the link's user."""

    viewer: Viewer
    talk: Conversation = field(factory=lambda: Conversation(ConsoleSide.OPENER))
    _opened: m.ConsoleOpened | None = field(default=None, init=False)
    _pieces: deque[_Piece] = field(factory=deque, init=False)
    """Output that was heard and not shown; together not more than the window."""
    _writers: deque[str | None] = field(factory=deque, init=False)
    _taken_bytes: int = field(default=0, init=False)
    _outcome: Outcome | None = field(default=None, init=False)
    _heard: trio.Event = field(factory=trio.Event, init=False)

    async def run(self, link: Link, opening: Opening) -> Outcome:
        if link.hello is None or m.FEATURE_CONSOLE not in link.hello.features:
            sentence = f"the manager on {link.peer.name} is too old to show consoles"
            return Outcome(end=End.NOT_ALLOWED, sentence=sentence)
        link.post(
            m.ConsoleOpen(
                uuid=opening.uuid,
                user=make_printable(opening.user, limits.NAME_BYTES_MAX) or "?",
                access=opening.access,
                stay=opening.stay,
                position=opening.position,
                replay_lines=opening.replay_lines,
            )
        )
        with trio.move_on_after(OPEN_SECONDS):
            while self._opened is None and self._outcome is None:
                await self._heard.wait()
        if self._outcome is None and self._opened is None:
            return Outcome(end=End.LOST, sentence=f"{link.peer.name} does not answer")
        if self._opened is not None:
            await self._converse(link, self._opened)
        assert self._outcome is not None
        return self._outcome

    async def _converse(self, link: Link, opened: m.ConsoleOpened) -> None:
        keyboard = self.viewer.keyboard
        keyboard.enable(opened.writer is None)
        await self.viewer.opened(opened.stay, opened.position, opened.writer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._type, link)
            await self._show(link)
            nursery.cancel_scope.cancel()
        assert self._outcome is not None
        lost_bytes = self._on_the_way_bytes
        if self._outcome.end is End.LOST and lost_bytes:
            keyboard.advance(lost_bytes)  # typed again they might come twice
            self._outcome = evolve(self._outcome, lost_bytes=lost_bytes)
        await self.viewer.taken()

    async def _show(self, link: Link) -> None:
        """Until all that was heard is shown, and nothing more will come."""
        taken_bytes = 0
        while True:
            self._heard = trio.Event()
            if self._writers:
                await self._tell_writer(self._writers.popleft())
            elif self._pieces:
                piece = self._pieces.popleft()
                await self.viewer.output(piece.position, bytes(piece.data))
                taken_bytes += len(piece.data)
                self._say(link, m.ConsoleTaken(count=taken_bytes))
            elif self._outcome is not None:
                return
            else:
                await self._heard.wait()

    async def _tell_writer(self, writer: str | None) -> None:
        self.viewer.keyboard.enable(writer is None, self._on_the_way_bytes)
        await self.viewer.writer_changed(writer)

    @property
    def _on_the_way_bytes(self) -> int:
        """Input that was sent and not said to be taken: the first bytes on the keyboard."""
        return self.talk.ours.sent_bytes - self.talk.ours.taken_bytes

    async def _type(self, link: Link) -> None:
        keyboard = self.viewer.keyboard
        told_bytes = keyboard.taken_bytes
        while True:
            if keyboard.taken_bytes > told_bytes:
                told_bytes = keyboard.taken_bytes
                await self.viewer.taken()
            size_bytes = min(PIECE_BYTES, self.talk.ours.room_bytes)
            data = keyboard.peek(self._on_the_way_bytes, size_bytes) if keyboard.enabled else b""
            if data and self._outcome is None:
                self._say(link, m.ConsoleInput(data=data))
            else:
                await keyboard.wait_change()

    def _say(self, link: Link, message: m.ConsoleMessage) -> None:
        if self.talk.state is ConsoleState.OPEN and not link.ended:
            self.talk.say(message)
            link.post(message)

    # ---- what the link says ------------------------------------------------------------------------------

    async def take_console(self, link: Link, message: m.ConsoleMessage) -> None:
        self.talk.hear(message)
        match message:
            case m.ConsoleTaken():
                self.viewer.keyboard.advance(message.count - self._taken_bytes)
                self._taken_bytes = message.count
            case m.ConsoleOpened():
                self._opened = message
            case m.ConsoleOutput():
                self._keep(message)
            case m.ConsoleWriter():
                if len(self._writers) >= GAPS_MAX:
                    raise RemoteProtocolError("oversize", "too many CONSOLE_WRITER at once")
                self._writers.append(message.writer)
            case m.ConsoleClosed():
                self._outcome = Outcome(
                    end=ENDS.get(message.code, End.NOT_FOUND),
                    sentence=message.sentence,
                    moved_to=message.moved_to,
                )
        self._heard.set()

    def _keep(self, output: m.ConsoleOutput) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.position + len(last.data) == output.position:
            last.data += output.data
            return
        if len(self._pieces) >= GAPS_MAX:
            raise RemoteProtocolError("oversize", "the output has too many gaps")
        self._pieces.append(_Piece(output.position, bytearray(output.data)))

    async def take_message(self, link: Link, message: m.MigrationMessage) -> None:
        raise RemoteProtocolError(
            "unexpected-message", f"{message.TYPE} on a link that carries a console"
        )

    def take_chunk(self, link: Link, chunk: m.StateChunk) -> None:
        raise RemoteProtocolError(
            "unexpected-message", "a state chunk on a link that carries a console"
        )

    def link_lost(self, link: Link, sentence: str) -> None:
        if self._outcome is None:
            self._outcome = Outcome(end=End.LOST, sentence=sentence)
        self._heard.set()
