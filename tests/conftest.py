"""Which tests a host can run: those for which it lacks something are left out by name, or fail where they are required."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

BINARIES = {
    "qemu": ("qemu-system-x86_64", "apt-get install qemu-system-x86"),
    "sparc": ("qemu-system-sparc", "apt-get install qemu-system-sparc"),
    "faketime": ("faketime", "apt-get install faketime"),
    "network": ("ip", "apt-get install iproute2"),
}

NR_HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


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
    unshare = [shutil.which("unshare") or "false", "--mount", "true"]
    if subprocess.run(unshare, check=False, capture_output=True).returncode:
        yield "mounts", "a mount namespace cannot be made: that takes root"
    bridge = ["unshare", "--net", "ip", "link", "add", "br0", "type", "bridge"]
    if (
        not shutil.which("ip")
        or subprocess.run(bridge, check=False, capture_output=True).returncode
    ):
        yield (
            "bridges",
            "a bridge in a network namespace cannot be made: that takes root and iproute2",
        )
    if not os.access(NR_HUGE_PAGES, os.W_OK):
        yield (
            "hugepages",
            f"{NR_HUGE_PAGES} cannot be written: that takes root, and a host's own kernel",
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``LDMD_TESTS_REQUIRE=qemu,sparc,…`` (marks of pyproject.toml): these may not be left out."""
    required = set(filter(None, os.environ.get("LDMD_TESTS_REQUIRE", "").split(",")))
    for mark, reason in find_missing():
        if mark in required:
            raise pytest.UsageError(f"LDMD_TESTS_REQUIRE names {mark}, but {reason}")
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tests that were left out, by name and with the reason; one line for all the cases of one test."""
    left_out: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        left_out[reason][report.nodeid.partition("[")[0]] += 1
    for reason, tests in sorted(left_out.items()):
        terminalreporter.section(f"left out: {reason}", sep="-")
        for name, cases in sorted(tests.items()):
            terminalreporter.line(name if cases == 1 else f"{name}  ({cases} cases)")
