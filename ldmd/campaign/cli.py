"""``ldm-faults``: the acceptance test of the promise, on this machine alone."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldmd import __version__
from ldmd.campaign import plans
from ldmd.campaign.junit import write_junit
from ldmd.campaign.pair import CAMPAIGN_KINDS
from ldmd.campaign.report import Report, find_versions, print_report
from ldmd.campaign.runner import RunResult
from ldmd.campaign.schedule import OnResult, Schedule
from ldmd.demo.journey import KINDS
from ldmd.errors import LdmdError, operator_error

INTERRUPTED_STATUS: Final = 130
JOBS_MAX: Final = 64
SEEDS: Final = 2**32
LINES_EVERY: Final = 50
"""Runs between two lines of progress where there is no terminal."""
PIPE_COLUMNS: Final = 80


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ldm-faults", message="%(prog)s %(version)s")
def main() -> None:
    """Make migrations go wrong on purpose, and check what becomes of the domain."""


@main.command(short_help="Go through every fault point, and check the promise after each.")
@click.option(
    "--hypervisor", type=click.Choice(list(CAMPAIGN_KINDS)), default="emulated", show_default=True
)
@click.option(
    "--random",
    "random_runs",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    help="Also N migrations with some random faults each, kills, cancels and cut networks.",
)
@click.option("--random-only", is_flag=True, help="Only the random ones.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Draws the random runs, and what --limit takes; the same seed gives the same plan. Default: drawn, and printed.",
)
@click.option(
    "--points",
    metavar="GLOB",
    default="*",
    help="Only faults whose point, or whose POINT=KIND, it matches; also in the random ones.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, JOBS_MAX),
    default=2,
    show_default=True,
    help="Pairs of managers side by side.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Only N of the fault points' runs, drawn by the seed.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False, writable=True))
@click.option(
    "--junit", "junit_path", type=click.Path(path_type=Path, dir_okay=False, writable=True)
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where journals and logs lie while it runs, and stay where a run failed. Default: a temporary one.",
)
@click.pass_context
def campaign(
    context: click.Context,
    hypervisor: str,
    random_runs: int,
    random_only: bool,
    seed: int | None,
    points: str,
    jobs: int,
    limit: int | None,
    json_path: Path | None,
    junit_path: Path | None,
    folder: Path | None,
) -> None:
    """Start managers here, move a domain between them again and again, let something go wrong each time, and check that
    exactly one copy runs, that nothing of it was lost, and that both journals agree.

    Needs no root, no network and no configuration. Exits 0 only when the promise held every time, 1 when it did not,
    2 for wrong use.
    """
    if seed is None:
        seed = random.SystemRandom().randrange(SEEDS)
    if random_only and not random_runs:
        raise click.UsageError("--random-only needs --random N")
    if not plans.list_faults(points):
        raise click.BadParameter(f"{points!r} matches no fault point", param_hint="--points")
    chosen = [] if random_only else _choose_plans(points, seed, limit)
    chosen += plans.plan_random(random_runs, seed, points)
    for path in (json_path, junit_path):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.BadParameter(f"{path.parent} is no folder")
    console = Console(
        width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False, markup=False
    )
    with _open_folder(folder) as place:
        order = {plan.name: number for number, plan in enumerate(chosen)}
        schedule_of = partial(
            Schedule, plans=chosen, kind=CAMPAIGN_KINDS[hypervisor], jobs=jobs, folder=place
        )
        began_unix_ms, began = time.time_ns() // 1_000_000, time.monotonic()
        with _showing_progress(console, len(chosen), seed) as on_result:
            schedule = schedule_of(on_result=on_result)
            version, interrupted = _run(hypervisor, schedule)
        report = Report(
            hypervisor=hypervisor,
            versions=find_versions(version),
            command=["ldm-faults", *sys.argv[1:]],
            seed=seed,
            jobs=jobs,
            began_unix_ms=began_unix_ms,
            seconds=time.monotonic() - began,
            wanted_runs=len(chosen),
            results=sorted(schedule.results, key=lambda result: order[result.name]),
            interrupted=interrupted,
            trouble=schedule.trouble,
        )
        print_report(console, report)
        _write_files(report, json_path, junit_path)
        if report.failed:
            click.echo(f"\njournals and logs of the failed runs are in {place}", err=True)
    context.exit(INTERRUPTED_STATUS if interrupted else 0 if report.ok else 1)


def _choose_plans(points: str, seed: int, limit: int | None) -> list[plans.Plan]:
    """One for each point and kind, in the order of the points."""
    chosen = plans.plan_all(points)
    if limit is not None and limit < len(chosen):
        drawn = set(random.Random(seed).sample(range(len(chosen)), limit))
        chosen = [plan for number, plan in enumerate(chosen) if number in drawn]
    return chosen


@contextlib.contextmanager
def _open_folder(folder: Path | None) -> Iterator[Path]:
    """A folder of our own in ``folder`` or among the temporary ones; it goes at the end unless something is left in it."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="ldm-campaign-", dir=folder)).absolute()
    try:
        yield place
    finally:
        with contextlib.suppress(OSError):  # failed runs are in it
            place.rmdir()


