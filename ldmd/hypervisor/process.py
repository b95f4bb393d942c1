"""A domain's process: started so that it outlives the manager, and found again without ever taking
another for it.

Every driver starts its processes here. Five things hold:

- *Nothing is forgotten.* ``spawn`` starts a shell that waits for a line on a pipe. Only when the
  process's identity is on disk (``process.json``, fsynced) does the line come, and the shell
  becomes the hypervisor by ``exec``, with the same pid and start time. A manager that is killed in
  between closes the pipe, and the shell ends: no record, no process.
- *Nothing is mistaken.* A pid is used again by others sooner or later, so an identity is the pid,
  its start time (field 22 of ``/proc/PID/stat``, proc(5)) and the boot's id. Signals go through a
  pidfd (pidfd_open(2)) that was opened before the start time was compared.
- *A lost run directory is no end.* Without a record the process is looked for: by its log, and by
  its environment, which says where it was started whatever was removed, renamed or mounted since.
- *Not seen is not gone.* What cannot be looked at, for want of descriptors say, is unknown.
- *Gone is gone.* A process counts as gone when its pidfd is readable: all its threads have ended,
  also when nobody has reaped it yet. A dead child of this process is reaped on the way.

The process has a session of its own, so no signal to the manager's group reaches it; its standard
input is ``/dev/null``, its output and errors go to ``hypervisor.log`` in the run directory, which
is its working directory.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import select
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio
from attrs import asdict, field, frozen, validators

from ldmd.errors import HypervisorError, OutcomeUnknown

RECORD_NAME: Final = "process.json"
LOG_NAME: Final = "hypervisor.log"

PROC: Final = Path("/proc")
DELETED: Final = " (deleted)"
"""Behind the name of a file that was removed, in proc(5)."""

RECORD_BYTES_MAX: Final = 4096
LOG_BYTES_MAX: Final = 1024 * 1024
"""``find`` cuts a longer log back to its end; between two calls it grows by what the hypervisor
writes.
"""
LOG_BYTES_KEPT: Final = 64 * 1024

INHERITED_VARIABLES: Final = ("PATH", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")
"""All that a domain's process gets of the manager's environment: what is needed to find
programs.
"""

RUN_DIRECTORY_VARIABLE: Final = "LDMD_RUN_DIRECTORY"
"""In the environment of each process: where it was started."""
_MARK: Final = RUN_DIRECTORY_VARIABLE.encode() + b"="
_NOT_OURS: Final = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.ENOTDIR)
"""It has ended meanwhile, or is another user's: a manager's own can be looked at."""
_NO_SUCH_PROCESS: Final = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
"""From pidfd_open: EINVAL, and ENOENT since Linux 6.9, when the number is a mere thread's now."""
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE)
_WAIT_FOR_RECORD: Final = 'read -r go || exit 125; exec "$@" </dev/null'


@frozen(kw_only=True)
class ProcessIdentity:
    """``start_ticks`` is in clock ticks after boot; the three together name one process for
    ever.
    """

    pid: int = field(validator=validators.and_(validators.instance_of(int), validators.gt(0)))
    start_ticks: int = field(
        validator=validators.and_(validators.instance_of(int), validators.ge(0))
    )
    boot_id: str = field(validator=validators.instance_of(str))


async def spawn(
    argv: Sequence[str],
    run_directory: Path,
    *,
    pass_fds: Collection[int] = (),
    environment: Mapping[str, str] | None = None,
) -> ProcessIdentity:
    """Start ``argv`` (``argv[0]`` is looked up in PATH) as the one process of ``run_directory``.

    ``pass_fds`` are inherited under their numbers, no other descriptor is. ``environment`` is added
    to the few variables that are passed on. Returns when the record is on disk and the go-ahead was
    given; that the program could be executed at all is not known yet: if not, the process is gone
    soon and ``log_tail`` says why.

    Raises HypervisorError when nothing was started. Runs to its end even when cancelled, so that
    the caller that is cancelled may destroy what ``find`` returns.
    """
    return await trio.to_thread.run_sync(
        _spawn, tuple(argv), run_directory, tuple(pass_fds), dict(environment or {})
    )


