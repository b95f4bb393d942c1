"""What a check is: data. See the table in ``ldmd/checks/__init__.py``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from attrs import evolve, frozen

from ldmd.definition import DomainDefinition
from ldmd.hypervisor.driver import Capabilities, CpuModel
from ldmd.inventory import View
from protocol import limits
from protocol.codec import make_printable
from protocol.messages import Finding
from protocol.phases import RunState

VERSION_PARTS_MAX: Final = 8
VERSION_PART_END: Final = 2**32
"""A version stands in the sentence of a finding, which must fit into a message."""
FEATURES_MAX: Final = 512
LISTED_MAX: Final = 8
"""Names in one sentence; the others are counted."""

UPGRADE: Final = "upgrade the source's manager"
"""A check that cannot be evaluated is a failed check."""


@frozen(kw_only=True)
class Subject:
    """What is checked: a domain as the target would have it, what its source says, and the target's view."""

    definition: DomainDefinition
    """With the new name, if it gets one."""
    run_state: RunState
    facts: Mapping[str, object]
    """The peer's word; typed access only, see ``fact_*``."""
    view: View
    clock_ahead_ms: int | None = None
    """How far the source's clock is before the target's; None when that is not known."""

    @property
    def active(self) -> bool:
        return self.run_state in ACTIVE

    @property
    def capabilities(self) -> Capabilities | None:
        """Of the target's hypervisor of the domain's kind; None where that is a finding of its own."""
        return self.view.capabilities.get(self.definition.hypervisor)

    @property
    def knows_machine(self) -> bool:
        """Whether the target's hypervisor has the machine type; where it has not, that is a finding of its own."""
        capabilities = self.capabilities
        return capabilities is not None and self.definition.machine in capabilities.machines

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

    def fact_boolean(self, key: str) -> bool | None:
        value = self.facts.get(key)
        return value if isinstance(value, bool) else None

    def fact_number(self, key: str) -> int | None:
        value = self.facts.get(key)
        return value if type(value) is int else None

    def fact_names(self, key: str) -> tuple[str, ...] | None:
        """A list of texts as short as names; None when the source did not say or it is something else."""
        return _names(self.facts.get(key))

    def fact_size(self, key: str, name: str) -> int | None:
        """Entry ``name`` of the map ``key``, a number."""
        table = self.facts.get(key)
        value = table.get(name) if isinstance(table, Mapping) else None
        return value if type(value) is int else None

    def fact_cpu(self) -> CpuModel | None:
        """What the domain's CPU is at the source; None when the source did not say or it is something else."""
        table = self.facts.get("cpu")
        if not isinstance(table, Mapping):
            return None
        model, features = table.get("model"), _names(table.get("features"))
        if not isinstance(model, str) or features is None:
            return None
        shown = make_printable(model, 4 * limits.NAME_BYTES_MAX)
        return CpuModel(model=shown, features=frozenset(features))


def _names(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list | tuple) or len(value) > FEATURES_MAX:
        return None
    if not all(isinstance(v, str) for v in value):
        return None
    return tuple(make_printable(v, limits.NAME_BYTES_MAX) for v in value)


def enumerate_few(names: Collection[str]) -> str:
    """``a, b, c and 12 more``, in order."""
    some = sorted(names)[:LISTED_MAX]
    more = len(names) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")


@frozen
class Fault:
    subject: str
    sentence: str
    remedy: str


ACTIVE = frozenset({RunState.RUNNING, RunState.SUSPENDED})
BOUND = frozenset({RunState.BOUND})
INACTIVE = frozenset({RunState.INACTIVE})
EVERY = frozenset(RunState)

FORCED: Final = " (forced)"


@frozen(kw_only=True)
class CheckRule:
    """``hard`` and ``soft`` are the states in which it applies; a state in neither is not checked.

    ``forcible``: an operator may take the risk; its hard findings come back soft then, and say so. ``summary``: what passes.
    """

    code: str
    resource: str
    summary: str
    hard: frozenset[RunState] = frozenset()
    soft: frozenset[RunState] = frozenset()
    forcible: bool = False
    """-f turns a hard finding into a soft one."""
    find: Callable[[Subject], Iterable[Fault]]

    def apply(self, subject: Subject, *, force: bool = False) -> Iterable[Finding]:
        """What it finds in the domain's state; nothing where it does not apply."""
        hard = subject.run_state in self.hard
        if not hard and subject.run_state not in self.soft:
            return
        for fault in self.find(subject):
            finding = Finding(
                code=self.code,
                subject=fault.subject,
                sentence=fault.sentence,
                remedy=fault.remedy,
                hard=hard,
            )
            if hard and force and self.forcible:
                finding = evolve(finding, hard=False, sentence=finding.sentence + FORCED)
            yield finding


def run(
    rules: Iterable[CheckRule], subject: Subject, *, force: bool = False
) -> tuple[Finding, ...]:
    """Every rule that applies in the domain's state; all findings at once, as many as a message takes."""
    findings = [finding for rule in rules for finding in rule.apply(subject, force=force)]
    if len(findings) > limits.FINDINGS_MAX:
        findings.sort(key=lambda finding: not finding.hard)
    return tuple(findings[: limits.FINDINGS_MAX])
