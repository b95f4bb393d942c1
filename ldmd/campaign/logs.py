"""What a manager wrote to its log since a run began: which faults fired, and whether it has a bug."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from attrs import define, field

from ldmd.fault_points import Kind

FIRED: Final = re.compile(r"fault point (\S+): (\S+)$")
"""As ``ldmd/faults.py`` says it, at the moment when it fires and before anything happens."""
BUGS: Final = ("Traceback (most recent call last)", "has a bug", "Fatal Python error")
PIECE_BYTES: Final = 1024 * 1024
KEPT_CHARACTERS: Final = 256 * 1024
"""Of one run, for its report; a run writes some 3 KiB."""


@define(eq=False)
class LogReader:
    """``fired``: ``point=kind[:number]``, in order, since ``begin``. ``text``: all of it, cut at the front."""

    path: Path
    fired: list[str] = field(factory=list, init=False)
    text: str = field(default="", init=False)
    _offset: int = field(default=0, init=False)
    _rest: bytes = field(default=b"", init=False)

    def begin(self) -> None:
        """From here on."""
        self.read()
        self.fired.clear()
        self.text = ""

    def read(self) -> None:
        """Take up what is new: whole lines."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                while piece := file.read(PIECE_BYTES):
                    self._offset += len(piece)
                    self._take(piece)
        except FileNotFoundError:
            return

    def _take(self, piece: bytes) -> None:
        whole, newline, self._rest = (self._rest + piece).rpartition(b"\n")
        text = (whole + newline).decode(errors="replace")
        self.text = (self.text + text)[-KEPT_CHARACTERS:]
        for line in text.splitlines():
            if match := FIRED.search(line):
                self.fired.append(f"{match[1]}={match[2]}")

    def has_fired(self, fault: str) -> bool:
        return any(same_fault(fault, fired) for fired in self.fired)

    def find_bugs(self) -> list[str]:
        return [line for line in self.text.splitlines() if any(bug in line for bug in BUGS)]


def same_fault(one: str, other: str) -> bool:
    """Equal, but for how a number is written."""
    return point_and_kind(one) == point_and_kind(other) and number_of(one) == number_of(other)


def point_and_kind(fault: str) -> tuple[str, Kind]:
    point, _, rest = fault.partition("=")
    return point, Kind(rest.partition(":")[0])


def number_of(fault: str) -> float:
    """0 for those without one."""
    return float(fault.partition("=")[2].partition(":")[2] or 0)
