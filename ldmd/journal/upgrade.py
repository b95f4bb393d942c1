"""What earlier versions of the journal were otherwise, and how each becomes the next one.

A journal carries decisions, so no version is refused that can be read. All steps are carried out in one transaction
(``store.py``), and the rows of the tables that they touched are sealed anew in it. Nothing is taken away.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from typing import Final

OLDEST_VERSION: Final = 1

COLUMNS_ADDED: Final[Mapping[tuple[str, str], int]] = {("domain", "pending"): 2}
"""(table, column) -> the first version that has it; seals of earlier ones do not cover it."""


def _from_1(c: sqlite3.Connection) -> None:
    """``pending`` is new; a definition's ``cpu`` is called ``cpu-arch``."""
    c.execute(
        "ALTER TABLE domain ADD COLUMN pending TEXT CHECK (pending IS NULL OR state = 'active')"
    )
    for table in ("domain", "migration"):
        for rowid, text in c.execute(f"SELECT rowid, definition FROM {table}").fetchall():
            document = {
                "cpu-arch" if key == "cpu" else key: value
                for key, value in json.loads(text).items()
            }
            renamed = json.dumps(document, separators=(",", ":"))
            c.execute(f"UPDATE {table} SET definition = ? WHERE rowid = ?", (renamed, rowid))


UPGRADES: Final[Mapping[int, Callable[[sqlite3.Connection], None]]] = {1: _from_1}
"""Version -> what makes the next one of it."""

TOUCHED: Final = ("domain", "migration")
"""Tables whose rows are otherwise afterwards."""
