"""Phase 1 as a table: each rule alone, and what it means in each state of the domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmd import checks
from ldmd.checks import Subject
from ldmd.checks.rules import FEATURES_MAX, LISTED_MAX
from ldmd.claims import SENTENCE_BYTES_MAX, VolumeView
from ldmd.definition import DomainDefinition, VirtualDisk, VirtualNetwork
from ldmd.hypervisor.driver import Capabilities, CpuModel
from ldmd.inventory import View
from ldmd.measured import HugePages, Measured, Switch
from protocol import codec, limits
from protocol.limits import GIB, MIB
from protocol.messages import Checked, Finding
from protocol.phases import RunState

UUID = "11111111-2222-4333-8444-555555555555"
OTHER_UUID = "99999999-2222-4333-8444-555555555555"
MAC = "52:54:00:12:34:56"
NOW_MS = 1_800_000_000_000
DAY_MS = 24 * 3600 * 1000

DEFINITION = DomainDefinition(
    name="web1",
    uuid=UUID,
    hypervisor="qemu",
    machine="pc",
    firmware="default",
    vcpus=2,
    memory_bytes=512 * MIB,
    optional_devices=("rng",),
    vdisks=(VirtualDisk(name="boot", volume="web1-boot", service="vds0"),),
    vnets=(VirtualNetwork(name="front", switch="vsw0", mac=MAC),),
)

CAPABILITIES = Capabilities(
    kind="qemu",
    version=(8, 2, 1),
    machines=frozenset({"pc", "q35"}),
    firmwares=frozenset({"default"}),
    architecture="x86_64",
    accelerator="kvm",
    optional_devices={"pc": frozenset({"rng", "watchdog"})},
    details={"machine:pc": "pc-i440fx-8.2"},
)

MEASURED = Measured(
    memory_available_bytes=512 * MIB,
    huge_pages={"2MiB": HugePages(free_bytes=512 * MIB, largest_node_bytes=512 * MIB)},
    switches={"vsw0": Switch(bridge="br0", mtu=1500)},
    disk_free_bytes={"/var/lib/ldmd": MIB, "/run/ldmd": MIB},
    certificate_until_unix_ms=NOW_MS + DAY_MS,
    time_unix_ms=NOW_MS,
)

CPU = CpuModel(model="qemu64", features=frozenset({"sse", "sse2", "nx"}))

VIEW = View(
    host="host-b",
    capabilities={"qemu": CAPABILITIES},
    unavailable={},
    names={"other": OTHER_UUID},
    uuids={OTHER_UUID: None},
    macs={"52:54:00:00:00:01": "other"},
    memory_free_bytes=512 * MIB,
    vcpus_free=2,
    vdisks={
        "boot": VolumeView(name="web1-boot@vds0", size_bytes=4096, direct=True, storage_same=True)
    },
    volumes_in_use={},
    domains_free=1,
    consoles_free=1,
    incoming_free=1,
    incoming_max=1,
    measured=MEASURED,
    memory_promised_bytes=0,
    huge_promised_bytes={},
    cpu=CPU,
    cpu_fault="",
)

FACTS: dict[str, Any] = {
    "reconfiguration-pending": False,
    "switches": {"vsw0": 1500},
    "certificate-until-unix-ms": NOW_MS + DAY_MS,
    "volumes": {"web1-boot@vds0": 4096},
    "storage": {"web1-boot@vds0": {"format": "raw", "direct": True, "host-only": False}},
    "hypervisor-version": [8, 2, 1],
    "architecture": "x86_64",
    "accelerator": "kvm",
    "machine": "pc-i440fx-8.2",
    "optional-devices": ["rng"],
    "unmovable-devices": [],
    "cpu": {"model": "qemu64", "features": ["sse", "sse2", "nx"]},
}
"""Room, memory, time: everything is there, and nothing of it to spare."""

ACTIVE = (RunState.RUNNING, RunState.SUSPENDED)


def run(
    run_state: RunState = RunState.RUNNING,
    *,
    definition: DomainDefinition = DEFINITION,
    facts: dict[str, Any] | None = None,
    clock_ahead_ms: int | None = 0,
    force: bool = False,
    **view: Any,
) -> tuple[Finding, ...]:
    return checks.run(
        checks.ALL,
        Subject(
            definition=definition,
            run_state=run_state,
            facts=FACTS if facts is None else facts,
            view=attrs.evolve(VIEW, **view),
            clock_ahead_ms=clock_ahead_ms,
        ),
        force=force,
    )


# ---- how a case is another one than that where all is well ------------------------------------------------


def view(**change: Any) -> dict[str, Any]:
    return change


def capable(**change: Any) -> dict[str, Any]:
    return {"capabilities": {"qemu": attrs.evolve(CAPABILITIES, **change)}}


def measured(**change: Any) -> dict[str, Any]:
    return {"measured": attrs.evolve(MEASURED, **change)}


def defined(**change: Any) -> dict[str, Any]:
    return {"definition": attrs.evolve(DEFINITION, **change)}


def said(**change: Any) -> dict[str, Any]:
    """A fact; None: the source does not say."""
    facts = FACTS | {key.replace("_", "-"): value for key, value in change.items()}
    return {"facts": {key: value for key, value in facts.items() if value is not None}}


def huge(free_mib: int, largest_mib: int) -> dict[str, Any]:
    pages = HugePages(free_bytes=free_mib * MIB, largest_node_bytes=largest_mib * MIB)
    return measured(huge_pages={"2MiB": pages})


def carries(mtu: int | None) -> dict[str, Any]:
    return measured(switches={"vsw0": Switch(bridge="br0", mtu=mtu)})


def with_mtu(mtu: int) -> dict[str, Any]:
    return defined(vnets=(attrs.evolve(DEFINITION.vnets[0], mtu=mtu),))


def cpu(model: str = "qemu64", features: str = "sse sse2 nx", unavailable: str = "") -> CpuModel:
    return CpuModel(
        model=model,
        features=frozenset(features.split()),
        unavailable=frozenset(unavailable.split()),
    )


def cpu_there(model: str = "qemu64", features: str = "sse sse2 nx") -> dict[str, Any]:
    return said(cpu={"model": model, "features": features.split()})


def seen(**change: Any) -> dict[str, Any]:
    """The volume that would serve the vdisk."""
    return {"vdisks": {"boot": attrs.evolve(VIEW.vdisks["boot"], **change)}}


def claimed(**change: Any) -> dict[str, Any]:
    """What the source says of the vdisk's storage; None: it does not say it."""
    entry = FACTS["storage"]["web1-boot@vds0"] | {k.replace("_", "-"): v for k, v in change.items()}
    return said(storage={"web1-boot@vds0": {k: v for k, v in entry.items() if v is not None}})


