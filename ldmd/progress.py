"""How far a migration is, for those who look: phase, bytes, rate."""

from __future__ import annotations

import collections
from typing import Final

from attrs import define, field

from protocol.phases import Phase

RATE_WINDOW_SECONDS: Final = 2.0


@define(eq=False)
class Progress:
    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0
    sentence: str = ""
    changes: int = 0
    """Goes up when something but bytes changes: who watches waits for that."""
    entered: dict[Phase, float] = field(factory=dict)
    """Phase -> trio's clock when it began."""
    _samples: collections.deque[tuple[float, int]] = field(factory=collections.deque)

    def enter(self, phase: Phase, now: float) -> None:
        if phase not in self.entered:
            self.phase = phase
            self.entered[phase] = now
            self.done_bytes = self.total_bytes = 0
            self._samples.clear()

    def note(self, done_bytes: int, total_bytes: int, now: float) -> None:
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
        self._samples.append((now, done_bytes))
        while now - self._samples[0][0] > RATE_WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def percent(self) -> float:
        return 100.0 * self.done_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def rate_bytes_per_second(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - start) if end > start else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        rate = self.rate_bytes_per_second
        return (self.total_bytes - self.done_bytes) / rate if rate > 0 else None

    def phase_seconds(self, now: float) -> dict[Phase, float]:
        """Each phase that began -> how long it took, the last one until ``now``."""
        begun = list(self.entered.items())
        ends = [start for _, start in begun[1:]] + [now] * bool(begun)
        return {phase: end - start for (phase, start), end in zip(begun, ends, strict=True)}
