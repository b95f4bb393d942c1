"""Hypothesis strategies for everything that the wire can carry, out of the rules that the codec itself has."""

from __future__ import annotations

import enum
import types
import typing
from typing import Any

import attrs
from hypothesis import strategies as st

from protocol import limits
from protocol import messages as m
from protocol.codec import (
    DOCUMENT_KEY_BYTES_MAX,
    RULES,
    UNPRINTABLE,
    Binary,
    Items,
    Piece,
    Rule,
    Text,
    Whole,
    field_types,
)


def texts(bytes_min: int, bytes_max: int) -> st.SearchStrategy[str]:
    return (
        st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=min(bytes_max, 40))
        .map(lambda text: UNPRINTABLE.sub("", text))
        .filter(lambda text: bytes_min <= len(text.encode()) <= bytes_max)
    )


def documents() -> st.SearchStrategy[dict[str, Any]]:
    keys = texts(1, DOCUMENT_KEY_BYTES_MAX)
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | texts(0, limits.TEXT_BYTES_MAX)
    )
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    ).filter(lambda value: depth(value) <= limits.NESTING_DEPTH_MAX - 2)
    return st.dictionaries(keys, values, max_size=4)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def by_rule(rule: Rule | None) -> st.SearchStrategy[Any]:
    match rule:
        case Text(pattern=None):
            return texts(rule.bytes_min, rule.bytes_max)
        case Text():
            assert rule.pattern is not None
            return st.from_regex(rule.pattern, fullmatch=True)
        case Whole():
            return st.integers(rule.low // rule.step, rule.high // rule.step).map(
                lambda n: n * rule.step
            )
        case Binary():
            return st.binary(min_size=rule.size_bytes, max_size=rule.size_bytes)
        case Piece():
            return st.binary(min_size=1, max_size=min(rule.bytes_max, 300))
    raise AssertionError(rule)


def by_type(kind: Any, rule: Rule | None) -> st.SearchStrategy[Any]:
    if kind is bool:
        return st.booleans()
    if kind == m.Document:
        return documents()
    if isinstance(kind, types.UnionType):
        return st.none() | by_type(typing.get_args(kind)[0], rule)
    if typing.get_origin(kind) is tuple:
        assert isinstance(rule, Items)
        item = typing.get_args(kind)[0]
        key = None if rule.unique is None else lambda v: getattr(v, rule.unique or "", v)
        items = by_type(item, rule.item)
        return st.lists(items, max_size=min(rule.items_max, 6), unique_by=key).map(tuple)
    if attrs.has(kind):
        return instances(kind)
    if issubclass(kind, enum.StrEnum):
        return st.sampled_from(list(kind))
    return by_rule(rule)


def instances(cls: type) -> st.SearchStrategy[Any]:
    fields = {n: by_type(kind, RULES.get(n)) for n, kind in field_types(cls).items()}
    made = st.fixed_dictionaries(fields)
    if cls is m.Hello:
        made = made.map(lambda f: f | _sorted(f, "version_min", "version_max"))
    if cls is m.PrepareProgress:
        made = made.map(lambda f: f | _sorted(f, "done_bytes", "total_bytes"))
    if cls is m.Prepare:
        made = made.filter(
            lambda f: sum(r.size_bytes for r in f["regions"]) <= limits.RAM_BYTES_MAX
        )
    return made.map(lambda f: cls(**f))


def _sorted(fields: dict[str, Any], low: str, high: str) -> dict[str, Any]:
    return dict(zip((low, high), sorted((fields[low], fields[high])), strict=True))


MESSAGES: dict[type[m.Message], st.SearchStrategy[Any]] = {
    cls: instances(cls) for cls in m.MESSAGES
}
