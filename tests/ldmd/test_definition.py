"""What a definition may be: the one way in, whoever wrote it."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmd.definition import (
    CACHES,
    HUGE_PAGES,
    MTU_MAX,
    MTU_MIN,
    OPTIONAL_DEVICES,
    VCPUS_MAX,
    DomainDefinition,
    VirtualDisk,
    VirtualNetwork,
    from_document,
    from_toml,
    read_toml,
    to_document,
    to_toml,
    valid_name,
)
from ldmd.errors import DefinitionError
from ldmd.sizes import format_size, parse_size
from protocol import limits

DOCUMENT: dict[str, Any] = {
    "version": 1,
    "name": "web1",
    "uuid": "11111111-2222-4333-8444-555555555555",
    "hypervisor": "qemu",
    "machine": "pc-q35-8.2",
    "firmware": "default",
    "vcpus": 2,
    "memory-bytes": 512 * limits.MIB,
    "huge-pages": "2MiB",
    "cpu-arch": "generic",
    "mig-allowed": False,
    "optional-devices": ["rng"],
    "vdisks": [
        {
            "name": "boot",
            "volume": "web1",
            "service": "vds0",
            "read-only": True,
            "cache": "writeback",
            "mpgroup": "paths",
        }
    ],
    "vnets": [{"name": "front", "switch": "vsw0", "mac": "52:54:00:12:34:56", "mtu": 9000}],
    "variables": {"boot-device": "disk", "auto-boot?": "true"},
}


def test_a_document_becomes_the_definition_and_the_same_document_again() -> None:
    definition = from_document(DOCUMENT)
    assert definition.vdisks == (
        VirtualDisk(
            name="boot",
            volume="web1",
            service="vds0",
            read_only=True,
            cache="writeback",
            mpgroup="paths",
        ),
    )
    assert definition.vnets[0].mac == "52:54:00:12:34:56"
    assert definition.variables == (("auto-boot?", "true"), ("boot-device", "disk"))
    assert to_document(definition) == DOCUMENT
    assert from_document(json.loads(json.dumps(to_document(definition)))) == definition


def test_what_is_left_out_has_a_default() -> None:
    needed = ("name", "uuid", "hypervisor", "machine", "memory-bytes")
    definition = from_document({key: DOCUMENT[key] for key in needed})
    assert (definition.firmware, definition.vcpus, definition.cpu_arch) == ("default", 1, "generic")
    assert definition.vdisks == definition.vnets == definition.variables == ()
    assert (definition.version, definition.huge_pages) == (1, "none")
    assert definition.mig_allowed
    assert definition.optional_devices == ()
    for key in needed:
        with pytest.raises(DefinitionError, match=key):
            from_document({k: DOCUMENT[k] for k in needed if k != key})


DISK = DOCUMENT["vdisks"][0]
NET = DOCUMENT["vnets"][0]

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name: '' is not a name"),
    ({"name": "1web"}, "is not a name"),
    ({"name": "web/1"}, "is not a name"),
    ({"name": "web1\n"}, "is not a name"),
    ({"name": "../web"}, "is not a name"),
    ({"name": "w" * 64}, "is not a name"),
    ({"name": 5}, "5 is not a text"),
    ({"name": None}, "None is not a text"),
    ({"uuid": DOCUMENT["uuid"].upper().replace("5", "A")}, "is not a UUID in lower case"),
    ({"uuid": "{" + DOCUMENT["uuid"] + "}"}, "is not a UUID"),
    ({"uuid": ""}, "is not a UUID"),
    ({"hypervisor": "-qemu"}, "hypervisor"),
    ({"machine": "pc,accel=kvm"}, "machine"),
    ({"firmware": "/etc/passwd"}, "firmware"),
    ({"cpu-arch": "host,+vmx"}, "cpu-arch"),
    ({"version": 0}, "version: 0 is not a version of definitions that this manager reads"),
    ({"version": True}, "is not a whole number"),
    ({"version": "1"}, "is not a whole number"),
    ({"huge-pages": "4MiB"}, "huge-pages: '4MiB' is not one of none, 2MiB, 1GiB"),
    ({"mig-allowed": "no"}, "is not a boolean"),
    ({"optional-devices": ["gpu"]}, "optional-devices: 'gpu' is not one of rng, watchdog"),
    ({"optional-devices": ["rng", "rng"]}, "optional device rng is there twice"),
    ({"vdisks": [DISK | {"cache": "most"}]}, "cache: 'most' is not one of none"),
    ({"vdisks": [DISK | {"mpgroup": "../x"}]}, "mpgroup: '../x' is not a name, or empty"),
    ({"vnets": [NET | {"mtu": 10}]}, "mtu: 10 is not a whole number from 68"),
    ({"vcpus": 0}, "from 1 to 1024"),
    ({"vcpus": 1025}, "from 1 to 1024"),
    ({"vcpus": True}, "is not a whole number"),
    ({"vcpus": "2"}, "is not a whole number"),
    ({"vcpus": 2.0}, "is not a whole number"),
    ({"memory-bytes": limits.MIB - 1}, "memory"),
    ({"memory-bytes": limits.MIB + 4096}, "is not a whole number of MiB"),
    ({"memory-bytes": limits.RAM_BYTES_MAX + limits.MIB}, "memory"),
    ({"memory-bytes": -limits.MIB}, "memory"),
    ({"colour": "red"}, "unknown key"),
    ({"memory_bytes": 5}, "unknown key"),
    ({"vdisks": [DISK | {"path": "/dev/sda"}]}, "unknown key path in vdisks[0]"),
    ({"vcpu": 2}, "unknown key vcpu (is it vcpus?)"),
    ({"mig-alowed": False}, "unknown key mig-alowed (is it mig-allowed?)"),
    ({"cpu": "native"}, "unknown key cpu (is it cpu-arch?)"),
    ({"cpu_arch": "native"}, "unknown key cpu_arch (is it cpu-arch?)"),
    (
        {"vdisks": [DISK | {"readonly": True}]},
        "unknown key readonly (is it read-only?) in vdisks[0]",
    ),
    ({"vdisks": [DISK | {"read-only": "yes"}]}, "is not a boolean"),
    ({"vdisks": [DISK, DISK | {"volume": "other"}]}, "vdisk boot is there twice"),
    ({"vdisks": [DISK, DISK | {"name": "other"}]}, "volume web1@vds0 is there twice"),
    ({"vdisks": [DISK] * 65}, "64"),
    ({"vdisks": "boot"}, "vdisks"),
    ({"vdisks": {"boot": DISK}}, "vdisks"),
    ({"vdisks": 5}, "vdisks"),
    ({"vdisks": [None]}, "vdisks"),
    ({"vnets": [NET | {"mac": "52:54:00:12:34:5G"}]}, "is not a MAC address"),
    ({"vnets": [NET | {"mac": "52:54:00:12:34:5A"}]}, "in lower case"),
    ({"vnets": [NET | {"mac": "52:54:00:12:34"}]}, "is not a MAC address"),
    ({"vnets": [NET, NET | {"mac": "52:54:00:12:34:57"}]}, "vnet front is there twice"),
    ({"vnets": [NET, NET | {"name": "back"}]}, "MAC address 52:54:00:12:34:56 is there twice"),
    ({"variables": [["a", "b"]]}, "is not a table"),
    ({"variables": {"a": 5}}, "5 is not a text"),
    ({"variables": {"Boot": "x"}}, "is not the name of a variable"),
    ({"variables": {"a": "x\n"}}, "printable ASCII"),
    ({"variables": {"a": "x" * 513}}, "up to 512"),
    ({"variables": {f"v{n}": "" for n in range(33)}}, "variables"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[str(c)[:50] for c, _ in WRONG])
def test_what_is_not_allowed_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError, match=r"^the definition is not valid: ") as caught:
        from_document(DOCUMENT | change)
    assert words in caught.value.sentence


def test_a_newer_version_says_so_and_nothing_else() -> None:
    """What else is in it may well be right there."""
    for read in (from_document, lambda d: from_toml(tomli_w.dumps(d))):
        with pytest.raises(DefinitionError) as caught:
            read(DOCUMENT | {"version": 2, "colour": "red", "vcpus": "many"})
        assert caught.value.sentence == (
            "the definition has version 2 and was made for a newer manager: this one reads version 1"
        )
        assert "newer manager" in caught.value.remedy


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(DefinitionError) as caught:
        from_document(
            DOCUMENT
            | {"name": "1", "vcpus": "2", "colour": "red", "uuid": "x", "memory-bytes": 5}
            | {"vdisks": [DISK | {"volume": "/", "read-only": 5}]}
            | {"vnets": [NET, NET], "optional-devices": ["rng", "rng"]}
        )
    faults = caught.value.sentence.removeprefix("the definition is not valid: ").split("; ")
    assert sorted(faults) == [
        "'2' is not a whole number in vcpus",
        "5 is not a boolean in vdisks[0].read-only",
        "MAC address 52:54:00:12:34:56 is there twice in vnets",
        "memory-bytes: 5 is not a whole number from 1048576 to 4398046511104",
        "name: '1' is not a name (a letter, then up to 62 letters, digits, '.', '_' or '-')",
        "optional device rng is there twice in optional-devices",
        "unknown key colour",
        "uuid: 'x' is not a UUID in lower case",
        "vnet front is there twice",
        "volume: '/' is not a name (a letter, then up to 62 letters, digits, '.', '_' or '-') in vdisks[0]",
    ]


def test_of_very_many_unknown_keys_some_are_named() -> None:
    with pytest.raises(DefinitionError) as caught:
        from_document(DOCUMENT | {f"k{n:06}": n for n in range(100_000)} | {"z" * 2**20: 1})
    assert caught.value.sentence.count(";") == 10
    assert caught.value.sentence.endswith("; 99991 more unknown keys")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(DOCUMENT)) | st.text(max_size=5), PLAIN, max_size=4
    )
)
@settings(max_examples=300, deadline=None)
def test_anything_is_a_definition_or_a_definition_error(changes: dict[str, Any]) -> None:
    try:
        definition = from_document(DOCUMENT | changes)
    except DefinitionError:
        return
    assert from_document(to_document(definition)) == definition


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,62}", fullmatch=True)
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)
DISK_FIELDS = {
    "name": NAMES,
    "volume": NAMES,
    "service": NAMES,
    "read_only": st.booleans(),
    "cache": st.sampled_from(CACHES),
    "mpgroup": st.just("") | NAMES,
}
NET_FIELDS = {
    "name": NAMES,
    "switch": NAMES,
    "mac": st.integers(0, 2**24 - 1).map(lambda n: "52:54:00:" + n.to_bytes(3, "big").hex(":")),
    "mtu": st.integers(MTU_MIN, MTU_MAX),
}
DISKS = st.builds(VirtualDisk, **DISK_FIELDS)
NETS = st.builds(VirtualNetwork, **NET_FIELDS)
FIELDS = {
    "name": NAMES,
    "uuid": st.uuids().map(str),
    "hypervisor": NAMES,
    "machine": NAMES,
    "firmware": st.just("default") | NAMES,
    "vcpus": st.integers(1, VCPUS_MAX),
    "memory_bytes": st.integers(1, limits.RAM_BYTES_MAX // limits.MIB).map(
        lambda n: n * limits.MIB
    ),
    "huge_pages": st.sampled_from(HUGE_PAGES),
    "cpu_arch": st.just("generic") | NAMES,
    "mig_allowed": st.booleans(),
    "optional_devices": st.lists(st.sampled_from(OPTIONAL_DEVICES), unique=True).map(tuple),
    "vdisks": st.lists(
        DISKS, max_size=5, unique_by=(lambda d: d.name, lambda d: (d.volume, d.service))
    ).map(tuple),
    "vnets": st.lists(NETS, max_size=5, unique_by=(lambda n: n.name, lambda n: n.mac)).map(tuple),
    "variables": st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9?#-]{0,30}", fullmatch=True), PRINTABLE, max_size=8
    ).map(lambda variables: tuple(sorted(variables.items()))),
}
DEFINITIONS = st.builds(DomainDefinition, **FIELDS)


def test_all_of_it_is_drawn() -> None:
    for cls, drawn in (
        (VirtualDisk, DISK_FIELDS),
        (VirtualNetwork, NET_FIELDS),
        (DomainDefinition, FIELDS | {"version": st.just(1)}),
    ):
        assert set(drawn) == {a.name for a in attrs.fields(cls)}


@given(definition=DEFINITIONS)
@settings(max_examples=200, deadline=None)
def test_every_definition_comes_back_from_its_document_and_its_toml(
    definition: DomainDefinition,
) -> None:
    assert valid_name(definition.name)
    assert from_document(to_document(definition)) == definition
    assert from_document(json.loads(json.dumps(to_document(definition)))) == definition
    written = to_toml(definition)
    assert from_toml(written) == definition
    assert to_toml(from_toml(written)) == written
    assert written.startswith("version = 1\n")


# ---- TOML ------------------------------------------------------------------------------------------------

TOML = """
name = "web1"
hypervisor = "qemu"
machine = "pc"
memory = "512MiB"
vcpus = 2

