"""The migrations under way on this host, both sides, and the nursery that they run in."""

from __future__ import annotations

from collections.abc import Iterator

import trio
from attrs import define, field

from ldmd.migration import Migration
from protocol.actions import Action


@define(eq=False)
class Registry:
    nursery: trio.Nursery
    _running: dict[str, Migration] = field(factory=dict, init=False)

    def __iter__(self) -> Iterator[Migration]:
        return iter(list(self._running.values()))

    def get(self, migration_id: str) -> Migration | None:
        return self._running.get(migration_id)

    def of_domain(self, uuid: str) -> list[Migration]:
        """There can be several: dry runs, and one that only waits for its last word."""
        return [m for m in self._running.values() if m.definition.uuid == uuid]

    def start(self, migration: Migration, first: tuple[Action, ...] = ()) -> None:
        """Run it to its end; whoever asked for it may go away."""
        self._running[migration.id] = migration
        self.nursery.start_soon(self._run, migration, first)

    async def _run(self, migration: Migration, first: tuple[Action, ...]) -> None:
        try:
            await migration.run(first)
        finally:
            self._running.pop(migration.id, None)
