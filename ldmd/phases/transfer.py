"""Phase 3: RAM straight out of one file and into another, then the device stream; one digest over both.

The source retrieves the device stream *before* it reads RAM (saving a device may write to RAM); the target installs it
*after* all of RAM (loading one may read it). Blocks that are zero are not sent: the receiver's RAM starts as zero, and its
digest covers them as they lie there. The digest is the one ``docs/protocol.md`` defines. Memory is constant: one chunk at
the source, the receive buffer at the target, 16 bytes of digest a block at both.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import trio
import xxhash
from attrs import define, field

from ldmd.errors import HypervisorError, LinkError, OutcomeUnknown
from ldmd.hypervisor.driver import DomainProcess
from protocol import messages as m
from protocol.errors import RemoteProtocolError
from protocol.events import Event
from protocol.limits import (
    BLOCK_BYTES,
    CHUNK_PAYLOAD_BYTES_MAX,
    DEVICE_STATE_BYTES_MAX,
    GIB,
)

if TYPE_CHECKING:
    from ldmd.migration import Migration

ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
ZERO_DIGEST: Final = xxhash.xxh3_128_digest(ZERO_BLOCK)
DIGEST_BYTES: Final = len(ZERO_DIGEST)

VERIFY_STEP_BLOCKS: Final = GIB // 4 // BLOCK_BYTES
"""Blocks verified between two looks at the clock and at cancellation: some 20 ms."""


@define(eq=False)
class RegionDigests:
    """One digest a block of one RAM region, 16 bytes each, in a single array."""

    size_bytes: int
    digests: bytearray = field(init=False)
    known: bytearray = field(init=False)

    def __attrs_post_init__(self) -> None:
        blocks = -(-self.size_bytes // BLOCK_BYTES)
        self.digests = bytearray(ZERO_DIGEST * blocks)
        self.known = bytearray(blocks)
        if tail := self.size_bytes % BLOCK_BYTES:
            self.digests[-DIGEST_BYTES:] = xxhash.xxh3_128_digest(bytes(tail))

    def note(self, block: int, digest: bytes) -> None:
        self.digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES] = digest
        self.known[block] = 1


def combine(regions: list[RegionDigests], device: bytes) -> bytes:
    """The digest of a domain's state, 16 bytes."""
    whole = xxhash.xxh3_128()
    for region in regions:
        whole.update(region.digests)
    whole.update(xxhash.xxh3_128_digest(device))
    return whole.digest()


# ---- source --------------------------------------------------------------------------------------------


