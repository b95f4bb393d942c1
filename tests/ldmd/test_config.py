"""The configuration file: what is read, and how each fault is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldmd import config
from ldmd.config_rules import address
from ldmd.errors import ConfigurationError
from ldmd.link.identity import Peer

WHOLE = """
[host]
name = "host-a"
state-directory = "state"
run-directory = "/run/other"
control-group = "ldm"

[listen]
address = "::"
port = 0

[identity]
certificate = "tls/host.crt"
key = "../host.key"
authorities = ["tls/ca.crt", "/etc/old.crt"]

[peers.host-b]
address = "host-b.example:9101"
may-send = false

[peers.host-c]
address = "fd00::3"
certificate = "tls/peers/host-c.crt"

[peers.host-d]
may-receive = false

[resources]
memory = "8GiB"
vcpus = 4
domains-max = 12
incoming-max = 0

[vds.primary]
ldg1-root = "/dev/vg0/ldg1"
ldg2-root = "images/ldg2.img"

[vsw.net0]
bridge = "br0"

[vsw.net1]
bridge = "br1"
mtu = 9000

[hypervisors]
enabled = ["qemu"]
[hypervisors.qemu]
accelerator = "tcg"

[migration]
connect-seconds = 3
settle-retry-seconds-max = 1.5

