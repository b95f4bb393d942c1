"""A user at a console, for tests: everything that was told and shown, and what to wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field

from ldmd.client import connect
from ldmd.console_client import ENDED, ConsoleStream, open_console
from ldmd.errors import LdmdError
from tests.managers import Manager

WAIT_SECONDS = 30.0


@define(eq=False)
class Visitor:
    stream: ConsoleStream
    events: list[dict[str, Any]] = field(factory=list)
    output: bytes = b""
    skipped_bytes: int = 0
    error: LdmdError | None = None
    reading: bool = True
    """Set to False, it does not read what it is told."""
    _changed: trio.Condition = field(factory=trio.Condition)

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    @property
    def ended(self) -> dict[str, Any] | None:
        return next((e for e in self.events if e["event"] == ENDED), None)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    async def listen(self) -> None:
        while self.ended is None:
            try:
                event = await self.stream.next_event()
            except LdmdError as error:
                self.error = error
                await self._tell()
                return
            if event["event"] == "output":
                self.output += event["data"]
                self.skipped_bytes += event["skipped_bytes"]
            self.events.append(event)
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def wait(
        self, condition: Callable[[], Any], timeout_seconds: float = WAIT_SECONDS
    ) -> None:
        with trio.fail_after(timeout_seconds):
            async with self._changed:
                while not condition():
                    await self._changed.wait()

    async def wait_text(self, text: str, timeout_seconds: float = WAIT_SECONDS) -> None:
        await self.wait(lambda: text in self.text, timeout_seconds)

    async def type(self, text: str) -> None:
        await self.stream.type(text.encode())


@asynccontextmanager
async def visit(
    manager: Manager, domain: str = "ldg1", *, access: str = "write", replay_lines: int = 1000
) -> AsyncIterator[Visitor]:
    """At the end it hangs up."""
    async with (
        connect(manager.socket) as client,
        open_console(client, domain, access=access, replay_lines=replay_lines) as stream,
        trio.open_nursery() as nursery,
    ):
        visitor = Visitor(stream)
        nursery.start_soon(visitor.listen)
        await visitor.wait(lambda: visitor.of("opened") or visitor.error)
        yield visitor
        nursery.cancel_scope.cancel()
