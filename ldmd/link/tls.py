"""TLS contexts, and what OpenSSL says put into sentences.

TLS 1.3 only, both sides verified, no session tickets, no compression, ALPN ``ldmd/1``. The system's
authorities are never loaded: trusted are the configured fleet authority and the pinned
certificates, nothing else. A pinned certificate is a trust anchor though it is nobody's authority
(X509_V_FLAG_PARTIAL_CHAIN); that it vouches for no other name is seen to in ``identity.py``. A
dialler trusts only what vouches for the peer that it dials.

Contexts are made anew for each link, so certificates may be replaced without a restart.
"""

from __future__ import annotations

import errno
import logging
import os
import ssl
import stat
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from attrs import frozen

from ldmd.errors import ConfigurationError, LinkError
from ldmd.link.identity import Peer, read_certificate_file, read_pinned

logger = logging.getLogger("ldmd.link")

ALPN: Final = "ldmd/1"

LOAD_ATTEMPTS: Final = 4
LOAD_RETRY_SECONDS: Final = 0.05
"""Key and certificate are two files: between their two renames they do not match for a moment."""


@frozen(kw_only=True)
class TlsFiles:
    """This host's certificate and key, and the fleet authorities (several while one takes over); PEM files."""

    certificate: Path
    key: Path
    authorities: tuple[Path, ...] = ()


