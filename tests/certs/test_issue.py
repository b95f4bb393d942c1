"""What is in the certificates, read back, and judged by OpenSSL's own program."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.authority import create_authority
from certs.errors import CertificateError
from certs.issue import HostIdentity, issue_host, self_signed_host
from certs.store import encode_certificate

UTC = datetime.UTC


def _long_ago() -> datetime.datetime:
    return datetime.datetime.now(UTC) - datetime.timedelta(days=30)


def test_authority_profile() -> None:
    authority = create_authority("rack 7", 10)
    certificate, extensions = authority.certificate, authority.certificate.extensions
    assert certificate.subject.rfc4514_string() == "CN=rack 7"
    assert certificate.public_key() == authority.key.public_key()
    assert isinstance(authority.key.curve, ec.SECP256R1)
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.parametrize("self_signed", [False, True])
def test_host_profile(self_signed: bool) -> None:
    authority = create_authority()
    identity = (
        self_signed_host("web1.rack7") if self_signed else issue_host(authority, "web1.rack7")
    )
    certificate, extensions = identity.certificate, identity.certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("web1.rack7")]
    usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    signer = certificate if self_signed else authority.certificate
    certificate.verify_directly_issued_by(signer)
    subject_key = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuer_key = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert issuer_key.key_identifier == subject_key.digest
    assert identity.authority is (None if self_signed else authority.certificate)


def test_valid_from_five_minutes_ago_for_the_days_asked_for() -> None:
    certificate = self_signed_host("a", 7).certificate
    age = datetime.datetime.now(UTC) - certificate.not_valid_before_utc
    assert datetime.timedelta(minutes=5) <= age < datetime.timedelta(minutes=6)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime == datetime.timedelta(days=7)


def test_serials_and_keys_are_never_the_same() -> None:
    identities = [self_signed_host("a") for _ in range(20)]
    assert len({identity.certificate.serial_number for identity in identities}) == 20
    assert len({identity.key.private_numbers().private_value for identity in identities}) == 20
    assert all(identity.certificate.serial_number.bit_length() > 64 for identity in identities)


def test_a_host_never_outlasts_its_authority() -> None:
    authority = create_authority(days=3)
    identity = issue_host(authority, "a", 730)
    assert identity.certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_an_authority_whose_time_is_over_signs_nothing() -> None:
    authority = create_authority(days=1, not_before=_long_ago())
    with pytest.raises(CertificateError, match="ended on") as caught:
        issue_host(authority, "a")
    assert "init-ca" in caught.value.remedy


@pytest.mark.parametrize(
    "host",
    ["", "Host", "*", "*.a", "a b", "a_b", "-a", "a-", "a..b", ".a", "a.", "ä", "a" * 65, "a\n"],
)
def test_names_that_are_none(host: str) -> None:
    with pytest.raises(CertificateError, match="not a host name"):
        self_signed_host(host)
    with pytest.raises(CertificateError, match="not a host name"):
        issue_host(create_authority(), host)


@pytest.mark.parametrize("days", [-1, 0, 36501])
def test_days_that_cannot_be(days: int) -> None:
    with pytest.raises(CertificateError, match=str(days)):
        self_signed_host("a", days)
    with pytest.raises(CertificateError, match=str(days)):
        create_authority(days=days)


@pytest.mark.parametrize("name", ["", "  ", "a" * 65, "a\nb"])
def test_authority_names_that_cannot_be(name: str) -> None:
    with pytest.raises(CertificateError, match="name of an authority"):
        create_authority(name)


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl (apt-get install openssl)"
)
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize("host", ["a", "web1.rack7"])
def test_openssl_takes_them_at_its_strictest(tmp_path: Path, purpose: str, host: str) -> None:
    authority = create_authority()
    identity = issue_host(authority, host)

    def verify(signed: HostIdentity, trusted: x509.Certificate) -> subprocess.CompletedProcess[str]:
        (tmp_path / "ca").write_bytes(encode_certificate(trusted))
        (tmp_path / "host").write_bytes(encode_certificate(signed.certificate))
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
        command += ["-verify_hostname", host, "-CAfile", str(tmp_path / "ca"), "-no-CApath"]
        command += [str(tmp_path / "host")]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)

    assert verify(identity, authority.certificate).returncode == 0
    assert verify(identity, create_authority().certificate).returncode != 0
