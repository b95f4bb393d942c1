"""Volumes with the oracle on them, and paths to them that a test can let fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.managers import Fleet, check_console, wait_for

SIZE_BYTES = 4 * 2**20
SECTOR_BYTES = 512
NUMBER_SECTOR = 8
DISK_ORACLE = Path(__file__).parent / "disk-oracle.bin"


def make_volume(path: Path, size_bytes: int = SIZE_BYTES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DISK_ORACLE.read_bytes())
    os.truncate(path, size_bytes)
    return path


def number_on(path: Path) -> int:
    """The number that the oracle wrote last, as the storage has it."""
    with path.open("rb") as file:
        file.seek(NUMBER_SECTOR * SECTOR_BYTES)
        return int.from_bytes(file.read(4), "little")


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[Path]:
    made = subprocess.run(
        ["losetup", "--find", "--show", *options, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    device = Path(made.stdout.strip())
    try:
        block(device, fail=False)
        yield device
    finally:
        block(device, fail=False)  # the kernel keeps it for the next user of the device
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def block(device: Path, *, fail: bool) -> None:
    """Let every write to a block device fail, also of those who have it open already, or no more."""
    subprocess.run(["blockdev", "--setro" if fail else "--setrw", str(device)], check=True)


def vds(**services: str) -> str:
    """Lines of a configuration: service (``_`` for ``-``) -> what the volume ``root`` is there."""
    return "".join(
        f"[vds.{name.replace('_', '-')}]\nroot = {what}\n" for name, what in services.items()
    )


def disk(name: str = "root", service: str = "primary-vds0", **more: object) -> dict[str, object]:
    return {"name": name, "volume": "root", "service": service, **more}


async def start_disk_domain(fleet: Fleet, host: str, **vdisk: object) -> str:
    return await fleet.start_domain(
        host,
        hypervisor="qemu",
        machine="pc",
        firmware="default",
        memory_mib=16,
        vdisks=[disk(**vdisk)],  # type: ignore[arg-type]
    )


def lines(fleet: Fleet, host: str, uuid: str) -> int:
    return fleet.console(host, uuid).count("oracle ")


async def wait_lines(fleet: Fleet, host: str, uuid: str, more: int = 5) -> None:
    """Until the domain has printed that many lines more than now."""
    wanted = lines(fleet, host, uuid) + more

    async def enough() -> bool:
        return lines(fleet, host, uuid) >= wanted

    await wait_for(enough)


def assert_nothing_lost(text: str, volume: Path) -> None:
    """Of a domain that is suspended, and that was asked for its console then."""
    report = check_console(text)
    assert report.contiguous, report.sentence
    assert report.last is not None
    # the next one may have been written and not printed yet, or be on its way still
    assert number_on(volume) in (report.last, report.last + 1)
