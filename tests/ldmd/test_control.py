"""The control socket, with the real server and the real client over a real socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd import control
from ldmd.client import ControlClient, connect
from ldmd.control import (
    Arguments,
    Caller,
    Channel,
    Conversations,
    Dialogue,
    Progress,
    Verb,
    may_control,
    serve_control,
)
from ldmd.control_lines import LineReader, encode_line
from ldmd.control_socket import find_group, open_control_socket
from ldmd.errors import (
    BadRequest,
    Busy,
    ChecksFailed,
    ConfigurationError,
    DaemonUnreachable,
    InDoubt,
    LdmdError,
    NotFound,
)

DEADLINE_SECONDS = 20.0
NOBODY = 65534
ME = os.getegid()


async def echo(
    caller: Caller, arguments: Mapping[str, object], _progress: Progress
) -> dict[str, Any]:
    return {"uid": caller.uid, "pid": caller.pid, "user": caller.user} | dict(arguments)


async def count(
    _caller: Caller, arguments: Mapping[str, object], progress: Progress
) -> dict[str, Any]:
    given = Arguments.of(arguments, "to")
    number = given.values["to"]
    assert isinstance(number, int)
    for index in range(number):
        await progress({"at": index})
    return {"counted": number}


async def pick(
    _caller: Caller, arguments: Mapping[str, object], _progress: Progress
) -> dict[str, Any]:
    given = Arguments.of(arguments, "domain", "force", "names", "definition", "new_name")
    return {
        "domain": given.text("domain"),
        "force": given.boolean("force"),
        "names": given.texts("names"),
        "new_name": given.optional_text("new_name"),
        "definition": dict(given.document("definition")) if "definition" in arguments else None,
    }


def failing(error: Exception) -> Verb:
    async def verb(
        _caller: Caller, _arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        raise error

    return verb


class Patient:
    """A verb that waits; says when it began and when it was cancelled."""

    def __init__(self) -> None:
        self.began = trio.Event()
        self.go_on = trio.Event()
        self.cancelled = trio.Event()

    async def __call__(
        self, _caller: Caller, _arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        self.began.set()
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return {"waited": True}


VERBS: dict[str, Verb] = {
    "echo": echo,
    "count": count,
    "pick": pick,
    "not-found": failing(NotFound("there is no ldg9", remedy="look again", facts={"n": [1]})),
    "checks-failed": failing(ChecksFailed("no", facts={"findings": [{"code": "x"}]})),
    "in-doubt": failing(InDoubt("who knows")),
    "grouped": failing(ExceptionGroup("g", [ExceptionGroup("h", [NotFound("deep")])])),
}


@contextlib.asynccontextmanager
async def serving(path: Path, verbs: Mapping[str, Verb] = VERBS) -> AsyncIterator[Path]:
    with trio.fail_after(DEADLINE_SECONDS), open_control_socket(path, group=ME) as listener:
        async with trio.open_nursery() as nursery:
            start = nursery.start
            await start(lambda task_status: _serve(listener, verbs, task_status))
            yield path
            nursery.cancel_scope.cancel()


async def _serve(
    listener: trio.socket.SocketType, verbs: Mapping[str, Verb], status: trio.TaskStatus[None]
) -> None:
    await serve_control(listener, Conversations(verbs), allowed_group=ME, task_status=status)


@contextlib.asynccontextmanager
async def raw_connection(path: Path) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_unix_socket(str(path)) as stream:
        yield stream


async def read_lines(stream: trio.abc.ReceiveStream) -> list[Any]:
    """Until the server closes."""
    received = b"".join([chunk async for chunk in stream])
    return [json.loads(line) for line in received.splitlines()]


# ---- requests and answers ------------------------------------------------------------------------


async def test_a_result_comes_back_and_the_caller_is_known(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as path, connect(path) as client:
        answer = await client.call("echo", {"x": "é😀", "n": None})
    assert answer == {
        "uid": os.getuid(),
        "pid": os.getpid(),
        "user": answer["user"],
        "x": "é😀",
        "n": None,
    }
    assert answer["user"]


async def test_progress_comes_before_the_result_and_requests_follow_each_other(
    tmp_path: Path,
) -> None:
    seen: list[Any] = []
    async with serving(tmp_path / "s") as path, connect(path) as client:
        for _ in range(2):
            assert await client.call("count", {"to": 5}, on_progress=seen.append) == {"counted": 5}
    assert seen == [{"at": n} for n in range(5)] * 2


async def test_requests_sent_ahead_are_answered_in_order(tmp_path: Path) -> None:
    requests = b"".join(
        json.dumps({"verb": "echo", "arguments": {"n": n}}).encode() + b"\n" for n in range(50)
    )
    async with serving(tmp_path / "s") as path, raw_connection(path) as stream:
        await stream.send_all(requests)
        await stream.send_eof()
        answers = await read_lines(stream)
    assert [answer["result"]["n"] for answer in answers] == list(range(50))


@pytest.mark.parametrize(
    ("verb", "kind", "status"),
    [
        ("not-found", NotFound, 4),
        ("checks-failed", ChecksFailed, 1),
        ("in-doubt", InDoubt, 75),
        ("grouped", NotFound, 4),
        ("no-such-verb", BadRequest, 64),
    ],
)
async def test_an_error_is_raised_as_what_it_was(
    tmp_path: Path, verb: str, kind: type[LdmdError], status: int
) -> None:
    async with serving(tmp_path / "s") as path, connect(path) as client:
        with pytest.raises(LdmdError) as caught:
            await client.call(verb)
        assert type(caught.value) is kind
        assert caught.value.exit_status == status
        assert await client.call("count", {"to": 0}) == {"counted": 0}
    if verb == "not-found":
        assert caught.value.sentence == "there is no ldg9"
        assert caught.value.remedy == "look again"
        assert caught.value.facts == {"n": [1]}


async def test_an_error_with_a_code_that_the_client_does_not_know(tmp_path: Path) -> None:
    class Novel(LdmdError):
        code = "novel"
        exit_status = 42

    Novel.__module__ = "elsewhere"
    verbs = {"novel": failing(Novel("new"))}
    async with serving(tmp_path / "s", verbs) as path, connect(path) as client:
        with pytest.raises(LdmdError, match="new") as caught:
            await client.call("novel")
    assert (caught.value.code, caught.value.exit_status) == ("novel", 42)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"{", "not one line of JSON"),
        (b"", "not one line of JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "not one line of JSON"),
        (b"[]", 'not an object with a "verb"'),
        (b'{"verb": 1}', 'not an object with a "verb"'),
        (b'{"verb": "echo", "argument": {}}', "unknown key 'argument'"),
        (b'{"verb": "echo", "arguments": []}', '"arguments" is not an object'),
        (b'{"verb": "echo", "arguments": {"x": "\\ud800"}}', "not UTF-8"),
        (b'{"verb": "nothing"}', "there is no verb 'nothing'"),
        (b'{"verb": "pick"}', "the argument 'domain' is missing"),
        (b'{"verb": "pick", "arguments": {"domain": 1}}', "'domain' is 1 and must be a text"),
        (
            b'{"verb": "pick", "arguments": {"domain": "a", "force": 1}}',
            "'force' is 1 and must be true or false",
        ),
        (
            b'{"verb": "pick", "arguments": {"domain": "a", "names": ["b", 2]}}',
            "'names' must be a list of texts",
        ),
        (
            b'{"verb": "pick", "arguments": {"domain": "a", "definition": []}}',
            "'definition' is [] and must be an object",
        ),
        (
            b'{"verb": "pick", "arguments": {"domain": "a", "colour": 1}}',
            "unknown argument 'colour'; allowed: domain, force",
        ),
    ],
)
async def test_a_bad_request_is_answered_and_the_next_one_is_served(
    tmp_path: Path, line: bytes, part: str
) -> None:
    async with serving(tmp_path / "s") as path, raw_connection(path) as stream:
        await stream.send_all(line + b'\n{"verb": "count", "arguments": {"to": 0}}\n')
        await stream.send_eof()
        refused, answered = await read_lines(stream)
    assert refused["error"]["code"] == "bad-request"
    assert refused["error"]["exit_status"] == 64
    assert part in refused["error"]["sentence"]
    assert answered == {"result": {"counted": 0}}


async def test_arguments_of_every_kind(tmp_path: Path) -> None:
    given = {
        "domain": "a",
        "force": True,
        "names": ["b", "c"],
        "definition": {"x": 1},
        "new_name": None,
    }
    async with serving(tmp_path / "s") as path, connect(path) as client:
        assert await client.call("pick", given) == given


async def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as path, raw_connection(path) as stream:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(b"x" * (2 * control.REQUEST_BYTES_MAX))

            nursery.start_soon(send)
            refused = json.loads(await stream.receive_some())
        assert "longer than 1048576 bytes" in refused["error"]["sentence"]


# ---- clients that leave, stop reading, come in numbers -------------------------------------------


async def test_a_verb_ends_when_its_client_leaves(tmp_path: Path) -> None:
    patient = Patient()
    async with serving(tmp_path / "s", {"wait": patient} | VERBS) as path:
        async with raw_connection(path) as stream:
            await stream.send_all(b'{"verb": "wait"}\n')
            await patient.began.wait()
        await patient.cancelled.wait()
        async with connect(path) as client:
            assert await client.call("count", {"to": 0}) == {"counted": 0}


async def test_a_client_that_closed_its_sending_half_is_answered(tmp_path: Path) -> None:
    patient = Patient()
    async with serving(tmp_path / "s", {"wait": patient}) as path, raw_connection(path) as stream:
        await stream.send_all(b'{"verb": "wait"}\n')
        await stream.send_eof()
        await patient.began.wait()
        await trio.sleep(2 * control.HALF_CLOSED_POLL_SECONDS)
        patient.go_on.set()
        assert await read_lines(stream) == [{"result": {"waited": True}}]


async def test_a_verb_ends_when_such_a_client_leaves_later(tmp_path: Path) -> None:
    patient = Patient()
    async with serving(tmp_path / "s", {"wait": patient}) as path:
        async with raw_connection(path) as stream:
            await stream.send_all(b'{"verb": "wait"}\n')
            await stream.send_eof()
            await patient.began.wait()
        await patient.cancelled.wait()


async def test_a_client_that_does_not_read_loses_progress_and_no_more(tmp_path: Path) -> None:
    done = trio.Event()

    async def chatter(
        _caller: Caller, _arguments: Mapping[str, object], progress: Progress
    ) -> dict[str, Any]:
        for index in range(3000):
            await progress({"at": index, "text": "x" * 1000})
        done.set()
        return {"chattered": True}

    async with (
        serving(tmp_path / "s", {"chatter": chatter}) as path,
        raw_connection(path) as stream,
    ):
        await stream.send_all(b'{"verb": "chatter"}\n')
        await done.wait()  # the verb did not wait for the reader
        await stream.send_eof()
        *progress, result = await read_lines(stream)
    assert result == {"result": {"chattered": True}}
    numbers = [line["progress"]["at"] for line in progress]
    assert numbers == sorted(numbers)
    assert 0 < len(numbers) < 3000


async def test_an_answer_that_nobody_reads_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.2)

    async def much(
        _caller: Caller, _arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        return {"much": "x" * 4_000_000}

    async with serving(tmp_path / "s", {"much": much}) as path, raw_connection(path) as stream:
        await stream.send_all(b'{"verb": "much"}\n')
        await trio.sleep(1.0)  # longer than the answer may lie there
        received = b"".join([chunk async for chunk in stream])
    assert 0 < len(received) < 4_000_000


async def test_there_is_a_limit_to_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONNECTIONS_MAX", 2)
    async with serving(tmp_path / "s") as path, connect(path) as first:
        await first.call("count", {"to": 0})
        async with connect(path) as second:
            await second.call("count", {"to": 0})
            async with connect(path) as third:
                with pytest.raises(Busy, match="2 connections"):
                    await third.call("count", {"to": 0})
        with trio.fail_after(DEADLINE_SECONDS):
            while not await _is_served(path):
                await trio.sleep(0.01)


async def test_who_waits_for_a_migration_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(control, "WAITING_MAX", 2)
    patients = [Patient(), Patient()]
    turns = iter(patients)

    async def wait(
        caller: Caller, arguments: Mapping[str, object], progress: Progress
    ) -> dict[str, Any]:
        return await next(turns)(caller, arguments, progress)

    async with (
        serving(tmp_path / "s", {"migrate-domain": wait} | VERBS) as path,
        contextlib.AsyncExitStack() as clients,
        trio.open_nursery() as nursery,
    ):
        waiting = []
        for patient in patients:  # the next one finds the place that this one has given back
            client = await clients.enter_async_context(connect(path))
            waiting.append(client)
            nursery.start_soon(client.call, "migrate-domain")
            await patient.began.wait()
        async with connect(path) as third:
            assert await third.call("count", {"to": 0}) == {"counted": 0}
            with pytest.raises(Busy, match="2 connections wait for migrations"):
                await third.call("migrate-domain")
        with trio.fail_after(DEADLINE_SECONDS):
            while not await _is_served(path):
                await trio.sleep(0.01)
        async with connect(path) as fourth:  # has the one place there is for those who ask
            await fourth.call("count", {"to": 0})
            for patient in patients:
                patient.go_on.set()
            nursery.cancel_scope.deadline = trio.current_time() + DEADLINE_SECONDS
            while not waiting[0]._usable:
                await trio.sleep(0.01)
            with pytest.raises(Busy, match="1 connections"):  # answered, and a place for no more
                await waiting[0].call("count", {"to": 0})


async def test_stopping_answers_who_waits_and_takes_no_more(tmp_path: Path) -> None:
    patient = Patient()
    conversations = Conversations({"wait": patient} | VERBS)
    with open_control_socket(tmp_path / "s", group=ME) as listener:
        async with trio.open_nursery() as clients:
            front = trio.CancelScope()

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                with front:
                    await serve_control(
                        listener,
                        conversations,
                        allowed_group=ME,
                        handler_nursery=clients,
                        task_status=task_status,
                    )

            await clients.start(serve)
            async with connect(tmp_path / "s") as first, connect(tmp_path / "s") as second:
                await second.call("count", {"to": 0})
                answers: list[dict[str, Any]] = []

                async def ask() -> None:
                    answers.append(await first.call("wait"))

                clients.start_soon(ask)
                await patient.began.wait()
                front.cancel()
                conversations.stopping = True
                with pytest.raises(Busy, match="the manager is stopping"):
                    await second.call("count", {"to": 0})
                with trio.move_on_after(0.1) as too_early:
                    await conversations.wait_answered()
                assert too_early.cancelled_caught
                patient.go_on.set()
                with trio.fail_after(DEADLINE_SECONDS):
                    await conversations.wait_answered()
                    while not answers:
                        await trio.sleep(0.01)
            clients.cancel_scope.cancel()
    assert answers == [{"waited": True}]


async def _is_served(path: Path) -> bool:
    async with connect(path) as client:
        try:
            await client.call("count", {"to": 0})
        except Busy:
            return False
        return True


# ---- bugs ----------------------------------------------------------------------------------------


def _unserializable() -> Verb:
    async def verb(
        _caller: Caller, _arguments: Mapping[str, object], _progress: Progress
    ) -> dict[str, Any]:
        return {"path": Path("/")}

    return verb


@pytest.mark.parametrize(
    "verb",
    [
        failing(ZeroDivisionError("oops")),
        failing(trio.BrokenResourceError("of its own")),
        _unserializable(),
        failing(ExceptionGroup("g", [NotFound("a"), ZeroDivisionError("b")])),
    ],
)
async def test_a_bug_is_answered_and_logged_and_nothing_else_is_concerned(
    tmp_path: Path, verb: Verb, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "s", {"bug": verb, "echo": echo}) as path:
        async with connect(path) as client:
            with pytest.raises(LdmdError) as caught:
                await client.call("bug")
            assert await client.call("echo", {"a": 1})
        assert (caught.value.code, caught.value.exit_status) == ("internal", 70)
        assert "Traceback" in caplog.text


# ---- who may -------------------------------------------------------------------------------------

ASK_AS = """
import os, socket, sys
folder, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.chdir(folder)
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
connection = socket.socket(socket.AF_UNIX)
connection.connect("control.sock")
connection.sendall(b'{"verb": "echo"}\\n')
print(connection.makefile().readline(), end="")
"""
"""Becomes somebody else after everything is loaded, so no file needs to be readable to them."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("uid", "gid", "allowed"),
    [(NOBODY, NOBODY, False), (NOBODY, ME, True), (0, NOBODY, True)],
)
async def test_the_kernel_says_who_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, uid: int, gid: int, allowed: bool
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o755)
    async with serving(folder / "control.sock") as path:
        path.chmod(0o666)  # whatever became of the mode
        done = await trio.run_process(
            [sys.executable, "-c", ASK_AS, str(folder), str(uid), str(gid)],
            capture_stdout=True,
        )
    answer = json.loads(done.stdout)
    if allowed:
        assert answer["result"]["uid"] == uid
    else:
        assert answer["error"]["code"] == "not-allowed"
        assert answer["error"]["exit_status"] == 77
        assert "may not use" in answer["error"]["sentence"]
        assert "refused" in caplog.text


