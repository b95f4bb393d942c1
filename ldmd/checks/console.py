"""The console service."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, CheckRule, Fault, Subject


def find_no_console(s: Subject) -> Iterable[Fault]:
    if s.view.consoles_free <= 0:
        yield Fault(
            s.view.host,
            f"the console service of {s.view.host} has as many consoles as it may have",
            f"raise [resources] consoles-max on {s.view.host}",
        )


RULES = (
    CheckRule(
        code="console",
        resource="console",
        summary="the target's console service has room for one more",
        hard=ACTIVE | BOUND,
        find=find_no_console,
    ),
)
