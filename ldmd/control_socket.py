"""The control socket's file: one living manager has it, a dead one's is replaced.

Binding to a path that exists fails, and a socket's file outlives its process. Whether a manager
lives there is asked twice: a lock beside the socket, held as long as the socket is open (it also
keeps two managers that start at once apart), and a connection, in case another program listens.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

from ldmd.errors import Busy, ConfigurationError
from ldmd.unix_address import short_address

SOCKET_MODE: Final = 0o660
BACKLOG: Final = 64


def find_group(name: str | None) -> int:
    """The number of the control group; None is this process's own. Raises ConfigurationError."""
    if name is None:
        return os.getegid()
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigurationError(
            f"host.control-group: there is no group {name!r} on this host",
            remedy=f"make it with `groupadd --system {name}`, or name another one",
        ) from None


@contextlib.contextmanager
def open_control_socket(path: Path, *, group: int) -> Iterator[trio.socket.SocketType]:
    """A listening socket at ``path``, mode 0660, of ``group``; its file goes when it is closed.

    Raises Busy when a manager lives there, ConfigurationError when the file cannot be made or the
    path holds something that is no socket.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_hold_lock(path))
            _remove_stale(path)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with short_address(path) as address:
                listener.bind(address)
            stack.callback(path.unlink, missing_ok=True)
            # Nobody gets in before listen(), so there is no moment with a mode that is too wide.
            os.chmod(path, SOCKET_MODE)
            if group != os.stat(path).st_gid:
                os.chown(path, -1, group)
            listener.listen(BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"host.control-socket: {path} cannot be made: {error.strerror or error}",
                remedy="see that its folder exists and that the manager's user may write there",
            ) from error
        listener.setblocking(False)
        yield trio.socket.from_stdlib_socket(listener)


@contextlib.contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """The lock file stays: removing it would let two managers lock two files of one name."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _another(path) from None
        yield
    finally:
        os.close(lock)


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(
            f"host.control-socket: {path} is there and is not a socket",
            remedy="remove it, or choose another path",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, short_address(path) as address:
        probe.setblocking(False)
        outcome = probe.connect_ex(address)
    if outcome in (0, errno.EAGAIN, errno.EINPROGRESS):  # EAGAIN: it lives, its backlog is full
        raise _another(path)
    if outcome != errno.ECONNREFUSED:
        raise OSError(outcome, os.strerror(outcome))
    path.unlink()


def _another(path: Path) -> Busy:
    return Busy(
        f"another manager runs here: {path} answers",
        remedy="stop it first (systemctl stop ldmd), or give this one its own run-directory",
    )
