"""What a campaign found: a table for people, JSON for programs."""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import frozen
from rich import box
from rich.console import Console
from rich.table import Table

from ldmd import __version__
from ldmd.campaign.logs import point_and_kind
from ldmd.campaign.runner import RunResult
from ldmd.fault_points import Kind

LINES_MAX: Final = 600
"""Of the table of all runs; where there are more, it has the failed ones alone, and the JSON file has all."""


@frozen(kw_only=True)
class Report:
    """``wanted_runs``: how many there were to be. ``versions``: of the project, the hypervisor, Python and the kernel."""

    hypervisor: str
    versions: Mapping[str, str]
    command: Sequence[str]
    seed: int
    jobs: int
    began_unix_ms: int
    seconds: float
    wanted_runs: int
    results: Sequence[RunResult]
    interrupted: bool = False
    trouble: str | None = None
    """Why it could not go on."""

    @property
    def failed(self) -> list[RunResult]:
        return [result for result in self.results if not result.held]

    @property
    def ok(self) -> bool:
        return not self.failed and len(self.results) == self.wanted_runs and self.wanted_runs > 0

    @property
    def settle_seconds(self) -> list[float]:
        return sorted(r.settle_seconds for r in self.results if r.settle_seconds is not None)

    def count(self, outcome: str) -> int:
        return sum(result.held and result.outcome == outcome for result in self.results)

    def summarize(self) -> dict[str, Any]:
        """Seconds are None when there was no run that held."""
        settle = self.settle_seconds
        return {
            "ok": self.ok,
            "runs": len(self.results),
            "runs_wanted": self.wanted_runs,
            "held": len(self.results) - len(self.failed),
            "failed": len(self.failed),
            "faults_fired": sum(len(result.fired) for result in self.results),
            "ran_on_source": self.count("source"),
            "ran_on_target": self.count("target"),
            "lost": self.count("lost"),
            "domains_killed": self.count("killed"),
            "settle_seconds_median": statistics.median(settle) if settle else None,
            "settle_seconds_worst": settle[-1] if settle else None,
        }

    def to_document(self) -> dict[str, Any]:
        return {
            "campaign": self.hypervisor,
            "versions": dict(self.versions),
            "command": list(self.command),
            "seed": self.seed,
            "jobs": self.jobs,
            "began_unix_ms": self.began_unix_ms,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "trouble": self.trouble,
            "summary": self.summarize(),
            "kinds": {kind: dict(row) for kind, row in _count_kinds(self.results)},
            "runs": [result.to_document() for result in self.results],
        }


def find_versions(hypervisor_version: tuple[int, ...]) -> dict[str, str]:
    return {
        "ldmd": __version__,
        "hypervisor": ".".join(map(str, hypervisor_version)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": f"{platform.machine()}, {sys.platform}",
    }


# ---- for people ------------------------------------------------------------------------------


def print_report(console: Console, report: Report) -> None:
    """80 columns are enough."""
    many = sum(_name_run(result).count("\n") + 1 for result in report.results) > LINES_MAX
    shown = report.failed if many else list(report.results)
    if shown:
        console.print(_tabulate_runs(shown))
    if many:
        console.print(f"{len(report.results) - len(shown)} runs that held are not shown one by one")
    console.print(_tabulate_kinds(report))
    for line in _tell_totals(report):
        console.print(line, soft_wrap=True)
    for result in report.failed:
        console.print()
        console.print(f"FAILED  {result.name}", style="bold red", soft_wrap=True)
        for line in tell_failure(result):
            console.print(f"  {line}", soft_wrap=True)


def tell_failure(result: RunResult) -> Iterator[str]:
    yield from result.violations
    if result.fired:
        yield f"fired: {', '.join(result.fired)}"
    if result.deeds:
        yield f"done: {', '.join(result.deeds)}"
    if result.folder is not None:
        yield f"journals and logs: {result.folder}"


def _tabulate_runs(results: Sequence[RunResult]) -> Table:
    # the longest name has 48 characters: there is no room for more than a space between columns
    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.header_style = "bold"
    table.add_column("FAULT", overflow="fold")
    for header in ("RAN ON", "SETTLED", "ORACLE", "JOURNALS"):
        table.add_column(header, no_wrap=True)
    table.columns[2].justify = "right"
    for result in results:
        table.add_row(
            _name_run(result),
            result.outcome,
            show_seconds(result.settle_seconds),
            {None: "-", True: "right", False: "WRONG"}[result.oracle],
            _show_decisions(result.decisions),
            style=None if result.held else "bold red",
        )
    return table


def _show_decisions(decisions: tuple[str, str]) -> str:
    """Both journals' word. A target that says ``lost`` and a source that says ``target`` agree on who has it."""
    source, target = decisions
    if target in ("-", source):
        return source if source != "-" else "none"
    if decisions == ("target", "lost"):
        return "lost"
    return target if source == "-" else "DIFFER"


def _name_run(result: RunResult) -> str:
    """A random run has no fault for a name: what fired and was done is more than the seed's number."""
    if not result.name.startswith("random"):
        return result.name
    return "\n".join([result.name, *result.fired, *result.deeds])


def _count_kinds(results: Sequence[RunResult]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Runs in which a fault of that kind fired; a run with two kinds counts for both."""
    for kind in Kind:
        runs = [r for r in results if any(point_and_kind(f)[1] is kind for f in r.fired)]
        settle = sorted(r.settle_seconds for r in runs if r.settle_seconds is not None)
        if runs:
            yield (
                kind.value,
                {
                    "runs": len(runs),
                    "held": sum(r.held for r in runs),
                    "settle_seconds_median": statistics.median(settle) if settle else None,
                    "settle_seconds_worst": settle[-1] if settle else None,
                },
            )


def _tabulate_kinds(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("RUNS IN WHICH THERE WAS A")
    for header in ("RUNS", "HELD", "MEDIAN", "WORST"):
        table.add_column(header, justify="right")
    for kind, row in _count_kinds(report.results):
        table.add_row(
            kind,
            str(row["runs"]),
            str(row["held"]),
            show_seconds(row["settle_seconds_median"]),
            show_seconds(row["settle_seconds_worst"]),
        )
    return table


def _tell_totals(report: Report) -> Iterator[str]:
    summary = report.summarize()
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"{report.hypervisor}: {versions}; seed {report.seed}"
    yield (
        f"{summary['runs']} of {report.wanted_runs} runs in {report.seconds:.0f} s;"
        f" {summary['faults_fired']} faults fired"
    )
    yield (
        f"the domain ran on the source {summary['ran_on_source']} times,"
        f" on the target {summary['ran_on_target']} times"
    )
    if summary["lost"]:
        yield f"it ended {summary['lost']} times, where whether it ran was made unknown (LOST)"
    if summary["domains_killed"]:
        yield f"its process was killed {summary['domains_killed']} times, and it was started afresh"
    median, worst = summary["settle_seconds_median"], summary["settle_seconds_worst"]
    yield f"settled after {show_seconds(median)} (median), {show_seconds(worst)} (worst)"
    if report.interrupted:
        yield "interrupted: the rest was left out"
    elif report.trouble is not None:
        yield f"it could not go on: {report.trouble}"
    elif len(report.results) < report.wanted_runs:
        yield f"{report.wanted_runs - len(report.results)} runs were left out after so many failures"
    if report.failed:
        yield f"the promise was BROKEN {len(report.failed)} times of {len(report.results)}"
    else:
        yield f"the promise held {len(report.results)} of {len(report.results)} times"


def show_seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"
