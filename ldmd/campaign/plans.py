"""What goes wrong in a run, as data: which faults are armed, what is done from outside and when.

A run of the whole campaign has one fault that must fire. Most points lie on the straight path of a migration; for the others
``WAYS`` says what must go wrong first. A random run has whatever its seed gives it, and nothing in it must fire.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

from attrs import define, field, frozen

from ldmd.fault_points import POINTS, Kind, point_of
from protocol.machine import Table
from protocol.phases import Phase
from protocol.source import SOURCE
from protocol.target import TARGET


class Deed(enum.StrEnum):
    """What the campaign does from outside, beside arming faults."""

    KILL_SOURCE = "kill source"
    KILL_TARGET = "kill target"
    KILL_BOTH = "kill both"
    """SIGKILL to the manager, which is started again at once."""
    CANCEL_AT_SOURCE = "cancel at source"
    CANCEL_AT_TARGET = "cancel at target"
    FREEZE = "freeze"
    """Links there are stand still for ever, unbroken; new ones can be made."""
    PART = "part"
    """Links there are stand still for ever, and new ones until JOIN."""
    JOIN = "join"
    KILL_DOMAIN_AT_SOURCE = "kill domain at source"
    KILL_DOMAIN_AT_TARGET = "kill domain at target"
    ASK_AGAIN = "ask again"


@frozen(kw_only=True)
class Step:
    """``deed`` is done ``seconds`` after the migration was asked for, or after the fault ``after`` has fired; never, if
    that does not. Each step is for itself."""

    deed: Deed
    seconds: float = 0.0
    after: str | None = None

    def __str__(self) -> str:
        since = f" after {self.after}" if self.after else ""
        return f"{self.deed} {self.seconds:.3f} s{since}"


@frozen(kw_only=True)
class Way:
    """One migration and what goes wrong in it. ``faults`` are armed first, in this order; ``recovery_faults`` in a manager
    that is started again, the first time."""

    faults: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    recovery_faults: tuple[str, ...] = ()


@frozen(kw_only=True)
class Plan:
    """``wanted``: the fault that must fire; the ways are gone in turn until it has. None: there is one way, gone once."""

    name: str
    ways: tuple[Way, ...]
    wanted: str | None = None


STRAIGHT: Final = Way()
GIVE_UP: Final = Way(faults=("source.suspend-domain.before=fail",))
"""The source gives up, and tells the target."""
CANCEL: Final = Way(
    faults=("target.create-domain.before=delay:0.5",),
    steps=(Step(deed=Deed.CANCEL_AT_SOURCE, after="target.create-domain.before=delay:0.5"),),
)
DENY: Final = Way(faults=("target.resume-domain.before=fail",))
"""The target was asked to decide, and its copy definitely did not run."""
LOSE: Final = Way(
    faults=(
        "target.probe-domain.before=delay:0",  # the look before the commit passes; the next ones do not
        *4 * ("target.probe-domain.before=unknown",),  # as often as it is asked in probe-seconds
        "target.resume-domain.after=unknown",
    )
)
"""Nobody can say whether the target's copy ran: it is ended, and counts as having run."""
SUPERSEDE: Final = Way(
    faults=("target.run-checks.before=hang",),
    steps=(
        Step(deed=Deed.FREEZE, after="target.run-checks.before=hang"),
        Step(deed=Deed.CANCEL_AT_SOURCE, after="target.run-checks.before=hang", seconds=0.05),
        Step(deed=Deed.ASK_AGAIN, after="target.run-checks.before=hang", seconds=0.1),
    ),
)
"""The target does not hear that the source has given up, and is asked for the same domain again."""

WAYS: Final = (
    (STRAIGHT, ("*",)),
    (
        GIVE_UP,
        (
            "source.record-aborted.*",
            "source.resume-domain.*",
            "source.send-cancel.*",
            "source.receive-refused.*",
            "target.receive-cancel.*",
            "target.record-aborted.*",
            "target.destroy-domain.*",
            "target.send-refused.*",
        ),
    ),
    (CANCEL, ()),
    (DENY, ("source.receive-handoff-refused.*", "target.send-handoff-refused.*")),
    (
        LOSE,
        (
            "source.receive-handoff-lost.*",
            "target.record-lost.*",
            "target.end-domain.*",
            "target.send-handoff-lost.*",
        ),
    ),
    (SUPERSEDE, ("target.close-link.*",)),
)
"""Ways, and the points that lie on each for certain. A point is looked for on the last one that names it, then on the others
in this order, then on the first again: a busy machine can make a migration miss its way."""

