"""KEY=VALUE, as ldm(8) has it before the names: the words of the command line -> a document of a definition."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ldmd.definition import unknown_key
from ldmd.errors import DefinitionError
from ldmd.sizes import parse_size

Document = dict[str, Any]
Parse = Callable[[str], Document]
"""A value -> what it says. Raises ValueError with what is allowed."""

SMALL_UNIT: Final = re.compile(r"[0-9]+[kmgt]")
"""ldm(8) takes units in either case."""


def parse_memory(value: str) -> int:
    """Bytes. Raises ValueError."""
    return parse_size(value.upper() if SMALL_UNIT.fullmatch(value) else value)


def parse_volume(value: str) -> Document:
    volume, at, service = value.partition("@")
    if not (volume and at and service):
        raise ValueError(f"{value!r} is not VOLUME@SERVICE")
    return {"volume": volume, "service": service}


def _text(key: str) -> Parse:
    return lambda value: {key: value}


def _count(key: str) -> Parse:
    def parse(value: str) -> Document:
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise ValueError(f"{value!r} is not a whole number")
        return {key: int(value)}

    return parse


def _yes_no(key: str) -> Parse:
    def parse(value: str) -> Document:
        if value not in ("yes", "no"):
            raise ValueError(f"{value!r} is neither yes nor no")
        return {key: value == "yes"}

    return parse


def _list(key: str) -> Parse:
    return lambda value: {key: [item for item in value.split(",") if item]}


DOMAIN_KEYS: Final[Mapping[str, Parse]] = {
    "cpu-arch": _text("cpu-arch"),
    "mig-allowed": _yes_no("mig-allowed"),
    "vcpus": _count("vcpus"),
    "memory": lambda value: {"memory-bytes": parse_memory(value)},
    "huge-pages": _text("huge-pages"),
    "machine": _text("machine"),
    "firmware": _text("firmware"),
    "optional-devices": _list("optional-devices"),
    "hypervisor": _text("hypervisor"),
}
NEW_DOMAIN_KEYS: Final = {"uuid": _text("uuid"), **DOMAIN_KEYS}
VDISK_KEYS: Final[Mapping[str, Parse]] = {
    "read-only": _yes_no("read-only"),
    "cache": _text("cache"),
    "mpgroup": _text("mpgroup"),
}
SET_VDISK_KEYS: Final = {"volume": parse_volume, **VDISK_KEYS}
VNET_KEYS: Final[Mapping[str, Parse]] = {"mac-addr": _text("mac"), "mtu": _count("mtu")}
SET_VNET_KEYS: Final = {"vswitch": _text("switch"), **VNET_KEYS}


def parse_keywords(words: Sequence[str], known: Mapping[str, Parse]) -> Document:
    """Raises DefinitionError naming every fault."""
    document: Document = {}
    faults = []
    for key, value in split_pairs(words).items():
        if key not in known:
            faults.append(unknown_key(key, known))
            continue
        try:
            document |= known[key](value)
        except ValueError as error:
            faults.append(f"{key}: {error}")
    if faults:
        raise DefinitionError("; ".join(faults), remedy=f"keys: {', '.join(known)}")
    return document


def split_pairs(words: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` of each word. Raises DefinitionError for a word that is not one, or a name that comes twice."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise DefinitionError(f"{word!r} is not KEY=VALUE")
        if name in pairs:
            raise DefinitionError(f"{name} is there twice")
        pairs[name] = value
    return pairs