async def test_members_of_the_group_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own user database, where a bare host has no group with members."""
    groups = {"operator": [NOBODY, 4711]}

    def look_up(user: str, gid: int) -> list[int]:
        if user not in groups:
            raise KeyError(user)
        return [gid, *groups[user]]

    monkeypatch.setattr(os, "getgrouplist", look_up)
    member = Caller(uid=54321, gid=NOBODY, pid=1, user="operator")
    assert await may_control(member, 4711)
    stranger = Caller(uid=54321, gid=NOBODY, pid=1, user="no-such-user")
    assert not await may_control(stranger, 4711)
    assert not await may_control(member, None)


# ---- the socket's file ---------------------------------------------------------------------------


def test_the_socket_has_the_right_mode_and_goes_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with open_control_socket(path, group=ME):
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == ME
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another group")
def test_the_socket_belongs_to_the_control_group(tmp_path: Path) -> None:
    with open_control_socket(tmp_path / "s", group=NOBODY):
        assert (tmp_path / "s").stat().st_gid == NOBODY


def test_a_dead_managers_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.listen()
    dead.close()
    assert path.exists()
    with open_control_socket(path, group=ME):
        assert _connects(path)


def test_a_killed_managers_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    script = (
        "import os, pathlib, signal, sys\n"
        "from ldmd.control_socket import open_control_socket\n"
        "with open_control_socket(pathlib.Path(sys.argv[1]), group=os.getegid()):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    assert path.exists()
    with open_control_socket(path, group=ME):
        assert _connects(path)


def test_a_living_managers_socket_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with open_control_socket(path, group=ME):
        with pytest.raises(Busy, match="another manager runs here"):
            open_control_socket(path, group=ME).__enter__()
        assert _connects(path)


def test_nor_is_another_programs(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Busy, match="another manager runs here"):
            open_control_socket(path, group=ME).__enter__()
        assert _connects(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="is not a socket"):
        open_control_socket(path, group=ME).__enter__()
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be made"):
        open_control_socket(tmp_path / "none" / "s", group=ME).__enter__()


def test_a_group_that_is_not_there() -> None:
    assert find_group(None) == os.getegid()
    assert find_group("root") == 0
    with pytest.raises(ConfigurationError, match="no group 'no-such-group'"):
        find_group("no-such-group")


async def test_a_long_path_works_at_both_ends(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    async with serving(folder / "control.sock") as path:
        assert len(str(path)) > 200
        async with connect(path) as client:
            assert await client.call("count", {"to": 0}) == {"counted": 0}
    assert not list(folder.glob("*.sock"))


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


# ---- the client's own troubles -------------------------------------------------------------------


async def test_no_manager_there(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="no manager answers") as caught:
        async with connect(tmp_path / "s"):
            pass
    assert "systemctl start ldmd" in caught.value.remedy
    assert caught.value.exit_status == 69


async def test_a_dead_managers_socket_says_so_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(DaemonUnreachable, match="connection refused"):
        async with connect(tmp_path / "s"):
            pass


async def test_a_manager_that_ends_before_it_answers(tmp_path: Path) -> None:
    await _unanswered(
        tmp_path / "s", lambda stream: stream.aclose(), "ended before it answered wait"
    )


async def test_a_manager_that_does_not_answer(tmp_path: Path) -> None:
    async def say_nothing(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    await _unanswered(tmp_path / "s", say_nothing, "did not answer wait in 0 s")


async def _unanswered(
    path: Path, behave: Callable[[trio.SocketStream], Awaitable[None]], sentence: str
) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await behave(stream)

    with trio.fail_after(DEADLINE_SECONDS), open_control_socket(path, group=ME) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(listener)])
            async with connect(path) as client:
                with pytest.raises(DaemonUnreachable, match=sentence):
                    await client.call("wait", timeout_seconds=0.3)
                await _is_unusable(client)
            nursery.cancel_scope.cancel()


async def _is_unusable(client: ControlClient) -> None:
    """What comes next on that connection could be the answer to the earlier call."""
    with pytest.raises(DaemonUnreachable, match="ended earlier"):
        await client.call("status")


# ---- dialogues -----------------------------------------------------------------------------------


async def repeat(
    _caller: Caller, arguments: Mapping[str, object], channel: Channel
) -> dict[str, Any]:
    """Says every line twice, ``end`` ends it."""
    lines = 0
    while (line := await channel.hear()) is not None:
        if line.get("end"):
            break
        lines += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.tell, dict(line))
            nursery.start_soon(channel.tell, dict(line))
    return {"lines": lines, **arguments}


async def test_a_dialogue_goes_both_ways_and_its_answer_is_the_last(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", {"repeat": Dialogue(repeat)}) as path:
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            reader = LineReader(stream, 10_000)
            await stream.send_all(encode_line({"verb": "repeat", "arguments": {"a": 1}}))
            for number in range(3):
                await stream.send_all(encode_line({"number": number}))
                for _ in range(2):
                    assert json.loads(await reader.next_line() or b"") == {
                        "progress": {"number": number}
                    }
            await stream.send_all(encode_line({"end": True}) + encode_line({"verb": "status"}))
            assert json.loads(await reader.next_line() or b"") == {"result": {"lines": 3, "a": 1}}
            assert await reader.next_line() is None


async def test_a_dialogue_whose_client_has_gone_ends_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended = trio.Event()

    async def talk(_caller: Caller, _: Mapping[str, object], channel: Channel) -> dict[str, Any]:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                while True:
                    await channel.tell({"text": "x" * 100_000})
        finally:
            ended.set()

    async with serving(tmp_path / "s", {"talk": Dialogue(talk), "echo": echo}) as path:
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(encode_line({"verb": "talk"}))
        await stream.receive_some(10)
        await stream.aclose()
        with trio.fail_after(10):
            await ended.wait()
        async with connect(path) as client:
            assert await client.call("echo", {"a": 1})
    assert "bug" not in caplog.text
