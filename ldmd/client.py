"""The other end of the control socket: what the command line and harnesses use.

One client, on two kinds of connection: ``connect`` for programs that run trio, ``connect_blocking`` for those that ask one
thing and end. trio takes longer to import than most verbs take, so it is imported where it is used.

An error answer is raised as the class of ``ldmd/errors.py`` with that code, as if it happened here.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from attrs import define, field

from ldmd.control_lines import LineReader, LineTooLong, encode_line
from ldmd.errors import DaemonUnreachable, LdmdError, NotAllowed
from ldmd.unix_address import short_address

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""One answer; 10 000 domains are 5 MB."""
CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 300.0
"""Verbs have deadlines of their own in the manager; this one is for a manager that hangs."""
PAGE: Final = 500
"""Migrations asked for at a time: the manager does nothing else while it lists them."""
REMEDY: Final = "is ldmd running? systemctl start ldmd"

T = TypeVar("T")
Document = dict[str, Any]
OnProgress = Callable[[Document], None]


class Stream(Protocol):
    async def send_all(self, data: bytes, /) -> None: ...
    async def receive_some(self, max_bytes: int, /) -> bytes | bytearray: ...


@contextlib.asynccontextmanager
async def connect(
    path: Path, *, timeout_seconds: float = CONNECT_SECONDS
) -> AsyncIterator[ControlClient]:
    """A client of the manager at ``path``, under trio. Raises DaemonUnreachable, NotAllowed."""
    import trio

    stream: trio.SocketStream | None = None
    with _connecting(path), short_address(path) as address, trio.move_on_after(timeout_seconds):
        stream = await trio.open_unix_socket(address)
    if stream is None:
        raise _not_accepting(path)
    async with stream:
        yield ControlClient(stream, limit=trio.move_on_after, broken=trio.BrokenResourceError)


