"""The campaign, for real: it holds where it must, and it finds what is planted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from ldmd.campaign.cli import main
from ldmd.campaign.machine import end_process, find_processes
from ldmd.campaign.pair import CAMPAIGN_KINDS, DOMAIN, Pair, open_pair
from ldmd.campaign.plans import FLIPPED_BIT, Plan, Way, plan_fault
from ldmd.campaign.runner import Run, RunResult

ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 120.0
KIND = CAMPAIGN_KINDS["emulated"]
STRAIGHT = Plan(name="nothing goes wrong", ways=(Way(),))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ldmd.campaign.cli", "campaign", *arguments]


def campaign(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One that takes too long is ended so that it puts its managers away, which SIGKILL would leave."""
    with subprocess.Popen(
        command(*arguments), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=DEADLINE_SECONDS)
        except BaseException:
            process.terminate()
            process.communicate(timeout=DEADLINE_SECONDS)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def left_behind(folder: Path) -> list[str]:
    """What is in the folder, and processes that know it."""
    found = [str(path) for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes().decode(errors="replace")
            told += os.readlink(process / "cwd")
        except OSError:
            continue
        if str(folder) in told:
            found.append(told)
    return found


# ---- where it must hold ------------------------------------------------------------------------


FAULTS = (
    "source.record-granted.after=crash",  # the manager dies in doubt
    "target.send-handoff-done.before=cut",  # the answer is lost
    f"source.send-state.before=flip:{FLIPPED_BIT}",
    "source.suspend-domain.after=hang",
    "target.receive-cancel.before=crash",  # not on the straight path: the source gives up
    "target.end-domain.after=fail",  # the domain is lost, and that is right
    "target.close-link.before=crash",  # the target is asked again
)


@pytest.mark.parametrize("fault", FAULTS)
async def test_one_fault_fires_and_the_promise_holds(fault: str, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_pair(tmp_path / "pair", KIND) as pair:
            result = await Run(pair, plan_fault(fault)).carry_out()
            again = await Run(pair, STRAIGHT).carry_out()  # and nothing of it is left
    assert result.violations == ()
    assert fault in result.fired
    assert result.outcome == ("lost" if "target.end-domain" in fault else result.ran_on)
    assert (again.violations, again.ran_on) == ((), "target")
    assert find_processes(tmp_path) == {}


@pytest.mark.qemu
async def test_it_holds_on_qemu(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_pair(tmp_path / "pair", CAMPAIGN_KINDS["qemu"]) as pair:
            plan = plan_fault("target.record-committed.after=crash")
            result = await Run(pair, plan).carry_out()
    assert (result.violations, result.ran_on, result.oracle) == ((), "target", True)


def test_the_command_goes_through_points_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    done = campaign(
        *("--points", "target.record-running.*", "--jobs", "2", "--seed", "5"),
        *("--json", str(tmp_path / "all.json"), "--junit", str(tmp_path / "all.xml")),
        *("--folder", str(tmp_path / "work")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "all.json").read_text())
    assert document["summary"]["runs"] == 7
    assert document["summary"]["held"] == 7
    assert document["seed"] == 5
    assert all(run["name"] in run["fired"] for run in document["runs"])
    suite = ElementTree.parse(tmp_path / "all.xml").getroot().find("testsuite")
    assert suite is not None
    assert len(suite.findall("testcase")) == 7
    assert max(map(len, done.stdout.splitlines())) <= 125
    assert left_behind(tmp_path / "work") == []


def test_random_runs_hold_and_are_drawn_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    done = campaign(
        *("--random", "6", "--random-only", "--seed", "11", "--jobs", "3"),
        *("--json", str(tmp_path / "all.json"), "--folder", str(tmp_path / "work")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "all.json").read_text())
    assert [run["name"] for run in document["runs"]] == [f"random 11/{n}" for n in range(1, 7)]
    assert left_behind(tmp_path / "work") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--points", "no.such.point"),
        ("--jobs", "0"),
        ("--random", "-1"),
        ("--random-only",),
        ("--random", "1", "--random-only", "--points", "no.such.point"),
        ("--hypervisor", "none"),
        ("--json", "/no/such/folder/all.json"),
        ("--nonsense",),
    ],
)
def test_wrong_use_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(main, ["campaign", *arguments]).exit_code == 2


def test_where_no_manager_can_be_started_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for package in ("ldmd", "protocol", "certs"):
        shutil.copytree(ROOT / package, tmp_path / "copy" / package)
    (tmp_path / "copy" / "ldmd" / "daemon.py").write_text("raise SystemExit(3)\n")
    done = campaign("--limit", "2", cwd=tmp_path / "copy")
    assert done.returncode == 1
    assert "it could not go on: no managers could be had" in done.stdout
    assert "ended with status 3" in done.stdout
    shutil.rmtree(done.stdout.partition("could be had in ")[2].partition("/pair-")[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--folder", str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while len(find_processes(tmp_path)) < 2:  # a domain of each pair
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
        finally:
            process.send_signal(number)
            process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130
    assert left_behind(tmp_path) == []


# ---- what it must find -------------------------------------------------------------------------


async def disturb_after_a_run(tmp_path: Path, disturb: object) -> RunResult:
    """A run that holds, then ``await disturb(pair)``, then another one."""
    assert callable(disturb)
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_pair(tmp_path / "pair", KIND) as pair:
            assert (await Run(pair, STRAIGHT).carry_out()).held
            await disturb(pair)
            result = await Run(pair, STRAIGHT).carry_out()
    assert find_processes(tmp_path) == {}
    return result


def pid_of(pair: Pair) -> int:
    (pid,) = find_processes(pair.folder)
    return pid


async def test_a_page_that_changed_is_found(tmp_path: Path) -> None:
    async def change_a_page(pair: Pair) -> None:
        for link in Path(f"/proc/{pid_of(pair)}/fd").iterdir():
            if os.readlink(link).startswith("/memfd:"):
                descriptor = os.open(link, os.O_RDWR)
                os.pwrite(descriptor, b"\xff", 500 * 4096 + 3)  # in the word of a page's address
                os.pwrite(descriptor, b"\x07" * 8, 600 * 4096 + 8)  # and another one's count
                os.close(descriptor)

    result = await disturb_after_a_run(tmp_path, change_a_page)
    assert any(v.startswith("the memory on") for v in result.violations), result.violations
    assert (result.oracle, result.folder) == (False, str(tmp_path / "pair"))
    assert result.logs["host-a"]


async def test_a_line_that_was_printed_twice_is_found(tmp_path: Path) -> None:
    async def print_a_line(pair: Pair) -> None:
        console = pair.directory(pair.location) / "console.log"
        with console.open("a") as file:
            file.write("oracle 1\n")

    result = await disturb_after_a_run(tmp_path, print_a_line)
    assert any(v.startswith("the console: ") for v in result.violations), result.violations


async def test_a_domain_that_ended_unasked_is_found(tmp_path: Path) -> None:
    async def end_the_domain(pair: Pair) -> None:
        ((pid, directory),) = find_processes(pair.folder).items()
        assert await end_process(pid, directory)

    result = await disturb_after_a_run(tmp_path, end_the_domain)
    assert any("no copy runs" in v for v in result.violations), result.violations


async def test_a_domain_that_was_suspended_unasked_is_found(tmp_path: Path) -> None:
    async def suspend_the_domain(pair: Pair) -> None:
        await pair.call(pair.location, "suspend-domain", {"domain": DOMAIN})

    result = await disturb_after_a_run(tmp_path, suspend_the_domain)
    assert any("no copy runs" in v for v in result.violations), result.violations


async def test_a_process_of_which_no_manager_knows_is_found(tmp_path: Path) -> None:
    strangers: list[subprocess.Popen[bytes]] = []

    async def start_another(pair: Pair) -> None:
        directory = pair.domains_directory(pair.other(pair.location)) / "another"
        directory.mkdir()
        strangers.append(subprocess.Popen(["sleep", "60"], cwd=directory))

    result = await disturb_after_a_run(tmp_path, start_another)
    assert any("2 processes of the domain live" in v for v in result.violations), result.violations
    assert strangers[0].wait(timeout=10) == -signal.SIGKILL  # it was put away with the rest


async def test_a_fault_that_never_fires_is_a_failed_run(tmp_path: Path) -> None:
    fault = "target.send-handoff-lost.before=crash"
    plan = Plan(name=fault, ways=(Way(faults=(fault,)), Way(faults=(fault,))), wanted=fault)
    with trio.fail_after(DEADLINE_SECONDS):
        async with open_pair(tmp_path / "pair", KIND) as pair:
            result = await Run(pair, plan).carry_out()
    assert result.violations == (f"not reached: {fault} never fired",)
    assert result.migrations == 2


PLANTS = {
    "the source resumes when the link is lost in doubt": (
        "protocol/source.py",
        """
SOURCE = attrs.evolve(
    SOURCE,
    rows=tuple(
        attrs.evolve(row, next_state=SourceState.RESUMING_ALONE, actions=(Operation.RESUME_DOMAIN,))
        if (row.state, row.event) == (SourceState.HANDING_OFF, Event.LINK_LOST)
        else row
        for row in SOURCE.rows
    ),
)
""",
        "target.send-handoff-done.before=cut",
        "2 processes of the domain live",
    ),
    "a flipped bit is not noticed": (
        "ldmd/phases/transfer.py",
        """
_combine = combine


def combine(regions, device):
    return xxhash.xxh3_128_digest(b"always the same")
""",
        f"source.send-state.before=flip:{FLIPPED_BIT}",
        "the memory on",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS)
def test_a_mistake_that_is_planted_is_found(plant: str, tmp_path: Path) -> None:
    """In a copy of the project, which both the campaign and its managers are run from."""
    path, text, fault, words = PLANTS[plant]
    for package in ("ldmd", "protocol", "certs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / "copy" / package, ignore=ignored)
    with (tmp_path / "copy" / path).open("a") as file:
        file.write(f"import attrs\nfrom protocol.actions import Operation\n{text}")
    (tmp_path / "work").mkdir()
    done = campaign(
        *("--points", fault, "--folder", str(tmp_path / "work")),
        *("--json", str(tmp_path / "all.json"), "--junit", str(tmp_path / "all.xml")),
        cwd=tmp_path / "copy",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (run,) = json.loads((tmp_path / "all.json").read_text())["runs"]
    assert any(words in violation for violation in run["violations"]), run["violations"]
    assert "<failure" in (tmp_path / "all.xml").read_text()
    kept = Path(run["folder"])
    assert (kept / "host-a" / "ldmd.log").read_text()
    assert str(kept.parent) in done.stderr
    assert find_processes(tmp_path) == {}
