"""What the manager does about a vdisk that failed: decided on real files, carried out by a process that keeps a note."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import define, field

from ldmd import multipath
from ldmd.definition import VirtualDisk
from ldmd.domains import HELD_NAME, Domain, Domains
from ldmd.errors import HypervisorError
from ldmd.hypervisor.driver import DisksReport, DiskStatus, DomainProcess, RunStatus
from ldmd.journal.records import DomainState
from ldmd.multipath import (
    CALM_SECONDS,
    LOOK_SECONDS,
    SWITCH_SECONDS,
    WITHOUT_PATH_SECONDS_MAX,
    Multipath,
)
from ldmd.storage_identity import Probe
from ldmd.volumes import Volume, Volumes
from protocol.phases import RunState
from tests.ldmd import host
from tests.ldmd.host import configure, open_domains

FIRST, SECOND, THIRD = "root@vds0", "root@vds1", "root@vds2"


@define(eq=False)
class NotedProcess(DomainProcess):
    """Serves its vdisks by the paths that it has open; stops when told that one failed."""

    paths: dict[str, Path]
    uuid: str = ""
    pid: int = field(factory=os.getpid)
    regions: tuple[()] = ()
    stopped: bool = False
    failed: set[str] = field(factory=set)
    steps: list[str] = field(factory=list)
    refuses: set[Path] = field(factory=set)
    opened: list[int] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        for path in self.paths.values():
            self.opened.append(os.open(path, os.O_RDONLY))

    async def report_disks(self) -> DisksReport:
        await trio.lowlevel.checkpoint()
        return DisksReport(
            stopped=self.stopped,
            disks={n: DiskStatus(path=p, failed=n in self.failed) for n, p in self.paths.items()},
        )

    async def switch_disk(self, vdisk: str, path: Path) -> None:
        await trio.lowlevel.checkpoint()
        if path in self.refuses:
            raise HypervisorError("it is locked")
        self.paths[vdisk] = path
        self.opened.append(os.open(path, os.O_RDONLY))
        self.steps.append(f"{vdisk} on {path.name}")

    def fail(self, *vdisks: str) -> None:
        self.failed |= set(vdisks)
        self.stopped = True

    async def resume(self) -> None:
        await trio.lowlevel.checkpoint()
        self.stopped = False
        self.steps.append("resume")

    async def status(self) -> RunStatus:
        await trio.lowlevel.checkpoint()
        return RunStatus.SUSPENDED if self.stopped else RunStatus.RUNNING

    async def aclose(self) -> None:
        while self.opened:
            os.close(self.opened.pop())
        await trio.lowlevel.checkpoint()

    def open_ram(self) -> list[int]:
        raise NotImplementedError

    async def suspend(self) -> None:
        await trio.lowlevel.checkpoint()

    async def destroy(self) -> None:
        raise NotImplementedError

    async def retrieve_device_state(self) -> bytes:
        raise NotImplementedError

    async def install_device_state(self, state: bytes) -> None:
        raise NotImplementedError

    def has_ended(self) -> bool:
        return False

    async def write_console(self, data: bytes) -> int:
        raise NotImplementedError

    @property
    def console_path(self) -> Path:
        return Path("/nowhere")


@define(eq=False)
class Scene:
    folder: Path
    domains: Domains
    multipath: Multipath
    domain: Domain
    process: NotedProcess

    def lose(self, name: str) -> None:
        (self.folder / name).rename(self.folder / f"{name} is away")

    def bring_back(self, name: str) -> None:
        (self.folder / f"{name} is away").rename(self.folder / name)

    async def look(self) -> list[str]:
        """What was done about it."""
        before = len(self.process.steps)
        await self.multipath.look(self.domain)
        return self.process.steps[before:]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """One file by three names; a domain with a vdisk on it, served by the first, and a vdisk without a group."""
    storage = tmp_path / "first"
    storage.write_bytes(bytes(8192))
    for name in ("second", "third"):
        os.link(storage, tmp_path / name)
    (tmp_path / "alone").write_bytes(bytes(8192))
    volumes = {
        f"vds{n}": {"root": {"path": str(tmp_path / name), "mpgroup": "g"}}
        for n, name in enumerate(("first", "second", "third"))
    }
    volumes["vds0"]["alone"] = {"path": str(tmp_path / "alone")}
    async with open_domains(configure(tmp_path, vds=volumes)) as domains:
        definition = host.define(
            vdisks=(
                VirtualDisk(name="d0", volume="root", service="vds0", mpgroup="g"),
                VirtualDisk(name="d1", volume="alone", service="vds0"),
            )
        )
        domain = await domains.add(definition)
        domain.state = DomainState.ACTIVE
        process = NotedProcess({"d0": tmp_path / "first", "d1": tmp_path / "alone"})
        domain.process = process
        made = Scene(tmp_path, domains, Multipath(domains), domain, process)
        assert await made.look() == []
        yield made
        for watched in made.multipath._watched.values():
            watched.close()


async def test_what_serves_and_what_stands_by_is_noted(scene: Scene) -> None:
    assert scene.domain.serving == {"d0": FIRST, "d1": "alone@vds0"}
    assert scene.domain.path_notes == {"d0": f"{FIRST}; standby {SECOND}; standby {THIRD}"}


async def test_each_path_has_its_turn(scene: Scene, mock_clock: trio.testing.MockClock) -> None:
    for lost, then, name in (("first", "second", SECOND), ("second", "third", THIRD)):
        scene.process.fail("d0")
        scene.lose(lost)
        assert await scene.look() == [f"d0 on {then}", "resume"]
        assert scene.domain.serving["d0"] == name
        mock_clock.jump(2 * CALM_SECONDS)
        await scene.look()
    scene.bring_back("first")
    scene.process.fail("d0")
    scene.lose("third")
    assert (await scene.look()) == ["d0 on first", "resume"]


async def test_a_path_that_refuses_is_passed_over(scene: Scene) -> None:
    scene.process.refuses.add(scene.folder / "second")
    scene.process.fail("d0")
    scene.lose("first")
    assert await scene.look() == ["d0 on third", "resume"]
    assert f"not {SECOND} (it is locked)" in scene.domain.path_notes["d0"]


async def test_without_a_path_it_waits(
    scene: Scene, caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock
) -> None:
    scene.process.fail("d0")
    for name in ("first", "second", "third"):
        scene.lose(name)
    for _ in range(3):
        assert await scene.look() == []
        mock_clock.jump(WITHOUT_PATH_SECONDS_MAX)
    assert scene.domain.path_notes["d0"].startswith("none, the domain waits")
    assert caplog.text.count("waits for its disk") == 1, "said once"
    scene.bring_back("first")
    assert await scene.look() == ["resume"], "the path in use is back"


async def test_without_a_path_it_is_looked_for_later_and_later(
    scene: Scene, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []
    real = Volumes.look

    async def look(self: Volumes, volume: Volume, *, read_only: bool, direct: bool) -> Probe:
        looked.append(trio.current_time())
        return await real(self, volume, read_only=read_only, direct=direct)

    monkeypatch.setattr(Volumes, "look", look)
    scene.process.fail("d0")
    for name in ("first", "second", "third"):
        scene.lose(name)
    for _ in range(80):
        assert await scene.look() == []
        mock_clock.jump(LOOK_SECONDS)
    times = sorted(set(looked))
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits[:4] == [LOOK_SECONDS * 2**n for n in range(3)] + [4.0]
    assert set(waits[4:]) == {WITHOUT_PATH_SECONDS_MAX}


async def test_an_error_that_no_path_explains(
    scene: Scene, mock_clock: trio.testing.MockClock
) -> None:
    """Each path in turn, later and later: the storage itself may fail."""
    scene.process.fail("d0")
    assert await scene.look() == ["d0 on second", "resume"]
    waits = []
    for _ in range(8):
        scene.process.fail("d0")
        began = trio.current_time()
        while not await scene.look():
            mock_clock.jump(1)
        waits.append(trio.current_time() - began)
    assert waits == sorted(waits)
    assert waits[0] <= 1
    assert waits[-1] == pytest.approx(30, abs=1)


async def test_a_disk_without_a_group_is_not_ours_to_mend(scene: Scene) -> None:
    scene.process.fail("d1")
    assert await scene.look() == []
    assert scene.process.stopped


async def test_other_storage_that_took_a_path_is_not_taken(scene: Scene) -> None:
    """It was proved; then another file got its name."""
    for name in ("second", "third"):
        (scene.folder / name).unlink()
        (scene.folder / name).write_bytes(bytes(8192))
    scene.process.fail("d0")
    scene.lose("first")
    assert await scene.look() == []
    assert "another file or device than the one that was proved" in scene.domain.path_notes["d0"]


async def test_a_path_that_was_never_proved_is_not_taken(tmp_path: Path, scene: Scene) -> None:
    """It could not be opened while the other one answered, and nothing says by itself that it is the same."""
    fresh = Multipath(scene.domains)
    scene.process.fail("d0")
    scene.lose("first")
    await fresh.look(scene.domain)
    assert scene.process.steps == []
    assert "was not proved to be the same storage" in scene.domain.path_notes["d0"]


async def test_what_the_domain_has_open_counts_and_not_the_name(
    scene: Scene, mock_clock: trio.testing.MockClock
) -> None:
    for name in ("first", "second", "third"):
        (scene.folder / name).unlink()
    (scene.folder / "first").write_bytes(bytes(8192))
    os.link(scene.folder / "first", scene.folder / "second")
    mock_clock.jump(CALM_SECONDS)
    await scene.look()
    assert f"{FIRST} (the domain has something else open)" in scene.domain.path_notes["d0"]
    scene.process.fail("d0")
    scene.lose("first")
    assert await scene.look() == []


@pytest.mark.parametrize("held", ["migration", "verb", "operator"])
async def test_a_domain_that_somebody_holds_is_left_alone(scene: Scene, held: str) -> None:
    scene.process.fail("d0")
    scene.lose("first")
    match held:
        case "migration":
            scene.domain.migration = "f" * 32
            assert await scene.look() == []
            scene.domain.settling = True
        case "verb":
            async with scene.domain.lock:
                assert await scene.look() == []
        case "operator":
            scene.domains.directory_of(scene.domain.definition.uuid).mkdir(parents=True)
            await scene.domains.suspend(scene.domain)
            assert await scene.look() == []
            held_mark = scene.domains.directory_of(scene.domain.definition.uuid) / HELD_NAME
            assert held_mark.exists()
            await scene.domains.resume(scene.domain)
            assert not held_mark.exists()
            scene.process.fail("d0")
    assert await scene.look() == ["d0 on second", "resume"]


async def test_a_domain_that_is_only_queued_keeps_its_disk(scene: Scene) -> None:
    """Until its migration begins, and that waits for a switch under way and lets no other begin."""
    domain, asked, go_on = scene.domain, trio.Event(), trio.Event()
    scene.domains.take(domain, "f" * 32)
    assert multipath._watchable(domain)
    real = scene.process.switch_disk

    async def switch_disk(vdisk: str, path: Path) -> None:
        asked.set()
        await go_on.wait()
        await real(vdisk, path)

    scene.process.switch_disk = switch_disk  # type: ignore[method-assign]
    scene.process.fail("d0")
    scene.lose("first")
    begun = False

    async def begin() -> None:
        nonlocal begun
        await scene.domains.begin(domain)
        begun = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.look)
        await asked.wait()
        nursery.start_soon(begin)
        await trio.testing.wait_all_tasks_blocked()
        assert not begun
        go_on.set()
    assert begun
    assert scene.process.steps == ["d0 on second", "resume"]
    scene.process.fail("d0")
    scene.lose("second")
    assert await scene.look() == []
    assert not multipath._watchable(domain)


@pytest.mark.parametrize("ends", [True, False])
async def test_a_switch_that_has_begun_outlasts_the_end_of_the_manager(
    ends: bool, scene: Scene, mock_clock: trio.testing.MockClock
) -> None:
    """To its end, or to its deadline: then the other paths have their turn."""
    asked, go_on = trio.Event(), trio.Event()
    real = scene.process.switch_disk

    async def switch_disk(vdisk: str, path: Path) -> None:
        asked.set()
        await go_on.wait()
        await real(vdisk, path)

    scene.process.switch_disk = switch_disk  # type: ignore[method-assign]
    scene.process.fail("d0")
    scene.lose("first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.look)
        await asked.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert scene.domain.lock.locked()
            if ends:
                go_on.set()
            else:
                mock_clock.jump(SWITCH_SECONDS)
    assert not scene.domain.lock.locked()
    assert scene.process.steps == (["d0 on second"] if ends else [])
    assert scene.domain.serving["d0"] == (SECOND if ends else FIRST)
    go_on.set()
    mock_clock.jump(WITHOUT_PATH_SECONDS_MAX)
    assert (await scene.look())[-1] == "resume", "by whoever looks next"


async def test_a_domain_that_waits_for_its_disk_is_one_that_runs(scene: Scene) -> None:
    """For a migration: where it goes, it goes on. One that was suspended on purpose does not."""
    scene.process.fail("d0")
    assert await scene.domain.run_state() is RunState.RUNNING
    scene.domain.held_suspended = True
    assert await scene.domain.run_state() is RunState.SUSPENDED


async def test_nothing_is_kept_open_for_a_domain_that_has_ended(scene: Scene) -> None:
    watched = scene.multipath._watched[scene.domain.definition.uuid]
    descriptors = [p.descriptor for paths in watched.paths.values() for p in paths.proved.values()]
    assert len(descriptors) == 2
    scene.domain.process = None
    scene.multipath._forget_ended()
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
