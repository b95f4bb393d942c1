"""``python -m tests.fuzz [--inputs N] [--seed S] [--target NAME] [--seconds N]``: coverage-guided fuzzing with atheris.

Each target is fuzzed in a process of its own, from seeds made of the golden vectors; then every input that reached new code
is examined once more, with its memory measured. An input that fails is written to ``tests/fuzz/cases``, where the tests
replay it for ever. Exit 0: as many inputs as were asked for, or as there was time for, and nothing found. Exit 1: something
was found. Exit 2: it cannot be run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.fuzz.plants import PLANTS, planted
from tests.fuzz.tally import Tally, open_tally
from tests.fuzz.target import InputHung, Target, examine, watching
from tests.fuzz.targets import TARGETS

ROOT: Final = Path(__file__).parents[2]
CASES: Final = Path(__file__).parent / "cases"
INPUTS: Final = 10_000_000
STALL_SECONDS: Final = 120.0
"""Without one more input, by the wall: the process hangs where no timer of its own is heard. Starved machines are slow."""
RSS_MIB_MAX: Final = 1024
PROGRESS_SECONDS: Final = 60.0


@frozen(kw_only=True)
class Wanted:
    """What to do for one target."""

    inputs: int
    seconds: int
    """0: as long as it takes."""
    seed: int
    cases: Path
    plant: str | None


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        importlib.import_module("atheris")
    except ImportError as error:
        print(
            f"atheris cannot be imported, so nothing can be fuzzed: {error}\n"
            "pip install atheris: there are wheels for Linux on x86-64; elsewhere it is built from"
            " source with clang",
            file=sys.stderr,
        )
        return 2
    chosen = list(TARGETS.values()) if options.target == "all" else [TARGETS[options.target]]
    shares = sum(target.share for target in chosen)
    failed: list[str] = []
    total = 0
    started = time.monotonic()
    for target in chosen:
        wanted = Wanted(
            inputs=-(-options.inputs * target.share // shares),
            seconds=-(-options.seconds * target.share // shares),
            seed=options.seed,
            cases=options.cases,
            plant=options.plant,
        )
        with tempfile.TemporaryDirectory(prefix="ldmd-fuzz-") as folder:
            inputs, good = fuzz(target, wanted, Path(folder))
        total += inputs
        if not good:
            failed.append(target.name)
    print(
        f"{total} inputs, seed {options.seed}, {time.monotonic() - started:.0f} s:"
        f" {'found something in ' + ', '.join(failed) if failed else 'nothing found'}"
    )
    return 1 if failed else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=INPUTS, help="of all targets together")
    parser.add_argument(
        "--seed", type=int, default=1, help="1 or more; the same one finds the same"
    )
    parser.add_argument("--seconds", type=int, default=0, help="at most, of all targets together")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--cases", type=Path, default=CASES, help="where inputs that fail are put")
    parser.add_argument("--plant", choices=list(PLANTS), help="a mistake that must be found")
    options = parser.parse_args(arguments)
    if options.inputs < 1 or options.seed < 1 or options.seconds < 0:
        parser.error("--inputs and --seed are 1 or more, --seconds is not negative")
    return options


def fuzz(target: Target, wanted: Wanted, folder: Path) -> tuple[int, bool]:
    """(inputs examined, whether all is well) of one target; prints the rest."""
    corpus, artifacts = folder / "corpus", folder / "found"
    for new in (corpus, artifacts):
        new.mkdir()
    seeds = write_seeds(target, corpus)
    started = time.monotonic()
    with open_tally(folder / "tally") as tally:
        code = run_engine(target, wanted, folder, tally)
        elapsed = time.monotonic() - started
        done = tally.inputs >= wanted.inputs or bool(wanted.seconds)
        found = list(artifacts.iterdir())
        print(
            f"{target.name}: {tally.inputs} inputs, {elapsed:.0f} s,"
            f" {tally.inputs / max(elapsed, 1e-3):.0f}/s; longest {tally.longest_seconds * 1000:.1f} ms"
            f" of CPU; {tally.measured} measured, at most {tally.peak_bytes >> 10} KiB",
            flush=True,
        )
        well = code == 0 and done and not found
        if not well:
            print(f"{target.name}: the fuzzer ended with {code}", flush=True)
            sys.stdout.write(tail(folder / "log"))
        inputs = tally.inputs
    grown = sorted(corpus.iterdir())
    if well:
        faults = measure(target, grown, wanted.plant)
        found += faults
        well = not faults
        print(
            f"{target.name}: {len(grown)} inputs reached new code ({seeds} were seeds),"
            f" all measured, {len(faults)} failed",
            flush=True,
        )
    for path in found:
        keep(target, path, wanted.cases)
    return inputs, well


def write_seeds(target: Target, corpus: Path) -> int:
    seeds = {seed[: target.input_bytes_max] for seed in target.seeds()}
    for seed in seeds:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words = corpus.parent / "words"
    escaped = ("".join(map("\\x{:02x}".format, word)) for word in target.words())
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    return len(seeds)


def run_engine(target: Target, wanted: Wanted, folder: Path, tally: Tally) -> int:
    """The exit status of the process that fuzzes; it is ended when it stalls.

    It is told names below ``folder`` alone: in what order files come, and what else hangs on a path, is the same then.
    """
    command = [
        *(sys.executable, "-m", "tests.fuzz.engine"),
        *(target.name, "tally", wanted.plant or "-", "--"),
        *(
            f"-runs={wanted.inputs}",
            f"-seed={wanted.seed}",
            "-reload=0",
            f"-max_len={target.input_bytes_max}",
        ),
        *(("-dict=words",) if target.words() else ()),
        "-artifact_prefix=found/",
        *(f"-rss_limit_mb={RSS_MIB_MAX}", f"-timeout={STALL_SECONDS:.0f}"),
        *((f"-max_total_time={wanted.seconds}",) if wanted.seconds else ()),
        "corpus",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            return wait_engine(target, process, tally)
        finally:
            process.kill()
            process.wait()


def wait_engine(target: Target, process: subprocess.Popen[bytes], tally: Tally) -> int:
    seen, moved_at = -1, time.monotonic()
    told_at = moved_at
    while True:
        try:
            return process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        if tally.inputs != seen:
            seen, moved_at = tally.inputs, now
        if now - moved_at > STALL_SECONDS * 1.5:
            print(f"{target.name}: no input ended for {now - moved_at:.0f} s", flush=True)
            return -1
        if now - told_at >= PROGRESS_SECONDS:
            told_at = now
            print(f"{target.name}: {seen} inputs so far", flush=True)


def tail(log: Path, lines: int = 60) -> str:
    text = log.read_text(errors="replace").splitlines()
    return "".join(f"  {line}\n" for line in text[-lines:])


def measure(target: Target, paths: list[Path], plant: str | None) -> list[Path]:
    """Those that fail when their memory is looked at."""
    failed = []
    with planted(plant), watching():
        for path in paths:
            try:
                examine(target, path.read_bytes(), measured=True)
            except (Exception, InputHung) as error:
                print(f"{target.name}: {path.name}: {type(error).__name__}: {error}", flush=True)
                failed.append(path)
    return failed


def keep(target: Target, path: Path, cases: Path) -> None:
    data = path.read_bytes()
    kept = cases / f"{target.name}-{hashlib.sha1(data).hexdigest()[:16]}"
    cases.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(data)
    print(f"{target.name}: kept {kept}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the process that fuzzes ends with us
    sys.exit(main(sys.argv[1:]))
