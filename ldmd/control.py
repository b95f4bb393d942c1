"""The control socket: where people and programs of this host tell the manager what to do.

A unix stream socket carries one JSON object per line (``control_lines.py``). A request is
``{"verb": …, "arguments": {…}}``; its answers are any number of ``{"progress": {…}}`` lines, then
exactly one ``{"result": {…}}`` or ``{"error": {"code", "sentence", "remedy", "exit_status",
"facts"}}``. Requests may follow each other on one connection and are carried out one at a time.

Who may: root, the manager's own user and members of the control group, by the kernel's word
(``SO_PEERCRED``), whatever became of the file's mode. When the client goes away the running verb is
cancelled; what must outlive it (a migration) lives in a nursery of the daemon, and only the waiting
ends. A client that does not read costs a bounded queue: progress is dropped, an answer has a
deadline.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import select
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import trio
from attrs import define, field, frozen

from ldmd.control_lines import LineReader, LineTooLong, encode_line, error_document
from ldmd.errors import BadRequest, Busy, LdmdError, NotAllowed

log = logging.getLogger("ldmd.control")

REQUEST_BYTES_MAX: Final = 1024 * 1024
"""One request; the largest is a definition with 64 vdisks and 64 vnets, 20 KiB."""
CONNECTIONS_MAX: Final = 64
"""People, scripts and harnesses of one host; each may hold a request of REQUEST_BYTES_MAX."""
PROGRESS_QUEUE_LINES: Final = 256
ANSWER_SECONDS: Final = 60.0
"""How long a client may leave an answer unread; a stopped terminal (^Z) is given that long."""
REFUSAL_SECONDS: Final = 5.0
LOOK_UP_SECONDS: Final = 5.0
"""Names of users and groups may come from a directory service that does not answer."""
HALF_CLOSED_POLL_SECONDS: Final = 0.25
CREDENTIALS: Final = struct.Struct("iII")
"""``struct ucred`` of unix(7): pid, uid, gid."""
READING_VERBS: Final = ("list-", "show-", "status")
"""Verbs that begin so change nothing; asking for them is not logged."""

T = TypeVar("T")
Progress = Callable[[dict[str, Any]], Awaitable[None]]


@frozen(kw_only=True)
class Caller:
    """Who asks, by the kernel's word; ``user`` is the name for logs and records."""

    uid: int
    gid: int
    pid: int
    user: str


Verb = Callable[[Caller, Mapping[str, object], Progress], Awaitable[dict[str, Any]]]
"""Carries a request out. Raises LdmdError; anything else is a bug, answered as ``internal``."""


@frozen
class Arguments:
    """Strict, typed access to a request's arguments. Every method raises BadRequest."""

    values: Mapping[str, object]

    @classmethod
    def of(cls, values: Mapping[str, object], *known: str) -> Arguments:
        """``known`` are all the arguments that the verb has; another one is an error."""
        if unknown := sorted(set(values) - set(known)):
            allowed = ", ".join(known) or "none"
            raise BadRequest(f"unknown argument {unknown[0]!r}; allowed: {allowed}")
        return cls(values)

    def _take(self, name: str, kind: type[T], what: str) -> T:
        if name not in self.values:
            raise BadRequest(f"the argument {name!r} is missing")
        value = self.values[name]
        if not isinstance(value, kind):
            raise BadRequest(f"the argument {name!r} is {value!r:.80} and must be {what}")
        return value

    def text(self, name: str) -> str:
        return self._take(name, str, "a text")

    def optional_text(self, name: str) -> str | None:
        return None if self.values.get(name) is None else self.text(name)

    def boolean(self, name: str, *, default: bool = False) -> bool:
        return self._take(name, bool, "true or false") if name in self.values else default

    def whole(self, name: str, low: int, high: int, *, default: int) -> int:
        if self.values.get(name) is None:
            return default
        what = f"a whole number from {low} to {high}"
        value = self._take(name, int, what)
        if isinstance(value, bool) or not low <= value <= high:
            raise BadRequest(f"the argument {name!r} is {value!r:.80} and must be {what}")
        return value

    def document(self, name: str) -> Mapping[str, object]:
        return self._take(name, dict, "an object")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty when the argument is not there."""
        if self.values.get(name) is None:
            return ()
        items = self._take(name, list, "a list of texts")
        if not all(isinstance(item, str) for item in items):
            raise BadRequest(f"the argument {name!r} must be a list of texts")
        return tuple(items)


def parse_request(line: bytes) -> tuple[str, Mapping[str, object]]:
    """One line -> verb and arguments. Raises BadRequest."""
    try:
        request = json.loads(line.decode())
        if b"\\ud" in line.lower():
            json.dumps(request, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except UnicodeError as error:
        raise BadRequest(f"the request is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request is not one line of JSON: {error}") from error
    if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
        raise BadRequest('the request is not an object with a "verb"')
    if unknown := sorted(set(request) - {"verb", "arguments"}):
        raise BadRequest(f"the request has an unknown key {unknown[0]!r:.80}")
    arguments = request.get("arguments", {})
    if not isinstance(arguments, dict):
        raise BadRequest('"arguments" is not an object')
    return request["verb"], arguments


# ---- who asks --------------------------------------------------------------------------------


async def identify(sock: trio.socket.SocketType) -> Caller:
    """The process that connected. The user's name is ``uid N`` when it has none."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, gid = CREDENTIALS.unpack(raw)
    user = await _look_up(lambda: pwd.getpwuid(uid).pw_name, f"uid {uid}")
    return Caller(uid=uid, gid=gid, pid=pid, user=user)


