"""The volumes of this host's virtual disk services: which of them serves a vdisk, and whether it can be opened.

A vdisk names ``volume@service``. With a multipath group (``mpgroup``) any volume of that group may serve it: the one that it
names first, then the others in the order of the configuration; the first that can be opened is taken.

Storage may not answer for ever, so all of it is looked at in threads with a limit of their own and a deadline each. A thread
that is still in the kernel after that cannot be ended. It counts no longer, and until it has come back its path is not
looked at again: dead storage costs a thread for each path, not one for each look.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import trio
from attrs import define, field, frozen

from ldmd.config import VolumeSettings
from ldmd.definition import DomainDefinition, VirtualDisk
from ldmd.errors import NotFound, WrongState
from ldmd.storage_identity import Probe, is_open_in, probe

LOOK_SECONDS: Final = 5.0
"""For one look at one volume; storage that takes longer counts as gone."""
THREADS_MAX: Final = 32
"""Own ones: looks at dead storage must not take the threads of everything else."""

DIRECT_CACHES: Final = ("none", "directsync")
"""What a domain was told is on the disk is on the storage then, and in no memory of this host."""

T = TypeVar("T")


@frozen(kw_only=True)
class Volume:
    """One of the configuration."""

    service: str
    volume: str
    settings: VolumeSettings

    @property
    def name(self) -> str:
        return f"{self.volume}@{self.service}"


@frozen(kw_only=True)
class Found:
    """The volume that serves a vdisk, and what was seen of it."""

    volume: Volume
    probe: Probe


def words(error: BaseException) -> str:
    """Of what went wrong with storage, for a sentence."""
    if isinstance(error, trio.TooSlowError):
        return "it does not answer"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


@define(eq=False)
class Look:
    """One thread's. ``about``: what it may hang on. ``deadline``: in trio's time."""

    about: Hashable
    deadline: float
    started: bool = False
    ended: bool = False

    @property
    def hangs(self) -> bool:
        return self.started and not self.ended and trio.current_time() >= self.deadline

    def run(self, function: Callable[[], T]) -> T:
        self.started = True
        try:
            return function()
        finally:
            self.ended = True


@define(eq=False)
class Volumes:
    """``vds``: service -> volume -> settings."""

    vds: Mapping[str, Mapping[str, VolumeSettings]]
    _threads: trio.CapacityLimiter = field(
        factory=lambda: trio.CapacityLimiter(THREADS_MAX), init=False
    )
    _looks: list[Look] = field(factory=list, init=False)
    """Under way, and those that were given up and have not come back."""

    # ---- which volume ------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Volume]:
        for service, volumes in self.vds.items():
            for volume, settings in volumes.items():
                yield Volume(service=service, volume=volume, settings=settings)

    def candidates(self, disk: VirtualDisk) -> tuple[Volume, ...]:
        """Those that may serve it, the best first."""
        named = self.vds.get(disk.service, {}).get(disk.volume)
        first: tuple[Volume, ...] = ()
        if named is not None:
            first = (Volume(service=disk.service, volume=disk.volume, settings=named),)
        if not disk.mpgroup:
            return first
        if named is not None and named.mpgroup != disk.mpgroup:
            return first  # and refused, see require_options
        return first + tuple(
            v for v in self if v.settings.mpgroup == disk.mpgroup and v not in first
        )

    def require_options(self, disk: VirtualDisk) -> None:
        """What the configuration of the volume and the definition of the vdisk say must go together. Raises WrongState."""
        for volume in self.candidates(disk):
            if disk.mpgroup != volume.settings.mpgroup and disk.mpgroup:
                raise WrongState(
                    f"the volume {volume.name} is not in the multipath group {disk.mpgroup} of vdisk {disk.name}",
                    remedy=f"set mpgroup = {disk.mpgroup!r} for it in [vds.{volume.service}], or take it from the vdisk",
                )
            if volume.settings.read_only and not disk.read_only:
                raise WrongState(
                    f"the volume {volume.name} is read-only, and vdisk {disk.name} is not",
                    remedy="set read-only = true for the vdisk, or take it from the volume",
                )
        if disk.mpgroup and disk.cache not in DIRECT_CACHES:
            raise WrongState(
                f"vdisk {disk.name} is in a multipath group with cache {disk.cache}: what this host has in its memory"
                " of one path is lost with it",
                remedy=f"use cache {' or '.join(DIRECT_CACHES)}",
            )

    def storage_key(self, service: str, volume: str) -> object:
        """Equal for volumes that this host's configuration says are one storage."""
        settings = self.vds.get(service, {}).get(volume)
        if settings is None:
            return service, volume
        return settings.mpgroup or settings.path

    def in_use(self, holding: Sequence[DomainDefinition]) -> dict[tuple[str, str], str]:
        """(service, volume) that one of these domains writes, by whatever path -> its name."""
        writers = {
            self.storage_key(disk.service, disk.volume): definition.name
            for definition in holding
            for disk in definition.vdisks
            if not disk.read_only
        } | {
            disk.mpgroup: definition.name
            for definition in holding
            for disk in definition.vdisks
            if disk.mpgroup and not disk.read_only
        }
        named = {(disk.service, disk.volume) for d in holding for disk in d.vdisks}
        every = named | {(v.service, v.volume) for v in self}
        return {
            key: writers[storage] for key in every if (storage := self.storage_key(*key)) in writers
        }

    async def in_thread(self, function: Callable[[], T], about: Hashable) -> T:
        """Raises what the function raises, or TooSlowError; the thread is left to itself then.

        ``about``: the path, or what else it may hang on. While an earlier thread hangs on that, TooSlowError comes at once.
        """
        if any(look.about == about for look in self._find_hanging()):
            await trio.lowlevel.checkpoint()
            raise trio.TooSlowError
        with trio.fail_after(LOOK_SECONDS) as scope:
            look = Look(about, scope.deadline)
            self._looks.append(look)
            try:
                return await trio.to_thread.run_sync(
                    look.run, function, abandon_on_cancel=True, limiter=self._threads
                )
            finally:
                if not look.started:
                    self._looks.remove(look)
                self._find_hanging()

    def _find_hanging(self) -> list[Look]:
        """Those that hang have given their place back."""
        self._looks = [look for look in self._looks if not look.ended]
        hanging = [look for look in self._looks if look.hangs]
        self._threads.total_tokens = THREADS_MAX + len(hanging)
        return hanging

    async def is_open_in(self, pid: int, key: tuple[str, int, int]) -> bool:
        """Whether that process has the file or device open; False too when its storage does not answer."""
        with suppress(trio.TooSlowError):
            return await self.in_thread(functools.partial(is_open_in, pid, key), about=pid)
        return False

    # ---- opening -----------------------------------------------------------------------------------------

    async def look(self, volume: Volume, *, read_only: bool, direct: bool) -> Probe:
        """Raises OSError, TooSlowError. ``direct``: it must take direct I/O."""
        found = await self.in_thread(
            functools.partial(probe, volume.settings.path, read_only=read_only),
            about=volume.settings.path,
        )
        if direct and not found.direct:
            raise OSError(0, "it takes no direct I/O, which a multipath group needs")
        return found

    async def find(self, disk: VirtualDisk, first: str | None = None) -> Found | str:
        """The volume that serves the vdisk, or why none can. ``first``: the name of the one to try before the others."""
        reasons = []
        for volume in sorted(self.candidates(disk), key=lambda v: v.name != first):
            try:
                seen = await self.look(volume, read_only=disk.read_only, direct=bool(disk.mpgroup))
            except (OSError, trio.TooSlowError) as error:
                reasons.append(f"{volume.name}: {words(error)}")
            else:
                return Found(volume=volume, probe=seen)
        return "; ".join(reasons)

    async def resolve(self, definition: DomainDefinition) -> dict[str, Found]:
        """Vdisk -> the volume that serves it. Raises NotFound naming what is not there, WrongState."""
        found: dict[str, Found] = {}
        for disk in definition.vdisks:
            self.require_options(disk)
            name = f"{disk.volume}@{disk.service}"
            if not self.candidates(disk):
                group = f", nor another of the multipath group {disk.mpgroup}"
                raise NotFound(
                    f"{definition.name}: there is no volume {name}{group if disk.mpgroup else ''} on this host",
                    remedy=f"add it to [vds.{disk.service}] in the configuration",
                )
        for disk, answer in zip(
            definition.vdisks, await self.of_each(definition, self.find), strict=True
        ):
            if isinstance(answer, str):
                raise NotFound(
                    f"{definition.name}: the volume of vdisk {disk.name} cannot be opened: {answer}",
                    remedy=f"look at its path and permissions in [vds.{disk.service}]; a volume is a file or a block device",
                )
            found[disk.name] = answer
        return found

    async def of_each(
        self, definition: DomainDefinition, ask: Callable[[VirtualDisk], Awaitable[T]]
    ) -> list[T]:
        """All at once: storage that does not answer costs one wait."""
        answers: dict[str, T] = {}

        async def keep(disk: VirtualDisk) -> None:
            answers[disk.name] = await ask(disk)

        async with trio.open_nursery() as nursery:
            for disk in definition.vdisks:
                nursery.start_soon(keep, disk)
        return [answers[disk.name] for disk in definition.vdisks]
