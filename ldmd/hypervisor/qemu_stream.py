"""QEMU's migration stream without RAM: out of a stopped domain, into one that was made to receive.

The stream goes over a socket pair whose other end QEMU gets with ``getfd``. The capability ``x-ignore-shared`` must be
set at both ends; it leaves out RAM that lies in shared memory.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import trio

from ldmd.errors import HypervisorError, OutcomeUnknown
from ldmd.hypervisor.qmp import Qmp
from protocol import limits

TRANSFER_SECONDS: Final = 60.0
"""For one device stream; seen: 5 ms for 0.2 MB. Activating vdisks on slow storage is part of it."""

RECEIVE_BYTES: Final = 256 * 1024
BANDWIDTH_BYTES_PER_SECOND: Final = 2**40
"""More than any host has. The default of 128 MiB/s is meant for a shared network; this is a local socket."""

_FINAL: Final = ("completed", "failed", "cancelled")
_CAPABILITIES: Final = ("x-ignore-shared", "events")
_PARAMETERS: Final = {
    "max-bandwidth": BANDWIDTH_BYTES_PER_SECOND,
    # QEMU announces MAC addresses as soon as a state is installed, when the source may still be the one to go on. So it
    # does not, and the driver asks for it after resuming.
    "announce-rounds": 0,
}
_ANNOUNCEMENT: Final = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
"""Milliseconds and a count: QEMU's own defaults for migration."""


async def retrieve(qmp: Qmp) -> bytes:
    """The device stream of a stopped domain; afterwards QEMU's state is ``postmigrate``.

    Raises HypervisorError when QEMU did not give it or it is too large, OutcomeUnknown.
    """
    stream = await _set_up(qmp)
    # Closing our end is what ends a migration that takes too long or sends too much.
    async with stream:
        try:
            with trio.fail_after(TRANSFER_SECONDS):
                await qmp.execute("migrate", {"uri": "fd:state"})
                received = await _receive_bounded(stream)
                await stream.aclose()
                outcome = await _wait_final(qmp)
        except trio.TooSlowError as error:
            raise OutcomeUnknown("QEMU did not give the device state in time") from error
    if len(received) > limits.DEVICE_STATE_BYTES_MAX:
        raise HypervisorError(
            f"the device state is larger than {limits.DEVICE_STATE_BYTES_MAX} bytes"
        )
    _require_completed(outcome, "give")
    return received


async def install(qmp: Qmp, state: bytes) -> None:
    """Feed the stream to a receiving domain and wait until QEMU has taken all of it.

    Raises HypervisorError when QEMU says that it failed, OutcomeUnknown when it does not answer; it ends (7.2) when it
    rejects a stream, so look whether it is gone.
    """
    stream = await _set_up(qmp)
    failure: HypervisorError | OutcomeUnknown | None = None
    outcome: Mapping[str, Any] = {}
    try:
        with trio.fail_after(TRANSFER_SECONDS):
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(_send_all, stream, state)
                try:
                    await qmp.execute("migrate-incoming", {"uri": "fd:state"})
                    outcome = await _wait_final(qmp)
                except (HypervisorError, OutcomeUnknown) as error:
                    failure = error
                nursery.cancel_scope.cancel()
    except trio.TooSlowError as error:
        raise OutcomeUnknown("QEMU did not take the device state in time") from error
    if failure is not None:
        raise failure
    _require_completed(outcome, "take")


async def announce(qmp: Qmp) -> None:
    """Tell the network where the domain's MAC addresses are now; of no consequence when it fails."""
    with suppress(HypervisorError, OutcomeUnknown):
        await qmp.execute("announce-self", _ANNOUNCEMENT)


async def _set_up(qmp: Qmp) -> trio.SocketStream:
    """Our end of a socket pair; QEMU has the other under the name "state"."""
    capabilities = [{"capability": name, "state": True} for name in _CAPABILITIES]
    await qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
    await qmp.execute("migrate-set-parameters", _PARAMETERS)
    ours, theirs = socket.socketpair()
    try:
        await qmp.getfd("state", theirs.fileno())
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours))


async def _receive_bounded(stream: trio.SocketStream) -> bytes:
    """Until the end; a little more than the bound when there is more."""
    received = bytearray()
    with suppress(trio.BrokenResourceError):
        while len(received) <= limits.DEVICE_STATE_BYTES_MAX:
            data = await stream.receive_some(RECEIVE_BYTES)
            if not data:
                break
            received += data
    return bytes(received)


async def _send_all(stream: trio.SocketStream, state: bytes) -> None:
    # QEMU closes its end when it has seen enough; what it thought of it is asked by QMP.
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(state)
        await stream.send_eof()


async def _wait_final(qmp: Qmp) -> Mapping[str, Any]:
    """query-migrate's answer once it is final. Asked again at every event (capability ``events``)."""
    while True:
        # Counted before asking: an event that comes with the answer is not waited for once more.
        count = qmp.event_count
        answer = await qmp.execute("query-migrate")
        if not isinstance(answer, dict):
            raise OutcomeUnknown(f"QEMU says of the migration {str(answer)[:80]!r}")
        if answer.get("status") in _FINAL:
            return answer
        await qmp.wait_event_after(count)


def _require_completed(outcome: Mapping[str, Any], verb: str) -> None:
    if outcome.get("status") != "completed":
        reason = outcome.get("error-desc") or f"the migration is {outcome.get('status')}"
        raise HypervisorError(f"QEMU did not {verb} the device state: {reason}")