[[vdisks]]
name = "boot"
volume = "web1"
service = "vds0"

[variables]
"auto-boot?" = "true"
"""


def test_what_an_operator_writes() -> None:
    first, second = from_toml(TOML), from_toml(TOML)
    assert first.memory_bytes == 512 * limits.MIB
    assert first.vdisks[0].read_only is False
    assert first.uuid != second.uuid, "each is given a uuid of its own"
    assert attrs.evolve(first, uuid=second.uuid) == second
    chosen = from_toml(f'uuid = "{first.uuid}"\n' + TOML)
    assert chosen == first


def test_what_a_manager_writes() -> None:
    definition = attrs.evolve(
        from_toml(TOML), uuid=DOCUMENT["uuid"], vcpus=1, mig_allowed=False, memory_bytes=2 * 2**30
    )
    assert to_toml(definition) == (
        """version = 1
name = "web1"
uuid = "11111111-2222-4333-8444-555555555555"
hypervisor = "qemu"
machine = "pc"
memory = "2GiB"
mig-allowed = false
vdisks = [
    { name = "boot", volume = "web1", service = "vds0" },
]

[variables]
"auto-boot?" = "true"
"""
    )


def test_a_document_without_a_uuid_stays_without() -> None:
    document = read_toml(TOML)
    assert "uuid" not in document
    assert document["memory-bytes"] == 512 * limits.MIB
    assert from_document(document | {"uuid": DOCUMENT["uuid"]}).name == "web1"
    with pytest.raises(DefinitionError, match="vcpus"):
        read_toml(TOML.replace("vcpus = 2", "vcpus = 0"))


def test_every_fault_of_the_toml_is_named_at_once_in_its_own_words() -> None:
    with pytest.raises(DefinitionError) as caught:
        from_toml('name = "1"\nhypervisor = "qemu"\nmemory = "much"\nmemroy = "1GiB"\nvcpu = 2\n')
    faults = caught.value.sentence.removeprefix("the definition is not valid: ").split("; ")
    assert faults == [
        "memory: 'much' is not a size: write a number of bytes, or like 512MiB or 2GiB",
        "name: '1' is not a name (a letter, then up to 62 letters, digits, '.', '_' or '-')",
        "the key machine is missing",
        "unknown key memroy (is it memory?)",
        "unknown key vcpu (is it vcpus?)",
    ]
    with pytest.raises(DefinitionError, match="the key memory is missing"):
        from_toml('name = "a"\nhypervisor = "qemu"\nmachine = "pc"\n')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "is not TOML"),
        (TOML.replace("512MiB", "half a gigabyte"), "is not a size"),
        (TOML.replace('"512MiB"', "0.5"), "is not a size"),
        (TOML.replace('"512MiB"', "true"), "is not a size"),
        (TOML.replace("512MiB", "512KiB"), "memory"),
        (
            TOML.replace('"512MiB"', '"1GiB"\nmemory-bytes = 1048576'),
            "memory: memory-bytes says it, too",
        ),
    ],
)
def test_toml_that_is_no_definition(text: str, words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        from_toml(text)
    assert words in caught.value.sentence


# ---- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        ("1K", 2**10),
        ("1KiB", 2**10),
        ("512M", 512 * 2**20),
        ("512 MiB", 512 * 2**20),
        ("2G", 2**31),
        ("1TiB", 2**40),
    ],
)
def test_sizes(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "1.5G", "-1", "1 GB", "1gib", "9" * 13, 1.0, None, True, "١K"]
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 2**52))
def test_a_size_comes_back_from_its_text(size_bytes: int) -> None:
    if size_bytes < 10**12 or size_bytes % 1024 == 0:
        assert parse_size(format_size(size_bytes)) == size_bytes
