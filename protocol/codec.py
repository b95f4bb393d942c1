"""Control messages <-> msgpack maps, strictly.

The schema is the annotations of the classes in ``messages.py``, read once at import, and ``RULES``: what a field of that
name may hold. A field without a rule fails the import, not a migration.

Decoding takes three steps, so that hostile input is measured before memory is spent on it:

1. ``_scan`` walks the bytes without building anything: nesting, lengths, counts, formats that the profile does not have.
2. msgpack builds plain values, with maps as lists of pairs, so that a key that comes twice is seen.
3. The reader of the message's class takes each field or says what is wrong with it.

Encoding is the reverse, and then decodes what it made: our own messages obey what we ask of the peer.
"""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import attrs
import msgpack
from attrs import frozen

from protocol import limits
from protocol import messages as m
from protocol.errors import LocalProtocolError, RemoteProtocolError

Plain = Any
"""What msgpack gives: None, bool, int, str, bytes, list, dict with string keys."""

UINT64_MAX: Final = 2**64 - 1
UNIX_MS_MAX: Final = 253_402_300_799_999
"""The last millisecond of the year 9999: what every language's calendar can print."""

VERSION_MAX: Final = 65535
DOCUMENT_KEY_BYTES_MAX: Final = 2 * limits.NAME_BYTES_MAX
"""``volume@service`` is a key of the facts."""

UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""C0 and C1 controls, line separators and overrides of the writing direction: text is shown on operators' terminals and
in logs, where these would forge lines or hide what stands there. And surrogates, which UTF-8 does not have."""


def make_printable(text: str, bytes_max: int = limits.TEXT_BYTES_MAX) -> str:
    """Text from anywhere -> text that a message may carry: unprintable characters become spaces, too much is cut."""
    clean = UNPRINTABLE.sub(" ", text)
    return clean.encode()[:bytes_max].decode(errors="ignore")


# ---- step 1: the bytes ---------------------------------------------------------------------------------


class _Kind(enum.Enum):
    SCALAR = enum.auto()
    TEXT = enum.auto()
    BINARY = enum.auto()
    ARRAY = enum.auto()
    MAP = enum.auto()
    FLOAT = enum.auto()
    EXTENSION = enum.auto()
    RESERVED = enum.auto()


class _Lead(NamedTuple):
    """A msgpack value's first byte: ``length_bytes`` of length follow it, or else the length is ``length``."""

    kind: _Kind
    length_bytes: int
    length: int = 0


_LEADS_APART: Final[Mapping[int, _Lead]] = {
    0xC1: _Lead(_Kind.RESERVED, 0),
    **{0xC4 + n: _Lead(_Kind.BINARY, 1 << n) for n in range(3)},
    **{lead: _Lead(_Kind.EXTENSION, 0) for lead in (*range(0xC7, 0xCA), *range(0xD4, 0xD9))},
    **{lead: _Lead(_Kind.FLOAT, 0) for lead in (0xCA, 0xCB)},
    **{0xCC + n: _Lead(_Kind.SCALAR, 0, 1 << n) for n in range(4)},  # uint8 to uint64
    **{0xD0 + n: _Lead(_Kind.SCALAR, 0, 1 << n) for n in range(4)},  # int8 to int64
    **{0xD9 + n: _Lead(_Kind.TEXT, 1 << n) for n in range(3)},
    **{0xDC + n: _Lead(_Kind.ARRAY, 2 << n) for n in range(2)},
    **{0xDE + n: _Lead(_Kind.MAP, 2 << n) for n in range(2)},
}


def _lead(byte: int) -> _Lead:
    if byte in _LEADS_APART:
        return _LEADS_APART[byte]
    if 0x80 <= byte <= 0x8F:
        return _Lead(_Kind.MAP, 0, byte & 0x0F)
    if 0x90 <= byte <= 0x9F:
        return _Lead(_Kind.ARRAY, 0, byte & 0x0F)
    if 0xA0 <= byte <= 0xBF:
        return _Lead(_Kind.TEXT, 0, byte & 0x1F)
    return _Lead(_Kind.SCALAR, 0)  # nil, false, true, the small integers


_LEADS: Final = tuple(_lead(byte) for byte in range(256))

