"""Host certificates: signed by the fleet authority, or self-signed to be pinned.

Nothing here touches a file. Profile, after RFC 5280 and RFC 9525:

- exactly one subject alternative name, a dNSName that is the host's name, letter for letter; the
  common name repeats it for people and is never looked at;
- extendedKeyUsage serverAuth and clientAuth, for a manager dials and is dialled;
- basicConstraints critical, not an authority, so that a pinned certificate vouches for nobody else;
- keyUsage critical: digitalSignature, all that TLS 1.3 needs;
- subject and authority key identifiers; random serial; valid from five minutes ago.
"""

from __future__ import annotations

import datetime
import re
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.authority import Authority, validity
from certs.errors import CertificateError

HOST_DAYS: Final = 730
"""Two years: long enough for a fleet that is visited yearly, short enough that a lost key ends."""

HOST_NAME: Final = re.compile(
    r"(?=.{1,64}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
"""Labels of lower-case letters, digits and hyphens, joined by dots; 64 characters at most in
all."""


@frozen(kw_only=True, eq=False)
class HostIdentity:
    """``authority`` is the certificate of who signed; None when the host signed for itself."""

    host: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    authority: x509.Certificate | None


def check_host_name(host: str) -> str:
    """The name itself. Raises CertificateError when no certificate can be made for it."""
    if not HOST_NAME.fullmatch(host):
        raise CertificateError(
            f"{host!r} is not a host name",
            remedy="use lower-case letters, digits, hyphens and dots, 64 characters at most; "
            "the same name as in the other managers' configuration",
        )
    return host


def host_key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign_host(
    host: str,
    start: datetime.datetime,
    end: datetime.datetime,
    authority: Authority | None,
) -> HostIdentity:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    if authority is None:
        issuer, issuer_identifier, signing_key = subject, identifier, key
    else:
        issuer, signing_key = authority.certificate.subject, authority.key
        issuer_identifier = x509.SubjectKeyIdentifier.from_public_key(authority.key.public_key())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(host_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier),
            critical=False,
        )
        .sign(signing_key, hashes.SHA256())
    )
    return HostIdentity(
        host=host,
        certificate=certificate,
        key=key,
        authority=None if authority is None else authority.certificate,
    )


def issue_host(
    authority: Authority,
    host: str,
    days: int = HOST_DAYS,
    *,
    not_before: datetime.datetime | None = None,
) -> HostIdentity:
    """A new key and its certificate, signed by ``authority``; it never outlasts the authority.

    Raises CertificateError for a name that is none, or when the authority's own time is over.
    """
    check_host_name(host)
    start, end = validity(days, not_before)
    authority_end = authority.certificate.not_valid_after_utc
    if authority_end <= start or (
        not_before is None and authority_end <= datetime.datetime.now(datetime.UTC)
    ):
        raise CertificateError(
            f"the authority's certificate ended on {authority_end:%Y-%m-%d}",
            remedy="make a new authority with `ldm-certs init-ca --force` and issue every host "
            "certificate again",
        )
    return _sign_host(host, start, min(end, authority_end), authority)


def self_signed_host(
    host: str, days: int = HOST_DAYS, *, not_before: datetime.datetime | None = None
) -> HostIdentity:
    """A new key and a certificate that peers pin by copying it. Raises CertificateError."""
    check_host_name(host)
    start, end = validity(days, not_before)
    return _sign_host(host, start, end, None)