FLIPPED_BIT: Final = 8 * (5 * 4096 + 8) + 3
"""In the byte that the emulated oracle counts in (its page 5): it would not heal, and the oracle would see it."""
NUMBERS: Final = {Kind.DELAY: "0.3", Kind.CUT_AFTER: "7", Kind.FLIP: str(FLIPPED_BIT)}
"""Of the whole campaign: shorter than every deadline; within the first message's frame; in the first state chunk."""
STATE_POINT: Final = "source.send-state.before"
STATE_CUT_BYTES: Final = 700_000


def list_faults(pattern: str = "*") -> list[str]:
    """Every fault that there can be, one of each kind at each point: ``point=kind[:number]``. ``pattern`` is a shell
    pattern for the point, or for the whole."""
    return [
        fault
        for point, kinds in POINTS.items()
        for kind in kinds
        for fault in [_write_fault(point, kind)]
        if fnmatchcase(point, pattern) or fnmatchcase(fault, pattern)
    ]


def _write_fault(point: str, kind: Kind) -> str:
    number = NUMBERS.get(kind)
    if kind is Kind.CUT_AFTER and point == STATE_POINT:
        number = str(STATE_CUT_BYTES)
    return f"{point}={kind}" + (f":{number}" if number else "")


def plan_all(pattern: str = "*") -> list[Plan]:
    """A run for every fault of ``list_faults``."""
    return [plan_fault(fault) for fault in list_faults(pattern)]


def plan_fault(fault: str) -> Plan:
    """What must go wrong first comes before the fault itself, which may be at the same point."""
    return Plan(
        name=fault, ways=tuple(_add_fault(way, fault) for way in find_ways(fault)), wanted=fault
    )


def find_ways(fault: str) -> list[Way]:
    point = fault.partition("=")[0]
    certain = [way for way, points in WAYS if any(fnmatchcase(point, p) for p in points)]
    others = [way for way, _ in WAYS if way is not certain[-1]]
    return [certain[-1], *others, certain[-1]]


def _add_fault(way: Way, fault: str) -> Way:
    return Way(faults=(*way.faults, fault), steps=way.steps)


# ---- random runs -----------------------------------------------------------------------------

FAULTS_MAX: Final = 4
DELAY_SECONDS_MAX: Final = 1.5
CUT_BYTES_MAX: Final = 400
STATE_BYTES: Final = 4_000_000
FLIP_BITS: Final = 8 * 65_536

PROVOKED: Final = 0.5
"""How often a point off the straight path is given what leads there; these and the following are probabilities."""
LATE: Final = 0.6
"""Of a run, to have faults in the handoff alone: most of the others keep it from getting there."""
KILLED: Final = 0.35
KILLED_AGAIN: Final = 0.4
FAULTY_RECOVERY: Final = 0.3
CANCELLED: Final = 0.2
PARTED: Final = 0.05
DOMAIN_KILLED: Final = 0.02
AT_A_POINT: Final = 0.6
"""Of a deed, to be done while the migration is held up at a point."""

SOON_SECONDS: Final = 0.15
"""What a migration of a small domain takes; most instants are drawn from it, some from later."""
LATER_SECONDS: Final = 1.0
HELD_UP_SECONDS: Final = 0.15
AGAIN_SECONDS: Final = 0.6
"""A manager that was killed has started and recovers by then, or not quite."""


def plan_random(count: int, seed: int, pattern: str = "*") -> Iterator[Plan]:
    """``count`` runs; the same for the same seed and pattern."""
    points = list(dict.fromkeys(fault.partition("=")[0] for fault in list_faults(pattern)))
    late = [point for point in points if point in LATE_POINTS] or points
    for number in range(1, count + 1):
        rng = random.Random(f"{seed}/{number}")
        chosen = late if rng.random() < LATE else points
        yield _Draft(rng, chosen).draw(f"random {seed}/{number}")


