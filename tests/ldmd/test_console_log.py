from __future__ import annotations

import os
from pathlib import Path

from ldmd.console_log import ALLOCATED_BYTES_MAX, KEPT_BYTES, trim
from protocol.limits import MIB


def test_a_small_console_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"hello\n" * 1000)
    assert not trim(path)
    assert path.read_bytes() == b"hello\n" * 1000


def test_a_large_one_keeps_its_end_and_its_offsets(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(ALLOCATED_BYTES_MAX // MIB + 2):
        os.write(writer, b"x" * MIB)
    os.fsync(writer)
    size = path.stat().st_size
    assert trim(path)
    os.write(writer, b"the next line\n")  # whoever appends notices nothing
    os.close(writer)
    status = path.stat()
    assert status.st_size == size + len(b"the next line\n")
    assert status.st_blocks * 512 < 2 * KEPT_BYTES
    with path.open("rb") as file:
        file.seek(size - KEPT_BYTES)
        assert file.read() == b"x" * KEPT_BYTES + b"the next line\n"
    assert not trim(path)
