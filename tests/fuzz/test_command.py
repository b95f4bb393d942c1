"""The command: it fuzzes, finds what is planted, keeps what failed, and says so where it cannot."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz.plants import planted
from tests.fuzz.tally import open_tally
from tests.fuzz.target import Examination, examine, watching
from tests.fuzz.targets import TARGETS

NEEDS_ATHERIS = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: pip install atheris (Linux on x86-64)",
)


@NEEDS_ATHERIS
def test_a_planted_crash_is_found_and_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Four bytes in a row: only who is led there gets there."""
    arguments = ["--plant", "crash", "--target", "codec", "--inputs", "60000"]
    assert command.main([*arguments, "--cases", str(tmp_path)]) == 1
    said = capfd.readouterr().out
    assert "KeyError: 'planted'" in said
    assert "found something in codec" in said
    (case,) = tmp_path.iterdir()
    assert case.name.startswith("codec-")
    codec = TARGETS["codec"]
    with watching():
        examine(codec, case.read_bytes(), measured=False)
        with planted("crash"), pytest.raises(KeyError):
            examine(codec, case.read_bytes(), measured=False)


@NEEDS_ATHERIS
def test_nothing_is_found_where_nothing_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--inputs", "2000", "--seed", "7", "--cases", str(tmp_path / "new")]) == 0
    said = capfd.readouterr().out
    assert "seed 7" in said
    assert "nothing found" in said
    assert all(f"{name}: " in said for name in TARGETS)
    assert not (tmp_path / "new").exists()


@NEEDS_ATHERIS
def test_a_seed_stands_for_one_run(tmp_path: Path) -> None:
    wanted = command.Wanted(inputs=3000, seconds=0, seed=5, cases=tmp_path, plant=None)
    corpora = []
    for name in ("one", "other"):
        folder = tmp_path / name
        (folder / "corpus").mkdir(parents=True)
        (folder / "found").mkdir()
        seeds = command.write_seeds(TARGETS["codec"], folder / "corpus")
        with open_tally(folder / "tally") as tally:
            assert command.run_engine(TARGETS["codec"], wanted, folder, tally) == 0
            assert tally.inputs == wanted.inputs
        if "addresses cannot be fixed here" in (folder / "log").read_text(errors="replace"):
            pytest.skip("the kernel does not let a process fix its addresses")
        corpora.append({path.name for path in (folder / "corpus").iterdir()})
        assert len(corpora[-1]) > seeds
    assert corpora[0] == corpora[1]


@NEEDS_ATHERIS
def test_what_costs_too_much_memory_is_found_in_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Few inputs are measured on the way; each that reached new code is, afterwards."""
    witness = tmp_path / "witness"
    witness.write_bytes(b"\xde\xff\xff")
    assert command.measure(TARGETS["codec"], [witness], None) == []
    assert command.measure(TARGETS["codec"], [witness], "believed-length") == [witness]
    assert "MemoryExceeded" in capfd.readouterr().out


def test_without_atheris_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert command.main(["--inputs", "1"]) == 2
    assert "atheris cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--inputs", "0"], ["--seed", "0"], ["--seconds", "-1"], ["--target", "x"]]
)
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.parse(arguments)
    assert caught.value.code == 2


def test_a_process_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "STALL_SECONDS", 0.5)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with open_tally(tmp_path / "tally") as tally:
            assert command.wait_engine(TARGETS["codec"], process, tally) == -1
    finally:
        process.kill()
        process.wait()


def test_a_tally_outlives_its_writer(tmp_path: Path) -> None:
    with open_tally(tmp_path / "tally") as one:
        assert (one.begin(), one.begin()) == (1, 2)
        one.note(Examination(0.25, None))
        one.note(Examination(0.125, 4096))
    with open_tally(tmp_path / "tally") as other:
        assert (other.inputs, other.measured, other.peak_bytes) == (2, 1, 4096)
        assert other.longest_seconds == pytest.approx(0.25)
