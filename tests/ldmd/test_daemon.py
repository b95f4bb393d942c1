"""The daemon as a process: its command line, its start, its stop, and every verb's answer."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmd import __version__
from ldmd.daemon import OUR_PACKAGES, require_own_packages
from ldmd.errors import (
    Busy,
    ChecksFailed,
    ConfigurationError,
    DefinitionError,
    JournalError,
    LdmdError,
    NotAllowed,
    NotFound,
    WrongState,
)
from tests.managers import Fleet, Manager, free_port, make_fleet, wait_for

MIB = 1024 * 1024


def run_daemon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ldmd.daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# ---- the command line ------------------------------------------------------------------------------------


def test_the_version() -> None:
    done = run_daemon("--version")
    assert (done.returncode, done.stdout) == (0, f"ldmd, version {__version__}\n")


async def test_a_right_configuration_is_checked_and_nothing_is_made(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", start=False) as fleet:
        path = fleet["host-a"].folder / "ldmd.toml"
        before = sorted(path.parent.rglob("*"))
        done = run_daemon("--config", str(path), "--check")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: all right\n", "")
        assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("check", [["--check"], []], ids=["check", "start"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[host\n", "not TOML"),
        ('[host]\nname = "host-a"\ncolour = "red"\n', "host.colour: unknown key"),
        ("[host]\n", "host.name: is missing"),
        (None, "no such file or directory"),
    ],
)
def test_a_broken_configuration(
    text: str | None, words: str, check: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "ldmd.toml"
    if text is not None:
        path.write_text(text)
    done = run_daemon("--config", str(path), *check)
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.startswith(f"ldmd: {path}: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# ---- packages of the same name ---------------------------------------------------------------------------


@pytest.mark.parametrize("package", OUR_PACKAGES)
def test_a_foreign_package_of_our_name_is_refused(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: Mapping[str, list[str]] = {
        name: ["ldmd", *(["stranger"] if name == package else [])] for name in OUR_PACKAGES
    }
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    with pytest.raises(ConfigurationError, match=f"the package {package} .* belongs to stranger"):
        require_own_packages()


@pytest.mark.parametrize(
    "owners", [{}, {name: ["ldmd"] for name in OUR_PACKAGES}, {"other": ["x"]}]
)
def test_our_own_packages_are_right(
    owners: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    require_own_packages()


def test_here_nothing_is_foreign() -> None:
    require_own_packages()


# ---- starting and stopping -------------------------------------------------------------------------------


def start_with(manager: Manager, **environment: str) -> subprocess.Popen[bytes]:
    """As ``Manager.start``, with more in the environment; the fleet ends it."""
    with manager.log_path.open("ab") as log:
        manager.process = subprocess.Popen(
            [sys.executable, "-m", "ldmd.daemon", "--config", str(manager.folder / "ldmd.toml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | environment,
        )
    return manager.process


@pytest.fixture
def service_manager(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(20)
        yield path, sock


async def test_ready_is_said_when_it_listens_and_stopping_when_it_stops(
    tmp_path: Path, service_manager: tuple[str, socket.socket]
) -> None:
    path, sock = service_manager
    async with make_fleet(tmp_path, "host-a", start=False) as fleet:
        manager = fleet["host-a"]
        process = start_with(manager, NOTIFY_SOCKET=path)
        ready = sock.recv(4096).decode().splitlines()
        # at once, without another try
        socket.create_connection(("127.0.0.1", manager.port), timeout=5).close()
        status = await manager.call("status")
        assert status["port"] == manager.port
        assert ready[0] == "READY=1"
        assert ready[1] == f"STATUS=listening on port {manager.port}, 0 migrations recovered"
        process.send_signal(signal.SIGTERM)
        assert sock.recv(4096).decode().splitlines()[0] == "STOPPING=1"
        assert await manager.wait_dead() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_right_after_ready_is_a_clean_stop(
    number: signal.Signals, tmp_path: Path, service_manager: tuple[str, socket.socket]
) -> None:
    path, sock = service_manager
    async with make_fleet(tmp_path, "host-a", start=False) as fleet:
        process = start_with(fleet["host-a"], NOTIFY_SOCKET=path)
        assert sock.recv(4096).startswith(b"READY=1")
        process.send_signal(number)
        assert await fleet["host-a"].wait_dead(5) == 0
        assert not fleet["host-a"].socket.exists()
        assert "Traceback" not in fleet["host-a"].log()


async def test_domains_go_on_when_it_stops_and_are_there_when_it_is_back(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        manager = fleet["host-a"]
        identity = await fleet.start_domain("host-a")
        before = (await manager.domains())["ldg1"]
        journal = (await manager.call("status"))["journal"]
        with trio.fail_after(5):
            assert await manager.stop() == 0
        printed = fleet.console("host-a", identity)

        async def prints_more() -> bool:
            return len(fleet.console("host-a", identity)) > len(printed)

        await wait_for(prints_more)
        await manager.start()
        assert (await manager.domains())["ldg1"] == before
        assert (await manager.call("status"))["journal"] == journal
        await manager.call("stop-domain", {"domain": "ldg1"})


async def test_one_that_ends_by_itself_is_bound_soon(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a")
        os.kill((await fleet["host-a"].domains())["ldg1"]["pid"], signal.SIGKILL)

        async def bound() -> bool:
            return (await fleet["host-a"].domains())["ldg1"]["state"] == "bound"

        await wait_for(bound)


async def test_listing_while_a_domain_comes_and_goes(tmp_path: Path) -> None:
    """Its process may be another, or none, by the time that it is asked."""
    async with make_fleet(tmp_path, "host-a") as fleet:
        await fleet.start_domain("host-a")
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(list_for_ever, fleet["host-a"])
            for _ in range(12):
                for verb in ("stop-domain", "start-domain"):
                    await fleet["host-a"].call(verb, {"domain": "ldg1"})
            nursery.cancel_scope.cancel()
        assert "bug" not in fleet["host-a"].log()


async def list_for_ever(manager: Manager) -> None:
    while True:
        await manager.domains()


async def test_a_domain_that_does_not_answer_at_start_is_not_taken_for_dead(
    tmp_path: Path,
) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        manager = fleet["host-a"]
        await fleet.start_domain("host-a")
        pid = (await manager.domains())["ldg1"]["pid"]
        await manager.stop()
        os.kill(pid, signal.SIGSTOP)
        await manager.start()
        shown = (await manager.domains())["ldg1"]
        assert (shown["state"], shown["run_state"], shown["pid"]) == ("active", "unknown", None)
        with pytest.raises(WrongState):
            await manager.call("start-domain", {"domain": "ldg1"})
        os.kill(pid, signal.SIGCONT)

        async def runs() -> bool:
            shown = (await manager.domains())["ldg1"]
            return (shown["run_state"], shown["pid"]) == ("running", pid)

        await wait_for(runs)


async def test_a_second_daemon_on_the_same_state_is_refused(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a") as fleet:
        manager = fleet["host-a"]
        config = manager.folder / "ldmd.toml"
        other = manager.folder / "other.toml"
        other.write_text(
            config.read_text()
            .replace(f"port = {manager.port}", f"port = {free_port()}")
            .replace('run-directory = "run"', 'run-directory = "run2"')
        )
        for path in (config, other):
            done = run_daemon("--config", str(path))
            assert done.returncode == JournalError.exit_status
            assert "is in use by another manager" in done.stderr
            assert "only one manager may run on one state-directory" in done.stderr
            assert "Traceback" not in done.stderr
        assert (await manager.call("status"))["host"] == "host-a"


async def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", start=False) as fleet:
        with socket.create_server(("127.0.0.1", fleet["host-a"].port)):
            done = run_daemon("--config", str(fleet["host-a"].folder / "ldmd.toml"))
        assert done.returncode not in (0, 1, -signal.SIGSEGV)
        assert str(fleet["host-a"].port) in done.stderr
        assert "Traceback" not in done.stderr


async def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", start=False) as fleet:
        (fleet["host-a"].folder / "state").write_text("in the way")
        done = run_daemon("--config", str(fleet["host-a"].folder / "ldmd.toml"))
        assert done.returncode == 78
        assert re.search(r"^ldmd: .*/state cannot be made: ", done.stderr)
        assert "Traceback" not in done.stderr


async def test_a_damaged_journal_starts_nothing_and_is_left_alone(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", start=False) as fleet:
        state = fleet["host-a"].folder / "state"
        state.mkdir()
        (state / "journal.sqlite").write_bytes(b"")
        done = run_daemon("--config", str(fleet["host-a"].folder / "ldmd.toml"))
        assert done.returncode == JournalError.exit_status
        assert "is damaged" in done.stderr
        assert "Traceback" not in done.stderr
        assert (state / "journal.sqlite").read_bytes() == b""
        assert not fleet["host-a"].socket.exists()


# ---- every verb ------------------------------------------------------------------------------------------


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    closed = f"""
[peers.host-z]
address = "127.0.0.1:{free_port()}"
may-receive = false
[peers.host-y]
address = "127.0.0.1:{free_port()}"
"""
    async with make_fleet(tmp_path, "host-a", extra={"host-a": closed}) as made:
        yield made


def define(name: str = "ldg1", **more: object) -> dict[str, object]:
    return {
        "name": name,
        "uuid": str(uuid.uuid4()),
        "hypervisor": "emulated",
        "machine": "riscv64-virt",
        "firmware": "oracle",
        "memory-bytes": 4 * MIB,
    } | more


def shape(value: Any) -> Any:
    """A result's form: names of keys and types of values, without what they say."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value)