def with_vdisk(**change: Any) -> dict[str, Any]:
    return defined(vdisks=(attrs.evolve(DEFINITION.vdisks[0], **change),))


HARD, SOFT, ABSENT = "hard", "soft", "absent"


@frozen
class Wrong:
    """``code`` is all that is found, about ``subject``; the outcome for an active, a bound and an inactive domain."""

    code: str
    subject: str
    active: str
    bound: str
    inactive: str
    change: Mapping[str, Any] = field(converter=dict)


def every(code: str, subject: str, **change: Any) -> Wrong:
    return Wrong(code, subject, HARD, HARD, HARD, change)


def softer(code: str, subject: str, **change: Any) -> Wrong:
    return Wrong(code, subject, HARD, HARD, SOFT, change)


def room(code: str, subject: str, **change: Any) -> Wrong:
    return Wrong(code, subject, HARD, HARD, ABSENT, change)


def running(code: str, subject: str, **change: Any) -> Wrong:
    return Wrong(code, subject, HARD, ABSENT, ABSENT, change)


def note(code: str, subject: str, **change: Any) -> Wrong:
    return Wrong(code, subject, SOFT, SOFT, SOFT, change)


NATIVE = defined(cpu_arch="native")
HUGE = defined(huge_pages="2MiB")
CACHED = ("writethrough", "writeback", "unsafe")
CRYPTO = defined(optional_devices=("rng", "crypto"))

