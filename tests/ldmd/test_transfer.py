"""Runtime state from one memfd into another: what is sent, what is refused, and the digest of what lies there."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmd.hypervisor.driver import DomainProcess, RamRegion
from ldmd.phases.prepare import populate
from ldmd.phases.transfer import Receiver, RegionDigests, combine, read_chunks
from protocol.errors import RemoteProtocolError
from protocol.limits import (
    BLOCK_BYTES,
    CHUNK_PAYLOAD_BYTES_MAX,
    DEVICE_STATE_BYTES_MAX,
    MIB,
    PAGE_BYTES,
)
from protocol.messages import PrepareProgress, StateChunk

SIZES = (5 * MIB + 3 * PAGE_BYTES, 256 * 1024, PAGE_BYTES)
"""Of the regions: with a tail shorter than a block, exactly a chunk, less than a block."""


class MemoryProcess:
    """A process whose RAM are memfds of this one; all of a DomainProcess that a receiver uses."""

    def __init__(self, *sizes: int) -> None:
        self.regions = tuple(
            RamRegion(name=f"ram{n}", size_bytes=size) for n, size in enumerate(sizes)
        )
        self.descriptors = [os.memfd_create(region.name) for region in self.regions]
        for descriptor, size in zip(self.descriptors, sizes, strict=True):
            os.ftruncate(descriptor, size)

    def open_ram(self) -> list[int]:
        return [os.dup(descriptor) for descriptor in self.descriptors]

    def contents(self) -> list[bytes]:
        return [
            os.pread(d, r.size_bytes, 0)
            for d, r in zip(self.descriptors, self.regions, strict=True)
        ]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


@contextmanager
def memory(*sizes: int) -> Iterator[MemoryProcess]:
    process = MemoryProcess(*sizes)
    try:
        yield process
    finally:
        process.close()


@contextmanager
def receiving(process: MemoryProcess) -> Iterator[Receiver]:
    receiver = Receiver(cast(DomainProcess, process))
    try:
        yield receiver
    finally:
        receiver.close()


def digest_plainly(contents: list[bytes], device: bytes) -> bytes:
    """The definition of docs/protocol.md, word for word: no holes, no runs, no state."""
    blocks = b"".join(
        xxhash.xxh3_128_digest(content[start : start + BLOCK_BYTES])
        for content in contents
        for start in range(0, len(content), BLOCK_BYTES)
    )
    return xxhash.xxh3_128_digest(blocks + xxhash.xxh3_128_digest(device))


def read_all(process: MemoryProcess) -> tuple[list[RegionDigests], list[StateChunk]]:
    """What a source sends of RAM, each chunk with a copy of its payload."""
    regions, chunks = [], []
    for number, region in enumerate(process.regions):
        digests = RegionDigests(region.size_bytes)
        regions.append(digests)
        for offset, payload in read_chunks(process.descriptors[number], region.size_bytes, digests):
            if payload:
                chunks.append(chunk(number, offset, bytes(payload), len(chunks)))
    return regions, chunks


def chunk(region: int, offset: int, payload: bytes, sequence: int = 0) -> StateChunk:
    return StateChunk(sequence=sequence, region=region, offset=offset, payload=memoryview(payload))


def digest_installed(receiver: Receiver) -> bytes:
    """As INSTALL_STATE does it."""
    for region in range(len(receiver.areas)):
        block = receiver.verify_rest(region, 0)
        while block:
            block = receiver.verify_rest(region, block)
    return combine(receiver.digests, bytes(receiver.device))


def scatter(process: MemoryProcess, seed: int, pieces: int = 20) -> None:
    rng = random.Random(seed)
    for _ in range(pieces):
        number = rng.randrange(len(process.descriptors))
        offset = rng.randrange(process.regions[number].size_bytes)
        size = min(rng.choice((1, 100, 5000, 200_000)), process.regions[number].size_bytes - offset)
        os.pwrite(process.descriptors[number], rng.randbytes(size), offset)


# ---- source ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_everything_arrives_and_both_digests_are_the_plain_one(seed: int) -> None:
    device = random.Random(seed).randbytes(300_000)
    with memory(*SIZES) as source, memory(*SIZES) as target, receiving(target) as receiver:
        scatter(source, seed)
        regions, chunks = read_all(source)
        wanted = digest_plainly(source.contents(), device)
        assert combine(regions, device) == wanted
        for piece in chunks:
            receiver.take(piece)
        for start in range(0, len(device), CHUNK_PAYLOAD_BYTES_MAX):
            receiver.take(chunk(3, start, device[start : start + CHUNK_PAYLOAD_BYTES_MAX]))
        assert target.contents() == source.contents()
        assert digest_installed(receiver) == wanted
        assert receiver.chunks == len(chunks) + 2


def test_empty_memory_sends_nothing_and_has_a_digest() -> None:
    with memory(*SIZES) as source:
        regions, chunks = read_all(source)
        assert chunks == []
        assert combine(regions, b"") == digest_plainly(source.contents(), b"")


def test_chunks_are_whole_blocks_in_order_and_skip_zeros() -> None:
    size = 16 * BLOCK_BYTES + PAGE_BYTES
    used = (0, 2, 3, 4, 9, 10, 11, 12, 15, 16)  # 16 is the tail
    with memory(size) as source:
        os.pwrite(source.descriptors[0], bytes(size), 0)  # populated zeros, no holes
        for block in used:
            os.pwrite(source.descriptors[0], b"\1", block * BLOCK_BYTES + 7)
        _, chunks = read_all(source)
    assert [(c.offset // BLOCK_BYTES, -(-len(c.payload) // BLOCK_BYTES)) for c in chunks] == [
        (0, 1),
        (2, 2),
        (4, 1),  # a new chunk's worth begins
        (9, 3),
        (12, 1),
        (15, 1),
        (16, 1),
    ]
    assert len(chunks[-1].payload) == PAGE_BYTES
    assert all(len(c.payload) <= CHUNK_PAYLOAD_BYTES_MAX for c in chunks)


def test_a_hole_and_populated_zeros_are_one_and_the_same() -> None:
    with memory(MIB) as holes, memory(MIB) as zeros:
        os.pwrite(zeros.descriptors[0], bytes(MIB), 0)
        for process in (holes, zeros):
            os.pwrite(process.descriptors[0], b"x", 600_000)
        (a, chunks_a), (b, chunks_b) = read_all(holes), read_all(zeros)
        assert combine(a, b"") == combine(b, b"")
        assert [c.offset for c in chunks_a] == [c.offset for c in chunks_b]


def test_who_reads_zeros_gets_a_turn_between_them() -> None:
    """Populated memory that is all zero takes time to read: the link must be served meanwhile."""
    with memory(4 * MIB) as source:
        os.pwrite(source.descriptors[0], bytes(4 * MIB), 0)
        turns = [
            offset
            for offset, payload in read_chunks(
                source.descriptors[0], 4 * MIB, RegionDigests(4 * MIB)
            )
            if not payload
        ]
    steps = [b - a for a, b in zip([0, *turns], turns, strict=False)]
    assert turns[-1] == 4 * MIB
    assert max(steps) <= MIB


def test_memory_that_is_shorter_than_its_region_is_an_error() -> None:
    with memory(MIB) as source:
        os.pwrite(source.descriptors[0], b"x", 0)
        os.ftruncate(source.descriptors[0], BLOCK_BYTES)
        with pytest.raises(OSError, match="65536 of 262144 bytes"):
            list(read_chunks(source.descriptors[0], MIB, RegionDigests(MIB)))


LARGE = """
import os
from ldmd.phases.transfer import Receiver, RegionDigests, combine, read_chunks
from tests.ldmd.test_transfer import chunk, memory, receiving
from protocol.limits import GIB, MIB

