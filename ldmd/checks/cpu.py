"""Virtual CPUs: how many, and that the domain's CPU is the same one there (docs/decisions/0017).

A domain is made with all of its CPU's features or not at all, so the same model means the same CPU wherever it can be made.
What has to be compared is whether the target can make it, and, for ``native``, whether both hosts mean the same model.
"""

from __future__ import annotations

from collections.abc import Iterable

from ldmd.checks.rules import ACTIVE, BOUND, UPGRADE, CheckRule, Fault, Subject, enumerate_few

NATIVE = "native"
OTHER_CPU = "define the domain with cpu-arch generic, or with a model that both hosts offer"


def find_no_vcpus(s: Subject) -> Iterable[Fault]:
    free = max(0, s.view.vcpus_free)
    if s.definition.vcpus > free:
        yield Fault(
            s.definition.name,
            f"it needs {s.definition.vcpus} virtual CPUs, {s.view.host} has {free} free",
            f"unbind a domain on {s.view.host}, or raise its [resources] vcpus",
        )


def find_unknown(s: Subject) -> Iterable[Fault]:
    if s.knows_machine and s.view.cpu is None:
        yield Fault(
            s.definition.cpu_arch, f"{s.view.host} cannot give it: {s.view.cpu_fault}", OTHER_CPU
        )


def find_features(s: Subject) -> Iterable[Fault]:
    """Of the model: what the source's has and the target's has not, and what the target's host cannot give."""
    here, there = s.view.cpu, s.fact_cpu()
    if not s.knows_machine or here is None or s.definition.cpu_arch == NATIVE:
        return
    if there is None:
        yield Fault(s.definition.cpu_arch, "the source did not say which features it has", UPGRADE)
        return
    missing = (there.features - here.features) | here.unavailable
    if missing:
        yield Fault(
            s.definition.cpu_arch,
            f"{s.view.host} does not have {enumerate_few(missing)}",
            OTHER_CPU,
        )


def find_differs(s: Subject) -> Iterable[Fault]:
    """The model itself; of ``native`` also every feature, as no host's own CPU is another's by its name alone."""
    here, there = s.view.cpu, s.fact_cpu()
    native = s.definition.cpu_arch == NATIVE
    if not s.knows_machine or here is None or (not native and not s.active):
        return
    if there is None:
        if native:  # of the others find_features says it
            yield Fault(s.definition.cpu_arch, "the source did not say which model it is", UPGRADE)
        return
    reasons = []
    if there.model != here.model:
        reasons.append(f"it is {there.model} at the source and {here.model} on {s.view.host}")
    if native and (missing := there.features - here.features):
        reasons.append(f"{s.view.host} does not have {enumerate_few(missing)}")
    if native and (more := here.features - there.features):
        reasons.append(f"the source does not have {enumerate_few(more)}")
    if reasons:
        yield Fault(s.definition.cpu_arch, "; ".join(reasons), OTHER_CPU)


RULES = (
    CheckRule(
        code="vcpus",
        resource="CPU",
        summary="enough virtual CPUs are free, with what is promised to others",
        hard=ACTIVE | BOUND,
        find=find_no_vcpus,
    ),
    CheckRule(
        code="cpu-unknown",
        resource="CPU",
        summary="the target's hypervisor has the CPU that `cpu-arch` names",
        hard=ACTIVE,
        find=find_unknown,
    ),
    CheckRule(
        code="cpu-features",
        resource="CPU",
        summary="`generic` or a named model: the target offers every feature that the model has",
        hard=ACTIVE,
        find=find_features,
    ),
    CheckRule(
        code="cpu-differs",
        resource="CPU",
        summary="it is the same model; `native`: with the same features, also where the domain is bound",
        hard=ACTIVE | BOUND,
        find=find_differs,
    ),
)