_LENGTH_MAX: Final[Mapping[_Kind, int]] = {
    _Kind.SCALAR: 8,
    _Kind.TEXT: limits.TEXT_BYTES_MAX,
    _Kind.BINARY: limits.BINARY_BYTES_MAX,
    _Kind.ARRAY: limits.COLLECTION_ITEMS_MAX,
    _Kind.MAP: limits.COLLECTION_ITEMS_MAX,
}
_NOT_IN_PROFILE: Final[Mapping[_Kind, tuple[str, str]]] = {
    _Kind.FLOAT: ("wrong-type", "there are no floating-point numbers in messages"),
    _Kind.EXTENSION: ("wrong-type", "there are no msgpack extensions in messages"),
    _Kind.RESERVED: ("bad-msgpack", "0xc1 begins no msgpack value"),
}
_VALUES_PER_ITEM: Final[Mapping[_Kind, int]] = {_Kind.ARRAY: 1, _Kind.MAP: 2}


def _scan(body: bytes | memoryview) -> None:
    """Measure one msgpack value that fills ``body``; nothing is built, nothing recurses. Raises RemoteProtocolError."""
    position, end, values = 0, len(body), 0
    missing: list[int] = []  # values that each open array or map still lacks
    while True:
        if position >= end:
            raise RemoteProtocolError("bad-msgpack", "a message ends inside a value")
        kind, length_bytes, length = _LEADS[body[position]]
        values += 1
        position += 1 + length_bytes
        if kind in _NOT_IN_PROFILE:
            raise RemoteProtocolError(*_NOT_IN_PROFILE[kind])
        if length_bytes:
            length = int.from_bytes(body[position - length_bytes : min(position, end)])
        if length > _LENGTH_MAX[kind] or values > limits.MESSAGE_VALUES_MAX:
            raise RemoteProtocolError("oversize", f"a message has too large a {kind.name.lower()}")
        if kind in _VALUES_PER_ITEM:
            if len(missing) == limits.NESTING_DEPTH_MAX:
                raise RemoteProtocolError("too-deep", "a message is nested too deep")
            missing.append(length * _VALUES_PER_ITEM[kind])
        else:
            position += length
        if position > end:
            raise RemoteProtocolError("bad-msgpack", "a message ends inside a value")
        while missing and not missing[-1]:
            missing.pop()
        if not missing:
            break
        missing[-1] -= 1
    if position != end:
        raise RemoteProtocolError("bad-msgpack", "there are bytes behind a message")


# ---- step 2: plain values ------------------------------------------------------------------------------


def _build_map(pairs: list[tuple[Plain, Plain]]) -> dict[str, Plain]:
    built: dict[str, Plain] = {}
    for key, value in pairs:
        if type(key) is not str:
            raise RemoteProtocolError("wrong-type", "a map has a key that is not a string")
        if key in built:
            raise RemoteProtocolError("unknown-key", f"{_show(key)} is there twice")
        built[key] = value
    return built


def _unpack(body: bytes | memoryview) -> Plain:
    _scan(body)
    try:
        return msgpack.unpackb(body, object_pairs_hook=_build_map, strict_map_key=False)
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("bad-utf8", "a string is not UTF-8") from error


def _show(text: str) -> str:
    """A peer's text inside a sentence of ours: short, and in ASCII."""
    return ascii(text if len(text) <= 32 else text[:32] + "…")


# ---- step 3: fields ------------------------------------------------------------------------------------

Reader = Callable[[Plain, str], Any]
"""(plain value, where it stands) -> the field's value. Raises RemoteProtocolError."""


@frozen(kw_only=True)
class Text:
    """``str``: ``bytes_min`` to ``bytes_max`` bytes of UTF-8, printable, matching ``pattern``."""

    bytes_max: int
    bytes_min: int = 0
    pattern: re.Pattern[str] | None = None

    def read(self, value: Plain, where: str) -> str:
        if type(value) is not str:
            raise RemoteProtocolError("wrong-type", f"{where} is not a string")
        size_bytes = len(value.encode())
        if size_bytes > self.bytes_max:
            raise RemoteProtocolError("oversize", f"{where} is longer than {self.bytes_max} bytes")
        if size_bytes < self.bytes_min:
            raise RemoteProtocolError("bad-value", f"{where} is shorter than {self.bytes_min} byte")
        if UNPRINTABLE.search(value):
            raise RemoteProtocolError("bad-value", f"{where} has unprintable characters")
        if self.pattern is not None and not self.pattern.fullmatch(value):
            raise RemoteProtocolError("bad-value", f"{where} is not like {self.pattern.pattern}")
        return value

    def describe(self) -> str:
        if self.pattern is not None:
            return f"string like `{self.pattern.pattern}`"
        return f"string, {self.bytes_min} to {self.bytes_max} bytes"


