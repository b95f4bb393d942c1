"""A tap interface on a bridge: a vnet's end on the host.

Needs CAP_NET_ADMIN. The interface is the descriptor's: it goes when QEMU, the last to have it, is gone.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Final

from ldmd.errors import HypervisorError

NAME_TEMPLATE: Final = b"ldmtap%d"
"""The kernel puts in the first free number."""

# linux/if_tun.h, linux/sockios.h, linux/if.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCGIFMTU: Final = 0x8921
_SIOCSIFMTU: Final = 0x8922
_SIOCBRADDIF: Final = 0x89A2
_IFF_UP: Final = 0x1
_IFREQ: Final = struct.Struct("16sH22x")
_IFREQ_INDEX: Final = struct.Struct("16si20x")


def open_tap(bridge: str) -> int:
    """A new tap that is up and on ``bridge``; the caller closes the descriptor.

    Raises HypervisorError, saying what was refused.
    """
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HypervisorError(
            f"no tap interface can be made: {error}", remedy="load the module tun"
        ) from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        answer = fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(NAME_TEMPLATE, flags))
        name = answer[:16].rstrip(b"\0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            _take_mtu(control, name, bridge)
            _raise_interface(control, name)
            _join_bridge(control, name, bridge)
    except OSError as error:
        os.close(descriptor)
        raise HypervisorError(
            f"no tap interface can be put on bridge {bridge}: {error}",
            remedy="make the bridge, and give the manager CAP_NET_ADMIN",
        ) from error
    return descriptor


def _take_mtu(control: socket.socket, name: bytes, bridge: str) -> None:
    """The bridge's: a bridge that a port with a smaller one joins may take that one over."""
    answer = fcntl.ioctl(control, _SIOCGIFMTU, _IFREQ_INDEX.pack(os.fsencode(bridge), 0))
    _, mtu = _IFREQ_INDEX.unpack(answer)
    fcntl.ioctl(control, _SIOCSIFMTU, _IFREQ_INDEX.pack(name, mtu))


def _raise_interface(control: socket.socket, name: bytes) -> None:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(name, 0))
    _, flags = _IFREQ.unpack(answer)
    fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


def _join_bridge(control: socket.socket, name: bytes, bridge: str) -> None:
    index = socket.if_nametoindex(name.decode())
    fcntl.ioctl(control, _SIOCBRADDIF, _IFREQ_INDEX.pack(os.fsencode(bridge), index))
