from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ldmd.cli import main
from tests.ldmd.cli.manager import SmallHost, serving

Run = Callable[..., Result]


@pytest.fixture
def host() -> SmallHost:
    return SmallHost()


@pytest.fixture
def socket_path(tmp_path: Path, host: SmallHost) -> Iterator[Path]:
    path = tmp_path / "control.sock"
    with serving(path, host):
        yield path


@pytest.fixture
def ldm(socket_path: Path) -> Run:
    """Run ``ldm`` with words and, if given, stdin."""

    def run(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, ["--socket", str(socket_path), *words], input=stdin)

    return run
