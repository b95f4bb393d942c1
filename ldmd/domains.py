"""The domains of this host: definition, state (inactive, bound, active), and who may touch them.

A domain is held by at most one migration (``Domain.migration``); while it is, every verb of an operator that changes it
is refused. The same goes for two verbs at once: ``Domain.lock``. State changes go to the journal before they are done
when that is the safe order (a process that starts is recorded first and looked for after a crash), and after where the
other way round nothing could be lost (a stopped domain is recorded as stopped when it is).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio
from attrs import define, field

from ldmd import console_log
from ldmd.definition import DomainDefinition
from ldmd.errors import (
    Busy,
    HypervisorError,
    JournalError,
    NotFound,
    OutcomeUnknown,
    WrongState,
)
from ldmd.hypervisor import process
from ldmd.hypervisor.driver import DomainProcess, Hypervisor, RunStatus
from ldmd.inventory import Inventory
from ldmd.journal.records import DomainEntry, DomainState
from ldmd.journal.store import Journal
from protocol.phases import RunState

log = logging.getLogger("ldmd.domains")

HELD_NAME: Final = "held-suspended"
"""In a run directory: an operator has suspended the domain."""
KILL_SECONDS: Final = 10.0
"""After SIGKILL: longer only for a thread in an uninterruptible wait."""

ADOPTED_AT_ONCE: Final = 32
"""Each takes a descriptor, and may take as long as its driver waits for an answer."""


@define(eq=False, kw_only=True)
class Domain:
    definition: DomainDefinition
    state: DomainState
    pending: DomainDefinition | None = None
    """Of an active domain: the definition that it gets when its process has ended (``reconfiguration.py``)."""
    migration: str | None = None
    queued: bool = False
    """The migration that holds it has not begun: what keeps the domain running goes on."""
    settling: bool = False
    """The migration that holds it has decided for this host: what is left is to hear that the source knows."""
    arriving: bool = False
    """The migration that holds it, or held it last, brought it here."""
    process: DomainProcess | None = None
    serving: dict[str, str] = field(factory=dict)
    """Vdisk -> the volume (``volume@service``) that serves it, while the domain is active."""
    path_notes: dict[str, str] = field(factory=dict)
    """Vdisk of a multipath group -> how its paths are, for people."""
    held_suspended: bool = False
    """An operator suspended it: whatever stopped it besides, it is not the manager's to resume."""
    lock: trio.Lock = field(factory=trio.Lock)

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def receiving(self) -> bool:
        """It is not decided yet whether it is this host's."""
        return self.arriving and self.migration is not None and not self.settling

    async def run_state(self) -> RunState:
        """What a migration must bring it back to. Raises OutcomeUnknown; WrongState when its process has ended."""
        if self.state is DomainState.INACTIVE:
            return RunState.INACTIVE
        if self.state is DomainState.BOUND:
            return RunState.BOUND
        status = RunStatus.GONE if self.process is None else await self.process.status()
        if status is RunStatus.SUSPENDED and await self._waits_for_its_disk():
            return RunState.RUNNING
        if status in (RunStatus.RUNNING, RunStatus.SUSPENDED):
            return RunState(status.value)
        raise WrongState(
            f"the process of {self.name} is {status}",
            remedy=f"`ldm stop-domain {self.name}` makes it bound again",
        )

    async def _waits_for_its_disk(self) -> bool:
        """It would run if a path to its disk answered: where it goes one may."""
        if self.process is None or self.held_suspended:
            return False
        if not any(disk.mpgroup for disk in self.definition.vdisks):
            return False
        try:
            return (await self.process.report_disks()).stopped
        except HypervisorError as error:
            raise OutcomeUnknown(error.sentence) from error


