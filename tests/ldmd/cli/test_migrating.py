"""``ldm migrate-domain`` and ``cancel-operation``: what is said while it happens and at the end."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from ldmd.cli.progress import BarView, make_bars
from tests.ldmd.cli.conftest import Run
from tests.ldmd.cli.manager import DIGEST, LONG, MIGRATION, PHASES, SmallHost, progress_of

DEADLINE_SECONDS = 20.0
MAIN = "from ldmd.cli import main; main()"


def test_each_phase_and_each_ten_percent_has_a_line(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1")
    result = ldm("migrate-domain", "ldg1", "host-b")
    assert result.exit_code == 0
    lines = [line.partition("  ")[0] for line in result.stdout.splitlines()]
    assert lines[:10] == [
        "check",
        "prepare",
        "prepare 12 %",
        "prepare 55 %",
        "prepare 100 %",
        "transfer",
        "transfer 12 %",
        "transfer 55 %",
        "transfer 100 %",
        "handoff",
    ]
    assert lines[10] == "ldg1 runs on host-b"
    assert "  downtime  118 ms\n" in result.stdout
    assert f"  digest    {DIGEST}, equal there\n" in result.stdout
    assert host.asked == [
        (
            "migrate-domain",
            {
                "domain": "ldg1",
                "peer": "host-b",
                "new_name": None,
                "dry_run": False,
                "force": False,
            },
        )
    ]


def test_its_place_in_the_queue_is_said(ldm: Run, host: SmallHost) -> None:
    host.add("patient")
    lines = ldm("migrate-domain", "patient", "host-b").stdout.splitlines()
    assert lines[:3] == [
        "queued, number 2: 4 are under way, as many as may be",
        "queued, number 1: 4 are under way, as many as may be",
        "check",
    ]
    document = json.loads(ldm("migrate-domain", "--json", "patient", "host-b").stdout)
    assert document["outcome"] == "completed"


def test_a_new_name_and_a_user(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1")
    result = ldm("migrate", "ldg1", "root@host-b.example:ldg2")
    assert result.exit_code == 0
    assert "ldg2 runs on host-b.example\n" in result.stdout
    assert "no user is needed" in result.stderr
    assert host.asked[0][1]["new_name"] == "ldg2"


@pytest.mark.parametrize("target", ["", "@b", "a@b@c", "b:", "b:c:d"])
def test_what_is_no_target(ldm: Run, host: SmallHost, target: str) -> None:
    result = ldm("migrate", "ldg1", target)
    assert result.exit_code == 2
    assert not host.asked


def test_a_cold_domain(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1", "bound")
    result = ldm("migrate", "ldg1", "host-b")
    assert "ldg1 has moved\n" in result.stdout
    assert "digest" not in result.stdout
    assert "downtime" not in result.stdout


def test_json_is_one_object(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1")
    document = json.loads(ldm("migrate", "--json", "ldg1", "host-b").stdout)
    assert document["migration"] == MIGRATION
    assert document["outcome"] == "completed"
    assert document["phases"] == PHASES
    assert document["digest_source"] == document["digest_target"] == DIGEST


def test_dry_run(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1")
    host.add("too-big")
    good = ldm("migrate", "-n", "ldg1", "host-b")
    assert good.exit_code == 0
    assert good.stdout == (
        "  note    clocks (ldg1): 70 s apart\nmigrating ldg1 to host-b would succeed\n"
    )
    assert host.asked[0][1]["dry_run"] is True
    bad = ldm("migrate", "-n", "too-big", "host-b")
    assert bad.exit_code == 1
    assert bad.stdout == FOUND + "migrating too-big to host-b would fail if attempted\n"
    assert bad.stderr == ""  # all was said


FOUND = (
    "  failed  memory (ldg1): 512MiB is needed, 64MiB is free\n"
    "          unbind another domain\n"
    "  note    clocks (ldg1): 70 s apart\n"
)


def test_a_finding_is_printed_once(ldm: Run, host: SmallHost) -> None:
    """Whether it came while the command waited, or with the end."""
    host.add("too-big")
    host.add("too-big-and-early")
    for name in host.definitions:
        result = ldm("migrate", name, "host-b")
        assert result.exit_code == 1
        assert result.stdout == "check\n" + FOUND
        assert result.stderr == f"ldm: {name} cannot move to host-b\n"


def test_parseable(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1")
    host.add("too-big")
    note = "FINDING|code=clocks|weight=soft|subject=ldg1|sentence=70 s apart|remedy=\n"
    memory = (
        "FINDING|code=memory|weight=hard|subject=ldg1"
        "|sentence=512MiB is needed, 64MiB is free|remedy=unbind another domain\n"
    )
    migration = "VERSION 1.0\nMIGRATION|domain={}|target=host-b|new-name={}|result={}\n"
    for words, status, expected in (
        (["-n", "ldg1", "host-b"], 0, migration.format("ldg1", "", "would succeed") + note),
        (["ldg1", "host-b:web9"], 0, migration.format("ldg1", "web9", "moved") + note),
        (
            ["-n", "too-big", "host-b"],
            1,
            migration.format("too-big", "", "would fail if attempted") + memory + note,
        ),
        (
            ["too-big", "host-b"],
            1,
            migration.format("too-big", "", "checks-failed") + memory + note,
        ),
        (["-n", "nobody", "host-b"], 4, migration.format("nobody", "", "not-found")),
    ):
        result = ldm("migrate", "-p", *words)
        assert (result.exit_code, result.stdout) == (status, expected)


def test_force_is_handed_on(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1")
    ldm("migrate", "-f", "ldg1", "host-b")
    ldm("migrate", "ldg1", "host-b")
    assert [arguments["force"] for _, arguments in host.asked] == [True, False]


def test_failed_checks_in_json(ldm: Run, host: SmallHost) -> None:
    host.add("too-big")
    result = ldm("migrate", "--json", "too-big", "host-b")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "checks-failed"
    assert [finding["code"] for finding in error["facts"]["findings"]] == ["memory", "clocks"]


def test_in_doubt(ldm: Run, host: SmallHost) -> None:
    host.add("unlucky")
    result = ldm("migrate", "unlucky", "host-b")
    assert result.exit_code == 75
    assert "in doubt: host-b does not answer\n" in result.stdout
    assert "unlucky was granted to host-b" in result.stderr


def test_cancel_operation(ldm: Run, host: SmallHost) -> None:
    host.add("slow")
    host.add("ldg1")
    in_time = ldm("cancel-operation", "migration", "slow")
    assert (in_time.exit_code, in_time.stdout) == (0, "slow stays on host-a\n")
    late = ldm("cancel-op", "migration", "ldg1")
    assert (late.exit_code, late.stdout) == (1, "too late: ldg1 is on host-b\n")
    assert (
        json.loads(ldm("cancel-op", "--json", "migration", "ldg1").stdout)["decision"] == "target"
    )
    assert ldm("cancel-op", "memdr", "ldg1").exit_code == 2
    nothing = ldm("cancel-op", "reconf", "ldg1")
    assert (nothing.exit_code, nothing.stderr) == (
        5,
        "ldm: ldg1 has no delayed reconfiguration pending\n",
    )
    assert ldm("cancel-op", "migration", MIGRATION).exit_code == 0
    assert host.asked[-1] == ("cancel-migration", {"migration": MIGRATION})


# ---- as a process of its own ---------------------------------------------------------------------


@contextmanager
def started(
    socket_path: Path, *words: str, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        # whoever runs the tests may have told them to ignore hang-ups, which is inherited (nohup)
        ["env", "--default-signal=HUP,INT", sys.executable, "-c", MAIN, *words],
        env=os.environ | {"LDM_SOCKET": str(socket_path), "TERM": "xterm", "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_SECONDS)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def test_an_interrupt_asks_for_the_cancel_and_gets_the_answer(
    socket_path: Path, host: SmallHost
) -> None:
    host.add("slow")
    with started(socket_path, "migrate", "slow", "host-b") as process:
        assert host.migrating.wait(DEADLINE_SECONDS)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert host.cancelled.is_set()
    # the migration that it began, whatever else there is of that domain
    assert ("cancel-migration", {"migration": MIGRATION}) in host.asked
    assert process.returncode == 1
    assert "cancel asked for; waiting for the answer" in stdout
    assert "slow stays on host-a\n" in stdout
    assert stderr == "ldm: slow stays on host-a: cancelled\n     start it again\n"


def test_a_hang_up_does_not_ask_for_it(socket_path: Path, host: SmallHost) -> None:
    host.add("slow")
    with started(socket_path, "migrate", "slow", "host-b") as process:
        assert host.migrating.wait(DEADLINE_SECONDS)
        process.send_signal(signal.SIGHUP)
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGHUP
    assert not host.cancelled.is_set()


def test_a_full_bar_says_nothing_of_the_way_to_it() -> None:
    """The last word on a phase comes before its end, as the first of the next one does."""
    bars = make_bars(Console(file=io.StringIO(), force_terminal=True, width=80))
    view = BarView(bars)
    view.show(progress_of("prepare", 87.5))
    (task,) = bars.tasks
    assert "54.7 MiB of 64.0 MiB" in task.fields["detail"]
    view.show({"event": "phase", "phase": "transfer"})
    assert (task.percentage, task.fields["detail"]) == (100.0, "64.0 MiB")


def test_bars_on_a_terminal_of_eighty_columns(socket_path: Path, host: SmallHost) -> None:
    host.add("patient")
    lines = lines_on_a_terminal(socket_path, "migrate", "patient", "host-b")
    for phase in PHASES:
        assert any(re.fullmatch(rf"{phase} +━+ 100 % ?.*", line.rstrip()) for line in lines), lines
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("queued") and "number 2: 4 are" in line for line in lines), lines
    assert "patient runs on host-b" in lines


@pytest.mark.parametrize("words", [["-n"], []])
def test_findings_on_a_terminal_of_eighty_columns(
    socket_path: Path, host: SmallHost, words: list[str]
) -> None:
    host.add("too-long-and-early")
    lines = lines_on_a_terminal(
        socket_path, "migrate", *words, "too-long-and-early", "host-b", status=1
    )
    assert all(len(line) <= 80 for line in lines)
    at = next(n for n, line in enumerate(lines) if line.startswith("  failed  "))
    text = " ".join(line.strip() for line in lines[at : at + 4])
    assert LONG["sentence"] in text
    assert LONG["remedy"] in text
    assert all(line.startswith(" " * 10) for line in lines[at + 1 : at + 4])


def lines_on_a_terminal(socket_path: Path, *words: str, status: int = 0) -> list[str]:
    """What the command shows on one of 80 columns, without colours and cursor movements."""
    leader, follower = pty.openpty()
    received = bytearray()

    def read() -> None:
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # EIO: nobody has the other end any more
                return
            if not chunk:
                return
            received.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with started(socket_path, *words, stdout=follower) as process:
            os.close(follower)
            assert process.wait(DEADLINE_SECONDS) == status
    finally:
        reader.join(DEADLINE_SECONDS)
        os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", received.decode())
    return re.split(r"[\r\n]+", text)
