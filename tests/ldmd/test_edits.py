"""What may be asked to be changed in a definition."""

from __future__ import annotations

import attrs
import pytest

from ldmd import edits
from ldmd.definition import VirtualDisk, VirtualNetwork
from ldmd.description import Change, describe, describe_changes
from ldmd.edits import Edit
from ldmd.errors import DefinitionError, LdmdError, NotFound
from tests.ldmd.host import MIB, define

DISK = VirtualDisk(name="d0", volume="v0", service="s")
NET = VirtualNetwork(name="n0", switch="w", mac="52:54:00:00:00:01")
DOMAIN = define(vcpus=2, vdisks=(DISK,), vnets=(NET,), variables=(("a", "1"), ("b", "2")))
SECOND = {"name": "d1", "volume": "v1", "service": "s", "cache": "directsync"}


@pytest.mark.parametrize(
    ("edit", "fields"),
    [
        (edits.set_keys({"vcpus": 4, "mig-allowed": False}), {"vcpus": 4, "mig_allowed": False}),
        (edits.set_keys({}), {}),
        (edits.rename("other"), {"name": "other"}),
        (edits.add_amount("vcpus", 3), {"vcpus": 5}),
        (edits.add_amount("memory-bytes", -MIB), {"memory_bytes": MIB}),
        (
            edits.add_device("vdisk", SECOND),
            {
                "vdisks": (
                    DISK,
                    VirtualDisk(name="d1", volume="v1", service="s", cache="directsync"),
                )
            },
        ),
        (
            edits.set_device("vdisk", "d0", {"read-only": True, "volume": "v9"}),
            {"vdisks": (attrs.evolve(DISK, read_only=True, volume="v9"),)},
        ),
        (edits.set_device("vnet", "n0", {"mtu": 9000}), {"vnets": (attrs.evolve(NET, mtu=9000),)}),
        (edits.remove_device("vdisk", "d0"), {"vdisks": ()}),
        (edits.remove_device("vnet", "n0"), {"vnets": ()}),
        (edits.add_variables({"c": "3"}), {"variables": (("a", "1"), ("b", "2"), ("c", "3"))}),
        (edits.set_variables({"b": ""}), {"variables": (("a", "1"), ("b", ""))}),
        (edits.remove_variables(["a", "b"]), {"variables": ()}),
    ],
)
def test_what_becomes_of_it(edit: Edit, fields: dict[str, object]) -> None:
    assert edit(DOMAIN) == attrs.evolve(DOMAIN, **fields)


def test_the_whole_of_it() -> None:
    document = {"name": "ldg1", "hypervisor": "emulated", "machine": "m", "memory-bytes": MIB}
    replaced = edits.replace(document)(DOMAIN)
    assert (replaced.uuid, replaced.vcpus, replaced.vdisks) == (DOMAIN.uuid, 1, ())


@pytest.mark.parametrize(
    ("edit", "error", "sentence"),
    [
        (lambda: edits.set_keys({"vcpu": 4}), DefinitionError, "unknown key vcpu (is it vcpus?)"),
        (lambda: edits.set_keys({"uuid": "x"}), DefinitionError, "unknown key uuid"),
        (lambda: edits.set_keys({"vcpus": 0}), DefinitionError, "vcpus: 0 is not"),
        (lambda: edits.rename("a/b"), DefinitionError, "'a/b' is not a name"),
        (lambda: edits.add_amount("vcpus", -2), DefinitionError, "has 2 vcpus: 2 vcpus cannot be"),
        (
            lambda: edits.add_amount("memory-bytes", -3 * MIB),
            DefinitionError,
            "ldg1 has 2MiB: 3MiB cannot be taken from it",
        ),
        (
            lambda: edits.add_device("vdisk", SECOND | {"name": "d0"}),
            DefinitionError,
            "vdisk d0 is there twice",
        ),
        (
            lambda: edits.add_device("vdisk", {"name": "d1"}),
            DefinitionError,
            "the key volume is missing",
        ),
        (
            lambda: edits.set_device("vdisk", "d0", {"name": "x"}),
            DefinitionError,
            "a vdisk keeps its name",
        ),
        (
            lambda: edits.set_device("vdisk", "d0", {"path": "/"}),
            DefinitionError,
            "unknown key path",
        ),
        (lambda: edits.set_device("vnet", "n9", {"mtu": 9000}), NotFound, "ldg1 has no vnet n9"),
        (lambda: edits.remove_device("vdisk", "d9"), NotFound, "ldg1 has no vdisk d9"),
        (lambda: edits.add_variables({"a": "2"}), DefinitionError, "has the variable a already"),
        (lambda: edits.set_variables({"a": 2}), DefinitionError, "2 is not a text"),
        (lambda: edits.remove_variables(["a", "c"]), NotFound, "ldg1 has no variable c"),
        (lambda: edits.replace({"name": "ldg1"}), DefinitionError, "the key machine is missing"),
    ],
)
def test_what_cannot_be_asked(edit: object, error: type[LdmdError], sentence: str) -> None:
    assert callable(edit)
    with pytest.raises(error) as caught:
        edit()(DOMAIN)
    assert sentence in caught.value.sentence


def test_in_words() -> None:
    assert describe(DOMAIN)["vdisk d0"] == "v0@s, cache none"
    assert (
        describe(attrs.evolve(DOMAIN, vdisks=(attrs.evolve(DISK, read_only=True, mpgroup="g"),)))[
            "vdisk d0"
        ]
        == "v0@s, cache none, read-only, mpgroup g"
    )
    after = attrs.evolve(
        DOMAIN, memory_bytes=2**30, vnets=(), variables=(("a", "1"), ("b", "3"), ("c", ""))
    )
    assert describe_changes(DOMAIN, after) == [
        Change(what="memory", before="2MiB", after="1GiB"),
        Change(what="vnet n0", before="w, 52:54:00:00:00:01, mtu 1500", after=None),
        Change(what="variable b", before="2", after="3"),
        Change(what="variable c", before=None, after=""),
    ]
    assert describe_changes(DOMAIN, DOMAIN) == []


def test_every_difference_is_said() -> None:
    """A field that ``describe`` leaves out would change unseen."""
    changed = {
        "name": "x",
        "hypervisor": "x",
        "machine": "x",
        "firmware": "x",
        "vcpus": 9,
        "memory_bytes": 8 * MIB,
        "huge_pages": "2MiB",
        "cpu_arch": "native",
        "mig_allowed": False,
        "optional_devices": ("rng",),
        "vdisks": (),
        "vnets": (),
        "variables": (),
    }
    fields = {a.name for a in attrs.fields(type(DOMAIN))} - {"version", "uuid"}
    assert set(changed) == fields
    for name, value in changed.items():
        assert describe_changes(DOMAIN, attrs.evolve(DOMAIN, **{name: value})), name
    for device, key in ((DISK, "vdisks"), (NET, "vnets")):
        for field, value in {
            "volume": "x",
            "service": "x",
            "read_only": True,
            "cache": "writeback",
            "mpgroup": "x",
            "switch": "x",
            "mac": "52:54:00:00:00:02",
            "mtu": 9000,
        }.items():
            if hasattr(device, field):
                other = attrs.evolve(DOMAIN, **{key: (attrs.evolve(device, **{field: value}),)})
                assert describe_changes(DOMAIN, other), field
