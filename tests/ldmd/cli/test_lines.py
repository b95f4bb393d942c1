"""Long sentences on a terminal, and in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner

from ldmd.cli import main
from tests.ldmd.cli.conftest import Run

DEADLINE_SECONDS = 20.0
LONG = "/a/folder/with/a/path/that/is/longer/than/any/terminal/is/wide/and/must/not/be/broken/control.sock"


def on_a_terminal(columns: int, *words: str) -> list[str]:
    """The lines of ``ldm`` on a terminal so wide; 0 is one that does not know."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", "from ldmd.cli import main; main()", *words],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        received = b""
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # EIO: nobody has the other end any more
                break
            received += chunk
        process.wait(DEADLINE_SECONDS)
    os.close(leader)
    return received.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("columns", [40, 80, 0])
def test_an_error_fits_the_terminal(columns: int, socket_path: Path) -> None:
    lines = on_a_terminal(columns, "--socket", str(socket_path), "stop", "nosuchdomainatall")
    assert lines[0].startswith("ldm: there is no domain")
    assert all(line.startswith(("ldm:", "     ")) for line in lines)
    assert max(map(len, lines)) <= (columns or 80)


def test_a_path_is_never_broken() -> None:
    lines = on_a_terminal(40, "--socket", LONG, "status")
    assert LONG in " ".join(lines)
    assert any(LONG in line for line in lines)


def test_in_a_pipe_nothing_is_wrapped(ldm: Run) -> None:
    result = ldm("--socket", LONG, "status")
    assert result.exit_code == 69
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize("verb", ["", "fault list", "fault arm", "fault disarm", *main.commands])
def test_every_help_fits_eighty_columns(verb: str) -> None:
    result = CliRunner().invoke(main, [*verb.split(), "--help"], terminal_width=80)
    assert result.stdout.startswith("Usage:")
    assert max(map(len, result.stdout.splitlines())) <= 80