@frozen(kw_only=True)
class Whole:
    """``int`` from ``low`` to ``high``, a multiple of ``step``."""

    low: int = 0
    high: int = UINT64_MAX
    step: int = 1

    def read(self, value: Plain, where: str) -> int:
        if type(value) is not int:
            raise RemoteProtocolError("wrong-type", f"{where} is not an integer")
        if not self.low <= value <= self.high or value % self.step:
            raise RemoteProtocolError("bad-value", f"{where} is {value}: {self.describe()}")
        return value

    def describe(self) -> str:
        multiple = f", multiple of {self.step}" if self.step > 1 else ""
        return f"integer, {self.low} to {self.high}{multiple}"


@frozen(kw_only=True)
class Binary:
    """``bytes``, exactly so many."""

    size_bytes: int

    def read(self, value: Plain, where: str) -> bytes:
        if type(value) is not bytes:
            raise RemoteProtocolError("wrong-type", f"{where} is not a binary")
        if len(value) != self.size_bytes:
            raise RemoteProtocolError("bad-value", f"{where} has not {self.size_bytes} bytes")
        return value

    def describe(self) -> str:
        return f"binary, {self.size_bytes} bytes"


@frozen(kw_only=True)
class Piece:
    """``bytes``, one to so many."""

    bytes_max: int

    def read(self, value: Plain, where: str) -> bytes:
        if type(value) is not bytes:
            raise RemoteProtocolError("wrong-type", f"{where} is not a binary")
        if not value:
            raise RemoteProtocolError("bad-value", f"{where} is empty")
        if len(value) > self.bytes_max:
            raise RemoteProtocolError("oversize", f"{where} is longer than {self.bytes_max} bytes")
        return value

    def describe(self) -> str:
        return f"binary, 1 to {self.bytes_max} bytes"


@frozen(kw_only=True)
class Items:
    """``tuple``: up to ``items_max`` items; ``item`` is the rule of each, where the type alone does not say it.

    ``unique``: names the attribute that may be equal in no two items; ``""`` is the item itself.
    """

    items_max: int
    item: Text | None = None
    unique: str | None = None

    def check(self, values: tuple[Any, ...], where: str) -> None:
        if self.unique is None:
            return
        keys = {getattr(value, self.unique) if self.unique else value for value in values}
        if len(keys) != len(values):
            raise RemoteProtocolError("bad-value", f"{where} has an item twice")

    def describe(self) -> str:
        one = f", each {self.item.describe()}" if self.item else ""
        by = self.unique or "item"
        return f"up to {self.items_max}{one}" + (
            f", no {by} twice" if self.unique is not None else ""
        )


Rule = Text | Whole | Binary | Piece | Items

_WORD: Final = Text(bytes_min=1, bytes_max=limits.NAME_BYTES_MAX)
_NAME: Final = Text(
    bytes_max=limits.NAME_BYTES_MAX, pattern=re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
)
_UUID: Final = Text(
    bytes_max=limits.NAME_BYTES_MAX,
    pattern=re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
)
_ID: Final = Text(bytes_max=limits.NAME_BYTES_MAX, pattern=re.compile(r"[0-9a-f]{32}"))
_CODE: Final = Text(bytes_max=limits.NAME_BYTES_MAX, pattern=re.compile(r"[a-z0-9][a-z0-9-]{0,63}"))
_SENTENCE: Final = Text(bytes_max=limits.TEXT_BYTES_MAX)
_VERSION: Final = Whole(low=1, high=VERSION_MAX)
_RAM_BYTES: Final = Whole(high=limits.RAM_BYTES_MAX)

