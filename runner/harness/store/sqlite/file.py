"""The database file under `SqliteStore`: opening it, its schema, transactions, and what SQLite's errors mean."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiosqlite

from harness.errors import (
    InvalidInputError,
    SchemaTooNewError,
    StoreBusyError,
    StoreError,
    StoreUnavailableError,
)
from harness.store.documents import SCHEMA_VERSION
from harness.store.sqlite.writes import WriteQueue, transact

#: How long a statement waits for another process's transaction. Ours take milliseconds; a checkpoint of a large log
#: on a slow disk can take a second.
LOCK_TIMEOUT_SECONDS = 5.0

#: Tells our files from other programs' ("AgHs"); `file` and `sqlite3` show it.
_APPLICATION_ID = 0x41674873

_SCHEMA = (
    "CREATE TABLE meta (schema_version INTEGER NOT NULL, store_id TEXT NOT NULL)",
    # The large columns last: SQLite reads a row up to the last column it is asked for.
    """CREATE TABLE agents (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL,
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, deleting INTEGER NOT NULL DEFAULT 0,
        config TEXT NOT NULL, entrypoint TEXT, code TEXT NOT NULL, files TEXT NOT NULL)""",
    """CREATE TABLE tasks (
        id INTEGER PRIMARY KEY AUTOINCREMENT, agent_id INTEGER NOT NULL REFERENCES agents (id), status TEXT NOT NULL,
        "trigger" TEXT NOT NULL, scheduled_at INTEGER NOT NULL, created_at INTEGER NOT NULL, started_at INTEGER,
        completed_at INTEGER, due_at INTEGER, lease_owner TEXT, fence INTEGER NOT NULL, priority INTEGER NOT NULL,
        retry_count INTEGER NOT NULL, max_retries INTEGER NOT NULL, reason TEXT, skip_reason TEXT, fire_at INTEGER,
        skipped_until INTEGER, skipped_count INTEGER NOT NULL, cancel_requested_at INTEGER,
        save_handoff INTEGER NOT NULL, max_active INTEGER NOT NULL, fire_key TEXT UNIQUE, active_slot TEXT UNIQUE,
        queue_slot TEXT UNIQUE, result TEXT, error TEXT, attempts TEXT NOT NULL, context TEXT)""",
    # Each ends in the row's id, so one serves both a filter and the order by id, and counts without the table.
    # The same for pages of all tasks: the table has the ids too, but spread over everything else.
    "CREATE INDEX tasks_by_id ON tasks (id)",
    "CREATE INDEX tasks_by_agent ON tasks (agent_id)",
    "CREATE INDEX tasks_by_status ON tasks (status)",
    "CREATE INDEX tasks_by_agent_and_status ON tasks (agent_id, status)",
    # These hold active tasks only: they stay as small as the present, however long the history, and the first three
    # have all that a decision about a claim needs.
    """CREATE INDEX tasks_ready ON tasks (due_at, agent_id, priority, active_slot, max_active, status)
        WHERE status = 'pending' AND active_slot IS NOT NULL""",
    """CREATE INDEX tasks_waiting ON tasks (agent_id, priority DESC, due_at, id, max_active, active_slot, status)
        WHERE status = 'pending' AND active_slot IS NULL""",
    "CREATE INDEX tasks_in_slots ON tasks (agent_id, active_slot, status) WHERE active_slot IS NOT NULL",
    "CREATE INDEX tasks_leased ON tasks (due_at) WHERE status = 'running'",
    """CREATE INDEX tasks_to_cancel ON tasks (lease_owner)
        WHERE status = 'running' AND cancel_requested_at IS NOT NULL""",
    """CREATE TABLE schedules (
        agent_id INTEGER PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE, agent_version INTEGER NOT NULL,
        next_fire_at INTEGER, due_at INTEGER, anchor_at INTEGER NOT NULL, last_fire_at INTEGER,
        paused INTEGER NOT NULL, removed INTEGER NOT NULL, revision INTEGER NOT NULL)""",
    "CREATE INDEX schedules_by_due ON schedules (due_at) WHERE due_at IS NOT NULL",
    # Agents whose schedule has to be computed. A table, since a mark in an agent's row would rewrite its code.
    "CREATE TABLE unsynced (agent_id INTEGER PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE)",
    """CREATE TABLE logs (
        task_id INTEGER NOT NULL REFERENCES tasks (id) ON DELETE CASCADE, seq INTEGER NOT NULL, stream TEXT NOT NULL,
        data BLOB NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (task_id, seq))""",
    """CREATE TABLE artifacts (
        agent_id INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE, version INTEGER NOT NULL,
        state TEXT NOT NULL, summary TEXT NOT NULL, created_at INTEGER NOT NULL, run_count INTEGER NOT NULL,
        task_id INTEGER UNIQUE, cleared INTEGER NOT NULL, PRIMARY KEY (agent_id, version))""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
)

