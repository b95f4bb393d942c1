"""What the daemon tells the one who started it: sd_notify(3), without a library's help it needs ten lines."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> None:
    """Send e.g. ``READY=1`` to systemd; without NOTIFY_SOCKET nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(1.0)
        try:
            sock.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return  # it has gone, or does not read: starting and stopping do not depend on it