def _find_late_points(table: Table[Any]) -> Iterator[str]:
    """Of phase 4, and of giving up."""
    for row in table.rows:
        if table.phases[row.next_state] is not Phase.HANDOFF:
            continue
        for action in row.actions:
            yield from (f"{point_of(table.side, action)}.{when}" for when in ("before", "after"))
        yield f"{table.side}.receive-{row.event.lower().replace('_', '-')}.before"


LATE_POINTS: Final = frozenset(
    [*_find_late_points(SOURCE), *_find_late_points(TARGET)]
) & frozenset(POINTS)


@define(eq=False)
class _Draft:
    """A random run while it is drawn."""

    rng: random.Random
    points: list[str]
    faults: list[str] = field(factory=list, init=False)
    steps: list[Step] = field(factory=list, init=False)

    def draw(self, name: str) -> Plan:
        rng = self.rng
        for _ in range(rng.randint(1, FAULTS_MAX)):
            self._add_fault()
        if rng.random() < KILLED:
            self._add_kills()
        if rng.random() < CANCELLED:
            self._add_step(rng.choice((Deed.CANCEL_AT_SOURCE, Deed.CANCEL_AT_TARGET)))
        if rng.random() < PARTED:
            parted = self._add_step(Deed.PART)
            self._repeat(parted, Deed.JOIN, rng.uniform(0.1, 2.0))
        if rng.random() < DOMAIN_KILLED:
            self._add_step(rng.choice((Deed.KILL_DOMAIN_AT_SOURCE, Deed.KILL_DOMAIN_AT_TARGET)))
        recovery: list[str] = []
        if rng.random() < FAULTY_RECOVERY:
            recovery = [self._draw_fault() for _ in range(rng.randint(1, 2))]
        way = Way(
            faults=tuple(self.faults), steps=tuple(self.steps), recovery_faults=tuple(recovery)
        )
        return Plan(name=name, ways=(way,))

    def _add_fault(self) -> None:
        fault = self._draw_fault()
        if self.rng.random() < PROVOKED:
            self.faults += find_ways(fault)[0].faults
        self.faults.append(fault)

    def _draw_fault(self) -> str:
        point = self.rng.choice(self.points)
        kind = self.rng.choice(POINTS[point])
        match kind:
            case Kind.DELAY:
                return f"{point}={kind}:{self.rng.uniform(0.01, DELAY_SECONDS_MAX):.2f}"
            case Kind.CUT_AFTER:
                size_bytes = STATE_BYTES if point == STATE_POINT else CUT_BYTES_MAX
                return f"{point}={kind}:{self.rng.randrange(size_bytes)}"
            case Kind.FLIP:
                return f"{point}={kind}:{self.rng.randrange(FLIP_BITS)}"
        return f"{point}={kind}"

    def _add_kills(self) -> None:
        victims = (
            *(Deed.KILL_SOURCE, Deed.KILL_SOURCE),
            *(Deed.KILL_TARGET, Deed.KILL_TARGET),
            Deed.KILL_BOTH,
        )
        first = self._add_step(self.rng.choice(victims))
        if self.rng.random() < KILLED_AGAIN:
            deed = self.rng.choice((first.deed, self.rng.choice(victims)))
            self._repeat(first, deed, self.rng.uniform(0.05, AGAIN_SECONDS))

    def _add_step(self, deed: Deed) -> Step:
        if self.rng.random() < AT_A_POINT:
            held_up = f"{self.rng.choice(self.points)}=delay:{HELD_UP_SECONDS}"
            self.faults.append(held_up)
            seconds = self.rng.uniform(0.0, HELD_UP_SECONDS)
            step = Step(deed=deed, seconds=seconds, after=held_up)
        else:
            latest = SOON_SECONDS if self.rng.random() < 0.75 else LATER_SECONDS
            step = Step(deed=deed, seconds=self.rng.uniform(0.0, latest))
        self.steps.append(step)
        return step

    def _repeat(self, step: Step, deed: Deed, later_seconds: float) -> None:
        """Another one so much later; neither, if the first is not done."""
        self.steps.append(Step(deed=deed, seconds=step.seconds + later_seconds, after=step.after))
