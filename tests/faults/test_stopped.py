"""SIGSTOP for longer than every deadline, in every phase, then SIGCONT: of either manager, and of hypervisor processes.

A process that stands still is not dead: it comes back with all that it was about to do.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from tests.faults.moments import EVERY_PHASE
from tests.faults.scene import FAULT_SECONDS, Ending, open_scene
from tests.managers import wait_for


async def test_managers(tmp_path: Path) -> None:
    """Both at once: each is the only one of its pair that stands still."""
    async with trio.open_nursery() as nursery:
        for victim in ("host-a", "host-b"):
            nursery.start_soon(stop_manager, victim, tmp_path / f"{victim}-stops")


async def stop_manager(victim: str, folder: Path) -> None:
    async with open_scene(folder) as scene:
        caught = await scene.catch(EVERY_PHASE)
        scene.signal(victim, signal.SIGSTOP)
        try:
            await trio.sleep(FAULT_SECONDS)
            if victim == "host-b":
                await wait_for(scene.all_run_that_were_not_granted, FAULT_SECONDS)
                source = await scene.look("host-a")
                for name, moment in caught.items():
                    if moment.states[0] == "handing off":  # the target has not answered
                        assert scene.is_suspended(name, source), moment
        finally:
            scene.signal(victim, signal.SIGCONT)
        endings = await scene.assert_promise()
        granted = await scene.find_granted()
        for name in set(scene.uuids) - granted:
            assert endings[name] == Ending(owner="host-a", running=True), caught.get(name)


async def test_hypervisor_processes(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for host in ("host-a", "host-b"):
            nursery.start_soon(stop_hypervisor_processes, host, tmp_path / f"domains-on-{host}")


ENDINGS = {
    # a source that cannot suspend or does not need its copy any more
    "host-a": {
        "checks": ["host-a"],
        "create": ["host-a"],
        "installed": ["host-b"],
        "granted": ["host-b"],
        "running": ["host-b"],
    },
    "host-b": {
        "checks": ["host-b"],
        "create": ["host-a"],
        "installed": ["host-b", "host-a"],
        "granted": ["host-a"],
        "running": ["host-b"],
    },
}
"""Host whose copies stand still -> moment -> where the domain may be in the end."""


async def stop_hypervisor_processes(host: str, folder: Path) -> None:
    async with open_scene(folder) as scene:
        caught = await scene.catch(EVERY_PHASE)
        stopped = [pid for name in scene.uuids if (pid := scene.find_process(host, name))]
        assert stopped
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            await trio.sleep(FAULT_SECONDS)
        finally:
            for name in scene.uuids:
                # those that were ended meanwhile are gone, and their numbers may be others' now
                if (pid := scene.find_process(host, name)) in stopped and pid is not None:
                    os.kill(pid, signal.SIGCONT)
        endings = await scene.assert_promise()
        for name, moment in caught.items():
            ending = endings[name]
            assert ending == Ending(owner=ending.owner, running=True)
            assert ending.owner in ENDINGS[host][moment.name], (moment, ending)
