"""Dialler and listener over real sockets: who may talk to whom, and what either side is told."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio

from certs.authority import create_authority
from certs.issue import issue_host, self_signed_host
from ldmd.errors import ConfigurationError, LinkError
from ldmd.link.dialer import dial
from ldmd.link.identity import Peer, fingerprint
from ldmd.link.tls import ALPN, TlsFiles
from tests.ldmd.link.fleet import (
    Fleet,
    at,
    der,
    expect_failure,
    long_ago,
    receive_exactly,
    serving,
    sign_certificate,
    wait_logged,
)

HOST_A = Peer(name="host-a")


async def _expect_no_link(peer: Peer, files: TlsFiles, reason: str, *words: str) -> LinkError:
    with trio.fail_after(5), pytest.raises(LinkError) as caught:
        await dial(peer, files, timeout_seconds=2)
    assert caught.value.facts["reason"] == reason, caught.value.sentence
    assert caught.value.remedy
    for word in words:
        assert word in caught.value.sentence
    return caught.value


async def _expect_refusal(peer: Peer, files: TlsFiles, *words: str) -> None:
    """TLS 1.3: the dialler's handshake is done before it is refused; its first receive says so."""
    with trio.fail_after(5):
        link = await dial(peer, files)
        error = await expect_failure(link.stream)
        await link.stream.aclose()
    assert error.facts["reason"] == "refused"
    for word in ("host-b refused", *words):
        assert word in error.sentence


# ---- links that are to be ----------------------------------------------------------------------


async def _expect_echo(peer: Peer, files: TlsFiles) -> None:
    with trio.fail_after(5):
        link = await dial(peer, files)
        async with link.stream:
            assert link.peer is peer
            assert link.stream.alpn == ALPN
            await link.stream.send_all(b"hello, ", b"target")
            assert await receive_exactly(link.stream, 13) == b"hello, target"


async def test_hosts_of_one_fleet(fleet: Fleet) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    async with serving(b, [HOST_A]) as port:
        await _expect_echo(at(port), a)
        await _expect_echo(attrs.evolve(at(port), address=("localhost", port)), a)


async def test_hosts_that_pinned_each_other(fleet: Fleet) -> None:
    a, b = fleet.add_self_signed("host-a"), fleet.add_self_signed("host-b")
    pin_a, pin_b = fleet.pin("host-b", a, "host-a"), fleet.pin("host-a", b, "host-b")
    async with serving(b, [attrs.evolve(HOST_A, certificate=pin_a)]) as port:
        await _expect_echo(at(port, certificate=pin_b), a)


async def test_pinned_on_one_side_and_fleet_on_the_other(fleet: Fleet) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    pin_a = fleet.pin("host-b", a, "host-a")
    async with serving(b, [attrs.evolve(HOST_A, certificate=pin_a)]) as port:
        await _expect_echo(at(port), a)


async def test_the_handler_is_told_which_peer(fleet: Fleet) -> None:
    a, c, b = fleet.add("host-a"), fleet.add("host-c"), fleet.add("host-b")
    host_c = Peer(name="host-c")
    came: list[Peer] = []

    async def note(_stream: object, peer: Peer) -> None:
        came.append(peer)

    async with serving(b, [HOST_A, host_c], note) as port:
        for files in (c, a):
            link = await dial(at(port), files)
            assert await link.stream.receive_into(memoryview(bytearray(1))) == 0
            await link.stream.aclose()
    assert came == [host_c, HOST_A]


async def test_a_new_certificate_counts_without_a_restart(fleet: Fleet) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    async with serving(b, [HOST_A]) as port:
        seen = []
        for _ in range(2):
            link = await dial(at(port), a)
            seen.append(link.stream.peer_certificate)
            await link.stream.aclose()
            fleet.add("host-b")
            fleet.add("host-a")
        await _expect_echo(at(port), a)
    assert seen[0] != seen[1]


# ---- the dialler refuses -----------------------------------------------------------------------


