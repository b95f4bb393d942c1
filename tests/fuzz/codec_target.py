"""Any bytes as a control message's body, or as the value of one of its fields.

An input is the body; but one that begins with a byte below ``MESSAGES_MAX``, which begins no map, is the number of a good
message, that of a field, and the bytes to put in that field's place: damage to a whole body seldom comes further than the
scan.

What is refused must be refused by a code of the list; "not msgpack" only where msgpack says so too. What is accepted is
compared with msgpack's own reading, put into the order of the classes and packed again: if that is what ``encode`` makes of
the message, nothing was lost, added or changed, and the one canonical spelling of every message is the encoder's. (The
protocol lets a peer spell integers, lengths and the order of keys otherwise: an accepted body need not be canonical itself,
but is never shorter than the canonical one, and equal to it when it is in order and at its shortest.)
"""

from __future__ import annotations

from typing import Any, Final

import msgpack
from attrs import frozen

from protocol import codec, frames, limits
from protocol import messages as m
from protocol.errors import RemoteProtocolError
from tests.fuzz import samples
from tests.fuzz.target import SLACK_BYTES, Target, message_bytes

INPUT_BYTES_MAX: Final = limits.TEXT_BYTES_MAX + 128


MESSAGES_MAX: Final = 0x40

_FIELDS: Final = tuple(
    samples.split_fields(message)
    for message in (
        samples.HELLO,
        samples.NOT_CLEAN,
        m.Ping(nonce=1),
        *samples.MESSAGES.values(),
        *samples.CONSOLE,
    )
)


@frozen
class Seen:
    body: bytes
    message: m.Message | None
    code: str | None


def build_body(data: bytes) -> bytes:
    """What an input stands for."""
    if len(data) < 2 or data[0] >= MESSAGES_MAX:
        return data
    fields = _FIELDS[data[0] % len(_FIELDS)]
    number = data[1] % len(fields)
    parts = [key + value for key, value in fields]
    parts[number] = (b"" if data[1] & 0x80 else fields[number][0]) + data[2:]
    return bytes([0x80 | len(fields)]) + b"".join(parts)


def feed(data: bytes) -> Seen:
    body = bytearray(build_body(data))
    whole = bytes(body)
    try:
        message = codec.decode(memoryview(body))
    except RemoteProtocolError as error:
        return Seen(whole, None, error.code)
    body.clear()  # BufferError if the message keeps a part of it
    return Seen(whole, message, None)


def judge(_data: bytes, seen: Seen) -> None:
    data = seen.body
    if seen.message is None:
        assert seen.code in m.ERROR_CODES
        if seen.code == "bad-msgpack":
            assert not _is_msgpack(data), "msgpack reads it"
        return
    again = codec.encode(seen.message)
    assert again == msgpack.packb(_arrange(data, type(seen.message))), "not what was said"
    assert len(again) <= len(data)
    assert codec.decode(again) == seen.message
    frames.frame_header(len(again))


def _is_msgpack(data: bytes) -> bool:
    """Lengths are bounded: the reference must not build what the scan has spared itself."""
    most = limits.COLLECTION_ITEMS_MAX
    try:
        msgpack.unpackb(data, strict_map_key=False, max_array_len=most, max_map_len=most, raw=True)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return False
    return True


def _arrange(data: bytes, cls: type[m.Message]) -> dict[str, Any]:
    plain = msgpack.unpackb(data)
    ordered = {name: plain[name] for name in ("type", *codec.field_types(cls))}
    assert len(ordered) == len(plain)
    for name, kind in (("findings", m.Finding), ("regions", m.Region)):
        if name in ordered:
            fields = list(codec.field_types(kind))
            ordered[name] = [{field: item[field] for field in fields} for item in ordered[name]]
    return ordered


def allow_bytes(_data: bytes, seen: Seen) -> int:
    return 8 * len(seen.body) + message_bytes(len(seen.body)) + SLACK_BYTES


def seeds() -> list[bytes]:
    header_bytes = limits.FRAME_HEADER_BYTES
    bodies = [frame[header_bytes:] for frame in samples.vector_frames()]
    bodies += [codec.encode(message) for message in samples.MESSAGES.values()]
    bodies += [codec.encode(message) for message in samples.CONSOLE]
    bodies += [codec.encode(samples.HELLO), codec.encode(samples.NOT_CLEAN)]
    bodies += [
        bytes([which, number]) + value
        for which, fields in enumerate(_FIELDS)
        for number, (_, value) in enumerate(fields)
    ]
    bodies += [bytes([which % len(_FIELDS), which]) + v for which, v in enumerate(samples.HOSTILE)]
    return [body for body in bodies if 0 < len(body) <= INPUT_BYTES_MAX]


TARGET: Final = Target(
    name="codec",
    share=5,
    input_bytes_max=INPUT_BYTES_MAX,
    feed=feed,
    judge=judge,
    allow_bytes=allow_bytes,
    seeds=seeds,
    words=samples.words,
)