RULES: Final[Mapping[str, Rule]] = {
    "version_min": _VERSION,
    "version_max": _VERSION,
    "features": Items(items_max=limits.FEATURES_MAX, item=_CODE, unique=""),
    "host": _NAME,
    "release": _WORD,
    "journal": _ID,
    "time_unix_ms": Whole(high=UNIX_MS_MAX),
    "nonce": Whole(),
    "code": _CODE,
    "subject": _SENTENCE,
    "sentence": _SENTENCE,
    "remedy": _SENTENCE,
    "migration": _ID,
    "new_name": _WORD,
    "name": _NAME,
    "uuid": _UUID,
    "trails": Items(items_max=limits.TRAILS_MAX, unique="migration"),
    "kinds": Items(
        items_max=limits.RECORDS_MAX,
        item=Text(bytes_max=limits.NAME_BYTES_MAX, pattern=re.compile(r"[A-Z]{1,32}")),
    ),
    "findings": Items(items_max=limits.FINDINGS_MAX),
    "regions": Items(items_max=limits.REGIONS_MAX, unique="name"),
    "size_bytes": Whole(low=limits.PAGE_BYTES, high=limits.RAM_BYTES_MAX, step=limits.PAGE_BYTES),
    "done_bytes": _RAM_BYTES,
    "total_bytes": _RAM_BYTES,
    "digest": Binary(size_bytes=limits.DIGEST_BYTES),
    "chunks": Whole(),
    "device_bytes": Whole(high=limits.DEVICE_STATE_BYTES_MAX),
    "user": _WORD,
    "stay": _ID,
    "position": Whole(high=2**63 - 1),
    "replay_lines": Whole(high=limits.CONSOLE_REPLAY_LINES_MAX),
    "writer": Text(bytes_min=1, bytes_max=2 * limits.NAME_BYTES_MAX + 1),
    "data": Piece(bytes_max=limits.CONSOLE_DATA_BYTES_MAX),
    "count": Whole(),
    "moved_to": _NAME,
}
"""By field name, which means the same in every message."""

_DOCUMENT_KEY: Final = Text(bytes_min=1, bytes_max=DOCUMENT_KEY_BYTES_MAX)


def _read_bool(value: Plain, where: str) -> bool:
    if type(value) is not bool:
        raise RemoteProtocolError("wrong-type", f"{where} is not a boolean")
    return value


def _read_document(value: Plain, where: str) -> dict[str, Plain]:
    if type(value) is not dict:
        raise RemoteProtocolError("wrong-type", f"{where} is not a map")
    _check_plain(value, where)
    return value


def _check_plain(value: Plain, where: str) -> None:
    """Recursion is bounded: ``_scan`` has measured the nesting."""
    if type(value) is dict:
        for key, item in value.items():
            _DOCUMENT_KEY.read(key, f"a key in {where}")
            _check_plain(item, where)
    elif type(value) is list:
        for item in value:
            _check_plain(item, where)
    elif type(value) is str:
        _SENTENCE.read(value, f"a string in {where}")
    elif value is not None and type(value) not in (bool, int):
        raise RemoteProtocolError("wrong-type", f"{where} holds a binary")


def _enum_reader(values: type[enum.StrEnum]) -> Reader:
    known = {str(value): value for value in values}

    def read(value: Plain, where: str) -> enum.StrEnum:
        if type(value) is not str:
            raise RemoteProtocolError("wrong-type", f"{where} is not a string")
        if value not in known:
            raise RemoteProtocolError("bad-value", f"{where} is none of {', '.join(known)}")
        return known[value]

    return read


def _optional_reader(inner: Reader) -> Reader:
    return lambda value, where: None if value is None else inner(value, where)


def _items_reader(inner: Reader, rule: Items) -> Reader:
    def read(value: Plain, where: str) -> tuple[Any, ...]:
        if type(value) is not list:
            raise RemoteProtocolError("wrong-type", f"{where} is not an array")
        if len(value) > rule.items_max:
            raise RemoteProtocolError("oversize", f"{where} has more than {rule.items_max} items")
        values = tuple(inner(item, f"{where}[{number}]") for number, item in enumerate(value))
        rule.check(values, where)
        return values

    return read