async def test_another_host_answers(fleet: Fleet) -> None:
    a, c = fleet.add("host-a"), fleet.add("host-c")
    async with serving(c, [HOST_A]) as port:
        error = await _expect_no_link(at(port), a, "wrong-peer", "dialled host-b", "host-c")
    assert error.facts["fingerprint"]


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["*"], "wildcard"),
        (["*.example"], "wildcard"),
        (["host-b", "host-c"], "2 DNS names"),
        ([], "no DNS name"),
    ],
)
async def test_names_that_could_be_anybody(fleet: Fleet, names: list[str], word: str) -> None:
    a = fleet.add("host-a")
    b = fleet.add("host-b", sign_certificate(fleet.authority, names, common_name="host-b"))
    async with serving(b, [HOST_A]) as port:
        await _expect_no_link(at(port), a, "bad-name", word)


async def test_target_certificate_expired(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    a = fleet.add("host-a")
    b = fleet.add("host-b", issue_host(fleet.authority, "host-b", 1, not_before=long_ago()))
    async with serving(b, [HOST_A]) as port:
        await _expect_no_link(at(port), a, "expired", "host-b", "expired")
        await wait_logged(caplog, "refused our certificate: it has expired")


async def test_pinned_target_certificate_expired(fleet: Fleet) -> None:
    """A trust anchor is not exempt from its own time."""
    a = fleet.add("host-a")
    b = fleet.add("host-b", self_signed_host("host-b", 1, not_before=long_ago()))
    pin_a, pin_b = fleet.pin("host-b", a, "host-a"), fleet.pin("host-a", b, "host-b")
    async with serving(b, [attrs.evolve(HOST_A, certificate=pin_a)]) as port:
        await _expect_no_link(at(port, certificate=pin_b), a, "expired")


async def test_target_of_another_authority(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b", issue_host(create_authority(), "host-b"))
    async with serving(b, [HOST_A]) as port:
        await _expect_no_link(at(port), a, "wrong-authority", "not signed by the configured")
        await wait_logged(caplog, "refused our certificate: it knows no authority for it")


async def test_self_signed_target_that_is_not_pinned(fleet: Fleet) -> None:
    a, b = fleet.add("host-a"), fleet.add_self_signed("host-b")
    pin_a = fleet.pin("host-b", a, "host-a")
    async with serving(b, [attrs.evolve(HOST_A, certificate=pin_a)]) as port:
        await _expect_no_link(at(port), a, "wrong-authority", "self-signed and not pinned")


async def test_the_authority_cannot_speak_for_a_pinned_peer(fleet: Fleet) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    pin_b = fleet.pin("host-a", fleet.add("true-b", self_signed_host("host-b")), "host-b")
    async with serving(b, [HOST_A]) as port:
        await _expect_no_link(at(port, certificate=pin_b), a, "wrong-authority")


# ---- the listener refuses ----------------------------------------------------------------------


async def test_source_certificate_expired(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    a = fleet.add("host-a", issue_host(fleet.authority, "host-a", 1, not_before=long_ago()))
    b = fleet.add("host-b")
    async with serving(b, [HOST_A]) as port:
        await _expect_refusal(at(port), a, "it has expired")
        record = await wait_logged(caplog, "refused a link from 127.0.0.1", "[expired]")
    assert record.levelname == "WARNING"
    assert [r.levelname for r in caplog.records].count("WARNING") == 1


async def test_source_of_another_authority(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    other = fleet.add("host-a", issue_host(create_authority(), "host-a"))
    b = fleet.add("host-b")
    a = attrs.evolve(other, authorities=b.authorities)
    async with serving(b, [HOST_A]) as port:
        await _expect_refusal(at(port), a, "it knows no authority for it")
        await wait_logged(caplog, "refused a link from", "[wrong-authority]")


async def test_a_refusal_shows_in_a_send_too(fleet: Fleet) -> None:
    """The alert may arrive while the dialler is still sending; the reset must not hide it."""
    other = fleet.add("host-a", issue_host(create_authority(), "host-a"))
    b = fleet.add("host-b")
    a = attrs.evolve(other, authorities=b.authorities)
    async with serving(b, [HOST_A]) as port:
        with trio.fail_after(5):
            link = await dial(at(port), a)
            with pytest.raises(LinkError, match="host-b refused our certificate"):
                await link.stream.send_all(bytes(256 * 1024 * 1024))
            await link.stream.aclose()


async def test_source_that_is_no_peer(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    identity = issue_host(fleet.authority, "host-c")
    c, b = fleet.add("host-c", identity), fleet.add("host-b")
    async with serving(b, [HOST_A], refusal=lambda error: error.sentence.encode()) as port:
        with trio.fail_after(5):
            link = await dial(at(port), c)
            told = await receive_exactly(link.stream, 44)
            await link.stream.aclose()
        await wait_logged(caplog, "host-c", fingerprint(der(identity)), "[unknown-peer]")
    assert told == b"no peer is configured with the name host-c ("


async def test_source_that_is_no_peer_sees_an_orderly_end(fleet: Fleet) -> None:
    c, b = fleet.add("host-c"), fleet.add("host-b")
    async with serving(b, [HOST_A]) as port:
        with trio.fail_after(5):
            link = await dial(at(port), c)
            assert await link.stream.receive_into(memoryview(bytearray(10))) == 0
            await link.stream.aclose()


async def test_nobody_else_speaks_for_a_pinned_source(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    b, a = fleet.add("host-b"), fleet.add("host-a")  # host-a by the authority
    pin_a = fleet.pin("host-b", fleet.add("true-a", self_signed_host("host-a")), "host-a")
    async with serving(b, [attrs.evolve(HOST_A, certificate=pin_a)]) as port:
        link = await dial(at(port), a)
        assert await link.stream.receive_into(memoryview(bytearray(10))) == 0
        await link.stream.aclose()
        await wait_logged(caplog, "not the one pinned", "[not-pinned]")


async def test_a_pinned_peer_cannot_sign_for_others(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """host-c is pinned at host-b and uses its key to make a certificate for host-a."""
    pinned = self_signed_host("host-c")
    b = fleet.add("host-b")
    pin_c = fleet.pin("host-b", fleet.add("host-c", pinned), "host-c")
    forging = create_authority()
    forged = sign_certificate(
        attrs.evolve(forging, certificate=pinned.certificate, key=pinned.key), ["host-a"]
    )
    files = fleet.add("forger", forged)
    files.certificate.write_bytes(
        files.certificate.read_bytes() + (fleet.folder / "host-c/host.crt").read_bytes()
    )
    files = attrs.evolve(files, authorities=b.authorities)
    async with serving(b, [HOST_A, Peer(name="host-c", certificate=pin_c)]) as port:
        await _expect_refusal(at(port), files)
        await wait_logged(caplog, "refused a link from", "[wrong-authority]")


async def test_an_unusable_pin_stops_that_peer_alone(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, c, b = fleet.add("host-a"), fleet.add("host-c"), fleet.add("host-b")
    broken = Peer(name="host-c", certificate=tmp_path / "missing.crt")
    async with serving(b, [HOST_A, broken]) as port:
        await _expect_echo(at(port), a)
        await wait_logged(caplog, "no links from host-c", "missing.crt")
        link = await dial(at(port), c)
        assert await link.stream.receive_into(memoryview(bytearray(10))) == 0
        await link.stream.aclose()
        await wait_logged(caplog, "refused a link", "missing.crt")


async def test_unusable_own_files_fail_closed(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    async with serving(b, [HOST_A]) as port:
        b.key.unlink()
        await _expect_no_link(at(port), a, "closed-in-handshake")
        await wait_logged(caplog, "refused a link from", str(b.key), "ldm-certs issue")
        fleet.add("host-b")
        await _expect_echo(at(port), a)


# ---- other programs at either end --------------------------------------------------------------


@asynccontextmanager
async def _other_server(
    serve: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _send_banner(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
    await trio.sleep_forever()


async def _say_nothing(_stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def _close(_stream: trio.SocketStream) -> None:
    pass  # trio closes it


async def _answer_in_clear(stream: trio.SocketStream) -> None:
    await stream.receive_some(64)
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def _reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (_send_banner, "not-tls"),
        (_answer_in_clear, "not-tls"),
        (_say_nothing, "silent"),
        (_close, "closed-in-handshake"),
        (_reset, "closed-in-handshake"),
    ],
)
async def test_another_service_listens_there(
    fleet: Fleet, serve: Callable[[trio.SocketStream], Awaitable[None]], reason: str
) -> None:
    a = fleet.add("host-a")
    async with _other_server(serve) as port:
        with trio.fail_after(3), pytest.raises(LinkError, match="host-b") as caught:
            await dial(at(port), a, timeout_seconds=0.3)
    assert caught.value.facts["reason"] == reason, caught.value.sentence
    assert caught.value.remedy


def _foreign_context(side: int, files: TlsFiles, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authorities[0])
    return context


@pytest.mark.parametrize(
    ("version", "reason"),
    [(ssl.TLSVersion.TLSv1_2, "protocol-version"), (ssl.TLSVersion.TLSv1_3, "not-a-manager")],
)
async def test_another_tls_service_listens_there(
    fleet: Fleet, version: ssl.TLSVersion, reason: str
) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    context = _foreign_context(ssl.PROTOCOL_TLS_SERVER, b, version)

    def shake_hands(descriptor: int) -> None:
        sock = socket.socket(fileno=descriptor)
        sock.settimeout(3)
        with sock, suppress(OSError), context.wrap_socket(sock, server_side=True) as server:
            server.recv(1)

    async def serve(stream: trio.SocketStream) -> None:
        await trio.to_thread.run_sync(shake_hands, os.dup(stream.socket.fileno()))

    async with _other_server(serve) as port:
        await _expect_no_link(at(port), a, reason)


@pytest.mark.parametrize(
    ("version", "with_certificate", "reason"),
    [
        (ssl.TLSVersion.TLSv1_2, True, "protocol-version"),
        (ssl.TLSVersion.TLSv1_3, False, "no-certificate"),
        (ssl.TLSVersion.TLSv1_3, True, "not-a-manager"),
    ],
)
async def test_another_tls_client_dials(
    fleet: Fleet,
    caplog: pytest.LogCaptureFixture,
    version: ssl.TLSVersion,
    with_certificate: bool,
    reason: str,
) -> None:
    a, b = fleet.add("host-a"), fleet.add("host-b")
    context = _foreign_context(ssl.PROTOCOL_TLS_CLIENT, a, version)
    if not with_certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(a.authorities[0])
    async with serving(b, [HOST_A]) as port:
        with trio.fail_after(5):
            tls = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context)
            with suppress(
                trio.BrokenResourceError
            ):  # as it is refused: an alert, or no more than the end
                await tls.do_handshake()
                assert await tls.receive_some(1) == b""
            await trio.aclose_forcefully(tls)
        await wait_logged(caplog, "refused a link from 127.0.0.1", f"[{reason}]")


# ---- nobody there ------------------------------------------------------------------------------


async def test_nothing_listens(fleet: Fleet) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: the port stays free of others
        error = await _expect_no_link(
            at(free.getsockname()[1]), fleet.add("host-a"), "connection-refused", "127.0.0.1"
        )
    assert "start the manager" in error.remedy


async def test_no_answer_to_the_connection(fleet: Fleet) -> None:
    """A full backlog: the kernel drops the SYN, as a host that is gone does."""
    a = fleet.add("host-a")
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(full.getsockname())
            with trio.fail_after(3), pytest.raises(LinkError, match="no answer") as caught:
                await dial(at(full.getsockname()[1]), a, timeout_seconds=0.3)
        finally:
            for sock in waiting:
                sock.close()
    assert caught.value.facts["reason"] == "timed-out"


async def test_addresses_that_are_none(fleet: Fleet) -> None:
    a = fleet.add("host-a")
    peer = attrs.evolve(at(1), address=("no..such", 1))
    await _expect_no_link(peer, a, "unresolved", "no..such")
    with pytest.raises(ConfigurationError, match="has no address"):
        await dial(Peer(name="host-b"), a)
