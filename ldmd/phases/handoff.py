"""Phase 4, and giving up: probe, resume, destroy. What may be done when is in the tables; here is how."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from ldmd.errors import HypervisorError, JournalError, OutcomeUnknown
from ldmd.hypervisor.driver import RunStatus
from ldmd.journal.records import Side
from protocol import messages as m
from protocol.events import Event
from protocol.phases import Mode, RunState

if TYPE_CHECKING:
    from ldmd.migration import Migration

log = logging.getLogger("ldmd.handoff")

_PROBED = {
    RunStatus.RUNNING: Event.DOMAIN_RUNNING,
    RunStatus.SUSPENDED: Event.DOMAIN_SUSPENDED,
    RunStatus.RECEIVING: Event.DOMAIN_UNKNOWN,  # committed and not complete: cannot be, so not known
    RunStatus.GONE: Event.DOMAIN_GONE,
}


async def probe_domain(migration: Migration) -> Event:
    """What the target's copy is doing. A definition without a process waits as a suspended one does."""
    domain = migration.domain
    if domain is None:
        return Event.DOMAIN_GONE
    if migration.run_state.mode is Mode.COLD:
        return Event.DOMAIN_SUSPENDED
    try:
        process = await migration.host.domains.readopt(domain)
        return Event.DOMAIN_GONE if process is None else _PROBED[await process.status()]
    except (OutcomeUnknown, HypervisorError) as error:
        return migration.explain(Event.DOMAIN_UNKNOWN, error.code, error.sentence, error.remedy)


def judge_silence(migration: Migration, event: Event) -> Event:
    """How a probe ended -> the same, but one that learned nothing, as long after the first such one as the configuration
    waits for an answer, ends the questions.
    """
    if event is not Event.DOMAIN_UNKNOWN:
        migration.silent_since = None
        return event
    now = trio.current_time()
    if migration.silent_since is None:
        migration.silent_since = now
        return event
    seconds = migration.host.config.migration.probe_seconds
    if now - migration.silent_since < seconds:
        return event
    sentence = f"the process of {migration.name} has not answered for {seconds:g} s"
    return migration.explain(Event.DOMAIN_SILENT, "silent", sentence)


async def resume_domain(migration: Migration) -> Event:
    """Bring this side's copy to the run state the domain had. Idempotent.

    One that did not say how it is was not told to run either, also when the time for this operation is over by then.
    """
    domain = migration.domain
    # the target's copy: this resume ran no instruction of it, so a first one can still be undone
    gone = Event.DOMAIN_GONE if migration.side is Side.SOURCE else Event.RESUME_FAILED
    if migration.run_state.mode is Mode.COLD:
        return Event.RESUMED
    if domain is None:
        return gone
    unknown = Event.RESUME_NOT_ASKED
    migration.count_overdue_as(unknown)
    try:
        process = await migration.host.domains.readopt(domain)
        if process is None or await process.status() is RunStatus.GONE:
            return migration.explain(
                gone, "domain-ended", f"the process of {migration.name} has ended"
            )
        unknown = Event.RESUME_UNKNOWN
        migration.count_overdue_as(unknown)
        if migration.run_state is RunState.RUNNING:
            await process.resume()
    except HypervisorError as error:
        return migration.explain(Event.RESUME_FAILED, error.code, error.sentence, error.remedy)
    except OutcomeUnknown as error:
        return migration.explain(unknown, error.code, error.sentence, error.remedy)
    return Event.RESUMED


async def destroy_domain(migration: Migration) -> Event:
    """Process, run directory, definition. Idempotent."""
    await migration.close_receiver()
    try:
        if migration.domain is not None:
            await migration.host.domains.destroy(migration.domain)
    except (OutcomeUnknown, HypervisorError, JournalError) as error:
        log.error("%s cannot be destroyed yet: %s", migration.name, error)
        return Event.DESTROY_FAILED
    return Event.DESTROYED


async def end_domain(migration: Migration) -> Event:
    """The process alone. Idempotent."""
    try:
        if migration.domain is not None:
            await migration.host.domains.end(migration.domain)
    except (OutcomeUnknown, HypervisorError, JournalError) as error:
        log.error("%s cannot be ended yet: %s", migration.name, error)
        return Event.DESTROY_FAILED
    return Event.DESTROYED


# ---- giving up: what is said ----------------------------------------------------------------------------


def build_refused(migration: Migration) -> m.Refused:
    code, sentence = migration.say_why("the target gave up")
    return m.Refused(migration=migration.id, code=code, sentence=sentence)


def build_cancel(migration: Migration) -> m.Cancel:
    code, sentence = migration.say_why("the source gave up")
    return m.Cancel(migration=migration.id, code=code, sentence=sentence)


def build_handoff_refused(migration: Migration) -> m.HandoffRefused:
    code, sentence = migration.say_why("the target gave up before it was asked")
    return m.HandoffRefused(migration=migration.id, code=code, sentence=sentence)
