"""What a certificate says, and what is wrong with it as a host's or an authority's."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any, Final

import attrs
from attrs import frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.issue import HOST_NAME

SOON_DAYS: Final = 30
"""Time enough to visit every host of a fleet; fewer days left are shown as a warning."""

_ROLES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}


@frozen(kw_only=True)
class CertificateStatus:
    """``host`` is None for an authority and where no name can be told.

    ``faults`` make it unusable; ``warnings`` will, or may.
    """

    kind: str
    subject: str
    issuer: str
    host: str | None
    fingerprint: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    days_left: int
    faults: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        """Plain values for JSON; times as ISO 8601 in UTC."""
        document = attrs.asdict(self)
        for key in ("not_before", "not_after"):
            document[key] = document[key].isoformat()
        return document


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER, as ``openssl x509 -fingerprint -sha256`` prints it."""
    digits = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest().upper()
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _name_faults(names: list[str]) -> list[str]:
    if not names:
        return ["it has no DNS name as subject alternative name; the common name does not count"]
    if len(names) > 1:
        return [f"it has {len(names)} names ({', '.join(names)}) and must have one"]
    if not HOST_NAME.fullmatch(names[0]):
        return [f"{names[0]!r} is not the name of one host in lower case"]
    return []


def _usage_faults(certificate: x509.Certificate) -> list[str]:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return ["it does not say that it is for servers and clients (extendedKeyUsage)"]
    return [f"it is not for {name}" for oid, name in _ROLES.items() if oid not in usage]


def _authority_faults(certificate: x509.Certificate) -> list[str]:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return []
    return [] if usage.key_cert_sign else ["it may not sign certificates (keyUsage)"]


def _time_faults(certificate: x509.Certificate, now: datetime.datetime) -> list[str]:
    if now < certificate.not_valid_before_utc:
        return [f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"]
    if now > certificate.not_valid_after_utc:
        return [f"it ended on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"]
    return []


def _issuer_faults(
    certificate: x509.Certificate, authorities: tuple[x509.Certificate, ...]
) -> list[str]:
    """Self-signed: by its own key. Else by one of ``authorities``, when any is known."""
    self_signed = certificate.issuer == certificate.subject
    signers = (certificate,) if self_signed else authorities
    if not signers:
        return []
    for signer in signers:
        try:
            certificate.verify_directly_issued_by(signer)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return []
    return ["it is not signed by " + ("its own key" if self_signed else "the authority in ca.crt")]


def _key_faults(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None) -> list[str]:
    if key is not None and key.public_key() != certificate.public_key():
        return ["the key beside it is another certificate's"]
    return []


def examine(
    certificate: x509.Certificate,
    *,
    authorities: tuple[x509.Certificate, ...] = (),
    key: ec.EllipticCurvePrivateKey | None = None,
    now: datetime.datetime | None = None,
) -> CertificateStatus:
    """Everything there is to say about it.

    ``authorities``: what should have signed it; none: not looked at. ``key``: what should be its
    key. ``now``: UTC, the clock's time if None.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        authority = _is_authority(certificate)
        names = _dns_names(certificate)
        faults = (
            _authority_faults(certificate)
            if authority
            else _name_faults(names) + _usage_faults(certificate)
        )
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        authority, names, faults = False, [], [f"its extensions cannot be read: {error}"]
    faults += _time_faults(certificate, now)
    faults += _issuer_faults(certificate, authorities)
    faults += _key_faults(certificate, key)
    days_left = (certificate.not_valid_after_utc - now).days
    ends_soon = not faults and days_left < SOON_DAYS
    return CertificateStatus(
        kind="authority" if authority else "host",
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        host=names[0] if len(names) == 1 and not authority else None,
        fingerprint=fingerprint(certificate),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        days_left=days_left,
        faults=tuple(faults),
        warnings=(f"it ends in {days_left} days; issue a new one",) if ends_soon else (),
    )
