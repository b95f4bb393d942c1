"""sd_notify on real sockets."""

from __future__ import annotations

import configparser
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldmd.config import ListenSettings
from ldmd.service import notify


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        yield sock


def test_to_a_path(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    notify("READY=1", "STATUS=listening on port 8101")
    assert listener.recv(4096) == b"READY=1\nSTATUS=listening on port 8101"


def test_to_an_abstract_address(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ldmd-test-{os.getpid()}"
    listener.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    notify("STOPPING=1")
    assert listener.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "/" + "x" * 200, "relative"])
def test_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_no_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


def test_one_that_does_not_read_stops_nobody(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener.bind(str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as filler:
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert listener.recv(4096) == b"x"


# ---- the unit --------------------------------------------------------------------------------------------

UNIT = Path(__file__).parents[2] / "systemd" / "ldmd.service"


def test_the_unit_never_stays_down_and_has_room_for_links() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    assert (
        unit["Unit"]["StartLimitIntervalSec"] == "0"
    )  # systemd's default: five starts in ten seconds
    assert unit["Service"]["Restart"] == "always"
    assert int(unit["Service"]["LimitNOFILE"]) > 100 * ListenSettings().links_per_peer_max