SIZE = 8 * GIB

def anonymous_bytes():
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) * 1024 for l in file if l.startswith("RssAnon"))

with memory(SIZE) as source, memory(SIZE) as target, receiving(target) as receiver:
    for gib in range(8):
        os.pwrite(source.descriptors[0], os.urandom(2 * MIB), gib * GIB + 12345)
    before = peak = anonymous_bytes()
    digests = RegionDigests(SIZE)
    for offset, payload in read_chunks(source.descriptors[0], SIZE, digests):
        if payload:
            receiver.take(chunk(0, offset, payload))
        peak = max(peak, anonymous_bytes())
    combine([digests], b"")
    assert receiver.chunks >= 64
    assert all(a == b for a, b in zip(digests.digests, receiver.digests[0].digests))
    print(max(peak, anonymous_bytes()) - before)
"""


def test_memory_is_constant_whatever_the_domains_size() -> None:
    """8 GiB, of which 16 MiB are in use: 2 MiB of digests, a buffer, and not much more."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 6 * MIB


# ---- target ----------------------------------------------------------------------------------------------

BLOCK = bytes(range(256)) * (BLOCK_BYTES // 256)
REGION = 4 * BLOCK_BYTES + PAGE_BYTES

MALFORMED: dict[str, tuple[StateChunk, str]] = {
    "empty": (chunk(0, 0, b""), "sequence"),
    "empty, of the device": (chunk(2, 0, b""), "sequence"),
    "unknown region": (chunk(3, 0, BLOCK), "sequence"),
    "unknown region, far": (chunk(2**63, 0, BLOCK), "sequence"),
    "negative region": (chunk(-1, 0, BLOCK), "sequence"),
    "negative offset": (chunk(0, -BLOCK_BYTES, BLOCK), "sequence"),
    "unaligned": (chunk(0, PAGE_BYTES, BLOCK), "sequence"),
    "unaligned by one": (chunk(0, 1, BLOCK), "sequence"),
    "part of a block": (chunk(0, 0, BLOCK[:-1]), "sequence"),
    "a block and a part": (chunk(0, 0, BLOCK + BLOCK[:5]), "sequence"),
    "beyond the end": (chunk(0, 4 * BLOCK_BYTES, BLOCK), "sequence"),
    "less than the tail": (chunk(0, 4 * BLOCK_BYTES, BLOCK[: PAGE_BYTES - 1]), "sequence"),
    "behind the end": (chunk(0, 5 * BLOCK_BYTES, BLOCK), "sequence"),
    "far behind the end": (chunk(0, 2**63 - BLOCK_BYTES, BLOCK), "sequence"),
    "longer than the region": (chunk(1, 0, BLOCK * 2), "sequence"),
    "twice": (chunk(0, BLOCK_BYTES, BLOCK), "sequence"),
    "overlapping": (chunk(0, 0, BLOCK * 2), "sequence"),
    "device from the middle": (chunk(2, 5, b"x"), "sequence"),
    "device from before": (chunk(2, -1, b"x"), "sequence"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_chunk_is_refused_and_changes_nothing(name: str) -> None:
    malformed, code = MALFORMED[name]
    with memory(REGION, BLOCK_BYTES) as target, receiving(target) as receiver:
        receiver.take(chunk(0, BLOCK_BYTES, BLOCK[::-1]))
        before = target.contents(), bytes(receiver.device), receiver.chunks
        known = bytes(receiver.digests[0].known)
        with pytest.raises(RemoteProtocolError) as caught:
            receiver.take(malformed)
        assert caught.value.code == code
        assert (target.contents(), bytes(receiver.device), receiver.chunks) == before
        assert bytes(receiver.digests[0].known) == known


def test_no_ram_comes_after_the_device_stream() -> None:
    with memory(REGION) as target, receiving(target) as receiver:
        receiver.take(chunk(1, 0, b"device"))
        with pytest.raises(RemoteProtocolError, match="after the device stream"):
            receiver.take(chunk(0, 0, BLOCK))
        assert target.contents() == [bytes(REGION)]


@pytest.mark.parametrize("offset", [0, 3, 7])
def test_the_device_stream_has_no_gap_and_no_repeat(offset: int) -> None:
    with memory(REGION) as target, receiving(target) as receiver:
        receiver.take(chunk(1, 0, b"device"))
        with pytest.raises(RemoteProtocolError, match="a gap or a repeat"):
            receiver.take(chunk(1, offset, b"x"))
        assert receiver.device == b"device"
        receiver.take(chunk(1, 6, b"s"))
        assert receiver.device == b"devices"


def test_the_device_stream_is_bounded() -> None:
    piece = bytes(CHUNK_PAYLOAD_BYTES_MAX)
    with memory(REGION) as target, receiving(target) as receiver:
        for offset in range(0, DEVICE_STATE_BYTES_MAX, len(piece)):
            receiver.take(chunk(1, offset, piece))
        with pytest.raises(RemoteProtocolError) as caught:
            receiver.take(chunk(1, DEVICE_STATE_BYTES_MAX, b"x"))
        assert caught.value.code == "oversize"
        assert len(receiver.device) == DEVICE_STATE_BYTES_MAX


@given(
    st.lists(
        st.tuples(st.integers(-2, 4), st.integers(-(2**17), 2**19), st.integers(0, 2**17)),
        max_size=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_whatever_comes_is_installed_whole_or_refused(
    pieces: list[tuple[int, int, int]],
) -> None:
    """A model beside it: the bytes of what was taken, and zeros elsewhere."""
    with memory(REGION, BLOCK_BYTES) as target, receiving(target) as receiver:
        model = [bytearray(REGION), bytearray(BLOCK_BYTES)]
        for region, offset, size in pieces:
            aligned = offset // BLOCK_BYTES * BLOCK_BYTES if size % 2 else offset
            payload = (BLOCK * 3)[:size]
            try:
                receiver.take(chunk(region, aligned, payload))
            except RemoteProtocolError:
                continue
            if region < 2:
                model[region][aligned : aligned + size] = payload
        assert target.contents() == [bytes(m) for m in model]
        assert digest_installed(receiver) == digest_plainly(
            target.contents(), bytes(receiver.device)
        )


@given(position=st.integers(0, 8 * REGION - 1))
@settings(max_examples=60, deadline=None)
def test_a_bit_that_flips_before_its_block_was_digested_is_seen(position: int) -> None:
    """In what nothing came for, at any time until INSTALL_STATE."""
    with memory(REGION) as target, receiving(target) as receiver:
        wanted = digest_plainly(target.contents(), b"")
        at = position // 8
        os.pwrite(target.descriptors[0], bytes([1 << position % 8]), at)
        assert digest_installed(receiver) == digest_plainly(target.contents(), b"") != wanted


@given(position=st.integers(0, 8 * BLOCK_BYTES - 1))
@settings(max_examples=60, deadline=None)
def test_a_bit_that_flips_on_the_way_is_seen(position: int) -> None:
    content = bytearray(BLOCK)
    wanted = digest_plainly([bytes(content)], b"")
    content[position // 8] ^= 1 << position % 8
    with memory(BLOCK_BYTES) as target, receiving(target) as receiver:
        receiver.take(chunk(0, 0, bytes(content)))
        assert digest_installed(receiver) != wanted


class ForgetfulMemory(mmap.mmap):
    """Loses a byte of whatever is written to it."""

    def __setitem__(self, where: Any, payload: Any) -> None:
        super().__setitem__(where, payload)
        super().__setitem__(100, 0)


def test_the_digest_is_of_what_lies_in_memory() -> None:
    """Not of what came: memory that does not keep what is written to it is found out."""
    with memory(BLOCK_BYTES) as target, receiving(target) as receiver:
        receiver.areas[0].close()
        receiver.areas[0] = ForgetfulMemory(target.descriptors[0], BLOCK_BYTES)
        receiver.take(chunk(0, 0, BLOCK))
        lies_there = target.contents()
        assert lies_there != [BLOCK]
        assert digest_installed(receiver) == digest_plainly(lies_there, b"")


def test_progress_counts_all_regions() -> None:
    with memory(BLOCK_BYTES, REGION) as target, receiving(target) as receiver:
        receiver.take(chunk(0, 0, BLOCK))
        assert receiver.done_bytes == BLOCK_BYTES
        receiver.take(chunk(1, 0, BLOCK))
        assert receiver.done_bytes == 2 * BLOCK_BYTES


def test_a_region_larger_than_its_memory_is_an_error_and_leaks_nothing() -> None:
    with memory(BLOCK_BYTES) as target:
        os.ftruncate(target.descriptors[0], PAGE_BYTES)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises((OSError, ValueError)):
            Receiver(cast(DomainProcess, target))
        assert len(os.listdir("/proc/self/fd")) == before


def test_closing_unmaps_and_may_be_repeated() -> None:
    with memory(BLOCK_BYTES) as target:
        receiver = Receiver(cast(DomainProcess, target))
        for _ in range(2):
            receiver.close()
            assert receiver.areas == []
        assert "ram0" not in Path("/proc/self/maps").read_text()


# ---- prepare ---------------------------------------------------------------------------------------------


async def test_populating_takes_every_fault_and_says_how_far_it_is() -> None:
    seen: list[tuple[int, int]] = []
    sent: list[PrepareProgress] = []
    migration = SimpleNamespace(
        id="a" * 32, note_progress=lambda *numbers: seen.append(numbers), send=sent.append
    )
    sizes = (40 * MIB + PAGE_BYTES, BLOCK_BYTES)
    with memory(*sizes) as target, receiving(target) as receiver:
        await populate(cast(Any, migration), receiver)
        populated = [os.fstat(d).st_blocks * 512 for d in target.descriptors]
        assert populated == list(sizes)
        assert target.contents() == [bytes(size) for size in sizes]
    assert seen == [(32 * MIB, sum(sizes)), (sizes[0], sum(sizes)), (sum(sizes), sum(sizes))]
    assert sent
    assert all(m.total_bytes == sum(sizes) and m.done_bytes <= m.total_bytes for m in sent)


async def test_memory_that_is_not_there_is_an_error() -> None:
    """A file that shrank under its mapping: populating fails instead of a signal later."""
    migration = SimpleNamespace(id="a" * 32, note_progress=lambda *_: None, send=lambda _: None)
    with memory(MIB) as target, receiving(target) as receiver:
        os.ftruncate(target.descriptors[0], PAGE_BYTES)
        with pytest.raises(OSError, match="Bad address"):
            await populate(cast(Any, migration), receiver)
