"""Logs, consoles and processes are read as they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio

from ldmd.campaign.consoles import Consoles
from ldmd.campaign.logs import LogReader, same_fault
from ldmd.campaign.machine import end_process, end_processes, find_processes

LINE = "2026-01-02 03:04:05,678 WARNING ldmd.faults: fault point {}: {}\n"


def test_a_log_tells_which_faults_fired_since_the_run_began(tmp_path: Path) -> None:
    path = tmp_path / "ldmd.log"
    path.write_text(LINE.format("source.connect.before", "crash"))
    log = LogReader(path)
    log.begin()
    assert log.fired == []
    with path.open("a") as file:
        file.write("armed target.send-state.before=cut-after:7\n")
        file.write(LINE.format("source.send-state.before", "cut-after:700000"))
        file.write("... fault point target.run-checks.before: han")
    log.read()
    assert log.fired == ["source.send-state.before=cut-after:700000"]
    with path.open("a") as file:
        file.write("g\n")
    log.read()
    assert log.fired[1:] == ["target.run-checks.before=hang"]
    assert log.has_fired("target.run-checks.before=hang")
    assert not log.has_fired("target.run-checks.before=crash")
    assert log.text.count("\n") == 3


def test_a_log_that_is_not_there_yet_has_nothing_in_it(tmp_path: Path) -> None:
    log = LogReader(tmp_path / "ldmd.log")
    log.read()
    assert (log.fired, log.text) == ([], "")


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "2026 ERROR ldmd.control: a verb of the control socket has a bug",
    ],
)
def test_a_bug_in_a_log_is_found(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ldmd.log"
    path.write_text(f"all is well\n{line}\n")
    log = LogReader(path)
    log.read()
    assert log.find_bugs() == [line]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a.b.before=delay:0.3", "a.b.before=delay:0.30", True),
        ("a.b.before=cut-after:1500000", "a.b.before=cut-after:1.5e+06", True),
        ("a.b.before=delay:0.3", "a.b.before=delay:0.4", False),
        ("a.b.before=cut", "a.b.after=cut", False),
    ],
)
def test_numbers_of_faults_are_compared_as_numbers(one: str, other: str, same: bool) -> None:
    assert same_fault(one, other) is same


# ---- consoles ----------------------------------------------------------------------------------


def lines(first: int, end: int) -> str:
    return "".join(f"oracle {number}\n" for number in range(first, end))


def test_consoles_of_copies_that_are_gone_are_still_read(tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    consoles = Consoles((here, there))
    here.write_text(lines(0, 10) + "oracle 1")
    consoles.look()
    here.unlink()
    there.write_text("0\n" + lines(11, 20))
    assert consoles.check().lines == 10  # the second copy has not been seen
    consoles.look()
    report = consoles.check()
    assert (report.contiguous, report.lines) == (True, 20)
    consoles.close()


def test_a_copy_that_ran_though_it_should_not_is_found(tmp_path: Path) -> None:
    """It printed, was destroyed, and the source went on from where it was."""
    here, there = tmp_path / "a", tmp_path / "b"
    consoles = Consoles((here, there))
    here.write_text(lines(0, 10))
    consoles.look()
    there.write_text(lines(10, 12))
    consoles.look()
    there.unlink()
    with here.open("a") as file:
        file.write(lines(10, 20))
    assert not consoles.check().contiguous
    consoles.close()


def test_what_was_passed_over_is_still_held_against_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "a"
    consoles = Consoles((path,))
    path.write_text(lines(0, 1000) + "orac")
    living = consoles.find(path)
    assert living is not None
    consoles.pass_over(living)
    assert living.read() == "oracle 999\norac"
    with path.open("a") as file:
        file.write("le 1000\n")
    assert consoles.check().contiguous
    with path.open("a") as file:
        file.write(lines(1002, 1003))
    assert not consoles.check().contiguous
    consoles.close()


# ---- processes ---------------------------------------------------------------------------------


async def test_processes_are_found_by_their_folder_and_ended(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in" / "deeper", tmp_path / "out"
    inside.mkdir(parents=True)
    outside.mkdir()
    children = [subprocess.Popen(["sleep", "60"], cwd=directory) for directory in (inside, outside)]
    try:
        assert find_processes(tmp_path / "in") == {children[0].pid: inside}
        inside.rmdir()  # its process is found all the same
        assert find_processes(tmp_path / "in") == {children[0].pid: inside}
        assert not await end_process(children[0].pid, outside)
        assert children[0].poll() is None
        with trio.fail_after(10):
            await end_processes(tmp_path / "in")
        assert children[0].wait(timeout=10) == -9
        assert children[1].poll() is None
        assert find_processes(tmp_path / "in") == {}
    finally:
        for child in children:
            child.kill()
            child.wait()
