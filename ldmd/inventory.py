"""What this host offers, and to whom it has promised it.

Room is *held* under a key: a bound or active domain's uuid, or the id of an incoming migration from phase 1 until its
domain exists. What two sources ask for at once is therefore promised once. A domain that gets another definition holds
what each of the two needs, until it is recorded that it has one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import trio
from attrs import field, frozen

from ldmd.claims import Proofs, VolumeView
from ldmd.config import Config
from ldmd.definition import DomainDefinition
from ldmd.errors import Busy, HypervisorError, NotFound, OutcomeUnknown
from ldmd.hypervisor import process
from ldmd.hypervisor.driver import Attachments, Capabilities, CpuModel, Hypervisor
from ldmd.measured import Measured, measure, measure_switches, read_certificate_until
from ldmd.sizes import format_size
from ldmd.volumes import Found, Volumes
from protocol.phases import Mode, RunState


class DefinedDomain(Protocol):
    @property
    def definition(self) -> DomainDefinition: ...
    @property
    def migration(self) -> str | None: ...
    @property
    def receiving(self) -> bool: ...
    @property
    def process(self) -> object | None: ...


@frozen(kw_only=True)
class Hold:
    """``incoming``: of a migration that has no domain here yet. ``others``: further definitions that it may have."""

    definition: DomainDefinition
    others: tuple[DomainDefinition, ...] = ()
    resources: bool
    incoming: bool

    @property
    def definitions(self) -> tuple[DomainDefinition, ...]:
        return (self.definition, *self.others)

    @property
    def memory_bytes(self) -> int:
        return max(d.memory_bytes for d in self.definitions) if self.resources else 0

    @property
    def vcpus(self) -> int:
        return max(d.vcpus for d in self.definitions) if self.resources else 0


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
    vdisks: Mapping[str, VolumeView]
    """Vdisks of the domain that may come -> the volume that would serve each."""
    volumes_in_use: Mapping[tuple[str, str], str]
    """(service, volume) that a bound or active domain writes, by whatever path -> its name."""
    domains_free: int
    consoles_free: int
    """A bound or active domain has a console."""
    incoming_free: int
    incoming_max: int
    measured: Measured
    memory_promised_bytes: int
    """To migrations that have no domain here yet: they will take it of what is available."""
    huge_promised_bytes: Mapping[str, int]
    """Size of huge pages -> promised to migrations, and to bound domains, which take them when they start."""
    cpu: CpuModel | None
    """What the ``cpu-arch`` of the domain in question means here; None when it means nothing: ``cpu_fault`` says why."""
    cpu_fault: str


@frozen
class Inventory:
    config: Config
    hypervisors: Mapping[str, Hypervisor]
    orphans: dict[str, Path] = field(factory=dict, init=False)
    """Uuid -> run directory of processes that the journal does not know."""
    volumes: Volumes = field(init=False)
    proofs: Proofs = field(init=False)
    _holds: dict[str, Hold] = field(factory=dict, init=False)

    @volumes.default
    def _configured(self) -> Volumes:
        return Volumes(self.config.vds)

    @proofs.default
    def _of_these(self) -> Proofs:
        return Proofs(self.config.host.name, self.volumes)

    # ---- room ------------------------------------------------------------------------------------------

    def hold(
        self,
        key: str,
        definition: DomainDefinition,
        *others: DomainDefinition,
        resources: bool = True,
        incoming: bool = False,
    ) -> None:
        """Idempotent. The caller has looked whether there is room, in the same scheduler step.

        ``others``: definitions that the domain may have instead; what is held is enough for each.
        """
        self._holds[key] = Hold(
            definition=definition, others=others, resources=resources, incoming=incoming
        )

    def release(self, key: str) -> None:
        """Idempotent."""
        self._holds.pop(key, None)

    @property
    def memory_free_bytes(self) -> int:
        return self.config.resources.memory_bytes - sum(
            h.memory_bytes for h in self._holds.values()
        )

    @property
    def vcpus_free(self) -> int:
        return self.config.resources.vcpus - sum(h.vcpus for h in self._holds.values())

    @property
    def consoles_free(self) -> int:
        return self.config.resources.consoles_max - sum(
            1 for h in self._holds.values() if h.resources
        )

    def require_room(self, definition: DomainDefinition) -> None:
        """Raises Busy naming what there is too little of. What the domain holds already counts as free for it."""
        mine = self._holds.get(definition.uuid)
        memory_bytes, vcpus = (mine.memory_bytes, mine.vcpus) if mine else (0, 0)
        has_console = mine is not None and mine.resources
        for what, wanted, free, show in (
            ("memory", definition.memory_bytes, self.memory_free_bytes + memory_bytes, format_size),
            ("virtual CPUs", definition.vcpus, self.vcpus_free + vcpus, str),
            ("consoles", 1, self.consoles_free + has_console, str),
        ):
            if wanted > free:
                raise Busy(
                    f"{definition.name} needs {show(wanted)} of {what}, {show(max(0, free))} is free",
                    remedy="unbind another domain, or raise [resources] in the configuration",
                )

    def volumes_written(self, *, besides: str = "") -> dict[tuple[str, str], str]:
        """(service, volume) that a domain which holds room writes -> its name; ``besides``: not that uuid's."""
        return self.volumes.in_use(
            [
                definition
                for key, hold in self._holds.items()
                if hold.resources and key != besides
                for definition in hold.definitions
            ]
        )

    # ---- devices ---------------------------------------------------------------------------------------

    async def resolve(
        self, definition: DomainDefinition, proved: Mapping[str, Found] | None = None
    ) -> Attachments:
        """Names of the definition -> this host's paths and bridges. Raises NotFound, WrongState.

        ``proved``: the volumes whose storage phase 1 found to be the source's; no other will do.
        """
        found = await self.volumes.resolve(definition)
        for vdisk, expected in (proved or {}).items():
            if vdisk in found and found[vdisk].probe.key != expected.probe.key:
                raise NotFound(
                    f"{definition.name}: vdisk {vdisk} would not be served by the storage that was checked",
                    remedy="look at what became of it, and migrate the domain again",
                )
        bridges: dict[str, str] = {}
        for net in definition.vnets:
            switch = self.config.vsw.get(net.switch)
            if switch is None:
                raise NotFound(
                    f"{definition.name}: there is no virtual switch {net.switch} on this host",
                    remedy=f"add [vsw.{net.switch}] to the configuration",
                )
            bridges[net.name] = switch.bridge
        return Attachments(
            disks={vdisk: one.volume.settings.path for vdisk, one in found.items()},
            volumes={vdisk: one.volume.name for vdisk, one in found.items()},
            bridges=bridges,
        )

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

    async def view(
        self,
        domains: Iterable[DefinedDomain],
        definition: DomainDefinition | None = None,
        vdisks: Mapping[str, VolumeView] | None = None,
    ) -> View:
        """``definition``: of the domain that the checks are about; ``vdisks``: what was seen of its volumes just before, see
        ``Proofs.examine``.
        """
        capabilities: dict[str, Capabilities] = {}
        unavailable: dict[str, str] = {}
        for kind in self.hypervisors:
            try:
                capabilities[kind] = await self.capabilities(kind)
            except HypervisorError as error:
                unavailable[kind] = error.sentence
        cpu, cpu_fault = await self._find_cpu(definition)
        measured = await trio.to_thread.run_sync(measure, self.config)
        # from here on no checkpoint: what is seen is of one instant, and can be held at once
        defined = list(domains)
        promised = [h.definition for h in self._holds.values() if h.incoming]
        receiving = sum(d.receiving for d in defined)
        starting = {d.definition.uuid for d in defined if d.process is None}
        held = [definition for h in self._holds.values() for definition in h.definitions]
        everything = [d.definition for d in defined] + held
        return View(
            host=self.config.host.name,
            capabilities=capabilities,
            unavailable=unavailable,
            names={d.name: d.uuid for d in everything},
            uuids=dict.fromkeys(self.living_orphans())
            | {h.definition.uuid: key for key, h in self._holds.items() if h.incoming}
            | {d.definition.uuid: d.migration for d in defined},
            macs={net.mac: d.name for d in everything for net in d.vnets},
            memory_free_bytes=self.memory_free_bytes,
            vcpus_free=self.vcpus_free,
            vdisks=vdisks or {},
            volumes_in_use=self.volumes_written(),
            domains_free=self.config.resources.domains_max - len(defined) - len(promised),
            incoming_free=self.config.resources.incoming_max - len(promised) - receiving,
            incoming_max=self.config.resources.incoming_max,
            consoles_free=self.consoles_free,
            measured=measured,
            memory_promised_bytes=sum(
                h.definition.memory_bytes
                for h in self._holds.values()
                if h.incoming and h.resources and h.definition.huge_pages == "none"
            ),
            huge_promised_bytes={
                size: sum(
                    h.definition.memory_bytes
                    for h in self._holds.values()
                    if h.resources
                    and h.definition.huge_pages == size
                    and (h.incoming or h.definition.uuid in starting)
                )
                for size in measured.huge_pages
            },
            cpu=cpu,
            cpu_fault=cpu_fault,
        )

    async def _find_cpu(self, definition: DomainDefinition | None) -> tuple[CpuModel | None, str]:
        if definition is None:
            return None, "no domain is in question"
        try:
            return await self.hypervisor(definition.hypervisor).describe_cpu(definition), ""
        except HypervisorError as error:
            return None, error.sentence

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

    async def facts(
        self, definition: DomainDefinition, run_state: RunState, *, pending: bool = False
    ) -> dict[str, object]:
        """What CHECK tells the target about this host and this domain, but for its volumes; see docs/protocol.md.

        ``pending``: the domain has a delayed reconfiguration.
        Raises HypervisorError for an active domain whose hypervisor is not there (it cannot be, then).
        """
        used = {net.switch for net in definition.vnets} & self.config.vsw.keys()
        switches = await trio.to_thread.run_sync(
            measure_switches, {name: self.config.vsw[name] for name in used}
        )
        facts: dict[str, object] = {
            "reconfiguration-pending": pending,
            "switches": {
                name: switch.mtu for name, switch in switches.items() if switch.mtu is not None
            },
            "certificate-until-unix-ms": await trio.to_thread.run_sync(
                read_certificate_until, self.config.identity.certificate
            ),
        }
        try:
            facts |= await self._hypervisor_facts(definition, run_state)
        except HypervisorError:
            if run_state.mode is Mode.WARM:
                raise
        return facts

    async def _hypervisor_facts(
        self, definition: DomainDefinition, run_state: RunState
    ) -> dict[str, object]:
        capabilities = await self.capabilities(definition.hypervisor)
        facts: dict[str, object] = {"hypervisor-version": list(capabilities.version)}
        if run_state.mode is Mode.WARM:
            fulfilled = capabilities.fulfil(definition)
            facts |= {
                "architecture": capabilities.architecture,
                "accelerator": capabilities.accelerator,
                "machine": capabilities.resolve_machine(definition.machine),
                "optional-devices": list(fulfilled),
                "unmovable-devices": [d for d in fulfilled if d in capabilities.unmovable_devices],
            }
        native = run_state is RunState.BOUND and definition.cpu_arch == "native"
        if run_state.mode is Mode.WARM or native:
            cpu = await self.hypervisor(definition.hypervisor).describe_cpu(definition)
            facts["cpu"] = {"model": cpu.model, "features": sorted(cpu.features)}
        return facts