WRONG: list[Wrong] = [
    # domain
    every("name-taken", "web1", names={"web1": OTHER_UUID}),
    every("uuid-taken", "web1", uuids={UUID: None}),
    every("migration-unsettled", "web1", uuids={UUID: "m" * 32}),
    every("migration-unsettled", "web1", uuids={UUID: "promised"}),
    every("reconfiguration-pending", "web1", **said(reconfiguration_pending=True)),
    every("reconfiguration-pending", "web1", **said(reconfiguration_pending=None)),
    every("reconfiguration-pending", "web1", **said(reconfiguration_pending=0)),
    every("not-migratable", "web1", **defined(mig_allowed=False)),
    # hypervisor
    softer("hypervisor-missing", "qemu", capabilities={}),
    softer("hypervisor-missing", "qemu", capabilities={}, unavailable={"qemu": "broken"}),
    softer("machine-unknown", "pc", **capable(machines=frozenset({"q35"}))),
    softer("firmware-unknown", "default", **capable(firmwares=frozenset())),
    Wrong("hypervisor-older", "qemu", HARD, SOFT, SOFT, capable(version=(8, 2, 0))),
    Wrong("hypervisor-older", "qemu", HARD, SOFT, SOFT, said(hypervisor_version=None)),
    running("machine-differs", "pc", **capable(details={"machine:pc": "pc-i440fx-9.0"})),
    running("machine-differs", "pc", **said(machine=None)),
    running("accelerator-differs", "qemu", **capable(accelerator="tcg")),
    running("accelerator-differs", "qemu", **said(accelerator=None)),
    # cpu
    room("vcpus", "web1", vcpus_free=1),
    running("cpu-unknown", "generic", cpu=None, cpu_fault="there is none"),
    running("cpu-features", "generic", cpu=cpu(features="sse nx")),
    running("cpu-features", "generic", cpu=cpu(features="sse nx", unavailable="sse2")),
    running("cpu-features", "generic", **cpu_there(features="sse sse2 nx avx")),
    running("cpu-features", "generic", **said(cpu=None)),
    running("cpu-differs", "generic", cpu=cpu("qemu65")),
    room("cpu-differs", "native", **NATIVE, cpu=cpu("EPYC")),
    room("cpu-differs", "native", **NATIVE, cpu=cpu(features="sse nx")),
    room("cpu-differs", "native", **NATIVE, cpu=cpu(features="sse sse2 nx avx")),
    room("cpu-differs", "native", **NATIVE, **said(cpu=None)),
    # memory
    room("memory", "web1", memory_free_bytes=512 * MIB - 1),
    room("memory", "web1", memory_free_bytes=-1),
    room("memory-available", "web1", **measured(memory_available_bytes=512 * MIB - 1)),
    room("memory-available", "web1", **measured(memory_available_bytes=None)),
    room("memory-available", "web1", memory_promised_bytes=1),
    room("huge-pages", "web1", **HUGE, **huge(512, 510)),
    room("huge-pages", "web1", **HUGE, **huge(510, 512)),
    room("huge-pages", "web1", **HUGE, huge_promised_bytes={"2MiB": 2 * MIB}),
    room("huge-pages", "web1", **HUGE, **measured(huge_pages={})),
    room("huge-pages", "web1", **defined(huge_pages="1GiB")),
    # vdisk
    softer("volume-missing", "boot", vdisks={}),
    softer("volume-missing", "boot", **seen(name="")),
    softer("volume-missing", "boot", **seen(why="web1-boot@vds0: No such file")),
    softer("volume-size", "boot", **seen(size_bytes=8192)),
    softer("volume-size", "boot", **seen(format="qcow2")),
    softer("volume-size", "boot", **said(volumes={})),
    running("volume-options", "boot", **seen(read_only=True)),
    running("volume-options", "boot", **seen(direct=False)),
    running("volume-options", "boot", **with_vdisk(mpgroup="paths")),
    running("volume-options", "boot", **claimed(direct=None)),
    room("storage-not-shared", "boot", **seen(storage_same=False, storage_why="it is another")),
    *(running("cache-unsafe", "boot", **with_vdisk(cache=c)) for c in CACHED),
    every("host-only", "boot", **claimed(host_only=True)),
    room("volume-in-use", "boot", volumes_in_use={("vds0", "web1-boot"): "other"}),
    # vnet
    softer("switch-missing", "front", **measured(switches={})),
    softer("bridge-missing", "front", **carries(None)),
    softer("mtu-too-small", "front", **with_mtu(1501)),
    softer("mtu-differs", "front", **carries(9000)),
    softer("mtu-differs", "front", **said(switches={})),
    every("mac-taken", "front", macs={MAC: "other"}),
    # console, optional devices
    room("console", "host-b", consoles_free=0),
    Wrong("optional-missing", "crypto", SOFT, SOFT, ABSENT, CRYPTO),
    running("optional-differs", "rng", **said(optional_devices=[])),
    running("optional-differs", "watchdog", **said(optional_devices=["rng", "watchdog"])),
    running("optional-differs", "web1", **said(optional_devices=None)),
    running("device-unmovable", "web1", **said(unmovable_devices=["rng"])),
    running("device-unmovable", "web1", **said(unmovable_devices=None)),
    # host, certificates, time
    every("limits", "host-b", domains_free=0),
    every("limits", "host-b", incoming_free=0, incoming_max=0),
    every("incoming", "host-b", incoming_free=0),
    every("disk-space", "host-b", **measured(disk_free_bytes={"/run/ldmd": MIB - 1})),
    every("disk-space", "host-b", **measured(disk_free_bytes={"/run/ldmd": None})),
    note(
        "certificate-expires",
        "host-b",
        **measured(certificate_until_unix_ms=NOW_MS + DAY_MS - 1),
    ),
    note("certificate-expires", "host-b", **measured(certificate_until_unix_ms=None)),
    note("certificate-expires", "the source", **said(certificate_until_unix_ms=NOW_MS)),
    note("certificate-expires", "the source", **said(certificate_until_unix_ms=None)),
    note("clocks", "host-b", clock_ahead_ms=60_001),
    note("clocks", "host-b", clock_ahead_ms=-60_001),
    note("clocks", "host-b", clock_ahead_ms=None),
]