def find(run_directory: Path) -> ProcessIdentity | None:
    """The process that was started there; None when it is certain that none lives.

    Also when its run directory was removed under it, or its record: then it is looked for. Raises
    OutcomeUnknown when there is a record that cannot be read, or one cannot look.
    """
    identity = read_record(run_directory)
    if identity is None:
        return find_all(run_directory.parent).get(run_directory.name)
    if gone(identity):
        return None
    _bound_log(run_directory)
    return identity


def find_all(parent: Path) -> dict[str, ProcessIdentity]:
    """Name of the run directory, which may be gone, in ``parent`` -> the process that was started there, by looking at every
    process of this host: its errors go to the log there, and nobody else's do. Takes some milliseconds.
    """
    place = Path(os.path.realpath(parent))
    try:
        pids = [int(name) for name in os.listdir(PROC) if name.isdecimal()]
        found = {}
        for pid in pids:
            home = _find_home(pid)
            if home is not None and home.parent == place and (stat := _read_stat(pid)) is not None:
                identity = ProcessIdentity(pid=pid, start_ticks=stat, boot_id=boot_id())
                if not gone(identity):
                    found[home.name] = identity
    except OSError as error:
        raise OutcomeUnknown(
            f"this host's processes cannot be looked at, so whether one of {parent} lives is not "
            f"known: {error}"
        ) from error
    return found


def _find_home(pid: int) -> Path | None:
    """The run directory in which that process was started, whatever has become of the directory
    since; None for one that no manager started. Raises OSError when one cannot look.
    """
    try:
        if os.getsid(pid) != pid:
            return None  # each has a session of its own; a child that it made is not meant
        log = Path(os.readlink(PROC / str(pid) / "fd/2").removesuffix(DELETED))
        if log.name != LOG_NAME:
            return None
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError as error:
        if error.errno in _NOT_OURS:
            return None
        raise
    marked = [v for v in environment.split(b"\0") if v.startswith(_MARK)]
    return Path(os.fsdecode(marked[0].removeprefix(_MARK))) if marked else log.parent


def gone(identity: ProcessIdentity) -> bool:
    """True when the process and all its threads have ended. A dead child is reaped."""
    with _pidfd(identity) as descriptor:
        if descriptor is None:
            return True
        if not _readable(descriptor):
            return False
        _reap(descriptor)
        return True


async def kill(identity: ProcessIdentity, timeout_seconds: float) -> None:
    """SIGKILL, then wait until it is gone; returns at once when it is already.

    Raises OutcomeUnknown when it did not end in time (a thread in an uninterruptible wait) or may
    not be killed.
    """
    with _pidfd(identity) as descriptor:
        if descriptor is None:
            return
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            pass  # dead, not reaped: the pidfd is readable
        except PermissionError as error:
            raise OutcomeUnknown(
                f"process {identity.pid} may not be killed by this manager",
                remedy="run the manager as the user that started the domain",
            ) from error
        if not await _wait_readable(descriptor, timeout_seconds):
            raise OutcomeUnknown(
                f"process {identity.pid} has not ended {timeout_seconds:g} s after SIGKILL"
            )
        _reap(descriptor)


async def wait_gone(identity: ProcessIdentity, timeout_seconds: float) -> bool:
    """Wait until the process has ended by itself; False when it lives after ``timeout_seconds``."""
    with _pidfd(identity) as descriptor:
        if descriptor is None:
            return True
        if not await _wait_readable(descriptor, timeout_seconds):
            return False
        _reap(descriptor)
        return True


def read_record(run_directory: Path) -> ProcessIdentity | None:
    """What ``process.json`` says, of a living process or not; None when there is none. Raises
    OutcomeUnknown.
    """
    path = run_directory / RECORD_NAME
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(RECORD_BYTES_MAX))
        return ProcessIdentity(**document)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise OutcomeUnknown(
            f"{path} cannot be read, so whether a domain's process lives is not known: {error}",
            remedy="look for the process, end it if it lives, and remove the run directory",
        ) from error


