"""``python -m tests.model [--brief]``: explores the shipped tables, then looks for every planted mistake, and prints a
shortest trace of each unless told to be brief. Exit 0: no violation, and every mistake was found.
"""

from __future__ import annotations

import multiprocessing
import sys
import time

from tests.model.check import check_plant, check_shipped, report
from tests.model.plants import PLANTS
from tests.model.world import LINKS_MAX, Kind

PROCESSES = 2


def main(*, brief: bool) -> int:
    started = time.monotonic()
    print(
        f"bounds: {LINKS_MAX} links that are not forgotten at a time; crashes, cuts, cancels and"
        " failures without number"
    )
    with multiprocessing.Pool(PROCESSES, maxtasksperchild=1) as pool:
        kinds = list(Kind)
        results = dict(zip(kinds, pool.map(check_shipped, kinds, chunksize=1), strict=True))
        for kind, result in results.items():
            print(report(kind, result))
        well = all(r.closed and not r.violations for r in results.values())
        jobs = [(plant, frozenset(results[plant.kind].violations)) for plant in PLANTS]
        waiting = [pool.apply_async(_check, (n, known)) for n, (_, known) in enumerate(jobs)]
        found = 0
        for number, answer in enumerate(waiting):
            what, depth, states, trace = answer.get()
            found += bool(what)
            print(f"planted: {PLANTS[number].name} ({PLANTS[number].kind})")
            print(f"  {what or 'NOT FOUND'}, after {depth} steps, {states} states", flush=True)
            if trace and not brief:
                print(*(f"    {line}" for line in trace.splitlines()[1:]), sep="\n")
    count = sum(len(r.violations) for r in results.values())
    print(
        f"{sum(r.states for r in results.values())} states,"
        f" {sum(r.transitions for r in results.values())} transitions,"
        f" depth {max(r.depth for r in results.values())}, {count} violations,"
        f" {found} of {len(PLANTS)} planted mistakes found,"
        f" {time.monotonic() - started:.0f} s"
    )
    return 0 if well and found == len(PLANTS) else 1


def _check(number: int, known: frozenset[str]) -> tuple[str, int, int, str]:
    finding = check_plant(PLANTS[number], known)
    return finding.found, finding.depth, finding.states, finding.trace


if __name__ == "__main__":
    sys.exit(main(brief="--brief" in sys.argv[1:]))
