"""Making a link to a peer: resolve, connect, TLS, and make sure who answered."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import trio
from attrs import frozen

from ldmd.errors import ConfigurationError, LinkError
from ldmd.link.identity import Peer, verify_peer
from ldmd.link.stream import BulkTLSStream
from ldmd.link.tls import Explanation, TlsFiles, build_error, load_client_context

DIAL_SECONDS: Final = 10.0
"""From looking up the address to knowing who answered; three lost packets at the start fit in."""

_CONNECT_FAILURES: Final = {
    errno.ECONNREFUSED: Explanation(
        "connection-refused",
        "{peer}: nothing listens there",
        "start the manager on that host, or correct the peer's address and port",
    ),
    errno.EHOSTUNREACH: Explanation(
        "unreachable", "{peer}: the host is unreachable", "check host, network and firewall"
    ),
    errno.ENETUNREACH: Explanation(
        "unreachable", "{peer}: no route to that network", "check the routes of this host"
    ),
    errno.ETIMEDOUT: Explanation(
        "timed-out", "{peer}: no answer to the connection", "check host, network and firewall"
    ),
    errno.EACCES: Explanation(
        "not-permitted", "{peer}: a firewall forbids the connection", "allow it in the firewall"
    ),
    errno.EPERM: Explanation(
        "not-permitted", "{peer}: a firewall forbids the connection", "allow it in the firewall"
    ),
    errno.ECONNRESET: Explanation(
        "cut", "{peer}: the connection was reset at once", "check address and port"
    ),
}


@frozen(kw_only=True, eq=False)
class SecureStream:
    """An established link: the stream, and the configured peer that is proved to be at its other
    end."""

    stream: BulkTLSStream
    peer: Peer


def _causes(error: BaseException) -> Iterator[OSError]:
    """The operating system's own errors inside what trio raises for several attempts."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    elif error.__cause__ is not None:
        yield from _causes(error.__cause__)
    elif isinstance(error, OSError):
        yield error


def _explain_connect(error: OSError, label: str) -> LinkError:
    if isinstance(error, socket.gaierror):
        unresolved = Explanation(
            "unresolved",
            "{peer}: the address cannot be looked up",
            "correct the peer's address in the configuration, or the name service of this host",
        )
        return build_error(unresolved, label, system=error.strerror or str(error))
    causes = list(_causes(error))
    # of several addresses one that refuses says most
    known = next((e for e in _CONNECT_FAILURES if any(c.errno == e for c in causes)), None)
    if known is not None:
        words = os.strerror(known)
        return build_error(_CONNECT_FAILURES[known], label, system=words, errno=known)
    words = "; ".join(cause.strerror or str(cause) for cause in causes) or str(error)
    other = Explanation("connect", "{peer}: no connection", "check address, port and network")
    return build_error(other, label, system=words)


async def _connect(host: str, port: int, label: str) -> trio.SocketStream:
    try:
        return await trio.open_tcp_stream(host, port)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA cannot encode
        found = error if isinstance(error, OSError) else socket.gaierror(0, str(error))
        raise _explain_connect(found, label) from error


async def find_life(peer: Peer, *, timeout_seconds: float = DIAL_SECONDS) -> str:
    """What shows that the host at the peer's address is up, in words; "" when nothing answers there in time.

    Who takes a connection or refuses one has a kernel that runs. Raises LinkError, ConfigurationError when it could not even
    be tried: that says nothing of the host.
    """
    host, port = _address(peer)
    label = f"{peer.name} ({host} port {port})"
    with trio.move_on_after(timeout_seconds):
        try:
            stream = await _connect(host, port, label)
        except LinkError as error:
            reason = error.facts["reason"]
            if reason in ("connection-refused", "cut"):
                return f"{label} refuses connections"
            if reason == "unreachable" and error.facts["errno"] == errno.EHOSTUNREACH:
                return ""
            if reason == "timed-out":
                return ""
            raise
        await stream.aclose()
        return f"{label} takes connections"
    return ""


def _address(peer: Peer) -> tuple[str, int]:
    """Raises ConfigurationError."""
    if peer.address is None:
        raise ConfigurationError(
            f"peer {peer.name} has no address",
            remedy=f"add address and port of peer {peer.name} to the configuration",
        )
    return peer.address


async def _prove(stream: BulkTLSStream, peer: Peer, timeout_seconds: float) -> None:
    await stream.do_handshake(timeout_seconds=timeout_seconds)
    der = stream.peer_certificate
    assert der is not None, "CERT_REQUIRED gave no certificate"
    await trio.to_thread.run_sync(lambda: verify_peer(der, (peer,), dialled=peer))


async def dial(
    peer: Peer, files: TlsFiles, *, timeout_seconds: float = DIAL_SECONDS
) -> SecureStream:
    """A link to ``peer``, proved to be that peer, within ``timeout_seconds`` in all.

    Raises LinkError (facts: ``reason``, ``peer``) when there is none, ConfigurationError when our
    own files are unusable or the peer has no address. That the *peer* refuses *us* shows at the
    first receive or send (TLS 1.3).
    """
    host, port = _address(peer)
    label = f"{peer.name} ({host} port {port})"
    context: ssl.SSLContext = await trio.to_thread.run_sync(load_client_context, files, peer)
    deadline = trio.current_time() + timeout_seconds
    transport: trio.SocketStream | None = None
    with trio.CancelScope(deadline=deadline):
        transport = await _connect(host, port, label)
    if transport is None:
        unanswered = Explanation(
            "timed-out", "{peer}: no answer to the connection", "check host, network and firewall"
        )
        raise build_error(unanswered, label, timeout_seconds=timeout_seconds)
    stream = BulkTLSStream(
        transport, context, server_side=False, peer_label=label, server_hostname=peer.name
    )
    try:
        await _prove(stream, peer, max(deadline - trio.current_time(), 0.0))
    except BaseException:
        await stream.aclose()
        raise
    stream.peer_label = peer.name
    return SecureStream(stream=stream, peer=peer)