RIGHT: dict[str, list[Mapping[str, Any]]] = {
    "name-taken": [defined(name="web2"), view(names={"web1": UUID})],
    "uuid-taken": [defined(uuid=UUID.replace("1", "2")), view(uuids={})],
    "migration-unsettled": [view(uuids={OTHER_UUID: "m" * 32})],
    "reconfiguration-pending": [said(reconfiguration_pending=False)],
    "not-migratable": [defined(mig_allowed=True)],
    "hypervisor-missing": [view(unavailable={"emulated": "broken"})],
    "machine-unknown": [capable(machines=frozenset({"pc"}))],
    "firmware-unknown": [capable(firmwares=frozenset({"default", "oracle"}))],
    "hypervisor-older": [capable(version=(9,)), said(hypervisor_version=[7, 2, 22])],
    "machine-differs": [
        capable(details={}) | said(machine="pc"),
        capable(details={"machine:pc": "pc-9"}) | said(machine="pc-9"),
    ],
    "accelerator-differs": [capable(accelerator="tcg") | said(accelerator="tcg")],
    "vcpus": [defined(vcpus=1), view(vcpus_free=3)],
    "cpu-unknown": [defined(cpu_arch="EPYC"), NATIVE],
    "cpu-features": [
        view(cpu=cpu(features="sse sse2 nx avx avx2")),  # more than the domain has
        cpu_there(features="sse"),
    ],
    "cpu-differs": [
        NATIVE | view(cpu=cpu("EPYC", "sse avx")) | cpu_there("EPYC", "avx sse"),
    ],
    "memory": [defined(memory_bytes=MIB), view(memory_free_bytes=GIB)],
    "memory-available": [
        HUGE | measured(memory_available_bytes=None),  # it takes none of that
        measured(memory_available_bytes=513 * MIB) | view(memory_promised_bytes=MIB),
    ],
    "huge-pages": [HUGE, HUGE | huge(514, 512) | view(huge_promised_bytes={"2MiB": 2 * MIB})],
    "volume-missing": [defined(vdisks=()) | view(vdisks={})],
    "volume-size": [seen(size_bytes=1) | said(volumes={"web1-boot@vds0": 1})],
    "volume-options": [with_vdisk(read_only=True) | seen(read_only=True)],
    "storage-not-shared": [seen(storage_same=True)],
    "cache-unsafe": [with_vdisk(cache="directsync")],
    "host-only": [claimed(host_only=False)],
    "volume-in-use": [view(volumes_in_use={("vds1", "web1-boot"): "other"})],
    "switch-missing": [defined(vnets=()) | measured(switches={})],
    "bridge-missing": [measured(switches={**MEASURED.switches, "x": Switch(bridge="b", mtu=None)})],
    "mtu-too-small": [
        with_mtu(1499),
        with_mtu(9000) | carries(9000) | said(switches={"vsw0": 9000}),
    ],
    "mtu-differs": [carries(1600) | said(switches={"vsw0": 1600})],
    "mac-taken": [view(macs={"52:54:00:00:00:02": "other"})],
    "console": [view(consoles_free=2)],
    "optional-missing": [
        defined(optional_devices=("rng", "watchdog")) | said(optional_devices=["rng", "watchdog"])
    ],
    "optional-differs": [defined(optional_devices=()) | said(optional_devices=None)],
    "device-unmovable": [defined(optional_devices=()) | said(unmovable_devices=None)],
    "limits": [view(domains_free=5, incoming_free=5)],
    "incoming": [view(incoming_free=1, incoming_max=2)],
    "disk-space": [measured(disk_free_bytes={"/run/ldmd": GIB})],
    "certificate-expires": [measured(certificate_until_unix_ms=NOW_MS + 365 * DAY_MS)],
    "clocks": [{"clock_ahead_ms": 60_000}, {"clock_ahead_ms": -60_000}],
}
"""By code: what looks a little like what that rule finds, and is all right."""


