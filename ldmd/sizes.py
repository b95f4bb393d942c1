"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re

SIZE = re.compile(r"([0-9]{1,12})\s*(|KiB|MiB|GiB|TiB|K|M|G|T)")
_UNITS = {
    "": 1,
    "K": 2**10,
    "KiB": 2**10,
    "M": 2**20,
    "MiB": 2**20,
    "G": 2**30,
    "GiB": 2**30,
    "T": 2**40,
    "TiB": 2**40,
}


def parse_size(value: object) -> int:
    """``"512MiB"``, ``"2G"`` or a number of bytes -> bytes. Raises ValueError with what is allowed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := SIZE.fullmatch(value)):
        return int(match[1]) * _UNITS[match[2]]
    raise ValueError(f"{value!r} is not a size: write a number of bytes, or like 512MiB or 2GiB")


def format_size(size_bytes: int) -> str:
    """Bytes -> the largest unit that divides them: 536870912 -> ``512MiB``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return str(size_bytes)
