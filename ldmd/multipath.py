"""Keeps a domain its disk when a path to it goes away: vdisks of multipath groups, watched while the domain is active.

While the path in use answers, every other volume of the group is proved to be the same storage, and held open from then on:
the file system or the device that it was proved on cannot become another one meanwhile. When the hypervisor has stopped the
domain because a vdisk failed, the next path that is proved, is still what it was and can be used takes its place, and the
domain is resumed. Without one it stays stopped, and is looked at again and again: it is never told of an error, and never
given storage that might be other storage.

A domain that a migration holds is left alone once that has begun, and one that an operator has suspended is not resumed.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from typing import Final

import trio
from attrs import define, field

from ldmd.claims import certain, differ
from ldmd.definition import VirtualDisk
from ldmd.domains import Domain, Domains
from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor.driver import DiskStatus, DomainProcess
from ldmd.journal.records import DomainState
from ldmd.storage_identity import key_of
from ldmd.volumes import Found, Volume, words

log = logging.getLogger("ldmd.multipath")

LOOK_SECONDS: Final = 0.5
PROVE_SECONDS: Final = 30.0
"""How often the paths that are not in use are looked at."""
CALM_SECONDS: Final = 60.0
"""A domain that was stopped again sooner than that is resumed later and later: the storage itself may fail."""
BACK_OFF_SECONDS_MAX: Final = 30.0
WITHOUT_PATH_SECONDS_MAX: Final = 5.0
"""Between two looks for a path where there was none: a domain waits for it, and is held while it is looked for."""
SWITCH_SECONDS: Final = 30.0
"""For putting a vdisk on another path. A manager that stops waits for it; systemd kills one after 90 s."""

Faults = (HypervisorError, OutcomeUnknown)


@define(eq=False)
class Proved:
    """Another path to a vdisk's storage. ``descriptor`` keeps what it was proved on from becoming something else."""

    found: Found
    descriptor: int


@define(eq=False)
class Paths:
    """Of one vdisk. ``reasons``: volume -> why it is no path now."""

    in_use: Found | None = None
    proved: dict[str, Proved] = field(factory=dict)
    reasons: dict[str, str] = field(factory=dict)
    look_at: float = 0.0

    def forget(self, name: str) -> None:
        proved = self.proved.pop(name, None)
        if proved is not None:
            os.close(proved.descriptor)


@define(eq=False)
class Watched:
    """A domain, as long as its process lives."""

    process: DomainProcess
    paths: dict[str, Paths] = field(factory=dict)
    mended_at: float = float("-inf")
    wait_seconds: float = 0.0
    next_try_at: float = float("-inf")
    try_seconds: float = 0.0
    said: str = ""

    def close(self) -> None:
        for paths in self.paths.values():
            for name in list(paths.proved):
                paths.forget(name)


