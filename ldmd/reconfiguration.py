"""How a domain gets another definition: at once, or when its process has ended (*delayed reconfiguration*).

A process runs with what its definition said when it was made, so of an active domain only that is changed which its process
knows nothing of. The rest is kept in the journal as *pending* beside the definition, and becomes the definition in the same
transaction that records the domain as bound: whether it was stopped or ended by itself, and whoever of two managers sees
it. Only an active domain has something pending, and no migration holds one that has.

Room, names, MAC addresses and volumes are looked at and held in one scheduler step, for what was and what shall be; then it
is written; then it is so. What is pending keeps its room, so nothing can be missing when its time comes.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from typing import Final

import attrs
import trio
from attrs import frozen

from ldmd.definition import DomainDefinition
from ldmd.description import Change, describe_changes
from ldmd.domains import Domain, Domains
from ldmd.edits import Edit
from ldmd.errors import Busy, DefinitionError, JournalError, WrongState
from ldmd.journal.records import DomainState

log = logging.getLogger("ldmd.reconfiguration")


class When(enum.StrEnum):
    """When something of a definition can change."""

    AT_ONCE = "in any state, at once"
    DELAYED = "at once, or when the process of an active domain has ended"
    NOT_ACTIVE = "while it is inactive or bound"
    INACTIVE = "while it is inactive"
    NEVER = "never"


WHEN: Final[Mapping[str, When]] = {
    "version": When.NEVER,
    "uuid": When.NEVER,
    "hypervisor": When.INACTIVE,  # what is bound is bound by it
    "name": When.NOT_ACTIVE,  # its process has it
    "mig_allowed": When.AT_ONCE,  # no process knows of it
    "machine": When.DELAYED,
    "firmware": When.DELAYED,
    "vcpus": When.DELAYED,
    "memory_bytes": When.DELAYED,
    "huge_pages": When.DELAYED,
    "cpu_arch": When.DELAYED,
    "optional_devices": When.DELAYED,
    "vdisks": When.DELAYED,
    "vnets": When.DELAYED,
    "variables": When.DELAYED,  # a process reads them when it begins
}
"""Each field of a definition."""

_REFUSED_IN: Final[Mapping[When, tuple[DomainState, ...]]] = {
    When.NEVER: tuple(DomainState),
    When.INACTIVE: (DomainState.ACTIVE, DomainState.BOUND),
    When.NOT_ACTIVE: (DomainState.ACTIVE,),
}
_WAY_OUT: Final = {DomainState.ACTIVE: "stop", DomainState.BOUND: "unbind"}

_OF_THE_HYPERVISOR: Final = frozenset({"hypervisor", "machine", "firmware"})
_OF_THE_MANAGER: Final = frozenset({"name", "mig_allowed"})
"""All other fields are the hypervisor's, which may not be able to make a domain of them."""
_UNIQUE: Final = frozenset({"name", "vnets"})
"""Names and MAC addresses: no other domain here may have them."""
_HELD: Final = frozenset({"memory_bytes", "vcpus", "vdisks", "vnets"})


@frozen(kw_only=True)
class Outcome:
    """``changes`` of this time; ``pending``: what of these and of earlier ones waits for the end of the process."""

    changes: tuple[Change, ...]
    pending: tuple[Change, ...]


def differing(before: DomainDefinition, after: DomainDefinition) -> frozenset[str]:
    """Names of the fields that are not equal."""
    return frozenset(
        a.name
        for a in attrs.fields(DomainDefinition)
        if getattr(before, a.name) != getattr(after, a.name)
    )


def plan(
    definition: DomainDefinition, wanted: DomainDefinition, state: DomainState
) -> tuple[DomainDefinition, DomainDefinition | None]:
    """What the domain has from now on, and what is pending then."""
    if state is not DomainState.ACTIVE:
        return wanted, None
    at_once = {name: getattr(wanted, name) for name, when in WHEN.items() if when is When.AT_ONCE}
    now = attrs.evolve(definition, **at_once)
    return now, None if now == wanted else wanted


