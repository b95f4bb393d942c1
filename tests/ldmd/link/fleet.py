"""Hosts with certificates on disk, good and bad ones, and a listener to dial."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.authority import Authority, create_authority
from certs.issue import HostIdentity, issue_host, self_signed_host
from certs.store import write_file, write_identity, write_peer
from ldmd.errors import LinkError
from ldmd.link.identity import Peer
from ldmd.link.listener import Handler, open_listeners, serve_links
from ldmd.link.stream import BulkTLSStream
from ldmd.link.tls import TlsFiles

BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def sign_certificate(
    authority: Authority,
    names: Iterable[str],
    *,
    common_name: str = "host-a",
    usages: Iterable[x509.ObjectIdentifier] = BOTH,
    is_authority: bool = False,
) -> HostIdentity:
    """Certificates that ``certs.issue`` refuses to make."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if names := tuple(names):
        san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(san, critical=False)
    if usages := tuple(usages):
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return HostIdentity(
        host=common_name,
        certificate=builder.sign(authority.key, hashes.SHA256()),
        key=key,
        authority=authority.certificate,
    )


def long_ago() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)


def der(identity: HostIdentity) -> bytes:
    return identity.certificate.public_bytes(Encoding.DER)


@define(eq=False)
class Fleet:
    """Everything lies below ``folder``; ``authority`` signs unless a test says otherwise."""

    folder: Path
    authority: Authority = field(factory=create_authority)

    def add(self, host: str, identity: HostIdentity | None = None) -> TlsFiles:
        """Write a host's files (again); trusts the fleet authority, if one signed."""
        folder = self.folder / host
        write_identity(folder, identity or issue_host(self.authority, host), force=True)
        authority = folder / "ca.crt"
        return TlsFiles(
            certificate=folder / "host.crt",
            key=folder / "host.key",
            authorities=(authority,) if authority.exists() else (),
        )

    def add_self_signed(self, host: str) -> TlsFiles:
        return self.add(host, self_signed_host(host))

    def pin(self, at_host: str, files: TlsFiles, host: str) -> Path:
        """Copy a certificate to ``at_host``, as ``ldm-certs trust`` does."""
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        return write_peer(self.folder / at_host, host, certificate, force=True)

    def write_key(self, files: TlsFiles, content: bytes, mode: int = 0o600) -> None:
        write_file(files.key, content, mode)


async def echo(stream: BulkTLSStream, _peer: Peer) -> None:
    buffer = memoryview(bytearray(64 * 1024))
    while got_bytes := await stream.receive_into(buffer):
        await stream.send_all(buffer[:got_bytes])


@contextlib.asynccontextmanager
async def serving(
    files: TlsFiles,
    peers: Collection[Peer] | Callable[[], Collection[Peer]],
    handler: Handler = echo,
    **options: Any,
) -> AsyncIterator[int]:
    """A real listener on loopback -> its port; ended with the block."""
    async with trio.open_nursery() as nursery:
        listeners = await open_listeners("127.0.0.1", 0)
        ask = peers if callable(peers) else lambda: peers

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await serve_links(listeners, files, ask, handler, task_status=task_status, **options)

        await nursery.start(serve)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def at(port: int, name: str = "host-b", **options: Any) -> Peer:
    return Peer(name=name, address=("127.0.0.1", port), **options)


async def receive_exactly(stream: BulkTLSStream, size_bytes: int) -> bytes:
    content = bytearray(size_bytes)
    view, done_bytes = memoryview(content), 0
    while done_bytes < size_bytes:
        got_bytes = await stream.receive_into(view[done_bytes:])
        assert got_bytes, f"ended after {done_bytes} of {size_bytes} bytes"
        done_bytes += got_bytes
    return bytes(content)


async def expect_failure(stream: BulkTLSStream) -> LinkError:
    """The error of the first receive."""
    with pytest.raises(LinkError) as caught:
        await stream.receive_into(memoryview(bytearray(100)))
    return caught.value


async def wait_logged(caplog: pytest.LogCaptureFixture, *words: str) -> logging.LogRecord:
    """The record on ``ldmd.link`` that has all the words; waits for it."""
    with trio.fail_after(5):
        while True:
            for record in caplog.records:
                text = record.getMessage()
                if record.name == "ldmd.link" and all(word in text for word in words):
                    return record
            await trio.sleep(0.005)
