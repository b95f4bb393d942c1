"""The shipped tables keep the promise in every reachable state; ``python -m tests.model`` is the whole of it."""

from __future__ import annotations

import pytest

from tests.model.check import check_plant, check_shipped, report
from tests.model.plants import PLANTS, Plant
from tests.model.world import ACCEPTED, Kind


@pytest.mark.parametrize("kind", [Kind.COLD, Kind.RUNNING], ids=str)
def test_the_promise_is_kept(kind):
    result = check_shipped(kind)
    assert not result.violations, report(kind, result)
    assert result.closed
    assert result.ends
    assert set(result.accepted) == (ACCEPTED if kind is Kind.RUNNING else set())


@pytest.mark.parametrize(
    "plant", [p for p in PLANTS if p.kind is Kind.COLD], ids=lambda plant: plant.name
)
def test_a_planted_mistake_is_found(plant: Plant):
    assert check_plant(plant, frozenset()).found