def rows() -> list[Any]:
    return [
        pytest.param(wrong, state, outcome, id=f"{wrong.code}-{number}-{state}")
        for number, wrong in enumerate(WRONG)
        for state, outcome in (
            *((state, wrong.active) for state in ACTIVE),
            (RunState.BOUND, wrong.bound),
            (RunState.INACTIVE, wrong.inactive),
        )
    ]


@pytest.mark.parametrize(("wrong", "state", "outcome"), rows())
def test_each_rule_alone(wrong: Wrong, state: RunState, outcome: str) -> None:
    findings = run(state, **wrong.change)
    if outcome == ABSENT:
        assert findings == ()
        return
    (finding,) = findings
    assert (finding.code, finding.subject) == (wrong.code, wrong.subject)
    assert finding.hard == (outcome == HARD)
    assert finding.sentence
    assert finding.remedy or wrong.code == "optional-missing"  # nothing need be done


@pytest.mark.parametrize("state", list(RunState))
def test_where_nothing_is_wrong_nothing_is_found(state: RunState) -> None:
    assert run(state) == ()


@pytest.mark.parametrize("state", list(RunState))
@pytest.mark.parametrize(
    "change",
    [pytest.param(change, id=code) for code, changes in RIGHT.items() for change in changes],
)
def test_what_passes(change: dict[str, Any], state: RunState) -> None:
    assert run(state, **change) == ()


def test_every_rule_has_a_case_where_it_alone_fails_and_one_where_it_passes() -> None:
    codes = [rule.code for rule in checks.ALL]
    assert len(set(codes)) == len(codes)
    assert {wrong.code for wrong in WRONG} == set(codes)
    assert {code for code, changes in RIGHT.items() if changes} == set(codes)


@pytest.mark.parametrize("rule", checks.ALL, ids=lambda rule: rule.code)
def test_a_rule_is_what_its_row_says(rule: checks.CheckRule) -> None:
    """The outcomes of the cases are those that the rule's own data promise."""
    assert not rule.hard & rule.soft
    assert rule.summary
    for wrong in WRONG:
        if wrong.code == rule.code:
            for state, outcome in ((ACTIVE[0], wrong.active), (RunState.BOUND, wrong.bound)):
                if outcome != ABSENT:
                    assert state in (rule.hard if outcome == HARD else rule.soft)


# ---- force -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.code)
def test_force_makes_soft_what_may_be_forced_and_says_so(wrong: Wrong) -> None:
    (plain,) = run(**wrong.change)
    (forced,) = run(**wrong.change, force=True)
    rule = next(rule for rule in checks.ALL if rule.code == wrong.code)
    if plain.hard and rule.forcible:
        assert not forced.hard
        assert forced.sentence == f"{plain.sentence} (forced)"
    else:
        assert forced == plain


def test_what_may_be_forced() -> None:
    """Whatever could end with another domain than there was may not."""
    assert {rule.code for rule in checks.ALL if rule.forcible} == {"cache-unsafe", "mtu-differs"}


# ---- features by name ------------------------------------------------------------------------------------


