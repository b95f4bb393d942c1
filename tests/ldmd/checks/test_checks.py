"""Phase 1 as a table: each rule alone, and what it means in each state of the domain."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmd import checks
from ldmd.checks import Subject
from ldmd.definition import DomainDefinition, VirtualDisk, VirtualNetwork
from ldmd.hypervisor.driver import Capabilities
from ldmd.inventory import View
from protocol import codec, limits
from protocol.messages import Checked, Finding
from protocol.phases import RunState

UUID = "11111111-2222-4333-8444-555555555555"
OTHER_UUID = "99999999-2222-4333-8444-555555555555"
MAC = "52:54:00:12:34:56"

DEFINITION = DomainDefinition(
    name="web1",
    uuid=UUID,
    hypervisor="qemu",
    machine="pc",
    firmware="default",
    vcpus=2,
    memory_bytes=512 * limits.MIB,
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
    details={"machine:pc": "pc-i440fx-8.2"},
)

VIEW = View(
    host="host-b",
    capabilities={"qemu": CAPABILITIES},
    unavailable={},
    names={"other": OTHER_UUID},
    uuids={OTHER_UUID: None},
    macs={"52:54:00:00:00:01": "other"},
    memory_free_bytes=512 * limits.MIB,
    vcpus_free=2,
    volumes={"vds0": {"web1-boot": 4096}},
    volumes_in_use={},
    switches=frozenset({"vsw0"}),
    domains_free=1,
    consoles_free=10,
    incoming_free=1,
)

FACTS: dict[str, Any] = {
    "volumes": {"web1-boot@vds0": 4096},
    "hypervisor-version": [8, 2, 1],
    "architecture": "x86_64",
    "accelerator": "kvm",
    "machine": "pc-i440fx-8.2",
}

ACTIVE = (RunState.RUNNING, RunState.SUSPENDED)


def run(
    run_state: RunState = RunState.RUNNING,
    *,
    definition: DomainDefinition = DEFINITION,
    facts: dict[str, Any] | None = None,
    **view: Any,
) -> tuple[Finding, ...]:
    return checks.run(
        checks.ALL,
        Subject(
            definition=definition,
            run_state=run_state,
            facts=FACTS if facts is None else facts,
            view=attrs.evolve(VIEW, **view),
        ),
    )


def capable(**change: Any) -> dict[str, Any]:
    return {"capabilities": {"qemu": attrs.evolve(CAPABILITIES, **change)}}


HARD, SOFT, ABSENT = "hard", "soft", "absent"

# what is wrong | its one finding | subject | active, bound, inactive (the design's table of checks)
WRONG: list[tuple[dict[str, Any], str, str, str, str, str]] = [
    ({"names": {"web1": OTHER_UUID}}, "name-taken", "web1", HARD, HARD, HARD),
    ({"uuids": {UUID: None}}, "uuid-taken", "web1", HARD, HARD, HARD),
    ({"uuids": {UUID: "f" * 32}}, "migration-unsettled", "web1", HARD, HARD, HARD),
    ({"capabilities": {}}, "hypervisor-missing", "qemu", HARD, HARD, SOFT),
    (
        {"capabilities": {}, "unavailable": {"qemu": "it is not installed"}},
        "hypervisor-missing",
        "qemu",
        HARD,
        HARD,
        SOFT,
    ),
    (capable(machines=frozenset({"q35"})), "machine-unknown", "pc", HARD, HARD, SOFT),
    (capable(firmwares=frozenset()), "firmware-unknown", "default", HARD, HARD, SOFT),
    (capable(version=(8, 2, 0)), "hypervisor-older", "qemu", HARD, ABSENT, ABSENT),
    (
        capable(details={"machine:pc": "pc-i440fx-9.0"}),
        "machine-differs",
        "pc",
        HARD,
        ABSENT,
        ABSENT,
    ),
    (capable(accelerator="tcg"), "accelerator-differs", "qemu", HARD, ABSENT, ABSENT),
    ({"memory_free_bytes": 512 * limits.MIB - 1}, "memory", "web1", HARD, HARD, ABSENT),
    ({"memory_free_bytes": -1}, "memory", "web1", HARD, HARD, ABSENT),
    ({"vcpus_free": 1}, "vcpus", "web1", HARD, HARD, ABSENT),
    ({"domains_free": 0}, "limits", "host-b", HARD, HARD, HARD),
    ({"incoming_free": 0}, "limits", "host-b", HARD, HARD, HARD),
    ({"volumes": {}}, "volume-missing", "boot", HARD, HARD, SOFT),
    ({"volumes": {"vds0": {}}}, "volume-missing", "boot", HARD, HARD, SOFT),
    ({"volumes": {"vds0": {"web1-boot": None}}}, "volume-missing", "boot", HARD, HARD, SOFT),
    ({"volumes": {"vds0": {"web1-boot": 8192}}}, "volume-size", "boot", HARD, HARD, ABSENT),
    (
        {"volumes_in_use": {("vds0", "web1-boot"): "other"}},
        "volume-in-use",
        "boot",
        HARD,
        HARD,
        ABSENT,
    ),
    ({"switches": frozenset()}, "switch-missing", "front", HARD, HARD, SOFT),
    ({"macs": {MAC: "other"}}, "mac-taken", "front", HARD, HARD, HARD),
]


def rows() -> list[Any]:
    return [
        pytest.param(wrong, code, subject, state, outcome, id=f"{code}-{number}-{state}")
        for number, (wrong, code, subject, active, bound, inactive) in enumerate(WRONG)
        for state, outcome in (
            *((state, active) for state in ACTIVE),
            (RunState.BOUND, bound),
            (RunState.INACTIVE, inactive),
        )
    ]


@pytest.mark.parametrize(("wrong", "code", "subject", "state", "outcome"), rows())
def test_each_rule_alone(
    wrong: dict[str, Any], code: str, subject: str, state: RunState, outcome: str
) -> None:
    findings = run(state, **wrong)
    if outcome == ABSENT:
        assert findings == ()
        return
    assert [(f.code, f.subject, f.hard) for f in findings] == [(code, subject, outcome == HARD)]
    assert findings[0].sentence
    assert findings[0].remedy


@pytest.mark.parametrize("state", list(RunState))
def test_where_nothing_is_wrong_nothing_is_found(state: RunState) -> None:
    assert run(state) == ()


def test_every_rule_has_its_rows() -> None:
    assert {row[1] for row in WRONG} == {rule.code for rule in checks.ALL}
    assert len({rule.code for rule in checks.ALL}) == len(checks.ALL)
    assert all(not rule.hard & rule.soft for rule in checks.ALL)


def test_all_findings_come_at_once_in_the_order_of_the_table() -> None:
    findings = run(
        definition=attrs.evolve(DEFINITION, name="other"),
        facts=FACTS | {"hypervisor-version": [9, 0, 0], "machine": "x", "accelerator": "tcg"},
        uuids={UUID: None},
        macs={MAC: "somebody"},
        memory_free_bytes=0,
        vcpus_free=0,
        volumes={},
        volumes_in_use={("vds0", "web1-boot"): "somebody"},
        switches=frozenset(),
        domains_free=0,
        incoming_free=0,
        **capable(firmwares=frozenset()),
    )
    assert [f.code for f in findings] == [
        "name-taken",
        "uuid-taken",
        "firmware-unknown",
        "hypervisor-older",
        "machine-differs",
        "accelerator-differs",
        "memory",
        "vcpus",
        "limits",
        "limits",
        "volume-missing",
        "volume-in-use",
        "switch-missing",
        "mac-taken",
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
    },
)


@given(facts=HOSTILE, state=st.sampled_from(RunState))
@settings(max_examples=200, deadline=None)
def test_whatever_a_source_says_is_answered(facts: dict[str, Any], state: RunState) -> None:
    """Never an exception, and always an answer that fits into a message."""
    findings = run(state, facts=facts)
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
    findings = run(
        definition=attrs.evolve(DEFINITION, name=long(0), vdisks=disks, vnets=nets, vcpus=9),
        facts={"accelerator": "\x1b" * 4096, "machine": "y" * 4096},
        host="h" * 64,
        names={long(0): OTHER_UUID},
        uuids={UUID: None},
        macs={net.mac: long(1, "m") for net in nets},
        volumes={},
        volumes_in_use={(d.service, d.volume): long(2, "u") for d in disks},
        switches=frozenset(),
        memory_free_bytes=0,
        vcpus_free=0,
        domains_free=0,
        incoming_free=0,
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
        view=attrs.evolve(VIEW, macs={"52:54:00:00:00:3f": "other"}),
    )
    many = checks.run([rule for rule in checks.ALL for _ in range(8)], subject)
    assert len(many) == limits.FINDINGS_MAX
    assert [f.code for f in many if f.hard] == ["mac-taken"] * 8
