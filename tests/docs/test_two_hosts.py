"""The README's lines for two real hosts, done as they stand on two: each has a network, processes, an /etc and a disk of
its own.

What stands in for something: a link to the tests' virtual environment for the one that ``pip`` would make, entering the
other host's namespaces for ``ssh`` and ``scp``, and starting the unit's ExecStart for ``systemctl``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).parents[2]
SECONDS = 90.0
ADDRESSES = {"host-a": "10.99.0.1", "host-b": "10.99.0.2"}

OWN_FOLDERS = """set -e
mount -t tmpfs tmpfs {folder}
mkdir {folder}/proc
mount --bind /proc {folder}/proc
mount -t proc proc /proc
for name in etc root var; do
  mkdir {folder}/$name {folder}/$name.work
  mount -t overlay -o lowerdir=/$name,upperdir={folder}/$name,workdir={folder}/$name.work overlay /$name
done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /opt
ln -s {prefix} /opt/ldmd
rm -rf /etc/ldmd /var/lib/ldmd
mkdir -p /etc/systemd/system
printf '127.0.0.1 localhost\\n{hosts}' >/etc/hosts
ip link set lo up
echo ready
exec cat
"""

STAND_INS = {
    "ssh": 'shift; exec nsenter {other} -- "$@"',
    "scp": 'from=${{@:1:$#-1}}; to=${{!#}}; tar -cC "$(dirname ${{from%% *}})" -f - '
    '$(basename -a $from) | nsenter {other} -- tar -xC "${{to#*:}}" -f -',
    "systemctl": "mkdir -p -m 750 /run/ldmd; mkdir -p -m 700 /var/lib/ldmd\n"
    "setsid $(sed -n s/^ExecStart=//p /etc/systemd/system/ldmd.service) >/run/log 2>&1 </dev/null &\n"
    "for i in $(seq 300); do ldm status >/dev/null 2>&1 && exit; sleep 0.1; done; cat /run/log; exit 1",
}


@frozen
class Host:
    name: str
    pid: int
    folder: Path

    def files(self, proc: Path = Path("/proc")) -> list[str]:
        """nsenter's options for its files and network. ``proc``: where the processes of the tests' own host are seen."""
        return [f"--mount={proc}/{self.pid}/ns/mnt", f"--net={proc}/{self.pid}/ns/net"]

    def do(self, commands: str) -> str:
        """In the repository's folder; fails with the first command that does."""
        done = subprocess.run(
            [
                "nsenter",
                *self.files(),
                f"--pid=/proc/{self.pid}/ns/pid",
                "--",
                "bash",
                "-exc",
                f"cd {ROOT}\n{commands}",
            ],
            env=os.environ | {"PATH": f"{self.folder}/bin:/opt/ldmd/bin:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    lines = "".join(f"{address} {name}\\n" for name, address in ADDRESSES.items())
    hosts = []
    processes = []
    try:
        for name in ADDRESSES:
            own = folder / name
            (own / "files").mkdir(parents=True)
            (own / "bin").mkdir()
            script = OWN_FOLDERS.format(folder=own / "files", prefix=sys.prefix, hosts=lines)
            process = subprocess.Popen(
                ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            hosts.append(Host(name, int(children.read_text()), own))
        connect(*hosts)
        for host, other in (hosts, hosts[::-1]):
            for program, text in STAND_INS.items():
                path = host.folder / "bin" / program
                entering = " ".join(other.files(host.folder / "files" / "proc"))
                path.write_text("#!/bin/bash\n" + text.format(other=entering) + "\n")
                path.chmod(0o755)
        yield hosts[0], hosts[1]
    finally:
        for process in processes:
            end_network(process.pid)
            process.communicate(timeout=SECONDS)


def connect(one: Host, other: Host) -> None:
    """A cable between them."""
    ends = {one: "ldmd-one", other: "ldmd-other"}
    here, there = (f"netns {host.pid} type veth" for host in ends)
    cable = f"ip link add ldmd-one {here} peer ldmd-other {there.removesuffix(' type veth')}"
    subprocess.run(cable.split(), check=True)
    for host, end in ends.items():
        host.do(f"ip addr add {ADDRESSES[host.name]}/24 dev {end}; ip link set {end} up")


def end_network(pid: int) -> None:
    """SIGKILL to all processes in the network namespace of that one, which is of this test's making."""
    network = os.readlink(f"/proc/{pid}/ns/net")
    assert network != os.readlink("/proc/self/ns/net")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "ns" / "net") == network:
                os.kill(int(path.name), signal.SIGKILL)
        except OSError:
            continue


def readme_blocks() -> list[str]:
    section = (
        (ROOT / "README.md").read_text().split("\n## On two real hosts\n")[1].split("\n## ")[0]
    )
    return [block.strip() for block in re.findall(r"(?:^    .+\n)+", section, re.MULTILINE)]


@pytest.mark.qemu
@pytest.mark.mounts
@pytest.mark.network
@pytest.mark.slow
def test_the_ten_lines(tmp_path: Path) -> None:
    install, certificates, manager, domain = readme_blocks()
    assert install == (
        "python3 -m venv /opt/ldmd && /opt/ldmd/bin/pip install . && export PATH=/opt/ldmd/bin:$PATH"
    )
    turned = manager.replace("host-a", "host-c").replace("host-b", "host-a")
    with two_hosts(tmp_path) as (host_a, host_b):
        host_a.do(certificates)
        host_a.do(manager)
        host_b.do(turned.replace("host-c", "host-b"))
        said = host_a.do(domain.replace("ldg1.toml", "/root/ldg1.toml"))
        assert "ldg1 runs on host-b" in said
        assert "ldg1" not in host_a.do("ldm list-domain")
        assert re.search(r"^ldg1 +active +running ", host_b.do("ldm list-domain"), re.MULTILINE)
        modes = host_b.do("stat -c '%a %n' /etc/ldmd/tls /etc/ldmd/tls/host.key")
        assert "700 /etc/ldmd/tls\n600 /etc/ldmd/tls/host.key\n" in modes
        host_b.do("ldm stop-domain ldg1")
