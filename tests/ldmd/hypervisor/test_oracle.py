"""The checker must see every way in which memory or console can be wrong."""

from __future__ import annotations

import mmap
import shutil
import subprocess
from pathlib import Path

import pytest

import ldmd.hypervisor
from ldmd.hypervisor.oracle import PAGE_BYTES, OracleLayout, check_console, check_memory

FIRMWARE = Path(ldmd.hypervisor.__file__).parent / "firmware"
PAGES = 64
LITTLE = OracleLayout(region="ram", ranges=((PAGE_BYTES, None),), word_base=0x8000_0000)
BIG = OracleLayout(
    region="ram",
    ranges=((2 * PAGE_BYTES, 10 * PAGE_BYTES), (20 * PAGE_BYTES, None)),
    word_bytes=4,
    word_offset=16,
    byte_order="big",
    byte_offset=4095,
)


def counted(layout: OracleLayout) -> list[int]:
    return [
        offset
        for first, end in layout.ranges
        for offset in range(first, PAGES * PAGE_BYTES if end is None else end, PAGE_BYTES)
    ]


def write_ram(layout: OracleLayout, visits: int) -> bytearray:
    """RAM as the rules leave it after that many visits."""
    ram = bytearray(PAGES * PAGE_BYTES)
    pages = counted(layout)
    for index, offset in enumerate(pages):
        passes = visits // len(pages) + (index < visits % len(pages))
        if passes:
            word = (layout.word_base + offset).to_bytes(layout.word_bytes, layout.byte_order)
            start = offset + layout.word_offset
            ram[start : start + layout.word_bytes] = word
            ram[offset + layout.byte_offset] = passes % 256
    return ram


@pytest.mark.parametrize("layout", [LITTLE, BIG], ids=["little", "big"])
@pytest.mark.parametrize("passes", [0, 1, 2, 254, 255, 256, 257, 511])
def test_what_the_rules_leave_is_right(layout: OracleLayout, passes: int) -> None:
    count = len(counted(layout))
    for more in (1, 2, count // 2, count - 1, count):
        report = check_memory(memoryview(write_ram(layout, passes * count + more)), layout)
        assert report.ok, report.sentence
        assert (report.edges, report.pages) == (int(more < count), count)
        assert report.visited == (more if passes == 0 else count)


def test_word_written_and_byte_not_yet() -> None:
    ram = write_ram(LITTLE, 10)
    page = counted(LITTLE)[10]
    ram[page : page + 8] = (LITTLE.word_base + page).to_bytes(8, "little")
    assert check_memory(memoryview(ram), LITTLE).ok


def test_memory_that_never_ran_is_not_right() -> None:
    report = check_memory(memoryview(bytearray(PAGES * PAGE_BYTES)), LITTLE)
    assert (report.ok, report.visited) == (False, 0)


@pytest.mark.parametrize("layout", [LITTLE, BIG], ids=["little", "big"])
@pytest.mark.parametrize("passes", [1, 3, 256])
def test_every_damaged_page_is_seen(layout: OracleLayout, passes: int) -> None:
    pages = counted(layout)
    right = write_ram(layout, passes * len(pages) + len(pages) // 2)
    earlier = write_ram(layout, (passes - 1) * len(pages) + len(pages) // 2)
    later = write_ram(layout, (passes + 1) * len(pages) + len(pages) // 2)
    for index, page in enumerate(pages):
        other = pages[index - 1]
        whole = slice(page, page + PAGE_BYTES)
        # At the edge a page that is one pass off moves the edge: no rule is broken by that.
        near_edge = index in (0, len(pages) - 1) or abs(index - len(pages) // 2) <= 1
        damages = [bytes(PAGE_BYTES), right[other : other + PAGE_BYTES]]
        damages += [] if near_edge else [earlier[whole], later[whole]]
        for damage in damages:
            ram = bytearray(right)
            ram[whole] = damage
            assert not check_memory(memoryview(ram), layout).ok, (index, damage[:24])


def test_lost_tail_of_a_pass_is_seen() -> None:
    pages = counted(LITTLE)
    ram = write_ram(LITTLE, 5 * len(pages))
    ram[pages[40] :] = bytes(len(ram) - pages[40])
    report = check_memory(memoryview(ram), LITTLE)
    assert not report.ok
    assert f"{LITTLE.word_base + pages[40]:#x}" in report.sentence


def test_takes_a_mapping_and_lets_go_of_it() -> None:
    with mmap.mmap(-1, PAGES * PAGE_BYTES) as ram:
        ram[:] = bytes(write_ram(LITTLE, 100))
        assert check_memory(ram, LITTLE).ok  # closing raises BufferError while views are left


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_console_goes_on_where_it_was_cut(cut: int) -> None:
    text = "".join(f"oracle {n}\n" for n in range(7, 13))
    report = check_console(text[cut:], follows=text[:cut])
    assert report.contiguous, report.sentence
    assert (report.first, report.last, report.lines) == (7, 12, 6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oracle 1",
        "oracle 1\noracle 3\n",
        "oracle 1\noracle 1\n",
        "oracle 2\noracle 1\n",
        "oracle 1\n\noracle 2\n",
        "oracle 1\noracle 02\n",
        "oracle 1\noracle x\n",
        "oracle 1\noracle 3",
        "oracle 1\noracle 22",
        "oracle 1\nhello\n",
        "hello\n",
    ],
)
def test_console_faults_are_seen(text: str) -> None:
    assert not check_console(text).contiguous


def test_console_with_a_banner_and_carriage_returns() -> None:
    report = check_console("Welcome\r\n\r\noracle 99\r\noracle 100\r\noracle 1")
    assert report.contiguous
    assert (report.first, report.last) == (99, 100)


def test_shipped_bytes_are_of_the_shipped_source(tmp_path: Path) -> None:
    for tool in ("riscv64-linux-gnu-as", "riscv64-linux-gnu-objcopy"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not there: apt-get install binutils-riscv64-linux-gnu")
    made = tmp_path / "oracle.o"
    for command in (
        ["riscv64-linux-gnu-as", "-march=rv64im", "-mabi=lp64", "-o", made],
        ["riscv64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", made, tmp_path / "oracle.bin"],
    ):
        source = [FIRMWARE / "oracle-riscv64.S"] if command[0].endswith("as") else []
        subprocess.run([*command, *source], check=True, timeout=30)
    shipped = (FIRMWARE / "oracle-riscv64.bin").read_bytes()
    assert (tmp_path / "oracle.bin").read_bytes() == shipped
    assert len(shipped) < PAGE_BYTES - 32, "code and digits are in the first page"
