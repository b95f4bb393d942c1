"""What is run: the shipped tables for each kind of domain, and every planted mistake."""

from __future__ import annotations

from attrs import frozen

from protocol.source import SOURCE
from protocol.target import TARGET
from tests.model.explore import Result, explore, render
from tests.model.plants import Plant
from tests.model.world import Kind, Model


def check_shipped(kind: Kind) -> Result:
    return explore(Model.of(kind, SOURCE, TARGET))


@frozen
class Finding:
    plant: Plant
    found: str
    """What is broken; "" when the mistake was not found."""
    depth: int
    states: int
    trace: str = ""
    """A shortest one, as a table."""


def check_plant(plant: Plant, known: frozenset[str]) -> Finding:
    """``known``: what the tables break without it; it does not count."""

    def is_it(what: str) -> bool:
        return what[:2] in plant.breaks.split() and what not in known

    result = explore(Model.of(plant.kind, *plant.plant(), plant.guards), until=is_it)
    violation = next((v for what, v in result.violations.items() if is_it(what)), None)
    if violation is None:
        return Finding(plant, "", result.depth, result.states)
    return Finding(
        plant, violation.what, len(violation.trace) - 1, result.states, render(violation)
    )


def report(kind: Kind, result: Result) -> str:
    lines = [
        f"{kind}: {result.states} states, {result.transitions} transitions, depth {result.depth},"
        f" {result.ends} good ends, {'closed' if result.closed else 'NOT CLOSED'},"
        f" {len(result.violations)} violations"
    ]
    for what, cost in sorted(result.accepted.items()):
        lines.append(f"  accepted: {what} ({len(cost.trace) - 1} steps)")
    for violation in result.violations.values():
        lines += ["", render(violation)]
    return "\n".join(lines)
