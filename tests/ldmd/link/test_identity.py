"""From a certificate to one peer, or to a reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.issue import issue_host, self_signed_host
from certs.status import fingerprint as certs_fingerprint
from ldmd.errors import ConfigurationError, LinkError
from ldmd.link.identity import Peer, fingerprint, read_pinned, verify_peer
from tests.ldmd.link.fleet import BOTH, Fleet, der, sign_certificate

PEERS = (Peer(name="host-a"), Peer(name="host-b"))


def test_the_name_in_the_certificate_is_the_peer(fleet: Fleet) -> None:
    assert verify_peer(der(issue_host(fleet.authority, "host-b")), PEERS) is PEERS[1]


def test_both_programs_print_the_same_fingerprint(fleet: Fleet) -> None:
    identity = issue_host(fleet.authority, "host-b")
    assert fingerprint(der(identity)) == certs_fingerprint(identity.certificate)


@pytest.mark.parametrize(
    ("names", "usages", "is_authority", "reason"),
    [
        (["host-a", "host-b"], BOTH, False, "bad-name"),
        (["host-a", "host-a"], BOTH, False, "bad-name"),
        ([], BOTH, False, "bad-name"),
        (["*"], BOTH, False, "bad-name"),
        (["*.example"], BOTH, False, "bad-name"),
        (["Host-a"], BOTH, False, "bad-name"),
        (["host-a."], BOTH, False, "bad-name"),
        (["host-a\0.evil"], BOTH, False, "bad-name"),
        (["host-a\n"], BOTH, False, "bad-name"),
        (["host-c"], BOTH, False, "unknown-peer"),
        (["host-a.example"], BOTH, False, "unknown-peer"),
        (["host-a"], [], False, "bad-usage"),
        (["host-a"], [ExtendedKeyUsageOID.SERVER_AUTH], False, "bad-usage"),
        (["host-a"], [ExtendedKeyUsageOID.CLIENT_AUTH], False, "bad-usage"),
        (["host-a"], BOTH, True, "bad-usage"),
    ],
)
def test_refused(
    fleet: Fleet,
    names: list[str],
    usages: list[x509.ObjectIdentifier],
    is_authority: bool,
    reason: str,
) -> None:
    identity = sign_certificate(fleet.authority, names, usages=usages, is_authority=is_authority)
    with pytest.raises(LinkError) as caught:
        verify_peer(der(identity), PEERS)
    assert caught.value.facts["reason"] == reason
    assert fingerprint(der(identity)) in caught.value.sentence
    assert caught.value.remedy


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(LinkError) as caught:
        verify_peer(b"\x30\x03\x02\x01\x00", PEERS)
    assert caught.value.facts["reason"] == "bad-certificate"


def test_the_dialled_peer_and_no_other(fleet: Fleet) -> None:
    with pytest.raises(LinkError, match="dialled host-b and reached host-a") as caught:
        verify_peer(der(issue_host(fleet.authority, "host-a")), PEERS, dialled=PEERS[1])
    assert caught.value.facts["reason"] == "wrong-peer"


def test_a_pinned_peer_is_that_certificate_alone(fleet: Fleet) -> None:
    pinned = self_signed_host("host-b")
    path = fleet.pin("host-a", fleet.add("host-b", pinned), "host-b")
    peer = Peer(name="host-b", certificate=path)
    assert verify_peer(der(pinned), [peer]) is peer
    for other in (issue_host(fleet.authority, "host-b"), self_signed_host("host-b")):
        with pytest.raises(LinkError, match="not the one pinned") as caught:
            verify_peer(der(other), [peer])
        assert caught.value.facts["reason"] == "not-pinned"
        assert fingerprint(der(pinned)) in caught.value.sentence


def test_a_new_pin_counts_at_once(fleet: Fleet) -> None:
    path = fleet.pin("host-a", fleet.add_self_signed("host-b"), "host-b")
    renewed = self_signed_host("host-b")
    fleet.pin("host-a", fleet.add("host-b", renewed), "host-b")
    assert verify_peer(der(renewed), [Peer(name="host-b", certificate=path)]).name == "host-b"


def test_a_pin_of_another_host_is_a_configuration_error(fleet: Fleet) -> None:
    path = fleet.pin("host-a", fleet.add_self_signed("host-c"), "host-b")
    with pytest.raises(ConfigurationError, match="is the certificate of host-c"):
        read_pinned(Peer(name="host-b", certificate=path))


def test_a_pinned_authority_is_a_configuration_error(fleet: Fleet) -> None:
    """It could vouch for other names."""
    identity = sign_certificate(fleet.authority, ["host-b"], is_authority=True)
    path = fleet.pin("host-a", fleet.add("host-b", identity), "host-b")
    with pytest.raises(ConfigurationError, match="authority's"):
        read_pinned(Peer(name="host-b", certificate=path))


@pytest.mark.parametrize("content", [b"", b"not a certificate", b"\xff" * 2_000_000])
def test_a_pin_that_is_no_certificate_is_a_configuration_error(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "host-b.crt"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"host-b\.crt"):
        read_pinned(Peer(name="host-b", certificate=path))


def test_a_pin_with_a_key_and_one_that_is_missing_are_configuration_errors(
    fleet: Fleet, tmp_path: Path
) -> None:
    files = fleet.add_self_signed("host-b")
    both = tmp_path / "both.crt"
    both.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    with pytest.raises(ConfigurationError, match="private key"):
        read_pinned(Peer(name="host-b", certificate=both))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_pinned(Peer(name="host-b", certificate=tmp_path / "missing.crt"))


@pytest.mark.parametrize("name", ["", "Host", "*", "a..b", "-a", "a-", "a_b", "a" * 65, "a\n", "ä"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        Peer(name=name)