@define(eq=False)
class Domains:
    journal: Journal
    inventory: Inventory
    hypervisors: Mapping[str, Hypervisor]
    run_directory: Path
    """Has one folder a domain, named by uuid, mode 0700."""
    _by_uuid: dict[str, Domain] = field(factory=dict, init=False)

    def __iter__(self) -> Iterator[Domain]:
        return iter(sorted(self._by_uuid.values(), key=lambda d: d.name))

    async def load(self) -> None:
        """At start: read the journal and adopt every process that lives. Raises JournalError."""
        limiter = trio.CapacityLimiter(ADOPTED_AT_ONCE)
        async with (
            trio.open_nursery() as nursery
        ):  # together: domains that do not answer cost one wait
            for entry in await self.journal.load_domains():
                domain = Domain(
                    definition=entry.definition,
                    state=entry.state,
                    pending=entry.pending,
                    migration=entry.migration,
                )
                self._by_uuid[entry.definition.uuid] = domain
                self.hold(domain)
                if entry.state is DomainState.ACTIVE:
                    nursery.start_soon(self._adopt_at_start, domain, limiter)
        self._look_for_orphans()

    def _look_for_orphans(self) -> None:
        """Processes that the journal does not know: of a journal that was lost. They run, so nobody may take their place."""
        names = {path.name for path in self.run_directory.glob("*")}
        names |= set(process.find_all(self.run_directory))  # also of directories that were removed
        for directory in (self.run_directory / name for name in sorted(names)):
            domain = self._by_uuid.get(directory.name)
            if domain is not None and domain.state is DomainState.ACTIVE:
                continue
            if (pid := living_process(directory)) is not None:
                self.inventory.orphans[directory.name] = directory
                log.error(
                    "process %s in %s is a domain's that the journal does not know: it goes on, and no domain"
                    " with the uuid %s is taken until it has ended",
                    pid,
                    directory,
                    directory.name,
                )

    async def _adopt_at_start(self, domain: Domain, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            known = await self._adopt(domain)
        if known and domain.process is None and domain.migration is None:
            log.warning("domain %s ended while no manager ran: it is bound now", domain.name)
            await self._now_bound(domain)
            self._remove_directory(domain)

    async def _adopt(self, domain: Domain) -> bool:
        """Find its process; False when it is not known whether one lives."""
        try:
            await self.readopt(domain)
        except (OutcomeUnknown, HypervisorError) as error:
            # not knowing is not the same as ended: it stays active, verbs say so, and reap looks again
            log.error("domain %s does not answer: %s", domain.name, error)
            return False
        return True

    async def readopt(self, domain: Domain) -> DomainProcess | None:
        """The process, looking again for one that did not answer at start. Raises OutcomeUnknown."""
        directory = self.directory_of(domain.definition.uuid)
        if domain.process is None and domain.state is DomainState.ACTIVE:
            hypervisor = self.hypervisors.get(domain.definition.hypervisor)
            if hypervisor is None:
                raise OutcomeUnknown(f"the hypervisor of {domain.name} is not enabled")
            domain.process = await hypervisor.adopt(domain.definition, directory)
            domain.held_suspended = (directory / HELD_NAME).exists()
        return domain.process

    def hold(self, domain: Domain, *others: DomainDefinition) -> None:
        """What its state and its definitions need, and no more; ``others`` as in ``Inventory.hold``."""
        uuid = domain.definition.uuid
        if domain.pending is not None:
            others = (domain.pending, *others)
        resources = domain.state is not DomainState.INACTIVE
        if resources or others:
            self.inventory.hold(uuid, domain.definition, *others, resources=resources)
        else:
            self.inventory.release(uuid)

    def directory_of(self, uuid: str) -> Path:
        return self.run_directory / uuid

    # ---- finding ---------------------------------------------------------------------------------------

    def get(self, name: str) -> Domain:
        """By name or uuid. Raises NotFound."""
        domain = self.lookup(name)
        if domain is None:
            raise NotFound(
                f"there is no domain {name} on this host",
                remedy="`ldm list-domain` shows those there are",
            )
        return domain

    def lookup(self, name: str) -> Domain | None:
        """By uuid, or else by name: a name can look like another domain's uuid."""
        named = (d for d in self._by_uuid.values() if d.definition.name == name)
        return self._by_uuid.get(name) or next(named, None)

    def find(self, uuid: str) -> Domain | None:
        return self._by_uuid.get(uuid)

    @asynccontextmanager
    async def operation(self, name: str, *, while_settling: bool = False) -> AsyncIterator[Domain]:
        """The domain, held for one verb of an operator. Raises NotFound, Busy.

        ``while_settling``: also where a migration that decided for this host holds it. Starting it afresh or moving it on
        must wait until the source knows; stopping it need not.
        """
        domain = self.get(name)
        async with domain.lock:
            if self._by_uuid.get(domain.definition.uuid) is not domain:  # removed while we waited
                raise NotFound(f"there is no domain {name} on this host any more")
            if not (while_settling and domain.settling):
                require_free(domain)
            yield domain

    # ---- verbs -----------------------------------------------------------------------------------------

    async def add(self, definition: DomainDefinition) -> Domain:
        """Raises Busy when the name, the uuid or a MAC address is taken."""
        view = await self.inventory.view(self)
        for taken, what in (
            (definition.name in view.names, f"there is already a domain {definition.name}"),
            (
                definition.uuid in view.uuids,
                f"there is already a domain with the uuid {definition.uuid}",
            ),
            *(
                (net.mac in view.macs, f"{view.macs.get(net.mac)} has the MAC address {net.mac}")
                for net in definition.vnets
            ),
            (
                view.domains_free <= 0,
                "this host has as many domains as [resources] domains-max allows",
            ),
        ):
            if taken:
                raise Busy(what, remedy="choose another, or remove the one that has it")
        domain = Domain(definition=definition, state=DomainState.INACTIVE)
        self._by_uuid[definition.uuid] = domain
        try:
            await self.journal.add_domain(
                DomainEntry(definition=definition, state=DomainState.INACTIVE, migration=None)
            )
        except BaseException:
            del self._by_uuid[definition.uuid]
            raise
        return domain

    async def remove(self, domain: Domain) -> None:
        require_state(domain, DomainState.INACTIVE, "remove")
        await self.journal.remove_domain(domain.definition.uuid)
        self._by_uuid.pop(domain.definition.uuid, None)

    async def bind(self, domain: Domain) -> None:
        require_state(domain, DomainState.INACTIVE, "bind")
        await self.require_machine(domain.definition)
        await self.inventory.resolve(domain.definition)
        self.require_held(domain.definition)
        self.inventory.hold(domain.definition.uuid, domain.definition)
        try:
            await self._set_state(domain, DomainState.BOUND)
        except BaseException:
            self.inventory.release(domain.definition.uuid)
            raise

    async def require_machine(self, definition: DomainDefinition) -> None:
        """Raises WrongState, HypervisorError where the hypervisor here has not what the definition names."""
        capabilities = await self.inventory.capabilities(definition.hypervisor)
        for name, known, what in (
            (definition.machine, capabilities.machines, "machine type"),
            (definition.firmware, capabilities.firmwares, "firmware"),
        ):
            if name not in known:
                raise WrongState(
                    f"the hypervisor {capabilities.kind} here has no {what} {name}",
                    remedy=f"it has {', '.join(sorted(known)[:12])}",
                )

    async def require_possible(self, definition: DomainDefinition) -> None:
        """Raises WrongState, HypervisorError where no domain here could be made of it, room apart."""
        hypervisor = self.inventory.hypervisor(definition.hypervisor)
        try:
            await hypervisor.require_possible(definition)
        except HypervisorError as error:
            raise WrongState(error.sentence, remedy=error.remedy) from error

    def require_held(self, definition: DomainDefinition) -> None:
        """That it can be held, now: no checkpoint until it is. Raises Busy."""
        taken = self.inventory.volumes_written(besides=definition.uuid)
        for disk in definition.vdisks:
            writer = taken.get((disk.service, disk.volume))
            if writer is not None and not disk.read_only:
                raise Busy(
                    f"the volume {disk.volume}@{disk.service} is in use by {writer}",
                    remedy=f"unbind {writer} first",
                )
        self.inventory.require_room(definition)

    async def unbind(self, domain: Domain) -> None:
        require_state(domain, DomainState.BOUND, "unbind")
        await self._set_state(domain, DomainState.INACTIVE)
        self.inventory.release(domain.definition.uuid)

    async def start(self, domain: Domain) -> None:
        """Raises HypervisorError; the domain is bound again then."""
        require_state(domain, DomainState.BOUND, "start")
        definition = domain.definition
        attachments = await self.inventory.resolve(definition)
        hypervisor = self.inventory.hypervisor(definition.hypervisor)
        try:
            directory = self.make_directory(definition.uuid)
        except OSError as error:
            raise HypervisorError(
                f"the run directory of {domain.name} cannot be made: {error}",
                remedy="look at the space and the permissions of [host] run-directory",
            ) from error
        # first: a manager that dies now will look for it
        await self._set_state(domain, DomainState.ACTIVE)
        try:
            domain.process = await hypervisor.create(definition, directory, attachments)
            domain.serving = dict(attachments.volumes)
            domain.held_suspended = False
            await domain.process.resume()
        except HypervisorError:
            await self.end_process(domain)
            await self._now_bound(domain)
            raise

    async def stop(self, domain: Domain) -> None:
        """End it, as pulling the plug does. Raises OutcomeUnknown."""
        require_state(domain, DomainState.ACTIVE, "stop")
        await self.end_process(domain)
        await self._now_bound(domain)

    async def suspend(self, domain: Domain) -> None:
        require_state(domain, DomainState.ACTIVE, "suspend")
        await (await self._living(domain)).suspend()
        self.hold_suspended(domain)

    async def resume(self, domain: Domain) -> None:
        require_state(domain, DomainState.ACTIVE, "resume")
        await (await self._living(domain)).resume()
        domain.held_suspended = False
        with suppress(OSError):
            (self.directory_of(domain.definition.uuid) / HELD_NAME).unlink(missing_ok=True)

    def hold_suspended(self, domain: Domain) -> None:
        """Keep in mind, over a restart too, that it was suspended on purpose."""
        domain.held_suspended = True
        with suppress(OSError):
            (self.directory_of(domain.definition.uuid) / HELD_NAME).touch(mode=0o600)

    async def _living(self, domain: Domain) -> DomainProcess:
        living = await self.readopt(domain)
        if living is None:
            raise WrongState(
                f"the process of {domain.name} has ended", remedy=f"`ldm stop-domain {domain.name}`"
            )
        return living

    # ---- what migrations do ------------------------------------------------------------------------------

    def take(self, domain: Domain, migration: str) -> None:
        """Let ``migration`` hold the domain, queued until ``begin``. Raises Busy."""
        require_takeable(domain)
        domain.migration, domain.queued, domain.arriving = migration, True, False

    async def take_in_turn(self, domain: Domain, migration: str) -> None:
        """As ``take``, after whatever has the domain now. Raises Busy when that is a migration, NotFound."""
        async with domain.lock:
            if self._by_uuid.get(domain.definition.uuid) is not domain:
                raise NotFound(f"there is no domain {domain.name} on this host any more")
            require_free(domain)
            domain.migration, domain.queued, domain.arriving = migration, True, False

    async def begin(self, domain: Domain) -> None:
        """Its migration is no longer queued, and nothing that was done to the domain until now is under way any more."""
        domain.queued = False
        async with domain.lock:
            pass

    def let_go(self, uuid: str, migration: str) -> None:
        domain = self._by_uuid.get(uuid)
        if domain is not None and domain.migration == migration:
            domain.migration = None
            domain.queued = domain.settling = False

    def expect(self, entry: DomainEntry) -> Domain:
        """A receiving domain, after its PREPARED record."""
        domain = Domain(
            definition=entry.definition,
            state=entry.state,
            migration=entry.migration,
            arriving=True,
        )
        self._by_uuid[entry.definition.uuid] = domain
        self.hold(domain)
        return domain

    async def destroy(self, domain: Domain) -> None:
        """Process, run directory, definition: all gone. Idempotent. Raises OutcomeUnknown.

        A row that the journal cannot remove now goes with the migration's SETTLED record.
        """
        await self.end_process(domain)
        try:
            await self.journal.remove_domain(domain.definition.uuid)
        except JournalError as error:
            log.error("%s stands in the journal still: %s", domain.name, error)
        self.inventory.release(domain.definition.uuid)
        if self._by_uuid.get(domain.definition.uuid) is domain:
            del self._by_uuid[domain.definition.uuid]

    async def end(self, domain: Domain) -> None:
        """The process alone: the domain is bound then. Idempotent."""
        if domain.state is DomainState.ACTIVE:
            await self.end_process(domain)
            await self._now_bound(domain)

    # ---- processes ---------------------------------------------------------------------------------------

    def make_directory(self, uuid: str) -> Path:
        """Empty and private; an earlier process's console and logs go. Raises HypervisorError if that process lives."""
        directory = self.directory_of(uuid)
        if (pid := living_process(directory)) is not None:
            raise HypervisorError(
                f"a process of that domain lives already ({pid})",
                remedy=f"look at it in {directory}; end it only if it is not the domain's only copy",
            )
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(mode=0o700, parents=True)
        return directory

    async def end_process(self, domain: Domain) -> None:
        """By what is recorded of it, and without asking it anything: one that does not answer ends like any other.

        Raises OutcomeUnknown when it cannot be seen to be gone.
        """
        uuid = domain.definition.uuid
        if domain.state is not DomainState.ACTIVE or self._by_uuid.get(uuid) is not domain:
            return  # it has none, or was removed, and what may be in its place is another copy
        if domain.process is not None:
            await domain.process.destroy()
            await domain.process.aclose()
            domain.process = None
        elif (identity := process.find(self.directory_of(uuid))) is not None:
            await process.kill(identity, KILL_SECONDS)
        self._remove_directory(domain)

    def _remove_directory(self, domain: Domain) -> None:
        """Of a process that has ended."""
        shutil.rmtree(self.directory_of(domain.definition.uuid), ignore_errors=True)

    async def _now_bound(self, domain: Domain) -> None:
        """Its process has ended. What was pending is so from the instant that this is recorded."""
        definition = domain.pending or domain.definition
        await self.journal.end_process(definition.uuid, definition)
        if domain.pending is not None:
            log.info("the delayed reconfiguration of %s is made", domain.name)
        domain.definition, domain.pending, domain.state = definition, None, DomainState.BOUND
        domain.serving, domain.path_notes = {}, {}
        self.hold(domain)
        if domain.process is not None:
            await domain.process.aclose()
            domain.process = None

    async def _set_state(self, domain: Domain, state: DomainState) -> None:
        await self.journal.set_state(domain.definition.uuid, state)
        domain.state = state

    async def reap(self) -> None:
        """Domains whose process has ended by itself are bound now. Raises JournalError; nothing is lost then."""
        for domain in list(self):
            if domain.state is not DomainState.ACTIVE or not _reapable(domain):
                continue
            with suppress(OutcomeUnknown, HypervisorError):
                process = domain.process
                if process is not None:
                    await trio.lowlevel.checkpoint()
                    if process.has_ended():
                        await self._reap(domain, process)
                elif domain.migration is None:
                    await self._find_again(domain)

    async def _find_again(self, domain: Domain) -> None:
        """One that did not answer at start."""
        async with domain.lock:
            if await self.readopt(domain) is None:
                log.warning("domain %s has ended: it is bound now", domain.name)
                await self._now_bound(domain)
                self._remove_directory(domain)
            else:
                log.warning("domain %s answers again", domain.name)

    async def _reap(self, domain: Domain, gone: DomainProcess) -> None:
        if not _reapable(domain):
            return
        async with domain.lock:
            if domain.process is not gone or domain.state is not DomainState.ACTIVE:
                return  # a verb was faster
            log.warning("domain %s has ended: it is bound now", domain.name)
            await self._now_bound(domain)
            self._remove_directory(domain)

    def trim_consoles(self) -> None:
        for domain in self._by_uuid.values():
            if domain.process is not None:
                with suppress(OSError):  # the file may be gone, and the next look comes soon
                    console_log.trim(domain.process.console_path)

    async def aclose(self) -> None:
        """Let go of every process; the domains go on."""
        for domain in self._by_uuid.values():
            if domain.process is not None:
                await domain.process.aclose()


def living_process(directory: Path) -> str | None:
    """What is known of a process that a run directory belongs to; None when it is certain that none lives."""
    try:
        identity = process.find(directory)
    except OutcomeUnknown as error:
        return error.sentence
    return None if identity is None else f"pid {identity.pid}"


def _reapable(domain: Domain) -> bool:
    held = domain.migration is not None and not (domain.settling or domain.queued)
    return not held and not domain.lock.locked()


def require_free(domain: Domain) -> None:
    if domain.migration is not None:
        raise Busy(
            f"{domain.name} is held by the migration {domain.migration}",
            remedy=f"`ldm list-domain -o status {domain.name}` shows how far it is,"
            f" `ldm cancel-operation migration {domain.name}` asks it to stop",
        )


def require_takeable(domain: Domain) -> None:
    """Raises Busy when a migration or another verb has the domain."""
    require_free(domain)
    if domain.lock.locked():
        raise Busy(
            f"another operation on {domain.name} is under way",
            remedy="try again when it has ended",
        )


def require_state(domain: Domain, state: DomainState, verb: str) -> None:
    """Raises WrongState, with the first verb on the way to ``state``."""
    if domain.state is not state:
        raise WrongState(
            f"{domain.name} is {domain.state}; only {'an' if state[0] in 'ai' else 'a'} {state} domain can be"
            f" {PARTICIPLES[verb]}",
            remedy=f"`ldm {FIRST_STEPS[domain.state, state]}-domain {domain.name}` first",
        )


FIRST_STEPS = {
    (DomainState.INACTIVE, DomainState.BOUND): "bind",
    (DomainState.INACTIVE, DomainState.ACTIVE): "bind",
    (DomainState.BOUND, DomainState.INACTIVE): "unbind",
    (DomainState.BOUND, DomainState.ACTIVE): "start",
    (DomainState.ACTIVE, DomainState.INACTIVE): "stop",
    (DomainState.ACTIVE, DomainState.BOUND): "stop",
}

PARTICIPLES = {
    "remove": "removed",
    "bind": "bound",
    "unbind": "unbound",
    "start": "started",
    "stop": "stopped",
    "suspend": "suspended",
    "resume": "resumed",
}
