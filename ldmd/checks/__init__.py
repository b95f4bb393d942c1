"""Phase 1 as data: which check, for which states, hard or soft; one module per resource.

``docs/checks.md`` is made from this (``python -m tests.checks_page``). Some things are looked at before: they are ``GATES``.
"""

from typing import Final

from attrs import frozen

from ldmd.checks import (
    certificate,
    clock,
    console,
    cpu,
    domain,
    host,
    hypervisor,
    memory,
    network,
    optional,
    storage,
)
from ldmd.checks.rules import CheckRule, Subject, run

ALL: tuple[CheckRule, ...] = (
    *domain.RULES,
    *hypervisor.RULES,
    *cpu.RULES,
    *memory.RULES,
    *storage.RULES,
    *network.RULES,
    *console.RULES,
    *optional.RULES,
    *host.RULES,
    *certificate.RULES,
    *clock.RULES,
)


@frozen
class Gate:
    """What ends a migration before its checks are run. ``where`` is who looks, ``code`` is what the refusal has."""

    code: str
    where: str
    summary: str


GATES: Final = (
    Gate("no-common-version", "both", "the two managers have a version of the protocol in common"),
    Gate("busy", "source", "no other operation on the domain is under way"),
    Gate(
        "not-allowed", "source", "the configuration lets the peer receive domains (`may-receive`)"
    ),
    Gate("not-allowed", "target", "the configuration lets the peer send domains (`may-send`)"),
    Gate("definition", "target", "the definition is one that this manager reads"),
)

__all__ = ["ALL", "GATES", "CheckRule", "Gate", "Subject", "run"]
