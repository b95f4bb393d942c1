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


class Role(enum.StrEnum):
    SOURCE = "source"
    TARGET = "target"


class Holding(enum.StrEnum):
    """What a host has of a domain."""

    NOTHING = "nothing"
    UNDECIDED = "undecided"
    """A migration holds it, and whose it is is not decided there."""
    OWNED = "owned"
    """It is that host's."""
    PROCESS = "process"
    """That host's journal does not know the domain, and a process of it lives there."""


class RunState(enum.StrEnum):
    """What the domain was when the migration began and must be again when it has ended."""

    RUNNING = "running"
    SUSPENDED = "suspended"
    BOUND = "bound"
    INACTIVE = "inactive"

    @property
    def mode(self) -> Mode:
        return Mode.WARM if self in (RunState.RUNNING, RunState.SUSPENDED) else Mode.COLD
