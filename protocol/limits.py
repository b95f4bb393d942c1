"""Every maximum of the conversation, each with its reason.

Peers are authenticated, not trusted: whatever arrives is measured against these before memory is spent on
it. Nothing else in the project states a bound on wire input.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

PROTOCOL_VERSION_MIN: Final = 1
PROTOCOL_VERSION_MAX: Final = 1

MESSAGE_BYTES_MAX: Final = 256 * KIB
"""One control message. The largest is CHECK or CHECKED: a definition with 64 vdisks and 64 vnets is 20 KiB."""

BLOCK_BYTES: Final = 64 * KIB
"""Unit of RAM that is skipped when zero and that has one digest of its own."""

CHUNK_PAYLOAD_BYTES_MAX: Final = 4 * BLOCK_BYTES
"""256 KiB: larger chunks were not measurably faster, smaller ones cost a Python call each."""

CHUNK_HEADER_BYTES_MAX: Final = 1 + 9 + 9 + 9 + 5
"""Array header, sequence, region, offset at their longest, bin32 header."""

FRAME_HEADER_BYTES: Final = 5
"""0xce and the body's length as a big-endian uint32: itself a msgpack value."""

FRAME_BODY_BYTES_MAX: Final = max(
    MESSAGE_BYTES_MAX, CHUNK_HEADER_BYTES_MAX + CHUNK_PAYLOAD_BYTES_MAX
)

RECEIVE_BUFFER_BYTES: Final = 1 * MIB
"""Room for three frames; a constant whatever the domain's size."""

HELLO_BYTES_MAX: Final = 4 * KIB
"""Before HELLO was accepted nothing larger is read."""

NESTING_DEPTH_MAX: Final = 8
"""A definition needs four levels; msgpack bombs need thousands."""

COLLECTION_ITEMS_MAX: Final = 1024
"""Items of any one array or map in a control message."""

MESSAGE_VALUES_MAX: Final = 16 * KIB
"""Values in one control message, keys counted too: what 256 KiB of empty maps would cost in memory is a hundred times
what they cost on the wire. The largest, a definition or all findings, has some 3,000."""

TEXT_BYTES_MAX: Final = 4 * KIB
"""One string in a control message, as UTF-8: the longest are sentences for people."""

BINARY_BYTES_MAX: Final = 64
"""One binary in a control message: digests and tokens."""

DIGEST_BYTES: Final = 16
"""xxh3_128."""

PAGE_BYTES: Final = 4096
"""Sizes of RAM regions are multiples of it."""

NAME_BYTES_MAX: Final = 64
"""Names of domains, hosts, services and volumes: what a DNS label and a file name both take."""

FINDINGS_MAX: Final = 256
"""Findings of one CHECKED: some twenty checks, and a few of them find something for each device."""

REGIONS_MAX: Final = 16
"""RAM regions of one domain: one under most machine types, RAM and ROM under some."""

TRAILS_MAX: Final = 32
"""Migrations of one STANDING: the latest ones of that domain between the two hosts."""

RECORDS_MAX: Final = 16
"""Records of one migration: at most six are written."""

FEATURES_MAX: Final = 32
"""Features of one HELLO; version 1 has none."""

RAM_BYTES_MAX: Final = 4096 * GIB
"""One domain's RAM."""

DEVICE_STATE_BYTES_MAX: Final = 64 * MIB
"""The opaque device stream is kept in memory at both ends; seen: 0.2 MB under QEMU, 4 KiB emulated."""

LINKS_SILENT_MAX: Final = 64
"""Links of one peer that have not said what they are for, as a manager does at once: the oldest goes for a newer one."""

HELLO_SECONDS: Final = 5.0
"""A peer that has not said HELLO by then is not a manager."""

KEEPALIVE_IDLE_SECONDS: Final = 2.0
"""Silent for this long: PING."""

KEEPALIVE_DEAD_SECONDS: Final = 8.0
"""Nothing heard for this long: the link is lost. Three PINGs may go unanswered."""

PINGS_UNANSWERED_MAX: Final = 16
"""PONGs waiting to be sent: who asks more often than every two seconds and does not read has no good in mind."""
