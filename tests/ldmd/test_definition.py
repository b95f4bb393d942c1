"""What a definition may be: the one way in, whoever wrote it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmd.definition import (
    DomainDefinition,
    VirtualDisk,
    VirtualNetwork,
    from_document,
    from_toml,
    to_document,
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
    ({"version": 2}, "version: 2 is not a version of definitions that this manager reads"),
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
    ({"vdisks": [DISK | {"path": "/dev/sda"}]}, "unknown key"),
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


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(DefinitionError) as caught:
        from_document(
            DOCUMENT
            | {"name": "1", "vcpus": "2", "colour": "red", "uuid": "x", "memory-bytes": 5}
            | {"vdisks": [DISK | {"volume": "/", "read-only": 5}]}
        )
    faults = caught.value.sentence.removeprefix("the definition is not valid: ").split("; ")
    assert sorted(faults) == [
        "'2' is not a whole number in vcpus",
        "5 is not a boolean in vdisks[0].read-only",
        "memory-bytes: 5 is not a whole number from 1048576 to 4398046511104",
        "name: '1' is not a name (a letter, then up to 62 letters, digits, '.', '_' or '-')",
        "unknown key found (colour)",
        "uuid: 'x' is not a UUID in lower case",
        "volume: '/' is not a name (a letter, then up to 62 letters, digits, '.', '_' or '-') in vdisks[0]",
    ]


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


@given(
    name=st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,62}", fullmatch=True),
    vcpus=st.integers(1, 1024),
    mib=st.integers(1, limits.RAM_BYTES_MAX // limits.MIB),
    disks=st.lists(st.integers(0, 99), max_size=8, unique=True),
    variables=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9?#-]{0,30}", fullmatch=True),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40),
        max_size=8,
    ),
)
@settings(max_examples=100, deadline=None)
def test_every_definition_comes_back_from_its_document(
    name: str, vcpus: int, mib: int, disks: list[int], variables: dict[str, str]
) -> None:
    definition = DomainDefinition(
        name=name,
        uuid=str(uuid.uuid4()),
        hypervisor="qemu",
        machine="pc",
        vcpus=vcpus,
        memory_bytes=mib * limits.MIB,
        vdisks=tuple(VirtualDisk(name=f"d{n}", volume=f"v{n}", service="s") for n in disks),
        vnets=tuple(
            VirtualNetwork(name=f"n{n}", switch="s", mac=f"52:54:00:00:00:{n:02x}") for n in disks
        ),
        variables=tuple(sorted(variables.items())),
    )
    assert valid_name(name)
    assert from_document(to_document(definition)) == definition
    assert from_document(json.loads(json.dumps(to_document(definition)))) == definition


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
            "both memory and memory-bytes",
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
