"""What one side's records say of the other side's journal."""

from __future__ import annotations

import pytest

from protocol.events import OVERRIDES, Event
from protocol.overrides import may_override
from protocol.phases import Holding, Role
from protocol.standing import PRESUPPOSED, Verdict, judge

SOURCE_RAN = ("PREPARING", "GRANTED", "COMPLETED", "SETTLED")
TARGET_RAN = ("PREPARED", "COMMITTED", "RUNNING", "SETTLED")
KEPT = ("PREPARING", "GRANTED", "ABORTED", "SETTLED")
DENIED = ("PREPARED", "COMMITTED", "ABORTED", "SETTLED")


def test_latest_journals_stand() -> None:
    for source, target in ((SOURCE_RAN, TARGET_RAN), (KEPT, DENIED)):
        assert judge(Role.TARGET, target, source)[0] is Verdict.STANDS
        assert judge(Role.SOURCE, source, target)[0] is Verdict.STANDS
    assert judge(Role.TARGET, (), ("PREPARING",))[0] is Verdict.STANDS
    assert judge(Role.TARGET, ("A_LATER_KIND",), ())[0] is Verdict.STANDS


@pytest.mark.parametrize(
    ("role", "theirs", "ours", "kind"),
    [
        (Role.TARGET, TARGET_RAN, (), "PREPARED"),
        (Role.TARGET, TARGET_RAN, SOURCE_RAN[:1], "COMMITTED"),
        (Role.SOURCE, SOURCE_RAN[:2], (), "GRANTED"),
        (Role.SOURCE, SOURCE_RAN, TARGET_RAN[:1], "COMPLETED"),
        (Role.SOURCE, KEPT, DENIED[:2], "ABORTED"),
    ],
    ids=str,
)
def test_what_lacks_a_reason_is_older(
    role: Role, theirs: tuple[str, ...], ours: tuple[str, ...], kind: str
) -> None:
    assert judge(role, theirs, ours) == (Verdict.OLDER, kind)


def test_an_undecided_target_of_a_source_in_doubt_cannot_know() -> None:
    assert judge(Role.SOURCE, SOURCE_RAN[:2], TARGET_RAN[:1]) == (Verdict.UNSURE, "GRANTED")
    assert judge(Role.SOURCE, SOURCE_RAN[:2], TARGET_RAN[:2]) == (Verdict.UNSURE, "GRANTED")
    assert judge(Role.SOURCE, SOURCE_RAN[:2], TARGET_RAN[:3])[0] is Verdict.STANDS
    assert judge(Role.SOURCE, SOURCE_RAN[:1], TARGET_RAN[:1])[0] is Verdict.STANDS
    assert judge(Role.SOURCE, KEPT, TARGET_RAN[:1])[0] is Verdict.STANDS


def test_every_rule_is_about_the_other_side() -> None:
    for (role, kind), needed in PRESUPPOSED.items():
        assert judge(role, (kind,), ())[0] is Verdict.OLDER
        for one in needed:
            assert judge(role, (kind,), (one,))[0] is not Verdict.OLDER


def test_no_override_makes_two_or_none() -> None:
    allowed = {(e, h) for e in OVERRIDES for h in Holding if may_override(e, h)}
    assert allowed == {
        (Event.KEEP_ASKED, Holding.NOTHING),
        (Event.GIVE_UP_ASKED, Holding.OWNED),
    }
