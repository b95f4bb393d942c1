"""Fault points: complete, named for ever, and harmless unless they are allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ldmd import fault_points
from ldmd.errors import BadRequest, NotAllowed
from ldmd.fault_points import FAILS, POINTS, UNITS, UNKNOWNS, Kind, parse
from ldmd.faults import NOTHING, Faults
from protocol import messages as m
from protocol.actions import OUTCOMES, Action, Operation, Record, Send
from protocol.events import Event
from protocol.machine import Row
from protocol.source import SOURCE, SourceState
from protocol.target import TARGET
from tests.managers import make_fleet

REPOSITORY = Path(__file__).parents[2]
TABLES = (SOURCE, TARGET)


def test_every_action_and_every_message_has_its_points() -> None:
    for table in TABLES:
        actions: set[Action] = {action for row in table.rows for action in row.actions}
        for action in actions:
            for when in ("before", "after"):
                assert POINTS[f"{fault_points.point_of(table.side, action)}.{when}"]
        events = {row.event for row in table.rows}
        for message in m.MESSAGES:
            if issubclass(message, m.MigrationMessage):
                heard = Event[message.TYPE] in events if message.TYPE in Event.__members__ else True
                known = fault_points.point_of_message(table.side, message) in POINTS
                assert known == heard or message is m.Checked, (table.side, message)


def test_an_action_that_is_new_has_points_at_once() -> None:
    """Nothing is listed by hand: a row with another action brings its points."""
    row = Row(SourceState.NEW, Event.SUPERSEDED, SourceState.NEW, (Send(m.Settled),))
    table = attrs.evolve(SOURCE, rows=(*SOURCE.rows, row))
    assert Send(m.Settled) in set(fault_points._actions(table))
    assert Send(m.Settled) not in set(fault_points._actions(SOURCE))


def test_every_operation_can_fail_or_be_unknown_as_its_outcomes_say() -> None:
    assert set(FAILS) | set(UNKNOWNS) == set(Operation)
    for table in (FAILS, UNKNOWNS):
        for operation, event in table.items():
            assert event in OUTCOMES[operation]


def test_what_may_be_armed_where() -> None:
    for point, kinds in POINTS.items():
        assert kinds[0] is Kind.CRASH
        if ".send-" in point and "state" not in point:
            assert (Kind.CUT_AFTER in kinds) == point.endswith("before")
    # a resume that failed ran no instruction; a link that is made has not failed
    for point in (
        "target.resume-domain.after",
        "source.resume-domain.after",
        "source.connect.after",
    ):
        assert Kind.FAIL not in POINTS[point]
    # what says that something is so already is written in the end
    assert Kind.FAIL not in POINTS["source.record-completed.after"]
    assert Kind.FAIL in POINTS["source.record-granted.after"]


@given(st.data())
def test_a_fault_is_read_as_it_is_written(data: st.DataObject) -> None:
    point = data.draw(st.sampled_from(sorted(POINTS)))
    kind = data.draw(st.sampled_from(POINTS[point]))
    number = f":{data.draw(st.integers(0, 10**6))}" if kind in UNITS else ""
    text = f"{point}={kind}{number}"
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no fault point"),
        ("source.nothing.before=crash", "`ldm fault list` prints them all"),
        ("source.send-check.before", "there can be crash, cut, delay:SECONDS, cut-after:BYTES"),
        ("source.send-check.before=explode", "there can be crash"),
        ("source.send-check.before=hang", "there can be crash"),
        ("source.send-check.before=crash:1", "crash takes no number"),
        ("source.send-check.before=delay", "write delay:SECONDS"),
        ("source.send-check.before=delay:nan", "write delay:SECONDS"),
        ("source.send-check.before=delay:-1", "write delay:SECONDS"),
        ("source.send-check.before=cut-after:1.5", "write cut-after:BYTES"),
        ("source.send-state.before=flip:x", "write flip:BIT"),
    ],
)
def test_what_is_no_fault_says_what_there_is(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        parse(text)


async def test_a_fault_fires_once_and_in_the_order_of_arming() -> None:
    faults = Faults(allowed=True, armed=["target.probe-domain.before=unknown"])
    faults.arm("target.probe-domain.before=delay:0")
    assert (await faults.reach("target.probe-domain.after")) is NOTHING
    assert [(await faults.reach("target.probe-domain.before")).kind for _ in range(2)] == [
        Kind.UNKNOWN,
        Kind.DELAY,
    ]
    assert (await faults.reach("target.probe-domain.before")) is NOTHING
    assert [str(f) for f in faults.fired] == [
        "target.probe-domain.before=unknown",
        "target.probe-domain.before=delay:0",
    ]
    faults.arm("target.probe-domain.before=hang")
    with trio.move_on_after(0.01) as scope:
        await faults.reach("target.probe-domain.before")
    assert scope.cancelled_caught


def test_nothing_is_armed_where_it_is_not_allowed() -> None:
    faults = Faults(allowed=False, armed=["target.probe-domain.before=unknown"])
    assert faults.armed == []
    with pytest.raises(NotAllowed, match="may not be armed"):
        faults.arm("target.probe-domain.before=unknown")
    with pytest.raises(BadRequest, match="no fault point"):
        Faults(allowed=True).arm("nothing=crash")


async def test_the_command_line(tmp_path: Path) -> None:
    async with make_fleet(
        tmp_path, "allows", "refuses", extra={"allows": "[faults]\nallowed = true\n"}
    ) as fleet:

        async def ldm(host: str, *words: str) -> subprocess.CompletedProcess[bytes]:
            python = [sys.executable, "-c", "from ldmd.cli import main; main()"]
            command = [*python, "--socket", str(fleet[host].socket), *words]
            return await trio.run_process(
                command, capture_stdout=True, capture_stderr=True, check=False
            )

        listed = (await ldm("refuses", "fault", "list")).stdout.decode().splitlines()
        assert listed == list(POINTS)
        armed = await ldm("allows", "fault", "arm", "source.send-check.before=delay:2.50")
        assert armed.stdout.decode() == "armed source.send-check.before=delay:2.5\n"
        long = (await ldm("allows", "fault", "list", "-l")).stdout.decode()
        assert "cut-after  armed: source.send-check.before=delay:2.5" in long
        await ldm("allows", "fault", "disarm")
        assert b"armed:" not in (await ldm("allows", "fault", "list", "-l")).stdout
        refused = await ldm("refuses", "fault", "arm", "source.send-check.before=crash")
        assert refused.returncode == 77
        assert b"allowed = true in [faults]" in refused.stderr
        wrong = await ldm("allows", "fault", "arm", "source.send-check.before=flip:1")
        assert wrong.returncode == 64
        assert b"there can be crash" in wrong.stderr


def test_the_document_names_every_kind_and_only_points_that_there_are() -> None:
    text = (REPOSITORY / "docs/faults.md").read_text()
    for kind in Kind:
        assert f"`{kind}" in text
    for word in text.replace("=", " ").replace("`", " ").split():
        if word.startswith(("source.", "target.")) and word.endswith((".before", ".after")):
            assert word in POINTS, word


def test_records_that_can_fail_are_those_that_the_tables_expect_to() -> None:
    failing = {
        p
        for p, kinds in POINTS.items()
        if ".record-" in p and p.endswith("after") and Kind.FAIL in kinds
    }
    expected = {
        f"{fault_points.point_of(table.side, action)}.after"
        for table in TABLES
        for row in table.rows
        for action in row.actions
        if isinstance(action, Record)
        and any(r.state == row.next_state and r.event is Event.RECORD_FAILED for r in table.rows)
    }
    assert failing <= expected
