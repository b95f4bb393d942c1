"""The few lines that run any table."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from attrs import field, frozen

from protocol.actions import Action, RecordKind
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.events import PEER_EVENTS, Event
from protocol.phases import Mode, Phase

S = TypeVar("S", bound=enum.StrEnum)

BOTH: frozenset[Mode] = frozenset(Mode)


@frozen
class Row(Generic[S]):
    """In ``state``, at ``event``: go to ``next_state`` and do ``actions`` in order. ``()`` is to ignore it, on purpose."""

    state: S
    event: Event
    next_state: S
    actions: tuple[Action, ...] = ()
    modes: frozenset[Mode] = BOTH


class Deadline(enum.StrEnum):
    """Names of the waits; the daemon's configuration says how long each is."""

    CHECK = "check"
    PREPARE = "prepare"
    """The target's long work: populating RAM, verifying it."""
    STALL = "stall"
    """Starts anew with every piece of state that moves."""
    HANDOFF = "handoff"
    HOLD = "hold"
    RETRY = "retry"
    """Back-off with jitter: longer each time in a row."""


class Decision(enum.StrEnum):
    """Who owns the domain, as far as this side knows."""

    OPEN = "open"
    IN_DOUBT = "in doubt"
    """Past the point of no return, and the outcome is not known here yet."""
    SOURCE = "source"
    TARGET = "target"
    LOST = "lost"
    """The target's: it counts as having run there and ended."""


V = TypeVar("V")


def by_state(states: type[S], groups: Mapping[V, Iterable[S]], otherwise: V) -> dict[S, V]:
    """Each state -> the group that names it, or ``otherwise``."""
    found = {state: value for value, members in groups.items() for state in members}
    return {state: found.get(state, otherwise) for state in states}


@frozen(kw_only=True)
class Table(Generic[S]):
    """One side of a migration: rows, and what is true of each state. Built once; checked when built."""

    side: str
    rows: tuple[Row[S], ...]
    initial: S
    final: frozenset[S]
    deadlines: Mapping[S, Deadline]
    phases: Mapping[S, Phase]
    decisions: Mapping[S, Decision]
    recovery: Mapping[RecordKind, tuple[S, tuple[Action, ...]]]
    """After a restart, by the last record: the state, and what to do first."""
    settled: Mapping[RecordKind, S]
    """After a restart, where the last record is SETTLED: the state, by the record before it."""
    index: Mapping[tuple[S, Event, Mode], Row[S]] = field(init=False)

    @index.default
    def _build_index(self) -> dict[tuple[S, Event, Mode], Row[S]]:
        index: dict[tuple[S, Event, Mode], Row[S]] = {}
        for row in self.rows:
            for mode in row.modes:
                key = (row.state, row.event, mode)
                if key in index:
                    raise LocalProtocolError(f"{self.side}: two rows for {key}")
                index[key] = row
        return index


class Machine(Generic[S]):
    """One migration's place in its table. Touches nothing but its own ``state``."""

    def __init__(self, table: Table[S], mode: Mode, state: S | None = None) -> None:
        self.table = table
        self.mode = mode
        self.state: S = table.initial if state is None else state

    def step(self, event: Event) -> tuple[Action, ...]:
        """Go on by one event; what to do, in order.

        Raises RemoteProtocolError when the peer's message has no row here, LocalProtocolError when our own event has
        none.
        """
        row = self.table.index.get((self.state, event, self.mode))
        if row is None:
            if event in PEER_EVENTS:
                raise RemoteProtocolError(
                    "unexpected-message", f"{event} is not allowed while {self.state}"
                )
            raise LocalProtocolError(
                f"{self.table.side}: no row for {event} in {self.state} ({self.mode})"
            )
        self.state = row.next_state
        return row.actions

    @property
    def finished(self) -> bool:
        return self.state in self.table.final

    @property
    def phase(self) -> Phase:
        return self.table.phases[self.state]

    @property
    def decision(self) -> Decision:
        return self.table.decisions[self.state]

    @property
    def deadline(self) -> Deadline | None:
        return self.table.deadlines.get(self.state)


def restore(
    table: Table[S], mode: Mode, kinds: Iterable[RecordKind]
) -> tuple[Machine[S], tuple[Action, ...]]:
    """The machine after a restart, and what recovery has to do first. ``kinds``: the records, oldest first.

    A record that stands twice in a row counts once, SETTLED too: a write can be reported as failed and be on disk, and
    then it was tried again. Raises LocalProtocolError for records that this side never writes.
    """
    history = list(kinds)
    decisive = [kind for kind in history if kind is not RecordKind.SETTLED]
    last = decisive[-1] if decisive else RecordKind.SETTLED
    if history[-1] is RecordKind.SETTLED and last in table.settled:
        return Machine(table, mode, table.settled[last]), ()
    if history[-1] is not RecordKind.SETTLED and last in table.recovery:
        state, actions = table.recovery[last]
        return Machine(table, mode, state), actions
    shown = ", ".join(history)
    raise LocalProtocolError(f"{table.side}: no way to go on from the records {shown}")
