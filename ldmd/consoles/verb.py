"""The control socket's ``console``: one user at one domain's console, wherever the domain goes.

A session follows the domain: while it is here it reads the console's file, when it has moved to a peer it opens the
console there, and when it comes back it is here again. All that the domain printed on one host is shown before anything
of the next one, which begins at position 0: no gap and no repeat. Keys that no host took wait, and are typed where the
domain is then.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping
from typing import Any, Final

import trio
from attrs import define, evolve, field

from ldmd.consoles import local, relay
from ldmd.consoles.desk import Desk
from ldmd.consoles.keyboard import Keyboard
from ldmd.consoles.viewer import End, Opening, Outcome
from ldmd.control import AnyVerb, Arguments, Caller, Channel, Dialogue
from ldmd.errors import BadRequest, Busy, LdmdError, LinkError, NotAllowed, NotFound, WrongState
from ldmd.host import Host
from ldmd.journal.records import DomainState
from protocol.limits import CONSOLE_DATA_BYTES_MAX, CONSOLE_REPLAY_LINES_MAX
from protocol.messages import ConsoleAccess

log = logging.getLogger("ldmd.consoles")

SESSIONS_MAX: Final = 32
"""Half of the control socket's connections: consoles that were left open shut nobody out."""
REPLAY_LINES_DEFAULT: Final = 24
RECONNECT_SECONDS: Final = 60.0
"""How long a link to the keeper is tried again: a manager that is restarted is back by then."""
RECONNECT_PAUSE_SECONDS: Final = (0.2, 5.0)
"""The first and the longest."""
GIVE_WAY_SECONDS: Final = 0.3
"""Who only looks on lets the one who types go first to the next host."""


@define(eq=False)
class ConsoleVerb:
    host: Host
    desk: Desk
    _sessions: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(SESSIONS_MAX))

    def verbs(self) -> dict[str, AnyVerb]:
        return {"console": Dialogue(self.console)}

    async def console(
        self, caller: Caller, arguments: Mapping[str, object], channel: Channel
    ) -> dict[str, Any]:
        """Until the user leaves or the domain stops. Raises NotFound, WrongState, NotAllowed, LinkError, Busy."""
        given = Arguments.of(arguments, "domain", "access", "replay_lines")
        name = given.text("domain")
        access = given.optional_text("access") or ConsoleAccess.WRITE
        if access not in list(ConsoleAccess):
            raise BadRequest(f"the access {access!r:.80} is none of {', '.join(ConsoleAccess)}")
        replay_lines = arguments.get("replay_lines", REPLAY_LINES_DEFAULT)
        if type(replay_lines) is not int or not 0 <= replay_lines <= CONSOLE_REPLAY_LINES_MAX:
            raise BadRequest(f"replay_lines is not a number from 0 to {CONSOLE_REPLAY_LINES_MAX}")
        uuid, peer = await self._find(name)
        try:
            self._sessions.acquire_on_behalf_of_nowait(channel)
        except trio.WouldBlock:
            raise Busy(
                f"{SESSIONS_MAX} consoles are open on {self.host.config.host.name}",
                remedy="leave one of them: ~. in its terminal",
            ) from None
        log.info("%s (pid %d) opens the console of %s (%s)", caller.user, caller.pid, name, access)
        try:
            session = Session(self.host, self.desk, channel, name, peer)
            opening = Opening(
                uuid=uuid,
                user=caller.user,
                access=ConsoleAccess(access),
                replay_lines=replay_lines,
            )
            return await session.run(opening)
        finally:
            self._sessions.release_on_behalf_of(channel)
            log.info("%s (pid %d) leaves the console of %s", caller.user, caller.pid, name)

    async def _find(self, name: str) -> tuple[str, str | None]:
        """Its uuid, and the peer that has it when it moved away. Raises NotFound, WrongState."""
        try:
            domain = self.host.domains.get(name)
        except NotFound as error:
            departure = await local.find_departure(self.host, name)
            if departure is None:
                raise error
            return departure.definition.uuid, departure.peer
        if domain.state is not DomainState.ACTIVE:
            raise WrongState(
                f"{domain.name} is {domain.state}: its console says nothing",
                remedy=f"`ldm {'start' if domain.state is DomainState.BOUND else 'bind'}-domain {domain.name}` first",
            )
        return domain.definition.uuid, None


