"""The journal in SQLite: when a method that writes returns, what it wrote is on disk.

One connection, used by one thread at a time and never by two at once; WAL with synchronous=FULL is one fsync a
transaction (https://www.sqlite.org/pragma.html#pragma_synchronous). The database is locked for as long as it is open, so
two managers cannot share one journal. Writing cannot be cancelled halfway: the thread is waited for.

What a disk has made of it is seen when it is opened: SQLite looks at its own structure, and every row carries a *seal*, a
digest of the rest of it, because SQLite takes a flipped bit inside a value for the value. That the last records are there
still, a *witness* beside it says (``witness.py``). A journal comes into being whole,
under another name: an empty file is a damaged journal, never a new one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Final, TypeVar

import trio

from ldmd.definition import DomainDefinition
from ldmd.errors import JournalError
from ldmd.journal import rows
from ldmd.journal.position import Mark, Position
from ldmd.journal.records import (
    DomainEntry,
    DomainState,
    JournalRecord,
    MigrationEntry,
    MigrationHistory,
    MigrationSummary,
)
from ldmd.journal.reserve import Reserve
from ldmd.journal.summaries import read_summaries
from ldmd.journal.upgrade import OLDEST_VERSION
from ldmd.journal.witness import Witness
from protocol.actions import RecordKind

log = logging.getLogger("ldmd.journal")

BEGINNINGS: Final = frozenset({RecordKind.PREPARING, RecordKind.PREPARED})
"""Records that a migration may be given up for: they are refused without a reserve of room for the others."""
_UNSETTLED: Final = (
    "WHERE NOT EXISTS (SELECT 1 FROM record r WHERE r.migration = m.id AND r.kind = 'SETTLED')"
)
ID_END: Final = "~"
"""Behind every character that an id can have."""
T = TypeVar("T")


class Journal:
    """Open with ``await Journal.open(path)``; every method may raise JournalError."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, journal_id: str, position: Position
    ) -> None:
        self.path = path
        self.id = journal_id
        self._reserve = Reserve(path.with_name(path.name + "-reserve"))
        self._witness = Witness(_witness_path(path))
        self._position = position
        self._connection = connection
        self._one_at_a_time = trio.CapacityLimiter(1)

    @classmethod
    async def open(cls, path: Path, position: Path | None = None) -> Journal:
        """Open or make the journal at ``path``; ``position``: the file that says where it stood (``position.py``).

        Raises JournalError when another process has it open, when it is damaged, from an earlier moment, or of a newer
        version: what it holds is not changed then.
        """
        known = Position(position)
        mark = known.read()
        connection, journal_id = await trio.to_thread.run_sync(_open, path, mark, position)
        try:
            known.take(mark, journal_id, _transactions(connection), _uuids(connection))
        except OSError as error:
            connection.close()
            raise _unopened(path, error) from error
        journal = cls(path, connection, journal_id, known)
        try:
            await journal._upgrade()
        except BaseException:
            with trio.CancelScope(shield=True):
                await journal.aclose()
            raise
        return journal

    async def _upgrade(self) -> None:
        """To this version, in place and in one transaction. Nothing is written where there is nothing to do."""
        found = await self._read(rows.read_version)
        if found != rows.SCHEMA_VERSION:
            await self._write(lambda c: rows.upgrade_from(c, found))
            log.warning(
                "the journal %s was version %d, and is %d now",
                self.path,
                found,
                rows.SCHEMA_VERSION,
            )

    @property
    def unconfirmed(self) -> frozenset[str]:
        """Uuids of domains of which nobody on this host can say whether the journal has the last word."""
        return self._position.unconfirmed

    async def confirm(self, uuid: str) -> None:
        await self._run(lambda: self._position.confirm(uuid))

    async def aclose(self) -> None:
        await trio.to_thread.run_sync(self._connection.close, limiter=self._one_at_a_time)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def transact() -> T:
            with self._connection:
                self._connection.execute("BEGIN")
                return work(self._connection)

        return await self._run(transact)

    async def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        def transact() -> int:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                work(self._connection)
                return _count_transaction(self._connection)

        def write() -> None:
            try:
                count = transact()
            except sqlite3.Error as error:
                if not (_is_full(error) and self._reserve.spend()):
                    raise
                count = transact()
            self._witness.write(count)
            self._position.write(count)

        await self._run(write)

    async def _run(self, work: Callable[[], T]) -> T:
        def run() -> T:
            try:
                return work()
            # ValueError: a word that this version does not know
            except (sqlite3.Error, OSError, ValueError) as error:
                raise JournalError(
                    f"the journal {self.path} cannot be used: {error}",
                    remedy="look at the disk's space and health; nothing was done that is not recorded",
                ) from error

        return await trio.to_thread.run_sync(run, limiter=self._one_at_a_time)

    def _fill_reserve(self) -> None:
        try:
            self._reserve.fill()
        except OSError as error:
            raise JournalError(
                f"the journal {self.path} has no room to settle a migration in: {error.strerror}",
                remedy="make room on that disk, then ask again",
            ) from error

    # ---- domains ---------------------------------------------------------------------------------------

    async def load_domains(self) -> list[DomainEntry]:
        return await self._read(lambda c: rows.domains(c, "", ()))

    async def load_domain(self, uuid: str) -> DomainEntry | None:
        found = await self._read(lambda c: rows.domains(c, "WHERE uuid = ?", (uuid,)))
        return found[0] if found else None

    async def add_domain(self, entry: DomainEntry) -> None:
        """Idempotent: an earlier attempt that was reported as failed may be on disk."""

        def work(c: sqlite3.Connection) -> None:
            c.execute("DELETE FROM domain WHERE uuid = ?", (entry.definition.uuid,))
            rows.insert_domain(c, entry)

        await self._write(work)

    async def remove_domain(self, uuid: str) -> None:
        """Idempotent."""
        await self._write(lambda c: c.execute("DELETE FROM domain WHERE uuid = ?", (uuid,)))

    async def set_state(self, uuid: str, state: DomainState) -> None:
        """Only an active domain may have another definition pending: its end is ``end_process``.

        Raises JournalError also when the domain is not there: what is not recorded is not to be acted on.
        """

        def work(c: sqlite3.Connection) -> None:
            if not rows.update(c, "domain", ("state", state), ("uuid", uuid)):
                raise ValueError(f"it has no domain {uuid}")

        await self._write(work)

    async def set_definition(
        self, uuid: str, definition: DomainDefinition, pending: DomainDefinition | None
    ) -> None:
        """It may be there although it was reported as failed, as a record may (``append``)."""
        await self._write(lambda c: rows.define(c, uuid, definition, pending))

    async def end_process(self, uuid: str, definition: DomainDefinition) -> None:
        """Bound, with the definition that was pending if one was; none is pending from then on."""

        def work(c: sqlite3.Connection) -> None:
            rows.define(c, uuid, definition, None)
            if not rows.update(c, "domain", ("state", DomainState.BOUND), ("uuid", uuid)):
                raise ValueError(f"it has no domain {uuid}")

        await self._write(work)

    # ---- migrations ------------------------------------------------------------------------------------

    async def append(
        self,
        entry: MigrationEntry,
        kind: RecordKind,
        sentence: str,
        *,
        receiving: DomainEntry | None = None,
    ) -> JournalRecord:
        """One record, and in the same transaction what it means for the domain.

        The first record of a migration also writes its entry and lets it hold the domain; with ``receiving`` the domain
        is added (target). SETTLED lets the domain go, or removes it where it is the other side's.
        Raises ReconfigurationPending where the first one would hold a domain that has another definition pending.

        Idempotent: a record that is the last one already is not written again. It may be there although it was reported
        as failed, because what comes behind the commit (the witness) can fail too.
        """
        record = JournalRecord(
            kind=kind, time_unix_ms=time.time_ns() // 1_000_000, sentence=sentence
        )

        def work(c: sqlite3.Connection) -> None:
            if not c.execute("SELECT 1 FROM migration WHERE id = ?", (entry.id,)).fetchone():
                rows.insert(
                    c,
                    "migration",
                    entry.id,
                    entry.side,
                    entry.peer,
                    entry.peer_journal,
                    entry.definition.uuid,
                    entry.definition.name,
                    entry.run_state,
                    rows.dump_definition(entry.definition),
                )
            last, last_kind = c.execute(
                "SELECT sequence, kind FROM record WHERE migration = ? ORDER BY sequence DESC LIMIT 1",
                (entry.id,),
            ).fetchone() or (0, None)
            if last_kind == kind:
                return
            if receiving is not None:
                rows.insert_domain(c, receiving)
            rows.insert(c, "record", entry.id, last + 1, kind, record.time_unix_ms, sentence)
            if kind is RecordKind.PREPARING:
                rows.require_nothing_pending(c, entry.definition)
                rows.update(c, "domain", ("migration", entry.id), ("uuid", entry.definition.uuid))
            elif kind is RecordKind.SETTLED and rows.is_the_others(c, entry):
                c.execute("DELETE FROM domain WHERE migration = ?", (entry.id,))
            elif kind is RecordKind.SETTLED:
                rows.update(c, "domain", ("migration", None), ("migration", entry.id))

        if kind in BEGINNINGS:
            await trio.to_thread.run_sync(self._fill_reserve, limiter=self._one_at_a_time)
        await self._write(work)
        return record

    async def load_migrations(self, *, uuid: str | None = None) -> list[MigrationHistory]:
        """All, or those of one domain; oldest first."""
        where, values = ("WHERE uuid = ?", (uuid,)) if uuid else ("", ())
        return await self._read(lambda c: rows.histories(c, where, values))

    async def load_latest(self, name: str, count: int) -> list[MigrationHistory]:
        """The last migrations of one domain, by its uuid or a name that it had here; the latest first."""
        where = (
            "WHERE m.id IN (SELECT id FROM migration WHERE uuid = ?1 OR name = ?1"
            " ORDER BY rowid DESC LIMIT ?2)"
        )
        return (await self._read(lambda c: rows.histories(c, where, (name, count))))[::-1]

    async def load_unsettled(self) -> list[MigrationHistory]:
        return await self._read(lambda c: rows.histories(c, _UNSETTLED, ()))

    async def load_migration(self, migration_id: str) -> MigrationHistory | None:
        found = await self._read(lambda c: rows.histories(c, "WHERE m.id = ?", (migration_id,)))
        return found[0] if found else None

    # ---- listings: bounded, because no record is written meanwhile ---------------------------------------

    async def list_migrations(
        self, limit: int, *, before: str | None = None
    ) -> list[MigrationSummary]:
        """The ``limit`` newest, newest first; with ``before`` those that began before that migration."""
        chosen = "WHERE rowid < (SELECT rowid FROM migration WHERE id = ?)" if before else ""
        values = (before, limit) if before else (limit,)
        return await self._read(
            lambda c: read_summaries(c, f"{chosen} ORDER BY rowid DESC LIMIT ?", values)
        )

    async def list_these(self, ids: Iterable[str]) -> list[MigrationSummary]:
        """Those of these migrations that have a record, newest first."""
        values = (json.dumps(list(ids)),)
        chosen = "WHERE id IN (SELECT value FROM json_each(?))"
        return await self._read(lambda c: read_summaries(c, chosen, values))

    async def list_of_domain(self, uuid: str) -> list[MigrationSummary]:
        """All of one domain, newest first."""
        return await self._read(lambda c: read_summaries(c, "WHERE uuid = ?", (uuid,)))

    async def find_migrations(self, beginning: str, limit: int) -> list[MigrationSummary]:
        """At most ``limit`` of those whose ids begin so."""
        values = (beginning, beginning + ID_END, limit)
        chosen = "WHERE id >= ? AND id < ? LIMIT ?"
        return await self._read(lambda c: read_summaries(c, chosen, values))


