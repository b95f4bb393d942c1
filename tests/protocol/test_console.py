"""One console on a link: what may come when, and that neither side can send more than its window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol import messages as m
from protocol.console import SAYS, ConsoleSide, ConsoleState, Conversation
from protocol.errors import LocalProtocolError, RemoteProtocolError

OPENED = m.ConsoleOpened(stay="0" * 32, position=100, writer=None)
OPEN = m.ConsoleOpen(
    uuid="00112233-4455-6677-8899-aabbccddeeff",
    user="alice",
    access=m.ConsoleAccess.WRITE,
    stay=None,
    position=None,
    replay_lines=0,
)
CLOSED = m.ConsoleClosed(code="stopped", sentence="it has stopped", moved_to=None)
TAKEN = m.ConsoleTaken(count=0)
SAMPLES = (
    OPENED,
    m.ConsoleOutput(position=100, data=b"x"),
    m.ConsoleInput(data=b"x"),
    TAKEN,
    m.ConsoleWriter(writer="bob"),
    CLOSED,
)


def output(position: int, size_bytes: int) -> m.ConsoleOutput:
    return m.ConsoleOutput(position=position, data=bytes(size_bytes))


def refusal(conversation: Conversation, message: m.ConsoleMessage) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        conversation.hear(message)
    return caught.value.code


def opened(side: ConsoleSide) -> Conversation:
    made = Conversation(side)
    (made.hear if side is ConsoleSide.OPENER else made.say)(OPENED)
    return made


@pytest.mark.parametrize("side", list(ConsoleSide))
def test_what_has_no_row_is_refused_and_changes_nothing(side: ConsoleSide) -> None:
    other = next(s for s in ConsoleSide if s is not side)
    allowed = {(row.state, row.message) for row in SAYS[other]}
    for state in ConsoleState:
        for message in (*SAMPLES, OPEN):
            conversation = opened(side)
            conversation.state = state
            if (state, type(message)) in allowed:
                conversation.hear(message)
            else:
                assert refusal(conversation, message) == "unexpected-message"
                assert conversation.state is state


def test_a_second_open_is_refused() -> None:
    assert refusal(opened(ConsoleSide.KEEPER), OPEN) == "unexpected-message"


def test_output_has_a_window_and_never_repeats() -> None:
    opener, keeper = opened(ConsoleSide.OPENER), opened(ConsoleSide.KEEPER)
    position, piece = 100, limits.CONSOLE_DATA_BYTES_MAX
    for _ in range(limits.CONSOLE_OUTPUT_WINDOW_BYTES // piece):
        keeper.say(output(position, piece))
        opener.hear(output(position, piece))
        position += piece
    assert keeper.ours.room_bytes == opener.theirs.room_bytes == 0
    with pytest.raises(LocalProtocolError):
        keeper.say(output(position, 1))
    assert refusal(opener, output(position, 1)) == "oversize"
    taken = m.ConsoleTaken(count=10)
    opener.say(taken)
    keeper.hear(taken)
    assert refusal(opener, output(position - 1, 1)) == "sequence"
    opener.hear(output(position + 1000, 10))  # what lay between is gone
    assert refusal(opener, output(position + 1009, 1)) == "oversize"


def test_input_has_a_window() -> None:
    keeper = opened(ConsoleSide.KEEPER)
    keeper.hear(m.ConsoleInput(data=bytes(limits.CONSOLE_INPUT_WINDOW_BYTES)))
    assert refusal(keeper, m.ConsoleInput(data=b"x")) == "oversize"
    keeper.say(m.ConsoleTaken(count=1))
    keeper.hear(m.ConsoleInput(data=b"x"))


@pytest.mark.parametrize("count", [4, 11])
def test_counts_that_go_back_or_ahead_are_refused(count: int) -> None:
    keeper = opened(ConsoleSide.KEEPER)
    keeper.say(output(100, 10))
    keeper.hear(m.ConsoleTaken(count=5))
    assert refusal(keeper, m.ConsoleTaken(count=count)) == "bad-value"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20_000)), max_size=30))
def test_two_of_them_always_agree(steps: list[tuple[int, int]]) -> None:
    """What one side may say the other one takes, whatever was said before."""
    opener, keeper = opened(ConsoleSide.OPENER), opened(ConsoleSide.KEEPER)
    position = 100
    for what, number in steps:
        speaker, hearer = (keeper, opener) if what < 2 else (opener, keeper)
        message: m.ConsoleMessage
        if what % 2:
            message = m.ConsoleTaken(count=min(number, speaker.theirs.sent_bytes))
        elif speaker is keeper:
            message = output(position, number)
        else:
            message = m.ConsoleInput(data=bytes(number))
        try:
            speaker.say(message)
        except LocalProtocolError:
            assert refusal(hearer, message)
            continue
        hearer.hear(message)
        if isinstance(message, m.ConsoleOutput):
            position += number
        assert keeper.ours.room_bytes == opener.theirs.room_bytes >= 0
        assert opener.ours.room_bytes == keeper.theirs.room_bytes >= 0
