"""Task output in SQLite, and samples of what runs use."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from harness.models import LogChunk, UsageSample
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

    async def append_samples(self, task_id: int, fence: int, samples: Sequence[UsageSample]) -> None:
        """Add samples of an attempt."""
        documents.check_samples(fence, samples)
        rows = [
            (task_id, s.seq, to_millis(s.at), s.memory_bytes, s.cpu_percent, s.cpu_seconds, s.processes)
            for s in samples
        ]

        def work(db: sqlite3.Connection) -> None:
            transitions.held(stored_task(db, task_id), task_id, fence)
            db.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task_id, seq) DO NOTHING", rows
            )

        await self._file.write(work)

    async def read_samples(
        self, task_id: int, *, after_seq: int = -1, limit: int = 1000
    ) -> Sequence[UsageSample]:
        """Return samples in order."""
        check_page(limit)
        sql = "SELECT * FROM samples WHERE task_id = ? AND seq > ? ORDER BY seq LIMIT ?"
        values = (int64(task_id), int64(after_seq), limit)
        rows = await self._file.read(lambda db: db.execute(sql, values).fetchall())
        return [
            UsageSample(
                seq=row["seq"],
                at=from_millis(row["at"]),
                memory_bytes=row["memory_bytes"],
                cpu_percent=row["cpu_percent"],
                cpu_seconds=row["cpu_seconds"],
                processes=row["processes"],
            )
            for row in rows
        ]
