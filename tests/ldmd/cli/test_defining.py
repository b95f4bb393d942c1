"""Verbs that change definitions, and the definitions that are printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldmd.cli import main, output
from ldmd.cli.keywords import DOMAIN_KEYS
from ldmd.definition import VirtualDisk, VirtualNetwork, from_toml
from ldmd.edits import SETTABLE
from tests.ldmd.cli.conftest import Run
from tests.ldmd.cli.manager import SmallHost

DISK = VirtualDisk(name="d0", volume="v0", service="vds0")
NET = VirtualNetwork(name="n0", switch="vsw0", mac="52:54:00:00:00:01")


def test_what_set_domain_takes_is_what_can_be_set() -> None:
    said = set(DOMAIN_KEYS) - {"memory"} | {"memory-bytes"}
    assert said == set(SETTABLE)
    help_text = main.commands["set-domain"].help or ""
    assert [key for key in DOMAIN_KEYS if f"{key}=" not in help_text] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["set-domain", "vcpus=4", "mig-allowed=no", "ldg1"],
            ["vcpus 2 -> 4", "mig-allowed yes -> no"],
        ),
        (["modify", "cpu-arch=native", "ldg1"], ["cpu-arch generic -> native"]),
        (
            ["set-dom", "optional-devices=rng,crypto", "ldg1"],
            ["optional-devices none -> rng, crypto"],
        ),
        (["set-vcpu", "8", "ldg1"], ["vcpus 2 -> 8"]),
        (["add-vcpu", "1", "ldg1"], ["vcpus 2 -> 3"]),
        (["rm-vcpu", "1", "ldg1"], ["vcpus 2 -> 1"]),
        (["set-mem", "1g", "ldg1"], ["memory 64MiB -> 1GiB"]),
        (["add-memory", "64MiB", "ldg1"], ["memory 64MiB -> 128MiB"]),
        (["rm-mem", "32M", "ldg1"], ["memory 64MiB -> 32MiB"]),
        (
            ["add-vdisk", "read-only=yes", "mpgroup=g", "d1", "v1@vds0", "ldg1"],
            ["vdisk d1 added: v1@vds0, cache none, read-only, mpgroup g"],
        ),
        (
            ["set-vdisk", "volume=v2@vds1", "cache=directsync", "d0", "ldg1"],
            ["vdisk d0 v0@vds0, cache none -> v2@vds1, cache directsync"],
        ),
        (["rm-vdisk", "d0", "ldg1"], ["vdisk d0 removed"]),
        (
            ["add-vnet", "mac-addr=52:54:00:00:00:02", "mtu=9000", "n1", "vsw1", "ldg1"],
            ["vnet n1 added: vsw1, 52:54:00:00:00:02, mtu 9000"],
        ),
        (
            ["set-vnet", "vswitch=vsw2", "n0", "ldg1"],
            ["vnet n0 vsw0, 52:54:00:00:00:01, mtu 1500 -> vsw2, 52:54:00:00:00:01, mtu 1500"],
        ),
        (["remove-vnet", "n0", "ldg1"], ["vnet n0 removed"]),
        (["add-var", "b=x=y z", "ldg1"], ["variable b added: x=y z"]),
        (["set-variable", "a=2", "c=", "ldg1"], ["variable a 1 -> 2", "variable c added: "]),
        (["rm-var", "a", "ldg1"], ["variable a removed"]),
        (["set-vcpu", "2", "ldg1"], ["nothing changes"]),
    ],
)
def test_each_verb_says_what_it_changed(
    words: list[str], said: list[str], ldm: Run, host: SmallHost
) -> None:
    host.add("ldg1", "bound", vcpus=2, vdisks=(DISK,), vnets=(NET,), variables=(("a", "1"),))
    before = host.definitions["ldg1"]
    result = ldm(*words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "".join(f"ldg1: {line}\n" for line in said)
    assert (host.definitions["ldg1"] == before) == (said == ["nothing changes"])


def test_of_an_active_domain_it_is_delayed_and_can_be_taken_back(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1", vcpus=2)
    assert ldm("set-domain", "vcpus=4", "mig-allowed=no", "ldg1").stdout == (
        "ldg1: vcpus 2 -> 4 (delayed)\n"
        "ldg1: mig-allowed yes -> no\n"
        "  delayed: made when ldg1 has been stopped\n"
        "  `ldm cancel-reconf ldg1` takes it back until then\n"
    )
    assert "64MiB  emulated    delayed reconf\n" in ldm("list").stdout
    assert "|reconf-pending=yes" in ldm("list", "-p").stdout
    long = ldm("list", "-l").stdout
    assert "  vcpus             2\n" in long
    assert "  delayed vcpus     2 -> 4\n" in long
    listed = json.loads(ldm("list", "--json", "-l").stdout)["domains"][0]
    assert listed["reconfiguration_pending"] is True
    assert (listed["definition"]["vcpus"], listed["pending"]["vcpus"]) == (2, 4)
    answer = json.loads(ldm("set-vcpu", "--json", "6", "ldg1").stdout)
    assert answer["changes"] == [{"what": "vcpus", "before": "4", "after": "6"}]
    assert answer["pending"] == [{"what": "vcpus", "before": "2", "after": "6"}]
    assert ldm("cancel-reconf", "ldg1").stdout == "ldg1: taken back: vcpus 2 -> 6\n"
    again = ldm("cancel-op", "reconf", "ldg1")
    assert (again.exit_code, again.stderr) == (
        5,
        "ldm: ldg1 has no delayed reconfiguration pending\n",
    )
    assert "|reconf-pending=no" in ldm("list", "-p").stdout
    assert host.definitions["ldg1"].vcpus == 2


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["set-domain", "vcpu=4", "ldg1"], 65, "unknown key vcpu (is it vcpus?)"),
        (["set-domain", "vcpus=4", "vcpus=5", "ldg1"], 65, "vcpus is there twice"),
        (["set-domain", "vcpus", "ldg1"], 65, "'vcpus' is not KEY=VALUE"),
        (
            ["set-domain", "mig-allowed=maybe", "memory=much", "ldg1"],
            65,
            "mig-allowed: 'maybe' is neither yes nor no; memory: 'much' is not a size",
        ),
        (["set-domain", "ldg1"], 2, "say KEY=VALUE... DOMAIN"),
        (["set-vcpu", "few", "ldg1"], 65, "'few' is not a whole number"),
        (["set-vcpu", "0", "ldg1"], 65, "vcpus: 0 is not a whole number from 1"),
        (["add-vcpu", "0", "ldg1"], 64, "must be a whole number above 0"),
        (["rm-mem", "1G", "ldg1"], 65, "ldg1 has 64MiB: 1GiB cannot be taken from it"),
        (["set-mem", "1Q", "ldg1"], 65, "'1Q' is not a size"),
        (["add-vdisk", "d1", "v1", "ldg1"], 65, "'v1' is not VOLUME@SERVICE"),
        (["add-vdisk", "colour=red", "d1", "v1@s", "ldg1"], 65, "unknown key colour"),
        (["add-vdisk", "d1", "v1@s"], 2, "Missing argument"),
        (["set-vdisk", "volume=v", "d0", "ldg1"], 65, "volume: 'v' is not VOLUME@SERVICE"),
        (["rm-vdisk", "d9", "ldg1"], 4, "ldg1 has no vdisk d9"),
        (["set-variable", "a", "ldg1"], 65, "'a' is not KEY=VALUE"),
        (["add-variable", "a=2", "ldg1"], 65, "ldg1 has the variable a already"),
        (["set-vcpu", "1", "ldg9"], 4, "there is no domain ldg9"),
        (["add", "ldg1"], 2, "can mean"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], status: int, said: str, ldm: Run, host: SmallHost
) -> None:
    host.add("ldg1", "bound", variables=(("a", "1"),))
    before = host.definitions["ldg1"]
    result = ldm(*words)
    assert (result.exit_code, result.stdout) == (status, "")
    assert said in result.stderr
    assert host.definitions["ldg1"] == before


def test_another_name(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1", "bound")
    assert ldm("rename-domain", "ldg1", "ldg2").stdout == "ldg2: name ldg1 -> ldg2\n"
    assert host.definitions["ldg2"].name == "ldg2"


# ---- without a file, and with one ------------------------------------------------------------------------


def test_a_domain_without_a_file(ldm: Run, host: SmallHost) -> None:
    words = ["hypervisor=qemu", "machine=pc", "memory=2g", "vcpus=2", "mig-allowed=no"]
    assert ldm("create", *words, "ldg1").exit_code == 0
    made = host.definitions["ldg1"]
    assert (made.memory_bytes, made.vcpus, made.mig_allowed) == (2 * 2**30, 2, False)
    for wrong, status, said in (
        (["create", "ldg2"], 65, "the key machine is missing"),
        (["create"], 2, "say -i FILE, or KEY=VALUE... DOMAIN"),
        (["create", "-i", "-", "ldg2"], 2, "say -i FILE, or KEY=VALUE... DOMAIN"),
        (["create", *words, "uuid=1", "ldg2"], 65, "uuid: '1' is not a UUID"),
    ):
        result = ldm(*wrong, stdin="")
        assert (result.exit_code, list(host.definitions)) == (status, ["ldg1"])
        assert said in result.stderr


def test_what_is_printed_is_taken_back(ldm: Run, host: SmallHost, tmp_path: Path) -> None:
    host.add(
        "ldg1", "bound", vdisks=(DISK,), vnets=(NET,), variables=(("a", "1"),), mig_allowed=False
    )
    before = host.definitions["ldg1"]
    written = ldm("list-constraints", "ldg1").stdout
    assert written.startswith('version = 1\nname = "ldg1"\n')
    unchanged = ldm("set-domain", "-i", "-", stdin=written)
    assert (unchanged.exit_code, unchanged.stdout) == (0, "ldg1: nothing changes\n")
    del host.definitions["ldg1"], host.states["ldg1"]
    assert ldm("add-domain", "-i", "-", stdin=written).exit_code == 0
    assert host.definitions["ldg1"] == before
    file = tmp_path / "ldg1.toml"
    file.write_text(
        written.replace('memory = "64MiB"', 'memory = "2GiB"').replace("uuid", "# uuid")
    )
    assert ldm("set-domain", "-i", str(file)).stdout == "ldg1: memory 64MiB -> 2GiB\n"
    assert host.definitions["ldg1"].uuid == before.uuid
    assert ldm("set-domain", "-i", str(file), "ldg1").exit_code == 2
    broken = ldm("set-domain", "-i", "-", stdin="name = 5\n")
    assert (broken.exit_code, broken.stdout) == (65, "")


def test_several_definitions_and_what_is_pending(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1", vcpus=2)
    host.add("ldg2", "bound")
    ldm("set-vcpu", "4", "ldg1")
    first, second = ldm("list-constraints").stdout.split("\n\n")
    assert first.startswith(
        "# until ldg1 is stopped; then: `ldm list-constraints --pending ldg1`\nversion = 1\n"
    )
    assert from_toml(first) == host.definitions["ldg1"]
    assert from_toml(second) == host.definitions["ldg2"]
    shall_be = ldm("list-constraints", "--pending", "ldg1").stdout
    assert shall_be.startswith("# as it is when ldg1 has been stopped\n")
    assert from_toml(shall_be) == host.pending["ldg1"]
    for words in (["-o", "json"], ["--json"]):
        found = json.loads(ldm("list-constraints", *words).stdout)["domains"]
        assert [d["definition"]["name"] for d in found] == ["ldg1", "ldg2"]
        assert [d["pending"] and d["pending"]["vcpus"] for d in found] == [4, None]
    assert ldm("list-constraints", "ldg9").exit_code == 4


def test_definitions_for_programs(ldm: Run, host: SmallHost) -> None:
    host.add("ldg1", vdisks=(DISK,), vnets=(NET,), variables=(("a", "1|2"),))
    assert ldm("ls-constraints", "-p").stdout.splitlines() == [
        "VERSION 1.0",
        "DOMAIN|name=ldg1|uuid=11111111-2222-3333-4444-555555555555|hypervisor=emulated"
        "|machine=riscv64-virt|firmware=default|mig-allowed=yes|optional-devices=",
        "VCPU|count=1|cpu-arch=generic",
        f"MEMORY|size={64 * 2**20}|huge-pages=none",
        "VARIABLES|a=1%7C2",
        "VDISK|name=d0|vol=v0@vds0|read-only=no|cache=none|mpgroup=",
        "VNET|name=n0|service=vsw0|mac-addr=52:54:00:00:00:01|mtu=1500",
    ]


def test_all_of_a_definition_is_shown(
    ldm: Run, host: SmallHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add(
        "ldg1", "bound", vdisks=(DISK,), vnets=(NET,), optional_devices=("rng",), cpu_arch="native"
    )
    monkeypatch.setattr(output, "find_room", lambda: 80)
    lines = ldm("list", "-l").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    shown = {" ".join(line.split()) for line in lines}
    for wanted in (
        "cpu-arch native",
        "memory 64MiB",
        "huge-pages none",
        "mig-allowed yes",
        "optional-devices rng",
        "vdisk d0 v0@vds0, cache none",
        "vnet n0 vsw0, 52:54:00:00:00:01, mtu 1500",
        "firmware default",
    ):
        assert wanted in shown


def test_every_help_fits_eighty_columns(ldm: Run) -> None:
    for verb in main.commands:
        text = ldm(verb, "--help").stdout
        assert all(len(line) <= 80 for line in text.splitlines()), verb
