"""docs/checks.md, made from the data that ships: ``python -m tests.checks_page > docs/checks.md``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ldmd.checks import ALL, GATES, CheckRule
from ldmd.checks.rules import ACTIVE, BOUND, INACTIVE
from protocol.phases import RunState

HEAD = """# The checks of phase 1

Made from `ldmd/checks/` by `python -m tests.checks_page`; a test compares.

The source sends the domain's definition and facts about itself, the target looks at itself once, and every check that
applies in the domain's state is run on that: all findings come back at once, each with its code, what it is about, a
sentence and what to do. `ldm migrate-domain -n` runs exactly these and changes nothing on either host.

- **hard**: ends the migration. **soft**: is reported, and the domain keeps what cannot be fulfilled. **–**: is not
  looked at.
- **-f**: `ldm migrate-domain -f` makes it soft; the finding says that it was forced.
- A check that cannot be evaluated, because a host did not say or could not find out, has failed.

When no finding is hard, the target reserves what it promised (name, MAC addresses, memory, virtual CPUs, console) until
the migration has ended, so two sources are not promised the same room."""

GATES_HEAD = """
## Before the checks

These end a migration without findings; what the operator sees is the code.

| code | who looks | passes when |
|---|---|---|"""


def weight(rule: CheckRule, states: frozenset[RunState]) -> str:
    if states <= rule.hard:
        return "hard, -f" if rule.forcible else "hard"
    return "soft" if states <= rule.soft else "–"


def page() -> Iterator[str]:
    yield HEAD
    for resource, rules in itertools.groupby(ALL, key=lambda rule: rule.resource):
        yield f"\n## {resource[0].upper()}{resource[1:]}\n"
        yield "| code | active | bound | inactive | passes when |\n|---|---|---|---|---|"
        for rule in rules:
            weights = " | ".join(weight(rule, states) for states in (ACTIVE, BOUND, INACTIVE))
            yield f"| `{rule.code}` | {weights} | {rule.summary} |"
    yield GATES_HEAD
    for gate in GATES:
        yield f"| `{gate.code}` | {gate.where} | {gate.summary} |"


def render() -> str:
    return "\n".join(page()) + "\n"


if __name__ == "__main__":
    print(render(), end="")
