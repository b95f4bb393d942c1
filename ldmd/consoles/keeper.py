"""A console of this host, shown to a user of a peer: the keeper's side of a link."""

from __future__ import annotations

import logging
from typing import Final

import trio
from attrs import define, field

from ldmd.consoles.desk import Desk
from ldmd.consoles.keyboard import Keyboard
from ldmd.consoles.local import attend, came_from, find_move
from ldmd.consoles.viewer import End, Opening, Outcome
from ldmd.host import Host
from ldmd.link.pump import Link
from protocol import limits
from protocol import messages as m
from protocol.codec import make_printable
from protocol.console import ConsoleSide, ConsoleState, Conversation
from protocol.errors import RemoteProtocolError

log = logging.getLogger("ldmd.consoles")

SHOWN_TO_PEERS_MAX: Final = 64
"""Consoles that peers' users look at at once, all peers together; each costs a link and a window of output."""


@define(eq=False)
class Keepers:
    """All of them. ``nursery``: the one that links live in, so that it takes tasks as long as there are links."""

    host: Host
    desk: Desk
    nursery: trio.Nursery
    shown: int = field(default=0, init=False)

    def begin(self, link: Link, opening: m.ConsoleMessage) -> Keeper:
        """For a link whose first message that was. Raises RemoteProtocolError."""
        if not isinstance(opening, m.ConsoleOpen):
            raise RemoteProtocolError(
                "unexpected-message", f"{opening.TYPE} before CONSOLE_OPEN on its link"
            )
        keeper = Keeper(self, link, opening)
        self.nursery.start_soon(keeper.run)
        return keeper


@define(eq=False)
class Keeper:
    """One link's console; a viewer for ``local.attend``."""

    keepers: Keepers
    link: Link
    wanted: m.ConsoleOpen
    talk: Conversation = field(factory=lambda: Conversation(ConsoleSide.KEEPER))
    keyboard: Keyboard = field(factory=Keyboard)
    _room: trio.Event = field(factory=trio.Event, init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    @property
    def user(self) -> str:
        return f"{self.wanted.user}@{self.link.peer.name}"

    async def run(self) -> None:
        """Raises nothing: a bug here ends this console, and no migration."""
        try:
            try:
                with self._scope:
                    self._close(await self._keep())
            except trio.Cancelled:
                self._close(Outcome(end=End.STOPPING, sentence="the manager is stopping"))
                raise
        except* Exception as group:
            self._give_up(group)

    def _give_up(self, error: Exception) -> None:
        """Its user is shown the console anew when the link is made again."""
        log.error(
            "the console of %s, shown to %s, has a bug", self.wanted.uuid, self.user, exc_info=error
        )
        self.link.abort()

    def _close(self, outcome: Outcome) -> None:
        closed = m.ConsoleClosed(
            code=outcome.end,
            sentence=make_printable(outcome.sentence),
            moved_to=outcome.moved_to,
        )
        try:
            self._say(closed)
        except Exception as error:
            self._give_up(error)
        else:
            self.link.close()  # when all that was said is sent

    async def _keep(self) -> Outcome:
        keepers, peer = self.keepers, self.link.peer
        host, uuid = keepers.host, self.wanted.uuid
        if not peer.may_console and await came_from(host, uuid) != peer.name:
            log.warning("%s may not see the console of %s: refused", self.user, uuid)
            sentence = (
                f"{host.config.host.name} does not show that console to {peer.name}: the domain did"
                f" not come from there, and its [peers.{peer.name}] does not say may-console"
            )
            return Outcome(end=End.NOT_ALLOWED, sentence=sentence)
        domain = host.domains.find(uuid)
        if domain is None:
            moved = await find_move(host, uuid)
            sentence = f"there is no such domain on {host.config.host.name}"
            return moved or Outcome(end=End.NOT_FOUND, sentence=sentence)
        if keepers.shown >= SHOWN_TO_PEERS_MAX:
            sentence = f"{host.config.host.name} shows {SHOWN_TO_PEERS_MAX} consoles to peers"
            return Outcome(end=End.BUSY, sentence=sentence)
        opening = Opening(
            uuid=uuid,
            user=self.user,
            access=self.wanted.access,
            stay=self.wanted.stay,
            position=self.wanted.position,
            replay_lines=self.wanted.replay_lines,
        )
        log.info("%s opens the console of %s (%s)", self.user, domain.name, opening.access)
        keepers.shown += 1
        try:
            return await attend(host, keepers.desk, domain, opening, self)
        finally:
            keepers.shown -= 1
            log.info("%s leaves the console of %s", self.user, domain.name)

    # ---- the viewer ------------------------------------------------------------------------------------

    async def opened(self, stay: str, position: int, writer: str | None) -> None:
        self._say(m.ConsoleOpened(stay=stay, position=position, writer=_printable(writer)))
        await trio.lowlevel.checkpoint()

    async def output(self, position: int, data: bytes) -> None:
        while self.talk.ours.room_bytes < len(data):
            await self._wait_room()
        self._say(m.ConsoleOutput(position=position, data=data))
        await trio.lowlevel.checkpoint()

    async def taken(self) -> None:
        self._say(m.ConsoleTaken(count=self.keyboard.taken_bytes))
        await trio.lowlevel.checkpoint()

    async def writer_changed(self, writer: str | None) -> None:
        self._say(m.ConsoleWriter(writer=_printable(writer)))
        await trio.lowlevel.checkpoint()

    def _say(self, message: m.ConsoleMessage) -> None:
        if self.talk.state is not ConsoleState.CLOSED and not self.link.ended:
            self.talk.say(message)
            self.link.post(message)

    async def _wait_room(self) -> None:
        self._room = trio.Event()
        await self._room.wait()

    # ---- what the link says ------------------------------------------------------------------------------

    def hear(self, message: m.ConsoleMessage) -> None:
        """Raises RemoteProtocolError, and nothing else: this is the link's reader."""
        try:
            self._hear(message)
        except RemoteProtocolError:
            raise
        except Exception as error:
            self._give_up(error)

    def _hear(self, message: m.ConsoleMessage) -> None:
        self.talk.hear(message)
        if isinstance(message, m.ConsoleInput):
            self.keyboard.put_now(message.data)
            if not self.keyboard.enabled:
                self._say(m.ConsoleTaken(count=self.keyboard.taken_bytes))
        else:
            self._room.set()

    def lost(self) -> None:
        self._scope.cancel()
        self._room.set()


def _printable(writer: str | None) -> str | None:
    """A user of this host may have any name."""
    return None if writer is None else make_printable(writer, 2 * limits.NAME_BYTES_MAX) or "?"
