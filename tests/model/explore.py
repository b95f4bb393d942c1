"""Breadth-first through a model: what is reachable, what is broken on the way, and whether all roads lead to an end."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

from tests.model.world import Model, Side, Step, World

STATES_MAX = 1_000_000
"""A table that makes journals grow for ever does not close; it is given up here, and said not to have closed."""


@frozen
class Violation:
    what: str
    trace: tuple[tuple[str, World], ...]


@define
class Result:
    states: int = 0
    transitions: int = 0
    depth: int = 0
    ends: int = 0
    closed: bool = False
    """Whether all of it was seen; not so when it was stopped before."""
    violations: dict[str, Violation] = field(factory=dict)
    """By what is broken; each with a shortest trace."""
    accepted: dict[str, Violation] = field(factory=dict)
    """What some step costs, and may; each with a shortest trace."""


@define
class _Graph:
    worlds: list[World] = field(factory=list)
    number: dict[World, int] = field(factory=dict)
    parent: array[int] = field(factory=lambda: array("i"))
    labels: list[str] = field(factory=list)
    edges_from: array[int] = field(factory=lambda: array("i"))
    edges_to: array[int] = field(factory=lambda: array("i"))

    def add(self, world: World, parent: int, label: str) -> bool:
        if world in self.number:
            return False
        self.number[world] = len(self.worlds)
        self.worlds.append(world)
        self.parent.append(parent)
        self.labels.append(label)
        return True

    def trace(self, at: int) -> list[tuple[str, World]]:
        found = []
        while at >= 0:
            found.append((self.labels[at], self.worlds[at]))
            at = self.parent[at]
        return found[::-1]


def explore(model: Model, *, until: Callable[[str], bool] = lambda _: False) -> Result:
    """``until``: stop at the first violation that it is true of."""
    gc.disable()  # millions of tuples, no cycles
    try:
        return _explore(model, until)
    finally:
        gc.enable()


def _explore(model: Model, until: Callable[[str], bool]) -> Result:
    result, graph = Result(), _Graph()
    graph.add(model.start, -1, "start")
    level_end, at = 1, 0
    while at < len(graph.worlds) < STATES_MAX:
        if at == level_end:
            result.depth += 1
            level_end = len(graph.worlds)
        for step in model.steps(graph.worlds[at]):
            result.transitions += 1
            _note(result, graph, at, step)
            if any(map(until, step.broken)):
                result.states = len(graph.worlds)
                return result
            if not any(what[:2] in _FATAL for what in step.broken):
                graph.add(step.world, at, step.label)
                if not step.fault:
                    graph.edges_from.append(at)
                    graph.edges_to.append(graph.number[step.world])
        at += 1
    result.closed = at == len(graph.worlds)
    result.states = len(graph.worlds)
    if result.closed and not any(what[:2] in _FATAL for what in result.violations):
        _look_for_ends(model, result, graph)
    return result


_FATAL = ("I1", "I2", "I3")
"""What comes behind one of these is not looked at: it is wrong already (so that I4 cannot be said then)."""


def _note(result: Result, graph: _Graph, at: int, step: Step) -> None:
    for found, words in ((result.violations, step.broken), (result.accepted, step.accepted)):
        for what in words:
            if what not in found:
                trace = (*graph.trace(at), (step.label, step.world))
                found[what] = Violation(what, trace)


def _look_for_ends(model: Model, result: Result, graph: _Graph) -> None:
    """I4: an end can be reached from everywhere without a fault; with fairness, it is.

    (A finite graph in which an end can be reached from every state has no other place where a fair run could stay.)
    """
    count = len(graph.worlds)
    starts = array("i", bytes(4 * (count + 1)))
    for to in graph.edges_to:
        starts[to + 1] += 1
    for number in range(count):
        starts[number + 1] += starts[number]
    place = array("i", starts)
    before = array("i", bytes(4 * len(graph.edges_to)))
    for origin, to in zip(graph.edges_from, graph.edges_to, strict=True):
        before[place[to]] = origin
        place[to] += 1
    reaches = bytearray(count)
    todo = [n for n, world in enumerate(graph.worlds) if model.is_good_end(world)]
    result.ends = len(todo)
    for number in todo:
        reaches[number] = 1
    while todo:
        number = todo.pop()
        for origin in before[starts[number] : starts[number + 1]]:
            if not reaches[origin]:
                reaches[origin] = 1
                todo.append(origin)
    stuck = reaches.find(0)
    if stuck >= 0:
        what = "I4: no good end can be reached"
        result.violations[what] = Violation(what, tuple(graph.trace(stuck)))


# ---- for people -----------------------------------------------------------------------------------------


def render(violation: Violation) -> str:
    """The trace as a table: what happened, and how both sides stood after it."""
    rows: list[Sequence[str]] = [("", "what", "source", "target", "copies", "journals", "links")]
    for number, (label, w) in enumerate(violation.trace):
        links = " ".join(
            f"[{'|'.join(link.to_target)}>{'x' if link.over else '='}<{'|'.join(link.to_source)}]"
            for link in w.links
        )
        journals = f"{_records(w.source)} / {_records(w.target)}"
        copies = f"{w.source_copy} / {w.target_copy}"
        rows.append((str(number), label, w.source.state, w.target.state, copies, journals, links))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(n) for c, n in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([violation.what, *(line.rstrip() for line in lines)])


def _records(side: Side) -> str:
    return "+".join(side.journal) or "-"
