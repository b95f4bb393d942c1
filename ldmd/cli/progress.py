"""A migration while it happens: bars on a terminal, plain lines elsewhere.

Both take the progress documents of ``migrate-domain`` (``ldmd/operations.py``) and show the four
phases by their names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import click
from attrs import define, field
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn

from ldmd.cli import output
from protocol.phases import Phase

BAR_COLUMNS: Final = 16
PLAIN_STEP_PERCENT: Final = 10
REFRESHES_PER_SECOND: Final = 10


class View(Protocol):
    findings_shown: bool
    """The end need not say them again."""

    def show(self, document: Mapping[str, Any]) -> None:
        """One progress document."""

    def note(self, sentence: str) -> None:
        """A line of its own, between the rest."""


@contextlib.contextmanager
def open_view(console: Console, *, quiet: bool = False) -> Iterator[View]:
    """What fits the console; ``quiet`` shows nothing but notes, and those on stderr."""
    if quiet:
        yield QuietView()
    elif console.is_terminal:
        bars = make_bars(console)
        with bars:
            yield BarView(bars)
    else:
        yield PlainView()


class OfPhases(ProgressColumn):
    """A column that a task without a total, which only waits, does not have."""

    def __init__(self, column: ProgressColumn) -> None:
        self.column = column
        super().__init__()

    def render(self, task: Task) -> RenderableType:
        return "" if task.total is None else self.column.render(task)


def make_bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<8}"),
        OfPhases(BarColumn(bar_width=BAR_COLUMNS)),
        OfPhases(TextColumn("{task.percentage:>3.0f} %")),
        TextColumn("{task.fields[detail]}"),
        console=console,
        refresh_per_second=REFRESHES_PER_SECOND,
    )


@define(eq=False)
class QuietView:
    findings_shown: bool = False

    def show(self, document: Mapping[str, Any]) -> None:
        pass

    def note(self, sentence: str) -> None:
        click.echo(sentence, err=True)


@define(eq=False)
class BarView:
    """One bar a phase; a phase is full when the next one begins."""

    bars: Progress
    tasks: dict[Phase, TaskID] = field(factory=dict)
    waiting: TaskID | None = None
    findings_shown: bool = False
    totals: dict[Phase, int] = field(factory=dict)

    def show(self, document: Mapping[str, Any]) -> None:
        match document["event"]:
            case "phase":
                self._enter(Phase(document["phase"]))
            case "progress":
                self._advance(document)
            case "findings":
                self.findings_shown = True
                self.note("\n".join(output.render_findings(document["findings"])))
            case "in-doubt":
                self.note(f"in doubt: {document['sentence']}")
            case "queued":
                self._wait(document)

    def note(self, sentence: str) -> None:
        self.bars.console.print(sentence, soft_wrap=True)

    def _wait(self, document: Mapping[str, Any]) -> None:
        """A line that stays while its place changes, and goes when the migration begins."""
        detail = describe_place(document)
        if self.waiting is None:
            self._forget_phases()  # it came back: its target has no room after all
            self.waiting = self.bars.add_task("queued", total=None, detail=detail)
        self.bars.update(self.waiting, detail=detail)

    def _forget_phases(self) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks.clear()
        self.totals.clear()

    def finish(self) -> None:
        """Completed: the last phase is full too."""
        for phase, task in self.tasks.items():
            total = self.totals.get(phase)
            # what was last heard of it may have been short of the end
            detail = output.show_bytes(total) if total else ""
            self.bars.update(task, completed=100.0, detail=detail)

    def _enter(self, phase: Phase) -> None:
        if self.waiting is not None:
            self.bars.remove_task(self.waiting)
            self.waiting = None
        self.finish()
        if phase not in self.tasks:
            self.tasks[phase] = self.bars.add_task(phase.value, total=100.0, detail="")

    def _advance(self, document: Mapping[str, Any]) -> None:
        phase = Phase(document["phase"])
        if phase not in self.tasks:
            self._enter(phase)
        self.totals[phase] = document["total_bytes"]
        self.bars.update(
            self.tasks[phase], completed=document["percent"], detail=describe(document)
        )


@define(eq=False)
class PlainView:
    """One line a phase, and one for each ten percent."""

    phase: str = ""
    next_percent: float = PLAIN_STEP_PERCENT
    findings_shown: bool = False

    def show(self, document: Mapping[str, Any]) -> None:
        match document["event"]:
            case "phase":
                self._enter(document["phase"])
            case "progress":
                self._enter(document["phase"])
                if document["percent"] >= self.next_percent:
                    steps = document["percent"] // PLAIN_STEP_PERCENT
                    self.next_percent = (steps + 1) * PLAIN_STEP_PERCENT
                    self.note(f"{self.phase} {document['percent']:.0f} %  {describe(document)}")
            case "findings":
                self.findings_shown = True
                self.note("\n".join(output.render_findings(document["findings"])))
            case "in-doubt":
                self.note(f"in doubt: {document['sentence']}")
            case "queued":
                self.phase = "queued"
                self.note(f"queued, {describe_place(document)}")

    def note(self, sentence: str) -> None:
        click.echo(sentence)

    def _enter(self, phase: str) -> None:
        if phase != self.phase:
            self.phase, self.next_percent = phase, PLAIN_STEP_PERCENT
            self.note(phase)


def describe_place(document: Mapping[str, Any]) -> str:
    """``number 3: 4 migrations are under way, as many as may be``."""
    return f"number {document['position']}: {document['sentence']}"


def describe(document: Mapping[str, Any]) -> str:
    """``40.0 MiB of 64.0 MiB  212.0 MiB/s  0:02 left``; at most 43 columns."""
    parts = []
    if document["total_bytes"]:
        done, total = document["done_bytes"], document["total_bytes"]
        parts.append(f"{output.show_bytes(done)} of {output.show_bytes(total)}")
    if document["rate_bytes_per_second"]:
        parts.append(f"{output.show_bytes(document['rate_bytes_per_second'])}/s")
    if document["remaining_seconds"]:
        parts.append(f"{output.show_seconds(document['remaining_seconds'])} left")
    return "  ".join(parts)
