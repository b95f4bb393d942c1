"""Every driver in ``*_cases.py`` goes through ``test_conformance.py``."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.ldmd.hypervisor.cases import HypervisorCase
from tests.ldmd.hypervisor.rig import Rig

CASE_MODULES = ("emulated_cases", "qemu_cases")


def _collect_cases() -> list[HypervisorCase]:
    names = [f"{__package__}.{name}" for name in CASE_MODULES]
    modules = [importlib.import_module(n) for n in names if importlib.util.find_spec(n)]
    return [case for module in modules for case in module.CASES]


CASES = _collect_cases()


@pytest.fixture(params=[pytest.param(case, marks=case.marks, id=case.name) for case in CASES])
def hypervisor_case(request: pytest.FixtureRequest) -> HypervisorCase:
    case: HypervisorCase = request.param
    if missing := case.missing():
        pytest.skip(f"{case.name}: {missing}")
    return case


@pytest.fixture
async def rig(hypervisor_case: HypervisorCase, tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig.from_case(hypervisor_case, tmp_path)
    yield made
    await made.aclose()
