"""What a check is: data. See the table in ``ldmd/checks/__init__.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from attrs import frozen

from ldmd.definition import DomainDefinition
from ldmd.inventory import View
from protocol import limits
from protocol.codec import make_printable
from protocol.messages import Finding
from protocol.phases import RunState

VERSION_PARTS_MAX: Final = 8
VERSION_PART_END: Final = 2**32
"""A version stands in the sentence of a finding, which must fit into a message."""


@frozen(kw_only=True)
class Subject:
    """What is checked: a domain as the target would have it, what its source says, and the target's view."""

    definition: DomainDefinition
    """With the new name, if it gets one."""
    run_state: RunState
    facts: Mapping[str, object]
    """The peer's word; typed access only, see ``fact_*``."""
    view: View

    @property
    def active(self) -> bool:
        return self.run_state in ACTIVE

    def fact_version(self, key: str) -> tuple[int, ...] | None:
        """A list of few numbers, or None when the source did not say or it is something else."""
        value = self.facts.get(key)
        if not isinstance(value, list | tuple) or not 0 < len(value) <= VERSION_PARTS_MAX:
            return None
        if not all(type(v) is int and 0 <= v < VERSION_PART_END for v in value):
            return None
        return tuple(value)

    def fact_text(self, key: str) -> str | None:
        """A text as short as a name; what is longer is cut, and equals no name."""
        value = self.facts.get(key)
        if not isinstance(value, str):
            return None
        return make_printable(value, 2 * limits.NAME_BYTES_MAX)

    def fact_size(self, key: str, name: str) -> int | None:
        """Entry ``name`` of the map ``key``, a number of bytes."""
        table = self.facts.get(key)
        value = table.get(name) if isinstance(table, Mapping) else None
        return value if type(value) is int else None


@frozen
class Fault:
    subject: str
    sentence: str
    remedy: str


ACTIVE = frozenset({RunState.RUNNING, RunState.SUSPENDED})
BOUND = frozenset({RunState.BOUND})
INACTIVE = frozenset({RunState.INACTIVE})
EVERY = frozenset(RunState)


@frozen(kw_only=True)
class CheckRule:
    """``hard`` and ``soft`` are the states in which it applies; a state in neither is not checked."""

    code: str
    resource: str
    hard: frozenset[RunState]
    soft: frozenset[RunState] = frozenset()
    forcible: bool = False
    """-f turns a hard finding into a soft one."""
    find: Callable[[Subject], Iterable[Fault]]


def run(rules: Iterable[CheckRule], subject: Subject) -> tuple[Finding, ...]:
    """Every rule that applies in the domain's state; all findings at once, as many as a message takes."""
    findings = [
        Finding(
            code=rule.code,
            subject=fault.subject,
            sentence=fault.sentence,
            remedy=fault.remedy,
            hard=subject.run_state in rule.hard,
        )
        for rule in rules
        if subject.run_state in rule.hard | rule.soft
        for fault in rule.find(subject)
    ]
    if len(findings) > limits.FINDINGS_MAX:
        findings.sort(key=lambda finding: not finding.hard)
    return tuple(findings[: limits.FINDINGS_MAX])
