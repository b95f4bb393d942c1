"""What the host itself says at one instant: memory, huge pages, bridges, room on disks, the end of its certificate.

The configuration says what domains may have; this is whether it is there. Everything that cannot be found out is None, and
who needs it decides what that means. Blocking: call it in a thread.
"""

from __future__ import annotations

import array
import fcntl
import os
import re
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import frozen
from cryptography import x509

from ldmd.config import Config, SwitchSettings
from ldmd.errors import ConfigurationError
from ldmd.link.identity import read_certificate_file
from protocol.limits import GIB, MIB

MEMINFO: Final = Path("/proc/meminfo")
HUGE_PAGES: Final = Path("/sys/kernel/mm/hugepages")
NODES: Final = Path("/sys/devices/system/node")
PAGE_BYTES: Final[Mapping[str, int]] = {"2MiB": 2 * MIB, "1GiB": GIB}
"""By the words of a definition's ``huge-pages``."""

# linux/sockios.h, linux/ethtool.h, linux/if.h
_SIOCGIFMTU: Final = 0x8921
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GDRVINFO: Final = 3
_DRVINFO_BYTES: Final = 196
_DRIVER: Final = slice(4, 36)
_IFREQ_MTU: Final = struct.Struct("16si20x")
_IFREQ_DATA: Final = struct.Struct("16sP16x")


@frozen(kw_only=True)
class HugePages:
    """Free pages of one size, in bytes: those that nobody has reserved, and the most that lie in one NUMA node."""

    free_bytes: int
    largest_node_bytes: int


@frozen(kw_only=True)
class Switch:
    """A virtual switch and its bridge; ``mtu`` is what it carries, None when there is no such bridge."""

    bridge: str
    mtu: int | None


@frozen(kw_only=True)
class Measured:
    memory_available_bytes: int | None
    """Without swapping, as the kernel estimates it; huge pages do not count."""
    huge_pages: Mapping[str, HugePages]
    """By the words of ``PAGE_BYTES``; sizes that this host does not have are not there."""
    switches: Mapping[str, Switch]
    """Of the configuration, by name."""
    disk_free_bytes: Mapping[str, int | None]
    """Directory that the manager writes to -> room there for its user."""
    certificate_until_unix_ms: int | None
    """The end of this host's own certificate."""
    time_unix_ms: int


def measure(config: Config) -> Measured:
    directories = (config.host.state_directory, config.host.run_directory)
    return Measured(
        memory_available_bytes=read_memory_available(),
        huge_pages={
            name: pages
            for name, size_bytes in PAGE_BYTES.items()
            if (pages := read_huge_pages(size_bytes)) is not None
        },
        switches=measure_switches(config.vsw),
        disk_free_bytes={str(directory): read_disk_free(directory) for directory in directories},
        certificate_until_unix_ms=read_certificate_until(config.identity.certificate),
        time_unix_ms=time.time_ns() // 1_000_000,
    )


def measure_switches(switches: Mapping[str, SwitchSettings]) -> dict[str, Switch]:
    """A switch carries what its settings say, and no more than its bridge does."""
    found = {}
    for name, settings in switches.items():
        mtu = read_bridge_mtu(settings.bridge)
        carried = None if mtu is None else min(mtu, settings.mtu)
        found[name] = Switch(bridge=settings.bridge, mtu=carried)
    return found


def read_memory_available() -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def read_huge_pages(size_bytes: int) -> HugePages | None:
    """None when the kernel has no pages of that size."""
    folder = f"hugepages-{size_bytes // 1024}kB"
    free = _read_number(HUGE_PAGES / folder / "free_hugepages")
    reserved = _read_number(HUGE_PAGES / folder / "resv_hugepages")
    if free is None or reserved is None:
        return None
    by_node = (_read_number(p) for p in NODES.glob(f"node[0-9]*/hugepages/{folder}/free_hugepages"))
    known = [number for number in by_node if number is not None] or [free]
    unreserved = max(0, free - reserved)
    return HugePages(
        free_bytes=unreserved * size_bytes,
        largest_node_bytes=min(max(known), unreserved) * size_bytes,
    )


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def read_bridge_mtu(name: str) -> int | None:
    """None when there is no bridge of that name in the manager's network namespace (sysfs may show another one)."""
    words = array.array("B", struct.pack("I", _ETHTOOL_GDRVINFO).ljust(_DRVINFO_BYTES, b"\0"))
    interface = os.fsencode(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, _IFREQ_DATA.pack(interface, words.buffer_info()[0]))
            if words[_DRIVER].tobytes().rstrip(b"\0") != b"bridge":
                return None
            answer = fcntl.ioctl(control, _SIOCGIFMTU, _IFREQ_MTU.pack(interface, 0))
        except OSError:
            return None
    return int(_IFREQ_MTU.unpack(answer)[1])


def read_disk_free(directory: Path) -> int | None:
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def read_certificate_until(path: Path) -> int | None:
    """Unix time in ms; None when there is no certificate to read."""
    try:
        content = read_certificate_file(path, "this host's certificate")
        certificate = x509.load_pem_x509_certificate(content)
    except (ConfigurationError, ValueError):
        return None
    return int(certificate.not_valid_after_utc.timestamp() * 1000)