PEER = {"name": str, "address": str, "may_send": bool, "may_receive": bool}
STATUS = {
    "host": str,
    "release": str,
    "pid": int,
    "port": int,
    "journal": str,
    "hypervisors": [str, str],
    "memory_bytes": int,
    "memory_free_bytes": int,
    "vcpus": int,
    "vcpus_free": int,
    "domains": int,
    "migrations": int,
    "peers": [PEER, PEER],
}
IDLE = type(None)
DOMAIN = {
    "name": str,
    "uuid": str,
    "state": str,
    "run_state": IDLE,
    "hypervisor": str,
    "machine": str,
    "vcpus": int,
    "memory_bytes": int,
    "console": IDLE,
    "pid": IDLE,
    "operation": IDLE,
}
ACTIVE_DOMAIN = DOMAIN | {"run_state": str, "console": str, "pid": int}


async def test_status(fleet: Fleet) -> None:
    manager = fleet["host-a"]
    status = await manager.call("status")
    assert shape(status) == STATUS
    assert manager.process is not None
    assert (status["host"], status["pid"], status["port"]) == (
        "host-a",
        manager.process.pid,
        manager.port,
    )
    assert [p["name"] for p in status["peers"]] == ["host-z", "host-y"]
    await manager.call("add-domain", {"definition": define()})
    await manager.call("bind-domain", {"domain": "ldg1"})
    after = await manager.call("status")
    assert after["memory_free_bytes"] == status["memory_free_bytes"] - 4 * MIB
    assert (after["vcpus_free"], after["domains"]) == (status["vcpus_free"] - 1, 1)


