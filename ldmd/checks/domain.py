"""The domain itself: its name, its uuid, what is open about it, and whether it may leave."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import EVERY, UPGRADE, CheckRule, Fault, Subject


def find_name_taken(s: Subject) -> Iterable[Fault]:
    owner = s.view.names.get(s.definition.name)
    if owner is not None and owner != s.definition.uuid:
        yield Fault(
            s.definition.name,
            f"another domain on {s.view.host} is called {s.definition.name}",
            f"give it another name there: {s.view.host}:NEWNAME",
        )


def find_uuid_taken(s: Subject) -> Iterable[Fault]:
    uuid = s.definition.uuid
    if uuid in s.view.uuids and s.view.uuids[uuid] is None:
        yield Fault(
            s.definition.name,
            f"{s.view.host} already has a domain with the uuid {uuid}",
            f"remove that domain on {s.view.host}, if it is not this one's only copy",
        )


def find_unsettled(s: Subject) -> Iterable[Fault]:
    migration = s.view.uuids.get(s.definition.uuid)
    if migration is not None:
        yield Fault(
            s.definition.name,
            f"migration {migration} of this domain is not settled on {s.view.host}",
            f"wait until it is; `ldm list-migrations` on {s.view.host} says what it waits for",
        )


def find_reconfiguration(s: Subject) -> Iterable[Fault]:
    """What waits for the domain's next start would have to wait at the target, which does not know of it."""
    pending = s.fact_boolean("reconfiguration-pending")
    if pending is None:
        yield Fault(
            s.definition.name,
            "the source did not say whether a delayed reconfiguration waits",
            UPGRADE,
        )
    elif pending:
        yield Fault(
            s.definition.name,
            "a delayed reconfiguration waits for its next start",
            "stop and start the domain, or cancel the reconfiguration, before it is migrated",
        )


def find_not_migratable(s: Subject) -> Iterable[Fault]:
    if not s.definition.mig_allowed:
        yield Fault(
            s.definition.name,
            "its definition says that it may not be migrated",
            "set mig-allowed of the domain, if that has changed",
        )


RULES = (
    CheckRule(
        code="name-taken",
        resource="domain",
        summary="no other domain of the target has its name, or it gets another name there",
        hard=EVERY,
        find=find_name_taken,
    ),
    CheckRule(
        code="uuid-taken",
        resource="domain",
        summary="the target does not have the domain already, nor a process of it",
        hard=EVERY,
        find=find_uuid_taken,
    ),
    CheckRule(
        code="migration-unsettled",
        resource="domain",
        summary="no other migration of it is open on the target",
        hard=EVERY,
        find=find_unsettled,
    ),
    CheckRule(
        code="reconfiguration-pending",
        resource="domain",
        summary="no delayed reconfiguration waits for its next start",
        hard=EVERY,
        find=find_reconfiguration,
    ),
    CheckRule(
        code="not-migratable",
        resource="domain",
        summary="its definition does not say `mig-allowed = false`",
        hard=EVERY,
        find=find_not_migratable,
    ),
)
