"""docs/states.md, made from the tables that ship: ``python -m tests.states_page > docs/states.md``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocol.actions import Action, CloseLink, Operation, Record, Send
from protocol.machine import BOTH, Row, Table
from protocol.source import SOURCE
from protocol.target import TARGET

HEAD = """# The states of a migration

Made from `protocol/source.py` and `protocol/target.py` by `python -m tests.states_page`; a test compares. Actions are
carried out in the given order; **bold** is a record, on disk before what stands behind it. A row without actions ignores
the event on purpose.
"""


def show(action: Action) -> str:
    match action:
        case Record(kind):
            return f"**{kind}**"
        case Send(message):
            return f"send {message.TYPE}"
        case CloseLink():
            return "close the link"
        case Operation():
            return action.lower().replace("_", " ")


def row(r: Row[Any]) -> str:
    event = r.event if r.modes == BOTH else f"{r.event} ({', '.join(sorted(r.modes))})"
    return f"| {r.state} | {event} | {r.next_state} | {', '.join(map(show, r.actions))} |"


def page(table: Table[Any]) -> Iterator[str]:
    yield f"\n## The {table.side}\n\n| state | event | then | actions |\n|---|---|---|---|"
    yield from map(row, table.rows)
    yield "\n| last record | after a restart | first |\n|---|---|---|"
    for kind, (state, actions) in table.recovery.items():
        yield f"| **{kind}** | {state} | {', '.join(map(show, actions))} |"
    yield "\n| state | phase | whose the domain is | waits at most |\n|---|---|---|---|"
    for state in type(table.initial):
        deadline = table.deadlines.get(state)
        end = "the end" if state in table.final else (f"`{deadline}`" if deadline else "")
        yield f"| {state} | {table.phases[state]} | {table.decisions[state]} | {end} |"


def render() -> str:
    return "\n".join([HEAD, *page(SOURCE), *page(TARGET)]) + "\n"


if __name__ == "__main__":
    print(render(), end="")
