"""Which manager is at the other end: from its certificate to one configured peer.

OpenSSL has verified the chain, the signature and the time by then (``tls.py``). Here the
certificate gets a name, after RFC 9525 and stricter: exactly one dNSName, no wildcard, the common
name never looked at, and equal, letter for letter, to the name of a configured peer. A peer whose
certificate is pinned is that certificate and no other one, whoever signed it; and a pinned
certificate is never another peer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

import attrs
from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from ldmd.errors import ConfigurationError, LinkError
from protocol import limits

HOST_NAME: Final = re.compile(
    rf"(?=.{{1,{limits.NAME_BYTES_MAX}}}\Z)"
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
"""A host's name: labels of lower-case letters, digits and hyphens, joined by dots."""

CERTIFICATE_FILE_BYTES_MAX: Final = 1024 * 1024
"""A certificate is 1 KiB; a bundle of authorities some more. Anything larger is another file."""

ISSUE_AGAIN: Final = "issue that host's certificate again with `ldm-certs issue NAME`"

_ROLES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}


def _check_name(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not HOST_NAME.fullmatch(value):
        raise ValueError(
            f"peer {value!r}: a host name has lower-case letters, digits, hyphens and dots, "
            f"{limits.NAME_BYTES_MAX} characters at most"
        )


@frozen(kw_only=True)
class Peer:
    """One other manager, as the configuration names it. ValueError for a name that is none.

    ``address``: host name or IP address, and TCP port; None for a peer that only dials us.
    ``may_send``: may bring domains here. ``may_receive``: may be given domains.
    ``may_console``: its users may see, and type on, the consoles of all domains here.
    ``certificate``: file of the pinned certificate; None when the fleet authority vouches for it.
    """

    name: str = field(validator=_check_name)
    address: tuple[str, int] | None = None
    may_send: bool = True
    may_receive: bool = True
    may_console: bool = False
    certificate: Path | None = None


def fingerprint(der: bytes) -> str:
    """SHA-256 of the certificate as ``openssl x509 -fingerprint -sha256`` and ``ldm-certs show``
    print it."""
    digits = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))


def _refuse(reason: str, sentence: str, remedy: str, der: bytes) -> LinkError:
    mark = fingerprint(der)
    return LinkError(
        f"{sentence} (SHA-256 {mark})", remedy=remedy, facts={"reason": reason, "fingerprint": mark}
    )


def _names(der: bytes) -> tuple[list[str], x509.Certificate]:
    """The dNSNames and the certificate. Raises LinkError when it cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName), certificate
    except x509.ExtensionNotFound:
        return [], certificate
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise _refuse(
            "bad-certificate",
            f"the peer's certificate cannot be read: {error}",
            ISSUE_AGAIN,
            der,
        ) from error


def _usage_fault(certificate: x509.Certificate) -> str | None:
    """What the certificate may not be used for and must be, as half a sentence."""
    extensions = certificate.extensions
    try:
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return "does not say what it is for (extendedKeyUsage is missing)"
    missing = [name for oid, name in _ROLES.items() if oid not in usage]
    if missing:
        return f"is not for {' and '.join(missing)}"
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "is an authority's, not a host's"
    except x509.ExtensionNotFound:
        pass  # then it is no authority: RFC 5280, 4.2.1.9
    return None


def host_of(der: bytes) -> str:
    """The one host name of a host certificate (DER). Raises LinkError naming what is wrong with
    it."""
    names, certificate = _names(der)
    if len(names) != 1:
        found = "no DNS name" if not names else f"{len(names)} DNS names"
        raise _refuse(
            "bad-name",
            f"the peer's certificate has {found} as subject alternative name and must have one, "
            "its host name; the common name does not count",
            ISSUE_AGAIN,
            der,
        )
    name = names[0]
    if not HOST_NAME.fullmatch(name):
        what = "a wildcard" if "*" in name else "not a host name in lower case"
        raise _refuse(
            "bad-name", f"the name {name!r} in the peer's certificate is {what}", ISSUE_AGAIN, der
        )
    fault = _usage_fault(certificate)
    if fault is not None:
        raise _refuse("bad-usage", f"the certificate of {name} {fault}", ISSUE_AGAIN, der)
    return name


def read_certificate_file(path: Path, what: str) -> bytes:
    """Its bytes. Raises ConfigurationError naming ``what`` it is, the file and what to do."""
    try:
        with path.open("rb") as file:
            content = file.read(CERTIFICATE_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{what} {path} cannot be read: {error.strerror or error}",
            remedy="check the path and that this manager's user may read it",
        ) from error
    if len(content) > CERTIFICATE_FILE_BYTES_MAX:
        raise ConfigurationError(
            f"{what} {path} is too large to be a certificate", remedy="check the path"
        )
    return content


def read_pinned(peer: Peer) -> bytes | None:
    """The peer's pinned certificate as DER; None when it has none.

    Raises ConfigurationError when the file is missing, is no host certificate or is another host's:
    a pinned certificate is a trust anchor, so one of another name or of an authority would open a
    side door.
    """
    if peer.certificate is None:
        return None
    what = f"the pinned certificate of peer {peer.name},"
    content = read_certificate_file(peer.certificate, what)
    remedy = (
        f"copy host.crt of {peer.name} here and run `ldm-certs trust FILE`; "
        f"`ldm-certs issue {peer.name} --self-signed` makes one there"
    )
    if b"PRIVATE KEY-----" in content:
        raise ConfigurationError(f"{what} {peer.certificate} holds a private key", remedy=remedy)
    try:
        certificates = x509.load_pem_x509_certificates(content)
        if len(certificates) != 1:
            raise ValueError(f"it holds {len(certificates)} certificates")
        der = certificates[0].public_bytes(Encoding.DER)
        name = host_of(der)
    except (ValueError, LinkError) as error:
        raise ConfigurationError(
            f"{what} {peer.certificate} is not one host certificate in PEM: {error}", remedy=remedy
        ) from error
    if name != peer.name:
        raise ConfigurationError(
            f"{what} {peer.certificate} is the certificate of {name}", remedy=remedy
        )
    return der


def _check_pin(der: bytes, named: Peer) -> None:
    pinned = read_pinned(named)
    if pinned is not None and pinned != der:
        raise _refuse(
            "not-pinned",
            f"the certificate that says {named.name} is not the one pinned for it "
            f"(SHA-256 {fingerprint(pinned)})",
            f"if {named.name} has a new certificate, copy it here and run `ldm-certs trust FILE "
            "--force`; if not, somebody else says to be that host",
            der,
        )


def verify_peer(der: bytes, peers: Collection[Peer], *, dialled: Peer | None = None) -> Peer:
    """Who showed that certificate (DER), whose chain and time OpenSSL has already verified.

    With ``dialled`` it must be that peer. Reads pinned certificates from disk at each call. Raises
    LinkError (facts: ``reason``, ``fingerprint``) for a certificate that is nobody's,
    ConfigurationError when the pinned file of the named peer is unusable.
    """
    name = host_of(der)
    if dialled is not None and name != dialled.name:
        raise _refuse(
            "wrong-peer",
            f"dialled {dialled.name} and reached {name}",
            f"correct the address of peer {dialled.name} in the configuration",
            der,
        )
    named = next((peer for peer in peers if peer.name == name), None)
    if named is None:
        raise _refuse(
            "unknown-peer",
            f"no peer is configured with the name {name}",
            f"add a peer {name} to the configuration if it may connect",
            der,
        )
    _check_pin(der, named)
    return named
