"""Which tests a host can run: those for which it lacks something are left out by name, or fail where they are required."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

BINARIES = {
    "qemu": ("qemu-system-x86_64", "apt-get install qemu-system-x86"),
    "sparc": ("qemu-system-sparc", "apt-get install qemu-system-sparc"),
    "faketime": ("faketime", "apt-get install faketime"),
}


def missing_loops() -> str:
    """Whether a loop device can be made: that takes root, and /dev/loop-control."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(2**20)
        try:
            made = subprocess.run(
                ["losetup", "--find", "--show", file.name],
                capture_output=True,
                text=True,
                check=True,
            )
            subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"a loop device cannot be made here: {getattr(error, 'stderr', '') or error}"
    return ""


def find_missing() -> Iterator[tuple[str, str]]:
    """Marks whose tests cannot run here, and why."""
    for mark, (binary, remedy) in BINARIES.items():
        if not shutil.which(binary):
            yield mark, f"{binary} is not installed: {remedy}"
    if missing := missing_loops():
        yield "loops", missing
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        yield "mounts", "a mount namespace cannot be made: that takes root"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``LDMD_TESTS_REQUIRE=qemu,sparc,faketime,mounts,loops``: these may not be left out."""
    required = set(filter(None, os.environ.get("LDMD_TESTS_REQUIRE", "").split(",")))
    for mark, reason in find_missing():
        if mark in required:
            raise pytest.UsageError(f"LDMD_TESTS_REQUIRE names {mark}, but {reason}")
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
