"""Name, uuid and open migrations of the domain."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import EVERY, CheckRule, Fault, Subject


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


RULES = (
    CheckRule(code="name-taken", resource="domain", hard=EVERY, find=find_name_taken),
    CheckRule(code="uuid-taken", resource="domain", hard=EVERY, find=find_uuid_taken),
    CheckRule(code="migration-unsettled", resource="domain", hard=EVERY, find=find_unsettled),
)
