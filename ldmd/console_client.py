"""A client's end of the control socket's ``console`` (``ldmd/control.py`` has its events)."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import trio
from attrs import define

from ldmd.client import ANSWER_BYTES_MAX, ControlClient, Stream, error_of
from ldmd.control_lines import LineReader, LineTooLong, encode_line
from ldmd.errors import DaemonUnreachable

TYPED_BYTES_MAX: Final = 4096
ENDED: Final = "ended"


@define(eq=False)
class ConsoleStream:
    stream: Stream
    lines: LineReader

    async def type(self, data: bytes) -> None:
        """Waits while the domain does not take what was typed before. Raises trio.BrokenResourceError."""
        for start in range(0, len(data), TYPED_BYTES_MAX):
            text = base64.b64encode(data[start : start + TYPED_BYTES_MAX]).decode()
            await self.stream.send_all(encode_line({"input": text}))

    async def next_event(self) -> dict[str, Any]:
        """An event; ``data`` is bytes. The last one is ``{"event": "ended", "end", "sentence"}``.

        Raises the LdmdError that ended the console, or DaemonUnreachable.
        """
        try:
            line = await self.lines.next_line()
        except (trio.BrokenResourceError, LineTooLong):
            line = None
        if line is None:
            raise DaemonUnreachable(
                "the manager ended, and the console with it",
                remedy="the domain is not concerned: ask again when the manager is back",
            )
        answer = json.loads(line)
        if "error" in answer:
            raise error_of(answer["error"])
        if "result" in answer:
            return {"event": ENDED, **answer["result"]}
        event: dict[str, Any] = answer["progress"]
        if "data" in event:
            event["data"] = base64.b64decode(event["data"])
        return event


@contextlib.asynccontextmanager
async def open_console(
    client: ControlClient, domain: str, *, access: str = "write", replay_lines: int = 0
) -> AsyncIterator[ConsoleStream]:
    """The client can be used for nothing else then. ``access``: read, write or force."""
    arguments = {"domain": domain, "access": access, "replay_lines": replay_lines}
    with contextlib.suppress(trio.BrokenResourceError):  # a refusal still counts
        await client.stream.send_all(encode_line({"verb": "console", "arguments": arguments}))
    yield ConsoleStream(client.stream, LineReader(client.stream, ANSWER_BYTES_MAX))