def test_the_missing_features_are_named_and_few() -> None:
    (finding,) = run(cpu=cpu(features="sse"))
    assert finding.sentence == "host-b does not have nx, sse2"
    many = [f"f{n:03}" for n in range(FEATURES_MAX)]
    (finding,) = run(**said(cpu={"model": "qemu64", "features": many}))
    assert finding.sentence.endswith(f"f007 and {FEATURES_MAX - LISTED_MAX} more")
    (finding,) = run(**said(cpu={"model": "qemu64", "features": [*many, "one-more"]}))
    assert "did not say which" in finding.sentence


def test_what_the_source_has_more_and_less_is_named() -> None:
    (finding,) = run(**NATIVE, cpu=cpu("A", "sse avx"), **cpu_there("B", "sse svm"))
    assert finding.sentence == (
        "it is B at the source and A on host-b; host-b does not have svm; the source does not have avx"
    )


def test_all_findings_come_at_once_in_the_order_of_the_table() -> None:
    facts = {"hypervisor-version": [9, 0, 0], "machine": "x", "accelerator": "tcg"}
    findings = run(
        definition=attrs.evolve(DEFINITION, name="other", mig_allowed=False),
        facts=FACTS | facts | {"cpu": {"model": "x", "features": ["y"]}, "optional-devices": []},
        uuids={UUID: None},
        macs={MAC: "somebody"},
        memory_free_bytes=0,
        vcpus_free=0,
        vdisks={},
        volumes_in_use={("vds0", "web1-boot"): "somebody"},
        domains_free=0,
        incoming_free=0,
        consoles_free=0,
        clock_ahead_ms=10**15,
        **measured(memory_available_bytes=0, switches={}, disk_free_bytes={"/run": 0}),
        **capable(firmwares=frozenset()),
    )
    assert [f.code for f in findings] == [
        "name-taken",
        "uuid-taken",
        "not-migratable",
        "firmware-unknown",
        "hypervisor-older",
        "machine-differs",
        "accelerator-differs",
        "vcpus",
        "cpu-features",
        "cpu-differs",
        "memory",
        "memory-available",
        "volume-missing",
        "volume-in-use",
        "switch-missing",
        "mac-taken",
        "console",
        "optional-differs",
        "limits",
        "incoming",
        "disk-space",
        "clocks",
    ]
    Checked(migration="0" * 32, findings=findings)


def test_a_domains_own_name_is_not_taken_by_itself() -> None:
    """The same uuid under the same name: uuid-taken says it, once."""
    assert [f.code for f in run(names={"web1": UUID}, uuids={UUID: None})] == ["uuid-taken"]


@pytest.mark.parametrize(
    ("version", "codes"),
    [
        ([8, 2, 1], []),
        ([8, 2, 0], []),
        ([8, 1, 99], []),
        ([7, 9, 9, 9], []),
        ([8, 2, 2], ["hypervisor-older"]),
        ([8, 10], ["hypervisor-older"]),
        ([10, 0, 0], ["hypervisor-older"]),
        ((8, 2, 1), []),
    ],
)
def test_versions_compare_as_numbers(version: object, codes: list[str]) -> None:
    found = run(facts=FACTS | {"hypervisor-version": version})
    assert [f.code for f in found] == codes


# ---- a hostile source ------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
HOSTILE = st.fixed_dictionaries(
    {},
    optional={
        "volumes": PLAIN | st.fixed_dictionaries({"web1-boot@vds0": PLAIN}),
        "hypervisor-version": PLAIN | st.lists(st.integers(-(2**63), 2**64 - 1), max_size=1024),
        "machine": PLAIN | st.text(max_size=4096),
        "accelerator": PLAIN | st.text(max_size=4096),
        "architecture": PLAIN,
        "reconfiguration-pending": PLAIN,
        "switches": PLAIN | st.fixed_dictionaries({"vsw0": PLAIN}),
        "certificate-until-unix-ms": PLAIN,
        "optional-devices": PLAIN | st.lists(st.text(max_size=4096), max_size=64),
        "unmovable-devices": PLAIN | st.lists(st.text(max_size=4096), max_size=64),
        "cpu": PLAIN
        | st.fixed_dictionaries(
            {"model": PLAIN | st.text(max_size=4096), "features": PLAIN | st.lists(st.text())}
        ),
    },
)