def _base_context(files: TlsFiles, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # identity.verify_peer is stricter: no wildcard, one name, pins
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Python sets it for every context, and then a cut looks like an orderly end.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols([ALPN])
    _load_identity(context, files)
    return context


def _refuse_passphrase() -> NoReturn:
    raise ConfigurationError("the key has a passphrase, and nobody is there to type it")


def _check_key_mode(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigurationError(
            f"the key {path} cannot be read: {error.strerror}",
            remedy="`ldm-certs issue` makes this host's certificate and key",
        ) from error
    if stat.S_IMODE(mode) & stat.S_IRWXO:
        raise ConfigurationError(
            f"the key {path} can be read by everybody on this host",
            remedy=f"chmod 600 {path}; if others may have read it, issue a new one",
        )


def _load_identity(context: ssl.SSLContext, files: TlsFiles) -> None:
    _check_key_mode(files.key)
    read_certificate_file(files.certificate, "this host's certificate")
    for attempt in range(LOAD_ATTEMPTS):
        try:
            context.load_cert_chain(files.certificate, files.key, password=_refuse_passphrase)
            return
        except ConfigurationError as error:
            raise ConfigurationError(
                f"the key {files.key} has a passphrase",
                remedy=f"remove it: openssl pkey -in {files.key} -out NEW",
            ) from error
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            mismatch = reason == "KEY_VALUES_MISMATCH"
            if mismatch and attempt + 1 < LOAD_ATTEMPTS:
                time.sleep(LOAD_RETRY_SECONDS)  # runs in a thread
                continue
            what = "do not belong together" if mismatch else f"cannot be loaded ({reason})"
            raise ConfigurationError(
                f"the certificate {files.certificate} and the key {files.key} {what}",
                remedy="`ldm-certs issue NAME --force` writes both anew; `ldm-certs show` tells "
                "what is there",
            ) from error


def _trust_authority(context: ssl.SSLContext, authority: Path) -> None:
    content = read_certificate_file(authority, "the fleet authority's certificate")
    try:
        context.load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigurationError(
            f"the fleet authority's certificate {authority} is not a certificate in PEM",
            remedy="copy ca.crt from where `ldm-certs init-ca` was run",
        ) from error


def _nobody_trusted(sentence: str) -> ConfigurationError:
    return ConfigurationError(
        sentence,
        remedy="name the fleet authority's certificate in the configuration, or pin the peer's "
        "with `ldm-certs trust FILE`",
    )


def _read_usable_pins(peers: Collection[Peer]) -> list[bytes]:
    usable = []
    for peer in peers:
        try:
            der = read_pinned(peer)
        except ConfigurationError as error:
            logger.error("no links from %s: %s; %s", peer.name, error.sentence, error.remedy)
            continue
        if der is not None:
            usable.append(der)
    return usable


def load_server_context(files: TlsFiles, peers: Collection[Peer]) -> ssl.SSLContext:
    """For taking links from any of ``peers``. Reads files: call it in a thread.

    A pinned file that is unusable is logged and trusted no more; other peers' links go on. Raises
    ConfigurationError naming the file and what to do.
    """
    context = _base_context(files, ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a client that closes with tickets unread can lose the tail
    pinned = _read_usable_pins(peers)
    for authority in files.authorities:
        _trust_authority(context, authority)
    if not files.authorities and not pinned:
        raise _nobody_trusted("no peer can be verified: no fleet authority, no pinned certificate")
    for der in pinned:
        context.load_verify_locations(cadata=der)
    return context


def load_client_context(files: TlsFiles, peer: Peer) -> ssl.SSLContext:
    """For dialling ``peer``: trusts its pinned certificate alone, or else the authority alone.

    Reads files: call it in a thread. Raises ConfigurationError naming the file and what to do.
    """
    context = _base_context(files, ssl.PROTOCOL_TLS_CLIENT)
    pinned = read_pinned(peer)
    if pinned is not None:
        context.load_verify_locations(cadata=pinned)
        return context
    for authority in files.authorities:
        _trust_authority(context, authority)
    if not files.authorities:
        raise _nobody_trusted(
            f"peer {peer.name} cannot be verified: no fleet authority, no pinned certificate"
        )
    return context


# ---- what went wrong, in a sentence --------------------------------------------------------------


class Explanation(NamedTuple):
    """``sentence`` has ``{peer}`` where the other side is named."""

    reason: str
    sentence: str
    remedy: str


_SHOW: Final = "run `ldm-certs show` on both hosts and compare"
_CLOCK: Final = "check the clocks of both hosts, or issue a new certificate with `ldm-certs issue`"
_NOT_OURS: Final = "check address and port: another service listens there, or another one dials us"
_TRUST_US: Final = (
    "on that host: its configured authority must have signed this host's certificate, or this "
    "host's certificate must be pinned there with `ldm-certs trust`"
)

VERIFY_FAILURES: Final[Mapping[int, Explanation]] = {
    9: Explanation("not-yet-valid", "the certificate of {peer} is not valid yet", _CLOCK),
    10: Explanation("expired", "the certificate of {peer} has expired", _CLOCK),
    18: Explanation(
        "wrong-authority",
        "the certificate of {peer} is self-signed and not pinned here",
        "copy that certificate here and run `ldm-certs trust FILE`",
    ),
    26: Explanation(
        "bad-usage",
        "the certificate of {peer} is not for this use (extendedKeyUsage)",
        "issue it again with `ldm-certs issue NAME`",
    ),
}
"""By X509_V_ERR_… of OpenSSL's x509_vfy.h; every other number is ``WRONG_AUTHORITY`` with its
words."""

WRONG_AUTHORITY: Final = Explanation(
    "wrong-authority",
    "the certificate of {peer} is not signed by the configured authority, nor pinned",
    f"{_SHOW}; the authorities or pins must match",
)

FAILURES: Final[Mapping[str, Explanation]] = {
    # said by the other side, in an alert
    "TLSV1_ALERT_UNKNOWN_CA": Explanation(
        "refused", "{peer} refused our certificate: it knows no authority for it", _TRUST_US
    ),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": Explanation(
        "refused", "{peer} refused our certificate: it has expired, or is not valid yet", _CLOCK
    ),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": Explanation(
        "refused", "{peer} refused our certificate: it is revoked", _TRUST_US
    ),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": Explanation(
        "refused", "{peer} refused our certificate", _TRUST_US
    ),
    "SSLV3_ALERT_BAD_CERTIFICATE": Explanation(
        "refused", "{peer} refused our certificate: it is damaged, or not valid yet", _TRUST_US
    ),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": Explanation(
        "refused", "{peer} refused our certificate: it is not for this use", _TRUST_US
    ),
    "TLSV1_ALERT_ACCESS_DENIED": Explanation(
        "refused", "{peer} refused us: access denied", _TRUST_US
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": Explanation(
        "refused", "{peer} refused us: we showed no certificate", _TRUST_US
    ),
    "TLSV1_ALERT_DECRYPT_ERROR": Explanation(
        "refused", "{peer} could not verify our signature: key and certificate differ", _SHOW
    ),
    "TLSV1_ALERT_PROTOCOL_VERSION": Explanation(
        "protocol-version", "{peer} does not speak TLS 1.3", _NOT_OURS
    ),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": Explanation(
        "protocol-version", "{peer} has no TLS settings in common with us", _NOT_OURS
    ),
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": Explanation(
        "not-a-manager", "{peer} speaks TLS and is not a manager", _NOT_OURS
    ),
    "TLSV1_ALERT_INTERNAL_ERROR": Explanation(
        "refused", "{peer} had an internal error in TLS", "read the other manager's log"
    ),
    # found on this side
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Explanation(
        "no-certificate", "{peer} showed no certificate", _NOT_OURS
    ),
    "UNSUPPORTED_PROTOCOL": Explanation(
        "protocol-version", "{peer} does not speak TLS 1.3", _NOT_OURS
    ),
    "WRONG_VERSION_NUMBER": Explanation("not-tls", "{peer} does not speak TLS", _NOT_OURS),
    "HTTP_REQUEST": Explanation("not-tls", "{peer} speaks plain HTTP", _NOT_OURS),
    "HTTPS_PROXY_REQUEST": Explanation("not-tls", "{peer} speaks plain HTTP", _NOT_OURS),
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": Explanation(
        "damaged", "what {peer} sent was damaged on the way", "look for a faulty network device"
    ),
}
"""By OpenSSL's reason strings, as ``ssl.SSLError.reason`` has them."""

