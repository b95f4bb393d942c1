"""A recorded run of real managers, replayed as a path of the model: the runner cannot drift from what was explored.

With ``[faults] trace = true`` each manager records what its migrations do (``ldmd/trace.py``). All managers of a host read
one clock, so the recordings put together are the order in which things happened. The replay follows that order with all
the worlds that the model allows by then, moving freely between two recorded steps where nothing is recorded: a link that is
cut, a manager that is killed, a link that the target attaches or forgets, how an operation ended before that is taken up.

``python -m tests.model.conformance TRACE TRACE`` replays every migration that both files tell of.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import field, frozen

from protocol.actions import GIVE_UP_POSSIBLE, RecordKind
from protocol.source import SOURCE
from protocol.target import TARGET
from tests.model.world import ABSENT, DEAD, Kind, Model, Side, Step, World

WORLDS_MAX = 200_000
"""More worlds at a time than any recording has needed by far: the search is given up, and says so."""

NEVER = ("fenced", "without its journal", "pauses by itself", "is booted", "put back")
"""Labels of what no recording here has."""
DEATH = "process dies"
PROGRESS = "takes PREPARE_PROGRESS"
"""May come any number of times; the model has one."""

_RETRIED = {f"record {kind} fails" for kind in RecordKind if kind not in GIVE_UP_POSSIBLE}


@frozen
class Entry:
    """One recorded step; ``state`` is "" where it leads to none."""

    at: float
    side: str
    migration: str
    step: str
    state: str = ""

    def __str__(self) -> str:
        return f"{self.side} {self.step}" + (f" -> {self.state}" if self.state else "")


@frozen
class Mismatch:
    """``followed`` of the recorded steps are a path of the model, the next one is not."""

    followed: int
    entries: Sequence[Entry]
    allowed: Sequence[str] = field()

    def __str__(self) -> str:
        lines = [f"  {entry}" for entry in self.entries[max(0, self.followed - 15) : self.followed]]
        lines.append(f"! {self.entries[self.followed]}")
        lines += ["what the model allows there:", *(f"  {label}" for label in self.allowed)]
        return "\n".join(lines)


def read(*paths: Path) -> dict[str, list[Entry]]:
    """Recordings -> the steps of each migration, in the order in which they happened."""
    found: dict[str, list[Entry]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            document = json.loads(line)
            entry = Entry(
                document["at"],
                document["side"],
                document["migration"],
                document["step"],
                document.get("as", ""),
            )
            found.setdefault(entry.migration, []).append(entry)
    return {name: sorted(entries, key=lambda e: e.at) for name, entries in found.items()}


def _relevant(entries: Sequence[Entry]) -> list[Entry]:
    """Without what the model does not tell apart."""
    kept: list[Entry] = []
    for entry in entries:
        if " ends " in entry.step or entry.step == PROGRESS or entry.step in _RETRIED:
            continue
        if entry.step == "takes RECORD_FAILED":
            _fail_last_record(kept, entry.side)
        kept.append(entry)
    return kept


def _fail_last_record(kept: list[Entry], side: str) -> None:
    """One that was written and reported as failed is recorded as written: for the model it failed."""
    place = max(n for n, entry in enumerate(kept) if entry.side == side)
    last = kept[place]
    if last.step.startswith("record ") and not last.step.endswith(" fails"):
        kept[place] = Entry(last.at, side, last.migration, f"{last.step} fails")


def replay(entries: Sequence[Entry], *, deaths: bool = False) -> Mismatch | None:
    """None when the recording of one migration is a path of the model, for some kind of domain.

    ``deaths``: whether a domain's process may die.
    """
    steps = _relevant(entries)
    if steps and steps[0].step == "takes START_DRY_RUN":
        return None  # phase 1 alone is not modelled
    mismatches = []
    for kind in Kind:
        mismatch = _Replay(Model.of(kind, SOURCE, TARGET), steps, deaths).run()
        if mismatch is None:
            return None
        mismatches.append(mismatch)
    return max(mismatches, key=lambda mismatch: mismatch.followed)


@frozen(eq=False)
class _Replay:
    model: Model
    entries: Sequence[Entry]
    deaths: bool

    def run(self) -> Mismatch | None:
        start = Entry(0, "source", "", "takes START", "connecting")
        if not self.entries or str(self.entries[0]) != str(start):
            return Mismatch(0, [*self.entries, start], [str(start)])
        worlds = {self.model.start}
        for number, entry in enumerate(self.entries[1:], start=1):
            worlds, allowed = self._follow(worlds, entry, self._may_be_killed(number))
            if not worlds:
                return Mismatch(number, self.entries, sorted(allowed))
        return None

    def _may_be_killed(self, number: int) -> frozenset[str]:
        """Sides of which nothing more is recorded before they are restored."""
        sides = set()
        for side in ("source", "target"):
            later = next((e for e in self.entries[number:] if e.side == side), None)
            if later is None or later.step == "restored":
                sides.add(side)
        return frozenset(sides)

    def _follow(
        self, worlds: Iterable[World], entry: Entry, killed: frozenset[str]
    ) -> tuple[set[World], set[str]]:
        """Every world that the recorded step can lead to, and what else could have been."""
        seen, todo = set(worlds), list(worlds)
        after: set[World] = set()
        allowed: set[str] = set()
        while todo:
            if len(seen) > WORLDS_MAX:
                raise RuntimeError(f"too many worlds before {entry}")
            for step in self.model.steps(todo.pop()):
                if not self._possible(step, killed):
                    continue
                token = self._token(step)
                if token is None:
                    if step.world not in seen:
                        seen.add(step.world)
                        todo.append(step.world)
                elif token == (entry.side, entry.step) and self._leads_to(step.world, entry):
                    after.add(step.world)
                else:
                    allowed.add(" ".join(token))
        return after, allowed

    def _possible(self, step: Step, killed: frozenset[str]) -> bool:
        side, _, what = step.label.partition(" manager ")
        if what == "killed":
            return side in killed
        if any(words in step.label for words in NEVER):
            return False
        return self.deaths or DEATH not in step.label

    def _leads_to(self, world: World, entry: Entry) -> bool:
        return not entry.state or _side(world, entry.side).state == entry.state

    def _token(self, step: Step) -> tuple[str, str] | None:
        """(side, step) as it would be recorded; None for what is not."""
        label = step.label
        if " manager starts again" in label:
            side = label.partition(" ")[0]
            return (side, "restored") if self._goes_on(step.world, side) else None
        if " has ended and answers " in label:
            return "target", "answers " + label.rpartition(" ")[2]
        if " takes " in label:
            side, _, event = label.partition(" takes ")
            found = "takes " + event.removeprefix("message ")
            return None if found == PROGRESS else (side, found)
        side, colon, what = label.partition(": ")
        if not colon:
            return None
        if " ends: " in what:
            outcome = what.partition(" ends: ")[2].partition(",")[0]
            pending = _side(step.world, side).outcome
            return None if pending else (side, f"takes {outcome}")
        return side, what.partition(" (")[0]

    def _goes_on(self, world: World, side: str) -> bool:
        rules = self.model.source if side == "source" else self.model.target
        state = _side(world, side).state
        return state not in (ABSENT, DEAD) and state not in rules.final


def _side(world: World, side: str) -> Side:
    return world.source if side == "source" else world.target


def main(paths: Sequence[str]) -> int:
    if not paths:
        print(__doc__)
        return 2
    wrong = 0
    for name, entries in read(*map(Path, paths)).items():
        mismatch = replay(entries)
        print(
            f"{name}: {len(entries)} steps, {'a path of the model' if mismatch is None else 'NO path'}"
        )
        if mismatch is not None:
            wrong += 1
            print(mismatch)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
