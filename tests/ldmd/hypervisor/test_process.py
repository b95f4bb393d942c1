"""Processes are started, found and ended; never another one than was started."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio

from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor import process, sockets
from tests.ldmd.hypervisor.rig import descriptors_of, processes_in

SLEEP = ("sleep", "60")
SECONDS = 10.0
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
async def run_directory(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    yield path
    end_children(path)


def end_children(run_directory: Path) -> None:
    """Also those that a test has made the record forget."""
    for pid in processes_in(run_directory):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def assert_reaped(pid: int) -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@contextmanager
def lone_process(script: str, run_directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A manager of its own in a group of its own; killed at the end."""
    command = [sys.executable, "-c", script, str(run_directory)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=REPOSITORY, start_new_session=True
    ) as manager:
        try:
            yield manager
        finally:
            manager.kill()


async def wait_command(pid: int, word: str) -> None:
    """Until the process has become that program."""
    with trio.fail_after(SECONDS):
        while True:
            words = await trio.Path(f"/proc/{pid}/cmdline").read_bytes()
            if words.startswith(word.encode() + b"\0"):
                return
            await trio.sleep(0.005)


async def test_spawned_is_found_and_killed(run_directory: Path) -> None:
    assert process.find(run_directory) is None
    identity = await process.spawn(SLEEP, run_directory)
    await wait_command(identity.pid, "sleep")
    assert process.find(run_directory) == identity
    assert not process.gone(identity)
    assert os.getsid(identity.pid) == identity.pid
    assert processes_in(run_directory) == [identity.pid]
    assert not await process.wait_gone(identity, 0.01)
    await process.kill(identity, SECONDS)
    assert process.gone(identity)
    assert process.find(run_directory) is None
    assert_reaped(identity.pid)
    await process.kill(identity, SECONDS)
    assert await process.wait_gone(identity, SECONDS)


async def test_one_run_directory_has_one_process(run_directory: Path) -> None:
    identity = await process.spawn(SLEEP, run_directory)
    with pytest.raises(HypervisorError, match=str(identity.pid)):
        await process.spawn(SLEEP, run_directory)
    await process.kill(identity, SECONDS)
    again = await process.spawn(SLEEP, run_directory)
    assert process.find(run_directory) == again


async def test_dead_child_counts_as_gone_and_is_reaped(run_directory: Path) -> None:
    identity = await process.spawn(("true",), run_directory)
    assert await process.wait_gone(identity, SECONDS)
    assert_reaped(identity.pid)
    identity = await process.spawn(("true",), run_directory)
    with trio.fail_after(SECONDS):
        while process.find(run_directory) is not None:
            await trio.sleep(0.005)
    assert_reaped(identity.pid)


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another boot"}])
async def test_another_process_with_that_pid_is_left_alone(
    run_directory: Path, change: dict[str, object]
) -> None:
    identity = await process.spawn(SLEEP, run_directory)
    old = attrs.evolve(identity, **change)
    process._write_record(run_directory, old)
    assert process.read_record(run_directory) == old
    assert process.find(run_directory) is None
    assert process.gone(old)
    await process.kill(old, SECONDS)
    assert not process.gone(identity)


async def test_thread_with_that_number_is_no_process(run_directory: Path) -> None:
    thread = await trio.to_thread.run_sync(lambda: __import__("threading").get_native_id())
    assert thread != os.getpid()
    boot_id = process.boot_id()
    identity = process.ProcessIdentity(pid=thread, start_ticks=1, boot_id=boot_id)
    assert process.gone(identity)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1', '{"pid": "1"}', "\0" * 5000])
async def test_broken_record_is_not_taken_for_none(run_directory: Path, text: str) -> None:
    (run_directory / process.RECORD_NAME).write_text(text)
    with pytest.raises(OutcomeUnknown):
        process.find(run_directory)
    with pytest.raises(OutcomeUnknown):
        await process.spawn(SLEEP, run_directory)
    assert processes_in(run_directory) == []


