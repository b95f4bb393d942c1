"""The console of an active domain of this host, shown to a viewer until the domain is not here any more."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from ldmd.consoles.desk import Desk, Seat
from ldmd.consoles.output import ConsoleFile, open_console
from ldmd.consoles.viewer import End, Opening, Outcome, Viewer
from ldmd.errors import HypervisorError, JournalError, OutcomeUnknown
from ldmd.host import Host
from ldmd.hypervisor import process as processes
from ldmd.journal.records import DomainState, MigrationEntry, MigrationHistory, Side
from protocol.actions import RecordKind

if TYPE_CHECKING:
    from ldmd.domains import Domain
    from ldmd.hypervisor.driver import DomainProcess

log = logging.getLogger("ldmd.consoles")

TYPED_AT_ONCE_BYTES: Final = 4096
LOOK_SECONDS_MIN: Final = 0.005
LOOK_SECONDS_MAX: Final = 0.1
"""A console that has been silent for a while is looked at ten times a second; typing is looked at at once."""
RETRY_SECONDS: Final = 0.05
"""A domain that did not take what was typed: suspended, or it does not read."""
LAST_KEYS_SECONDS: Final = 1.0
"""How long the end of a session waits to know what became of the last keys."""

ARRIVED: Final = frozenset({RecordKind.COMMITTED, RecordKind.RUNNING})
RECENT: Final = 16
"""Migrations of one domain that are looked at: attempts that failed count, too."""


async def attend(
    host: Host, desk: Desk, domain: Domain, opening: Opening, viewer: Viewer
) -> Outcome:
    """Show it, and type on it, until the domain has stopped or gone."""
    process = domain.process
    stay = None if process is None else await find_stay(host, domain)
    if process is None or stay is None:
        if domain.state is not DomainState.ACTIVE:
            return stopped(domain)
        return Outcome(
            end=End.NOT_FOUND, sentence=f"the process of {domain.name} does not answer now"
        )
    if opening.stay is not None and opening.stay != stay:
        return another_stay(domain)
    try:
        with (
            open_console(process.console_path) as file,
            desk.sit(opening.uuid, opening.user, opening.access) as (seat, pen),
        ):
            position = opening.position
            if position is None:
                position = await file.find_last_lines(opening.replay_lines)
            viewer.keyboard.enable(seat.types)
            await viewer.opened(stay, position, seat.writer)
            sitting = Sitting(host, domain, process, file, seat, pen, viewer)
            return await sitting.run(position)
    except OSError as error:
        return _unreadable(domain, error)


def _unreadable(domain: Domain, error: OSError) -> Outcome:
    sentence = f"the console of {domain.name} cannot be read: {error.strerror}"
    return Outcome(end=End.NOT_FOUND, sentence=sentence)


@define(eq=False)
class Sitting:
    host: Host
    domain: Domain
    process: DomainProcess
    file: ConsoleFile
    seat: Seat
    pen: trio.Lock
    viewer: Viewer
    _typed: trio.Event = field(factory=trio.Event, init=False)
    """The domain took some keys: it will print soon."""
    _offered_bytes: int = field(default=0, init=False)
    """The first keys on the keyboard, whose fate their call will tell: whoever takes over drops the others."""
    _over: bool = field(default=False, init=False)

    async def run(self, position: int) -> Outcome:
        async with trio.open_nursery() as nursery:
            keys_over = trio.Event()
            nursery.start_soon(self._type, keys_over)
            nursery.start_soon(self._tell_writer)
            outcome = await self._show(position)
            # what became of the keys under way is known when their call ends: not to be cut short
            self._over = True
            with trio.move_on_after(LAST_KEYS_SECONDS):
                if self.pen.locked():
                    await keys_over.wait()
            nursery.cancel_scope.cancel()
        return outcome

    # ---- output ----------------------------------------------------------------------------------------

    async def _show(self, position: int) -> Outcome:
        pause = LOOK_SECONDS_MIN
        while True:
            here = self._is_here()  # before it is read: what it printed at last is shown
            try:
                position, data = await self.file.read(position)
            except OSError as error:
                return _unreadable(self.domain, error)
            if data:
                await self.viewer.output(position, data)
                position += len(data)
                pause = LOOK_SECONDS_MIN
            elif not here:
                return await find_fate(self.host, self.domain)
            else:
                with trio.move_on_after(pause):
                    await self._typed.wait()
                pause = LOOK_SECONDS_MIN if self._typed.is_set() else pause * 1.5
                pause = min(pause, LOOK_SECONDS_MAX)
                self._typed = trio.Event()

    def _is_here(self) -> bool:
        domain = self.domain
        if self.host.domains.find(domain.definition.uuid) is not domain:
            return False
        # without a process: it is just being ended, and its state says soon how
        return domain.state is DomainState.ACTIVE and domain.process in (self.process, None)

    # ---- input -----------------------------------------------------------------------------------------

    async def _type(self, over: trio.Event) -> None:
        keyboard = self.viewer.keyboard
        try:
            while not self._over:
                await keyboard.wait_more()
                async with self.pen:
                    if self._over:
                        return
                    data = keyboard.peek(0, TYPED_AT_ONCE_BYTES) if self.seat.types else b""
                    counted_bytes = keyboard.taken_bytes
                    keyboard.advance(await self._offer(data))
                    if not self.seat.types:
                        keyboard.drop()
                if keyboard.taken_bytes > counted_bytes:
                    self._typed.set()
                    await self.viewer.taken()
                else:
                    await trio.sleep(RETRY_SECONDS)
        except HypervisorError:
            pass  # it has ended: what is left may be for where it is now
        finally:
            over.set()

    async def _offer(self, data: bytes) -> int:
        """Raises HypervisorError."""
        if not data:
            return 0
        self._offered_bytes = len(data)
        try:
            return await self.process.write_console(data)
        except (OutcomeUnknown, OSError):
            # it does not answer, and a request that was given up is not carried out later; or no descriptors are left
            return 0
        finally:
            self._offered_bytes = 0

    async def _tell_writer(self) -> None:
        while True:
            await self.seat.changed.wait()
            self.seat.changed = trio.Event()
            self.viewer.keyboard.enable(self.seat.types, self._offered_bytes)
            await self.viewer.taken()
            await self.viewer.writer_changed(self.seat.writer)


# ---- where a domain is -----------------------------------------------------------------------------------


async def find_stay(host: Host, domain: Domain) -> str | None:
    """The name of its process's stay here, 32 hexadecimal digits, the same after a restart of the manager."""
    directory = host.domains.directory_of(domain.definition.uuid)
    try:
        identity = await trio.to_thread.run_sync(processes.find, directory)
    except OutcomeUnknown:
        return None
    if identity is None:
        return None
    text = f"{identity.boot_id} {identity.pid} {identity.start_ticks}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def stopped(domain: Domain) -> Outcome:
    return Outcome(end=End.STOPPED, sentence=f"{domain.name} has stopped")


