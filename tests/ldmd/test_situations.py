"""What a person is told of a migration, in every state that it can be in."""

from __future__ import annotations

import pytest

from ldmd.journal.records import Side
from ldmd.situations import SITUATIONS, describe, describe_unproven, find_ways_on
from protocol.events import OVERRIDES
from protocol.machine import Decision
from protocol.source import SOURCE
from protocol.standing import Verdict
from protocol.target import TARGET

TABLES = {Side.SOURCE: SOURCE, Side.TARGET: TARGET}
STATES = [(side, state) for side, table in TABLES.items() for state in table.phases]


@pytest.mark.parametrize(("side", "state"), STATES, ids=str)
def test_every_state_has_its_situation(side: Side, state: object) -> None:
    found = describe(side, state, domain="ldg1", peer="host-b", id="0123456789abcdef")
    for words in (found.meaning, found.remedy):
        assert words
        assert "{" not in words
        assert words[0].islower() or words[0] == "`"
    table = TABLES[side]
    says_under_way = found.meaning.startswith("under way")
    assert says_under_way <= (table.decisions[state] is Decision.OPEN)
    if state in table.final:
        assert "ended" in found.meaning or "dry run" in found.meaning


@pytest.mark.parametrize("verdict", [None, Verdict.OLDER, Verdict.UNSURE], ids=str)
@pytest.mark.parametrize("side", list(Side), ids=str)
def test_one_that_waits_to_be_confirmed_says_what_to_do(
    side: Side, verdict: Verdict | None
) -> None:
    for decision in {TABLES[side].decisions[s] for s, _ in TABLES[side].recovery.values()}:
        words = {"domain": "ldg1", "peer": "host-b", "id": "0123456789abcdef"}
        found = describe_unproven(side, decision, verdict, **words)
        assert "{" not in found.meaning + found.remedy
        assert ("recover-migration" in found.remedy) == (verdict is not Verdict.OLDER)
        assert find_ways_on(side, decision)


def test_an_override_is_named_exactly_where_it_is_possible() -> None:
    for side, table in TABLES.items():
        for state, situation in SITUATIONS[side].items():
            possible = {row.event for row in table.rows if row.state == state} & OVERRIDES
            named = "recover-migration" in situation.remedy
            assert named == bool(possible), (side, state)
