"""``python -m tests.fuzz.engine``: the process that fuzzes one target with atheris; ``__main__`` starts it.

libFuzzer never comes back: it ends the process, 0 when it has run what it was told to, and something else after it has
written the input that failed. What is instrumented is instrumented when it is imported, so nothing may have imported it
before.

A seed stands for one run only where addresses are the same each time: libFuzzer files comparisons by the address of their
code. So the process starts itself once more with the kernel's randomization of addresses off, where it is let.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import sys
from contextlib import ExitStack
from pathlib import Path

LEADING = {
    "frames": {"frames"},
    "codec": {"codec", "frames"},
    "session": {"frames", "connection", "session", "events", "machine", "source", "target"},
}
"""Modules of ``protocol`` whose coverage leads. Not all that is run: the codec under every session would cost half of the
time, and lead away from what a session is about; so would a connection under every stream of frames.
"""

MODULES = frozenset().union(*LEADING.values())


ADDR_NO_RANDOMIZE = 0x0040000
"""personality(2)."""


def fix_addresses(arguments: list[str]) -> None:
    """Does not come back where it can be done and is not done yet."""
    libc = ctypes.CDLL(None)
    now = libc.personality(0xFFFFFFFF)
    if now == -1 or now & ADDR_NO_RANDOMIZE:
        return
    if libc.personality(now | ADDR_NO_RANDOMIZE) == -1:
        print("addresses cannot be fixed here: the seed does not repeat this run", flush=True)
        return
    os.execv(sys.executable, [sys.executable, "-m", "tests.fuzz.engine", *arguments])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.engine")
    parser.add_argument("target")
    parser.add_argument("tally", type=Path)
    parser.add_argument("plant", help="a mistake to plant, or -")
    parser.add_argument("libfuzzer", nargs="*", help="what libFuzzer is told")
    options = parser.parse_args(arguments)

    atheris = importlib.import_module("atheris")
    planting = options.plant != "-"
    skipped = [f"protocol.{name}" for name in MODULES - LEADING[options.target]]
    with atheris.instrument_imports(include=["protocol", "tests"], exclude=skipped):
        for name in LEADING[options.target]:
            importlib.import_module(f"protocol.{name}")
        if planting:
            importlib.import_module("tests.fuzz.plants")
    from tests.fuzz.plants import planted
    from tests.fuzz.tally import open_tally
    from tests.fuzz.target import MEASURED_EACH, examine, watching
    from tests.fuzz.targets import TARGETS

    target = TARGETS[options.target]
    with ExitStack() as stack:
        stack.enter_context(planted(options.plant if planting else None))
        tally = stack.enter_context(open_tally(options.tally))
        stack.enter_context(watching())

        def run(data: bytes) -> None:
            number = tally.begin()
            tally.note(examine(target, data, measured=number % MEASURED_EACH == 0))

        atheris.Setup([sys.argv[0], *options.libfuzzer], run)
        atheris.Fuzz()


if __name__ == "__main__":
    fix_addresses(sys.argv[1:])
    main(sys.argv[1:])
