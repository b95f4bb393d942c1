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
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ldmd.cli import output
from protocol.phases import Phase

BAR_COLUMNS: Final = 16
PLAIN_STEP_PERCENT: Final = 10
REFRESHES_PER_SECOND: Final = 10


class View(Protocol):
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


def make_bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=BAR_COLUMNS),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[detail]}"),
        console=console,
        refresh_per_second=REFRESHES_PER_SECOND,
    )


@define(eq=False)
class QuietView:
    def show(self, document: Mapping[str, Any]) -> None:
        pass

    def note(self, sentence: str) -> None:
        click.echo(sentence, err=True)


@define(eq=False)
class BarView:
    """One bar a phase; a phase is full when the next one begins."""

    bars: Progress
    tasks: dict[Phase, TaskID] = field(factory=dict)
    totals: dict[Phase, int] = field(factory=dict)

    def show(self, document: Mapping[str, Any]) -> None:
        match document["event"]:
            case "phase":
                self._enter(Phase(document["phase"]))
            case "progress":
                self._advance(document)
            case "findings":
                for finding in document["findings"]:
                    self.note(f"{finding['code']} ({finding['subject']}): {finding['sentence']}")
            case "in-doubt":
                self.note(f"in doubt: {document['sentence']}")

    def note(self, sentence: str) -> None:
        self.bars.console.print(sentence)

    def finish(self) -> None:
        """Completed: the last phase is full too."""
        for phase, task in self.tasks.items():
            total = self.totals.get(phase)
            # what was last heard of it may have been short of the end
            detail = output.show_bytes(total) if total else ""
            self.bars.update(task, completed=100.0, detail=detail)

    def _enter(self, phase: Phase) -> None:
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
                for finding in document["findings"]:
                    self.note(f"{finding['code']} ({finding['subject']}): {finding['sentence']}")
            case "in-doubt":
                self.note(f"in doubt: {document['sentence']}")

    def note(self, sentence: str) -> None:
        click.echo(sentence)

    def _enter(self, phase: str) -> None:
        if phase != self.phase:
            self.phase, self.next_percent = phase, PLAIN_STEP_PERCENT
            self.note(phase)


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
