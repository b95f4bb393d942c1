"""Asks both managers and looks at the machine: the values that ``ldmd/campaign/promise.py`` judges."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ldmd.campaign.machine import find_processes
from ldmd.campaign.pair import Pair
from ldmd.campaign.promise import DomainView, HostView, MigrationView, Observation
from ldmd.demo.fleet import HOSTS


async def observe(pair: Pair, known: frozenset[str]) -> Observation:
    """``known``: migrations of earlier runs, which are left out. Raises LdmdError when a manager does not answer."""
    hosts = {name: await _look_at(pair, name, known) for name in HOSTS}
    return Observation(hosts=hosts, processes=find_copies(pair))


async def list_migrations(pair: Pair) -> frozenset[str]:
    """The ids of all that either journal has."""
    known: set[str] = set()
    for name in HOSTS:
        documents = (await pair.call(name, "list-migrations"))["migrations"]
        known.update(document["migration"] for document in documents)
    return frozenset(known)


def find_copies(pair: Pair) -> tuple[tuple[str, int], ...]:
    """Processes below the pair's folder: the domain's, since managers work elsewhere."""
    copies = []
    for pid, directory in find_processes(pair.folder).items():
        hosts = [name for name in HOSTS if directory == pair.directory(name)]
        copies.append((hosts[0] if hosts else "?", pid))
    return tuple(sorted(copies))


async def _look_at(pair: Pair, name: str, known: frozenset[str]) -> HostView:
    status = await pair.call(name, "status")
    domains = (await pair.call(name, "list-domains"))["domains"]
    migrations = (await pair.call(name, "list-migrations"))["migrations"]
    return HostView(
        domain=_view_domain(domains[0]) if domains else None,
        migrations=tuple(_view_migration(m) for m in migrations if m["migration"] not in known),
        open_migrations=status["migrations"],
        memory_held_bytes=status["memory_bytes"] - status["memory_free_bytes"],
        directories=_list_directories(pair.domains_directory(name)),
    )


def _view_domain(document: dict[str, Any]) -> DomainView:
    return DomainView(state=document["state"], run_state=document["run_state"], pid=document["pid"])


def _view_migration(document: dict[str, Any]) -> MigrationView:
    records = document["records"]
    return MigrationView(
        id=document["migration"],
        side=document["role"],
        decision=document["decision"],
        settled=document["settled"],
        kinds=tuple(record["kind"] for record in records),
        began_unix_ms=records[0]["time_unix_ms"] if records else 0,
    )


def _list_directories(path: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(path)))
    except FileNotFoundError:
        return ()
