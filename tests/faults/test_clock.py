"""The wall clock of a host set back and forward in the middle of migrations: none of their deadlines is its.

libfaketime (Debian's package faketime) stands before the managers' clock; it reads how far off it is from a file, once a
second. The monotonic clock stays as it is, as it does when an administrator or NTP sets the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ldmd.errors import LdmdError
from tests.faults.moments import EVERY_PHASE
from tests.faults.scene import HOSTS, Ending, open_scene

LIBRARIES = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
BACK_SECONDS = -240
"""Certificates are valid from five minutes before they were issued: further back no link can be made at all."""
FORWARD_SECONDS = 86_400
DOWNTIME_MS_MAX = 60_000

OFFSETS = {
    "host-a back": {"host-a": BACK_SECONDS},
    "host-a forward, host-b back": {"host-a": FORWARD_SECONDS, "host-b": BACK_SECONDS},
    "host-b forward": {"host-b": FORWARD_SECONDS},
}


@pytest.mark.faketime
@pytest.mark.parametrize("case", OFFSETS)
async def test_set_in_every_phase(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets: Mapping[str, int] = OFFSETS[case]
    async with open_scene(tmp_path / "scene", start=False) as scene:
        for host in HOSTS:
            (tmp_path / host).write_text("+0")
            with monkeypatch.context() as environment:
                environment.setenv("LD_PRELOAD", str(LIBRARIES[0]))
                environment.setenv("FAKETIME_TIMESTAMP_FILE", str(tmp_path / host))
                environment.setenv("FAKETIME_CACHE_DURATION", "1")
                environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                environment.setenv("DONT_FAKE_MONOTONIC", "1")
                await scene.start(host)
        caught = await scene.catch(EVERY_PHASE)
        for host, seconds in offsets.items():
            (tmp_path / host).write_text(f"{seconds:+d}")
        endings = await scene.wait_settled()
        for name, ending in endings.items():  # nothing else was wrong
            assert ending == Ending(owner="host-b", running=True), caught.get(name)
            answer = scene.answers[name]
            assert not isinstance(answer, LdmdError), answer
            assert 0 < answer["downtime_ms"] < DOWNTIME_MS_MAX
        for host, seconds in offsets.items():
            (tmp_path / host).write_text("+0")
            leaps = [
                (later["time_unix_ms"] - former["time_unix_ms"]) / 1000
                for m in (await scene.look(host)).migrations.values()
                for former, later in zip(m["records"], m["records"][1:], strict=False)
            ]
            assert any(abs(leap - seconds) < 60 for leap in leaps), "the clock was not set"
        await scene.assert_promise()
