"""The clocks of both hosts: nothing depends on them but those who compare two journals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ldmd.checks.rules import EVERY, UPGRADE, CheckRule, Fault, Subject

APART_MS_MAX: Final = 60_000


def find_apart(s: Subject) -> Iterable[Fault]:
    ahead_ms = s.clock_ahead_ms
    if ahead_ms is None:
        yield Fault(s.view.host, "the source did not say what time it has", UPGRADE)
    elif abs(ahead_ms) > APART_MS_MAX:
        where = "ahead of" if ahead_ms > 0 else "behind"
        yield Fault(
            s.view.host,
            f"the source's clock is {abs(ahead_ms) / 1000:.0f} s {where} that of {s.view.host}",
            "let both hosts take the time from the same source (NTP)",
        )


RULES = (
    CheckRule(
        code="clocks",
        resource="time",
        summary="the clocks of both hosts are within a minute of each other",
        soft=EVERY,
        find=find_apart,
    ),
)