#: Made by this release also in a file that an older one made, which goes on to work with it.
_LATER_TABLES = (
    """CREATE TABLE IF NOT EXISTS secrets (
        name TEXT PRIMARY KEY, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
        ciphertext BLOB NOT NULL)""",
)
_LATER_COLUMNS = (
    # What a schedule was computed from.
    ("schedules", "rule", "TEXT"),
    # Set on an ended task when its logs are deleted, so that nobody looks for them again.
    ("tasks", "logs_gone", "INTEGER NOT NULL DEFAULT 0"),
)
_LATER_INDEXES = (
    # Ended tasks, those whose logs are gone apart from the others, each in the order of their ends.
    """CREATE INDEX IF NOT EXISTS tasks_ended ON tasks (agent_id, logs_gone, completed_at)
        WHERE completed_at IS NOT NULL""",
)

T = TypeVar("T")


class _Connection(aiosqlite.Connection):
    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` in the connection's thread.

        A whole transaction is one call: it takes one hop between threads, its lock is never held while the event loop
        is busy elsewhere, and cancelling the caller cannot cut it, since the thread goes on to its commit.
        """
        execute: Callable[..., Awaitable[T]] = self._execute
        return await execute(work, self._conn)

    def post(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Have the connection's thread call `work` after what it was given before; nobody waits for that."""
        self._tx.put_nowait((None, partial(work, self._conn)))


class SqliteFile:
    """One SQLite database, used from one thread of its own."""

    def __init__(self, path: Path | None, *, lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS) -> None:
        """Remember where the file is; `open` opens it.

        Args:
            path: None for a database in memory that ends with `close`.
            lock_timeout_seconds: How long a statement waits for another process.
        """
        self._path = path
        self._lock_timeout_seconds = lock_timeout_seconds
        self._connection: _Connection | None = None
        self._writes = WriteQueue()
        self._opening = asyncio.Lock()
        self.store_id = ""

    async def open(self) -> None:
        """Open the file and make what is missing."""
        async with self._opening:
            if self._connection is None:
                await self._open()

    async def _open(self) -> None:
        connection = _Connection(self._connect, iter_chunk_size=64)
        try:
            await connection
            self.store_id = await connection.run(self._prepare)
        except BaseException as error:
            await connection.close()
            # A connection that never came up tells its thread to end and does not wait for that; by the time the
            # thread reports back, the event loop may be closed.
            await asyncio.to_thread(connection._thread.join)  # noqa: SLF001 - aiosqlite offers nothing for this
            if isinstance(error, sqlite3.Error | OSError):
                raise self._explain(error) from error
            raise
        self._connection = connection

    async def close(self) -> None:
        """Close the file after what is under way."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on one consistent state of the database."""
        connection = self._open_connection()
        try:
            return await connection.run(lambda db: transact(db, "BEGIN", work))
        except sqlite3.Error as error:
            raise self._explain(error) from error

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as the only writer, and commit durably; when it raises, nothing is written.

        Writes that wait at the same moment share a commit, see `harness.store.sqlite.writes`; so `work` may be called
        a second time, after all that the first call did was undone.
        """
        connection = self._open_connection()
        write = self._writes.add(work)
        connection.post(self._writes.run_some)
        try:
            return await write.answer
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _open_connection(self) -> _Connection:
        if self._connection is None:
            raise StoreUnavailableError(f"the store {self._name} is not open; await its open() first")
        return self._connection

    @property
    def _name(self) -> str:
        return "in memory" if self._path is None else str(self._path)

    def _connect(self) -> sqlite3.Connection:
        if self._path is not None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Private from its first moment, and SQLite gives its -wal and -shm the same mode. Only a new file is
            # touched: closing any descriptor of one that SQLite has open here would drop its locks (fcntl(2)).
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(
            ":memory:" if self._path is None else self._path,
            timeout=self._lock_timeout_seconds,
            isolation_level=None,
        )

    def _prepare(self, connection: sqlite3.Connection) -> str:
        connection.row_factory = sqlite3.Row
        # Before anything is written: a file that is not ours, or newer than this release, stays as it is.
        self._read_meta(connection)
        if self._path is not None:
            self._switch_to_wal(connection)
        # FULL syncs the write-ahead log at every commit. With NORMAL a commit survives the death of the process but
        # not of the machine, and then a task reported as finished would run a second time.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN IMMEDIATE")
        try:
            store_id = self._read_meta(connection)
            if store_id is None:
                store_id = uuid.uuid4().hex
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES (?, ?)", (SCHEMA_VERSION, store_id))
            _add_later_parts(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return store_id

    def _read_meta(self, connection: sqlite3.Connection) -> str | None:
        """Return the store's id, or None when the database is empty."""
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            return None
        if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise StoreError(
                f"{self._name} is another program's SQLite database; give the store a file of its own"
            )
        version, store_id = connection.execute("SELECT schema_version, store_id FROM meta").fetchone()
        if version > SCHEMA_VERSION:
            raise SchemaTooNewError(
                f"the store {self._name} has schema version {version}, and this release knows versions up to "
                f"{SCHEMA_VERSION}; install the release that wrote it, or use another data directory"
            )
        return str(store_id)

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self._lock_timeout_seconds
        mode = None
        while mode is None:
            try:
                mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                # When two processes switch a new file at once, SQLite reports busy without waiting, so that they
                # cannot wait for each other.
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise StoreError(
                f"{self._name} is on a file system without what SQLite's write-ahead log needs (it answered "
                f"{mode!r}); put the data directory on a local disk"
            )

    def _explain(self, error: sqlite3.Error | OSError) -> StoreError | InvalidInputError:
        if isinstance(error, OSError):
            return StoreUnavailableError(
                f"the store {self._name} cannot be created: {error.strerror or error}"
            )
        name, code = self._name, _primary_code(error)
        busy = (
            f"the store {name} was locked by another process for more than {self._lock_timeout_seconds:g} s"
        )
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StoreBusyError(f"{busy}; find who holds it open (fuser {name}) and try again")
            case sqlite3.SQLITE_CANTOPEN:
                return StoreUnavailableError(
                    f"the store {name} cannot be opened ({error}); check that it is a file, and its permissions"
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                return StoreUnavailableError(
                    f"the store {name} is not writable ({error}); check the permissions of the file and its folder"
                )
            case sqlite3.SQLITE_NOTADB:
                return StoreError(f"{name} is not an SQLite database; move it away, or name another file")
            case sqlite3.SQLITE_CORRUPT:
                return StoreError(
                    f"the store {name} is damaged ({error}); stop all processes that use it and restore a backup, or "
                    f"save what can be read with: sqlite3 {name} .recover"
                )
            case sqlite3.SQLITE_FULL:
                return StoreError(
                    f"the disk that holds the store {name} is full; free some space and try again"
                )
            case sqlite3.SQLITE_TOOBIG:
                return InvalidInputError(f"a value is too large for the store {name} ({error})")
        return StoreError(f"the store {name} failed: {error}; check its disk and the kernel's log")


def _add_later_parts(connection: sqlite3.Connection) -> None:
    for table, column, kind in _LATER_COLUMNS:
        known = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
        if column not in known:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    for statement in (*_LATER_TABLES, *_LATER_INDEXES):
        connection.execute(statement)


def _primary_code(error: sqlite3.Error) -> int:
    # Extended codes carry the primary one in their low byte.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
