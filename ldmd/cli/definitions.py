"""Definitions and their changes, in words for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldmd.definition import from_document
from ldmd.description import Change, describe, describe_changes

Document = Mapping[str, Any]


def describe_definitions(definition: Document, pending: Document | None) -> dict[str, str]:
    """Field -> text: all of the definition but its name, then what a delayed reconfiguration changes."""
    now = from_document(definition)
    fields = describe(now)
    del fields["name"]
    if pending is not None:
        for change in describe_changes(now, from_document(pending)):
            fields[f"delayed {change.what}"] = show_change(change)
    return fields


def show_change(change: Change) -> str:
    """``2GiB -> 4GiB``."""
    if change.before is None:
        return f"added: {change.after}"
    if change.after is None:
        return "removed"
    return f"{change.before} -> {change.after}"
