"""What must not go wrong, and what goes on when it does: a console can end itself and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import define, field

from ldmd.consoles.desk import Desk
from ldmd.consoles.keeper import Keeper
from ldmd.consoles.keyboard import Keyboard
from ldmd.consoles.local import Sitting
from ldmd.errors import OutcomeUnknown
from protocol import messages as m
from protocol.errors import RemoteProtocolError
from protocol.messages import ConsoleAccess

TYPED = b"typed"


@define(eq=False)
class Looker:
    """A viewer that remembers what it was told."""

    keyboard: Keyboard = field(factory=Keyboard)
    told: trio.Event = field(factory=trio.Event)
    writers: list[str | None] = field(factory=list)

    async def taken(self) -> None:
        await trio.lowlevel.checkpoint()

    async def writer_changed(self, writer: str | None) -> None:
        await trio.lowlevel.checkpoint()
        self.writers.append(writer)
        self.told.set()


@define(eq=False)
class SlowProcess:
    """A domain that takes its time, and then this many of the bytes; None: it does not answer."""

    takes_bytes: int | None
    asked: trio.Event = field(factory=trio.Event)
    answers: trio.Event = field(factory=trio.Event)

    async def write_console(self, data: bytes) -> int:
        assert data == TYPED
        self.asked.set()
        await self.answers.wait()
        if self.takes_bytes is None:
            raise OutcomeUnknown("no answer")
        return self.takes_bytes


@pytest.mark.parametrize("takes_bytes", [len(TYPED), 2, 0, None])
async def test_keys_under_way_are_counted_once_when_somebody_takes_over(
    takes_bytes: int | None,
) -> None:
    desk, viewer, process = Desk(), Looker(), SlowProcess(takes_bytes)
    nothing: Any = None
    with desk.sit("u", "first", ConsoleAccess.WRITE) as (seat, pen):
        sitting = Sitting(nothing, nothing, process, nothing, seat, pen, viewer)  # type: ignore[arg-type]
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sitting._type, trio.Event())
                nursery.start_soon(sitting._tell_writer)
                await viewer.keyboard.put(TYPED)
                await process.asked.wait()
                await viewer.keyboard.put(b" and more")
                with desk.sit("u", "boss", ConsoleAccess.FORCE):
                    await viewer.told.wait()
                    assert viewer.writers == ["boss"]
                    assert viewer.keyboard.taken_bytes == len(" and more"), "dropped"
                    process.answers.set()
                    while len(viewer.keyboard):
                        await viewer.keyboard.wait_change()
                assert viewer.keyboard.taken_bytes == len(TYPED + b" and more")
                nursery.cancel_scope.cancel()


@define(eq=False)
class Line:
    """What a keeper uses of its link."""

    peer: Any = field(factory=lambda: SimpleNamespace(name="host-b", may_console=True))
    ended: bool = False
    posted: list[m.Message] = field(factory=list)
    aborted: bool = False

    def post(self, message: m.Message) -> None:
        self.posted.append(message)

    def abort(self) -> None:
        self.aborted = True


def make_keeper(line: Line) -> Keeper:
    """Of a host that lacks everything: whatever is done with it is a bug."""
    wanted = m.ConsoleOpen(
        uuid="u", user="eve", access=ConsoleAccess.WRITE, stay=None, position=None, replay_lines=0
    )
    keepers: Any = SimpleNamespace(host=SimpleNamespace())
    return Keeper(keepers, line, wanted)  # type: ignore[arg-type]


async def test_a_bug_ends_its_console_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    await make_keeper(line).run()
    assert line.aborted
    assert line.posted == []
    assert "the console of u, shown to eve@host-b, has a bug" in caplog.text
    assert "AttributeError" in caplog.text


async def test_a_bug_does_not_end_who_reads_the_link(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    keeper = make_keeper(line)
    keeper.talk.say(m.ConsoleOpened(stay="ab" * 16, position=0, writer="boss"))
    keeper.keyboard.enable(False)
    keeper.hear(m.ConsoleInput(data=TYPED))
    assert line.posted == [m.ConsoleTaken(count=len(TYPED))]
    assert not line.aborted
    keeper.keyboard.taken_bytes += 1
    keeper.hear(m.ConsoleInput(data=TYPED))
    assert line.aborted
    assert "counts what was not sent" in caplog.text
    with pytest.raises(RemoteProtocolError, match="bad-value"):
        keeper.hear(m.ConsoleTaken(count=1))