async def test_program_that_is_not_there(run_directory: Path) -> None:
    identity = await process.spawn(("no-such-program-here",), run_directory)
    assert await process.wait_gone(identity, SECONDS)
    assert "no-such-program-here" in process.log_tail(run_directory)
    with pytest.raises(HypervisorError):
        await process.spawn(SLEEP, run_directory / "no-such-directory")


async def test_nothing_starts_when_the_record_cannot_be_written(run_directory: Path) -> None:
    (run_directory / (process.RECORD_NAME + ".new")).mkdir()
    with pytest.raises(HypervisorError):
        await process.spawn(("touch", "ran"), run_directory)
    assert processes_in(run_directory) == []
    assert not (run_directory / "ran").exists()


async def test_manager_that_dies_before_the_record_leaves_nothing(run_directory: Path) -> None:
    """Killed at the worst moment: the child is there, its record is not."""
    script = (
        "import os, pathlib, signal, sys, trio\n"
        "from ldmd.hypervisor import process\n"
        "process._write_record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(process.spawn, ('touch', 'ran'), pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(run_directory)]
    done = await trio.run_process(command, check=False, cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    with trio.fail_after(SECONDS):
        while processes_in(run_directory):
            await trio.sleep(0.005)
    assert process.find(run_directory) is None
    assert not (run_directory / "ran").exists()


async def test_inherits_what_was_asked_for_alone(run_directory: Path, tmp_path: Path) -> None:
    given = os.open(tmp_path / "given", os.O_CREAT | os.O_RDWR)
    kept = os.open(tmp_path / "kept", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(kept, True)
    os.environ["LDMD_SECRET"] = "secret"
    try:
        identity = await process.spawn(
            SLEEP, run_directory, pass_fds=[given], environment={"LDMD_GIVEN": "given"}
        )
        await wait_command(identity.pid, "sleep")
        log = run_directory / process.LOG_NAME
        assert set(descriptors_of(identity.pid)) == {Path("/dev/null"), log, tmp_path / "given"}
        assert await trio.Path(f"/proc/{identity.pid}/fd/{given}").exists()
        environment = await trio.Path(f"/proc/{identity.pid}/environ").read_bytes()
    finally:
        del os.environ["LDMD_SECRET"]
        os.close(given)
        os.close(kept)
    assert b"LDMD_GIVEN=given\0" in environment
    assert b"secret" not in environment


async def test_arguments_arrive_as_they_are(run_directory: Path) -> None:
    words = ["a b", "$(id)", "'\"\\", "--", "", "*"]
    identity = await process.spawn(("printf", "<%s>", *words), run_directory)
    assert await process.wait_gone(identity, SECONDS)
    assert process.log_tail(run_directory) == "".join(f"<{word}>" for word in words)


async def test_signals_to_the_managers_group_do_not_reach_it(run_directory: Path) -> None:
    script = (
        "import pathlib, sys, trio\n"
        "from ldmd.hypervisor import process\n"
        "trio.run(process.spawn, ('sleep', '60'), pathlib.Path(sys.argv[1]))\n"
        "print('made', flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    with lone_process(script, run_directory) as manager:
        assert manager.stdout is not None
        assert await trio.to_thread.run_sync(manager.stdout.readline) == b"made\n"
        os.killpg(manager.pid, signal.SIGTERM)
        await trio.to_thread.run_sync(manager.wait)
    identity = process.find(run_directory)
    assert identity is not None
    await process.kill(identity, SECONDS)
    assert processes_in(run_directory) == []


async def test_long_log_is_cut_to_its_end(run_directory: Path) -> None:
    log = run_directory / process.LOG_NAME
    log.write_bytes(b"x" * process.LOG_BYTES_MAX + b"the end")
    identity = await process.spawn(SLEEP, run_directory)
    assert process.find(run_directory) == identity
    assert log.stat().st_size <= process.LOG_BYTES_KEPT
    assert process.log_tail(run_directory, 7) == "the end"


async def test_connect_is_not_fooled_by_a_full_queue(tmp_path: Path) -> None:
    """A process that is stopped accepts nothing: that is no connection, nor an error."""
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    descriptor = os.open(directory, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{descriptor}/control.sock")
        os.close(descriptor)
        with pytest.raises(ConnectionRefusedError):
            await sockets.connect(directory, "control.sock")
        listener.listen(0)
        first = await sockets.connect(directory, "control.sock")
        with trio.move_on_after(0.1) as scope:
            await sockets.connect(directory, "control.sock")
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close_connected, directory)
            listener.accept()[0].close()
        await first.aclose()
    with pytest.raises(ConnectionRefusedError):
        await sockets.connect(directory, "control.sock")
    with pytest.raises(FileNotFoundError):
        await sockets.connect(directory, "other.sock")


async def _close_connected(directory: Path) -> None:
    with trio.fail_after(SECONDS):
        stream = await sockets.connect(directory, "control.sock")
    await stream.aclose()


# ---- what cannot be seen is not gone -------------------------------------------------------------


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing meanwhile."""
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)


async def test_without_descriptors_nothing_is_gone(run_directory: Path) -> None:
    identity = await process.spawn(SLEEP, run_directory)
    with no_descriptors():
        with pytest.raises(OutcomeUnknown, match="cannot be looked at"):
            process.gone(identity)
        with pytest.raises(OutcomeUnknown):
            process.find(run_directory)
        with pytest.raises(OutcomeUnknown):
            process.find_all(run_directory.parent)
        with pytest.raises(OutcomeUnknown):
            await process.kill(identity, SECONDS)
    assert process.find(run_directory) == identity


async def test_without_a_second_descriptor_neither(run_directory: Path) -> None:
    """The process can be had hold of, and its start time not be read."""
    identity = await process.spawn(SLEEP, run_directory)
    with no_descriptors():
        used, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, most))
        with pytest.raises(OutcomeUnknown, match="cannot be looked at"):
            process.gone(identity)
        assert not os.path.exists(f"/proc/self/fd/{used}")


def lose_record(run_directory: Path) -> None:
    (run_directory / process.RECORD_NAME).unlink()


def lose_directory(run_directory: Path) -> None:
    shutil.rmtree(run_directory)


def lose_all(run_directory: Path) -> None:
    shutil.rmtree(run_directory.parent)


def move_away(run_directory: Path) -> None:
    run_directory.rename(run_directory.parent.parent / "elsewhere")


def make_anew(run_directory: Path) -> None:
    run_directory.parent.rename(run_directory.parent.parent / "elsewhere")
    run_directory.mkdir(parents=True)


@pytest.mark.parametrize("lose", [lose_record, lose_directory, lose_all, move_away, make_anew])
async def test_a_process_is_found_without_its_record(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    run_directory = tmp_path / "domains" / "one"
    run_directory.mkdir(parents=True)
    identity = await process.spawn(SLEEP, run_directory)
    await wait_command(identity.pid, "sleep")
    lose(run_directory)
    try:
        assert process.find(run_directory) == identity
        assert process.find_all(run_directory.parent) == {"one": identity}
        assert process.find(run_directory.with_name("two")) is None
    finally:
        await process.kill(identity, SECONDS)
    assert process.find(run_directory) is None


async def test_a_child_of_a_domains_process_is_not_taken_for_it(tmp_path: Path) -> None:
    run_directory = tmp_path / "domains" / "one"
    run_directory.mkdir(parents=True)
    argv = ("sh", "-c", "sleep 600 & echo $! >&2; wait")
    identity = await process.spawn(argv, run_directory)
    with trio.fail_after(SECONDS):
        while not (words := process.log_tail(run_directory)):
            await trio.sleep(0.005)
    lose_record(run_directory)
    try:
        assert process.find(run_directory) == identity
    finally:
        os.kill(int(words), signal.SIGKILL)
        await process.kill(identity, SECONDS)


async def test_after_a_reboot_no_process_lives(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the record names was another process of another boot, and nothing is found without it."""
    identity = await process.spawn(SLEEP, run_directory)
    await process.kill(identity, SECONDS)
    monkeypatch.setattr(process, "boot_id", lambda: "the next boot")
    assert process.find(run_directory) is None
    lose_record(run_directory)
    assert process.find(run_directory) is None
