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

from harness.aio import uninterrupted
from harness.errors import (
    InvalidInputError,
    SchemaTooNewError,
    StoreBusyError,
    StoreError,
    StoreUnavailableError,
)
from harness.store.documents import SCHEMA_VERSION
from harness.store.sqlite.schema import APPLICATION_ID, SCHEMA, add_later_parts
from harness.store.sqlite.writes import WriteQueue, transact

#: How long a statement waits for another process's transaction. Ours take milliseconds; a checkpoint of a large log
#: on a slow disk can take a second.
LOCK_TIMEOUT_SECONDS = 5.0

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
    """One SQLite database, used from two threads of its own: nobody who reads waits for a write to reach the disk."""

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
        #: For reads alone; the same one for a database in memory, which no second connection can see.
        self._reader: _Connection | None = None
        self._opening = asyncio.Lock()
        self.store_id = ""

    async def open(self) -> None:
        """Open the file and make what is missing."""
        async with self._opening:
            if self._connection is None:
                await self._open()

    async def _open(self) -> None:
        writer = await self._opened(self._prepare)
        try:
            self._reader = writer if self._path is None else await self._opened(_prepare_reader)
        except BaseException:
            await writer.close()
            raise
        self._connection = writer

    async def _opened(self, prepare: Callable[[sqlite3.Connection], None]) -> _Connection:
        connection = _Connection(self._connect, iter_chunk_size=64)
        try:
            await connection
            await connection.run(prepare)
        except BaseException as error:
            await connection.close()
            # A connection that never came up tells its thread to end and does not wait for that; by the time the
            # thread reports back, the event loop may be closed.
            await asyncio.to_thread(connection._thread.join)  # noqa: SLF001 - aiosqlite offers nothing for this
            if isinstance(error, sqlite3.Error | OSError):
                raise self._explain(error) from error
            raise
        return connection

    async def close(self) -> None:
        """Close the file after what is under way."""
        reader, writer = self._reader, self._connection
        self._reader = self._connection = None
        # Both, also when the caller is cancelled meanwhile: a thread that is left over would keep the process from ending.
        await uninterrupted(_close(reader, writer))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on one consistent state of the database."""
        connection = self._in_use(self._reader)
        try:
            return await connection.run(lambda db: transact(db, "BEGIN", work))
        except sqlite3.Error as error:
            raise self._explain(error) from error

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as the only writer, and commit durably; when it raises, nothing is written.

        Writes that wait at the same moment share a commit, see `harness.store.sqlite.writes`; so `work` may be called
        a second time, after all that the first call did was undone.
        """
        connection = self._in_use(self._connection)
        write = self._writes.add(work)
        connection.post(self._writes.run_some)
        try:
            return await write.answer
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _in_use(self, connection: _Connection | None) -> _Connection:
        if connection is None:
            raise StoreUnavailableError(f"the store {self._name} is not open; await its open() first")
        return connection

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

    def _prepare(self, connection: sqlite3.Connection) -> None:
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
                for statement in SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES (?, ?)", (SCHEMA_VERSION, store_id))
            add_later_parts(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.store_id = store_id

    def _read_meta(self, connection: sqlite3.Connection) -> str | None:
        """Return the store's id, or None when the database is empty."""
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            return None
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
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


async def _close(reader: _Connection | None, writer: _Connection | None) -> None:
    try:
        if reader is not None and reader is not writer:
            await reader.close()
    finally:
        if writer is not None:
            # Last, so that it is the one that merges the write-ahead log into the file.
            await writer.close()


def _prepare_reader(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA query_only = ON")


def _primary_code(error: sqlite3.Error) -> int:
    # Extended codes carry the primary one in their low byte.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
