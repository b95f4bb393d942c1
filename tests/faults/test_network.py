"""The network between the managers in every phase: packets lost in one or both ways, and resets seen by one end or both."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import trio

from tests.faults.moments import EVERY_PHASE
from tests.faults.proxy import BOTH_ENDS, BOTH_WAYS, End, Way
from tests.faults.scene import FAULT_SECONDS, Ending, open_scene
from tests.managers import wait_for

LOSSES = {"both ways": BOTH_WAYS, "to the target": {Way.TO}, "to the source": {Way.FRO}}


async def test_silence(tmp_path: Path) -> None:
    """Nothing arrives, nothing is refused, for longer than every deadline; then it does again."""
    async with trio.open_nursery() as nursery:
        for number, ways in enumerate(LOSSES.values()):
            nursery.start_soon(fall_silent, ways, tmp_path / str(number))


async def fall_silent(ways: Collection[Way], folder: Path) -> None:
    async with open_scene(folder) as scene:
        caught = await scene.catch(EVERY_PHASE)
        scene.proxies["host-b"].lose(*ways)
        await trio.sleep(FAULT_SECONDS)
        await wait_for(scene.all_run_that_were_not_granted, FAULT_SECONDS)
        source, target = [await scene.look(host) for host in ("host-a", "host-b")]
        for name in scene.uuids:
            shown = [v.domains[name]["run_state"] for v in (source, target) if name in v.domains]
            assert shown.count("running") <= 1, name
        for name, moment in caught.items():
            if moment.name == "granted":  # the answer is not there, or was no: never by itself
                assert name not in source.domains or scene.is_suspended(name, source), moment
        scene.proxies["host-b"].heal()
        endings = await scene.assert_promise()
        granted = await scene.find_granted()
        for name in set(scene.uuids) - granted:
            assert endings[name] == Ending(owner="host-a", running=True), caught.get(name)


RESETS = {"both ends": BOTH_ENDS, "the source": {End.NEAR}, "the target": {End.FAR}}


@pytest.mark.parametrize("who", RESETS)
async def test_reset(who: str, tmp_path: Path) -> None:
    """An end that is not told finds out by itself."""
    async with open_scene(tmp_path) as scene:
        caught = await scene.catch(EVERY_PHASE)
        scene.proxies["host-b"].reset(RESETS[who])
        endings = await scene.assert_promise()
        for name, moment in caught.items():
            if moment.given_up:
                assert endings[name] == Ending(owner="host-a", running=True), moment
