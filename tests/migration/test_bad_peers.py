"""What bad input gets: a clear error here, a line in the log there, nothing changed, nobody hangs."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from pathlib import Path

import pytest
import trio

from certs.authority import create_authority
from certs.issue import issue_host
from certs.store import write_identity
from ldmd.errors import LdmdError, LinkError, MigrationFailed
from tests.managers import Fleet, make_fleet, wait_for
from tests.migration.oracle import assert_oracle

ONE_HYPERVISOR_AND_FAULTS = '[faults]\nallowed = true\n[hypervisors]\nenabled = ["emulated"]\n'
"""Finding out what another hypervisor can do takes time in the first check after each start."""

YEARS_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


async def assert_refused(fleet: Fleet, words: str, logged: str = "") -> None:
    """The migration fails with ``words``, soon; host-b's log has ``logged``; the domain runs on."""
    with trio.fail_after(12), pytest.raises(LdmdError) as caught:
        await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
    assert isinstance(caught.value, LinkError | MigrationFailed)
    assert words in caught.value.sentence
    assert "stays on host-a" in caught.value.sentence
    if logged:
        await wait_for(lambda: has_logged(fleet, logged))
    assert await fleet.copies() == {"host-a": "running"}
    for manager in fleet.managers.values():
        if manager.process is not None:
            for migration in (await manager.call("list-migrations"))["migrations"]:
                assert (migration["decision"], migration["settled"]) == ("source", True)


async def runs_at_source(fleet: Fleet) -> bool:
    return await fleet.copies() == {"host-a": "running"}


async def has_logged(fleet: Fleet, words: str) -> bool:
    return words in fleet["host-b"].log()


