"""The demo's story: a domain that counts is started on one host, moved to the other, and examined.

Nothing is taken on trust: the copies that run are counted by asking both managers and looking at the
processes, the memory and the console are held against the oracle's rules
(``ldmd/hypervisor/oracle.py``), and that after both managers have ended: a domain outlives them.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio
from attrs import frozen

from ldmd.definition import DomainDefinition, to_document
from ldmd.demo.fleet import HOSTS, SOURCE, TARGET, DemoFailed, Fleet, make_fleet
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor.driver import Hypervisor
from ldmd.hypervisor.emulated import ORACLE_LAYOUT as EMULATED_LAYOUT
from ldmd.hypervisor.emulated import EmulatedHypervisor
from ldmd.hypervisor.oracle import DomainReport, OracleLayout, examine_domain
from ldmd.hypervisor.qemu import ORACLE_LAYOUTS as QEMU_LAYOUTS
from ldmd.hypervisor.qemu import QemuHypervisor
from protocol import limits
from protocol.phases import Phase

DOMAIN: Final = "ldg1"
LINES_SHOWN: Final = 4
LINES_AWAITED: Final = 12
CONSOLE_SECONDS: Final = 60.0
CONSOLE_POLL_SECONDS: Final = 0.05
PUT_AWAY_SECONDS: Final = 60.0


@frozen(kw_only=True)
class Kind:
    """A hypervisor of the demo, and the domain that it runs."""

    machine: str
    memory_bytes: int
    make: Callable[[], Hypervisor]
    layout: OracleLayout


KINDS: Final[Mapping[str, Kind]] = {
    "emulated": Kind(
        machine="riscv64-virt",
        memory_bytes=64 * limits.MIB,
        make=EmulatedHypervisor,
        layout=EMULATED_LAYOUT,
    ),
    "qemu": Kind(
        machine="pc",
        memory_bytes=256 * limits.MIB,
        make=QemuHypervisor,
        layout=QEMU_LAYOUTS["pc.ram"],
    ),
}


class Stage(Protocol):
    """Where the story is shown."""

    def say(self, sentence: str) -> None: ...

    def show_console(self, host: str, lines: list[str]) -> None: ...

    def migrating(self) -> contextlib.AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """What is given takes the progress documents."""


@frozen(kw_only=True)
class DemoReport:
    """``phases``: seconds of each. ``running_on``: the only host with a running copy, else None."""

    domain: str
    hypervisor: str
    memory_bytes: int
    phases: Mapping[str, float]
    bytes: int
    digest_source: str | None
    digest_target: str | None
    downtime_ms: float | None
    copies_running: int
    running_on: str | None
    console_contiguous: bool
    console_lines: int
    memory_oracle: bool
    memory_pages: int
    sentences: tuple[str, ...]
    """What the oracle says of the memory and of the console."""

    @property
    def ok(self) -> bool:
        return (
            self.digest_source is not None
            and self.digest_source == self.digest_target
            and list(self.phases) == [phase.value for phase in Phase]
            and self.downtime_ms is not None
            and (self.copies_running, self.running_on) == (1, TARGET)
            and self.console_contiguous
            and self.memory_oracle
        )

    def to_document(self) -> dict[str, Any]:
        return attrs.asdict(self) | {"ok": self.ok}


@frozen(kw_only=True)
class Copy:
    """A domain on one host, as its manager shows it."""

    host: str
    run_state: str | None
    pid: int
    console: Path

    @property
    def runs(self) -> bool:
        return self.run_state == "running" and process_lives(self.pid)


async def run_demo(hypervisor: str, memory_bytes: int | None, stage: Stage) -> DemoReport:
    """The whole story. Raises LdmdError; nothing is left running or on disk in any case."""
    kind = KINDS[hypervisor]
    definition = DomainDefinition(
        name=DOMAIN,
        uuid=str(uuid.uuid4()),
        hypervisor=hypervisor,
        machine=kind.machine,
        firmware="oracle",
        memory_bytes=kind.memory_bytes if memory_bytes is None else memory_bytes,
    )
    driver = kind.make()
    await driver.capabilities()  # says what to install, before anything is started
    with make_fleet(definition.memory_bytes) as fleet:
        try:
            return await _travel(fleet, driver, kind, definition, stage)
        finally:
            with trio.move_on_after(PUT_AWAY_SECONDS, shield=True):
                await _put_away(fleet, driver, definition)


async def _travel(
    fleet: Fleet, driver: Hypervisor, kind: Kind, definition: DomainDefinition, stage: Stage
) -> DemoReport:
    async with trio.open_nursery() as nursery:
        for name in HOSTS:
            nursery.start_soon(fleet.start, name)
    stage.say(f"Two managers run: {SOURCE} and {TARGET}, each with a certificate of one authority.")
    before = await _start_domain(fleet, definition)
    stage.say(f"{DOMAIN} runs on {SOURCE}; it counts, in memory and on its console:")
    # Open before the migration: the source's copy goes, and its files with it.
    with before.console.open(errors="replace") as source_console:
        await _wait_lines(before.console, LINES_AWAITED)
        stage.show_console(SOURCE, _whole_lines(_read(before.console))[-LINES_SHOWN:])
        stage.say(f"Moving {DOMAIN} to {TARGET}:")
        with stage.migrating() as on_progress:
            async with fleet.connect(SOURCE) as client:
                result = await client.migrate_domain(DOMAIN, TARGET, on_progress=on_progress)
        printed = source_console.read()
    copies = await _find_copies(fleet)
    if [copy.host for copy in copies] != [TARGET]:
        where = ", ".join(copy.host for copy in copies) or "nowhere"
        raise DemoFailed(f"{DOMAIN} must be on {TARGET} alone now, and is: {where}")
    after = copies[0]
    await _wait_lines(after.console, LINES_AWAITED)
    stage.say(f"It goes on counting on {TARGET}, from where it was:")
    stage.show_console(SOURCE, _whole_lines(printed)[-LINES_SHOWN // 2 :])
    stage.show_console(TARGET, _whole_lines(_read(after.console))[:LINES_SHOWN])
    running = [copy.host for copy in await _find_copies(fleet) if copy.runs]
    running += [SOURCE] if process_lives(before.pid) else []
    report = await _examine(fleet, driver, kind, definition, after, printed)
    return DemoReport(
        domain=DOMAIN,
        hypervisor=definition.hypervisor,
        memory_bytes=definition.memory_bytes,
        phases=result["phases"],
        bytes=result["bytes"],
        digest_source=result["digest_source"],
        digest_target=result["digest_target"],
        downtime_ms=result["downtime_ms"],
        copies_running=len(running),
        running_on=running[0] if len(running) == 1 else None,
        console_contiguous=report.console.contiguous,
        console_lines=report.console.lines,
        memory_oracle=report.memory.ok,
        memory_pages=report.memory.pages,
        sentences=(f"memory: {report.memory.sentence}", f"console: {report.console.sentence}"),
    )


async def _start_domain(fleet: Fleet, definition: DomainDefinition) -> Copy:
    async with fleet.connect(SOURCE) as client:
        await client.add_domain(to_document(definition))
        await client.change_domain("bind-domain", DOMAIN)
        await client.change_domain("start-domain", DOMAIN)
    return (await _find_copies(fleet))[0]


async def _find_copies(fleet: Fleet) -> list[Copy]:
    """Every active copy of the domain that a manager knows of."""
    copies = []
    for host in HOSTS:
        async with fleet.connect(host) as client:
            listing = await client.list_domains()
        copies += [
            Copy(
                host=listing["host"],
                run_state=domain["run_state"],
                pid=domain["pid"],
                console=Path(domain["console"]),
            )
            for domain in listing["domains"]
            if domain["pid"] is not None
        ]
    return copies


async def _examine(
    fleet: Fleet,
    driver: Hypervisor,
    kind: Kind,
    definition: DomainDefinition,
    copy: Copy,
    printed: str,
) -> DomainReport:
    """Suspend it, end the managers, and hold its memory and console against the rules."""
    async with fleet.connect(copy.host) as client:
        await client.change_domain("suspend-domain", DOMAIN)
    await fleet.stop_all()
    directory = _directory(fleet, copy.host, definition)
    report = await examine_domain(driver, definition, directory, kind.layout, follows=printed)
    if report is None:
        raise DemoFailed(f"{DOMAIN} did not outlive the manager of {copy.host}")
    return report


async def _put_away(fleet: Fleet, driver: Hypervisor, definition: DomainDefinition) -> None:
    """End the managers, then every process of the domain that they left."""
    await fleet.stop_all()
    for host in HOSTS:
        directory = _directory(fleet, host, definition)
        if not directory.exists():
            continue
        with contextlib.suppress(HypervisorError, OutcomeUnknown):
            domain = await driver.adopt(definition, directory)
            if domain is not None:
                await domain.destroy()
                await domain.aclose()


def _directory(fleet: Fleet, host: str, definition: DomainDefinition) -> Path:
    """The domain's run directory there (``ldmd/domains.py``)."""
    return fleet.hosts[host].config.host.run_directory / "domains" / definition.uuid


async def _wait_lines(console: Path, count: int) -> None:
    """Until the console has ``count`` whole lines. Raises DemoFailed."""
    with trio.move_on_after(CONSOLE_SECONDS):
        while len(_whole_lines(_read(console))) < count:  # noqa: ASYNC110 (no event: a file grows)
            await trio.sleep(CONSOLE_POLL_SECONDS)
        return
    raise DemoFailed(f"{DOMAIN} printed fewer than {count} lines in {CONSOLE_SECONDS:.0f} s")


def _read(console: Path) -> str:
    try:
        return console.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _whole_lines(text: str) -> list[str]:
    return [line.rstrip("\r") for line in text.split("\n")[:-1]]


def process_lives(pid: int) -> bool:
    """Not ended, nor only waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
