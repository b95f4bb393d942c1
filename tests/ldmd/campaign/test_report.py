"""What a campaign prints and writes, from results that are made up."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree

import pytest
from attrs import evolve
from rich.console import Console

from ldmd.campaign.junit import write_junit
from ldmd.campaign.plans import list_faults
from ldmd.campaign.report import Report, print_report
from ldmd.campaign.runner import RunResult

HELD = RunResult(
    name="source.connect.before=crash",
    violations=(),
    ran_on="source",
    ended=None,
    settle_seconds=0.25,
    oracle=True,
    decisions=("source", "-"),
    armed=("source.connect.before=crash",),
    fired=("source.connect.before=crash",),
    deeds=(),
    migrations=1,
    seconds=0.5,
)
FAILED = evolve(
    HELD,
    name="target.record-running.before=cut",
    violations=("2 processes of the domain live: 41 on host-a, 42 on host-b", "no more"),
    settle_seconds=None,
    oracle=None,
    fired=("target.record-running.before=cut",),
    decisions=("source", "target"),
    logs={"host-a": "a log with \x00 in it\n", "host-b": "another <log>\n"},
    folder="/somewhere/pair-1",
)
LOST = evolve(
    HELD,
    name="target.end-domain.before=fail",
    ran_on=None,
    ended="whether it ran was made unknown",
    oracle=None,
    decisions=("target", "lost"),
    settle_seconds=0.75,
)
KILLED = evolve(LOST, name="random 1/2", ended="its process was killed", settle_seconds=1.0)


def make_report(*results: RunResult, wanted_runs: int | None = None) -> Report:
    return Report(
        hypervisor="emulated",
        versions={"ldmd": "0.1.0", "hypervisor": "2.1.4"},
        command=["ldm-faults", "campaign"],
        seed=7,
        jobs=2,
        began_unix_ms=1_700_000_000_000,
        seconds=12.0,
        wanted_runs=len(results) if wanted_runs is None else wanted_runs,
        results=results,
    )


def show(report: Report) -> str:
    console = Console(file=io.StringIO(), width=80, markup=False, highlight=False)
    print_report(console, report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("results", "wanted_runs", "ok"),
    [
        ((HELD, LOST), None, True),
        ((HELD, FAILED), None, False),
        ((HELD,), 2, False),
        ((), None, False),
    ],
)
def test_it_is_ok_only_when_all_was_run_and_all_held(
    results: tuple[RunResult, ...], wanted_runs: int | None, ok: bool
) -> None:
    report = make_report(*results, wanted_runs=wanted_runs)
    assert report.ok is ok
    assert report.summarize()["ok"] is ok


def test_the_summary_counts_apart_what_is_apart() -> None:
    summary = make_report(HELD, LOST, KILLED, FAILED).summarize()
    assert (summary["runs"], summary["held"], summary["failed"]) == (4, 3, 1)
    assert (summary["ran_on_source"], summary["ran_on_target"]) == (1, 0)
    assert (summary["lost"], summary["domains_killed"]) == (1, 1)
    assert (summary["settle_seconds_median"], summary["settle_seconds_worst"]) == (0.75, 1.0)


def test_every_name_fits_into_80_columns_on_one_line() -> None:
    names = list_faults()
    text = show(make_report(*(evolve(HELD, name=name) for name in names)))
    printed = text.splitlines()
    assert max(map(len, printed)) <= 80
    assert [line.split()[0] for line in printed[1 : len(names) + 1]] == names
    assert f"the promise held {len(names)} of {len(names)} times" in text


def test_a_failure_is_told_with_its_reason_and_its_folder() -> None:
    text = show(make_report(HELD, FAILED))
    for words in (
        "the promise was BROKEN 1 times of 2",
        "2 processes of the domain live",
        "/somewhere/pair-1",
        "DIFFER",
    ):
        assert words in text


def test_what_was_left_out_is_said_and_is_no_success() -> None:
    report = evolve(make_report(HELD, wanted_runs=3), trouble="no managers could be had")
    assert not report.ok
    text = show(report)
    assert "1 of 3 runs" in text
    assert "it could not go on: no managers could be had" in text


def test_of_very_many_runs_only_the_failed_ones_are_shown() -> None:
    text = show(make_report(*[HELD] * 700, FAILED))
    assert text.count("source.connect.before=crash") == 0
    assert "700 runs that held are not shown" in text
    assert FAILED.name in text


def test_the_json_has_all_of_it() -> None:
    document = json.loads(json.dumps(make_report(HELD, FAILED).to_document(), allow_nan=False))
    assert document["seed"] == 7
    assert document["command"] == ["ldm-faults", "campaign"]
    assert document["versions"]["hypervisor"] == "2.1.4"
    assert [run["held"] for run in document["runs"]] == [True, False]
    assert document["runs"][1]["violations"] == list(FAILED.violations)
    assert document["kinds"]["crash"]["runs"] == 1


def test_junit_has_a_case_for_every_run_and_both_logs_of_a_failed_one() -> None:
    root = ElementTree.fromstring(write_junit(make_report(HELD, FAILED)))
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    held, failed = suite.findall("testcase")
    assert held.find("failure") is None
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == FAILED.violations[0]
    logs = failed.findtext("system-out") or ""
    assert "a log with � in it" in logs
    assert "another <log>" in logs
