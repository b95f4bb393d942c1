"""Where the journal stood when it was last written, kept where it outlives the manager and not the host: the run directory.

The witness beside the journal is put back together with it, from a backup or a snapshot of the state directory. This one is
not: a journal with fewer transactions than it says is from an earlier moment. After the host was booted there is none, and
nobody on this host can say whether the journal is the latest one. Then its domains are *unconfirmed*, each until the peers
have been asked about it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash
from attrs import define, frozen

log = logging.getLogger("ldmd.journal")


@frozen(kw_only=True)
class Mark:
    """``unconfirmed``: uuids of domains of which it is not known whether the journal has the last word."""

    journal: str
    transactions: int
    unconfirmed: frozenset[str]


@define(eq=False)
class Position:
    """``path`` is None: nothing is known of earlier moments, and nothing is in question."""

    path: Path | None
    journal: str = ""
    transactions: int = 0
    unconfirmed: frozenset[str] = frozenset()

    def read(self) -> Mark | None:
        """None when there is none that can be read: it is not on a disk that keeps things, so that is no damage."""
        if self.path is None:
            return None
        try:
            digest, _, content = self.path.read_text().partition(" ")
            if digest != _digest(content):
                return None
            document: dict[str, Any] = json.loads(content)
            return Mark(
                journal=document["journal"],
                transactions=int(document["transactions"]),
                unconfirmed=frozenset(document["unconfirmed"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def take(
        self, mark: Mark | None, journal: str, transactions: int, uuids: Iterable[str]
    ) -> None:
        """The journal is open. ``uuids``: of all domains that it has, or has an open migration of. Raises OSError."""
        self.journal = journal
        there = frozenset(uuids)
        proven = mark is not None and mark.journal == journal
        self.unconfirmed = there & mark.unconfirmed if proven and mark is not None else there
        self.write(transactions)

    def write(self, transactions: int) -> None:
        """Whole or not at all, for whoever reads it after this process was killed. Raises OSError.

        Where it cannot be written it is removed, so that nobody takes an old one for the latest: that needs no room.
        """
        self.transactions = transactions
        self._keep(self.unconfirmed)

    def _keep(self, unconfirmed: Iterable[str]) -> None:
        if self.path is None:
            return
        content = json.dumps(
            {
                "journal": self.journal,
                "transactions": self.transactions,
                "unconfirmed": sorted(unconfirmed),
            }
        )
        try:
            _write_whole(self.path, f"{_digest(content)} {content}".encode())
        except OSError as error:
            self.path.unlink(missing_ok=True)
            log.warning("%s cannot be written, so it is removed: %s", self.path, error)

    def confirm(self, uuid: str) -> None:
        """Idempotent. Raises OSError."""
        if uuid in self.unconfirmed:
            left = self.unconfirmed - {uuid}
            self._keep(left)
            self.unconfirmed = left


def _write_whole(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
    beside.replace(path)


def _digest(content: str) -> str:
    return xxhash.xxh3_128_hexdigest(content.encode())
