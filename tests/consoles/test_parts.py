"""The small parts: what was printed and where it lies, what waits to be typed, who types."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from ldmd import console_log
from ldmd.consoles.desk import NOBODY, Desk
from ldmd.consoles.keyboard import TYPED_BYTES_MAX, Keyboard
from ldmd.consoles.output import REPLAY_BYTES_MAX, open_console
from protocol.limits import CONSOLE_DATA_BYTES_MAX
from protocol.messages import ConsoleAccess


async def test_output_is_read_from_anywhere_and_holes_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * (console_log.ALLOCATED_BYTES_MAX + 4096))
    size_bytes = path.stat().st_size
    with open_console(path) as file:
        assert await file.read(10) == (10, b"x" * CONSOLE_DATA_BYTES_MAX)
        assert await file.read(size_bytes) == (size_bytes, b"")
        assert await file.read(size_bytes + 5) == (size_bytes + 5, b"")
        assert console_log.trim(path)
        position, data = await file.read(10)
        assert 0 < size_bytes - position <= console_log.KEPT_BYTES
        assert set(data) == set(b"x")
        path.unlink()  # the domain has gone; its last words are still there
        assert await file.read(size_bytes - 3) == (size_bytes - 3, b"xxx")


@pytest.mark.parametrize(
    ("text", "lines", "shown"),
    [
        ("", 24, ""),
        ("login: ", 24, "login: "),
        ("a\nb\nc", 2, "b\nc"),
        ("a\nb\nc", 0, ""),
        ("a\nb\nc\n", 1, ""),
        ("a\nb\nc\n", 2, "c\n"),
        ("a\nb", 1000, "a\nb"),
        ("x" * 2 * REPLAY_BYTES_MAX, 3, "x" * REPLAY_BYTES_MAX),
    ],
)
async def test_last_lines(text: str, lines: int, shown: str, tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_text(text)
    with open_console(path) as file:
        assert text[await file.find_last_lines(lines) :] == shown


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("secret")
    (tmp_path / "console.log").symlink_to("other")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="symbolic links"), open_console(tmp_path / "console.log"):
        pass
    assert os.listdir("/proc/self/fd") == before


async def test_typing_waits_for_room_and_what_was_not_taken_stays() -> None:
    keyboard = Keyboard()
    await keyboard.put(b"a" * TYPED_BYTES_MAX)
    with trio.move_on_after(0.01) as scope:
        await keyboard.put(b"late")
    assert scope.cancelled_caught
    assert keyboard.peek(TYPED_BYTES_MAX - 1, 10) == b"a"
    keyboard.advance(TYPED_BYTES_MAX - 1)
    await keyboard.put(b"bc")
    assert keyboard.peek(0, 10) == b"abc"
    keyboard.enable(False, kept_bytes=1)
    assert keyboard.peek(0, 10) == b"a"
    await keyboard.put(b"dropped")
    assert keyboard.taken_bytes == TYPED_BYTES_MAX - 1 + 2 + len("dropped")
    keyboard.enable(True)
    await keyboard.put(b"d")
    assert keyboard.peek(0, 10) == b"ad"


def test_one_user_types_and_the_next_one_takes_over() -> None:
    desk = Desk()
    with desk.sit("u", "reader", ConsoleAccess.READ) as (reader, pen):
        assert (reader.types, reader.writer) == (False, NOBODY)
        with desk.sit("u", "second", ConsoleAccess.WRITE) as (second, same_pen):
            assert pen is same_pen
            assert (second.types, second.writer, reader.writer) == (True, None, "second")
            with desk.sit("u", "third", ConsoleAccess.WRITE) as (third, _):
                assert (third.types, third.writer) == (False, "second")
                with desk.sit("u", "boss", ConsoleAccess.FORCE) as (boss, _):
                    assert boss.types
                    assert {s.writer for s in (reader, second, third)} == {"boss"}
                    assert second.changed.is_set()
                assert (second.types, third.types) == (True, False)
        with desk.sit("v", "other", ConsoleAccess.WRITE) as (other, _):
            assert other.types, "another domain's console"
        assert reader.writer == NOBODY
    with desk.sit("u", "late", ConsoleAccess.WRITE) as (late, _):
        assert late.types
