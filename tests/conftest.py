"""Which tests a host can run: those whose hypervisor is missing are left out by name, or fail where they are required."""

from __future__ import annotations

import os
import shutil

import pytest

BINARIES = {
    "qemu": ("qemu-system-x86_64", "apt-get install qemu-system-x86"),
    "sparc": ("qemu-system-sparc", "apt-get install qemu-system-sparc"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``LDMD_TESTS_REQUIRE=qemu,sparc``: these may not be left out."""
    required = set(filter(None, os.environ.get("LDMD_TESTS_REQUIRE", "").split(",")))
    for mark, (binary, remedy) in BINARIES.items():
        if shutil.which(binary):
            continue
        reason = f"{binary} is not installed: {remedy}"
        if mark in required:
            raise pytest.UsageError(f"LDMD_TESTS_REQUIRE names {mark}, but {reason}")
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
