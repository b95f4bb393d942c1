"""Plans on pairs: some pairs side by side, each used again and again; a new one where a run has failed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio
from attrs import define, field

from ldmd.campaign.pair import Kind, Pair, open_pair
from ldmd.campaign.plans import Plan
from ldmd.campaign.runner import Run, RunResult
from ldmd.errors import LdmdError, operator_error

RUNS_PER_PAIR: Final = 150
"""Journals and logs grow, and each run reads the journals."""
FAILED_MAX: Final = 25
"""So many failed runs say enough; each keeps its folder."""

OnResult = Callable[[RunResult], None]


@define(eq=False, kw_only=True)
class Schedule:
    """``folder`` gets a folder for every pair; those of failed runs stay. ``trouble``: why there were no managers to go on
    with."""

    plans: Sequence[Plan]
    kind: Kind
    jobs: int
    folder: Path
    on_result: OnResult
    failed_max: int = FAILED_MAX
    results: list[RunResult] = field(factory=list, init=False)
    trouble: str | None = field(default=None, init=False)
    _unfinished: set[Path] = field(factory=set, init=False)
    """Folders of pairs in use: nothing has failed in them."""
    _next: int = field(default=0, init=False)
    _pairs_made: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)

    async def run(self) -> None:
        """Every plan, once, unless there is trouble or too many fail. Cancelled, it leaves nothing running."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(self.jobs, len(self.plans))):
                    nursery.start_soon(self._work, nursery.cancel_scope)
        finally:
            with trio.CancelScope(shield=True):
                for folder in self._unfinished:
                    await _remove(folder)

    async def _work(self, whole: trio.CancelScope) -> None:
        while self._next < len(self.plans) and self._failed < self.failed_max:
            self._pairs_made += 1
            folder = self.folder / f"pair-{self._pairs_made}"
            self._unfinished.add(folder)
            try:
                failed = await self._use_pair(folder)
            except* (
                LdmdError
            ) as group:  # another pair's trouble may have cancelled this one as well
                known = operator_error(group)
                assert known is not None
                self.trouble = f"no managers could be had in {folder}: {known.sentence}"
                self._unfinished.discard(folder)
                whole.cancel()
            if self.trouble is not None:
                return
            self._unfinished.discard(folder)
            if not failed:
                await _remove(folder)

    async def _use_pair(self, folder: Path) -> bool:
        """Some runs on one pair; true when one of them failed."""
        async with open_pair(folder, self.kind) as pair:
            for number in range(RUNS_PER_PAIR):
                plan = self._take_plan()
                if plan is None:
                    break
                result = await Run(pair, plan).carry_out()
                last = number == RUNS_PER_PAIR - 1 or self._next >= len(self.plans)
                if result.held and last:
                    result = await _end_well(pair, result)
                self._note(result)
                if not result.held:
                    return True
        return False

    def _take_plan(self) -> Plan | None:
        if self._next >= len(self.plans) or self._failed >= self.failed_max:
            return None
        self._next += 1
        return self.plans[self._next - 1]

    def _note(self, result: RunResult) -> None:
        self.results.append(result)
        self._failed += not result.held
        self.on_result(result)


async def _remove(folder: Path) -> None:
    await trio.to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))


async def _end_well(pair: Pair, result: RunResult) -> RunResult:
    """The last run of a pair: both managers end on SIGTERM with 0, and the domain goes on."""
    statuses = await pair.stop()
    violations = [
        f"the manager of {name} was told to end, and "
        + ("did not" if status is None else f"ended with status {status}")
        for name, status in statuses.items()
        if status != 0
    ]
    if not violations:
        return result
    return attrs.evolve(
        result,
        violations=tuple(violations),
        logs={name: log.text for name, log in pair.logs.items()},
        folder=str(pair.folder),
    )
