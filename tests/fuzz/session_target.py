"""A whole connection, and the table of either side behind it, against a peer that says valid things wrongly.

An input is a byte that chooses side, mode and the size of the pieces, and then steps: one byte says what to do, one or two
say with what. The peer follows the script of a migration that goes well, and steps repeat, reorder, drop, damage, cut short
and replace what it says, let messages of another migration in, let time pass, let our own operations end as they like.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, evolve, field, frozen

from protocol import frames, limits
from protocol import messages as m
from protocol.codec import decode
from protocol.events import Event
from protocol.phases import Mode
from tests.fuzz import samples
from tests.fuzz.frames_target import split
from tests.fuzz.party import Party
from tests.fuzz.target import PACKING_BYTES, SLACK_BYTES, Target, message_bytes

STEPS_MAX: Final = 24
STEPS_AFTER_END_MAX: Final = 3
"""Nothing is looked at any more; a few must show that."""

INPUT_BYTES_MAX: Final = 3 * STEPS_MAX + 1
PIECES_BYTES: Final = (1 << 20, 1 << 20, 1, 5, 64, 1000, 65536, 1 << 18)
SECONDS: Final = (
    0.0,
    0.001,
    0.5,
    1.0,
    1.9,
    2.0,
    2.1,
    3.9,
    4.0,
    5.0,
    7.9,
    8.0,
    10.0,
    60.0,
    1e6,
    1e12,
)
PAYLOADS_BYTES: Final = (1, 64, 4096, 65536, limits.CHUNK_PAYLOAD_BYTES_MAX, 0)
BODY_BYTES_MOST: Final = 2 * limits.MESSAGE_BYTES_MAX
"""Of what a step can say: far longer than any message may be."""

_PAYLOAD: Final = bytes(limits.CHUNK_PAYLOAD_BYTES_MAX)


# ---- what the peer says when all goes well ----------------------------------------------------------------


@frozen
class Says:
    """The peer says it."""

    frame: bytes


Script = tuple[Says | Event, ...]


def put(body: bytes) -> bytes:
    """A frame around any body, also one that no peer takes."""
    return b"\xce" + len(body).to_bytes(4) + body


def put_chunk(sequence: int, region: int, offset: int, payload_bytes: int) -> bytes:
    if payload_bytes:
        payload = memoryview(_PAYLOAD)[:payload_bytes]
        return frames.chunk_header(sequence % 2**64, region, offset, payload_bytes) + payload
    return put(b"\x94\xcf" + (sequence % 2**64).to_bytes(8) + b"\x00\x00\xc4\x00")


def _say(*kinds: type[m.MigrationMessage]) -> Iterator[Says]:
    return (Says(samples.frame(samples.MESSAGES[kind])) for kind in kinds)


_HELLO: Final = Says(samples.frame(samples.PEER_HELLO))
_CHUNKS: Final = tuple(Says(put_chunk(n, 0, n * 4096, 4096)) for n in range(3))

SCRIPTS: Final[dict[tuple[str, Mode], Script]] = {
    ("source", Mode.WARM): (
        Event.START,
        _HELLO,
        Event.CONNECTED,
        *_say(m.Checked, m.PrepareProgress, m.Prepared),
        Event.SUSPENDED,
        Event.STATE_SENT,
        *_say(m.Installed, m.HandoffDone),
        Event.DESTROYED,
        *_say(m.Settled),
    ),
    ("source", Mode.COLD): (
        Event.START,
        _HELLO,
        Event.CONNECTED,
        *_say(m.Checked, m.Prepared, m.HandoffDone),
        Event.DESTROYED,
        *_say(m.Settled),
    ),
    ("target", Mode.WARM): (
        _HELLO,
        *_say(m.Check),
        Event.CHECKS_CLEAN,
        *_say(m.Prepare),
        Event.CREATED,
        *_CHUNKS,
        *_say(m.Digest),
        Event.STATE_INSTALLED,
        *_say(m.Handoff),
        Event.DOMAIN_SUSPENDED,
        Event.RESUMED,
        *_say(m.Released, m.Released),
    ),
    ("target", Mode.COLD): (
        _HELLO,
        *_say(m.Check),
        Event.CHECKS_CLEAN,
        *_say(m.Prepare),
        Event.CREATED,
        *_say(m.Handoff),
        Event.DOMAIN_SUSPENDED,
        Event.RESUMED,
        *_say(m.Released),
    ),
}

_SAID: Final = (
    samples.HELLO,
    samples.NOT_CLEAN,
    samples.OTHER_DIGEST,
    *samples.MESSAGES.values(),
    *samples.CONSOLE,
)
LIBRARY: Final[tuple[bytes, ...]] = (
    *map(samples.frame, _SAID),
    samples.frame(m.Error(code="busy", sentence="too much")),
    samples.frame(evolve(samples.HELLO, version_min=2, version_max=3)),
    *samples.vector_frames(),
    *samples.vector_streams(),
)
"""What can be said at the wrong time."""

FOREIGN: Final = tuple(
    samples.frame(evolve(message, migration=samples.OTHER_ID))
    for message in samples.MESSAGES.values()
)
"""Another migration's."""