async def test_the_life_of_a_domain(fleet: Fleet) -> None:
    call = fleet["host-a"].call
    definition = define()
    added = await call("add-domain", {"definition": definition})
    assert added == {"name": "ldg1", "uuid": definition["uuid"]}
    shown = (await call("show-definition", {"domain": "ldg1"}))["definition"]
    assert definition.items() <= shown.items()
    assert await call("show-definition", {"domain": definition["uuid"]}) == {"definition": shown}

    for verb, state, run_state in (
        ("bind", "bound", None),
        ("start", "active", "running"),
        ("suspend", "active", "suspended"),
        ("resume", "active", "running"),
        ("stop", "bound", None),
        ("unbind", "inactive", None),
    ):
        result = await call(f"{verb}-domain", {"domain": "ldg1"})
        domain = result["domain"]
        assert set(result) == {"domain"}
        assert shape(domain) == (ACTIVE_DOMAIN if state == "active" else DOMAIN), verb
        assert (domain["state"], domain["run_state"]) == (state, run_state)
        listed = await call("list-domains", {"names": ["ldg1"]})
        assert listed == {"host": "host-a", "domains": [domain]}
    removed = await call("remove-domain", {"domain": "ldg1"})
    assert shape(removed) == {"domain": DOMAIN}
    assert await call("list-domains") == {"host": "host-a", "domains": []}


