"""``docs/protocol.md`` says what the code does: its tables are the code's, its worked examples are vectors."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import msgpack
import pytest
import xxhash

from ldmd import storage_proof
from ldmd.claims import Claims
from ldmd.definition import VirtualDisk, VirtualNetwork, to_document
from ldmd.hypervisor.emulated import EmulatedHypervisor
from ldmd.inventory import Inventory
from protocol import messages as m
from protocol.limits import BLOCK_BYTES
from protocol.phases import RunState
from tests.ldmd.host import configure, define
from tests.protocol.make_tables import DOCUMENT, PLACE, TABLES, render
from tests.protocol.test_vectors import load

TEXT = DOCUMENT.read_text()


def test_the_tables_are_the_codes() -> None:
    assert sorted(match[2] for match in PLACE.finditer(TEXT)) == sorted(TABLES)
    assert render(TEXT) == TEXT, "run: python -m tests.protocol.make_tables"


def test_everything_that_can_be_said_is_explained() -> None:
    """In the prose too, not only in the tables."""
    prose = PLACE.sub("", TEXT)
    assert [cls.TYPE for cls in m.MESSAGES if not re.search(rf"\b{cls.TYPE}\b", prose)] == []


def keys_of(document: str) -> list[str]:
    """The keys in the table behind the paragraph that begins with ``document``."""
    section = TEXT.split(f"\n`{document}` is ")[1].split("\n\n`", 1)[0].split("\n#", 1)[0]
    return re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)


def test_the_definition_is_the_codes() -> None:
    definition = define()
    assert keys_of("domain") == list(to_document(definition))
    devices = {
        "vdisks": VirtualDisk(name="a", volume="b", service="c"),
        "vnets": VirtualNetwork(name="a", switch="b", mac="52:54:00:12:34:56"),
    }
    for key, device in devices.items():
        (row,) = re.findall(rf"^\| `{key}` \|.*$", TEXT, re.MULTILINE)
        document = to_document(attrs.evolve(definition, **{key: (device,)}))
        assert [name for name in document[key][0] if f"`{name}`" not in row] == []


async def test_the_facts_are_the_codes(tmp_path: Path) -> None:
    inventory = Inventory(configure(tmp_path), {"emulated": EmulatedHypervisor()})
    definition = define(hypervisor="emulated")
    of_volumes = list(Claims().facts)
    facts = list(await inventory.facts(definition, RunState.RUNNING))
    assert [key for key in keys_of("facts") if key not in of_volumes] == facts
    assert [key for key in keys_of("facts") if key in of_volumes] == of_volumes
    cold = ["reconfiguration-pending", "switches", "certificate-until-unix-ms"]
    bound = list(await inventory.facts(definition, RunState.BOUND))
    assert bound == [*cold, "hypervisor-version"]
    native = define(hypervisor="emulated", cpu_arch="native")
    assert list(await inventory.facts(native, RunState.BOUND)) == [*bound, "cpu"]
    assert list(await inventory.facts(native, RunState.INACTIVE)) == bound
    elsewhere = define(hypervisor="qemu")  # which is not enabled
    assert list(await inventory.facts(elsewhere, RunState.BOUND)) == cold


async def test_the_facts_of_storage_are_the_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every form that a claim can have: a nonce, a lock, and nothing at all."""

    def refuse(*_: object) -> storage_proof.Token:
        raise OSError(30, "Read-only file system")

    (tmp_path / "root").write_bytes(bytes(4096))
    disk = VirtualDisk(name="a", volume="root", service="vds0")
    found = set()
    for broken in ((), ("_put_nonce",), ("_put_nonce", "_put_lock")):
        for name in broken:
            monkeypatch.setattr(storage_proof, name, refuse)
        settings = configure(tmp_path, vds={"vds0": {"root": str(tmp_path / "root")}})
        proofs = Inventory(settings, {}).proofs
        claims = await proofs.claim(define(vdisks=(disk,)), RunState.BOUND, "0" * 32, {})
        await proofs.withdraw(claims)
        found |= set(claims.facts["storage"]["root@vds0"])
    assert set(re.findall(r"^\| … `([a-z-]+)` \|", TEXT, re.MULTILINE)) == found


def test_the_examples_are_vectors() -> None:
    frames = {vector["frame"] for name in ("messages", "chunks") for vector in load(name)}
    examples = re.findall(r"^    ((?:[0-9a-f]{2} ?)+)$", TEXT, re.MULTILINE)
    assert examples
    assert [e for e in examples if e.replace(" ", "") not in frames] == []


def digest_of(regions: list[bytes], device: bytes) -> bytes:
    """As the document words it, not as the transfer computes it."""
    parts = [
        xxhash.xxh3_128(region[at : at + BLOCK_BYTES]).digest()
        for region in regions
        for at in range(0, len(region), BLOCK_BYTES)
    ]
    return xxhash.xxh3_128(b"".join(parts) + xxhash.xxh3_128(device).digest()).digest()


def test_the_digests_in_the_document() -> None:
    examples = {
        "no regions, no device stream": ([], b""),
        "one region of 4096 zero bytes, device stream `abc`": ([bytes(4096)], b"abc"),
        "regions of 65536 + 4096 bytes `01` and 65536 zero bytes, device stream `abc`": (
            [b"\x01" * (BLOCK_BYTES + 4096), bytes(BLOCK_BYTES)],
            b"abc",
        ),
    }
    found = dict(re.findall(r"^\| (.+?) \| `([0-9a-f]{32})` \|$", TEXT, re.MULTILINE))
    assert found == {name: digest_of(*state).hex() for name, state in examples.items()}


def test_the_frame_marker_is_a_msgpack_integer() -> None:
    """So a capture of the stream can be read by any msgpack tool, as the document says."""
    stream = bytes.fromhex(load("messages")[0]["frame"] + load("chunks")[0]["frame"])
    unpacker = msgpack.Unpacker()
    unpacker.feed(stream)
    length, hello, other_length, chunk = unpacker
    assert (hello["type"], len(chunk)) == ("HELLO", 4)
    assert length + other_length + 10 == len(stream)
