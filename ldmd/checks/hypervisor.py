"""The hypervisor: its kind, machine type, firmware and version."""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, INACTIVE, UPGRADE, CheckRule, Fault, Subject


def find_missing(s: Subject) -> Iterable[Fault]:
    kind = s.definition.hypervisor
    if kind not in s.view.capabilities:
        why = s.view.unavailable.get(kind, f"the hypervisor {kind} is not enabled")
        yield Fault(
            kind,
            f"{s.view.host} cannot run it: {why}",
            f"install and enable {kind} on {s.view.host}",
        )


def find_machine_unknown(s: Subject) -> Iterable[Fault]:
    capabilities = s.capabilities
    if capabilities is not None and s.definition.machine not in capabilities.machines:
        yield Fault(
            s.definition.machine,
            f"the hypervisor on {s.view.host} has no machine type {s.definition.machine}",
            "install a version that has it, or define the domain with a machine type that both know",
        )


def find_firmware_unknown(s: Subject) -> Iterable[Fault]:
    capabilities = s.capabilities
    if capabilities is not None and s.definition.firmware not in capabilities.firmwares:
        yield Fault(
            s.definition.firmware,
            f"the hypervisor on {s.view.host} has no firmware {s.definition.firmware}",
            "use a firmware that both hosts have",
        )


def find_older(s: Subject) -> Iterable[Fault]:
    """Runtime state goes to the same or a newer version only: no hypervisor promises the other direction.

    A domain without any may find there what it had been made for missing.
    """
    capabilities = s.capabilities
    if capabilities is None:
        return
    version = s.fact_version("hypervisor-version")
    if version is None:
        yield Fault(
            s.definition.hypervisor,
            "the source did not say which version it has",
            f"look whether the source has {s.definition.hypervisor} at all; if so, {UPGRADE}",
        )
    elif capabilities.version < version:
        yield Fault(
            s.definition.hypervisor,
            f"{s.view.host} has {s.definition.hypervisor} {_dotted(capabilities.version)},"
            f" older than the source's {_dotted(version)}",
            f"upgrade it on {s.view.host} to at least {_dotted(version)}",
        )


def find_machine_differs(s: Subject) -> Iterable[Fault]:
    """An alias such as ``pc`` means the newest machine type of the QEMU that reads it."""
    capabilities = s.capabilities
    there = s.fact_text("machine")
    if capabilities is None or s.definition.machine not in capabilities.machines:
        return
    here = capabilities.resolve_machine(s.definition.machine)
    if there is None:
        yield Fault(
            s.definition.machine, "the source did not say which machine type it is there", UPGRADE
        )
    elif here != there:
        yield Fault(
            s.definition.machine,
            f"{s.definition.machine} is {there} at the source and {here} on {s.view.host}",
            f"define the domain with the machine type {there}",
        )


def find_accelerator_differs(s: Subject) -> Iterable[Fault]:
    """Runtime state of a domain under KVM is not read by TCG, nor the other way round."""
    capabilities = s.capabilities
    there = s.fact_text("accelerator")
    if capabilities is None:
        return
    if there is None:
        yield Fault(
            s.definition.hypervisor, "the source did not say what runs its domains", UPGRADE
        )
    elif capabilities.accelerator != there:
        yield Fault(
            s.definition.hypervisor,
            f"it runs with {there} at the source and would with {capabilities.accelerator} on {s.view.host}",
            "set the same [hypervisors.qemu] accelerator on both hosts",
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


RULES = (
    CheckRule(
        code="hypervisor-missing",
        resource="hypervisor",
        summary="the target has a hypervisor of that kind, and it works",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_missing,
    ),
    CheckRule(
        code="machine-unknown",
        resource="hypervisor",
        summary="it has the machine type there",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_machine_unknown,
    ),
    CheckRule(
        code="firmware-unknown",
        resource="hypervisor",
        summary="it has the firmware there",
        hard=ACTIVE | BOUND,
        soft=INACTIVE,
        find=find_firmware_unknown,
    ),
    CheckRule(
        code="hypervisor-older",
        resource="hypervisor",
        summary="its version there is not older than the source's",
        hard=ACTIVE,
        soft=BOUND | INACTIVE,
        find=find_older,
    ),
    CheckRule(
        code="machine-differs",
        resource="hypervisor",
        summary="the machine type, if it is an alias, means the same on both hosts",
        hard=ACTIVE,
        find=find_machine_differs,
    ),
    CheckRule(
        code="accelerator-differs",
        resource="hypervisor",
        summary="KVM or TCG: it is the same on both hosts",
        hard=ACTIVE,
        find=find_accelerator_differs,
    ),
)