@pytest.mark.parametrize("victim", ["host-a", "host-b"])
async def test_expired_certificate(victim: str, tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        authority = create_authority("test authority", not_before=YEARS_AGO)
        expired = issue_host(authority, victim, 30, not_before=YEARS_AGO)
        for name in ("host-a", "host-b"):
            identity = expired if name == victim else issue_host(authority, name)
            tls = fleet[name].folder / "tls"
            (tls / "ca.crt").unlink()
            write_identity(tls, identity, force=True)
        await assert_refused(fleet, "expired", "refused a link" if victim == "host-a" else "")


async def test_another_authority(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        tls = fleet["host-b"].folder / "tls"
        (tls / "ca.crt").unlink()
        write_identity(tls, issue_host(create_authority("another"), "host-b"), force=True)
        await assert_refused(fleet, "authority")


async def test_another_host_answers(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, "host-a", "host-b", "host-c") as fleet:
        await fleet.start_domain("host-a")
        text = (fleet["host-a"].folder / "ldmd.toml").read_text()
        await fleet["host-a"].stop()
        swapped = text.replace(f":{fleet['host-b'].port}", f":{fleet['host-c'].port}", 1)
        (fleet["host-a"].folder / "ldmd.toml").write_text(swapped)
        await fleet["host-a"].start()
        await assert_refused(fleet, "host-c")


async def test_a_manager_that_is_no_peer_is_told(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, start=False) as fleet:
        fleet["host-b"].configure({"host-c": 1})
        for manager in fleet.managers.values():
            await manager.start()
        await fleet.start_domain("host-a")
        await assert_refused(fleet, "host-b ended the link", "refused a link")


async def test_a_peer_that_may_not_send(tmp_path: Path) -> None:
    async with make_fleet(tmp_path, start=False) as fleet:
        path = fleet["host-b"].folder / "ldmd.toml"
        path.write_text(path.read_text() + "may-send = false\n")
        for manager in fleet.managers.values():
            await manager.start()
        await fleet.start_domain("host-a")
        await assert_refused(fleet, "may not send domains", "may not send domains")


async def test_nobody_there(tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        await fleet["host-b"].stop()
        fleet.managers.pop("host-b")
        await assert_refused(fleet, "nothing listens there")


@pytest.mark.parametrize("manner", ["says nothing", "sends a banner", "closes at once", "random"])
async def test_something_else_listens_there(manner: str, tmp_path: Path) -> None:
    async with make_fleet(tmp_path) as fleet, trio.open_nursery() as nursery:
        await fleet.start_domain("host-a")
        host_b = fleet.managers.pop("host-b")
        await host_b.stop()

        async def behave(stream: trio.SocketStream) -> None:
            if manner == "sends a banner":
                await stream.send_all(b"220 mail.example ESMTP\r\n")
            elif manner == "random":
                await stream.send_all(os.urandom(4096))
            if manner != "closes at once":
                await trio.sleep_forever()

        listeners = await trio.open_tcp_listeners(host_b.port, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, behave, listeners)
        await assert_refused(fleet, "host-b")
        nursery.cancel_scope.cancel()


async def test_strangers_do_not_disturb(tmp_path: Path) -> None:
    """Random bytes, half-open peers, TLS 1.2, no certificate: and a migration goes through meanwhile."""
    async with make_fleet(tmp_path) as fleet:
        await fleet.start_domain("host-a")
        port = fleet["host-b"].port
        quiet = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(os.urandom(2000))
        for highest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = highest
            with pytest.raises((ssl.SSLError, ConnectionError)):
                knock(port, context)
        result = await fleet["host-a"].call("migrate-domain", {"domain": "ldg1", "peer": "host-b"})
        assert result["outcome"] == "completed"
        assert await fleet.copies() == {"host-b": "running"}
        for sock in quiet:
            sock.close()
        assert fleet["host-b"].log().count("refused a link") >= 20


def knock(port: int, context: ssl.SSLContext) -> None:
    """Without a certificate of ours: the handshake fails, or (TLS 1.3) the first read does."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=8) as sock,
        context.wrap_socket(sock) as wrapped,
    ):
        if not wrapped.recv(1):
            raise ConnectionError("closed")


BEFORE_HANDOFF = (
    "run-checks",
    "send-checked",
    "record-prepared",
    "create-domain",
    "send-prepared",
    "install-state",
    "send-installed",
)
"""What a target does before it may be asked to decide, in order; it may be as soon as INSTALLED was sent."""

GIVES_UP = {
    "dies": [f"{point}.{when}=crash" for point in BEFORE_HANDOFF for when in ("before", "after")][
        :-1
    ],
    "refuses": [
        "run-checks.before=fail",
        "create-domain.before=fail",
        "create-domain.after=fail",
        "install-state.before=fail",
        "install-state.after=fail",
    ],
}
AGAIN_SECONDS_MAX = 1.0
"""From noticing until the domain runs again."""


@pytest.mark.slow
@pytest.mark.parametrize("manner", GIVES_UP)
async def test_a_target_that_gives_up_before_handoff(manner: str, tmp_path: Path) -> None:
    """At any point: the domain runs on within a second of noticing, and the next migration of it succeeds."""
    extra = dict.fromkeys(("host-a", "host-b"), ONE_HYPERVISOR_AND_FAULTS)
    async with make_fleet(tmp_path, extra=extra) as fleet:
        uuid = await fleet.start_domain("host-a")
        there, back = {"domain": "ldg1", "peer": "host-b"}, {"domain": "ldg1", "peer": "host-a"}
        for fault in GIVES_UP[manner]:
            await fleet["host-b"].call("arm-fault", {"fault": f"target.{fault}"})
            said_before = len(fleet["host-a"].log())
            with pytest.raises(LdmdError):
                await fleet["host-a"].call("migrate-domain", there)
            assert await fleet.copies_at("host-a") == "running", fault
            log = fleet["host-a"].log()[said_before:]
            again_seconds = (at(log, ": kept") - noticed_at(log, manner)).total_seconds()
            assert again_seconds < AGAIN_SECONDS_MAX, (fault, log)
            if manner == "dies":
                await fleet["host-b"].wait_dead()
                await fleet["host-b"].start()
            else:
                fired = (await fleet["host-b"].call("list-faults"))["fired"]
                assert fired[-1] == f"target.{fault}"
            await wait_for(lambda: runs_at_source(fleet))
            await fleet["host-a"].call("migrate-domain", there)
            assert await fleet.copies() == {"host-b": "running"}, fault
            await fleet["host-b"].call("migrate-domain", back)
        await assert_oracle(fleet, "host-a", uuid)


def noticed_at(log: str, manner: str) -> datetime.datetime:
    """The link's loss; or the last thing that was under way when the refusal came, which is earlier."""
    if manner == "dies":
        return at(log, "[link-lost]")
    under_way = ("checking", "preparing", "verifying", "resuming")
    return max(at(log, f": {word}") for word in under_way if f": {word}" in log)


def at(log: str, words: str) -> datetime.datetime:
    line = next(line for line in log.splitlines() if words in line)
    return datetime.datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").replace(
        tzinfo=datetime.UTC
    )