async def reconfigure(domains: Domains, domain: Domain, edit: Edit) -> Outcome:
    """Change what the domain has, or shall have. The caller holds it (``Domains.operation``).

    Raises DefinitionError, WrongState, NotFound, Busy, HypervisorError, JournalError; nothing has changed then.
    """
    before = domain.pending or domain.definition
    wanted = edit(before)
    changed = differing(before, wanted)
    _require_allowed(domain, changed)
    definition, pending = plan(domain.definition, wanted, domain.state)
    if changed:
        if domain.state is not DomainState.INACTIVE and changed & _OF_THE_HYPERVISOR:
            await domains.require_machine(wanted)
        if pending is not None and changed - _OF_THE_MANAGER:
            await domains.require_possible(wanted)  # or it would not start when its time comes
        if domain.state is not DomainState.INACTIVE and changed & _HELD:
            await domains.inventory.resolve(wanted)
        if changed & _UNIQUE:
            view = await domains.inventory.view(domains)
            _require_unused(domain, wanted, view.names, view.macs)
        # no checkpoint since the view was taken, and none until it is held
        if domain.state is not DomainState.INACTIVE and changed & _HELD:
            domains.require_held(wanted)
        await _record(domains, domain, definition, pending)
    return Outcome(
        changes=tuple(describe_changes(before, wanted)),
        pending=tuple(describe_changes(definition, pending)) if pending else (),
    )


async def cancel(domains: Domains, domain: Domain) -> tuple[Change, ...]:
    """Forget what is pending; gives what that was. Raises WrongState when nothing is, JournalError."""
    if domain.pending is None:
        await _agree(domains, domain)  # it could not be done when that was written
    if domain.pending is None:
        raise WrongState(
            f"{domain.name} has no delayed reconfiguration pending",
            remedy="`ldm list-domain` shows which domains have one",
        )
    changes = describe_changes(domain.definition, domain.pending)
    await _record(domains, domain, domain.definition, None)
    return tuple(changes)


async def _record(
    domains: Domains, domain: Domain, definition: DomainDefinition, pending: DomainDefinition | None
) -> None:
    """First on disk, then so. Meanwhile what was and what shall be are both held.

    What is on disk is so, although writing it was reported as failed: what comes behind the commit can fail, too.
    """
    domains.hold(domain, definition, *([pending] if pending else []))
    try:
        try:
            await domains.journal.set_definition(definition.uuid, definition, pending)
            domain.definition, domain.pending = definition, pending
        except JournalError as error:
            with trio.CancelScope(shield=True):
                await _agree(domains, domain)
            if (domain.definition, domain.pending) != (definition, pending):
                raise
            log.error("%s is changed, and its journal has more to say: %s", domain.name, error)
    finally:
        domains.hold(domain)


async def _agree(domains: Domains, domain: Domain) -> None:
    """The domain has what the journal has of it. Raises JournalError, and changes nothing then."""
    entry = await domains.journal.load_domain(domain.definition.uuid)
    if entry is not None:
        domain.definition, domain.pending = entry.definition, entry.pending


def _require_allowed(domain: Domain, changed: frozenset[str]) -> None:
    for name in sorted(changed):
        if domain.state not in _REFUSED_IN.get(WHEN[name], ()):
            continue
        key = name.replace("_", "-")
        if WHEN[name] is When.NEVER:
            raise DefinitionError(f"the {key} of a domain never changes")
        raise WrongState(
            f"{domain.name} is {domain.state}; its {key} can be changed {WHEN[name]}",
            remedy=f"`ldm {_WAY_OUT[domain.state]}-domain {domain.name}` first",
        )


def _require_unused(
    domain: Domain, wanted: DomainDefinition, names: Mapping[str, str], macs: Mapping[str, str]
) -> None:
    if names.get(wanted.name, wanted.uuid) != wanted.uuid:
        raise Busy(f"there is already a domain {wanted.name}", remedy="choose another name")
    for net in wanted.vnets:
        if macs.get(net.mac, domain.name) != domain.name:
            raise Busy(
                f"{macs[net.mac]} has the MAC address {net.mac}",
                remedy="choose another, or leave it to the manager",
            )