async def test_domains_are_listed_by_name(fleet: Fleet) -> None:
    call = fleet["host-a"].call
    for name in ("web2", "web1", "db1"):
        await call("add-domain", {"definition": define(name)})
    assert [d["name"] for d in (await call("list-domains"))["domains"]] == ["db1", "web1", "web2"]
    chosen = await call("list-domains", {"names": ["web2", "db1"]})
    assert [d["name"] for d in chosen["domains"]] == ["web2", "db1"]


async def test_no_migrations(fleet: Fleet) -> None:
    assert await fleet["host-a"].call("list-migrations") == {"migrations": [], "next": None}


REFUSED: list[tuple[str, dict[str, object], type[LdmdError], str]] = [
    ("list-domains", {"names": ["nobody"]}, NotFound, "there is no domain nobody"),
    ("show-definition", {"domain": "nobody"}, NotFound, "there is no domain nobody"),
    *(
        (f"{verb}-domain", {"domain": "nobody"}, NotFound, "there is no domain nobody")
        for verb in ("remove", "bind", "unbind", "start", "stop", "suspend", "resume")
    ),
    ("start-domain", {"domain": "ldg1"}, WrongState, "ldg1 is inactive; only a bound domain"),
    ("add-domain", {"definition": {"name": "x"}}, DefinitionError, "the definition is not valid"),
    ("add-domain", {"definition": define()}, Busy, "there is already a domain ldg1"),
    ("migrate-domain", {"domain": "nobody", "peer": "host-y"}, NotFound, "no domain nobody"),
    ("migrate-domain", {"domain": "ldg1", "peer": "host-x"}, NotFound, "no peer host-x"),
    ("migrate-domain", {"domain": "ldg1", "peer": "host-z"}, NotAllowed, "may not receive"),
    (
        "migrate-domain",
        {"domain": "ldg1", "peer": "host-y", "new_name": "../x"},
        DefinitionError,
        "is not a name for a domain",
    ),
    ("cancel-migration", {"domain": "ldg1"}, WrongState, "no migration of ldg1 is under way"),
    ("cancel-migration", {"domain": "nobody"}, NotFound, "there is no domain nobody"),
    ("show-migration", {"migration": "f" * 32}, NotFound, "there is no migration with"),
    ("show-migration", {"migration": ""}, NotFound, "there is no migration"),
]


async def test_what_is_refused_says_why(fleet: Fleet) -> None:
    call = fleet["host-a"].call
    await call("add-domain", {"definition": define()})
    before = await call("list-domains"), await call("list-migrations")
    for verb, arguments, error, words in REFUSED:
        with pytest.raises(LdmdError) as caught:
            await call(verb, arguments)
        assert caught.value.code == error.code, (verb, arguments)
        assert words in caught.value.sentence, (verb, arguments, caught.value.sentence)
    assert (await call("list-domains"), await call("list-migrations")) == before


VERBS_WITHOUT_ARGUMENTS = ("status", "list-migrations")
VERBS = (
    *VERBS_WITHOUT_ARGUMENTS,
    *("list-domains", "show-definition", "add-domain", "migrate-domain", "cancel-migration"),
    *("show-migration", "remove-domain", "bind-domain", "unbind-domain", "start-domain"),
    *("stop-domain", "suspend-domain", "resume-domain"),
)


