"""The memory and console oracle on a domain of a running manager."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

from ldmd.hypervisor.emulated import ORACLE_LAYOUT
from ldmd.hypervisor.oracle import OracleLayout, check_console, check_memory
from tests.managers import Fleet


async def assert_oracle(
    fleet: Fleet,
    manager: str,
    uuid: str,
    *,
    layout: OracleLayout = ORACLE_LAYOUT,
    name: str = "ldg1",
) -> str:
    """Suspend it there, look at memory and console, resume it; returns the console as it was then."""
    await fleet[manager].call("suspend-domain", {"domain": name})
    report = check_memory(read_ram(fleet, manager, uuid, layout), layout)
    assert report.ok, report.sentence
    assert report.pages > 0
    text = fleet.console(manager, uuid)
    await fleet[manager].call("resume-domain", {"domain": name})
    console = check_console(text)
    assert console.contiguous or console.lines == 0, console.sentence
    return text


def read_ram(fleet: Fleet, manager: str, uuid: str, layout: OracleLayout) -> memoryview:
    """A copy of the domain's RAM, by way of its process's own descriptors."""
    folder = fleet[manager].folder / "run" / "domains" / uuid
    pid = json.loads((folder / "process.json").read_text())["pid"]
    for link in sorted(Path(f"/proc/{pid}/fd").iterdir()):
        target = os.readlink(link)
        if target.startswith("/memfd:"):
            descriptor = os.open(link, os.O_RDWR)
            try:
                with mmap.mmap(descriptor, 0) as area:
                    return memoryview(bytes(area))
            finally:
                os.close(descriptor)
    raise AssertionError(f"the process {pid} has no RAM file")
