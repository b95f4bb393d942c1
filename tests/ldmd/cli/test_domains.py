"""Verbs on domains, and how failures are told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ldmd.cli import main, output
from tests.ldmd.cli.conftest import Run
from tests.ldmd.cli.manager import OPERATION, SmallHost

DEFINITION = 'name = "ldg1"\nhypervisor = "emulated"\nmachine = "riscv64-virt"\nmemory = "64MiB"\n'


def test_a_domains_life(ldm: Run, host: SmallHost, tmp_path: Path) -> None:
    file = tmp_path / "ldg1.toml"
    file.write_text(DEFINITION)
    added = ldm("add-domain", "-i", str(file))
    assert added.exit_code == 0
    assert re.fullmatch(r"ldg1 added, uuid [0-9a-f-]{36}\n", added.stdout)
    for word, done, state in [
        ("bind", "bound", "bound"),
        ("start", "started", "active"),
        ("suspend", "suspended", "active"),
        ("resume", "resumed", "active"),
        ("stop", "stopped", "bound"),
        ("unbind", "inactive", "inactive"),
        ("rm-dom", "removed", "removed"),
    ]:
        result = ldm(word, "ldg1")
        assert (result.exit_code, result.stdout) == (0, f"ldg1 {done}\n")
        assert host.states["ldg1"] == state


def test_a_definition_from_stdin(ldm: Run, host: SmallHost) -> None:
    result = ldm("add-dom", "--json", "-i", "-", stdin=DEFINITION)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"name": "ldg1", "uuid": host.definitions["ldg1"].uuid}


@pytest.mark.parametrize("text", ["name =", 'name = "a"\n', DEFINITION + "colour = 1\n"])
def test_a_definition_that_is_none(ldm: Run, host: SmallHost, text: str) -> None:
    result = ldm("add-domain", "-i", "-", stdin=text)
    assert result.exit_code == 65
    assert result.stderr.startswith("ldm: the definition is not ")
    assert not host.definitions


def test_several_domains_until_one_fails(ldm: Run, host: SmallHost) -> None:
    for name, state in (("a", "bound"), ("b", "inactive"), ("c", "bound")):
        host.add(name, state)
    result = ldm("start", "a", "b", "c")
    assert result.exit_code == 5
    assert result.stdout == "a started\n"
    assert result.stderr == "ldm: b is inactive\n     it must be bound\n"
    assert host.states == {"a": "active", "b": "inactive", "c": "bound"}


def test_no_manager(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["list"], env={"LDM_SOCKET": str(tmp_path / "none.sock")})
    assert result.exit_code == 69
    assert "no manager answers on" in result.stderr
    assert "systemctl start ldmd" in result.stderr
    assert not result.stdout


def test_a_word_that_is_no_verb(ldm: Run) -> None:
    assert ldm("fly").exit_code == 2
    ambiguous = ldm("li")
    assert ambiguous.exit_code == 2
    assert "can mean list-domain, list-migrations" in ambiguous.stderr


def test_list(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1", vcpus=2)
    host.add("b-longer-name", "inactive")
    host.operations["ldg1"] = dict(OPERATION)
    assert ldm("list").stdout == (
        "NAME           STATE     RUN      VCPU  MEMORY  HYPERVISOR  OPERATION\n"
        "b-longer-name  inactive  -           1   64MiB  emulated    -\n"
        "ldg1           active    running     2   64MiB  emulated    to host-b: transfer\n"
    )
    assert ldm("ls", "ldg1").stdout.count("\n") == 2
    missing = ldm("ls", "ldg9")
    assert (missing.exit_code, missing.stdout) == (4, "")


def test_list_parseable(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1")
    version, line = ldm("list", "-p").stdout.splitlines()
    assert version == "VERSION 1.0"
    kind, *pairs = line.split("|")
    assert kind == "DOMAIN"
    values = dict(pair.split("=", 1) for pair in pairs)
    assert values["name"] == "ldg1"
    assert values["state"] == "active"
    assert values["mem"] == str(64 * 2**20)
    assert values["cons"] == "/run/a%7Cb/console.log"  # a separator in a value is not one
    host.operations["ldg1"] = dict(OPERATION)
    assert ldm("list", "-p", "-o", "status").stdout.splitlines()[1:] == [
        "DOMAIN|name=ldg1",
        "STATUS|op=migration|role=source|peer=host-b|phase=transfer|progress=62|rate=231211008"
        "|in-doubt=no|migration=0123456789abcdef0123456789abcdef",
    ]


def test_list_status(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1")
    assert ldm("list", "-o", "status").stdout == "no operation is under way\n"
    host.operations["ldg1"] = OPERATION | {"in_doubt": True, "sentence": "host-b is silent"}
    assert ldm("list", "-o", "status").stdout == (
        "NAME  OPERATION  ROLE    PEER    PHASE     DONE         RATE  LEFT\n"
        "ldg1  migration  source  host-b  transfer  62 %  220.5 MiB/s  0:00\n"
        "\n"
        "ldg1 is in doubt: host-b is silent\n"
    )


def test_list_long_and_json(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1", variables=(("auto-boot?", "true"),))
    long = ldm("list", "-l").stdout
    assert "  variable auto-boot?  true\n" in long
    assert "  firmware             default\n" in long
    listing = json.loads(ldm("list", "--json").stdout)
    assert listing["host"] == "host-a"
    assert [domain["name"] for domain in listing["domains"]] == ["ldg1"]
    assert "definition" not in listing["domains"][0]
    full = json.loads(ldm("list", "-l", "--json").stdout)
    assert full["domains"][0]["definition"]["variables"] == {"auto-boot?": "true"}


def test_migrations_and_status(ldm: Run) -> None:
    header, line = ldm("list-migrations").stdout.splitlines()
    assert header.split()[:6] == ["DOMAIN", "MIGRATION", "ROLE", "PEER", "DECISION", "SETTLED"]
    assert line.split()[:6] == ["ldg1", "0123456789ab", "source", "host-b", "moved", "yes"]
    shown = ldm("show-migration", "0123").stdout
    assert shown.index("PREPARING") < shown.index("GRANTED") < shown.index("COMPLETED")
    assert ldm("show-migration", "ff").exit_code == 4
    assert len(json.loads(ldm("show-migration", "0123", "--json").stdout)["records"]) == 4
    status = ldm("status").stdout
    assert status.startswith("host-a  ldmd 0.1.0\n")
    assert "6.0 GiB of 8.0 GiB free" in status
    assert "host-b  10.0.0.2:8101  yes       no" in status
    assert json.loads(ldm("status", "--json").stdout)["port"] == 8101


def test_tables_fit_eighty_columns(
    ldm: Run, host: SmallHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add("a" * 63)
    host.operations["a" * 63] = dict(OPERATION)
    wide = ldm("list").stdout
    assert "a" * 63 in wide  # a pipe gets all of it
    monkeypatch.setattr(output, "find_room", lambda: 80)
    for words in (["list"], ["list", "-o", "status"], ["list-migrations"]):
        lines = ldm(*words).stdout.splitlines()
        assert lines
        assert all(len(line) <= 80 for line in lines)
    assert "…" in ldm("list").stdout


def test_so_many_migrations_and_all_of_them(ldm: Run, host: SmallHost) -> None:
    host.migrations = 1101
    few = ldm("list-migrations", "-n", "3")
    assert len(few.stdout.splitlines()) == 1 + 3
    assert "--all shows them" in few.stderr
    assert len(ldm("list-migrations").stdout.splitlines()) == 1 + 100
    every = ldm("list-migrations", "--all")
    assert len(every.stdout.splitlines()) == 1 + 1101
    assert every.stderr == ""
    shown = json.loads(ldm("list-migrations", "--json", "-n", "2").stdout)
    assert (len(shown["migrations"]), shown["more"]) == (2, True)
