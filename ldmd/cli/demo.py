"""``ldm demo``: see a domain move, on this machine alone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click
import trio
from rich import box
from rich.table import Table

from ldmd.cli import output
from ldmd.cli.progress import BarView, open_view
from ldmd.cli.session import run
from ldmd.sizes import parse_size

if TYPE_CHECKING:
    from ldmd.demo.journey import DemoReport

WIDTH: Final = 78
HYPERVISORS: Final = ("emulated", "qemu")
"""The keys of ``ldmd.demo.journey.KINDS``, which is imported only when it is needed: it brings the
drivers and the signing code with it, and every other verb would wait for those."""


class Size(click.ParamType[int]):
    """``512MiB`` -> bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Terminal:
    """The story for people; nothing of it when ``quiet``."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, sentence: str) -> None:
        if not self.quiet:
            click.secho(f"\n{sentence}", bold=True)

    def show_console(self, host: str, lines: list[str]) -> None:
        for line in lines if not self.quiet else ():
            click.echo(f"  {host} │ {line[: WIDTH - 12]}")

    @contextlib.contextmanager
    def migrating(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        with open_view(output.make_console(), quiet=self.quiet) as view:
            yield view.show
            if isinstance(view, BarView):
                view.finish()


@click.command("demo", short_help="See a domain move, on this machine alone.")
@click.option("--hypervisor", type=click.Choice(HYPERVISORS), default="emulated", show_default=True)
@click.option("--memory", type=Size(), help="The domain's memory, like 256MiB.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def demo(hypervisor: str, memory: int | None, as_json: bool) -> None:
    """Start two managers here, move a running domain from one to the other, and prove it.

    Needs no root, no network and no configuration; leaves nothing behind. Exits 0 when exactly one
    copy runs, on the target, and not a bit or a step of it was lost.
    """
    report = run(lambda: _run_interruptible(hypervisor, memory, Terminal(quiet=as_json)))
    if as_json:
        output.print_json(report.to_document())
    else:
        _print_report(report)
    if not report.ok:
        raise click.exceptions.Exit(1)


async def _run_interruptible(hypervisor: str, memory: int | None, stage: Terminal) -> DemoReport:
    """Any of the signals that end a command ends the story, and everything is put away."""
    from ldmd.demo.journey import run_demo

    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals)
        report = await run_demo(hypervisor, memory, stage)
        nursery.cancel_scope.cancel()
    return report


async def _watch_signals(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            click.echo(f"\nldm: {signal.Signals(number).name}: putting everything away", err=True)
            raise KeyboardInterrupt


def _print_report(report: DemoReport) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("PHASE")
    table.add_column("TIME", justify="right")
    for phase, seconds in report.phases.items():
        table.add_row(phase, f"{seconds:.3f} s")
    output.make_console().print(table)
    same = report.digest_source is not None and report.digest_source == report.digest_target
    copies = "copy" if report.copies_running == 1 else "copies"
    where = f", on {report.running_on}" if report.running_on else ""
    output.print_fields(
        f"{report.domain}: {report.copies_running} {copies} running{where}",
        {
            "moved": output.show_bytes(report.bytes),
            "downtime": None if report.downtime_ms is None else f"{report.downtime_ms:.0f} ms",
            "digest source": report.digest_source,
            "digest target": f"{report.digest_target}  {'equal' if same else 'DIFFERENT'}",
            "memory": f"{report.memory_pages} pages {_verdict(report.memory_oracle)}",
            "console": f"{report.console_lines} lines {_verdict(report.console_contiguous)}",
        },
    )
    if not report.ok:
        click.secho("\nThis is not what must be; the oracle says:", bold=True, err=True)
        for sentence in report.sentences:
            click.echo(f"  {sentence}", err=True)


def _verdict(right: bool) -> str:
    return "without a fault" if right else "NOT RIGHT"


COMMANDS: Final = (demo,)
