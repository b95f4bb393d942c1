"""What storage a volume is, as a text that two hosts can compare; never its path.

Equal texts are half of the proof that two volumes are the same storage. Where a text stands for storage that the whole
world names alike (a WWN), it is all of it; where it ends in a file, the other half is ``storage_proof.py``. A text is made
of what the hardware, or the server behind it, says of itself:

==============================  ====================================================================================
a disk                          its WWN, from sysfs: ``naa.``, ``eui.``, ``uuid.`` or ``nvme.``. A ``t10.`` name is not
                                taken: some targets and hypervisors give every disk the same.
a partition                     number, first sector and length, and the disk that it is of
a device-mapper device          its uuid *and* the devices below it. LVM keeps the uuid on the disk: two hosts that were
                                installed from one image have equal ones.
a loop device                   offset and size limit, and the file below it
a file                          its inode where the file system's own numbers are seen by every host
a file on overlayfs             this kernel, file system and inode: what is written there goes to a layer of its own
==============================  ====================================================================================

Anything else is not known, and what is not known is never the same. Everything here blocks; nothing of it waits long but
for storage that does not answer, so call it in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import re
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

TEXT_LENGTH_MAX: Final = 512
"""A longer text travels as its digest."""
DEPTH_MAX: Final = 8
"""Devices on devices: partition, crypt, LVM, multipath, disk are five."""
SYSFS: Final = Path("/sys/dev/block")
BLOCK_BYTES: Final = 4096
"""Read at the beginning of a volume, whatever its sectors are."""

_WWID: Final = re.compile(r"(naa|eui|uuid|nvme)\.[\x21-\x7e][\x20-\x7e]{7,254}")
_BLKROGET: Final = 0x125E
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64: Final = struct.Struct("=QQQQQ")
"""device, inode, rdev, offset, size limit: the beginning of loop_info64 in linux/loop.h."""
_LOOP_INFO64_BYTES: Final = 232
_LOOP_MAJOR: Final = 7

_OWN_INODE_NUMBERS: Final = re.compile(
    r"fuse(\..*|blk)?|cifs|smb3|9p|virtiofs|vboxsf|ramfs|ntfs3?|exfat|vfat"
)
"""File systems whose inode numbers may be made up by the host that mounts them."""


class NotKnown(Exception):
    """What storage it is cannot be told; says why."""


@frozen(kw_only=True)
class Identity:
    """``text``: empty when it is not known, and ``why`` says why then. ``base``: the file that it ends in, if it does."""

    text: str = ""
    why: str = ""
    base: Path | None = None
    base_key: tuple[int, int] | None = None
    """Device and inode of the base, for comparing on this host alone."""


@frozen(kw_only=True)
class Probe:
    """What was seen of a volume when it was opened, in the way that a domain would.

    ``key`` is the same for two paths of this host to the very same file or device.
    """

    size_bytes: int
    block_device: bool
    direct: bool
    """Whether it can be opened with O_DIRECT."""
    key: tuple[str, int, int]
    identity: Identity


def probe(path: Path, *, read_only: bool) -> Probe:
    """Open a volume and look at it. Raises OSError when a domain could not use it, in the system's words."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
    with _opened(path, flags) as descriptor:
        status = os.fstat(descriptor)
        block = stat.S_ISBLK(status.st_mode)
        if not block and not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is neither a file nor a block device")
        if block and not read_only and _is_write_protected(descriptor):
            raise OSError(errno.EROFS, "it is write-protected")
        size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        if size_bytes:
            os.pread(descriptor, 1, 0)
        return Probe(
            size_bytes=size_bytes,
            block_device=block,
            direct=_reads_directly(path, size_bytes),
            key=key_of(status),
            identity=identify(descriptor),
        )


def _is_write_protected(descriptor: int) -> bool:
    """Such a device can be opened to write, and refuses every write (blkdev(4): BLKROGET)."""
    answer = fcntl.ioctl(descriptor, _BLKROGET, bytes(4))
    return int.from_bytes(answer, sys.byteorder) != 0


def _reads_directly(path: Path, size_bytes: int) -> bool:
    """Not every file system has it: tmpfs before Linux 6.6 says EINVAL.

    A read past the page cache goes to the storage itself, so a path that is gone is found out: raises OSError then.
    """
    try:
        context = _opened(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECT)
        with context as descriptor:
            if size_bytes >= BLOCK_BYTES:
                with mmap.mmap(-1, BLOCK_BYTES) as buffer:
                    os.preadv(descriptor, [buffer], 0)
            return True
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise


def key_of(status: os.stat_result) -> tuple[str, int, int]:
    if stat.S_ISBLK(status.st_mode):
        return "device", status.st_rdev, 0
    return "file", status.st_dev, status.st_ino


