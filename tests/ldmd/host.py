"""Parts of a host for tests below the daemon: configuration, definitions, a domain table on a real journal."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from ldmd import config
from ldmd.config import Config
from ldmd.definition import DomainDefinition
from ldmd.domains import Domains
from ldmd.hypervisor import process
from ldmd.hypervisor.driver import Hypervisor
from ldmd.hypervisor.emulated import EmulatedHypervisor
from ldmd.inventory import Inventory
from ldmd.journal.store import Journal
from tests.ldmd.hypervisor.rig import processes_in

MIB = 1024 * 1024


def configure(folder: Path, **tables: Mapping[str, object]) -> Config:
    """64 MiB and 4 virtual CPUs for domains, unless ``tables`` says otherwise."""
    document: dict[str, Any] = {
        "host": {"name": "host-a", "state-directory": "state", "run-directory": "run"},
        "resources": {"memory": "64MiB", "vcpus": 4},
    }
    return config.from_document(document | tables, path=folder / "ldmd.toml")


def define(name: str = "ldg1", **more: Any) -> DomainDefinition:
    """An oracle domain of 2 MiB."""
    values: dict[str, Any] = {
        "name": name,
        "uuid": str(uuid.uuid4()),
        "hypervisor": "emulated",
        "machine": "riscv64-virt",
        "firmware": "oracle",
        "memory_bytes": 2 * MIB,
    }
    return DomainDefinition(**(values | more))


class Willing(EmulatedHypervisor):
    """Leaves it to the start of a domain what it cannot make, so that definitions may have all there is."""

    async def require_possible(self, definition: DomainDefinition) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_domains(
    settings: Config,
    hypervisors: Mapping[str, Hypervisor] | None = None,
    *,
    answer_seconds: float = 5.0,
) -> AsyncIterator[Domains]:
    """The domains of that configuration, loaded from its journal, as a manager that starts has them."""
    if hypervisors is None:
        hypervisors = {"emulated": Willing(answer_seconds=answer_seconds)}
    journal = await Journal.open(settings.host.state_directory / "journal.sqlite")
    try:
        inventory = Inventory(settings, hypervisors)
        domains = Domains(journal, inventory, hypervisors, settings.host.run_directory / "domains")
        await domains.load()
        try:
            yield domains
        finally:
            await domains.aclose()
    finally:
        await journal.aclose()


async def end_processes(settings: Config) -> None:
    """Every process that domains of this configuration have."""
    for directory in (settings.host.run_directory / "domains").glob("*"):
        identity = process.find(directory)
        if identity is not None:
            await process.kill(identity, 10)
        assert processes_in(directory) == [], "no process is there that nobody knows of"
