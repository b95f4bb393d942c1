"""SIGKILL in every phase: of either manager, of both, and of a domain's hypervisor process on either host."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.moments import MOMENTS
from tests.faults.scene import Ending, open_scene

AT_SOURCE = Ending(owner="host-a", running=True)
AT_TARGET = Ending(owner="host-b", running=True)
ENDED_AT_SOURCE = Ending(owner="host-a", running=False)
ENDED_AT_TARGET = Ending(owner="host-b", running=False)


@pytest.mark.parametrize("victims", [("host-a",), ("host-b",), ("host-a", "host-b")], ids="+".join)
async def test_managers(victims: tuple[str, ...], tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene:
        caught = await scene.catch(MOMENTS)
        await scene.kill(*victims)
        await scene.start(*victims)
        endings = await scene.assert_promise()
        for name, moment in caught.items():
            if moment.given_up:
                assert endings[name] == AT_SOURCE, moment
            elif moment.name in ("running", "destroying"):
                assert endings[name] == AT_TARGET, moment


WHERE_KILLED = {
    # all that there was of it is gone until the target has all of it
    "host-a": dict.fromkeys(("checks", "create", "suspended"), ENDED_AT_SOURCE)
    | dict.fromkeys(("installed", "granted", "committed", "running", "destroying"), AT_TARGET),
    # a copy that did not run is thrown away, and the source's goes on; one that ran has crashed where it ran
    "host-b": {"checks": AT_TARGET}
    | dict.fromkeys(("create", "suspended", "installed", "granted", "committed"), AT_SOURCE)
    | dict.fromkeys(("running", "destroying"), ENDED_AT_TARGET),
}


@pytest.mark.parametrize("host", WHERE_KILLED)
async def test_hypervisor_processes(host: str, tmp_path: Path) -> None:
    """A domain that crashed: it ends once, where it was, and never comes back elsewhere in an older state."""
    async with open_scene(tmp_path) as scene:
        caught = await scene.catch(MOMENTS)
        killed = []
        for name in scene.uuids:
            if (pid := scene.find_process(host, name)) is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(name)
        assert killed
        endings = await scene.assert_promise(ended=killed)
        for name, moment in caught.items():
            assert endings[name] == WHERE_KILLED[host][moment.name], moment