@given(facts=HOSTILE, state=st.sampled_from(RunState))
@settings(max_examples=200, deadline=None)
def test_whatever_a_source_says_is_answered(facts: dict[str, Any], state: RunState) -> None:
    """Never an exception, and always an answer that fits into a message."""
    for definition in (DEFINITION, attrs.evolve(DEFINITION, cpu_arch="native")):
        findings = run(state, facts=facts, definition=definition)
        answer = Checked(migration="0" * 32, findings=findings)
        assert codec.decode(codec.encode(answer)) == answer


@pytest.mark.parametrize(
    "version", [None, "8.2.1", [], [8, "2"], [8, True], [8.2], {"8": 2}, [8] * 1024, [-1], [2**64]]
)
def test_a_version_that_is_none_is_a_failed_check(version: object) -> None:
    (finding,) = run(facts=FACTS | {"hypervisor-version": version})
    assert (finding.code, finding.hard) == ("hypervisor-older", True)
    assert "did not say which version" in finding.sentence


@pytest.mark.parametrize("size", [None, "4096", True, 4096.0, [4096], {}])
def test_a_size_that_is_none_is_a_failed_check(size: object) -> None:
    for volumes in ({"web1-boot@vds0": size}, size):
        (finding,) = run(facts=FACTS | {"volumes": volumes})
        assert (finding.code, finding.hard) == ("volume-size", True)
        assert "an unknown number of" in finding.sentence


def test_the_most_that_can_be_found_fits_into_one_message() -> None:
    """The longest names, as many devices as a definition may have, everything wrong with each."""

    def long(number: int, letter: str = "x") -> str:
        return f"{letter}{number:02}".ljust(63, letter)

    count = 64
    disks = tuple(
        VirtualDisk(name=long(n), volume=long(n, "v"), service=long(n, "s")) for n in range(count)
    )
    nets = tuple(
        VirtualNetwork(name=long(n, "n"), switch=long(n, "w"), mac=f"52:54:00:00:00:{n:02x}")
        for n in range(count)
    )
    views: list[dict[str, VolumeView]] = [
        {},
        {
            d.name: VolumeView(
                name=f"{d.volume}@{d.service}",
                size_bytes=2**60,
                format="qcow2",
                read_only=True,
                direct=False,
                storage_why="w" * SENTENCE_BYTES_MAX,
            )
            for d in disks
        },
        {d.name: VolumeView(name=d.volume, why="w" * SENTENCE_BYTES_MAX) for d in disks},
    ]
    for view in views:
        findings = run(
            definition=attrs.evolve(DEFINITION, name=long(0), vdisks=disks, vnets=nets, vcpus=9),
            facts={"accelerator": "\x1b" * 4096, "machine": "y" * 4096},
            host="h" * 64,
            names={long(0): OTHER_UUID},
            uuids={UUID: None},
            macs={net.mac: long(1, "m") for net in nets},
            vdisks=view,
            volumes_in_use={(d.service, d.volume): long(2, "u") for d in disks},
            memory_free_bytes=0,
            vcpus_free=0,
            domains_free=0,
            incoming_free=0,
            consoles_free=0,
            clock_ahead_ms=None,
            **measured(
                memory_available_bytes=None,
                switches={net.switch: Switch(bridge="b" * 15, mtu=68) for net in nets},
                disk_free_bytes={"/" + "d" * 255: None, "/" + "e" * 255: 0},
                certificate_until_unix_ms=None,
            ),
        )
        assert len(findings) == limits.FINDINGS_MAX
        answer = Checked(migration="0" * 32, findings=findings)
        assert codec.decode(codec.encode(answer)) == answer


def test_a_hard_finding_is_never_among_those_that_do_not_fit() -> None:
    """An inactive domain has many soft ones; the last rule's is hard."""
    names = [f"n{n}" for n in range(64)]
    subject = Subject(
        definition=attrs.evolve(
            DEFINITION,
            vnets=tuple(
                VirtualNetwork(name=name, switch="gone", mac=f"52:54:00:00:00:{n:02x}")
                for n, name in enumerate(names)
            ),
        ),
        run_state=RunState.INACTIVE,
        facts=FACTS,
        view=attrs.evolve(VIEW, **measured(switches={}), macs={"52:54:00:00:00:3f": "other"}),
    )
    many = checks.run([rule for rule in checks.ALL for _ in range(8)], subject)
    assert len(many) == limits.FINDINGS_MAX
    assert [f.code for f in many if f.hard] == ["mac-taken"] * 8
