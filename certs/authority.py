"""The fleet authority: one key that vouches for every host's name.

Nothing here touches a file (``certs/store.py`` does). Profile, after RFC 5280:

- ECDSA with P-256 and SHA-256, which every TLS 1.3 implementation must offer (RFC 8446, 9.1);
- basicConstraints critical, CA, path length 0: it signs host certificates and no further authority;
- keyUsage critical: certificates and revocation lists only;
- subject key identifier; serial of 159 random bits; valid from five minutes ago, for clocks that
  differ.
"""

from __future__ import annotations

import datetime
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs.errors import CertificateError

AUTHORITY_DAYS: Final = 3650
"""Ten years: replacing it means visiting every host."""

DAYS_MAX: Final = 36500
"""A hundred years: what the certificate's four-digit year surely takes."""

NAME_CHARACTERS_MAX: Final = 64
"""Upper bound of a common name, RFC 5280 appendix A (ub-common-name)."""

BACKDATE: Final = datetime.timedelta(minutes=5)
"""A host whose clock is behind the issuer's by less takes the certificate at once."""


@frozen(kw_only=True, eq=False)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def authority_key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def validity(
    days: int, not_before: datetime.datetime | None
) -> tuple[datetime.datetime, datetime.datetime]:
    """First and last instant, UTC, whole seconds; ``not_before`` is five minutes ago if None.

    Raises CertificateError when ``days`` is not between 1 and ``DAYS_MAX``.
    """
    if not 1 <= days <= DAYS_MAX:
        raise CertificateError(
            f"a certificate cannot be valid for {days} days",
            remedy=f"give a number of days from 1 to {DAYS_MAX}",
        )
    start = not_before or datetime.datetime.now(datetime.UTC) - BACKDATE
    start = start.astimezone(datetime.UTC).replace(microsecond=0)
    return start, start + datetime.timedelta(days=days)


def create_authority(
    name: str = "ldmd fleet authority",
    days: int = AUTHORITY_DAYS,
    *,
    not_before: datetime.datetime | None = None,
) -> Authority:
    """A new authority with a new key. Raises CertificateError for a name or a time that cannot
    be."""
    if not name.strip() or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise CertificateError(
            f"{name!r} cannot be the name of an authority",
            remedy=f"give 1 to {NAME_CHARACTERS_MAX} printable characters",
        )
    start, end = validity(days, not_before)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(authority_key_usage(), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate=certificate, key=key)
