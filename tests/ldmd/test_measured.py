"""What the host says of itself, from files as the kernel writes them, and from real ones."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from certs.authority import create_authority
from certs.issue import issue_host
from certs.store import write_identity
from ldmd import measured
from ldmd.measured import HugePages, measure
from protocol.limits import GIB, MIB
from tests.ldmd.host import configure

FOLDER = "hugepages-2048kB"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /proc and /sys."""
    for name in ("MEMINFO", "HUGE_PAGES", "NODES"):
        monkeypatch.setattr(measured, name, tmp_path / name.lower())
    return tmp_path


def write_pages(root: Path, free: int, reserved: int, nodes: list[int]) -> None:
    folder = root / "huge_pages" / FOLDER
    folder.mkdir(parents=True)
    (folder / "free_hugepages").write_text(f"{free}\n")
    (folder / "resv_hugepages").write_text(f"{reserved}\n")
    for number, count in enumerate(nodes):
        node = root / "nodes" / f"node{number}" / "hugepages" / FOLDER
        node.mkdir(parents=True)
        (node / "free_hugepages").write_text(f"{count}\n")


@pytest.mark.parametrize(
    ("free", "reserved", "nodes", "free_pages", "largest"),
    [
        (10, 0, [4, 6], 10, 6),
        (10, 5, [4, 6], 5, 5),  # those that are reserved may be taken of either node
        (10, 10, [10], 0, 0),
        (3, 4, [3], 0, 0),
        (7, 1, [], 6, 6),  # a kernel without NUMA
    ],
)
def test_huge_pages(
    kernel: Path, free: int, reserved: int, nodes: list[int], free_pages: int, largest: int
) -> None:
    write_pages(kernel, free, reserved, nodes)
    assert measured.read_huge_pages(2 * MIB) == HugePages(
        free_bytes=free_pages * 2 * MIB, largest_node_bytes=largest * 2 * MIB
    )
    assert measured.read_huge_pages(GIB) is None


def test_huge_pages_that_cannot_be_read_are_not_there(kernel: Path) -> None:
    write_pages(kernel, 1, 0, [1])
    (kernel / "huge_pages" / FOLDER / "free_hugepages").write_text("many\n")
    assert measured.read_huge_pages(2 * MIB) is None


def test_memory_available(kernel: Path) -> None:
    assert measured.read_memory_available() is None
    (kernel / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:   1024 kB\nBuffers:  1 kB\n")
    assert measured.read_memory_available() == MIB
    (kernel / "meminfo").write_text("MemTotal:  9 kB\n")
    assert measured.read_memory_available() is None


def test_this_host(tmp_path: Path) -> None:
    write_identity(tmp_path / "tls", issue_host(create_authority("test"), "host-a", days=2))
    settings = configure(
        tmp_path,
        identity={"certificate": "tls/host.crt", "key": "tls/host.key"},
        vsw={"vsw0": {"bridge": "ldm-no-such-br"}, "lo": {"bridge": "lo"}},
    )
    (tmp_path / "state").mkdir()
    found = measure(settings)
    assert found.memory_available_bytes is not None
    assert found.memory_available_bytes > MIB
    assert {name: switch.mtu for name, switch in found.switches.items()} == {
        "vsw0": None,
        "lo": None,  # an interface, and no bridge
    }
    free = found.disk_free_bytes
    assert (free[str(tmp_path / "state")] or 0) > MIB
    assert free[str(tmp_path / "run")] is None
    assert abs(found.time_unix_ms / 1000 - time.time()) < 60
    assert found.certificate_until_unix_ms is not None
    left = found.certificate_until_unix_ms / 1000 - time.time()
    assert (
        datetime.timedelta(days=1) < datetime.timedelta(seconds=left) < datetime.timedelta(days=3)
    )


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nx"])
def test_no_certificate(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "host.crt").write_bytes(content)
    assert measured.read_certificate_until(tmp_path / "host.crt") is None
    assert measured.read_certificate_until(tmp_path / "missing") is None


SCENE = """
import json, subprocess
from ldmd.config import SwitchSettings
from ldmd.hypervisor.qemu_tap import open_tap
from ldmd.measured import measure_switches
for words in ("link add br0 type bridge", "link set br0 mtu 9000", "link add br1 type bridge"):
    subprocess.run(["ip", *words.split()], check=True)
switches = {
    "jumbo": SwitchSettings(bridge="br0", mtu=9000),
    "modest": SwitchSettings(bridge="br0", mtu=1500),
    "boast": SwitchSettings(bridge="br1", mtu=9000),
    "no-bridge": SwitchSettings(bridge="lo"),
    "nothing": SwitchSettings(bridge="br9"),
}
before = {name: switch.mtu for name, switch in measure_switches(switches).items()}
tap = open_tap("br0")
after = {name: switch.mtu for name, switch in measure_switches(switches).items()}
print(json.dumps([before, after]))
"""


@pytest.mark.bridges
def test_bridges_in_a_namespace_of_their_own() -> None:
    """A tap that joins takes the bridge's MTU; with another one it would change the bridge's."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", SCENE], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    before, after = json.loads(done.stdout)
    assert before == {
        "jumbo": 9000,
        "modest": 1500,
        "boast": 1500,
        "no-bridge": None,
        "nothing": None,
    }
    assert after == before