@define(eq=False)
class Multipath:
    domains: Domains
    _watched: dict[str, Watched] = field(factory=dict, init=False)
    _looking: set[str] = field(factory=set, init=False)

    async def watch(self) -> None:
        """For ever. Each domain by itself: one whose storage does not answer keeps no other waiting."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    for domain in list(self.domains):
                        uuid = domain.definition.uuid
                        if _watchable(domain) and uuid not in self._looking:
                            self._looking.add(uuid)
                            nursery.start_soon(self._look_once, domain)
                    self._forget_ended()
                    await trio.sleep(LOOK_SECONDS)
        finally:
            for watched in self._watched.values():
                watched.close()

    async def _look_once(self, domain: Domain) -> None:
        try:
            await self.look(domain)
        finally:
            self._looking.discard(domain.definition.uuid)

    def _forget_ended(self) -> None:
        for uuid, watched in list(self._watched.items()):
            domain = self.domains.find(uuid)
            if uuid not in self._looking and (
                domain is None or domain.process is not watched.process
            ):
                watched.close()
                del self._watched[uuid]

    def _watched_of(self, domain: Domain, process: DomainProcess) -> Watched:
        uuid = domain.definition.uuid
        watched = self._watched.get(uuid)
        if watched is None or watched.process is not process:
            if watched is not None:
                watched.close()
            watched = self._watched[uuid] = Watched(process)
            watched.paths = {disk.name: Paths() for disk in _grouped(domain)}
        return watched

    async def look(self, domain: Domain) -> None:
        """Once at one domain. Never raises for what storage and hypervisor do."""
        process = domain.process
        assert process is not None
        watched = self._watched_of(domain, process)
        try:
            report = await process.report_disks()
            if domain.process is not process:
                return
            self._note_serving(domain, report.disks)
            if report.stopped:
                if _may_be_touched(domain) and not domain.held_suspended:
                    async with domain.lock:
                        await self._mend(domain, watched)
            else:
                watched.said = ""
                await self._prove(domain, watched)
        except Faults as error:
            log.info("the disks of %s cannot be asked for: %s", domain.name, error.sentence)

    def _note_serving(self, domain: Domain, disks: Mapping[str, DiskStatus]) -> None:
        """What the hypervisor says counts, also for domains that an earlier manager started or switched."""
        volumes = self.domains.inventory.volumes
        for disk in domain.definition.vdisks:
            status = disks.get(disk.name)
            if status is None:
                continue
            names = [v.name for v in volumes.candidates(disk) if v.settings.path == status.path]
            if names and domain.serving.get(disk.name) not in names:
                domain.serving[disk.name] = names[0]
            elif not names:
                domain.serving.pop(disk.name, None)

    # ---- while all is well -------------------------------------------------------------------------------

    async def _prove(self, domain: Domain, watched: Watched) -> None:
        for disk in _grouped(domain):
            paths = watched.paths[disk.name]
            serving = domain.serving.get(disk.name)
            used = paths.in_use
            known = used is not None and used.volume.name == serving
            if known and trio.current_time() < paths.look_at:
                continue
            paths.look_at = trio.current_time() + PROVE_SECONDS
            await self._prove_paths(domain, watched.process, disk, paths, serving)
            self._note_paths(domain, disk, paths)

    async def _prove_paths(
        self,
        domain: Domain,
        process: DomainProcess,
        disk: VirtualDisk,
        paths: Paths,
        serving: str | None,
    ) -> None:
        volumes = self.domains.inventory.volumes
        candidates = volumes.candidates(disk)
        paths.in_use = None
        for volume in candidates:
            if volume.name == serving:
                paths.in_use = await self._find(disk, volume, paths)
        if paths.in_use is None:
            return
        if not await volumes.is_open_in(process.pid, paths.in_use.probe.key):
            paths.reasons[paths.in_use.volume.name] = "the domain has something else open"
            paths.in_use = None
            return
        paths.forget(paths.in_use.volume.name)
        for volume in candidates:
            if volume.name != serving:
                await self._prove_one(domain, disk, volume, paths, paths.in_use)

    async def _find(self, disk: VirtualDisk, volume: Volume, paths: Paths) -> Found | None:
        """A look that writes nothing: opening a block device to write tells the whole host about it."""
        try:
            probe = await self.domains.inventory.volumes.look(volume, read_only=True, direct=True)
        except (OSError, trio.TooSlowError) as error:
            paths.reasons[volume.name] = words(error)
            return None
        paths.reasons.pop(volume.name, None)
        return Found(volume=volume, probe=probe)

    async def _prove_one(
        self, domain: Domain, disk: VirtualDisk, volume: Volume, paths: Paths, used: Found
    ) -> None:
        found = await self._find(disk, volume, paths)
        if found is None:
            return
        known = paths.proved.get(volume.name)
        if known is not None:
            if known.found.probe.key == found.probe.key:
                return
            paths.forget(volume.name)
        descriptor = await self._hold(found)
        if descriptor is None:
            paths.reasons[volume.name] = "it cannot be held open"
            return
        proofs = self.domains.inventory.proofs
        why = "it was not looked at to the end"
        try:
            why = await proofs.same_storage(used, found, secrets.token_hex(16))
        finally:
            if why:
                os.close(descriptor)
        if not why:
            paths.proved[volume.name] = Proved(found, descriptor)
            return
        paths.reasons[volume.name] = f"not known to be the same storage: {why}"
        log.error(
            "%s: %s is no path to vdisk %s, which %s serves: %s",
            domain.name,
            volume.name,
            disk.name,
            used.volume.name,
            why,
        )

    async def _hold(self, found: Found) -> int | None:
        """A descriptor of the very file or device that was found."""

        def hold() -> int | None:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(found.volume.settings.path, flags)
            if key_of(os.fstat(descriptor)) == found.probe.key:
                return descriptor
            os.close(descriptor)
            return None

        try:
            return await self.domains.inventory.volumes.in_thread(
                hold, about=found.volume.settings.path
            )
        except (OSError, trio.TooSlowError):
            return None

    def _note_paths(self, domain: Domain, disk: VirtualDisk, paths: Paths) -> None:
        serving = domain.serving.get(disk.name)
        why = paths.reasons.get(serving or "")
        notes = [f"{serving} ({why})" if why else serving or "none"]
        notes += [f"standby {name}" for name in paths.proved if name not in paths.reasons]
        notes += [f"not {name} ({why})" for name, why in paths.reasons.items() if name != serving]
        domain.path_notes[disk.name] = "; ".join(notes)

    # ---- when the domain was stopped -------------------------------------------------------------------------

    async def _mend(self, domain: Domain, watched: Watched) -> None:
        """The domain is held for as long as this takes."""
        process = watched.process
        if domain.process is not process or not _may_be_mended(domain):
            return
        now = trio.current_time()
        if now < max(watched.mended_at + watched.wait_seconds, watched.next_try_at):
            return
        report = await process.report_disks()
        if not report.stopped:
            return
        grouped = _grouped(domain)
        suspects = [d for d in grouped if d.name in report.disks and report.disks[d.name].failed]
        if not suspects and any(status.failed for status in report.disks.values()):
            return  # another disk's doing
        bad = {d.name: why for d in suspects or grouped if (why := await self._ails(domain, d))}
        for disk in [d for d in grouped if d.name in bad] or suspects:
            why = await self._switch(domain, watched, disk, bad.get(disk.name, ""))
            if why:
                self._say(
                    watched,
                    f"{domain.name} is stopped, and waits for its disk: no path to vdisk {disk.name}: {why}",
                )
                domain.path_notes[disk.name] = f"none, the domain waits: {why}"
                watched.try_seconds = min(
                    WITHOUT_PATH_SECONDS_MAX, watched.try_seconds * 2 or LOOK_SECONDS
                )
                watched.next_try_at = trio.current_time() + watched.try_seconds
                return
        watched.try_seconds = 0.0
        again = now < watched.mended_at + CALM_SECONDS
        watched.wait_seconds = (
            min(BACK_OFF_SECONDS_MAX, watched.wait_seconds * 2 or 1.0) if again else 0.0
        )
        watched.mended_at = now
        await process.resume()
        watched.said = ""
        log.warning("%s goes on", domain.name)

    async def _ails(self, domain: Domain, disk: VirtualDisk) -> str:
        """Why what serves the vdisk now cannot be used; empty when it can."""
        serving = domain.serving.get(disk.name)
        volumes = self.domains.inventory.volumes
        for volume in volumes.candidates(disk):
            if volume.name == serving:
                try:
                    await volumes.look(volume, read_only=disk.read_only, direct=True)
                except (OSError, trio.TooSlowError) as error:
                    return f"{volume.name}: {words(error)}"
                return ""
        return "nothing serves it"

    async def _switch(self, domain: Domain, watched: Watched, disk: VirtualDisk, ails: str) -> str:
        """To the next path that can be used; gives why there is none. ``ails``: why not to stay; empty: that would do."""
        paths = watched.paths[disk.name]
        before = domain.serving.get(disk.name)
        volumes = self.domains.inventory.volumes
        candidates = list(volumes.candidates(disk))
        names = [v.name for v in candidates]
        if before in names:  # those behind it first, so that each has its turn
            place = names.index(before) + 1
            candidates = candidates[place:] + candidates[: place - 1]
        reasons = [ails]
        for volume in candidates:
            why = await self._try(domain, watched, disk, volume)
            if not why:
                log.warning(
                    "%s: vdisk %s failed on %s and is served by %s now",
                    domain.name,
                    disk.name,
                    before or "no volume",
                    volume.name,
                )
                self._use(domain, disk, paths, volume)
                return ""
            paths.reasons[volume.name] = why
            reasons.append(f"{volume.name}: {why}")
        return "; ".join(reasons) if ails else ""

    async def _try(
        self, domain: Domain, watched: Watched, disk: VirtualDisk, volume: Volume
    ) -> str:
        paths = watched.paths[disk.name]
        try:
            probe = await self.domains.inventory.volumes.look(
                volume, read_only=disk.read_only, direct=True
            )
        except (OSError, trio.TooSlowError) as error:
            return words(error)
        found = Found(volume=volume, probe=probe)
        why = _not_proved(paths, found)
        if why:
            return why
        # a manager that stops would leave the device on no path, and the next one has proved none
        with trio.move_on_after(SWITCH_SECONDS, shield=True):
            try:
                await watched.process.switch_disk(disk.name, volume.settings.path)
            except Faults as error:
                return error.sentence
            return ""
        return f"it was not put there within {SWITCH_SECONDS:g} s"

    def _use(self, domain: Domain, disk: VirtualDisk, paths: Paths, volume: Volume) -> None:
        domain.serving[disk.name] = volume.name
        paths.reasons.pop(volume.name, None)
        paths.look_at = 0.0
        self._note_paths(domain, disk, paths)

    def _say(self, watched: Watched, sentence: str) -> None:
        if sentence != watched.said:
            watched.said = sentence
            log.error("%s", sentence)


def _grouped(domain: Domain) -> list[VirtualDisk]:
    return [disk for disk in domain.definition.vdisks if disk.mpgroup]


def _watchable(domain: Domain) -> bool:
    return (
        domain.state is DomainState.ACTIVE and domain.process is not None and bool(_grouped(domain))
    ) and _may_be_mended(domain)


def _may_be_mended(domain: Domain) -> bool:
    return domain.migration is None or domain.settling or domain.queued


def _may_be_touched(domain: Domain) -> bool:
    return _may_be_mended(domain) and not domain.lock.locked()


def _not_proved(paths: Paths, found: Found) -> str:
    """Why a volume may not take the place of the one that failed; empty when it may."""
    known = paths.proved.get(found.volume.name)
    if known is not None:
        if known.found.probe.key != found.probe.key:
            return "it is another file or device than the one that was proved"
        if known.found.probe.size_bytes != found.probe.size_bytes:
            return "it has another size than before"
        return ""
    used = paths.in_use
    if used is None:
        return "it was not proved to be the same storage while the other path answered"
    if why := differ(used.probe, found.probe):
        return why
    return "" if certain(used.probe, found.probe) else "it was not proved to be the same storage"
