"""Fault points: every place in the migration path where something can be made to go wrong, and what can.

They are derived from the tables that ship, so a new action or message has its points without being listed. Names are stable:

    SIDE.ACTION.before, SIDE.ACTION.after    around every action: ``source.record-granted.before``
    SIDE.receive-MESSAGE.before              a message has come, the table has not taken it yet

``docs/faults.md`` says what each kind of fault does.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from protocol import messages as m
from protocol.actions import GIVE_UP_POSSIBLE, Action, CloseLink, Operation, Record, Send
from protocol.events import EVENT_OF_MESSAGE, Event
from protocol.machine import Table
from protocol.source import SOURCE
from protocol.target import TARGET


class Kind(enum.StrEnum):
    CRASH = "crash"
    """The manager kills itself with SIGKILL."""
    CUT = "cut"
    """The link breaks without a word."""
    HANG = "hang"
    """The operation does not end by itself."""
    DELAY = "delay"
    """It begins, or counts as ended, so many seconds later."""
    FAIL = "fail"
    """It definitely fails: before, without having been done; after, although it was done."""
    UNKNOWN = "unknown"
    """Nobody can say whether it was done: before, it was not; after, it was."""
    CUT_AFTER = "cut-after"
    """The link breaks when so many bytes more have been written to it."""
    FLIP = "flip"
    """One bit of the next state chunk, counted from 0, arrives as its opposite."""


UNITS: Final[Mapping[Kind, str]] = {
    Kind.DELAY: "SECONDS",
    Kind.CUT_AFTER: "BYTES",
    Kind.FLIP: "BIT",
}
"""Kinds that are armed with a number: ``delay:2.5``."""

NUMBER_MAX: Final = 2**31

FAILS: Final[Mapping[Operation, Event]] = {
    Operation.CONNECT: Event.CONNECT_FAILED,
    Operation.RUN_CHECKS: Event.CHECKS_FOUND,
    Operation.CREATE_DOMAIN: Event.CREATE_FAILED,
    Operation.SUSPEND_DOMAIN: Event.SUSPEND_FAILED,
    Operation.SEND_STATE: Event.STATE_FAILED,
    Operation.INSTALL_STATE: Event.INSTALL_FAILED,
    Operation.RESUME_DOMAIN: Event.RESUME_FAILED,
    Operation.DESTROY_DOMAIN: Event.DESTROY_FAILED,
    Operation.END_DOMAIN: Event.DESTROY_FAILED,
}
FAILS_THOUGH_DONE: Final = frozenset(FAILS) - {
    Operation.CONNECT,  # a link that is made has not failed
    Operation.RUN_CHECKS,  # nor has a promise that is held
    Operation.RESUME_DOMAIN,  # "failed" says that no instruction ran
}
UNKNOWNS: Final[Mapping[Operation, Event]] = {
    Operation.RESUME_DOMAIN: Event.RESUME_UNKNOWN,
    Operation.PROBE_DOMAIN: Event.DOMAIN_UNKNOWN,
}


@frozen
class Fault:
    """``number`` is 0 for the kinds that have none."""

    point: str
    kind: Kind
    number: float = 0

    def __str__(self) -> str:
        return f"{self.point}={self.kind}" + (f":{self.number:.12g}" if self.kind in UNITS else "")


def name_of(action: Action) -> str:
    """``record-granted``, ``send-handoff``, ``resume-domain``, ``close-link``."""
    match action:
        case Record(kind):
            name = f"record-{kind}"
        case Send(message):
            name = f"send-{message.TYPE}"
        case CloseLink():
            name = "close-link"
        case Operation():
            name = action
    return name.lower().replace("_", "-")


def point_of(side: str, action: Action) -> str:
    """Without ``.before`` or ``.after``: ``source.record-granted``."""
    return f"{side}.{name_of(action)}"


def point_of_message(side: str, message: m.MigrationMessage | type[m.MigrationMessage]) -> str:
    return f"{side}.receive-{message.TYPE.lower().replace('_', '-')}.before"


def _kinds(action: Action, when: str) -> Iterator[Kind]:
    yield Kind.CRASH
    if not isinstance(action, CloseLink):
        yield Kind.CUT
    yield Kind.DELAY
    before = when == "before"
    match action:
        case Operation():
            yield Kind.HANG
            if action in (FAILS if before else FAILS_THOUGH_DONE):
                yield Kind.FAIL
            if action in UNKNOWNS:
                yield Kind.UNKNOWN
            if action is Operation.SEND_STATE and before:
                yield from (Kind.CUT_AFTER, Kind.FLIP)
        case Record(kind) if before or kind in GIVE_UP_POSSIBLE:
            yield Kind.FAIL
        case Send() if before:
            yield Kind.CUT_AFTER


def _actions(table: Table[Any]) -> Iterator[Action]:
    for row in table.rows:
        yield from row.actions
    for _, actions in table.recovery.values():
        yield from actions


_MESSAGES: Final = {
    **{event: message for message, event in EVENT_OF_MESSAGE.items()},
    Event.CHECKS_PASSED: m.Checked,
    Event.INSTALLED: m.Installed,
}


def _points() -> Iterator[tuple[str, tuple[Kind, ...]]]:
    for table in (SOURCE, TARGET):
        for action in dict.fromkeys(_actions(table)):
            for when in ("before", "after"):
                yield f"{point_of(table.side, action)}.{when}", tuple(_kinds(action, when))
        for event in dict.fromkeys(row.event for row in table.rows):
            if event in _MESSAGES:
                kinds = (Kind.CRASH, Kind.CUT, Kind.DELAY)
                yield point_of_message(table.side, _MESSAGES[event]), kinds


POINTS: Final[Mapping[str, tuple[Kind, ...]]] = dict(_points())
"""Point -> the kinds of fault that can be armed there."""


def parse(text: str) -> Fault:
    """``POINT=KIND`` or ``POINT=KIND:NUMBER``. Raises ValueError that says what is allowed."""
    point, _, rest = text.partition("=")
    word, colon, digits = rest.partition(":")
    if point not in POINTS:
        raise ValueError(f"{text!r}: no fault point {point!r}; `ldm fault list` prints them all")
    shown = ", ".join(k + (f":{UNITS[k]}" if k in UNITS else "") for k in POINTS[point])
    if word not in tuple(POINTS[point]):
        raise ValueError(f"{text!r}: at {point} there can be {shown}")
    kind = Kind(word)
    if kind not in UNITS:
        if colon:
            raise ValueError(f"{text!r}: {kind} takes no number")
        return Fault(point, kind)
    try:
        number = float(digits) if kind is Kind.DELAY else int(digits)
        if not 0 <= number <= NUMBER_MAX:
            raise ValueError(digits)
    except ValueError:
        raise ValueError(f"{text!r}: write {kind}:{UNITS[kind]}") from None
    return Fault(point, kind, number)