def _run(hypervisor: str, schedule: Schedule) -> tuple[tuple[int, ...], bool]:
    """The hypervisor's version, and whether it was interrupted. Exits with 1 when there is nothing to run it on."""
    try:
        return trio.run(_run_interruptible, hypervisor, schedule)
    except (LdmdError, BaseExceptionGroup) as error:
        known = operator_error(error)
        if known is None:
            raise
        click.echo(f"ldm-faults: {known.sentence}", err=True)
        if known.remedy:
            click.echo(f"            {known.remedy}", err=True)
        raise click.exceptions.Exit(1) from error


async def _run_interruptible(hypervisor: str, schedule: Schedule) -> tuple[tuple[int, ...], bool]:
    """Any of the signals that end a command ends it, and everything is put away."""
    interrupted = False
    capabilities = await KINDS[hypervisor].make().capabilities()  # says what to install
    async with trio.open_nursery() as nursery:

        async def watch_signals(
            task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
        ) -> None:
            nonlocal interrupted
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                task_status.started()
                async for number in signals:
                    name = signal.Signals(number).name
                    click.echo(f"\nldm-faults: {name}: putting everything away", err=True)
                    interrupted = True
                    nursery.cancel_scope.cancel()

        await nursery.start(watch_signals)
        await schedule.run()
        nursery.cancel_scope.cancel()
    return capabilities.version, interrupted


@contextlib.contextmanager
def _showing_progress(console: Console, runs: int, seed: int) -> Iterator[OnResult]:
    """A bar on a terminal, a line now and then elsewhere; a failure is told at once."""
    console.print(f"{runs} runs, seed {seed}")
    if not console.is_terminal:
        yield partial(_print_progress, console, runs, [0, 0])
        return
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=runs)

        def show(result: RunResult) -> None:
            if not result.held:
                console.print(f"FAILED  {result.name}: {result.violations[0]}", style="bold red")
            progress.update(task, advance=1, description=result.name[:36])

        yield show


def _print_progress(console: Console, runs: int, counts: list[int], result: RunResult) -> None:
    counts[0] += 1
    counts[1] += not result.held
    if not result.held:
        console.print(f"FAILED  {result.name}: {result.violations[0]}", soft_wrap=True)
    if counts[0] % LINES_EVERY == 0:
        console.print(f"{counts[0]} of {runs} runs, {counts[1]} failed")


def _write_files(report: Report, json_path: Path | None, junit_path: Path | None) -> None:
    """Raises ClickException when one cannot be written: a result that is lost is no success."""
    contents: list[tuple[Path | None, Callable[[], bytes]]] = [
        (json_path, partial(_write_json, report)),
        (junit_path, partial(write_junit, report)),
    ]
    for path, write in contents:
        if path is None:
            continue
        try:
            path.write_bytes(write())
        except OSError as error:
            raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def _write_json(report: Report) -> bytes:
    return json.dumps(report.to_document(), indent=1, allow_nan=False).encode() + b"\n"


if __name__ == "__main__":
    main(prog_name="ldm-faults")
