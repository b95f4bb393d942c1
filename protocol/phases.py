"""The four phases of a migration, in order: the one place where they are listed.

Source: Veritas InfoScale 7.3.1 Virtualization Guide (Solaris), "Warm migration" of Logical Domains.
"""

from __future__ import annotations

import enum


class Phase(enum.StrEnum):
    CHECK = "check"
    PREPARE = "prepare"
    TRANSFER = "transfer"
    HANDOFF = "handoff"


class Mode(enum.StrEnum):
    """How a domain moves: warm (active, suspended from phase 2 to 4) or cold (bound or inactive)."""

    WARM = "warm"
    COLD = "cold"


class RunState(enum.StrEnum):
    """What the domain was when the migration began and must be again when it has ended."""

    RUNNING = "running"
    SUSPENDED = "suspended"
    BOUND = "bound"
    INACTIVE = "inactive"

    @property
    def mode(self) -> Mode:
        return Mode.WARM if self in (RunState.RUNNING, RunState.SUSPENDED) else Mode.COLD
