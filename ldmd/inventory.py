"""What this host offers, and to whom it has promised it.

Room is *held* under a key: a bound or active domain's uuid, or the id of an incoming migration from phase 1 until its
domain exists. What two sources ask for at once is therefore promised once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from ldmd.config import Config
from ldmd.definition import DomainDefinition, format_size
from ldmd.errors import Busy, HypervisorError, NotFound, OutcomeUnknown
from ldmd.hypervisor import process
from ldmd.hypervisor.driver import Attachments, Capabilities, Hypervisor
from protocol.phases import Mode, RunState


class DefinedDomain(Protocol):
    @property
    def definition(self) -> DomainDefinition: ...
    @property
    def migration(self) -> str | None: ...


@frozen(kw_only=True)
class Hold:
    """``incoming``: of a migration that has no domain here yet."""

    definition: DomainDefinition
    resources: bool
    incoming: bool


@frozen(kw_only=True)
class View:
    """What the checks of phase 1 look at: a snapshot of the host at one instant."""

    host: str
    capabilities: Mapping[str, Capabilities]
    unavailable: Mapping[str, str]
    """Hypervisor kind -> why it cannot be used here."""
    names: Mapping[str, str]
    """Names of domains, defined or promised -> uuid."""
    uuids: Mapping[str, str | None]
    """The same -> the migration that holds the domain, if one does."""
    macs: Mapping[str, str]
    """MAC address -> name of the domain that has it."""
    memory_free_bytes: int
    vcpus_free: int
    volumes: Mapping[str, Mapping[str, int | None]]
    """Service -> volume -> size in bytes; None when it cannot be opened."""
    volumes_in_use: Mapping[tuple[str, str], str]
    """(service, volume) that a bound or active domain writes -> its name."""
    switches: frozenset[str]
    domains_free: int
    incoming_free: int


@frozen
class Inventory:
    config: Config
    hypervisors: Mapping[str, Hypervisor]
    orphans: dict[str, Path] = field(factory=dict, init=False)
    """Uuid -> run directory of processes that the journal does not know."""
    _holds: dict[str, Hold] = field(factory=dict, init=False)

    # ---- room ------------------------------------------------------------------------------------------

    def hold(
        self,
        key: str,
        definition: DomainDefinition,
        *,
        resources: bool = True,
        incoming: bool = False,
    ) -> None:
        """Idempotent. The caller has looked whether there is room, in the same scheduler step."""
        self._holds[key] = Hold(definition=definition, resources=resources, incoming=incoming)

    def release(self, key: str) -> None:
        """Idempotent."""
        self._holds.pop(key, None)

    @property
    def memory_free_bytes(self) -> int:
        held = sum(h.definition.memory_bytes for h in self._holds.values() if h.resources)
        return self.config.resources.memory_bytes - held

    @property
    def vcpus_free(self) -> int:
        return self.config.resources.vcpus - sum(
            h.definition.vcpus for h in self._holds.values() if h.resources
        )

    def require_room(self, definition: DomainDefinition) -> None:
        """Raises Busy naming what there is too little of."""
        for what, wanted, free, show in (
            ("memory", definition.memory_bytes, self.memory_free_bytes, format_size),
            ("virtual CPUs", definition.vcpus, self.vcpus_free, str),
        ):
            if wanted > free:
                raise Busy(
                    f"{definition.name} needs {show(wanted)} of {what}, {show(max(0, free))} is free",
                    remedy="unbind another domain, or raise [resources] in the configuration",
                )

    # ---- devices ---------------------------------------------------------------------------------------

    def resolve(self, definition: DomainDefinition) -> Attachments:
        """Names of the definition -> this host's paths and bridges. Raises NotFound."""
        disks: dict[str, Path] = {}
        for disk in definition.vdisks:
            path = self.config.vds.get(disk.service, {}).get(disk.volume)
            if path is None:
                raise NotFound(
                    f"{definition.name}: there is no volume {disk.volume}@{disk.service} on this host",
                    remedy=f"add it to [vds.{disk.service}] in the configuration",
                )
            disks[disk.name] = path
        bridges: dict[str, str] = {}
        for net in definition.vnets:
            switch = self.config.vsw.get(net.switch)
            if switch is None:
                raise NotFound(
                    f"{definition.name}: there is no virtual switch {net.switch} on this host",
                    remedy=f"add [vsw.{net.switch}] to the configuration",
                )
            bridges[net.name] = switch.bridge
        return Attachments(disks=disks, bridges=bridges)

    def volume_size(self, service: str, volume: str) -> int | None:
        path = self.config.vds.get(service, {}).get(volume)
        return None if path is None else _size(path)

    # ---- phase 1 ---------------------------------------------------------------------------------------

    def hypervisor(self, kind: str) -> Hypervisor:
        """Raises HypervisorError when it is not enabled."""
        if kind not in self.hypervisors:
            raise HypervisorError(
                f"the hypervisor {kind} is not enabled on {self.config.host.name}",
                remedy="add it to [hypervisors] enabled",
            )
        return self.hypervisors[kind]

    async def capabilities(self, kind: str) -> Capabilities:
        """Raises HypervisorError when this host does not have that hypervisor, saying why."""
        return await self.hypervisor(kind).capabilities()

    async def view(self, domains: Iterable[DefinedDomain]) -> View:
        capabilities: dict[str, Capabilities] = {}
        unavailable: dict[str, str] = {}
        for kind in self.hypervisors:
            try:
                capabilities[kind] = await self.capabilities(kind)
            except HypervisorError as error:
                unavailable[kind] = error.sentence
        # from here on no checkpoint: what is seen is of one instant, and can be held at once
        defined = list(domains)
        promised = [h.definition for h in self._holds.values() if h.incoming]
        holding = [h.definition for h in self._holds.values() if h.resources]
        everything = [d.definition for d in defined] + promised
        return View(
            host=self.config.host.name,
            capabilities=capabilities,
            unavailable=unavailable,
            names={d.name: d.uuid for d in everything},
            uuids=dict.fromkeys(self.living_orphans())
            | {d.uuid: "promised" for d in promised}
            | {d.definition.uuid: d.migration for d in defined},
            macs={net.mac: d.name for d in everything for net in d.vnets},
            memory_free_bytes=self.memory_free_bytes,
            vcpus_free=self.vcpus_free,
            volumes={
                service: {name: _size(path) for name, path in volumes.items()}
                for service, volumes in self.config.vds.items()
            },
            volumes_in_use={
                (disk.service, disk.volume): d.name
                for d in holding
                for disk in d.vdisks
                if not disk.read_only
            },
            switches=frozenset(self.config.vsw),
            domains_free=self.config.resources.domains_max - len(defined) - len(promised),
            incoming_free=self.config.resources.incoming_max - len(promised),
        )

    def living_orphans(self) -> Iterable[str]:
        """Uuids of domains of which a process lives that the journal does not know."""
        for uuid, directory in list(self.orphans.items()):
            try:
                if process.find(directory) is None:
                    del self.orphans[uuid]
                    continue
            except OutcomeUnknown:
                pass  # not certain that it has ended: it counts
            yield uuid

    async def facts(self, definition: DomainDefinition, run_state: RunState) -> dict[str, object]:
        """What CHECK tells the target about this host and this domain; see docs/protocol.md.

        Raises HypervisorError for an active domain whose hypervisor is not there (it cannot be, then).
        """
        facts: dict[str, object] = {
            "volumes": {
                f"{d.volume}@{d.service}": size
                for d in definition.vdisks
                if (size := self.volume_size(d.service, d.volume)) is not None
            }
        }
        if run_state.mode is Mode.WARM:
            capabilities = await self.capabilities(definition.hypervisor)
            facts["hypervisor-version"] = list(capabilities.version)
            facts["architecture"] = capabilities.architecture
            facts["accelerator"] = capabilities.accelerator
            facts["machine"] = capabilities.resolve_machine(definition.machine)
        return facts


def _size(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            return os.lseek(descriptor, 0, os.SEEK_END)
        return None
    finally:
        os.close(descriptor)
