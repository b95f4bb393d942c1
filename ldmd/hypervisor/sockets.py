"""Unix sockets in a domain's run directory.

``sun_path`` holds 107 bytes (unix(7)) and run directories may be longer, so the directory is opened
and the socket reached through ``/proc/self/fd``. The domain's process binds a bare name: its run
directory is its working directory.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

import trio

RETRY_SECONDS: Final = 0.01


async def connect(run_directory: Path, name: str) -> trio.SocketStream:
    """A stream to the listener ``name`` in ``run_directory``; waits while the listener's queue is
    full.

    The caller sets the deadline. Raises OSError: FileNotFoundError when there is no such socket,
    ConnectionRefusedError when nobody listens (yet, or any more).
    """
    directory = os.open(run_directory, os.O_PATH | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            while True:
                try:
                    connection.connect(f"/proc/self/fd/{directory}/{name}")
                    break
                except BlockingIOError:
                    # The queue is full, and unlike with TCP nothing goes on in the background: it
                    # has to be retried.
                    await trio.sleep(RETRY_SECONDS)
        except BaseException:
            connection.close()
            raise
    finally:
        os.close(directory)
    return trio.SocketStream(trio.socket.from_stdlib_socket(connection))


async def wait_connect(run_directory: Path, name: str) -> trio.SocketStream:
    """``connect``, waiting until somebody listens. The caller sets the deadline and watches the
    process.
    """
    while True:
        try:
            return await connect(run_directory, name)
        except (FileNotFoundError, ConnectionRefusedError):
            await trio.sleep(RETRY_SECONDS)
