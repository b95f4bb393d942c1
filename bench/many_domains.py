"""A host with many domains beside one with few: ``python -m bench.many_domains --rounds 5``.

Two pairs of managers on this machine, alike but for how many inactive domains the source has. In each round, one after the
other and in changing order: ``ldm list`` as a command, the listing alone over the control socket, a running domain moved
there and back, and the start of the manager until it answers. Prints a table of medians, and JSON with ``--json``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import click
import trio

from bench.rounds import Samples
from ldmd.client import ControlClient
from ldmd.demo.fleet import SOURCE, TARGET, Fleet, make_fleet

MIB: Final = 1024 * 1024
MOVED: Final = "moved"
MEMORY_MIB: Final = 8


def define(name: str, memory_mib: int) -> dict[str, object]:
    return {
        "name": name,
        "uuid": str(uuid.uuid4()),
        "hypervisor": "emulated",
        "machine": "riscv64-virt",
        "firmware": "oracle",
        "memory-bytes": memory_mib * MIB,
        "variables": {"clock-mhz": "1"},
    }


@asynccontextmanager
async def open_pair(count: int) -> AsyncIterator[Fleet]:
    """``count`` inactive domains at the source, and one that runs."""
    with make_fleet(MEMORY_MIB * MIB) as fleet:
        try:
            async with trio.open_nursery() as nursery:
                for name in (SOURCE, TARGET):
                    nursery.start_soon(fleet.start, name)
            async with fleet.connect(SOURCE) as client:
                for number in range(count):
                    await client.add_domain(define(f"domain{number:04}", 1))
                await client.add_domain(define(MOVED, MEMORY_MIB))
                for verb in ("bind-domain", "start-domain"):
                    await client.change_domain(verb, MOVED)
            yield fleet
        finally:
            with trio.CancelScope(shield=True):
                await _end(fleet)


async def _end(fleet: Fleet) -> None:
    for name in fleet.managers:
        async with fleet.connect(name) as client:
            for domain in (await client.list_domains())["domains"]:
                if domain["state"] == "active":
                    await client.change_domain("stop-domain", domain["name"])
    await fleet.stop_all()


def time_command(fleet: Fleet, *words: str) -> tuple[float, float]:
    """``ldm`` as a process: seconds until it has ended, and of processor time."""
    socket = fleet.hosts[SOURCE].config.host.control_socket
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [Path(sys.executable).with_name("ldm"), *words],
        env=os.environ | {"LDM_SOCKET": str(socket)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, spent


async def time_listing(client: ControlClient) -> float:
    start = time.perf_counter()
    await client.list_domains()
    return time.perf_counter() - start


async def time_move(fleet: Fleet, source: str, target: str) -> tuple[float, float]:
    """Seconds until it is answered, and the downtime in milliseconds."""
    async with fleet.connect(source) as client:
        start = time.perf_counter()
        result: Mapping[str, Any] = await client.migrate_domain(MOVED, target)
        return time.perf_counter() - start, result["downtime_ms"]


async def time_start(fleet: Fleet) -> float:
    """The source's manager, ended and started again: seconds until it answers."""
    manager = fleet.managers[SOURCE]
    manager.terminate()
    await manager.wait()
    start = time.perf_counter()
    await fleet.start(SOURCE)
    return time.perf_counter() - start


async def measure(fleet: Fleet, variant: str, samples: Samples) -> None:
    for words in (("list",), ("list", "--json")):
        seconds, spent = await trio.to_thread.run_sync(time_command, fleet, *words)
        name = " ".join(("ldm", *words))
        samples.add(f"{name}, s", variant, seconds)
        samples.add(f"{name}, CPU s", variant, spent)
    async with fleet.connect(SOURCE) as client:
        samples.add("answer to list-domains, s", variant, await time_listing(client))
    for source, target in ((SOURCE, TARGET), (TARGET, SOURCE)):
        seconds, downtime_ms = await time_move(fleet, source, target)
        samples.add("migration, s", variant, seconds)
        samples.add("downtime, ms", variant, downtime_ms)
    samples.add("start of the manager, s", variant, await time_start(fleet))


async def run(counts: tuple[int, ...], rounds: int) -> Samples:
    variants = [f"{count} domains" for count in counts]
    samples = Samples(variants)
    async with open_pair(counts[0]) as few, open_pair(counts[1]) as many:
        pairs = list(zip((few, many), variants, strict=True))
        for number in range(rounds):
            for fleet, variant in pairs if number % 2 == 0 else reversed(pairs):
                await measure(fleet, variant, samples)
            click.echo(f"round {number + 1} of {rounds}", err=True)
    return samples


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--few", type=click.IntRange(1), default=10, show_default=True)
@click.option("--many", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the figures here.")
def main(rounds: int, few: int, many: int, path: Path | None) -> None:
    """Compare a host with many domains to one with few."""
    samples = trio.run(run, (few, many), rounds)
    click.echo(samples.to_table())
    if path is not None:
        path.write_text(json.dumps(samples.to_document(), indent=2) + "\n")


if __name__ == "__main__":
    main()
