"""The embedded store: one SQLite file, no server. Several processes of one machine may use it at once."""

from __future__ import annotations

from pathlib import Path

from harness.clock import SystemClock
from harness.errors import StoreUnavailableError
from harness.ports import Clock
from harness.store.sqlite.access import SqliteAccess
from harness.store.sqlite.file import SqliteFile
from harness.store.sqlite.retention import SqliteRetention
from harness.store.sqlite.secrets import SqliteSecrets

__all__ = ["SqliteStore"]


class SqliteStore(SqliteRetention, SqliteAccess, SqliteSecrets):
    """`harness.ports.Store` on one SQLite file in WAL mode."""

    def __init__(self, path: Path | None, *, clock: Clock | None = None) -> None:
        """Remember where the file is; `open` makes it, with mode 0600, and its folder, with mode 0700.

        Args:
            path: On a local disk: SQLite's write-ahead log does not work across network file systems. None for a
                database in memory that ends with `close`.
            clock: None for the machine's.
        """
        super().__init__(SqliteFile(path), clock or SystemClock())

    @property
    def store_id(self) -> str:
        """Random id made with the store."""
        if not self._file.store_id:
            raise StoreUnavailableError("the store's id is known once it is open; await its open() first")
        return self._file.store_id

    async def open(self) -> None:
        """Open the file and make what is missing."""
        await self._file.open()

    async def close(self) -> None:
        """Close the file."""
        await self._file.close()
