"""``ldm console``: a person at a domain's console, or a script."""

from __future__ import annotations

import signal
import sys
from typing import Any, Final

import click
import trio
from attrs import define, field

from ldmd.cli.session import Manager, pass_manager, run
from ldmd.cli.terminal import Escape, Keys, raw_terminal, read_keys, write_output
from ldmd.client import connect
from ldmd.console_client import ENDED, TYPED_BYTES_MAX, ConsoleStream, open_console
from ldmd.errors import Busy
from protocol.limits import CONSOLE_REPLAY_LINES_MAX, MIB

STOPPED_STATUS: Final = 3
NOT_TAKEN_STATUS: Final = 75  # EX_TEMPFAIL of sysexits.h
TAKE_SECONDS: Final = 30.0
"""How long a domain may take nothing of what a script types: longer than it is suspended while it moves."""
KEYS_BYTES_MAX: Final = 1 * MIB
"""Typed and not sent yet; with more than that, keys are not read, and ~. not heard."""
SCREEN_LINES: Final = 24
INPUT, OUTPUT = 0, 1
CRLF: Final = "\r\n"

HELP: Final = (
    "~.  leave the console; the domain goes on",
    "~?  this help",
    "~~  a tilde",
    "An escape counts at the beginning of a line only.",
)


@click.command("console", short_help="Type on a domain's console, and see what it prints.")
@click.option("-f", "--force", is_flag=True, help="Type, although another user does.")
@click.option("-r", "--read-only", is_flag=True, help="Only look on; standard input is not read.")
@click.option(
    "--replay",
    type=click.IntRange(0, CONSOLE_REPLAY_LINES_MAX),
    metavar="LINES",
    help=f"Begin with the last lines of before: {SCREEN_LINES} on a terminal, else none.",
)
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0, 86_400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to show output behind the end of standard input.",
)
@click.argument("domain", metavar="DOMAIN")
@pass_manager
def console(
    manager: Manager,
    domain: str,
    force: bool,
    read_only: bool,
    replay: int | None,
    wait_seconds: float,
) -> None:
    """Type on a domain's console, and see what it prints, also after it has moved to another host.

    ~. at the beginning of a line leaves, ~? helps. One user types; others look on, and the next
    one's turn comes when that one leaves.

    In a pipe, standard input is typed to its end; when the domain has taken it all, its output is
    shown for some time more (--wait).

    Exit status: 0 left, 3 the domain has stopped, 75 it takes no more of what a pipe types.
    """
    if force and read_only:
        raise click.UsageError("--force is to type, --read-only is not to")
    access = "force" if force else "read" if read_only else "write"
    with raw_terminal(INPUT) as terminal:
        lines = (SCREEN_LINES if terminal else 0) if replay is None else replay
        visit = Visit(domain, terminal=terminal, reads=terminal or not read_only)
        visit.wait_seconds = wait_seconds

        async def conversation() -> int:
            async with (
                connect(manager.socket) as client,
                open_console(client, domain, access=access, replay_lines=lines) as stream,
            ):
                return await visit.run(stream)

        status = run(conversation)
        if terminal and status != STOPPED_STATUS:
            visit.say(f"left the console of {domain}")
    if status:
        raise click.exceptions.Exit(status)


