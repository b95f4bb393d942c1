"""Files: whole or not at all, and nobody else's eyes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.authority import create_authority
from certs.errors import AlreadyThere, CertificateError, NotThere
from certs.issue import issue_host, self_signed_host
from certs.store import (
    has_private_key,
    read_authority,
    read_certificates,
    read_key,
    write_authority,
    write_file,
    write_identity,
    write_peer,
)


@pytest.fixture(params=[0o000, 0o077], ids=["open umask", "tight umask"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_umask")
def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    authority = create_authority()
    identity = issue_host(authority, "host-a")
    write_authority(tmp_path, authority)
    write_identity(tmp_path, identity)
    again = read_authority(tmp_path)
    assert again.certificate == authority.certificate
    assert again.key.private_numbers() == authority.key.private_numbers()
    assert read_certificates(tmp_path / "host.crt") == [identity.certificate]
    assert read_key(tmp_path / "host.key").private_numbers() == identity.key.private_numbers()
    modes = {path.name: _mode(path) for path in tmp_path.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "host.crt": 0o644, "host.key": 0o600}


def test_nothing_is_overwritten_unless_forced(tmp_path: Path) -> None:
    authority = create_authority()
    write_authority(tmp_path, authority)
    write_identity(tmp_path, issue_host(authority, "host-a"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(AlreadyThere, match=r"ca\.key"):
        write_authority(tmp_path, create_authority())
    with pytest.raises(AlreadyThere, match=r"host\.key"):
        write_identity(tmp_path, issue_host(authority, "host-a"))
    (tmp_path / "host.crt").unlink()
    with pytest.raises(AlreadyThere, match=r"host\.key"):
        write_identity(tmp_path, issue_host(authority, "host-a"))
    del before[tmp_path / "host.crt"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    renewed = issue_host(authority, "host-a")
    write_identity(tmp_path, renewed, force=True)
    assert read_certificates(tmp_path / "host.crt") == [renewed.certificate]
    assert read_key(tmp_path / "host.key").public_key() == renewed.key.public_key()


def test_another_authority_is_not_replaced_in_passing(tmp_path: Path) -> None:
    write_identity(tmp_path, issue_host(create_authority(), "host-a"))
    with pytest.raises(CertificateError, match="another authority"):
        write_identity(tmp_path, issue_host(create_authority(), "host-a"), force=True)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "inside").write_bytes(b"")
    with pytest.raises(CertificateError, match="folder"):
        write_file(target, b"new", 0o600)  # a file cannot be renamed onto a folder
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    place = tmp_path / "host.key"
    place.symlink_to(outside)
    with pytest.raises(AlreadyThere):
        write_identity(tmp_path, self_signed_host("host-a"))
    write_identity(tmp_path, self_signed_host("host-a"), force=True)
    assert outside.read_bytes() == b"precious"
    assert not place.is_symlink()


def test_key_and_certificate_that_do_not_belong_together(tmp_path: Path) -> None:
    write_authority(tmp_path / "a", create_authority())
    write_authority(tmp_path / "b", create_authority())
    (tmp_path / "a/ca.key").write_bytes((tmp_path / "b/ca.key").read_bytes())
    with pytest.raises(CertificateError, match="do not belong together"):
        read_authority(tmp_path / "a")


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\n", b"\0" * 99]
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CertificateError, match="no certificate"):
        read_certificates(path)
    with pytest.raises(CertificateError, match="no usable key"):
        read_key(path)


def test_files_that_are_not_there_or_endless(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="missing"):
        read_certificates(tmp_path / "missing")
    with pytest.raises(CertificateError, match="too large"):
        read_certificates(Path("/dev/zero"))


def test_peers(tmp_path: Path) -> None:
    first, second = self_signed_host("host-b"), self_signed_host("host-b")
    path = write_peer(tmp_path, "host-b", first.certificate)
    assert path == tmp_path / "peers" / "host-b.crt"
    assert _mode(path) == 0o644
    assert not has_private_key(path)
    assert write_peer(tmp_path, "host-b", first.certificate) == path
    with pytest.raises(AlreadyThere):
        write_peer(tmp_path, "host-b", second.certificate)
    write_peer(tmp_path, "host-b", second.certificate, force=True)
    assert read_certificates(path) == [second.certificate]
