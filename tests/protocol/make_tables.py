"""The tables of ``docs/protocol.md``, from the code: ``python -m tests.protocol.make_tables`` writes them into it."""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from protocol import limits
from protocol import messages as m
from protocol.codec import RULES, Items, field_types
from protocol.console import SAYS
from protocol.session import ROWS

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"
BOTH, SOURCE, TARGET = "both", "source → target", "target → source"
OPENER, KEEPER = "opener → keeper", "keeper → opener"
DIRECTIONS: dict[type[m.Message], str] = {
    m.Hello: BOTH,
    m.Ping: BOTH,
    m.Pong: BOTH,
    m.Error: BOTH,
    m.Ask: BOTH,
    m.Standing: BOTH,
    m.Check: SOURCE,
    m.Checked: TARGET,
    m.Prepare: SOURCE,
    m.PrepareProgress: TARGET,
    m.Prepared: TARGET,
    m.Digest: SOURCE,
    m.Installed: TARGET,
    m.Handoff: SOURCE,
    m.HandoffDone: TARGET,
    m.HandoffLost: TARGET,
    m.HandoffRefused: TARGET,
    m.Released: SOURCE,
    m.Settled: TARGET,
    m.Refused: TARGET,
    m.Cancel: SOURCE,
    m.ConsoleOpen: OPENER,
    m.ConsoleOpened: KEEPER,
    m.ConsoleOutput: KEEPER,
    m.ConsoleInput: OPENER,
    m.ConsoleTaken: BOTH,
    m.ConsoleWriter: KEEPER,
    m.ConsoleClosed: KEEPER,
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line).replace("\n", " ") + " |" for line in lines)


def describe(name: str, kind: Any) -> str:
    rule = RULES.get(name)
    if kind is bool:
        return "boolean"
    if kind == m.Document:
        return "document"
    if isinstance(kind, types.UnionType):
        return f"nil, or {describe(name, typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is tuple:
        assert isinstance(rule, Items)
        item = typing.get_args(kind)[0]
        what = f"array of *{item.__name__}*" if attrs.has(item) else "array"
        return f"{what}, {rule.describe()}"
    if rule is not None:
        return rule.describe()
    return "string, one of " + ", ".join(f"`{value}`" for value in kind)


def fields(cls: type) -> list[tuple[str, str, str, str]]:
    rows = [("", "", f"`{name}`", describe(name, kind)) for name, kind in field_types(cls).items()]
    return rows or [("", "", "", "")]


def messages_table() -> str:
    rows = []
    for cls in m.MESSAGES:
        first, *rest = fields(cls)
        rows += [(f"`{cls.TYPE}`", DIRECTIONS[cls], *first[2:]), *rest]
    for cls in (m.Finding, m.Region, m.Trail):
        first, *rest = fields(cls)
        rows += [(f"*{cls.__name__}*", "", *first[2:]), *rest]
    return table(("message", "from", "field", "type and bounds"), rows)


def limits_table() -> str:
    body = ast.parse(inspect.getsource(limits)).body
    rows = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        reason = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            reason = " ".join(str(after.value.value).split())
        if node.target.id not in ("KIB", "MIB", "GIB"):
            rows.append((f"`{node.target.id}`", f"{getattr(limits, node.target.id):g}", reason))
    rows = [
        (name, value if "e" not in value else str(getattr(limits, name.strip("`"))), reason)
        for name, value, reason in rows
    ]
    return table(("limit", "value", "reason"), rows)


def errors_table() -> str:
    return table(("code", "meaning"), ((f"`{code}`", why) for code, why in m.ERROR_CODES.items()))


def session_table() -> str:
    rows = ((row.state, row.event, row.next_state, ", ".join(row.actions) or "–") for row in ROWS)
    return table(("state", "event", "next state", "actions"), rows)


def console_table() -> str:
    rows = [
        (side, row.state, f"`{row.message.TYPE}`", row.next_state)
        for side, rows in SAYS.items()
        for row in rows
    ]
    return table(("who", "while", "may say", "then"), rows)


TABLES = {
    "console": console_table,
    "messages": messages_table,
    "limits": limits_table,
    "errors": errors_table,
    "session": session_table,
}
PLACE = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def render(text: str) -> str:
    """The document with every table as the code has it."""
    return PLACE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[4]}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text()))
