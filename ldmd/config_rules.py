"""The rules of the configuration's fields: a value as TOML has it in, the field's value out.

A rule raises ValueError saying what is allowed; ``ldmd/config.py`` puts the file's and the key's
name before that.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ldmd import fault_points
from ldmd.definition import NAME
from ldmd.link.identity import HOST_NAME
from ldmd.sizes import parse_size
from protocol import limits

PORT_DEFAULT: Final = 8101
GROUP_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}\$?", re.IGNORECASE)
BRIDGE_NAME: Final = re.compile(r"[^\s/:%]{1,15}")
"""An interface of Linux: IFNAMSIZ is 16 with the closing zero."""
SECONDS_MAX: Final = 86_400.0
MEMORY_OF_HOST: Final = 0.9
"""The share of the host's memory that domains may have: the rest is the host's own."""

Rule = Callable[[object], Any]
"""A value as TOML has it -> the field's value. Raises ValueError saying what is allowed."""


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def whole(low: int, high: int) -> Rule:
    def rule(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{value!r} is not a whole number from {low} to {high}")
        return value

    return rule


def seconds(value: object) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    if not 0 < number <= SECONDS_MAX:  # not-a-number too
        raise ValueError(f"{value!r} is not a number of seconds above 0, up to {SECONDS_MAX:.0f}")
    return float(number)


def matching(pattern: re.Pattern[str], what: str) -> Rule:
    def rule(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return rule


def one_of(*allowed: str) -> Rule:
    def rule(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
        return str(value)

    return rule


def list_of(rule: Rule) -> Rule:
    def many(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is not a list")
        items = tuple(rule(item) for item in value)
        if twice := sorted({str(i) for i in items if items.count(i) > 1}):
            raise ValueError(f"{twice[0]!r} is there twice")
        return items

    return many


def optional(rule: Rule) -> Rule:
    """An empty text stands for nothing."""
    return lambda value: None if value == "" else rule(value)


def path(value: object) -> Path:
    if not text(value) or "\0" in text(value):
        raise ValueError(f"{value!r} is not a path")
    return Path(text(value))


def ip_address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(text(value)))
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address, like 0.0.0.0 or ::") from None


def memory(value: object) -> int:
    size_bytes = parse_size(value)
    if size_bytes < limits.MIB:
        raise ValueError(f"{value!r} is less than 1MiB")
    return size_bytes


def address(value: object) -> tuple[str, int]:
    """``host``, ``host:port``, ``[v6]:port`` or a bare IPv6 address -> host and port."""
    given = text(value)
    host, port = given, str(PORT_DEFAULT)
    if bracketed := re.fullmatch(
        r"\[([0-9A-Fa-f:.]+)(%[A-Za-z0-9._-]+)?\](?::([0-9]{1,5}))?", given
    ):
        host, port = bracketed[1] + (bracketed[2] or ""), bracketed[3] or port
    elif given.count(":") == 1:
        host, _, port = given.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9._:%-]{1,253}", host):
        raise ValueError(f"{value!r} is not an address: write host, host:port or [v6 address]:port")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{value!r} is not an address: the port must be a number from 1 to 65535")
    return host, int(port)


def fault(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not a fault: write "POINT=KIND"')
    return str(fault_points.parse(value))


host_name = matching(
    HOST_NAME, f"a host's name (a-z, 0-9, '-' and '.', up to {limits.NAME_BYTES_MAX} characters)"
)
device_name = matching(NAME, "a name (a letter, then up to 62 letters, digits, '.', '_' or '-')")
optional_name = matching(re.compile(f"({NAME.pattern})?"), "a name, or empty for none")
group_name = matching(GROUP_NAME, "a group's name")
bridge_name = matching(BRIDGE_NAME, "a network interface's name (up to 15 characters, no '/', ':')")


def host_memory_bytes() -> int:
    """The host's memory less ten percent, in whole MiB: what domains may have by default."""
    total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(total_bytes * MEMORY_OF_HOST) // limits.MIB * limits.MIB


def host_vcpus() -> int:
    return len(os.sched_getaffinity(0))
