"""The command as people and scripts use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import create_authority
from certs.cli import main
from certs.issue import issue_host, self_signed_host
from certs.status import examine
from certs.store import write_identity, write_peer
from tests.certs.test_issue import _long_ago


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _show(path: Path, exit_code: int = 0) -> list[dict[str, Any]]:
    result = _run("show", path, "--json")
    assert result.exit_code == exit_code, result.output
    documents: list[dict[str, Any]] = json.loads(result.stdout)
    return documents


def test_a_fleet(tmp_path: Path) -> None:
    authority, b = tmp_path / "authority", tmp_path / "b"
    assert _run("init-ca", "--directory", authority, "--name", "rack 7").exit_code == 0
    result = _run("issue", "host-b", "--authority", authority, "--directory", b, "--days", 90)
    assert result.exit_code == 0
    assert sorted(path.name for path in b.iterdir()) == ["ca.crt", "host.crt", "host.key"]
    ca, host = _show(b)
    assert (ca["kind"], ca["subject"], ca["host"]) == ("authority", "CN=rack 7", None)
    assert (host["kind"], host["host"], host["issuer"]) == ("host", "host-b", "CN=rack 7")
    assert host["days_left"] == 89
    assert host["faults"] == host["warnings"] == []
    assert host["fingerprint"] in result.stdout
    assert _run("show", b).stdout.count("days left") == 2


def test_two_hosts_that_trust_each_other(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for name, folder in (("host-a", a), ("host-b", b)):
        assert _run("issue", name, "--self-signed", "--directory", folder).exit_code == 0
    mark = _show(b)[0]["fingerprint"]
    result = _run("trust", b / "host.crt", "--directory", a)
    assert result.exit_code == 0
    assert mark in result.stdout
    assert [document["host"] for document in _show(a)] == ["host-a", "host-b"]
    for spelled in (mark, mark.lower().replace(":", "")):
        again = _run("trust", b / "host.crt", "--directory", a, "--fingerprint", spelled)
        assert again.exit_code == 0
    wrong = _run("trust", a / "host.crt", "--directory", b, "--fingerprint", mark)
    assert wrong.exit_code == 65
    assert "another fingerprint" in wrong.stderr
    assert not (b / "peers").exists()


def test_issuing_never_overwrites_unless_forced(tmp_path: Path) -> None:
    assert _run("issue", "a", "--self-signed", "--directory", tmp_path).exit_code == 0
    before = (tmp_path / "host.key").read_bytes()
    again = _run("issue", "a", "--self-signed", "--directory", tmp_path)
    assert again.exit_code == 73
    assert "--force" in again.stderr
    assert (tmp_path / "host.key").read_bytes() == before
    assert _run("issue", "a", "--self-signed", "--directory", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "host.key").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("issue", "a"), 66, "init-ca"),
        (("issue", "No Name", "--self-signed"), 65, "lower-case"),
        (("issue", "a", "--self-signed", "--days", "0"), 65, "0 days"),
        (("issue", "a", "--self-signed", "--authority", "x"), 2, "exclude"),
        (("init-ca", "--days", "99999"), 65, "99999"),
        (("trust", "/nonexistent/host.crt"), 66, "/nonexistent/host.crt"),
    ],
)
def test_wrong_use_says_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...], exit_code: int, words: str
) -> None:
    result = _run(*arguments, "--directory", tmp_path)
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_trusted(tmp_path: Path) -> None:
    write_identity(tmp_path / "f", issue_host(create_authority(), "host-b"))
    write_identity(tmp_path / "old", self_signed_host("host-b", 1, not_before=_long_ago()))
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "f/host.crt").read_bytes() * 2)
    for file, words in (
        (tmp_path / "f/host.key", "private key"),
        (tmp_path / "f/ca.crt", "authority"),
        (tmp_path / "old/host.crt", "ended on"),
        (both, "2 certificates"),
    ):
        result = _run("trust", file, "--directory", tmp_path / "t")
        assert result.exit_code == 65
        assert words in result.stderr
    assert not (tmp_path / "t").exists()


def test_show_finds_what_is_wrong(tmp_path: Path) -> None:
    authority, other = create_authority(), create_authority()
    write_identity(tmp_path, issue_host(authority, "host-a"))
    key = (tmp_path / "host.key").read_bytes()
    foreign = issue_host(other, "host-a", 1, not_before=_long_ago())
    (tmp_path / "ca.crt").unlink()
    write_identity(tmp_path, foreign, force=True)
    write_identity(tmp_path / "x", issue_host(authority, "x"))
    (tmp_path / "ca.crt").write_bytes((tmp_path / "x/ca.crt").read_bytes())
    (tmp_path / "host.key").write_bytes(key)
    faults = _show(tmp_path, exit_code=1)[1]["faults"]
    assert [
        word for word in ("ended on", "not signed by", "key beside") if word in str(faults)
    ] == [
        "ended on",
        "not signed by",
        "key beside",
    ]
    assert "wrong" in _run("show", tmp_path).stdout


def test_show_warns_before_the_end(tmp_path: Path) -> None:
    write_peer(tmp_path, "host-b", self_signed_host("host-b", 10).certificate)
    (document,) = _show(tmp_path)
    assert document["faults"] == []
    assert "9 days" in document["warnings"][0]


def test_show_of_nothing(tmp_path: Path) -> None:
    assert _run("show", tmp_path).exit_code == 66
    assert _run("show", tmp_path / "missing").exit_code == 66


def test_a_forged_self_signature_is_seen() -> None:
    """Its issuer is itself by name alone."""
    real = self_signed_host("host-b")
    mixed = bytearray(real.certificate.public_bytes(Encoding.DER))
    mixed[-1] ^= 1
    assert examine(real.certificate).faults == ()
    assert examine(x509.load_der_x509_certificate(bytes(mixed))).faults == (
        "it is not signed by its own key",
    )