@define(eq=False)
class Visit:
    """One session. ``terminal``: a person's; else a script's. ``reads``: standard input is read."""

    domain: str
    terminal: bool
    reads: bool
    wait_seconds: float = 1.0
    _typed: bytearray = field(factory=bytearray, init=False)
    _typed_bytes: int = field(default=0, init=False)
    """In all."""
    _taken_bytes: int = field(default=0, init=False)
    _ended: bool = field(default=False, init=False)
    """Standard input."""
    _changed: trio.Event = field(factory=trio.Event, init=False)
    _line_begins: bool = field(default=True, init=False)
    """The cursor is there."""
    _host: str = field(default="", init=False)
    _status: int = field(default=0, init=False)

    async def run(self, stream: ConsoleStream) -> int:
        """The exit status. Raises the LdmdError that ended it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_signals, nursery.cancel_scope)
            nursery.start_soon(self._show, stream, nursery)
        return self._status

    async def _watch_signals(self, whole: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                self._status = 128 + number
                whole.cancel()

    # ---- output ----------------------------------------------------------------------------------------

    async def _show(self, stream: ConsoleStream, nursery: trio.Nursery) -> None:
        reading = False
        while True:
            event = await stream.next_event()
            try:
                await self._show_event(event)
            except BrokenPipeError:  # … | head
                break
            if event["event"] == ENDED:
                self._status = STOPPED_STATUS if event["end"] == "stopped" else 0
                self.say(f"{event['sentence']}")
                break
            if not reading and self.reads:  # keys belong to nobody before it is open
                reading = True
                nursery.start_soon(self._read, nursery.cancel_scope)
                nursery.start_soon(self._send, stream)
        nursery.cancel_scope.cancel()

    async def _show_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "output":
                if event["skipped_bytes"]:
                    self.say(f"{event['skipped_bytes']} bytes were not kept so long")
                await write_output(OUTPUT, event["data"])
                self._line_begins = event["data"].endswith(b"\n")
            case "taken":
                self._taken_bytes = event["bytes"]
                self._tell()
            case "opened":
                self._greet(event["host"], event["writer"])
            case "writer":
                self._tell_writer(event["writer"])
            case "moved":
                self.say(f"{self.domain} has moved to {event['host']}")
            case "notice":
                self.say(event["sentence"])

    def _greet(self, host: str, writer: str | None) -> None:
        if self.terminal and not self._host:
            self.say(f"the console of {self.domain} on {host}; ~. leaves, ~? helps")
        elif host == self._host:
            self.say("connected again")
        if writer is not None:
            self._tell_writer(writer)
        self._host = host

    def _tell_writer(self, writer: str | None) -> None:
        if writer is None:
            self.say("you type now")
        elif not self.terminal and self.reads:
            raise Busy(
                f"the console of {self.domain} is in use by {writer}",
                remedy="-f takes it over, -r only looks on",
            )
        elif writer == "nobody":
            self.say("read only")
        else:
            self.say(f"in use by {writer}; read only (`ldm console -f` takes it over)")

    def say(self, sentence: str) -> None:
        """To the person, not into the output."""
        if self.terminal:
            sys.stderr.write(f"{'' if self._line_begins else CRLF}[{sentence}]{CRLF}")
            self._line_begins = True
        else:
            sys.stderr.write(f"ldm: {sentence}\n")
        sys.stderr.flush()

    # ---- input -----------------------------------------------------------------------------------------

    async def _read(self, whole: trio.CancelScope) -> None:
        """Keys, to their end or ~."""
        keys = Keys()
        while data := await self._read_some():
            for item in keys.feed(data) if self.terminal else [data]:
                if item is Escape.LEAVE:
                    whole.cancel()
                    return
                if item is Escape.HELP:
                    self.say("\r\n ".join(HELP))
                else:
                    assert isinstance(item, bytes)
                    self._typed += item
                    self._typed_bytes += len(item)
            self._tell()
            while len(self._typed) > KEYS_BYTES_MAX:
                await self._changed.wait()
        self._ended = True
        self._tell()
        if await self._wait_taken():
            await trio.sleep(self.wait_seconds)
        else:
            self.say(f"{self.domain} took {self._taken_bytes} of {self._typed_bytes} bytes")
            self._status = NOT_TAKEN_STATUS
        whole.cancel()

    async def _wait_taken(self) -> bool:
        """All that was typed; False when the domain takes no more of it."""
        while self._taken_bytes < self._typed_bytes:
            before = self._taken_bytes
            with trio.move_on_after(TAKE_SECONDS):
                while self._taken_bytes == before:
                    await self._changed.wait()
            if self._taken_bytes == before:
                return False
        return True

    async def _read_some(self) -> bytes:
        try:
            return await read_keys(INPUT)
        except OSError:  # the terminal is gone
            return b""

    async def _send(self, stream: ConsoleStream) -> None:
        while True:
            if not self._typed:
                await self._changed.wait()
                continue
            piece = bytes(self._typed[:TYPED_BYTES_MAX])
            del self._typed[: len(piece)]
            self._tell()
            try:
                await stream.type(piece)
            except trio.BrokenResourceError:
                return  # why is said by what is read

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


COMMANDS: Final = (console,)
