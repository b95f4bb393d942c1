"""What really runs on this machine, whatever the managers say: processes whose working directory lies in a folder.

A domain's process has its run directory for that (``ldmd/hypervisor/process.py``), also after the directory was removed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
from pathlib import Path
from typing import Final

import trio

from ldmd.demo.journey import process_lives
from ldmd.hypervisor.oracle import OracleLayout, OracleReport, check_memory

PROC: Final = Path("/proc")
END_SECONDS: Final = 10.0
DELETED: Final = " (deleted)"


def find_processes(folder: Path) -> dict[int, Path]:
    """Pid -> working directory of every living process that has it below ``folder``."""
    found = {}
    for name in os.listdir(PROC):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            directory = Path(os.readlink(f"/proc/{name}/cwd").removesuffix(DELETED))
            if directory.is_relative_to(folder) and process_lives(int(name)):
                found[int(name)] = directory
    return found


async def end_processes(folder: Path) -> None:
    """SIGKILL to all of those, and wait until they are gone; some may be our children. Never raises."""
    with trio.move_on_after(END_SECONDS):
        while found := find_processes(folder):
            for pid, directory in found.items():
                await end_process(pid, directory)


async def end_process(pid: int, directory: Path) -> bool:
    """SIGKILL to the process if that is still its working directory, and wait for its end; False when there is none."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # compared after the pidfd was opened: a later process of that number is not meant
        if os.readlink(f"/proc/{pid}/cwd").removesuffix(DELETED) != str(directory):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        with trio.move_on_after(END_SECONDS):
            await trio.lowlevel.wait_readable(descriptor)
        return bool(select.select([descriptor], [], [], 0)[0])
    except OSError:
        return False
    finally:
        os.close(descriptor)


def read_memory(pid: int, size_bytes: int, layout: OracleLayout) -> OracleReport:
    """The oracle's word on the RAM of a suspended domain, which is a memfd of its process. Raises OSError."""
    for link in sorted(Path(f"/proc/{pid}/fd").iterdir()):
        if not os.readlink(link).startswith("/memfd:") or link.stat().st_size != size_bytes:
            continue
        with (
            link.open("rb") as file,
            mmap.mmap(file.fileno(), size_bytes, prot=mmap.PROT_READ) as ram,
        ):
            return check_memory(ram, layout)
    raise FileNotFoundError(2, f"process {pid} has no RAM of {size_bytes} bytes")
