"""The other end of the control socket: what the command line and harnesses use.

An error answer is raised as the class of ``ldmd/errors.py`` with that code, as if it happened here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field

from ldmd.control_lines import LineReader, LineTooLong, encode_line
from ldmd.control_socket import short_address
from ldmd.errors import DaemonUnreachable, LdmdError, NotAllowed

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""One answer; 10 000 domains are 5 MB."""
CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 300.0
"""Verbs have deadlines of their own in the manager; this one is for a manager that hangs."""
PAGE: Final = 500
"""Migrations asked for at a time: the manager does nothing else while it lists them."""
REMEDY: Final = "is ldmd running? systemctl start ldmd"

Document = dict[str, Any]
OnProgress = Callable[[Document], None]


@contextlib.asynccontextmanager
async def connect(
    path: Path, *, timeout_seconds: float = CONNECT_SECONDS
) -> AsyncIterator[ControlClient]:
    """A client of the manager at ``path``. Raises DaemonUnreachable, NotAllowed."""
    stream: trio.SocketStream | None = None
    try:
        with short_address(path) as address, trio.move_on_after(timeout_seconds):
            stream = await trio.open_unix_socket(address)
    except PermissionError:
        raise NotAllowed(
            f"you may not use the control socket {path}",
            remedy="ask as root, or as a member of the control group (host.control-group)",
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DaemonUnreachable(f"no manager answers on {path}: {reason}", remedy=REMEDY) from error
    if stream is None:
        raise DaemonUnreachable(f"the manager does not accept connections on {path}", remedy=REMEDY)
    async with stream:
        yield ControlClient(stream)


@define(eq=False)
class ControlClient:
    """One connection; one call at a time. The methods are the manager's verbs, same names."""

    stream: trio.SocketStream
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
        with trio.move_on_after(timeout_seconds):
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
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(encode_line(request))
        while True:
            try:
                line = await self._lines.next_line()
            except (trio.BrokenResourceError, LineTooLong):
                line = None
            if line is None:
                raise DaemonUnreachable(
                    f"the manager ended before it answered {request['verb']}",
                    remedy="migrations settle by themselves: see `ldm list-migrations` and "
                    "`journalctl -u ldmd`",
                )
            answer: Document = json.loads(line)
            if "progress" not in answer:
                return answer
            if on_progress is not None:
                on_progress(answer["progress"])

    async def status(self) -> Document:
        return await self.call("status")

    async def list_domains(self, names: Sequence[str] = ()) -> Document:
        """``{"host", "domains": […]}``; all domains when ``names`` is empty. Raises NotFound."""
        return await self.call("list-domains", {"names": list(names)} if names else {})

    async def show_definition(self, domain: str) -> Document:
        """The definition's document (``ldmd.definition.from_document`` reads it)."""
        document: Document = (await self.call("show-definition", {"domain": domain}))["definition"]
        return document

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
        on_progress: OnProgress | None = None,
    ) -> Document:
        """Waits as long as it takes: the manager has the deadlines. Raises ChecksFailed,
        MigrationFailed, InDoubt. Leaving the call does not end the migration."""
        return await self.call(
            "migrate-domain",
            {"domain": domain, "peer": peer, "new_name": new_name, "dry_run": dry_run},
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
