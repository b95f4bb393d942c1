"""A running QEMU's vdisks, in QMP: which path serves each, and another one in its place.

Every path is a block node of its own on top of its own file or device: ``volume0`` is the one that vdisk 0 was started
with, ``volume0.1`` the next. The device's property ``drive`` is set to another node (QEMU has that since 6.1), and the old
node is removed. ``blockdev-reopen`` would do on a path that can still be flushed, and refuses on one that is gone ("Error
flushing drive", seen with 7.2). Nothing needs to be flushed: with direct I/O, which a multipath group has, everything that
the domain was told is written is on the storage, and what failed is still in the device's own queue.

*The lock* of the old path can be in the way where both paths are seen as one file. Then the device is put on ``gone0``
first, a node on which every access fails, so that nothing else than stopping again can come of it wherever this ends; the
old path is closed, and the new one takes the lock. If another process has taken it meanwhile, the domain stays stopped.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from ldmd.definition import VirtualDisk
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor.driver import DiskStatus
from ldmd.hypervisor.qemu_command import Disk, build_volume
from ldmd.hypervisor.qmp import Qmp

_DEVICE: Final = "/machine/peripheral/vdisk{}"
_FAILED: Final = "failed"
"""Not "nospace": storage that is full is so by every path."""
_IO_ERROR: Final = 5
LOOK_SECONDS: Final = 5.0
"""For one look at one volume; storage that takes longer counts as gone."""
THREADS_MAX: Final = 32
"""Own ones: looks at dead storage must not take the threads of everything else."""


_threads: Final = trio.CapacityLimiter(THREADS_MAX)


async def find_disk(path: Path) -> Disk:
    """What QEMU has to know of a volume. Raises HypervisorError, also when the storage does not answer."""
    with trio.move_on_after(LOOK_SECONDS):
        return await trio.to_thread.run_sync(
            _find_disk, path, abandon_on_cancel=True, limiter=_threads
        )
    raise HypervisorError(
        f"volume {path} does not answer", remedy="look at the storage that it lies on"
    )


def _find_disk(path: Path) -> Disk:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
            raise HypervisorError(f"volume {path} is neither a file nor a block device")
        return Disk(path=path, block_device=stat.S_ISBLK(mode), direct=_has_direct_io(path))
    except OSError as error:
        raise HypervisorError(f"volume {path} cannot be used: {error}") from error


def _has_direct_io(path: Path) -> bool:
    """Not every file system has it: tmpfs before Linux 6.6 says EINVAL. Raises OSError for other reasons."""
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
    except OSError:
        return False
    return True


async def ask(qmp: Qmp, vdisks: Sequence[VirtualDisk]) -> Mapping[str, DiskStatus]:
    """Vdisk -> how it is. Raises HypervisorError, OutcomeUnknown."""
    devices = await _query_devices(qmp)
    found = {}
    for index, vdisk in enumerate(vdisks):
        device = devices.get(index, {})
        node = device.get("inserted")
        file = node.get("file") if isinstance(node, dict) else None
        gone = not isinstance(file, str) or file.startswith("json:")
        found[vdisk.name] = DiskStatus(
            path=None if gone else Path(str(file)), failed=device.get("io-status") == _FAILED
        )
    return found


async def _query_devices(qmp: Qmp) -> dict[int, dict[str, Any]]:
    answer = await qmp.execute("query-block")
    if not isinstance(answer, list):
        raise OutcomeUnknown(f"QEMU says of its disks {str(answer)[:80]!r}")
    pattern = re.compile(_DEVICE.format(r"(\d+)") + r"(/.*)?")
    devices = {}
    for device in answer:
        match = pattern.fullmatch(str(device.get("qdev")))
        if match:
            devices[int(match[1])] = device
    return devices


async def switch(qmp: Qmp, vdisks: Sequence[VirtualDisk], name: str, disk: Disk) -> None:
    """Raises HypervisorError, and then the device is where it was, or where every access fails; OutcomeUnknown."""
    index = next((i for i, vdisk in enumerate(vdisks) if vdisk.name == name), None)
    if index is None:
        raise HypervisorError(f"the domain has no vdisk {name}")
    ours = re.compile(rf"(volume|gone){index}(\.\d+)?")
    await _remove_nodes(qmp, index, ours)
    taken = await _node_names(qmp)
    node = next(n for i in range(1, len(taken) + 2) if (n := f"volume{index}.{i}") not in taken)
    await qmp.execute("blockdev-add", build_volume(vdisks[index], disk, node))
    try:
        await _set_drive(qmp, index, node)
    except HypervisorError as error:
        if "lock" not in error.sentence:
            raise
        await _let_go(qmp, index, ours, keep=node)
        await _set_drive(qmp, index, node)
    finally:
        # whatever the device is not on, and that is the new one if it could not be taken
        await _remove_nodes(qmp, index, ours)


async def _set_drive(qmp: Qmp, index: int, node: str) -> None:
    """QEMU (seen with 7.2) ends on a failed assertion when the device is on that node already, so it is asked first."""
    if await _node_in_use(qmp, index) == node:
        return
    path = _DEVICE.format(index)
    await qmp.execute("qom-set", {"path": path, "property": "drive", "value": node})


async def _let_go(qmp: Qmp, index: int, ours: re.Pattern[str], *, keep: str) -> None:
    """Close the device's path, so that its lock is free: onto a node where every access fails."""
    size_bytes = (await _query_inserted(qmp, index)).get("image", {}).get("virtual-size")
    if type(size_bytes) is not int:
        raise HypervisorError("QEMU does not say how large the volume is")
    node = f"gone{index}"
    fails = {"event": "none", "errno": _IO_ERROR}
    if node not in await _node_names(qmp):
        await qmp.execute(
            "blockdev-add",
            {
                "driver": "blkdebug",
                "node-name": node,
                "image": {"driver": "null-co", "size": size_bytes},
                "inject-error": [fails],
            },
        )
    await _set_drive(qmp, index, node)
    await _remove_nodes(qmp, index, ours, keep=keep)


async def _query_inserted(qmp: Qmp, index: int) -> dict[str, Any]:
    inserted = (await _query_devices(qmp)).get(index, {}).get("inserted")
    return inserted if isinstance(inserted, dict) else {}


async def _node_in_use(qmp: Qmp, index: int) -> object:
    return (await _query_inserted(qmp, index)).get("node-name")


async def _node_names(qmp: Qmp) -> set[str]:
    answer = await qmp.execute("query-named-block-nodes", {"flat": True})
    return {str(node.get("node-name")) for node in answer}


async def _remove_nodes(
    qmp: Qmp, index: int, ours: re.Pattern[str], *, keep: str | None = None
) -> None:
    """All of that vdisk's but the one in use, which QEMU does not remove. Raises OutcomeUnknown."""
    for node in sorted(await _node_names(qmp)):
        if node != keep and ours.fullmatch(node):
            with suppress(HypervisorError):
                await qmp.execute("blockdev-del", {"node-name": node})
