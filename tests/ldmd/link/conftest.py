from __future__ import annotations

from pathlib import Path

import pytest

from tests.ldmd.link.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(folder=tmp_path)
