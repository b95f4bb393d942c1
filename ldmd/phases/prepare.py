"""Phase 2: the target creates the receiving domain and takes its page faults; then the source suspends."""

from __future__ import annotations

import mmap
import os
import time
from typing import TYPE_CHECKING, Final

import trio

from ldmd.errors import HypervisorError, NotFound, OutcomeUnknown, WrongState
from ldmd.hypervisor.driver import RamRegion
from ldmd.phases.transfer import Receiver
from protocol import messages as m
from protocol.events import Event
from protocol.limits import MIB
from protocol.phases import Mode, RunState

if TYPE_CHECKING:
    from ldmd.migration import Migration

MADV_POPULATE_WRITE: Final = 23
"""madvise(2), Linux 5.14: take the write faults of a range now. Python's mmap has no name for it yet."""

POPULATE_STEP_BYTES: Final = 32 * MIB
"""About 10 ms: how long a cancel waits, and how often progress is seen."""

PROGRESS_SECONDS: Final = 0.2


def build_prepare(migration: Migration) -> m.Prepare:
    regions: tuple[m.Region, ...] = ()
    if migration.run_state.mode is Mode.WARM:
        process = migration.require_process()
        regions = tuple(m.Region(name=r.name, size_bytes=r.size_bytes) for r in process.regions)
    return m.Prepare(migration=migration.id, regions=regions)


async def create_domain(migration: Migration) -> Event:
    """The receiving domain, with all of its RAM populated and mapped."""
    host = migration.host
    domain = migration.domain
    assert domain is not None, "CREATE_DOMAIN stands behind Record(PREPARED), which makes the entry"
    if migration.run_state.mode is Mode.COLD:
        return Event.CREATED
    definition = migration.definition
    try:
        attachments = await host.inventory.resolve(definition, migration.proved)
        domain.process = await host.hypervisors[definition.hypervisor].create_receiving(
            definition, host.domains.make_directory(definition.uuid), attachments
        )
        domain.serving = dict(attachments.volumes)
        if migration.run_state is RunState.SUSPENDED:
            host.domains.hold_suspended(domain)
        regions = domain.process.regions
        wanted = tuple(RamRegion(name=r.name, size_bytes=r.size_bytes) for r in migration.regions)
        if regions != wanted:
            return migration.explain(
                Event.CREATE_FAILED,
                "regions-differ",
                f"the RAM of {definition.name} is laid out differently here: {_list(regions)} here, {_list(wanted)} there",
                "run the same version of the hypervisor on both hosts",
            )
        receiver = Receiver(domain.process)
        migration.receiver = receiver
        await populate(migration, receiver)
    except (HypervisorError, OutcomeUnknown, NotFound, WrongState) as error:
        return migration.explain(Event.CREATE_FAILED, error.code, error.sentence, error.remedy)
    except OSError as error:
        return migration.explain(
            Event.CREATE_FAILED,
            "no-room",
            f"the memory or the run directory of {definition.name} cannot be had: {error.strerror}",
            "free memory and disk on the target, or lower its [resources] memory",
        )
    return Event.CREATED


def _list(regions: tuple[RamRegion, ...]) -> str:
    return ", ".join(f"{r.name} {r.size_bytes}" for r in regions)


async def populate(migration: Migration, receiver: Receiver) -> None:
    """Take every page fault of the receiving RAM now, while the domain still runs at the source.

    Raises OSError (ENOMEM) when the memory is not there.
    """
    total_bytes = sum(len(area) for area in receiver.areas)
    done_bytes = 0
    told = 0.0
    for area in receiver.areas:
        for start in range(0, len(area), POPULATE_STEP_BYTES):
            size_bytes = min(POPULATE_STEP_BYTES, len(area) - start)
            await trio.to_thread.run_sync(_populate_piece, area, start, size_bytes)
            done_bytes += size_bytes
            migration.note_progress(done_bytes, total_bytes)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                migration.send(
                    m.PrepareProgress(
                        migration=migration.id, done_bytes=done_bytes, total_bytes=total_bytes
                    )
                )


def _populate_piece(area: mmap.mmap, start: int, size_bytes: int) -> None:
    try:
        area.madvise(MADV_POPULATE_WRITE, start, size_bytes)
    except OSError as error:
        if error.errno != 22:  # EINVAL: a kernel before 5.14
            raise
        for page in range(start, start + size_bytes, os.sysconf("SC_PAGE_SIZE")):
            area[page] = 0


async def suspend_domain(migration: Migration) -> Event:
    migration.suspended_at = time.monotonic()
    try:
        await migration.require_process().suspend()
    except (HypervisorError, OutcomeUnknown) as error:
        return migration.explain(Event.SUSPEND_FAILED, error.code, error.sentence, error.remedy)
    return Event.SUSPENDED
