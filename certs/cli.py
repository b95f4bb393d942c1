"""The ``ldm-certs`` command: make, issue, look at and trust host certificates.

Exit status: 0 done; 1 ``show`` found something wrong; 2 wrong use; else see ``certs/errors.py``.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs import authority as authorities
from certs import issue as hosts
from certs import store
from certs.errors import CertificateError, NotThere
from certs.status import CertificateStatus, examine, fingerprint

P = ParamSpec("P")

_PATH: Final = click.Path(path_type=Path)

directory_option = click.option(
    "--directory",
    type=_PATH,
    default=store.DEFAULT_DIRECTORY,
    show_default=True,
    help="Where the files go.",
)
force_option = click.option("--force", is_flag=True, help="Replace files that are there.")


def _reporting(command: Callable[P, None]) -> Callable[P, None]:
    """CertificateError -> two lines on standard error and its exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except CertificateError as error:
            click.echo(f"ldm-certs: {error.sentence}", err=True)
            if error.remedy:
                click.echo(f"  {error.remedy}", err=True)
            sys.exit(error.exit_status)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ldmd")
def main() -> None:
    """Host identity for ldmd: who a manager is, and which other managers it trusts.

    Either one fleet authority signs every host's certificate (init-ca, issue), or each host signs
    for itself and its certificate is copied to the others (issue --self-signed, trust).
    """


@main.command("init-ca")
@directory_option
@click.option("--name", default="ldmd fleet authority", show_default=True, help="For people.")
@click.option("--days", type=int, default=authorities.AUTHORITY_DAYS, show_default=True)
@force_option
@_reporting
def init_ca(directory: Path, name: str, days: int, force: bool) -> None:
    """Make the fleet authority: ca.crt goes to every host, ca.key stays here."""
    made = authorities.create_authority(name, days)
    store.write_authority(directory, made, force=force)
    _echo_made(directory / store.AUTHORITY_CERTIFICATE, made.certificate)


@main.command()
@click.argument("host")
@directory_option
@click.option("--days", type=int, default=hosts.HOST_DAYS, show_default=True)
@click.option(
    "--authority", type=_PATH, help="Folder with ca.crt and ca.key; --directory if not given."
)
@click.option("--self-signed", is_flag=True, help="Without authority: to be pinned by peers.")
@force_option
@_reporting
def issue(
    host: str, directory: Path, days: int, authority: Path | None, self_signed: bool, force: bool
) -> None:
    """Make HOST's certificate and key: host.crt and host.key.

    HOST is the name that the other managers' configuration has for it, letter for letter.
    """
    if self_signed and authority is not None:
        raise click.UsageError("--self-signed and --authority exclude each other")
    hosts.check_host_name(host)
    identity = (
        hosts.self_signed_host(host, days)
        if self_signed
        else hosts.issue_host(_find_authority(authority or directory), host, days)
    )
    store.write_identity(directory, identity, force=force)
    _echo_made(directory / store.HOST_CERTIFICATE, identity.certificate)


def _find_authority(directory: Path) -> authorities.Authority:
    try:
        return store.read_authority(directory)
    except NotThere as error:
        raise NotThere(
            f"no authority in {directory}: {error.sentence}",
            remedy="make one with `ldm-certs init-ca`, name its folder with --authority, or give "
            "--self-signed",
        ) from error


@main.command()
@click.argument("file", type=_PATH)
@directory_option
@click.option("--fingerprint", "expected", help="Refuse unless the SHA-256 fingerprint is this.")
@force_option
@_reporting
def trust(file: Path, directory: Path, expected: str | None, force: bool) -> None:
    """Pin another host's certificate: copies host.crt of a peer to peers/NAME.crt."""
    if store.has_private_key(file):
        raise CertificateError(
            f"{file} holds a private key",
            remedy="copy only host.crt of the other host; a key that left its host is to be "
            "replaced there with `ldm-certs issue NAME --force`",
        )
    certificates = store.read_certificates(file)
    if len(certificates) != 1:
        raise CertificateError(
            f"{file} holds {len(certificates)} certificates", remedy="name a file with one"
        )
    status = examine(certificates[0])
    if status.kind == "authority":
        raise CertificateError(
            f"{file} is an authority's certificate",
            remedy="to trust all that it signs, name it in the configuration as authority",
        )
    if status.faults or status.host is None:
        raise CertificateError(
            f"{file} is not a usable host certificate: {'; '.join(status.faults)}",
            remedy="make one on that host with `ldm-certs issue NAME --self-signed`",
        )
    if expected is not None and _digits(expected) != _digits(status.fingerprint):
        raise CertificateError(
            f"{file} has another fingerprint: {status.fingerprint}",
            remedy="do not trust it before you have found out whose it is",
        )
    path = store.write_peer(directory, status.host, certificates[0], force=force)
    click.echo(f"{path}: {status.host} is trusted with this certificate alone")
    click.echo(f"SHA-256 {status.fingerprint}")
    if expected is None:
        click.echo(f"compare with `ldm-certs show` on {status.host}")


def _digits(text: str) -> str:
    return text.replace(":", "").replace(" ", "").upper()


@main.command()
@click.argument("path", type=_PATH, default=store.DEFAULT_DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_reporting
def show(path: Path, as_json: bool) -> None:
    """Look at a certificate, or at all of a folder; exit status 1 when something is wrong."""
    found = _examine_directory(path) if path.is_dir() else _examine_file(path, ())
    if not found:
        raise NotThere(
            f"no certificate in {path}", remedy="`ldm-certs issue NAME` makes this host's"
        )
    if as_json:
        documents = [{"file": str(file), **status.to_document()} for file, status in found]
        click.echo(json.dumps(documents, indent=2))
    else:
        for file, status in found:
            _echo_status(file, status)
    if any(status.faults for _, status in found):
        sys.exit(1)


Found = list[tuple[Path, CertificateStatus]]


def _examine_file(
    file: Path, signers: tuple[x509.Certificate, ...], key: ec.EllipticCurvePrivateKey | None = None
) -> Found:
    certificates = store.read_certificates(file)
    return [
        (file, examine(certificate, authorities=signers, key=key)) for certificate in certificates
    ]


def _examine_directory(directory: Path) -> Found:
    authority, host = directory / store.AUTHORITY_CERTIFICATE, directory / store.HOST_CERTIFICATE
    found: Found = []
    signers: tuple[x509.Certificate, ...] = ()
    if authority.exists():
        signers = tuple(store.read_certificates(authority))
        found += _examine_file(authority, ())
    if host.exists():
        key_path = directory / store.HOST_KEY
        key = store.read_key(key_path) if key_path.exists() else None
        found += _examine_file(host, signers, key)
    for peer in sorted((directory / store.PEERS).glob("*.crt")):
        found += _examine_file(peer, ())
    return found


def _echo_made(path: Path, certificate: x509.Certificate) -> None:
    click.echo(f"{path}: valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"SHA-256 {fingerprint(certificate)}")


def _echo_status(file: Path, status: CertificateStatus) -> None:
    click.echo(f"{file}")
    for label, value in (
        ("kind", status.kind),
        ("host", status.host or "-"),
        ("subject", status.subject),
        ("issuer", status.issuer),
        ("SHA-256", status.fingerprint),
        ("valid from", f"{status.not_before:%Y-%m-%d %H:%M} UTC"),
        ("valid until", f"{status.not_after:%Y-%m-%d %H:%M} UTC, {status.days_left} days left"),
    ):
        click.echo(f"  {label:<12}{value}")
    for word, texts in (("wrong", status.faults), ("note", status.warnings)):
        for text in texts:
            click.echo(f"  {word:<12}{text}")
