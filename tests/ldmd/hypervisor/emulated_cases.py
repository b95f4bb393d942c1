from __future__ import annotations

import attrs

from ldmd.definition import DomainDefinition
from ldmd.hypervisor.emulated import ORACLE_LAYOUT, EmulatedHypervisor
from tests.ldmd.hypervisor.cases import HypervisorCase

ORACLE = DomainDefinition(
    name="oracle",
    uuid="00000000-0000-4000-8000-000000000000",
    hypervisor="emulated",
    machine="riscv64-virt",
    firmware="oracle",
    memory_bytes=2 * 1024 * 1024,
)

EMULATED = HypervisorCase(
    name="emulated",
    make=lambda answer_seconds: EmulatedHypervisor(answer_seconds=answer_seconds),
    definition=ORACLE,
    echo=attrs.evolve(ORACLE, firmware="echo"),
    prompt="1> ",
    answer="2> ",
    layout=ORACLE_LAYOUT,
)

CASES = (EMULATED,)
