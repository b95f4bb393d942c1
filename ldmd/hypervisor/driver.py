"""The contract between the manager and a hypervisor.

*A domain is a process of its own that outlives the manager.* A driver makes such processes, and finds them again
after the manager was restarted (``adopt``). Everything that a driver needs to find one again lies in the domain's run
directory, which the manager makes (mode 0700) and removes.

*A domain's state is its RAM regions plus a small opaque device stream.* RAM is memory that the domain's process and
the manager both map: the manager reads and writes it without asking the hypervisor. The device stream is retrieved
before the last pass over RAM (saving a device may write to RAM) and installed after all of RAM (loading one may read
it).

Every method that talks to the domain's process raises

- ``HypervisorError`` when it definitely did not happen,
- ``OutcomeUnknown`` when the process stopped answering within the driver's deadline,

and may be cancelled; a cancelled call's outcome is unknown. ``tests/ldmd/hypervisor/test_conformance.py`` holds every
driver to this file.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from attrs import field, frozen

from ldmd.definition import DomainDefinition
from ldmd.errors import HypervisorError


class RunStatus(enum.StrEnum):
    RUNNING = "running"
    SUSPENDED = "suspended"
    """Complete and stopped: ``resume`` makes it run."""
    RECEIVING = "receiving"
    """Made to receive state and not complete: it cannot run."""
    GONE = "gone"
    """The process has ended: its state does not exist any more."""


@frozen(kw_only=True)
class RamRegion:
    """``name`` is the hypervisor's own and must be equal at source and target; ``size_bytes`` a multiple of 4096."""

    name: str
    size_bytes: int


@frozen(kw_only=True)
class CpuModel:
    """The CPU that a domain gets for its ``cpu-arch``: exactly this one, or the domain is not made.

    ``model`` tells it from every other one; ``features`` are the hypervisor's names of what it can do. ``unavailable`` are
    features that the model has and this host cannot give: with one of them no domain is made with it here.
    """

    model: str
    features: frozenset[str]
    unavailable: frozenset[str] = frozenset()


@frozen(kw_only=True)
class Capabilities:
    """What this host's hypervisor can do; facts for phase 1.

    ``version`` compares as a tuple; ``machines`` and ``firmwares`` are the names that a definition may have.
    """

    kind: str
    version: tuple[int, ...]
    machines: frozenset[str]
    firmwares: frozenset[str]
    architecture: str
    accelerator: str
    optional_devices: Mapping[str, frozenset[str]] = field(factory=dict)
    """Machine type -> those of ``OPTIONAL_DEVICES`` that a domain of that machine type gets here."""
    unmovable_devices: frozenset[str] = frozenset()
    """Those whose state this hypervisor cannot give away: an active domain that has one stays where it is."""
    details: Mapping[str, str] = field(factory=dict)
    """``machine:ALIAS`` -> the machine type that the alias means on this host; more by driver, for people."""

    def resolve_machine(self, machine: str) -> str:
        """The machine type itself, where ``machine`` is an alias that another host may read otherwise."""
        return self.details.get(f"machine:{machine}", machine)

    def fulfil(self, definition: DomainDefinition) -> tuple[str, ...]:
        """The optional devices of a domain that it gets here, in the definition's order."""
        there = self.optional_devices.get(definition.machine, frozenset())
        return tuple(device for device in definition.optional_devices if device in there)


@frozen(kw_only=True)
class Attachments:
    """What the host lends to the domain: paths and bridges, resolved by the manager from its own configuration.

    ``disks``: vdisk name -> path of the volume. ``volumes``: the same -> its ``volume@service``, for people.
    ``bridges``: vnet name -> bridge interface.
    """

    disks: Mapping[str, Path] = field(factory=dict)
    volumes: Mapping[str, str] = field(factory=dict)
    bridges: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class DiskStatus:
    """``path``: of the volume that serves the vdisk; None when nothing does. ``failed``: since the process was made, the
    domain was stopped because of it.
    """

    path: Path | None
    failed: bool


@frozen(kw_only=True)
class DisksReport:
    """``stopped``: a vdisk failed, and the hypervisor stopped the domain until it is resumed."""

    stopped: bool
    disks: Mapping[str, DiskStatus]


