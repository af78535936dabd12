"""Task output in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from harness.models import LogChunk
from harness.store import documents, transitions
from harness.store.documents import check_page, from_millis, int64, to_millis
from harness.store.sqlite.schedules import SqliteSchedules
from harness.store.sqlite.slots import stored_task


class SqliteLogs(SqliteSchedules):
    """The logs of a `SqliteStore`."""

    async def append_logs(self, task_id: int, fence: int, chunks: Sequence[LogChunk]) -> None:
        """Add output of an attempt."""
        documents.check_chunks(fence, chunks)
        rows = [(task_id, chunk.seq, chunk.stream, chunk.data, to_millis(chunk.at)) for chunk in chunks]

        def work(db: sqlite3.Connection) -> None:
            transitions.held(stored_task(db, task_id), task_id, fence)
            db.executemany(
                "INSERT INTO logs VALUES (?, ?, ?, ?, ?) ON CONFLICT (task_id, seq) DO NOTHING", rows
            )

        await self._file.write(work)

    async def read_logs(self, task_id: int, *, after_seq: int = -1, limit: int = 1000) -> Sequence[LogChunk]:
        """Return chunks in order."""
        check_page(limit)
        sql = "SELECT * FROM logs WHERE task_id = ? AND seq > ? ORDER BY seq LIMIT ?"
        values = (int64(task_id), int64(after_seq), limit)
        rows = await self._file.read(lambda db: db.execute(sql, values).fetchall())
        return [
            LogChunk(seq=r["seq"], stream=r["stream"], data=r["data"], at=from_millis(r["at"])) for r in rows
        ]
