"""A control server with a small host behind it, for the command line: real socket, real protocol."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from ldmd.control import Arguments, Caller, Progress, Verb, serve_control
from ldmd.control_socket import open_control_socket
from ldmd.definition import DomainDefinition, from_document, to_document
from ldmd.errors import ChecksFailed, InDoubt, MigrationFailed, NotFound, WrongState

START_SECONDS = 10.0
MIGRATION = "0123456789abcdef0123456789abcdef"
DIGEST = "ab" * 16
FINDING = {
    "code": "memory",
    "subject": "ldg1",
    "sentence": "512MiB is needed, 64MiB is free",
    "remedy": "unbind another domain",
    "hard": True,
}
SOFT_FINDING = FINDING | {"code": "clocks", "remedy": "", "hard": False, "sentence": "70 s apart"}
PHASES = {"check": 0.02, "prepare": 0.3, "transfer": 1.25, "handoff": 0.015}
OPERATION = {
    "migration": MIGRATION,
    "kind": "migration",
    "role": "source",
    "phase": "transfer",
    "peer": "host-b",
    "percent": 62.4,
    "done_bytes": 40 * 2**20,
    "total_bytes": 64 * 2**20,
    "rate_bytes_per_second": 220.5 * 2**20,
    "remaining_seconds": 0.4,
    "in_doubt": False,
    "sentence": "",
}
STATES = {
    "bind-domain": ("inactive", "bound"),
    "unbind-domain": ("bound", "inactive"),
    "start-domain": ("bound", "active"),
    "stop-domain": ("active", "bound"),
    "suspend-domain": ("active", "active"),
    "resume-domain": ("active", "active"),
    "remove-domain": ("inactive", "removed"),
}


def progress_of(phase: str, percent: float) -> dict[str, Any]:
    names = ("total_bytes", "rate_bytes_per_second", "remaining_seconds")
    done_bytes = int(percent * 640 * 1024)
    rest = {name: OPERATION[name] for name in names}
    return {
        "event": "progress",
        "phase": phase,
        "percent": percent,
        "done_bytes": done_bytes,
    } | rest


class SmallHost:
    """Domains and a peer that always says yes, but for those named after what goes wrong."""

    def __init__(self) -> None:
        self.definitions: dict[str, DomainDefinition] = {}
        self.states: dict[str, str] = {}
        self.operations: dict[str, dict[str, Any]] = {}
        self.cancelled = threading.Event()
        self.migrations = 1
        self.migrating = threading.Event()
        self.asked: list[tuple[str, Mapping[str, object]]] = []

    def add(self, name: str, state: str = "active", **more: Any) -> None:
        self.definitions[name] = DomainDefinition(
            name=name,
            uuid="11111111-2222-3333-4444-555555555555",
            hypervisor="emulated",
            machine="riscv64-virt",
            memory_bytes=64 * 2**20,
            **more,
        )
        self.states[name] = state

    def describe(self, name: str) -> dict[str, Any]:
        if name not in self.definitions:
            raise NotFound(f"there is no domain {name} on this host", remedy="look at the list")
        definition, active = self.definitions[name], self.states[name] == "active"
        return {
            "name": name,
            "uuid": definition.uuid,
            "state": self.states[name],
            "run_state": "running" if active else None,
            "hypervisor": definition.hypervisor,
            "machine": definition.machine,
            "vcpus": definition.vcpus,
            "memory_bytes": definition.memory_bytes,
            "console": "/run/a|b/console.log" if active else None,
            "pid": 4711 if active else None,
            "operation": self.operations.get(name),
        }

    def verbs(self) -> dict[str, Verb]:
        own: dict[str, Verb] = {
            "status": self.status,
            "list-domains": self.list_domains,
            "show-definition": self.show_definition,
            "add-domain": self.add_domain,
            "migrate-domain": self.migrate_domain,
            "cancel-migration": self.cancel_migration,
            "list-migrations": self.list_migrations,
            "show-migration": self.show_migration,
        }
        return own | {verb: self.change(verb) for verb in STATES}

    async def status(self, _c: Caller, _arguments: Any, _p: Progress) -> dict[str, Any]:
        peer = {"name": "host-b", "address": "10.0.0.2:8101", "may_send": True}
        return {
            "host": "host-a",
            "release": "0.1.0",
            "pid": os.getpid(),
            "port": 8101,
            "memory_bytes": 8 * 2**30,
            "memory_free_bytes": 6 * 2**30,
            "vcpus": 4,
            "vcpus_free": 3,
            "peers": [peer | {"may_receive": False}],
        }

    async def list_domains(self, _c: Caller, arguments: Any, _p: Progress) -> dict[str, Any]:
        names = Arguments.of(arguments, "names").texts("names") or sorted(self.definitions)
        return {"host": "host-a", "domains": [self.describe(name) for name in names]}

    async def show_definition(self, _c: Caller, arguments: Any, _p: Progress) -> dict[str, Any]:
        name = Arguments.of(arguments, "domain").text("domain")
        return {"definition": to_document(self.definitions[name])}

    async def add_domain(self, _c: Caller, arguments: Any, _p: Progress) -> dict[str, Any]:
        document = Arguments.of(arguments, "definition").document("definition")
        definition = from_document(document)
        self.definitions[definition.name] = definition
        self.states[definition.name] = "inactive"
        return {"name": definition.name, "uuid": definition.uuid}

    def change(self, verb: str) -> Verb:
        async def carry_out(_c: Caller, arguments: Any, _p: Progress) -> dict[str, Any]:
            name = Arguments.of(arguments, "domain").text("domain")
            needed, after = STATES[verb]
            if self.describe(name)["state"] != needed:
                raise WrongState(f"{name} is {self.states[name]}", remedy=f"it must be {needed}")
            self.states[name] = after
            return {"domain": self.describe(name)}

        return carry_out

    async def migrate_domain(
        self, _c: Caller, arguments: Any, progress: Progress
    ) -> dict[str, Any]:
        given = Arguments.of(arguments, "domain", "peer", "new_name", "dry_run")
        self.asked.append(("migrate-domain", arguments))
        name = given.text("domain")
        self.describe(name)
        await progress({"event": "begun", "migration": MIGRATION})
        await progress({"event": "phase", "phase": "check", "migration": MIGRATION})
        if name == "too-big":
            facts = {"findings": [FINDING, SOFT_FINDING], "migration": MIGRATION}
            raise ChecksFailed("too-big cannot move to host-b", facts=facts)
        result = {"migration": MIGRATION, "findings": [SOFT_FINDING], "domain": name}
        if given.boolean("dry_run"):
            return result | {"outcome": "dry-run"}
        for phase in ("prepare", "transfer"):
            await progress({"event": "phase", "phase": phase, "migration": MIGRATION})
            for percent in (0.0, 4.0, 12.0, 15.0, 55.0, 100.0):
                await progress(progress_of(phase, percent))
        if name == "slow":
            self.migrating.set()
            while not self.cancelled.is_set():
                await trio.sleep(0.01)
            raise MigrationFailed("slow stays on host-a: cancelled", remedy="start it again")
        if name == "unlucky":
            await progress({"event": "in-doubt", "sentence": "host-b does not answer"})
            raise InDoubt("unlucky was granted to host-b, which does not answer")
        await progress({"event": "phase", "phase": "handoff", "migration": MIGRATION})
        cold = self.states[name] != "active"
        return result | {
            "outcome": "completed",
            "phases": PHASES,
            "bytes": 0 if cold else 64 * 2**20,
            "digest_source": None if cold else DIGEST,
            "digest_target": None if cold else DIGEST,
            "downtime_ms": None if cold else 118.4,
            "running_on": None if cold else given.text("peer"),
            "domain": given.optional_text("new_name") or name,
        }

    async def cancel_migration(self, _c: Caller, arguments: Any, _p: Progress) -> dict[str, Any]:
        given = Arguments.of(arguments, "domain", "migration")
        self.asked.append(("cancel-migration", arguments))
        name = given.optional_text("domain") or "slow"
        assert given.optional_text("migration") in (None, MIGRATION)
        self.describe(name)
        self.cancelled.set()
        if name == "slow":
            answer = {"outcome": "cancelled", "decision": "source"}
            return answer | {"migration": MIGRATION, "sentence": "slow stays on host-a"}
        answer = {"outcome": "too-late", "decision": "target", "migration": MIGRATION}
        return answer | {"sentence": f"too late: {name} is on host-b"}

    async def list_migrations(self, _c: Caller, arguments: Any, _p: Progress) -> dict[str, Any]:
        given = Arguments.of(arguments, "limit", "before")
        first = int(given.optional_text("before") or 0)
        end = min(first + given.whole("limit", 1, 500, default=100), self.migrations)
        described = [self.describe_migration() for _ in range(first, end)]
        return {"migrations": described, "next": str(end) if end < self.migrations else None}

    async def show_migration(self, _c: Caller, arguments: Any, _p: Progress) -> dict[str, Any]:
        wanted = Arguments.of(arguments, "migration").text("migration")
        if not MIGRATION.startswith(wanted):
            raise NotFound(f"there is no migration {wanted}")
        return self.describe_migration()

    def describe_migration(self) -> dict[str, Any]:
        kinds = ("PREPARING", "GRANTED", "COMPLETED", "SETTLED")
        return {
            "migration": MIGRATION,
            "domain": "ldg1",
            "uuid": "11111111-2222-3333-4444-555555555555",
            "role": "source",
            "peer": "host-b",
            "decision": "target",
            "records": [
                {"kind": kind, "time_unix_ms": 1_700_000_000_000 + n, "sentence": ""}
                for n, kind in enumerate(kinds)
            ],
            "settled": True,
            "sentence": "",
            "state": "moved",
            "meaning": "ended: ldg1 is host-b's",
            "remedy": "nothing is to be done",
        }


@contextlib.contextmanager
def serving(path: Path, host: SmallHost) -> Iterator[None]:
    """Serve ``host`` in a thread of its own, as the command line runs trio in this one."""
    ready, failures = threading.Event(), list[BaseException]()
    stop: list[Any] = []

    async def serve() -> None:
        with open_control_socket(path, group=os.getegid()) as listener, trio.CancelScope() as scope:
            token = trio.lowlevel.current_trio_token()
            stop.append(lambda: token.run_sync_soon(scope.cancel))
            ready.set()
            await serve_control(listener, host.verbs(), allowed_group=os.getegid())

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:  # shown by the test, not lost with the thread
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(START_SECONDS)
        yield
    finally:
        host.cancelled.set()
        for call in stop:
            with contextlib.suppress(trio.RunFinishedError):
                call()
        thread.join(START_SECONDS)
    assert not thread.is_alive()
    assert not failures
