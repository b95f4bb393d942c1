"""What a fuzzing process has done so far, in a file mapped into memory: it ends without a word when it finds something."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.fuzz.target import Examination

INPUTS, MEASURED, LONGEST_NS, PEAK_BYTES = range(4)
_BYTES: Final = 4 * 8


class Tally:
    """Four counters, shared by everyone who has the file open."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    @property
    def inputs(self) -> int:
        return self._cells[INPUTS]

    @property
    def measured(self) -> int:
        return self._cells[MEASURED]

    @property
    def longest_seconds(self) -> float:
        return self._cells[LONGEST_NS] / 1e9

    @property
    def peak_bytes(self) -> int:
        return self._cells[PEAK_BYTES]

    def begin(self) -> int:
        """The number of an input, from 1, counted before it is examined: the last one may be the one that failed."""
        self._cells[INPUTS] += 1
        return self._cells[INPUTS]

    def note(self, examination: Examination) -> None:
        cells = self._cells
        cells[LONGEST_NS] = max(cells[LONGEST_NS], int(examination.cpu_seconds * 1e9))
        if examination.peak_bytes is not None:
            cells[MEASURED] += 1
            cells[PEAK_BYTES] = max(cells[PEAK_BYTES], examination.peak_bytes)


@contextmanager
def open_tally(path: Path) -> Iterator[Tally]:
    """Creates the file if there is none."""
    if not path.exists():
        path.write_bytes(bytes(_BYTES))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), _BYTES) as mapped:
        cells = memoryview(mapped).cast("Q")
        try:
            yield Tally(cells)
        finally:
            cells.release()
