"""Optional devices: kept in the definition, and not fulfilled where the hypervisor does not have them.

An active domain's state has those that it was given. It fits into a domain with the same ones, no fewer and no more.
"""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, UPGRADE, CheckRule, Fault, Subject, enumerate_few


def find_missing(s: Subject) -> Iterable[Fault]:
    capabilities = s.capabilities
    if capabilities is None or not s.knows_machine:
        return
    fulfilled = capabilities.fulfil(s.definition)
    for device in s.definition.optional_devices:
        if device not in fulfilled:
            yield Fault(
                device,
                f"the hypervisor on {s.view.host} has none for this machine type: the domain goes without it there",
                "",
            )


def find_differs(s: Subject) -> Iterable[Fault]:
    capabilities = s.capabilities
    if not s.definition.optional_devices or capabilities is None or not s.knows_machine:
        return
    there = s.fact_names("optional-devices")
    if there is None:
        yield Fault(
            s.definition.name, "the source did not say which optional devices it has", UPGRADE
        )
        return
    here = capabilities.fulfil(s.definition)
    for device in sorted({*there} ^ {*here}):
        has, has_not = (
            ("the source", s.view.host) if device in there else (s.view.host, "the source")
        )
        yield Fault(
            device,
            f"{has} gives it to this domain and {has_not} does not, so its state does not fit",
            "stop the domain and migrate it bound, or take the device out of its optional-devices",
        )


def find_unmovable(s: Subject) -> Iterable[Fault]:
    if not s.definition.optional_devices:
        return
    unmovable = s.fact_names("unmovable-devices")
    if unmovable is None:
        yield Fault(
            s.definition.name, "the source did not say which devices it cannot move", UPGRADE
        )
    elif unmovable:
        yield Fault(
            s.definition.name,
            f"the hypervisor {s.definition.hypervisor} cannot give away the state of {enumerate_few(unmovable)}",
            "stop the domain and migrate it bound, or take the device out of its optional-devices",
        )


RULES = (
    CheckRule(
        code="optional-missing",
        resource="optional devices",
        summary="the target's hypervisor has them; if not, the domain keeps them and goes without",
        soft=ACTIVE | BOUND,
        find=find_missing,
    ),
    CheckRule(
        code="optional-differs",
        resource="optional devices",
        summary="an active domain gets the same ones there that it has now",
        hard=ACTIVE,
        find=find_differs,
    ),
    CheckRule(
        code="device-unmovable",
        resource="optional devices",
        summary="an active domain has none whose state its hypervisor cannot give away (QEMU: `crypto`)",
        hard=ACTIVE,
        find=find_unmovable,
    ),
)
