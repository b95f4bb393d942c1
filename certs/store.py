"""Certificates and keys on disk.

    /etc/ldmd/tls/ca.crt        the fleet authority, on every host that trusts it
                  ca.key        only where certificates are issued
                  host.crt      this host's certificate
                  host.key      its key
                  peers/*.crt   pinned certificates of other hosts, one a file, named for the host

A file is written beside its place, flushed, renamed and the folder flushed: a reader sees the old
or the new one, whole, also after a power cut. Keys are 0600 from their first byte, certificates
0644. A key is written before its certificate, so a reader that finds a new certificate finds its
key.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from certs.authority import Authority
from certs.errors import AlreadyThere, CertificateError, NoPermission, NotThere
from certs.issue import HostIdentity

DEFAULT_DIRECTORY: Final = Path("/etc/ldmd/tls")
AUTHORITY_CERTIFICATE: Final = "ca.crt"
AUTHORITY_KEY: Final = "ca.key"
HOST_CERTIFICATE: Final = "host.crt"
HOST_KEY: Final = "host.key"
PEERS: Final = "peers"

KEY_MODE: Final = 0o600
CERTIFICATE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755

FILE_BYTES_MAX: Final = 1024 * 1024
"""A certificate is 1 KiB, a bundle of authorities some more; a device or a disk image is not
read."""


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Operating system errors about ``path`` -> ours, with what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotThere(f"{path} is not there", remedy="check the path") from error
    except PermissionError as error:
        raise NoPermission(
            f"no permission for {path}", remedy="run as root, or name another --directory"
        ) from error
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror or error}") from error


def encode_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 in PEM, not encrypted: a daemon that starts by itself cannot ask for a passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encode_certificate(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Durably and at once: after a crash ``path`` holds all of the old or all of the new content.

    Raises CertificateError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _explained(path):
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode
        )
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)  # whatever the umask says
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_directory(directory: Path) -> None:
    """With its parents. Raises CertificateError."""
    with _explained(directory):
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)


def read_file(path: Path) -> bytes:
    """At most ``FILE_BYTES_MAX`` bytes. Raises CertificateError."""
    with _explained(path), path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise CertificateError(f"{path} is too large to be a certificate or a key")
    return content


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Every certificate of a PEM file, or the one of a DER file. Raises CertificateError."""
    content = read_file(path)
    try:
        if b"-----BEGIN" in content:
            return x509.load_pem_x509_certificates(content)
        return [x509.load_der_x509_certificate(content)]
    except ValueError as error:
        raise CertificateError(
            f"{path} holds no certificate", remedy="name a certificate in PEM or DER"
        ) from error


def has_private_key(path: Path) -> bool:
    """Raises CertificateError when the file cannot be read."""
    return b"PRIVATE KEY-----" in read_file(path)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises CertificateError when it is not an unencrypted EC key."""
    try:
        key = load_pem_private_key(read_file(path), password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(
            f"{path} holds no usable key", remedy="it must be a PEM key without passphrase"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not an elliptic curve key")
    return key


def read_authority(directory: Path) -> Authority:
    """The authority that ``write_authority`` wrote there. Raises CertificateError."""
    certificate_path = directory / AUTHORITY_CERTIFICATE
    certificate = read_certificates(certificate_path)[0]
    key = read_key(directory / AUTHORITY_KEY)
    if certificate.public_key() != key.public_key():
        raise CertificateError(
            f"{certificate_path} and {directory / AUTHORITY_KEY} do not belong together",
            remedy="put the files of one authority there",
        )
    return Authority(certificate=certificate, key=key)


def _refuse_overwriting(paths: list[Path], force: bool) -> None:
    there = [path for path in paths if os.path.lexists(path)]
    if there and not force:
        raise AlreadyThere(
            f"{' and '.join(str(path) for path in there)} already there",
            remedy="give --force to replace; what trusts the old one stops trusting this host",
        )


def write_authority(directory: Path, authority: Authority, *, force: bool = False) -> None:
    """``ca.crt`` and ``ca.key``. Raises AlreadyThere unless ``force``, CertificateError."""
    make_directory(directory)
    certificate, key = directory / AUTHORITY_CERTIFICATE, directory / AUTHORITY_KEY
    _refuse_overwriting([certificate, key], force)
    write_file(key, encode_key(authority.key), KEY_MODE)
    write_file(certificate, encode_certificate(authority.certificate), CERTIFICATE_MODE)


def write_identity(directory: Path, identity: HostIdentity, *, force: bool = False) -> None:
    """``host.crt``, ``host.key`` and, when an authority signed and none is there, its ``ca.crt``.

    Raises AlreadyThere unless ``force``; CertificateError when another authority's ``ca.crt`` is
    there.
    """
    make_directory(directory)
    certificate, key = directory / HOST_CERTIFICATE, directory / HOST_KEY
    authority_path = directory / AUTHORITY_CERTIFICATE
    _refuse_overwriting([certificate, key], force)
    if identity.authority is not None:
        if not os.path.lexists(authority_path):
            write_file(authority_path, encode_certificate(identity.authority), CERTIFICATE_MODE)
        elif identity.authority not in read_certificates(authority_path):
            raise CertificateError(
                f"{authority_path} is another authority than the one that signs",
                remedy="remove it if it is no longer to be trusted, or append the new one to it",
            )
    write_file(key, encode_key(identity.key), KEY_MODE)
    write_file(certificate, encode_certificate(identity.certificate), CERTIFICATE_MODE)


def write_peer(
    directory: Path, host: str, certificate: x509.Certificate, *, force: bool = False
) -> Path:
    """``peers/HOST.crt``; the same certificate again is no change. Raises AlreadyThere
    otherwise."""
    make_directory(directory / PEERS)
    path = directory / PEERS / f"{host}.crt"
    if os.path.lexists(path):
        if certificate in read_certificates(path):
            return path
        _refuse_overwriting([path], force)
    write_file(path, encode_certificate(certificate), CERTIFICATE_MODE)
    return path
