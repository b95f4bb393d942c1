"""``ldm demo``, for real: two managers, one domain, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE_SECONDS = 120.0
COMMAND = [sys.executable, "-c", "from ldmd.cli import main; main()", "demo"]


def environment(folder: Path) -> dict[str, str]:
    """The demo's folder lies in a short one: sockets have names in it."""
    return os.environ | {"TMPDIR": str(folder)}


def left_behind(folder: Path) -> list[str]:
    """Files in the folder, and processes that know it."""
    files = [str(path) for path in folder.iterdir()]
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode(errors="replace")
            links = [
                os.readlink(path / "cwd"),
                *(os.readlink(fd) for fd in (path / "fd").iterdir()),
            ]
        except OSError:
            continue
        if any(str(folder) in text for text in (command, *links)):
            processes.append(command)
    return files + processes


@pytest.mark.parametrize("hypervisor", ["emulated", pytest.param("qemu", marks=pytest.mark.qemu)])
def test_the_demo_proves_what_it_shows(tmp_path: Path, hypervisor: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--json", "--hypervisor", hypervisor, "--memory", "16MiB"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["hypervisor"] == hypervisor
    assert list(report["phases"]) == ["check", "prepare", "transfer", "handoff"]
    assert report["digest_source"] == report["digest_target"]
    assert report["digest_source"]
    assert (report["copies_running"], report["running_on"]) == (1, "host-b")
    assert report["console_contiguous"] is True
    assert report["memory_oracle"] is True
    assert report["downtime_ms"] > 0
    assert left_behind(tmp_path) == []


def test_what_a_person_sees(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--memory", "16MiB"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line for line in lines if line in ("check", "prepare", "transfer", "handoff")] == [
        "check",
        "prepare",
        "transfer",
        "handoff",
    ]
    assert "ldg1: 1 copy running, on host-b" in lines
    before = [line for line in lines if line.startswith("  host-a │ oracle ")]
    after = [line for line in lines if line.startswith("  host-b │ oracle ")]
    assert before
    assert after


def test_an_interrupted_demo_puts_everything_away(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--memory", "16MiB"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not list(tmp_path.glob("*/host-a/run/domains/*")):
            assert time.monotonic() < deadline
            assert process.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 130, stderr
    assert left_behind(tmp_path) == []