def _class_reader(cls: type) -> Reader:
    readers = {name: _reader(kind, RULES.get(name)) for name, kind in field_types(cls).items()}
    find_fault = _INVARIANTS.get(cls, lambda _value: None)

    def read(value: Plain, where: str) -> Any:
        if type(value) is not dict:
            raise RemoteProtocolError("wrong-type", f"{where} is not a map")
        for key in sorted(value.keys() - readers.keys()):
            raise RemoteProtocolError("unknown-key", f"{where} has no field {_show(key)}")
        for name in sorted(readers.keys() - value.keys()):
            raise RemoteProtocolError("missing-key", f"{where} lacks {name}")
        made = cls(**{name: read(value[name], f"{where}.{name}") for name, read in readers.items()})
        fault = find_fault(made)
        if fault is not None:
            raise RemoteProtocolError("bad-value", f"{where}: {fault}")
        return made

    return read


def field_types(cls: type) -> dict[str, Any]:
    """Name -> type of a message's fields, in the order in which they are written."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in attrs.fields(cls)}


def _reader(kind: Any, rule: Rule | None) -> Reader:
    if kind is bool:
        return _read_bool
    if kind == m.Document:
        return _read_document
    if isinstance(kind, types.UnionType):
        (inner,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
        return _optional_reader(_reader(inner, rule))
    if typing.get_origin(kind) is tuple:
        assert isinstance(rule, Items), kind
        return _items_reader(_reader(typing.get_args(kind)[0], rule.item), rule)
    if attrs.has(kind):
        return _class_reader(kind)
    if issubclass(kind, enum.StrEnum):
        return _enum_reader(kind)
    assert isinstance(rule, Text | Whole | Binary | Piece), (kind, rule)
    assert isinstance(rule, {str: Text, int: Whole, bytes: Binary | Piece}[kind]), (kind, rule)
    return rule.read


def _find_hello_fault(hello: m.Hello) -> str | None:
    return "version_min is above version_max" if hello.version_min > hello.version_max else None


def _find_progress_fault(progress: m.PrepareProgress) -> str | None:
    return "done_bytes is above total_bytes" if progress.done_bytes > progress.total_bytes else None


def _find_prepare_fault(prepare: m.Prepare) -> str | None:
    total_bytes = sum(region.size_bytes for region in prepare.regions)
    return "the regions are too large together" if total_bytes > limits.RAM_BYTES_MAX else None


_INVARIANTS: Final[Mapping[type, Callable[[Any], str | None]]] = {
    m.Hello: _find_hello_fault,
    m.PrepareProgress: _find_progress_fault,
    m.Prepare: _find_prepare_fault,
}
"""What no field alone can say."""

_READERS: Final[Mapping[str, Reader]] = {cls.TYPE: _class_reader(cls) for cls in m.MESSAGES}
_TYPE_OF_CLASS: Final[Mapping[type[m.Message], str]] = {cls: cls.TYPE for cls in m.MESSAGES}


# ---- both ways -----------------------------------------------------------------------------------------


def decode(body: bytes | memoryview) -> m.Message:
    """A frame's body that is not a state chunk -> the message. Raises RemoteProtocolError; keeps no part of ``body``."""
    if len(body) > limits.MESSAGE_BYTES_MAX:
        raise RemoteProtocolError("oversize", f"a message has {len(body)} bytes")
    value = _unpack(body)
    if type(value) is not dict:
        raise RemoteProtocolError("wrong-type", "a message is not a map")
    if "type" not in value:
        raise RemoteProtocolError("missing-key", "a message lacks its type")
    name = value.pop("type")
    if type(name) is not str:
        raise RemoteProtocolError("wrong-type", "a message's type is not a string")
    if name not in _READERS:
        raise RemoteProtocolError("unknown-type", f"there is no message {_show(name)}")
    message: m.Message = _READERS[name](value, name)
    return message


def encode(message: m.Message) -> bytes:
    """A message -> a frame's body: ``type`` first, then the fields in the order of the class.

    Raises LocalProtocolError when ``decode`` would not take it.
    """
    name = _TYPE_OF_CLASS.get(type(message))
    if name is None:
        raise LocalProtocolError(f"{type(message).__name__} is not a message")
    try:
        body: bytes = msgpack.packb({"type": name, **_to_plain(message)})
        decode(body)
    except (RemoteProtocolError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(f"{name} cannot be sent: {error}") from error
    return body


def _to_plain(value: object) -> Any:
    if attrs.has(cls := type(value)):
        return {field.name: _to_plain(getattr(value, field.name)) for field in attrs.fields(cls)}
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return value