async def may_control(caller: Caller, allowed_group: int | None) -> bool:
    if caller.uid in (0, os.geteuid()) or caller.gid == allowed_group:
        return True
    if allowed_group is None:
        return False
    none: list[int] = []
    groups = await _look_up(lambda: os.getgrouplist(caller.user, caller.gid), none)
    return allowed_group in groups


async def _look_up(question: Callable[[], T], otherwise: T) -> T:
    """Ask the name service, which may block; ``otherwise`` when it does not know or answer."""
    with trio.move_on_after(LOOK_UP_SECONDS):
        try:
            return await trio.to_thread.run_sync(question, abandon_on_cancel=True)
        except (KeyError, OSError):
            pass
    return otherwise


# ---- the server ------------------------------------------------------------------------------


async def serve_control(
    listener: trio.socket.SocketType,
    verbs: Mapping[str, Verb],
    *,
    allowed_group: int | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``verbs`` on a listening unix socket until cancelled.

    ``allowed_group``: the group whose members may use it beside root and the manager's own user.
    An exception of a verb that is no LdmdError is a bug: it is logged and answered as ``internal``, and the manager goes on:
    verbs keep what they change in the journal, and no migration may die of a listing.
    """
    limiter = trio.CapacityLimiter(CONNECTIONS_MAX)
    handler = partial(_serve_connection, verbs=verbs, allowed_group=allowed_group, limiter=limiter)
    task_status.started()
    await trio.serve_listeners(handler, [trio.SocketListener(listener)])


async def _serve_connection(
    stream: trio.SocketStream,
    *,
    verbs: Mapping[str, Verb],
    allowed_group: int | None,
    limiter: trio.CapacityLimiter,
) -> None:
    try:
        caller = await identify(stream.socket)
        connection = _Connection(stream, verbs, caller)
        if not await may_control(caller, allowed_group):
            log.warning(
                "refused %s (pid %d) on the control socket: not in its group",
                caller.user,
                caller.pid,
            )
            await connection.refuse(
                NotAllowed(
                    f"{caller.user} may not use this manager's control socket",
                    remedy="ask as root, or as a member of the control group (host.control-group)",
                )
            )
            return
        try:
            limiter.acquire_nowait()
        except trio.WouldBlock:
            await connection.refuse(
                Busy(f"the control socket has {CONNECTIONS_MAX} connections", remedy="try again")
            )
            return
        try:
            await connection.serve()
        finally:
            limiter.release()
    except trio.BrokenResourceError:
        log.debug("a client of the control socket went away")


class _ClientGone(Exception):
    """Nobody reads the answer any more."""


@define(eq=False)
class _Connection:
    stream: trio.SocketStream
    verbs: Mapping[str, Verb]
    caller: Caller
    lines: LineReader = field(init=False)

    @lines.default
    def _read_requests(self) -> LineReader:
        return LineReader(self.stream, REQUEST_BYTES_MAX)

    async def refuse(self, error: LdmdError) -> None:
        """Answer the first request so, if one comes in time."""
        with trio.move_on_after(REFUSAL_SECONDS):
            with contextlib.suppress(LineTooLong):
                await self.lines.next_line()
            await self.stream.send_all(encode_line(error_document(error)))

    async def serve(self) -> None:
        """Answer requests until the client is gone."""
        while True:
            try:
                line = await self.lines.next_line()
            except LineTooLong:
                sentence = f"the request is longer than {REQUEST_BYTES_MAX} bytes"
                await self._answer(encode_line(error_document(BadRequest(sentence))))
                return
            if line is None:
                return
            try:
                name, arguments = parse_request(line)
                answer = await self._carry_out(name, self._find_verb(name), arguments)
            except BadRequest as error:
                answer = encode_line(error_document(error))
            except _ClientGone:
                log.info("%s (pid %d) left before the answer", self.caller.user, self.caller.pid)
                return
            if not await self._answer(answer):
                return

    def _find_verb(self, name: str) -> Verb:
        if name not in self.verbs:
            raise BadRequest(
                f"there is no verb {name!r:.80}", remedy=f"verbs: {', '.join(sorted(self.verbs))}"
            )
        return self.verbs[name]

    async def _answer(self, line: bytes) -> bool:
        with trio.move_on_after(ANSWER_SECONDS):
            await self.stream.send_all(line)
            return True
        log.warning("%s (pid %d) did not read its answer", self.caller.user, self.caller.pid)
        return False

    async def _carry_out(self, name: str, verb: Verb, arguments: Mapping[str, object]) -> bytes:
        """The answer's line. Raises _ClientGone."""
        if not name.startswith(READING_VERBS):
            log.info("%s (pid %d) asks for %s", self.caller.user, self.caller.pid, name)
        send, receive = trio.open_memory_channel[bytes](PROGRESS_QUEUE_LINES)

        async def progress(document: dict[str, Any]) -> None:
            with contextlib.suppress(trio.WouldBlock):  # nobody reads: the verb does not wait
                send.send_nowait(encode_line({"progress": document}))
            await trio.lowlevel.checkpoint()

        answer: bytes | None = None
        async with trio.open_nursery() as nursery:
            watch = trio.CancelScope()
            nursery.start_soon(self._write_progress, receive, nursery.cancel_scope)
            nursery.start_soon(self._watch_client, watch, nursery.cancel_scope)
            answer = await _run_verb(verb, self.caller, arguments, progress)
            watch.cancel()
            send.close()
            nursery.cancel_scope.deadline = trio.current_time() + ANSWER_SECONDS
        if nursery.cancel_scope.cancelled_caught or answer is None:
            raise _ClientGone
        return answer

    async def _write_progress(
        self, lines: trio.MemoryReceiveChannel[bytes], whole: trio.CancelScope
    ) -> None:
        try:
            async for line in lines:
                await self.stream.send_all(line)
        except trio.BrokenResourceError:
            whole.cancel()

    async def _watch_client(self, watch: trio.CancelScope, whole: trio.CancelScope) -> None:
        """Cancel the verb when the client is gone; later requests stay in the buffer until then.

        A client may close its sending half and wait for the answer (``… | socat - UNIX:…``): that
        is the end of its requests, not its going, and only POLLHUP tells the two apart.
        """
        with watch:
            try:
                while not self.lines.ended and not self.lines.full:
                    await self.lines.receive_more()
                while not self._hung_up():  # noqa: ASYNC110 (trio waits for no POLLHUP alone)
                    await trio.sleep(HALF_CLOSED_POLL_SECONDS)
            except trio.BrokenResourceError:
                pass
            whole.cancel()

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self.stream.socket.fileno(), 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


async def _run_verb(
    verb: Verb, caller: Caller, arguments: Mapping[str, object], progress: Progress
) -> bytes:
    """The answer's line, also when the verb has a bug."""
    try:
        return encode_line({"result": await verb(caller, arguments, progress)})
    except Exception as error:
        known = operator_error(error)
        if known is not None:
            return encode_line(error_document(known))
        log.exception("a verb of the control socket has a bug")
        bug = {
            "code": "internal",
            "sentence": f"the manager has a bug: {type(error).__name__}: {error}",
            "remedy": "nothing else is concerned; report what its log says (journalctl -u ldmd)",
            "exit_status": 70,  # EX_SOFTWARE
            "facts": {},
        }
        return encode_line({"error": bug})


def operator_error(error: BaseException) -> LdmdError | None:
    """The LdmdError that it is, or that nurseries wrapped in groups with nothing else in them."""
    if isinstance(error, LdmdError):
        return error
    if isinstance(error, BaseExceptionGroup):
        inner = [operator_error(e) for e in error.exceptions]
        if all(e is not None for e in inner):
            return inner[0]
    return None
