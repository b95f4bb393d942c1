"""A manager's own memory is constant whatever the domain's size."""

from __future__ import annotations

import re
from pathlib import Path

import trio

from tests.managers import Manager, make_fleet

DOMAIN_MIB = 1024
GROWTH_MIB_MAX = 48


def anonymous_mib(manager: Manager) -> float:
    """Mapped RAM of domains is shared memory and does not count here."""
    assert manager.process is not None
    status = Path(f"/proc/{manager.process.pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


async def test_a_large_domain_costs_no_memory(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a", memory_mib=DOMAIN_MIB, variables={"clock-mhz": "1000"})
        before = {m.name: anonymous_mib(m) for m in fleet.managers.values()}
        most = dict(before)
        await trio.sleep(1.0)  # it fills its RAM meanwhile

        async def watch() -> None:
            while True:
                for manager in fleet.managers.values():
                    most[manager.name] = max(most[manager.name], anonymous_mib(manager))
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            result = await fleet["host-a"].call(
                "migrate-domain", {"domain": "ldg1", "peer": "host-b"}
            )
            nursery.cancel_scope.cancel()
        assert result["bytes"] > DOMAIN_MIB * 2**20 * 0.9
        for name, mib in most.items():
            assert mib - before[name] < GROWTH_MIB_MAX, (name, before[name], mib)
