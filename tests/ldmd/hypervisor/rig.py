"""Domains for one test, and what a manager does with them; ended and counted when the test ends."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import define, field

from ldmd.definition import DomainDefinition
from ldmd.hypervisor import process
from ldmd.hypervisor.driver import Attachments, DomainProcess, Hypervisor, RunStatus
from ldmd.hypervisor.oracle import check_console, examine_memory, read_console
from tests.ldmd.hypervisor.cases import HypervisorCase

ORACLE_LINE = re.compile(r"^oracle \d+\r?\n", re.MULTILINE)
"""A firmware may print a banner before the oracle does."""

POLL_SECONDS = 0.005
STILL_SECONDS = 0.1
"""Nothing can be waited for when nothing may happen: how long it is watched not to."""


@define(eq=False)
class Rig:
    case: HypervisorCase
    root: Path
    hypervisor: Hypervisor
    domains: list[DomainProcess] = field(factory=list)
    run_directories: list[Path] = field(factory=list)

    @classmethod
    def from_case(cls, case: HypervisorCase, root: Path) -> Rig:
        return cls(case, root, case.make(case.answer_seconds))

    def make_run_directory(self) -> Path:
        # Longer than a socket's address may be.
        path = self.root / ("run-" + "x" * 100) / str(len(self.run_directories))
        path.mkdir(parents=True, mode=0o700)
        self.run_directories.append(path)
        return path

    async def create(self, definition: DomainDefinition | None = None) -> DomainProcess:
        definition = definition or self.case.define()
        domain = await self.hypervisor.create(definition, self.make_run_directory(), Attachments())
        self.domains.append(domain)
        return domain

    async def create_receiving(self, definition: DomainDefinition | None = None) -> DomainProcess:
        definition = definition or self.case.define()
        domain = await self.hypervisor.create_receiving(
            definition, self.make_run_directory(), Attachments()
        )
        self.domains.append(domain)
        return domain

    async def adopt(
        self, definition: DomainDefinition, run_directory: Path
    ) -> DomainProcess | None:
        domain = await self.hypervisor.adopt(definition, run_directory)
        if domain is not None:
            self.domains.append(domain)
        return domain

    async def run_until_printed(self, domain: DomainProcess, lines: int = 2) -> None:
        """Resume it, and wait until it has printed that many whole lines here."""
        await domain.resume()
        await self.wait_until(lambda: len(ORACLE_LINE.findall(read_console(domain))) >= lines)

    async def run_whole_pass(self, domain: DomainProcess) -> None:
        """Run it until every counted page was visited, and leave it suspended."""
        await self.run_until_printed(domain)
        with trio.fail_after(self.case.boot_seconds):
            while True:
                await domain.suspend()
                report = examine_memory(domain, self.case.layout)
                assert report.ok, report.sentence
                if report.visited == report.pages:
                    return
                await domain.resume()
                await trio.sleep(POLL_SECONDS)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(self.case.boot_seconds):
            while True:
                if condition():
                    return
                await trio.sleep(POLL_SECONDS)

    async def wait_status(self, domain: DomainProcess, *expected: RunStatus) -> None:
        with trio.fail_after(self.case.boot_seconds):
            while True:
                if await domain.status() in expected:
                    return
                await trio.sleep(POLL_SECONDS)

    def assert_oracle(self, domain: DomainProcess, follows: str = "") -> None:
        """Of a suspended domain."""
        memory = examine_memory(domain, self.case.layout)
        assert memory.ok, memory.sentence
        console = check_console(read_console(domain), follows)
        assert console.contiguous, console.sentence

    async def assert_still(self, domain: DomainProcess) -> None:
        """No byte of RAM and console changes."""
        before = digest_ram(domain), read_console(domain)
        await trio.sleep(STILL_SECONDS)
        assert (digest_ram(domain), read_console(domain)) == before

    async def move(self, source: DomainProcess, definition: DomainDefinition) -> DomainProcess:
        """A suspended domain's state into a new process, suspended; the source stays as it is."""
        target = await self.create_receiving(definition)
        state = await source.retrieve_device_state()
        copy_ram(source, target)
        await target.install_device_state(state)
        return target

    async def aclose(self) -> None:
        for domain in self.domains:
            await domain.aclose()
        for run_directory in self.run_directories:
            identity = process.find(run_directory)
            if identity is not None:
                await process.kill(identity, 10)
            assert processes_in(run_directory) == [], "no process is there that nobody knows of"


@contextmanager
def ram_of(domain: DomainProcess) -> Iterator[list[int]]:
    descriptors = domain.open_ram()
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def data_ranges(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """(first, end) of what is populated."""
    end = 0
    while end < size_bytes:
        try:
            first = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: no data up to the end
            return
        end = os.lseek(descriptor, first, os.SEEK_HOLE)
        yield first, end


def copy_ram(source: DomainProcess, target: DomainProcess) -> int:
    """What is populated at the source, to the target; gives the number of bytes."""
    copied_bytes = 0
    with ram_of(source) as sources, ram_of(target) as targets:
        for region, ours, theirs in zip(source.regions, sources, targets, strict=True):
            with mmap.mmap(
                theirs, region.size_bytes
            ) as ram:  # huge pages cannot be written to otherwise
                for first, end in data_ranges(ours, region.size_bytes):
                    ram[first:end] = os.pread(ours, end - first, first)
                    copied_bytes += end - first
    return copied_bytes


def digest_ram(domain: DomainProcess) -> bytes:
    digest = hashlib.sha256()
    with ram_of(domain) as descriptors:
        for region, descriptor in zip(domain.regions, descriptors, strict=True):
            with mmap.mmap(descriptor, region.size_bytes, prot=mmap.PROT_READ) as ram:
                digest.update(ram)
    return digest.digest()


def processes_in(run_directory: Path) -> list[int]:
    """Processes that live and have their working directory there."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                if (path / "cwd").readlink() == run_directory:
                    found.append(int(path.name))
            except OSError:
                continue  # ended meanwhile, or a zombie
    return found


def descriptors_of(pid: int) -> list[Path]:
    """What a process has open."""
    return [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]


def open_descriptors() -> dict[str, str]:
    """This process's own: number -> what it is."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except OSError:
            continue  # the one that lists the directory
    return found