def another_stay(domain: Domain) -> Outcome:
    return Outcome(
        end=End.ANOTHER_STAY,
        sentence=f"{domain.name} was started anew, or was elsewhere meanwhile",
    )


async def find_fate(host: Host, domain: Domain) -> Outcome:
    """Why it is not here as it was."""
    uuid = domain.definition.uuid
    present = host.domains.find(uuid)
    if present is domain and domain.state is not DomainState.ACTIVE:
        return stopped(domain)
    if present is not None:
        return another_stay(domain)
    moved = await find_move(host, uuid)
    if moved is not None:
        return moved
    sentence = f"{domain.name} is not on {host.config.host.name} any more"
    return Outcome(end=End.NOT_FOUND, sentence=sentence)


async def find_move(host: Host, name: str) -> Outcome | None:
    """Where a domain that was here has moved to, by its uuid or the name that it had here."""
    entry = await find_departure(host, name)
    if entry is None:
        return None
    sentence = f"{entry.definition.name} has moved to {entry.peer}"
    return Outcome(end=End.MOVED, sentence=sentence, moved_to=entry.peer)


async def find_departure(host: Host, name: str) -> MigrationEntry | None:
    """The migration by which it left for good; None when it has come back since."""
    for history in await _load(host, name):
        entry = history.entry
        if entry.side is Side.SOURCE and RecordKind.COMPLETED in history.kinds:
            return entry
        if entry.side is Side.TARGET and ARRIVED.intersection(history.kinds):
            return None
    return None


async def came_from(host: Host, uuid: str) -> str | None:
    """The peer that brought the domain here the last time."""
    for history in await _load(host, uuid):
        if history.entry.side is Side.TARGET and ARRIVED.intersection(history.kinds):
            return history.entry.peer
    return None


async def _load(host: Host, name: str) -> list[MigrationHistory]:
    try:
        return await host.journal.load_latest(name, RECENT)
    except JournalError as error:
        log.error("it cannot be found out where %s went: %s", name, error)
        return []