FIELDS: Final = tuple(samples.split_fields(message) for message in _SAID)
HOSTILE_LONG: Final = (b"\xdb\x00\x10\x00\x00" + b"x" * (1 << 20), bytes(BODY_BYTES_MOST))
_VALUES: Final = (*samples.HOSTILE, *HOSTILE_LONG)


# ---- what a step does ------------------------------------------------------------------------------------


@define
class Tape:
    """The input, read byte by byte; behind its end there are zeros."""

    data: bytes
    at: int = 0

    def take(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    @property
    def ended(self) -> bool:
        return self.at >= len(self.data)


@define
class Play:
    """One input under way."""

    tape: Tape
    party: Party
    piece_bytes: int
    script: Script
    place: int = 0
    chunk: int = 0
    """The number that the next chunk of ours, as the peer, should have."""
    pings: int = 0
    last: bytes = field(default=_HELLO.frame)
    longest_bytes: int = 0

    def say(self, frame: bytes) -> None:
        self.longest_bytes = max(self.longest_bytes, len(frame))
        self.party.receive(frame, max(self.piece_bytes, len(frame) >> 4, 1))

    def next_said(self) -> bytes | None:
        """Go on in the script to what the peer says next; our own events on the way happen."""
        while self.place < len(self.script):
            entry = self.script[self.place]
            self.place += 1
            if isinstance(entry, Says):
                self.chunk += entry in _CHUNKS
                self.last = entry.frame
                return entry.frame
            self.party.happen(entry)
        return None


def _go_on(play: Play) -> None:
    for _ in range(1 + play.tape.take() % 16):
        frame = play.next_said()
        if frame is not None:
            play.say(frame)
        play.party.take_queue()


def _repeat(play: Play) -> None:
    for _ in range(1 + play.tape.take() % 4):
        play.say(play.last)


def _drop(play: Play) -> None:
    play.next_said()


def _say_other(play: Play) -> None:
    play.say(LIBRARY[play.tape.take() % len(LIBRARY)])


def _say_foreign(play: Play) -> None:
    play.say(FOREIGN[play.tape.take() % len(FOREIGN)])


def _flip(play: Play) -> None:
    frame = bytearray(play.next_said() or play.last)
    at, bit = play.tape.take(), play.tape.take()
    frame[at % len(frame)] ^= 1 << bit % 8
    play.say(bytes(frame))


def _cut_short(play: Play) -> None:
    """The end is missing; with or without the length saying so."""
    frame = play.next_said() or play.last
    how = play.tape.take()
    body = frame[limits.FRAME_HEADER_BYTES : max(limits.FRAME_HEADER_BYTES + 1, len(frame) - how)]
    play.say(put(body) if how & 1 else frame[: limits.FRAME_HEADER_BYTES] + body)


def _say_chunk(play: Play) -> None:
    how, where = play.tape.take(), play.tape.take()
    number = play.chunk + (0, 0, 0, 0, 1, -1, 2**32, 2**63)[how & 7]
    size = PAYLOADS_BYTES[(how >> 3) % len(PAYLOADS_BYTES)]
    offset = (limits.RAM_BYTES_MAX - size) if where & 32 else where * 4096
    play.say(put_chunk(number, min(where & 31, limits.REGIONS_MAX), offset, size))
    play.chunk += 1


def _let_time_pass(play: Play) -> None:
    play.party.pass_time(SECONDS[play.tape.take() % len(SECONDS)])


def _happen(play: Play) -> None:
    own = play.party.own_events()
    choice = play.tape.take()
    if own:
        play.party.happen(own[choice % len(own)])


def _keep_alive(play: Play) -> None:
    how = play.tape.take()
    nonce = play.pings + (0, 0, 0, 1, -1, 2**32)[(how >> 1) % 6]
    kind = m.Ping if how & 1 else m.Pong
    play.say(samples.frame(kind(nonce=max(nonce, 0))))
    play.pings += 1


def _change_field(play: Play) -> None:
    """A message of the script's kind with one field replaced, missing, twice, or of another name."""
    which, value = play.tape.take(), play.tape.take()
    fields = list(FIELDS[which % len(FIELDS)])
    number = (which >> 5) % len(fields)
    key, old = fields[number]
    new = _VALUES[value % len(_VALUES)]
    fields[number : number + 1] = {
        0: [(key, new)],
        1: [],
        2: [(key, old), (key, new)],
        3: [(new, old)],
    }[value % 4 if which & 16 else 0]
    body = bytes([0x80 | len(fields)]) + b"".join(k + v for k, v in fields)
    play.say(put(body))


def _say_anything(play: Play) -> None:
    count = play.tape.take() % 16
    play.say(bytes(play.tape.take() for _ in range(count)))


def _say_any_body(play: Play) -> None:
    count = play.tape.take() % 16
    play.say(put(bytes(play.tape.take() for _ in range(count))))


def _end(play: Play) -> None:
    if play.tape.take() & 1:
        play.party.end_stream()
    else:
        play.party.connection.fail(samples.GIVING_UP)


def _send(play: Play) -> None:
    """We send: a chunk, or what is queued."""
    how = play.tape.take()
    if how & 1:
        play.party.send_chunk(how & 7, how * 4096, 1 + how)
    play.party.take_queue()


STEPS: Final[tuple[Callable[[Play], None], ...]] = (
    _go_on,
    _repeat,
    _drop,
    _say_other,
    _say_foreign,
    _flip,
    _cut_short,
    _say_chunk,
    _let_time_pass,
    _happen,
    _keep_alive,
    _change_field,
    _say_anything,
    _say_any_body,
    _end,
    _send,
)


# ---- one input -------------------------------------------------------------------------------------------


def feed(data: bytes) -> Play:
    tape = Tape(data)
    how = tape.take()
    side, mode = ("target" if how & 1 else "source"), (Mode.COLD if how & 2 else Mode.WARM)
    play = Play(tape, Party(side, mode), PIECES_BYTES[how >> 2 & 7], SCRIPTS[side, mode])
    left = STEPS_MAX
    while left and not (tape.ended or play.party.closed or play.party.finished):
        STEPS[tape.take() % len(STEPS)](play)
        left = min(left - 1, STEPS_AFTER_END_MAX) if play.party.connection.over else left - 1
    play.party.take_queue()
    return play


def judge(_data: bytes, play: Play) -> None:
    """What we sent is frames, and the last thing we say to a peer that broke the rules is why."""
    party = play.party
    bodies, code, _ = split(party.last_sent, limits.FRAME_BODY_BYTES_MAX)
    assert code is None
    assert sum(map(len, bodies)) + limits.FRAME_HEADER_BYTES * len(bodies) == len(party.last_sent)
    if party.code is not None:
        error = decode(bodies[-1])
        assert isinstance(error, m.Error), error
        assert error.code == party.code
        assert not party.connection.data_to_send(), "something behind ERROR"


def allow_bytes(data: bytes, play: Play) -> int:
    """The buffer, the longest message, what waits to be sent; and here a step's own bytes."""
    received = min(play.party.received_bytes, limits.FRAME_BODY_BYTES_MAX)
    own = 3 * play.longest_bytes + 128 * len(play.party.spoken)
    held = limits.RECEIVE_BUFFER_BYTES + PACKING_BYTES + message_bytes(received)
    return held + own + SLACK_BYTES


def seeds() -> list[bytes]:
    """Each script as it is, with each step once on the way, and everything that can be said at once and after HELLO."""
    made = [bytes([how, 0, 15]) for how in range(32)]
    for how, place, step in itertools.product(range(4), range(0, 12, 3), range(1, len(STEPS))):
        made.append(bytes([how, 0, place, step, 7 * place + step, place, 0, 15]))
    made += [bytes([1, *hello, 3, n]) for hello in ((), (0, 0)) for n in range(len(LIBRARY))]
    made += [bytes([1, *hello, 8, n]) for hello in ((), (0, 0)) for n in range(len(SECONDS))]
    made += [bytes([1, 0, 0, 11, n, n]) for n in range(len(_VALUES))]
    return made


TARGET: Final = Target(
    name="session",
    share=1,
    input_bytes_max=INPUT_BYTES_MAX,
    feed=feed,
    judge=judge,
    allow_bytes=allow_bytes,
    seeds=seeds,
)
