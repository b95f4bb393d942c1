"""What the conformance suite needs to know of a hypervisor; one case for each, in
``*_cases.py``."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import attrs
import pytest
from attrs import field, frozen

from ldmd.definition import DomainDefinition
from ldmd.hypervisor.driver import Hypervisor
from ldmd.hypervisor.oracle import OracleLayout


@frozen(kw_only=True)
class HypervisorCase:
    """``make(answer_seconds)`` gives a hypervisor that waits so long for a domain's answer.

    ``definition`` runs the oracle, whose memory follows ``layout``. ``missing()`` says what to
    install when this host lacks it, else it is empty. ``boot_seconds``: until the first line on the
    console, on a slow host. ``echo`` runs what echoes a line of ``line_bytes_max`` bytes that is typed on its console
    behind ``prompt``, and when it was "1 2" and ended, prints ``answer``.
    """

    name: str
    make: Callable[[float], Hypervisor]
    definition: DomainDefinition
    layout: OracleLayout
    echo: DomainDefinition
    prompt: str
    answer: str
    line_bytes_max: int = 3000
    marks: tuple[pytest.MarkDecorator, ...] = ()
    missing: Callable[[], str] = lambda: ""
    boot_seconds: float = 30.0
    answer_seconds: float = field(default=10.0)

    def define(self) -> DomainDefinition:
        """The definition with a uuid that no domain has."""
        return attrs.evolve(self.definition, uuid=str(uuid.uuid4()))

    def define_echo(self, known: str = "") -> DomainDefinition:
        return attrs.evolve(self.echo, uuid=known or str(uuid.uuid4()))
