"""How far a migration is: percent, rate, time left, and how long each phase took."""

from __future__ import annotations

import pytest

from ldmd.progress import RATE_WINDOW_SECONDS, Progress
from protocol.phases import Phase


def test_nothing_is_known_at_first() -> None:
    progress = Progress(Phase.CHECK)
    assert (progress.percent, progress.rate_bytes_per_second) == (0.0, 0.0)
    assert progress.remaining_seconds is None
    assert progress.phase_seconds(1.0) == {}


def test_rate_and_time_left() -> None:
    progress = Progress(Phase.TRANSFER)
    progress.note(0, 1000, now=10.0)
    assert progress.remaining_seconds is None, "one point has no rate"
    progress.note(250, 1000, now=11.0)
    assert progress.percent == 25.0
    assert progress.rate_bytes_per_second == 250.0
    assert progress.remaining_seconds == 3.0
    progress.note(1000, 1000, now=11.5)
    assert (progress.percent, progress.remaining_seconds) == (100.0, 0.0)


def test_the_rate_is_of_the_last_seconds() -> None:
    progress = Progress(Phase.TRANSFER)
    for tenth in range(100):  # 10 s at 100 bytes a second, then 10 s at 1000
        progress.note(tenth * 10, 20_000, now=tenth / 10)
    for tenth in range(100):
        progress.note(1000 + tenth * 100, 20_000, now=10 + tenth / 10)
    assert progress.rate_bytes_per_second == pytest.approx(1000)
    assert len(progress._samples) <= RATE_WINDOW_SECONDS * 10 + 1, "bounded by the window"


def test_two_looks_at_one_instant() -> None:
    progress = Progress(Phase.TRANSFER)
    progress.note(0, 10, now=1.0)
    progress.note(5, 10, now=1.0)
    assert progress.rate_bytes_per_second == 0.0
    assert progress.remaining_seconds is None


def test_a_pause_longer_than_the_window_leaves_no_rate() -> None:
    progress = Progress(Phase.TRANSFER)
    progress.note(0, 10, now=0.0)
    progress.note(5, 10, now=100.0)
    assert progress.rate_bytes_per_second == 0.0


def test_each_phase_is_entered_once_and_timed() -> None:
    progress = Progress(Phase.CHECK)
    progress.enter(Phase.CHECK, 1.0)
    progress.enter(Phase.PREPARE, 2.0)
    progress.note(5, 10, now=2.5)
    progress.enter(Phase.PREPARE, 3.0)  # again: it began at 2
    assert progress.done_bytes == 5
    progress.enter(Phase.TRANSFER, 5.0)
    assert (progress.phase, progress.done_bytes, progress.total_bytes) == (Phase.TRANSFER, 0, 0)
    assert progress.rate_bytes_per_second == 0.0
    assert progress.phase_seconds(9.0) == {
        Phase.CHECK: 1.0,
        Phase.PREPARE: 3.0,
        Phase.TRANSFER: 4.0,
    }
