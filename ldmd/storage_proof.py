"""The proof that a file is one and the same on two hosts, or on two paths of one host: something that only shows up there.

*A nonce beside it.* The source writes a small file with random content into the folder where the volume really lies; the
other side finds it beside its own volume. Its name is made from the migration's id and the volume's file name, so it can
be neither foreseen nor found beside a volume of another name; a stale one has another name. Three things make the folder
stand for the file: symbolic links are followed first, the file must be on the same mount as the folder (nothing is mounted
over it), and the file's inode has to be equal (``storage_identity.py``), which that of a copy is not.

*A lock on it*, where the folder cannot be written or says nothing of the file: a lock on one byte far behind any end of
the file, at a place made from the migration's id. The other side sees it, and none on the bytes beside it, only if it is
the same file and the storage tells hosts of each other's locks. Nothing is written at all.

Sources: fcntl_locking(2) on open file description locks, proc(5). Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import define, field

from ldmd.storage_identity import NotKnown, identify, mount_id

NONCE: Final = re.compile(r"[0-9a-f]{64}")
_DIGITS: Final = 32
_LOCK_FIRST: Final = 2**61
_LOCK_PLACES: Final = 2**60
"""Offsets from 2**61 on: no volume is that long, and QEMU's own locks are at 100 to 203."""
_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of fcntl(2) on 64-bit Linux."""


def nonce_name(host: str, proof: str, file_name: str) -> str:
    """``host`` writes it. ``proof``: 32 random hexadecimal digits that both sides know."""
    digest = hashlib.sha256(f"{proof}\0{file_name}".encode()).hexdigest()
    return f".ldmd-{host}-{digest[:_DIGITS]}"


def is_nonce_of(host: str, name: str) -> bool:
    return re.fullmatch(rf"\.ldmd-{re.escape(host)}-[0-9a-f]{{{_DIGITS}}}", name) is not None


def lock_place(proof: str, label: str) -> int:
    """``label`` keeps volumes of one proof apart."""
    digest = hashlib.sha256(f"{proof}\0{label}".encode()).digest()
    return _LOCK_FIRST + int.from_bytes(digest[:8], "big") % _LOCK_PLACES


@contextmanager
def _folder_of(path: Path) -> Iterator[tuple[int, int]]:
    """Descriptors of the file and of the folder that it lies in. Raises NotKnown, OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            ours = os.fstat(file)
            there = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(ours.st_mode):
                raise NotKnown("it is not a file any more")
            if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
                raise NotKnown("another file has its name now")
            if mount_id(file) != mount_id(folder):
                raise NotKnown("it is mounted by itself, so its folder says nothing of it")
            yield file, folder
        finally:
            os.close(folder)
    finally:
        os.close(file)


class Unwanted(NotKnown):
    """Nobody waits for it any more."""


@define(eq=False)
class Token:
    """What the source put there for one volume. ``remove`` takes it away again; idempotent.

    ``nonce``: hexadecimal content of the file; empty when it is a lock.
    """

    nonce: str
    _folder: Path | None = None
    _name: str = ""
    _descriptor: int | None = field(default=None)

    def remove(self) -> None:
        """Raises OSError when the file stays."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        if self._folder is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._folder / self._name)
            self._folder = None


def put(
    base: Path, host: str, proof: str, label: str, wanted: Callable[[str], bool] = lambda _: True
) -> Token:
    """A nonce beside ``base``, or a lock on it where there can be none. Raises NotKnown saying why neither can be.

    ``wanted`` is asked with the nonce's name when it is there: if nobody waits any more, it is removed at once.
    """
    try:
        return _put_nonce(base, host, proof, wanted)
    except Unwanted:
        raise
    except NotKnown as error:
        beside = str(error)
    except OSError as error:
        beside = error.strerror or str(error)
    try:
        return _put_lock(base, proof, label)
    except OSError as error:
        raise NotKnown(
            f"nothing can be written beside it ({beside}), nor can it be locked ({error.strerror})"
        ) from error


def _put_nonce(base: Path, host: str, proof: str, wanted: Callable[[str], bool]) -> Token:
    nonce = secrets.token_hex(32)
    name = nonce_name(host, proof, base.name)
    with _folder_of(base) as (_, folder):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            try:
                if os.write(descriptor, nonce.encode()) != len(nonce):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)  # a full or failing disk says so here; other hosts see it now
            finally:
                os.close(descriptor)
            if not wanted(name):
                raise Unwanted("it took too long")
        except BaseException:
            os.unlink(name, dir_fd=folder)
            raise
    return Token(nonce, base.parent, name)


def _put_lock(base: Path, proof: str, label: str) -> Token:
    with _opened(base) as file:  # the lock stays with the duplicate
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, lock_place(proof, label)))
        return Token("", None, "", os.dup(file))


@contextmanager
def _opened(base: Path) -> Iterator[int]:
    """A lock is on the file itself, so its folder does not matter."""
    file = os.open(base, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _flock(kind: int, place: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0)


def has_nonce(base: Path, host: str, proof: str, nonce: str) -> bool:
    """Whether what ``put`` gave at ``host`` lies beside this file. Raises NotKnown, OSError."""
    with _folder_of(base) as (_, folder):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(nonce_name(host, proof, base.name), flags, dir_fd=folder)
        except OSError:  # not there, or somebody's symbolic link
            return False
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                return False
            if mount_id(descriptor) != mount_id(folder):
                return False
            return hmac.compare_digest(os.read(descriptor, 2 * len(nonce)), nonce.encode())
        finally:
            os.close(descriptor)


def has_lock(base: Path, proof: str, label: str) -> bool:
    """Whether the lock that ``put`` took is on this file, and on that byte alone. Raises OSError."""
    place = lock_place(proof, label)
    with _opened(base) as file:
        return [_is_locked(file, place + beside) for beside in (-1, 0, 1)] == [False, True, False]


def _is_locked(file: int, place: int) -> bool:
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, place))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def sweep(volume: Path, host: str, living: Callable[[str], bool]) -> list[Path]:
    """Remove what an earlier manager of this host left beside a volume; gives what was removed. Raises OSError."""
    descriptor = os.open(volume, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        base = identify(descriptor).base
    finally:
        os.close(descriptor)
    removed: list[Path] = []
    if base is None:
        return removed
    with os.scandir(base.parent) as entries:
        for entry in entries:
            if is_nonce_of(host, entry.name) and not living(entry.name):
                with suppress(OSError):
                    os.unlink(entry.path)
                    removed.append(Path(entry.path))
    return removed