async def test_arguments_are_strict(fleet: Fleet) -> None:
    call = fleet["host-a"].call
    for verb in VERBS:
        with pytest.raises(LdmdError, match="unknown argument 'colour'"):
            await call(verb, {"colour": "red"})
        if verb not in (*VERBS_WITHOUT_ARGUMENTS, "list-domains"):
            with pytest.raises(LdmdError, match="is missing"):
                await call(verb, {})


async def test_a_migration_that_cannot_begin_leaves_the_domain_free(fleet: Fleet) -> None:
    """host-y is not there."""
    call = fleet["host-a"].call
    await fleet.start_domain("host-a")
    for dry_run in (True, False):
        with pytest.raises(LdmdError):
            await call("migrate-domain", {"domain": "ldg1", "peer": "host-y", "dry_run": dry_run})
    assert await fleet.copies() == {"host-a": "running"}
    await call("stop-domain", {"domain": "ldg1"})


# ---- migrations, seen by an operator ---------------------------------------------------------------------

COMPLETED = {
    "migration": str,
    "outcome": str,
    "findings": [],
    "phases": dict.fromkeys(("check", "prepare", "transfer", "handoff"), float),
    "bytes": int,
    "digest_source": str,
    "digest_target": str,
    "downtime_ms": float,
    "running_on": str,
    "domain": str,
}
RECORD = {"kind": str, "time_unix_ms": int, "sentence": str}


async def test_what_a_migration_answers_and_leaves_in_the_history(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        identity = await fleet.start_domain("host-a")
        order = {"domain": "ldg1", "peer": "host-b"}
        dry = await fleet["host-a"].call("migrate-domain", order | {"dry_run": True})
        assert shape(dry) == {"migration": str, "outcome": str, "findings": [], "domain": str}
        assert (dry["outcome"], dry["domain"]) == ("dry-run", "ldg1")
        assert await fleet["host-a"].call("list-migrations") == {"migrations": [], "next": None}

        moved = await fleet["host-a"].call("migrate-domain", order | {"new_name": "moved"})
        assert shape(moved) == COMPLETED
        assert moved["digest_source"] == moved["digest_target"]
        assert (moved["outcome"], moved["running_on"], moved["domain"]) == (
            "completed",
            "host-b",
            "moved",
        )
        for host, peer, role, name, kinds in (
            ("host-a", "host-b", "source", "ldg1", "PREPARING GRANTED COMPLETED SETTLED"),
            ("host-b", "host-a", "target", "moved", "PREPARED COMMITTED RUNNING SETTLED"),
        ):
            call = fleet[host].call

            async def settled(call: Any = call) -> bool:
                return bool((await call("list-migrations"))["migrations"][0]["settled"])

            await wait_for(settled)
            (history,) = (await call("list-migrations"))["migrations"]
            assert shape(history) == {
                "migration": str,
                "domain": str,
                "uuid": str,
                "role": str,
                "peer": str,
                "decision": str,
                "records": [RECORD] * 4,
                "settled": bool,
                "sentence": str,
                "state": str,
                "meaning": str,
                "remedy": str,
            }
            assert history["migration"] == moved["migration"]
            assert history["uuid"] == identity
            assert (history["role"], history["peer"], history["domain"]) == (role, peer, name)
            assert history["decision"] == "target"
            assert " ".join(r["kind"] for r in history["records"]) == kinds
            assert await call("show-migration", {"migration": moved["migration"][:8]}) == history

        for host in ("host-a", "host-b"):
            await fleet[host].call("add-domain", {"definition": define("ldg2")})
        with pytest.raises(ChecksFailed) as caught:
            await fleet["host-a"].call("migrate-domain", order | {"domain": "ldg2"})
        findings: Any = caught.value.facts["findings"]
        assert [f["code"] for f in findings] == ["name-taken"]