def log_tail(run_directory: Path, size_bytes: int = 2048) -> str:
    """The end of what the process wrote to its output and errors, as text; empty when there is
    nothing.
    """
    try:
        with (run_directory / LOG_NAME).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size_bytes))
            return file.read(size_bytes).decode(errors="replace").strip()
    except OSError:
        return ""


@functools.cache
def boot_id() -> str:
    """It does not change while this process lives. Raises OSError, the first time."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _spawn(
    argv: tuple[str, ...],
    run_directory: Path,
    pass_fds: tuple[int, ...],
    environment: dict[str, str],
) -> ProcessIdentity:
    living = find(run_directory)
    if living is not None:
        raise HypervisorError(f"process {living.pid} lives in {run_directory} already")
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    try:
        with (run_directory / LOG_NAME).open("ab") as log:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT_FOR_RECORD, "sh", *argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=run_directory,
                env={
                    **inherited,
                    "LC_ALL": "C.UTF-8",
                    **environment,
                    RUN_DIRECTORY_VARIABLE: os.path.realpath(run_directory),
                },
                pass_fds=pass_fds,
                start_new_session=True,
            )
    except OSError as error:
        raise HypervisorError(f"{argv[0]} could not be started: {error}") from error
    assert child.stdin is not None
    try:
        stat = _read_stat(child.pid)
        assert stat is not None, "a child that was not reaped has an entry in /proc"
        identity = ProcessIdentity(pid=child.pid, start_ticks=stat, boot_id=boot_id())
        _write_record(run_directory, identity)
        child.stdin.write(b"go\n")
        child.stdin.close()
    except OSError as error:
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.kill()
        child.wait()
        raise HypervisorError(
            f"{argv[0]} could not be started in {run_directory}: {error}"
        ) from error
    # From here on pidfds tell of its end; without this, Popen would warn of and later wait for a
    # pid that may be another's by then.
    child.returncode = 0
    return identity


def _write_record(run_directory: Path, identity: ProcessIdentity) -> None:
    temporary = run_directory / (RECORD_NAME + ".new")
    with temporary.open("wb") as file:
        file.write(json.dumps(asdict(identity)).encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(run_directory / RECORD_NAME)
    directory = os.open(run_directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_stat(pid: int) -> int | None:
    """The start time of ``pid``, in clock ticks after boot; None when there is no such process.

    Raises OSError when one cannot look.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may hold anything, also ")".
    return int(text.rpartition(b")")[2].split()[22 - 3])


@contextlib.contextmanager
def _pidfd(identity: ProcessIdentity) -> Iterator[int | None]:
    """A pidfd of exactly that process, or None when it is gone and reaped. Raises OutcomeUnknown."""
    try:
        descriptor = _open_pidfd(identity)
    except OSError as error:
        raise OutcomeUnknown(
            f"process {identity.pid} cannot be looked at: {error}",
            remedy="raise this service's limit of open files" if error.errno in _NO_ROOM else "",
        ) from error
    if descriptor is None:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_pidfd(identity: ProcessIdentity) -> int | None:
    """The caller closes it. Raises OSError."""
    if identity.boot_id != boot_id():
        return None
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError as error:
        if error.errno in _NO_SUCH_PROCESS:
            return None
        raise
    try:
        # Compared after the pidfd was opened: if the start time is right now, the pidfd is of that
        # process.
        if _read_stat(identity.pid) == identity.start_ticks:
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


async def _wait_readable(descriptor: int, timeout_seconds: float) -> bool:
    with trio.move_on_after(timeout_seconds):
        await trio.lowlevel.wait_readable(descriptor)
    return _readable(descriptor)


def _reap(descriptor: int) -> None:
    with contextlib.suppress(ChildProcessError):  # the child of an earlier manager: init reaps it
        os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)


def _bound_log(run_directory: Path) -> None:
    """Cut the log to its end when it is too long. The process appends (O_APPEND), so it writes on
    behind the cut.
    """
    path = run_directory / LOG_NAME
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_BYTES_MAX:
            with path.open("r+b") as file:
                file.seek(-LOG_BYTES_KEPT, os.SEEK_END)
                kept = file.read(LOG_BYTES_KEPT)
                file.truncate(0)
                file.seek(0)
                file.write(kept)
