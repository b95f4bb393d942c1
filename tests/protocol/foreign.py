"""The other side, written from ``docs/protocol.md`` alone: ssl, msgpack and xxhash, and nothing of ours.

It is as small as the document allows: it keeps what it is sent and answers as it must. What it can do, another language can.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from pathlib import Path
from typing import Any

import msgpack
import xxhash

BLOCK = 65536
DEVICE_BYTES_MAX = 64 * 2**20
SECONDS = 20.0


def make_context(tls: Path, side: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls / "ca.crt")
    context.load_cert_chain(tls / "host.crt", tls / "host.key")
    context.set_alpn_protocols(["ldmd/1"])
    if side is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def digest(regions: list[bytearray], device: bytes) -> bytes:
    parts = [
        xxhash.xxh3_128(region[at : at + BLOCK]).digest()
        for region in regions
        for at in range(0, len(region), BLOCK)
    ]
    return xxhash.xxh3_128(b"".join(parts) + xxhash.xxh3_128(device).digest()).digest()


class Link:
    """Frames both ways; PINGs are answered in passing."""

    def __init__(self, stream: ssl.SSLSocket, host: str) -> None:
        self._stream = stream
        self.say(
            "HELLO",
            version_min=1,
            version_max=1,
            features=[],
            host=host,
            release="foreign",
            journal="0123456789abcdef" * 2,
            time_unix_ms=time.time_ns() // 1_000_000,
        )
        self.hello = self.hear("HELLO")

    def say(self, kind: str, **fields: Any) -> None:
        self._send(msgpack.packb({"type": kind, **fields}))

    def say_chunk(self, sequence: int, region: int, offset: int, payload: bytes) -> None:
        self._send(msgpack.packb([sequence, region, offset, payload]))

    def _send(self, body: bytes) -> None:
        self._stream.sendall(b"\xce" + struct.pack(">I", len(body)) + body)

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._stream.recv(count - len(data))
            if not more:
                raise EOFError("the link ended")
            data += more
        return data

    def hear_anything(self) -> Any:
        """A message as a map, or a state chunk as a list."""
        while True:
            head = self._receive(5)
            assert head[0] == 0xCE
            said = msgpack.unpackb(self._receive(struct.unpack(">I", head[1:])[0]))
            if isinstance(said, dict) and said["type"] == "PING":
                self.say("PONG", nonce=said["nonce"])
            elif not (isinstance(said, dict) and said["type"] == "PONG"):
                return said

    def hear(self, kind: str) -> dict[str, Any]:
        said = self.hear_anything()
        assert isinstance(said, dict), said[:3]
        assert said["type"] == kind, said
        return said

    def end(self) -> None:
        """In order: close_notify, both ways."""
        self._stream.unwrap().close()


class ForeignTarget:
    """Takes one domain and says that it runs. ``check`` is what CHECK said, ``regions`` and ``device`` the state here."""

    def __init__(self, listener: socket.socket, tls: Path, host: str) -> None:
        self._listener, self._tls, self._host = listener, tls, host
        self.check: dict[str, Any] = {}
        self.names: list[str] = []
        self.regions: list[bytearray] = []
        self.device = b""

    def take_one(self) -> None:
        self._listener.settimeout(SECONDS)
        connection, _ = self._listener.accept()
        connection.settimeout(SECONDS)
        context = make_context(self._tls, ssl.PROTOCOL_TLS_SERVER)
        link = Link(context.wrap_socket(connection, server_side=True), self._host)
        self.check = link.hear("CHECK")
        this = {"migration": self.check["migration"]}
        link.say("CHECKED", **this, findings=[])
        prepare = link.hear("PREPARE")
        self.names = [region["name"] for region in prepare["regions"]]
        self.regions = [bytearray(region["size_bytes"]) for region in prepare["regions"]]
        link.say("PREPARED", **this)
        if self.regions:
            told = self._receive_state(link)
            ours = digest(self.regions, self.device)
            assert (told["digest"], told["device_bytes"]) == (ours, len(self.device))
            link.say("INSTALLED", **this, digest=ours)
        link.hear("HANDOFF")
        link.say("HANDOFF_DONE", **this)
        link.hear("RELEASED")
        link.say("SETTLED", **this)
        link.end()

    def _receive_state(self, link: Link) -> dict[str, Any]:
        """Chunks until DIGEST, which is returned."""
        count = 0
        while isinstance(said := link.hear_anything(), list):
            sequence, region, offset, payload = said
            assert sequence == count
            count += 1
            if region == len(self.regions):
                assert offset == len(self.device)
                self.device += payload
                assert len(self.device) <= DEVICE_BYTES_MAX
            else:
                assert offset % BLOCK == 0
                self.regions[region][offset : offset + len(payload)] = payload
        assert (said["type"], said["chunks"]) == ("DIGEST", count)
        return dict(said)


def send_domain(port: int, tls: Path, host: str, taken: ForeignTarget) -> None:
    """The source's side: moves what ``taken`` has to the manager at ``port``, as it came."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    context = make_context(tls, ssl.PROTOCOL_TLS_CLIENT)
    link = Link(context.wrap_socket(connection), host)
    this = {"migration": "00112233445566778899aabbccddeeff"}
    link.say(
        "CHECK",
        **this,
        dry_run=False,
        force=False,
        run_state=taken.check["run_state"],
        domain=taken.check["domain"],
        new_name=None,
        facts=taken.check["facts"],
    )
    findings = link.hear("CHECKED")["findings"]
    assert findings == [], findings
    listed = [
        {"name": name, "size_bytes": len(ram)}
        for name, ram in zip(taken.names, taken.regions, strict=True)
    ]
    link.say("PREPARE", **this, regions=listed)
    while (said := link.hear_anything())["type"] == "PREPARE_PROGRESS":
        assert said["done_bytes"] <= said["total_bytes"]
    assert said["type"] == "PREPARED", said
    if taken.regions:
        chunks = send_state(link, taken)
        ours = digest(taken.regions, taken.device)
        link.say("DIGEST", **this, digest=ours, chunks=chunks, device_bytes=len(taken.device))
        assert link.hear("INSTALLED")["digest"] == ours
    link.say("HANDOFF", **this)
    link.hear("HANDOFF_DONE")
    link.say("RELEASED", **this)
    link.hear("SETTLED")
    link.end()


def send_state(link: Link, taken: ForeignTarget) -> int:
    """Blocks that are not zero, then the device stream; returns how many chunks that were."""
    count = 0
    for number, ram in enumerate(taken.regions):
        for at in range(0, len(ram), BLOCK):
            if any(block := bytes(ram[at : at + BLOCK])):
                link.say_chunk(count, number, at, block)
                count += 1
    link.say_chunk(count, len(taken.regions), 0, taken.device)
    return count + 1
