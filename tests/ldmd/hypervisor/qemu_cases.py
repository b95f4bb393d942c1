"""QEMU as the conformance suite sees it: an x86 domain with the oracle in its ROM, and a SPARCstation
5 whose OpenBIOS runs the oracle in Forth."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Literal

import pytest
import trio

from ldmd.definition import DomainDefinition
from ldmd.hypervisor.oracle import OracleLayout
from ldmd.hypervisor.qemu import ORACLE_LAYOUTS, QemuHypervisor
from ldmd.hypervisor.qemu_catalogue import kvm_works
from ldmd.hypervisor.qemu_command import SPARC, X86, find_family
from tests.ldmd.hypervisor.cases import HypervisorCase


def missing_program(program: str, package: str) -> str:
    return "" if shutil.which(program) else f"{program} is not installed: apt-get install {package}"


def make_definition(
    machine: str, memory_bytes: int = 16 * 2**20, **rest: object
) -> DomainDefinition:
    document = {"firmware": "oracle", **rest}
    return DomainDefinition(
        name="oracle",
        uuid="00000000-0000-4000-8000-000000000001",
        hypervisor="qemu",
        machine=machine,
        memory_bytes=memory_bytes,
        **document,  # type: ignore[arg-type]
    )


@functools.cache
def missing_kvm() -> str:
    """A domain is started to find out, once."""
    if missing := missing_program(X86, "qemu-system-x86"):
        return missing
    return "" if trio.run(kvm_works, X86) else "KVM does not run a domain on this host"


def _x86_case(
    name: str, machine: str, accelerator: Literal["kvm", "tcg"], missing: Callable[[], str]
) -> HypervisorCase:
    family = find_family(machine)
    assert family is not None
    return HypervisorCase(
        name=name,
        make=lambda answer_seconds: QemuHypervisor(
            answer_seconds=answer_seconds, accelerator=accelerator
        ),
        definition=make_definition(machine),
        echo=make_definition(machine, firmware="echo"),
        prompt="1> ",
        answer="2> ",
        layout=ORACLE_LAYOUTS[family.ram],
        marks=(pytest.mark.qemu,),
        missing=missing,
    )


ORACLE_IN_FORTH = (
    "hex"
    " : visit ( page -- ) dup dup l! 8 + dup c@ 1+ swap c! ;"
    " : pass 800000 100000 do i visit 1000 +loop ;"
    ' : print ( n -- n+1 ) decimal ." oracle " dup (u.) type cr 1+ hex ;'
    " : oracle 0 begin pass print again ;"
    " oracle"
)
"""OpenBIOS maps the first MiBs of RAM at their own addresses; what it needs itself is elsewhere."""

SPARC_ORACLE = HypervisorCase(
    name="qemu-ss5",
    make=lambda answer_seconds: QemuHypervisor(answer_seconds=answer_seconds),
    definition=make_definition(
        "SS-5",
        32 * 2**20,  # with 16 MiB OpenBIOS has no room for a word list of one's own
        firmware="default",
        variables=(("boot-command", ORACLE_IN_FORTH),),
    ),
    echo=make_definition("SS-5", 32 * 2**20, firmware="default"),
    prompt="0 > ",
    answer="2 > ",
    line_bytes_max=60,  # OpenBIOS drops what is behind the 80th
    layout=OracleLayout(
        region="sun4m.ram",
        ranges=((2**20, 8 * 2**20),),
        word_bytes=4,
        byte_order="big",
        byte_offset=8,
    ),
    marks=(pytest.mark.sparc, pytest.mark.slow),
    missing=lambda: missing_program(SPARC, "qemu-system-sparc"),
    boot_seconds=90.0,
)

CASES = (
    _x86_case("qemu-pc", "pc", "tcg", lambda: missing_program(X86, "qemu-system-x86")),
    _x86_case("qemu-pc-kvm", "pc", "kvm", missing_kvm),
    SPARC_ORACLE,
)
