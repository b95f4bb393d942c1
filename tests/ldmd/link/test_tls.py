"""Files that cannot be used, each named with what to do."""

from __future__ import annotations

import ssl
from pathlib import Path

import attrs
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from certs.issue import issue_host
from ldmd.errors import ConfigurationError
from ldmd.link.identity import Peer
from ldmd.link.tls import TlsFiles, load_client_context, load_server_context
from tests.ldmd.link.fleet import Fleet

PEER = Peer(name="host-b", address=("127.0.0.1", 1))


def _expect(files: TlsFiles, *words: str) -> None:
    with pytest.raises(ConfigurationError) as dialling:
        load_client_context(files, PEER)
    with pytest.raises(ConfigurationError) as dialled:
        load_server_context(files, [PEER])
    for error in (dialling.value, dialled.value):
        assert all(word in error.sentence for word in words), error.sentence
        assert error.remedy


def test_contexts_are_strict(fleet: Fleet) -> None:
    files = fleet.add("host-a")
    for context in (load_client_context(files, PEER), load_server_context(files, [PEER])):
        assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}
    assert load_server_context(files, [PEER]).num_tickets == 0


def test_dialling_a_pinned_peer_trusts_its_certificate_alone(fleet: Fleet) -> None:
    files = fleet.add("host-a")
    path = fleet.pin("host-a", fleet.add_self_signed("host-b"), "host-b")
    pinned = attrs.evolve(PEER, certificate=path)
    store = load_client_context(files, pinned).cert_store_stats()
    assert store == {"x509": 1, "crl": 0, "x509_ca": 0}
    assert load_server_context(files, [pinned]).cert_store_stats()["x509"] == 2


def test_missing_files(fleet: Fleet, tmp_path: Path) -> None:
    files, missing = fleet.add("host-a"), tmp_path / "missing"
    for change in ({"certificate": missing}, {"key": missing}, {"authorities": (missing,)}):
        _expect(attrs.evolve(files, **change), str(missing))


def test_files_that_are_something_else(fleet: Fleet, tmp_path: Path) -> None:
    files, other = fleet.add("host-a"), tmp_path / "other"
    other.write_bytes(b"\xfe\xff nonsense")
    other.chmod(0o600)
    for change in ({"certificate": other}, {"key": other}, {"authorities": (other,)}):
        _expect(attrs.evolve(files, **change), str(other))


def test_key_of_another_certificate(fleet: Fleet) -> None:
    files, other = fleet.add("host-a"), fleet.add("host-b")
    _expect(attrs.evolve(files, key=other.key), "do not belong together", str(other.key))


def test_key_that_everybody_may_read(fleet: Fleet) -> None:
    files = fleet.add("host-a")
    files.key.chmod(0o644)
    _expect(files, "everybody", str(files.key))


def test_key_with_a_passphrase_asks_nobody(fleet: Fleet) -> None:
    identity = issue_host(fleet.authority, "host-a")
    files = fleet.add("host-a", identity)
    sealed = identity.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    fleet.write_key(files, sealed)
    _expect(files, "passphrase", str(files.key))


def test_nobody_to_trust(fleet: Fleet) -> None:
    _expect(attrs.evolve(fleet.add("host-a"), authorities=()), "be verified: no fleet authority")