CUT: Final = Explanation(
    "cut",
    "the link to {peer} was cut: it ended without a goodbye",
    "look whether the other manager or the network failed",
)


def explain(error: ssl.SSLError, peer: str, *, in_handshake: bool) -> LinkError:
    """An error of OpenSSL about the link to ``peer`` -> ours, whose facts have a ``reason``."""
    if isinstance(error, ssl.SSLCertVerificationError):
        found = VERIFY_FAILURES.get(error.verify_code, WRONG_AUTHORITY)
        return build_error(found, peer, openssl=error.verify_message)
    ended = isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    if ended or error.reason == "UNEXPECTED_EOF_WHILE_READING":
        return build_error(CLOSED_IN_HANDSHAKE if in_handshake else CUT, peer)
    name = error.reason or error.strerror or type(error).__name__
    explanation = FAILURES.get(name)
    if explanation is None and "_ALERT_" in name:
        words = name.partition("_ALERT_")[2].replace("_", " ").lower()
        explanation = Explanation("refused", f"{{peer}} ended the link: {words}", _SHOW)
    if explanation is None:
        words = name.replace("_", " ").lower()
        explanation = Explanation("tls", f"TLS with {{peer}} failed: {words}", _NOT_OURS)
    return build_error(explanation, peer, openssl=name)


CLOSED_IN_HANDSHAKE: Final = Explanation(
    "closed-in-handshake",
    "{peer} closed the connection before TLS was established",
    "read the log of the other manager; if none runs there, check address and port",
)

SILENT: Final = Explanation(
    "silent",
    "{peer} took the connection and did not establish TLS in time",
    "look whether a manager runs there; if so, read its log",
)

NOT_A_MANAGER: Final = Explanation(
    "not-a-manager", "{peer} speaks TLS and is not a manager", _NOT_OURS
)

SEND_CANCELLED: Final = Explanation(
    "send-cancelled", "sending to {peer} was stopped half-way; the link is of no more use", ""
)

CLOSED: Final = Explanation("closed", "the link to {peer} was closed on this side", "")

CLOSING: Final = Explanation("closing", "the link to {peer} is being closed", "")

_LOST: Final[Mapping[int, Explanation]] = {
    errno.ETIMEDOUT: Explanation(
        "lost", "the link to {peer} was lost: no answer from its host", "check host and network"
    ),
    errno.EHOSTUNREACH: Explanation(
        "lost", "the link to {peer} was lost: its host is unreachable", "check host and network"
    ),
    errno.ENETUNREACH: Explanation(
        "lost", "the link to {peer} was lost: its network is unreachable", "check routes"
    ),
}

RESET: Final = Explanation("cut", "the link to {peer} was cut: the other side reset it", CUT.remedy)


def explain_lost(error: OSError, peer: str, *, in_handshake: bool) -> LinkError:
    """An error of the operating system on the link to ``peer`` -> ours."""
    found = _LOST.get(error.errno or 0, CLOSED_IN_HANDSHAKE if in_handshake else RESET)
    words = os.strerror(error.errno) if error.errno else str(error)
    return build_error(found, peer, system=words)


def build_error(explanation: Explanation, peer: str, **facts: object) -> LinkError:
    return LinkError(
        explanation.sentence.format(peer=peer),
        remedy=explanation.remedy,
        facts={"reason": explanation.reason, "peer": peer, **facts},
    )