async def send_state(migration: Migration) -> Event:
    """Everything, and note the digest of what left. A lost link is LINK_LOST's business, not ours."""
    link = migration.link
    process = migration.require_process()
    try:
        device = await process.retrieve_device_state()
        descriptors = process.open_ram()
    except (HypervisorError, OutcomeUnknown) as error:
        return migration.explain(Event.STATE_FAILED, error.code, error.sentence, error.remedy)
    regions: list[RegionDigests] = []
    total_bytes = sum(region.size_bytes for region in process.regions) + len(device)
    done_bytes = 0
    try:
        for number, region in enumerate(process.regions):
            digests = RegionDigests(region.size_bytes)
            regions.append(digests)
            for offset, payload in read_chunks(descriptors[number], region.size_bytes, digests):
                if link is not None and payload:
                    await migration.send_chunk(link, number, offset, payload)
                else:
                    await migration.at_boundary()
                migration.note_progress(done_bytes + offset, total_bytes)
            done_bytes += region.size_bytes
        for start in range(0, len(device), CHUNK_PAYLOAD_BYTES_MAX):
            payload = memoryview(device)[start : start + CHUNK_PAYLOAD_BYTES_MAX]
            if link is not None:
                await migration.send_chunk(link, len(regions), start, payload)
        migration.note_progress(total_bytes, total_bytes)
    except LinkError:
        await (
            trio.sleep_forever()
        )  # the link says itself that it is lost, and that event ends this operation
    except OSError as error:
        return migration.explain(
            Event.STATE_FAILED, "ram", f"the RAM of {migration.name} cannot be read: {error}"
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    migration.digest_source = combine(regions, device)
    migration.device_bytes = len(device)
    return Event.STATE_SENT


def read_chunks(
    descriptor: int, size_bytes: int, digests: RegionDigests
) -> Iterator[tuple[int, memoryview]]:
    """(offset, payload) of every run of blocks that are not zero, at most a chunk each; payloads share one buffer.

    The bytes are copied first, and the copy is what is digested and sent. An empty payload only shows how far it is.
    """
    buffer = memoryview(bytearray(CHUNK_PAYLOAD_BYTES_MAX))
    position = 0
    while position < size_bytes:
        data = _next_data(descriptor, position, size_bytes)
        if data is None:
            break
        position = data - data % CHUNK_PAYLOAD_BYTES_MAX  # blocks stay whole, chunks aligned
        wanted = min(CHUNK_PAYLOAD_BYTES_MAX, size_bytes - position)
        got = os.preadv(descriptor, [buffer[:wanted]], position)
        if got != wanted:
            raise OSError(5, f"{got} of {wanted} bytes at {position}")
        for start, run in _runs(buffer[:wanted], position, digests):
            yield position + start, run
        position += wanted
        yield position, buffer[:0]  # zeros are read and digested too: whoever asks must get a turn
    yield size_bytes, buffer[:0]


def _next_data(descriptor: int, position: int, size_bytes: int) -> int | None:
    try:
        found = os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == 6:  # ENXIO: only a hole is left
            return None
        raise
    return found if found < size_bytes else None


def _runs(
    piece: memoryview, position: int, digests: RegionDigests
) -> Iterator[tuple[int, memoryview]]:
    run_start: int | None = None
    for start in range(0, len(piece), BLOCK_BYTES):
        block = piece[start : start + BLOCK_BYTES]
        digest = xxhash.xxh3_128_digest(block)
        digests.note((position + start) // BLOCK_BYTES, digest)
        # equal digests are not equal bytes: a block is only left out when it has been looked at
        if digest == ZERO_DIGEST and bytes(block) == ZERO_BLOCK:
            if run_start is not None:
                yield run_start, piece[run_start:start]
                run_start = None
        elif run_start is None:
            run_start = start
    if run_start is not None:
        yield run_start, piece[run_start:]


def build_digest(migration: Migration) -> m.Digest:
    assert migration.digest_source is not None
    return m.Digest(
        migration=migration.id,
        digest=migration.digest_source,
        chunks=migration.chunks,
        device_bytes=migration.device_bytes,
    )


# ---- target --------------------------------------------------------------------------------------------


class Receiver:
    """The receiving domain's RAM, mapped, and what has arrived of its state. ``close`` unmaps it."""

    def __init__(self, process: DomainProcess) -> None:
        """Raises HypervisorError when the process is gone, OSError when the memory cannot be mapped."""
        self.areas: list[mmap.mmap] = []
        self.digests = [RegionDigests(region.size_bytes) for region in process.regions]
        self.device = bytearray()
        self.chunks = 0
        self.done_bytes = 0
        descriptors = process.open_ram()
        try:
            for descriptor, region in zip(descriptors, process.regions, strict=True):
                self.areas.append(mmap.mmap(descriptor, region.size_bytes))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def take(self, chunk: m.StateChunk) -> None:
        """Install one chunk. Raises RemoteProtocolError when it does not fit."""
        payload = chunk.payload
        if not payload or chunk.region < 0 or chunk.offset < 0:
            raise RemoteProtocolError("sequence", "a state chunk is empty, or of nowhere")
        if chunk.region == len(self.areas):
            self._take_device(chunk)
        elif chunk.region > len(self.areas):
            raise RemoteProtocolError("sequence", f"there is no region {chunk.region}")
        else:
            self._take_ram(chunk)
        self.chunks += 1

    def _take_device(self, chunk: m.StateChunk) -> None:
        if chunk.offset != len(self.device):
            raise RemoteProtocolError("sequence", "the device stream has a gap or a repeat")
        if len(self.device) + len(chunk.payload) > DEVICE_STATE_BYTES_MAX:
            raise RemoteProtocolError("oversize", "the device stream is too long")
        self.device += chunk.payload

    def _take_ram(self, chunk: m.StateChunk) -> None:
        area, digests = self.areas[chunk.region], self.digests[chunk.region]
        end = chunk.offset + len(chunk.payload)
        if (
            end > len(area)
            or chunk.offset % BLOCK_BYTES
            or (end % BLOCK_BYTES and end != len(area))
        ):
            raise RemoteProtocolError("sequence", "a state chunk is not whole blocks of its region")
        first, last = chunk.offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        if self.device or any(digests.known[first:last]):
            raise RemoteProtocolError(
                "sequence", "a block of RAM came twice, or after the device stream"
            )
        area[chunk.offset : end] = chunk.payload
        with memoryview(
            area
        ) as installed:  # the digest is of what lies there now, not of what came
            for block in range(first, last):
                start = block * BLOCK_BYTES
                with installed[start : min(start + BLOCK_BYTES, end)] as content:
                    digests.note(block, xxhash.xxh3_128_digest(content))
        self.done_bytes = sum(len(earlier) for earlier in self.areas[: chunk.region]) + end

    def verify_rest(self, region: int, first_block: int) -> int:
        """Digest what lies in the blocks that nothing came for; for a thread. Returns the next block, 0 at the end."""
        area, digests = self.areas[region], self.digests[region]
        last = min(first_block + VERIFY_STEP_BLOCKS, len(digests.known))
        with memoryview(area) as installed:
            for block in range(first_block, last):
                if not digests.known[block]:
                    start = block * BLOCK_BYTES
                    with installed[start : start + BLOCK_BYTES] as content:
                        digests.note(block, xxhash.xxh3_128_digest(content))
        return last if last < len(digests.known) else 0

    def close(self) -> None:
        for area in self.areas:
            area.close()
        self.areas = []


async def install_state(migration: Migration) -> Event:
    """Compare digests first: a state that is not the source's never reaches the hypervisor."""
    receiver, announced = migration.receiver, migration.announced
    assert receiver is not None
    assert announced is not None
    if (receiver.chunks, len(receiver.device)) != (announced.chunks, announced.device_bytes):
        return migration.explain(
            Event.INSTALL_FAILED,
            "state-incomplete",
            f"{receiver.chunks} state chunks came, the source sent {announced.chunks}",
        )
    for region in range(len(receiver.areas)):
        block = await trio.to_thread.run_sync(receiver.verify_rest, region, 0)
        while block:
            block = await trio.to_thread.run_sync(receiver.verify_rest, region, block)
    device = bytes(receiver.device)
    migration.digest_target = combine(receiver.digests, device)
    if migration.digest_target != announced.digest:
        return migration.explain(
            Event.INSTALL_FAILED,
            "digest-differs",
            f"the digest of what was installed is {migration.digest_target.hex()},"
            f" of what left the source {announced.digest.hex()}",
            "try again; if it comes again, look at the memory of both hosts",
        )
    try:
        await migration.require_process().install_device_state(device)
    except (HypervisorError, OutcomeUnknown) as error:
        return migration.explain(Event.INSTALL_FAILED, error.code, error.sentence, error.remedy)
    return Event.STATE_INSTALLED


def build_installed(migration: Migration) -> m.Installed:
    assert migration.digest_target is not None
    return m.Installed(migration=migration.id, digest=migration.digest_target)
