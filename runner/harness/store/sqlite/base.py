"""What the parts of the SQLite store share: the open file and the store's clock."""

from __future__ import annotations

from datetime import datetime

from harness.ports import Clock
from harness.store.documents import whole_millis
from harness.store.sqlite.file import SqliteFile


class SqlitePart:
    """Base of the parts."""

    def __init__(self, file: SqliteFile, clock: Clock) -> None:
        """Keep the file and the clock."""
        self._file = file
        self._clock = clock

    async def now(self) -> datetime:
        """Return the machine's time: all users of the file share it."""
        return self._now()

    def _now(self) -> datetime:
        """Return the time to be written; asked for under the write lock, so that times rise as writes follow."""
        return whole_millis(self._clock.now())
