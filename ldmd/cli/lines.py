"""Lines for people: as wide as the terminal, and whole where it is none."""

from __future__ import annotations

import os
import textwrap
from typing import Final, TextIO

PIPE_COLUMNS: Final = 100_000
"""Width of what is no terminal: whoever reads it does not want it cut."""
TERMINAL_COLUMNS: Final = 80
"""Of one that does not know its own width."""


def find_columns(stream: TextIO) -> int:
    if not stream.isatty():
        return PIPE_COLUMNS
    return os.get_terminal_size(stream.fileno()).columns or TERMINAL_COLUMNS


def wrap(text: str, *, stream: TextIO, indent: int = 5) -> str:
    """Every line but the first begins with ``indent`` blanks; what has no blanks (a path, an id) is never broken."""
    return textwrap.fill(
        text,
        find_columns(stream),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