[log]
level = "debug"
"""

MINIMAL = '[host]\nname = "host-a"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "ldmd.toml"
    path.write_text(text)
    return path


def faults_of(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(ConfigurationError) as caught:
        config.load(path)
    lines = caught.value.sentence.splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_every_key_is_read(tmp_path: Path) -> None:
    read = config.load(write(tmp_path, WHOLE))
    assert read.path == tmp_path / "ldmd.toml"
    assert read.host == config.HostSettings(
        name="host-a",
        state_directory=tmp_path / "state",
        run_directory=Path("/run/other"),
        control_socket=Path("/run/other/control.sock"),
        control_group="ldm",
    )
    assert (read.listen.address, read.listen.port) == ("::", 0)
    assert read.identity.certificate == tmp_path / "tls/host.crt"
    assert read.identity.key == tmp_path.parent / "host.key"
    assert read.identity.authorities == (tmp_path / "tls/ca.crt", Path("/etc/old.crt"))
    assert read.peers == {
        "host-b": Peer(name="host-b", address=("host-b.example", 9101), may_send=False),
        "host-c": Peer(
            name="host-c",
            address=("fd00::3", 8101),
            certificate=tmp_path / "tls/peers/host-c.crt",
        ),
        "host-d": Peer(name="host-d", may_receive=False),
    }
    assert read.resources == config.ResourceSettings(
        memory_bytes=8 * 2**30, vcpus=4, domains_max=12, incoming_max=0
    )
    assert read.vds == {
        "primary": {
            "ldg1-root": Path("/dev/vg0/ldg1"),
            "ldg2-root": tmp_path / "images/ldg2.img",
        }
    }
    assert read.vsw == {
        "net0": config.SwitchSettings(bridge="br0", mtu=1500),
        "net1": config.SwitchSettings(bridge="br1", mtu=9000),
    }
    assert read.hypervisors.enabled == ("qemu",)
    assert read.hypervisors.qemu.accelerator == "tcg"
    assert read.migration == config.MigrationSettings(
        connect_seconds=3.0, settle_retry_seconds_max=1.5
    )
    assert read.log.level == "debug"


def test_only_the_name_is_needed(tmp_path: Path) -> None:
    read = config.load(write(tmp_path, MINIMAL))
    assert read.host.control_socket == Path("/run/ldmd/control.sock")
    assert read.host.control_group is None
    assert read.listen.port == 8101
    assert read.hypervisors.enabled == ("emulated", "qemu")
    assert read.resources.vcpus == len(os.sched_getaffinity(0))
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0.85 * host_bytes < read.resources.memory_bytes <= 0.9 * host_bytes
    assert not read.peers
    assert not read.faults.allowed


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "host: is missing"),
        ("host = 3", "host: 3 is not a table"),
        (MINIMAL + 'run-dir = "x"', "host.run-dir: unknown key; did you mean run-directory?"),
        ('[host]\nname = "Host_A"', "host.name: 'Host_A' is not a host's name"),
        ("[host]\nname = 7", "host.name: 7 is not a host's name"),
        (MINIMAL + 'run-directory = ""', "host.run-directory: '' is not a path"),
        (MINIMAL + 'control-group = "a b"', "host.control-group: 'a b' is not a group's name"),
        (MINIMAL + '[listen]\nport = "8101"', "listen.port: '8101' is not a whole number from 0"),
        (MINIMAL + "[listen]\nport = true", "listen.port: True is not a whole number from 0"),
        (MINIMAL + "[listen]\nport = 65536", "listen.port: 65536 is not a whole number from 0"),
        (MINIMAL + '[listen]\naddress = "x"', "listen.address: 'x' is not an IP address"),
        (
            MINIMAL + '[peers.host-b]\naddress = "b"\nmay-send = "yes"',
            "peers.host-b.may-send: 'yes' is not true or false",
        ),
        (
            MINIMAL + '[peers.host-b]\naddress = "b"\nmay-snd = true',
            "peers.host-b.may-snd: unknown key; did you mean may-send?",
        ),
        (MINIMAL + "[peers]\nhost-b = 1", "peers.host-b: 1 is not a table"),
        (MINIMAL + '[peers.B_]\naddress = "b"', "peers.B_: 'B_' is not a host's name"),
        (MINIMAL + "[peers.host-b]", "peers.host-b.address: needed to send domains there"),
        (MINIMAL + '[peers.host-a]\naddress = "b"', "peers.host-a: is this host itself"),
        (
            MINIMAL + '[identity]\nauthorities = []\n[peers.host-b]\naddress = "b"',
            "peers.host-b.certificate: needed, because identity.authorities is empty",
        ),
        (MINIMAL + '[identity]\nauthorities = "x"', "identity.authorities: 'x' is not a list"),
        (MINIMAL + '[resources]\nmemory = "8 G B"', "resources.memory: '8 G B' is not a size"),
        (MINIMAL + "[resources]\nmemory = 1000", "resources.memory: 1000 is less than 1MiB"),
        (MINIMAL + "[resources]\nvcpus = 0", "resources.vcpus: 0 is not a whole number from 1"),
        (MINIMAL + "[vds]\nprimary = 1", "vds.primary: 1 is not a table"),
        (MINIMAL + "[vds.primary]\nroot = 1", "vds.primary.root: 1 is not a text"),
        (MINIMAL + '[vds.primary]\n"a/b" = "/x"', "vds.primary.a/b: 'a/b' is not a name"),
        (MINIMAL + "[vsw.net0]\nmtu = 1500", "vsw.net0.bridge: is missing"),
        (MINIMAL + '[vsw.net0]\nbridge = "a/b"', "vsw.net0.bridge: 'a/b' is not a network interf"),
        (
            MINIMAL + '[hypervisors]\nenabled = ["xen"]',
            "hypervisors.enabled: 'xen' is not one of emulated, qemu",
        ),
        (MINIMAL + "[hypervisors]\nenabled = []", "hypervisors.enabled: names none"),
        (
            MINIMAL + '[hypervisors]\nenabled = ["qemu", "qemu"]',
            "hypervisors.enabled: 'qemu' is there twice",
        ),
        (
            MINIMAL + '[hypervisors.qemu]\naccelerator = "hvf"',
            "hypervisors.qemu.accelerator: 'hvf' is not one of auto, kvm, tcg",
        ),
        (MINIMAL + "[migration]\nhold-seconds = 0", "migration.hold-seconds: 0 is not a number"),
        (MINIMAL + "[migration]\nhold-seconds = nan", "migration.hold-seconds: nan is not a numb"),
        (MINIMAL + "[migration]\nhold-seconds = true", "migration.hold-seconds: True is not a"),
        (
            MINIMAL + "[migration]\nsettle-retry-seconds-min = 90",
            "migration.settle-retry-seconds-min: is more than settle-retry-seconds-max",
        ),
        (
            MINIMAL + "[listen]\nlinks-per-peer-max = 15",
            "listen.links-per-peer-max: is less than resources.incoming-max",
        ),
        (MINIMAL + '[log]\nlevel = "loud"', "log.level: 'loud' is not one of debug, info, warn"),
        (
            MINIMAL + '[faults]\narmed = ["source.send-state.before=crash"]',
            "faults.armed: needs allowed = true",
        ),
        (MINIMAL + "[colour]\nx = 1", "colour: unknown key; known here: host, listen, identity"),
    ],
)
def test_a_fault_names_its_key_and_what_is_allowed(tmp_path: Path, text: str, fault: str) -> None:
    found = faults_of(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    text = """
    extra = 1
    [host]
    [listen]
    port = -1
    adress = "::"
    [peers.host-b]
    address = "b:port"
    may-receive = 1
    [migration]
    check-seconds = "soon"
    """
    found = faults_of(tmp_path, text)
    keys = sorted(line.partition(":")[0] for line in found)
    assert keys == [
        "extra",
        "host.name",
        "listen.adress",
        "listen.port",
        "migration.check-seconds",
        "peers.host-b.address",
        "peers.host-b.may-receive",
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[host\n", "not TOML: "),
        (b'[host]\nname = "a"\nname = "b"\n', "not TOML: "),
        (b'[host]\nname = "\xff"\n', "byte 15 is not UTF-8"),
    ],
)
def test_what_is_no_toml(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "ldmd.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=sentence):
        config.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file") as caught:
        config.load(tmp_path / "none.toml")
    assert "--config" in caught.value.remedy
    assert caught.value.exit_status == 78


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host-b", ("host-b", 8101)),
        ("host-b.example:9", ("host-b.example", 9)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("::1", ("::1", 8101)),
        ("[::1]", ("::1", 8101)),
        ("[fe80::1%eth0]:9000", ("fe80::1%eth0", 9000)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8101",
        "b:",
        "b:0",
        "b:65536",
        "b:+1",
        "b:²",
        "a b",
        "[::1",
        "[::1]x",
        "[x]:1",
        "b\n:1",
        5,
    ],
)
def test_what_is_no_address(text: object) -> None:
    with pytest.raises(ValueError, match="is not a"):
        address(text)