class DomainProcess(abc.ABC):
    """One active domain. Safe to use from one task at a time, and from another one that types."""

    uuid: str
    pid: int
    regions: tuple[RamRegion, ...]
    """In a fixed order, the same at source and target for equal definitions."""

    @abc.abstractmethod
    def open_ram(self) -> list[int]:
        """File descriptors of the RAM regions, in order, read and write; the caller closes them.

        Offset 0 of the file is offset 0 of the region; unpopulated parts are holes. Raises HypervisorError when the
        process is gone.
        """

    @abc.abstractmethod
    async def status(self) -> RunStatus:
        """Raises OutcomeUnknown when the process lives but does not answer; never HypervisorError."""

    @abc.abstractmethod
    def has_ended(self) -> bool:
        """Whether its status would be GONE, without asking the process: at once, and for many domains a second."""

    @abc.abstractmethod
    async def suspend(self) -> None:
        """When this returns, no instruction runs and none of RAM changes. Idempotent."""

    @abc.abstractmethod
    async def resume(self) -> None:
        """From SUSPENDED to RUNNING; idempotent. HypervisorError means that no instruction ran."""

    @abc.abstractmethod
    async def destroy(self) -> None:
        """End the process, whatever its status; returns when it is gone. Idempotent.

        Only OutcomeUnknown is possible (a process that does not die of SIGKILL in time).
        """

    @abc.abstractmethod
    async def retrieve_device_state(self) -> bytes:
        """The device stream of a SUSPENDED domain, at most ``limits.DEVICE_STATE_BYTES_MAX`` bytes.

        The domain stays SUSPENDED and may be resumed afterwards, or asked again.
        """

    @abc.abstractmethod
    async def install_device_state(self, state: bytes) -> None:
        """Into a RECEIVING domain whose RAM is complete; it is SUSPENDED then and has run no instruction.

        ``state`` is untrusted; a stream that the hypervisor rejects raises HypervisorError, and the domain can only be
        destroyed.
        """

    async def report_disks(self) -> DisksReport:
        """Which path serves each vdisk now. The hypervisor is asked, so it is true after a manager's restart too."""
        return DisksReport(stopped=False, disks={})

    async def switch_disk(self, vdisk: str, path: Path) -> None:
        """Serve a vdisk by another path to the same storage (the caller has made sure of that) from now on.

        For a domain that ``report_disks`` says is stopped: what was asked of the vdisk and failed is asked again when it
        is resumed. HypervisorError: no write goes to the new path.
        """
        raise HypervisorError(f"this hypervisor has no vdisk {vdisk}")

    @property
    @abc.abstractmethod
    def console_path(self) -> Path:
        """A file that grows by what the domain prints on its console, from its creation or its arrival here on.

        It is only ever appended to, so an offset in it is a position in what is printed; what is old may be a hole.
        """

    @abc.abstractmethod
    async def write_console(self, data: bytes) -> int:
        """Type on the domain's console: how many of the first bytes of ``data`` its serial port has taken.

        What was taken is part of the domain's state, and moves with it where it was not read yet; the rest will never
        come, and is the caller's still. 0 when the domain does not run, or does not read. One task types at a time;
        other methods may be called meanwhile, and do not wait for it.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Let go of the manager's own descriptors; the domain goes on."""


class Hypervisor(abc.ABC):
    """One kind of hypervisor on this host."""

    kind: ClassVar[str]

    @abc.abstractmethod
    async def capabilities(self) -> Capabilities:
        """Raises HypervisorError, saying what to install, when this host does not have it."""

    @abc.abstractmethod
    async def describe_cpu(self, definition: DomainDefinition) -> CpuModel:
        """What the definition's ``cpu-arch`` means on this host. Raises HypervisorError when it means nothing here."""

    @abc.abstractmethod
    async def require_possible(self, definition: DomainDefinition) -> None:
        """That such a domain can be made here, room apart. Raises HypervisorError, saying why not."""

    @abc.abstractmethod
    async def create(
        self, definition: DomainDefinition, run_directory: Path, attachments: Attachments
    ) -> DomainProcess:
        """A new domain process, SUSPENDED before its first instruction.

        Raises HypervisorError with the hypervisor's own words; nothing is left running then.
        """

    @abc.abstractmethod
    async def create_receiving(
        self, definition: DomainDefinition, run_directory: Path, attachments: Attachments
    ) -> DomainProcess:
        """The same, RECEIVING, its RAM all zero and unpopulated."""

    @abc.abstractmethod
    async def adopt(
        self, definition: DomainDefinition, run_directory: Path
    ) -> DomainProcess | None:
        """The process that an earlier manager made there; None when it is certain that none lives.

        Raises OutcomeUnknown when it lives but does not answer. A process that was still being made counts: an
        implementation records the pid so early that none is ever forgotten.
        """
