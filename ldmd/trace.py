"""What each migration did, step by step, as JSON lines: ``tests/model/conformance.py`` replays it as a path of the model.
Off unless the configuration says ``[faults] trace = true``.

A line: ``at`` (seconds of CLOCK_MONOTONIC, the same for all managers of a host), ``side``, ``migration``, ``step``, and
``as`` (the state) where the step leads to one. It is written before anything after the step happens; nothing is synced.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Final

from attrs import define

NAME: Final = "trace.jsonl"


@define(eq=False)
class Trace:
    """``path`` is None: nothing is recorded."""

    path: Path | None

    def note(self, side: str, migration: str, step: str, state: str | None = None) -> None:
        """Raises OSError: whoever wanted a recording wants it whole."""
        if self.path is None:
            return
        line: dict[str, object] = {
            "at": time.monotonic(),
            "side": side,
            "migration": migration,
            "step": step,
        }
        if state is not None:
            line["as"] = state
        descriptor = os.open(
            self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)
