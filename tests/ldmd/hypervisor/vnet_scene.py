"""A domain with a vnet is moved, in a network namespace that has nothing but a bridge.

    unshare --net python -m tests.ldmd.hypervisor.vnet_scene DIRECTORY

Prints as JSON how many taps were on the bridge, and how many announcements (RARP) of the domain's MAC
address were seen on it before and after the target was resumed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import attrs
import trio

from ldmd.definition import VirtualNetwork
from ldmd.hypervisor.driver import Attachments
from ldmd.hypervisor.qemu import QemuHypervisor
from tests.ldmd.hypervisor.qemu_cases import make_definition
from tests.ldmd.hypervisor.rig import copy_ram

BRIDGE = "ldmbr0"
MAC = "52:54:00:12:34:56"
ETH_P_RARP = 0x8035
WAIT_SECONDS = 10


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def count_taps() -> int:
    return len(_ip("-oneline", "link", "show", "master", BRIDGE).splitlines())


def count_announcements(listening: socket.socket) -> int:
    count = 0
    while True:
        try:
            frame = listening.recv(2048)
        except BlockingIOError:
            return count
        count += frame[6:12] == bytes.fromhex(MAC.replace(":", ""))


async def wait_taps_gone() -> int:
    """How many are left: the kernel removes them a moment after the process is gone."""
    deadline = trio.current_time() + WAIT_SECONDS
    while True:
        count = count_taps()
        if not count or trio.current_time() > deadline:
            return count
        await trio.sleep(0.02)


async def play(root: Path) -> dict[str, int]:
    hypervisor = QemuHypervisor(accelerator="tcg")
    vnet = VirtualNetwork(name="net0", switch="primary-vsw0", mac=MAC)
    definition = attrs.evolve(make_definition("pc"), vnets=(vnet,), uuid=str(uuid.uuid4()))
    attachments = Attachments(bridges={"net0": BRIDGE})
    seen: dict[str, int] = {}
    domains = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK) as listening:
        listening.bind((BRIDGE, ETH_P_RARP))
        try:
            for name in ("source", "both"):
                (root / name).mkdir()
                make = hypervisor.create if name == "source" else hypervisor.create_receiving
                domains.append(await make(definition, root / name, attachments))
                seen[name] = count_taps()
            source, target = domains
            state = await source.retrieve_device_state()
            copy_ram(source, target)
            await target.install_device_state(state)
            seen["announced-before"] = count_announcements(listening)
            await target.resume()
            seen["announced"] = 0
            with trio.move_on_after(WAIT_SECONDS):
                while not seen["announced"]:
                    await trio.sleep(0.02)
                    seen["announced"] = count_announcements(listening)
        finally:
            for domain in domains:
                await domain.destroy()
        seen["after"] = await wait_taps_gone()
    return seen


def main() -> None:
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    assert not others, f"not in a network namespace of its own: there is {others}"
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("link", "set", BRIDGE, "up")
    json.dump(trio.run(play, Path(sys.argv[1])), sys.stdout)


if __name__ == "__main__":
    main()