def _open(path: Path, mark: Mark | None, position: Path | None) -> tuple[sqlite3.Connection, str]:
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_size == 0:  # SQLite would delete the log of an empty file
            raise _damaged(path, "it is empty")
        os.chmod(path, 0o600)
        journal_id, count = _verify(path)
        if mark is not None and mark.journal == journal_id and count < mark.transactions:
            raise JournalError(
                f"the journal {path} is from an earlier moment: it ends with transaction {count}, and"
                f" {mark.transactions} were written since this host was booted",
                remedy="no domain was touched; put the latest one back. If it is lost, remove"
                f" {position}: then the peers are asked before anything is done",
            )
        connection = _connect(path)
    except (OSError, sqlite3.OperationalError) as error:
        raise _unopened(path, error) from error
    except (sqlite3.DatabaseError, UnicodeError) as error:
        raise _damaged(path, str(error)) from error
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")  # the lock
        connection.execute("ROLLBACK")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        connection.close()
        raise _unopened(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection, journal_id


def _unopened(path: Path, error: OSError | sqlite3.Error) -> JournalError:
    # the binding's own errors (a text that is not UTF-8) have no code
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return JournalError(
            f"the journal {path} is in use by another manager",
            remedy="only one manager may run on one state-directory",
        )
    return JournalError(f"the journal {path} cannot be opened: {error}")


def _connect(path: Path, mode: str = "rwc") -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    # a busy database is another manager's: half a second for one that is just ending
    connection = sqlite3.connect(
        uri, uri=True, timeout=0.5, isolation_level=None, check_same_thread=False
    )
    connection.create_function("seal", -1, rows.seal, deterministic=True)
    return connection


def _make(path: Path) -> None:
    """A new journal, whole and on disk before it has its name. Raises OSError, sqlite3.Error, JournalError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for beside in (path.with_name(path.name + "-wal"), _witness_path(path)):
        if beside.exists():
            raise _damaged(path, f"it is not there, but {beside} is")
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        connection = _connect(unfinished)
        try:
            # fsynced by SQLite, and the write-ahead log is gone when the connection is closed
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN")
            _create(connection)
            connection.execute("COMMIT")
        finally:
            connection.close()
        with contextlib.suppress(FileExistsError):  # another manager was faster: it has the lock
            os.link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _create(connection: sqlite3.Connection) -> None:
    schema = resources.files(__package__).joinpath("schema.sql").read_text()
    without_comments = "\n".join(line.partition("--")[0] for line in schema.splitlines())
    for statement in without_comments.split(";"):
        if statement.strip():
            connection.execute(statement)
    rows.insert(connection, "meta", "schema", str(rows.SCHEMA_VERSION))
    rows.insert(connection, "meta", "id", secrets.token_hex(16))


def _verify(path: Path) -> tuple[str, int]:
    """The journal's id, and how many transactions it has. Raises JournalError, sqlite3.Error.

    Looks without writing: closing a connection that may write folds the log into the journal, and what is damaged must
    stay as it is found.
    """
    connection = _connect(path, mode="ro")
    try:
        return _look_through(connection, path)
    finally:
        connection.close()


def _look_through(connection: sqlite3.Connection, path: Path) -> tuple[str, int]:
    faults = [row[0] for row in connection.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
    if faults:
        raise _damaged(path, faults[0])
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    if "meta" not in tables:
        raise _damaged(path, "it is empty")
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    known = [str(version) for version in range(OLDEST_VERSION, rows.SCHEMA_VERSION + 1)]
    if (found := meta.get("schema")) not in known:
        raise JournalError(
            f"the journal {path} has version {found}, this manager writes version {rows.SCHEMA_VERSION}",
            remedy="run the manager that made it, or a newer one",
        )
    for table in rows.SEALED:
        listed = ", ".join(rows.sealed_columns(table, int(found)))
        (broken,) = connection.execute(
            f"SELECT count(*) FROM {table} WHERE seal IS NOT seal('{table}', {listed})"
        ).fetchone()
        if broken:
            raise _damaged(path, f"{broken} of its {table} rows are not what was written")
    _require_all_transactions(connection, path)
    return str(meta["id"]), _transactions(connection)


def _witness_path(path: Path) -> Path:
    return path.with_name(path.name + "-count")


def _count_transaction(c: sqlite3.Connection) -> int:
    """One more, in the same transaction; how many there were then."""
    count = _transactions(c) + 1
    c.execute("DELETE FROM meta WHERE key = 'transactions'")
    rows.insert(c, "meta", "transactions", str(count))
    return count


def _transactions(c: sqlite3.Connection) -> int:
    row = c.execute("SELECT value FROM meta WHERE key = 'transactions'").fetchone()
    return int(row[0]) if row else 0


def _uuids(c: sqlite3.Connection) -> list[str]:
    """Of the domains here, and of those that an open migration is about."""
    query = f"SELECT uuid FROM domain UNION SELECT uuid FROM migration m {_UNSETTLED}"
    return [uuid for (uuid,) in c.execute(query)]


def _require_all_transactions(connection: sqlite3.Connection, path: Path) -> None:
    """Raises JournalError."""
    try:
        wanted = Witness(_witness_path(path)).read()
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if (count := _transactions(connection)) < wanted:
        raise _damaged(path, f"it ends with transaction {count}, and there were {wanted}")


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _damaged(path: Path, words: str) -> JournalError:
    return JournalError(
        f"the journal {path} is damaged: {words}",
        remedy="no domain was touched; restore the journal, or move it away only when no migration was open",
    )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