def is_open_in(pid: int, key: tuple[str, int, int]) -> bool:
    """Whether a process has that file or device open: its name may be another one's since."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for number in descriptors:
        try:
            if key_of(os.stat(f"/proc/{pid}/fd/{number}")) == key:
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def identify(descriptor: int, sysfs: Path = SYSFS) -> Identity:
    """Of an open volume. Never raises: what cannot be found out is not known."""
    try:
        status = os.fstat(descriptor)
        if stat.S_ISBLK(status.st_mode):
            text, base = _device(status.st_rdev, sysfs, descriptor, 0)
        else:
            text, base = _file(descriptor)
    except NotKnown as error:
        return Identity(why=str(error))
    except OSError as error:
        return Identity(why=f"it cannot be looked at: {error.strerror}")
    if len(text) > TEXT_LENGTH_MAX:
        text = f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"
    if base is None:
        return Identity(text=text)
    path, key = base
    return Identity(text=text, base=path, base_key=key)


_Base = tuple[Path, tuple[int, int]] | None


def _device(number: int, sysfs: Path, descriptor: int | None, depth: int) -> tuple[str, _Base]:
    """``descriptor``: of the device itself, where it is the volume."""
    if depth > DEPTH_MAX:
        raise NotKnown(f"there are more than {DEPTH_MAX} devices on each other below it")
    directory = sysfs / f"{os.major(number)}:{os.minor(number)}"
    if not directory.exists():
        raise NotKnown("the kernel does not say what device it is")
    if (directory / "partition").exists():
        return _partition(directory, sysfs, depth)
    if os.major(number) == _LOOP_MAJOR or (directory / "loop").exists():
        return _loop(directory, descriptor)
    if (directory / "dm").exists():
        return _mapped(directory, sysfs, depth)
    for name in ("wwid", "device/wwid"):
        wwid = _read(directory / name)
        if _WWID.fullmatch(wwid):
            return wwid, None
        if wwid:
            raise NotKnown(f"its WWN {wwid[:60]!r} is not of a kind that is given once only")
    raise NotKnown("it has no WWN")


def _partition(directory: Path, sysfs: Path, depth: int) -> tuple[str, _Base]:
    numbers = [_read(directory / name) for name in ("partition", "start", "size")]
    disk = _number(_read(directory.resolve().parent / "dev"))
    text, base = _device(disk, sysfs, None, depth + 1)
    number, start, size = numbers
    return f"partition {number} at {start}, {size} sectors, of {text}", base


def _mapped(directory: Path, sysfs: Path, depth: int) -> tuple[str, _Base]:
    uuid = _read(directory / "dm/uuid")
    below = sorted((directory / "slaves").iterdir())
    if not uuid or not below:
        raise NotKnown("it is a device-mapper device without a uuid, or with nothing below it")
    texts = set()
    for device in below:
        text, base = _device(_number(_read(device / "dev")), sysfs, None, depth + 1)
        if base is not None:
            raise NotKnown("it is a device-mapper device on a file")
        texts.add(text)  # the paths of a multipath device are one disk
    return f"dm {uuid} on ({'; '.join(sorted(texts))})", None


def _loop(directory: Path, descriptor: int | None) -> tuple[str, _Base]:
    """The path that the kernel shows may be another file's by now: the kernel's word for the inode counts."""
    path = Path(_read(directory / "loop/backing_file"))
    with _opened_device(directory, descriptor) as device:
        answer = bytearray(_LOOP_INFO64_BYTES)
        fcntl.ioctl(device, _LOOP_GET_STATUS64, answer)
    file_system, inode, _, offset, size_limit = _LOOP_INFO64.unpack_from(answer)
    with _opened(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) as backing:
        status = os.fstat(backing)
        if (status.st_dev, status.st_ino) != (file_system, inode):
            raise NotKnown("the file below it is another one than its name says")
        text, base = _file(backing)
    return f"loop at {offset}, limit {size_limit}, on {text}", base


@contextmanager
def _opened_device(directory: Path, descriptor: int | None) -> Iterator[int]:
    """A descriptor of the device: the caller's, or one for this purpose."""
    if descriptor is not None:
        yield descriptor
        return
    name = dict(
        line.split("=", 1) for line in _read(directory / "uevent").splitlines() if "=" in line
    ).get("DEVNAME", "")
    with _opened(Path("/dev") / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) as opened:
        if os.fstat(opened).st_rdev != _number(_read(directory / "dev")):
            raise NotKnown("the device below it has no name of its own")
        yield opened


def _file(descriptor: int) -> tuple[str, _Base]:
    status = os.fstat(descriptor)
    key = status.st_dev, status.st_ino
    base = real_path(descriptor), key
    kind = file_system_type(mount_id(descriptor))
    if kind == "overlay":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"overlay {boot} {status.st_dev} {status.st_ino}", base
    if _OWN_INODE_NUMBERS.fullmatch(kind):
        return "file", base
    return f"inode {status.st_ino}", base


def real_path(descriptor: int) -> Path:
    """Where an open file really lies: symbolic links are followed. Raises NotKnown when it has no name any more."""
    path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    ours = os.fstat(descriptor)
    try:
        there = path.stat(follow_symlinks=False)
    except OSError as error:
        raise NotKnown("it has been renamed or removed") from error
    if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
        raise NotKnown("another file has its name now")
    return path


def mount_id(descriptor: int) -> int:
    """Of the mount through which it was opened; proc(5), fdinfo. Raises NotKnown."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "mnt_id":
            return int(value)
    raise NotKnown("the kernel does not say on which mount it is")


def file_system_type(mount: int) -> str:
    """Raises NotKnown. The format is that of /proc/PID/mountinfo in proc(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            if left.split(" ", 1)[0] == str(mount):
                return right.split(" ", 1)[0]
    raise NotKnown("the kernel does not say on which file system it is")


def _number(text: str) -> int:
    major, _, minor = text.partition(":")
    try:
        return os.makedev(int(major), int(minor))
    except ValueError:
        raise NotKnown("the kernel does not say what is below it") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:4096]
    except OSError:
        return ""


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
