"""What earlier versions of the journal's schema had not, and how each becomes the next one.

A journal carries decisions, so no version is refused that can be read. A step adds and never takes away; it is carried out
with all others in one transaction (``store.py``), and rows whose columns changed are sealed anew in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OLDEST_VERSION: Final = 1

COLUMNS_ADDED: Final[Mapping[tuple[str, str], int]] = {("domain", "pending"): 2}
"""(table, column) -> the first version that has it; seals of earlier ones do not cover it."""

UPGRADES: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("ALTER TABLE domain ADD COLUMN pending TEXT CHECK (pending IS NULL OR state = 'active')",),
}
"""Version -> the statements that make the next one of it."""