@contextlib.contextmanager
def connect_blocking(
    path: Path, *, timeout_seconds: float = CONNECT_SECONDS
) -> Iterator[ControlClient]:
    """The same without trio: nothing else happens while it waits. Its calls go through ``carry_out``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        seconds = struct.pack("@ll", math.ceil(timeout_seconds), 0)  # struct timeval of socket(7)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        with _connecting(path), short_address(path) as address:
            try:
                sock.connect(address)
            except BlockingIOError:
                raise _not_accepting(path) from None
        stream = BlockingStream(sock)
        yield ControlClient(stream, limit=stream.limit, broken=ConnectionError)


def carry_out(conversation: Coroutine[Any, Any, T]) -> T:
    """What ``conversation`` returns; it uses a client of ``connect_blocking`` and waits for nothing else."""
    try:
        conversation.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    conversation.close()
    raise AssertionError("it waits for something that only trio can wait for")


@define(eq=False)
class BlockingStream:
    sock: socket.socket
    _deadline: float = field(default=math.inf, init=False)

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Left early, and quietly, when the time is over."""
        self._deadline = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            yield

    def _set_timeout(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(None if left == math.inf else left)

    async def send_all(self, data: bytes) -> None:
        self._set_timeout()
        self.sock.sendall(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        self._set_timeout()
        return self.sock.recv(max_bytes)


@contextlib.contextmanager
def _connecting(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise NotAllowed(
            f"you may not use the control socket {path}",
            remedy="ask as root, or as a member of the control group (host.control-group)",
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DaemonUnreachable(f"no manager answers on {path}: {reason}", remedy=REMEDY) from error


def _not_accepting(path: Path) -> DaemonUnreachable:
    return DaemonUnreachable(f"the manager does not accept connections on {path}", remedy=REMEDY)


@define(eq=False)
class ControlClient:
    """One connection; one call at a time. The methods are the manager's verbs, same names."""

    stream: Stream
    limit: Callable[[float], contextlib.AbstractContextManager[object]] = field(kw_only=True)
    """Is left early, and quietly, when so many seconds are over."""
    broken: type[Exception] = field(kw_only=True)
    """What the stream raises when the other end is gone."""
    _lines: LineReader = field(init=False)
    _usable: bool = field(default=True, init=False)

    @_lines.default
    def _read_answers(self) -> LineReader:
        return LineReader(self.stream, ANSWER_BYTES_MAX)

    async def call(
        self,
        verb: str,
        arguments: Mapping[str, object] | None = None,
        *,
        on_progress: OnProgress | None = None,
        timeout_seconds: float = CALL_SECONDS,
    ) -> Document:
        """Ask for ``verb`` and wait for its result.

        Raises the LdmdError of the answer, or DaemonUnreachable when none comes; the connection
        cannot be used after that, nor after a call that was cancelled.
        """
        if not self._usable:
            raise DaemonUnreachable("the connection to the manager ended earlier", remedy=REMEDY)
        self._usable = False
        with self.limit(timeout_seconds):
            answer = await self._exchange(
                {"verb": verb, "arguments": dict(arguments or {})}, on_progress
            )
            self._usable = True
            if "error" in answer:
                raise error_of(answer["error"])
            result: Document = answer["result"]
            return result
        raise DaemonUnreachable(f"the manager did not answer {verb} in {timeout_seconds:.0f} s")

    async def _exchange(self, request: Document, on_progress: OnProgress | None) -> Document:
        # A manager that refuses may answer and close before it has read: the answer still counts.
        with contextlib.suppress(self.broken):
            await self.stream.send_all(encode_line(request))
        queued = False
        while True:
            try:
                line = await self._lines.next_line()
            except (self.broken, LineTooLong):
                line = None
            if line is None:
                raise _ended(request, queued)
            answer: Document = json.loads(line)
            if "progress" not in answer:
                return answer
            queued = answer["progress"].get("event") == "queued"
            if on_progress is not None:
                on_progress(answer["progress"])

    async def status(self) -> Document:
        return await self.call("status")

    async def list_domains(self, names: Sequence[str] = ()) -> Document:
        """``{"host", "domains": […]}``; all domains when ``names`` is empty. Raises NotFound."""
        return await self.call("list-domains", {"names": list(names)} if names else {})

    async def show_definition(self, domain: str) -> Document:
        """The definition's document (``ldmd.definition.from_document`` reads it)."""
        document: Document = (await self.show_definitions(domain))["definition"]
        return document

    async def show_definitions(self, domain: str) -> Document:
        """``{"definition", "pending"}``: ``pending`` is None where no reconfiguration waits."""
        return await self.call("show-definition", {"domain": domain})

    async def add_domain(self, definition: Mapping[str, object]) -> Document:
        """``{"name", "uuid"}``."""
        return await self.call("add-domain", {"definition": dict(definition)})

    async def change_domain(self, verb: str, domain: str) -> Document:
        """``verb``: remove-, bind-, unbind-, start-, stop-, suspend- or resume-domain.

        Returns the domain as ``list_domains`` shows it.
        """
        document: Document = (await self.call(verb, {"domain": domain}))["domain"]
        return document

    async def migrate_domain(
        self,
        domain: str,
        peer: str,
        *,
        new_name: str | None = None,
        dry_run: bool = False,
        force: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Document:
        """Waits as long as it takes: the manager has the deadlines. Raises ChecksFailed,
        MigrationFailed, InDoubt. Leaving the call does not end the migration."""
        return await self.call(
            "migrate-domain",
            {
                "domain": domain,
                "peer": peer,
                "new_name": new_name,
                "dry_run": dry_run,
                "force": force,
            },
            on_progress=on_progress,
            timeout_seconds=float("inf"),
        )

    async def cancel_migration(
        self, domain: str | None = None, *, migration: str | None = None
    ) -> Document:
        """One of the two, a migration by its whole id.

        ``{"outcome": "cancelled" | "too-late", "decision", "sentence", "migration"}``.

        In doubt, the answer comes when the target has answered.
        """
        arguments = {"migration": migration} if domain is None else {"domain": domain}
        return await self.call("cancel-migration", arguments, timeout_seconds=float("inf"))

    async def list_migrations(self, limit: int | None = None) -> tuple[list[Document], bool]:
        """The ``limit`` newest (None: all), newest first, with all that are under way; whether there are more."""
        migrations: list[Document] = []
        after: str | None = None
        while True:
            wanted = PAGE if limit is None else min(PAGE, limit - len(migrations))
            if wanted <= 0:
                return migrations, True
            page = await self.call("list-migrations", {"limit": wanted, "before": after})
            migrations += page["migrations"]
            after = page["next"]
            if after is None:
                return migrations, False

    async def show_migration(self, migration: str) -> Document:
        return await self.call("show-migration", {"migration": migration})

    async def recover_migration(self, migration: str, decision: str, reason: str) -> Document:
        """``decision``: keep-here or give-up-here. The migration as ``show_migration`` gives it.

        Raises NotAllowed when the peer answers, WrongState when there is nothing to decide.
        """
        arguments = {"migration": migration, "decision": decision, "reason": reason}
        return await self.call("recover-migration", arguments, timeout_seconds=float("inf"))


def _ended(request: Document, queued: bool) -> DaemonUnreachable:
    """``queued``: the last that was heard is that its migration had not begun."""
    if queued:
        return DaemonUnreachable(
            f"the manager ended while {request['arguments']['domain']} was queued: it stays, and its migration is"
            " forgotten",
            remedy="ask again when the manager is back; had it begun just then, `ldm list-migrations` shows it",
        )
    return DaemonUnreachable(
        f"the manager ended before it answered {request['verb']}",
        remedy="migrations settle by themselves: see `ldm list-migrations` and `journalctl -u ldmd`",
    )


def error_of(document: Mapping[str, Any]) -> LdmdError:
    """An answer's ``error`` -> the exception of that code; its own class when none has the code."""
    code = str(document.get("code", "error"))
    classes = {cls.code: cls for cls in _all_classes(LdmdError)}
    if code not in classes:
        status = document.get("exit_status")
        attributes = {"code": code, "exit_status": status if isinstance(status, int) else 1}
        classes[code] = type("ManagerError", (LdmdError,), attributes)
    facts = document.get("facts")
    return classes[code](
        str(document.get("sentence", code)),
        remedy=str(document.get("remedy", "")),
        facts=facts if isinstance(facts, dict) else {},
    )


def _all_classes(cls: type[LdmdError]) -> Iterator[type[LdmdError]]:
    yield cls
    for child in cls.__subclasses__():
        # A class made for an unknown code is not one of ours.
        if child.__module__.startswith("ldmd.") and child.__name__ != "ManagerError":
            yield from _all_classes(child)