@define(eq=False)
class Session:
    """The viewer on a control connection. ``peer`` has the domain while it is not here."""

    host: Host
    desk: Desk
    channel: Channel
    name: str
    peer: str | None
    keyboard: Keyboard = field(factory=Keyboard)
    _stay: str | None = field(default=None, init=False)
    """None until the console was opened where the domain is now."""
    _position: int = field(default=0, init=False)
    """Of the next output, in that stay."""
    _types: bool = field(default=False, init=False)
    _told_bytes: int = field(default=0, init=False)
    _lost_at: float | None = field(default=None, init=False)
    """Since when there has been no link to the keeper."""

    async def run(self, opening: Opening) -> dict[str, Any]:
        ended: dict[str, Any] = {"end": "left", "sentence": f"left the console of {self.name}"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, nursery.cancel_scope)
            ended = await self._follow(opening)
            nursery.cancel_scope.cancel()
        return ended

    async def _listen(self, whole: trio.CancelScope) -> None:
        """The client's lines; it leaves by hanging up, or by closing its half of the connection."""
        while (line := await self.channel.hear()) is not None:
            if set(line) != {"input"} or not isinstance(line["input"], str):
                raise BadRequest('a line of a console is {"input": BASE64}')
            try:
                data = base64.b64decode(line["input"], validate=True)
            except (binascii.Error, ValueError) as error:
                raise BadRequest(f"what was typed is not base64: {error}") from error
            if len(data) > CONSOLE_DATA_BYTES_MAX:
                raise BadRequest(f"more than {CONSOLE_DATA_BYTES_MAX} bytes were typed at once")
            await self.keyboard.put(data)
            await self.taken()  # what another one types is dropped at once
        whole.cancel()

    # ---- from host to host -------------------------------------------------------------------------------

    async def _follow(self, opening: Opening) -> dict[str, Any]:
        pause, longest = RECONNECT_PAUSE_SECONDS
        first = True
        while True:
            keeper, began = self.peer, self._position
            outcome = await self._attend(opening)
            first = first and self._stay is None
            if not first and opening.access is ConsoleAccess.FORCE:
                opening = evolve(opening, access=ConsoleAccess.WRITE)
            if outcome.end is End.STOPPED:
                return {"end": "stopped", "sentence": outcome.sentence}
            if outcome.end is End.MOVED and outcome.moved_to not in (None, keeper):
                self.peer, self._stay = outcome.moved_to, None
                opening = evolve(opening, stay=None, position=None if first else 0)
                await self.channel.tell({"event": "moved", "host": outcome.moved_to})
                if not self._types or self._position == began:  # keepers may send us in circles
                    await trio.sleep(GIVE_WAY_SECONDS)
            elif outcome.end is End.ANOTHER_STAY:
                self._stay = None
                opening = evolve(opening, stay=None, position=0)
                await self._notice(f"{outcome.sentence}: output may be missing here")
            elif outcome.end is End.LOST and not first and self._is_worth_trying():
                if self._lost_at is None:
                    self._lost_at, pause = trio.current_time(), RECONNECT_PAUSE_SECONDS[0]
                    await self._notice(_say_lost(outcome))
                if self._stay is not None:
                    opening = evolve(opening, stay=self._stay, position=self._position)
                await trio.sleep(pause)
                pause = min(pause * 2, longest)
            else:
                raise self._explain(outcome)

    def _is_worth_trying(self) -> bool:
        return self._lost_at is None or trio.current_time() < self._lost_at + RECONNECT_SECONDS

    async def _attend(self, opening: Opening) -> Outcome:
        domain = self.host.domains.find(opening.uuid)
        if domain is not None:
            if domain.state is not DomainState.ACTIVE:
                return local.stopped(domain)
            self.peer = None
            return await local.attend(self.host, self.desk, domain, opening, self)
        peer = self.host.config.peers.get(self.peer or "")
        if peer is None or peer.address is None:
            sentence = (
                f"{self.name} is on {self.peer}, which is no peer of {self._here} with an address"
            )
            return Outcome(end=End.NOT_ALLOWED, sentence=sentence)
        return await relay.attend(self.host, peer, opening, self)

    @property
    def _here(self) -> str:
        return self.host.config.host.name

    def _explain(self, outcome: Outcome) -> LdmdError:
        there = self.peer or self._here
        directly = f"`ldm console {self.name}` on {there}"
        match outcome.end:
            case End.LOST:
                return LinkError(
                    f"the console of {self.name} on {there} cannot be reached: {outcome.sentence}",
                    remedy=f"{directly} shows it; the domain itself is not concerned",
                )
            case End.NOT_ALLOWED:
                return NotAllowed(
                    outcome.sentence,
                    remedy=f"{directly} shows it, or may-console = true in [peers.{self._here}] there",
                )
            case End.BUSY:
                return Busy(outcome.sentence, remedy=f"try again later, or {directly}")
        return NotFound(
            outcome.sentence, remedy="`ldm list-migrations` shows where it went, if it moved"
        )

    # ---- the viewer ------------------------------------------------------------------------------------

    async def opened(self, stay: str, position: int, writer: str | None) -> None:
        self._stay, self._position, self._types = stay, position, writer is None
        self._lost_at = None
        host = self.peer or self._here
        await self.channel.tell(
            {"event": "opened", "host": host, "position": position, "writer": writer}
        )

    async def output(self, position: int, data: bytes) -> None:
        text = base64.b64encode(data).decode()
        skipped_bytes = position - self._position
        await self.channel.tell(
            {"event": "output", "position": position, "skipped_bytes": skipped_bytes, "data": text}
        )
        self._position = position + len(data)

    async def taken(self) -> None:
        if self.keyboard.taken_bytes > self._told_bytes:
            self._told_bytes = self.keyboard.taken_bytes
            await self.channel.tell({"event": "taken", "bytes": self._told_bytes})

    async def writer_changed(self, writer: str | None) -> None:
        self._types = writer is None
        await self.channel.tell({"event": "writer", "writer": writer})

    async def _notice(self, sentence: str) -> None:
        await self.channel.tell({"event": "notice", "sentence": sentence})


def _say_lost(outcome: Outcome) -> str:
    lost = f"; {outcome.lost_bytes} typed bytes may be lost" if outcome.lost_bytes else ""
    return f"{outcome.sentence}: trying again{lost}"
