"""Deleting what is not to be kept from the SQLite store, in transactions that are short whatever a row holds."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from harness.retention import Expiry, Purged
from harness.store.documents import check_page, int64, to_millis
from harness.store.sqlite.logs import SqliteLogs

#: How long one transaction goes on before it commits: the lock keeps every other process waiting. Rows differ by more
#: than a thousandfold in what their deletion takes, so counting them alone would not bound it.
LOCK_SECONDS = 0.02

# Each walks an index as far as there is something to find; `tasks_ended` holds ended tasks only.
_OLD_TASKS = """
    SELECT id FROM tasks INDEXED BY tasks_ended
    WHERE agent_id = :agent_id AND logs_gone = :logs_gone AND completed_at < :tasks_before
    ORDER BY completed_at LIMIT :limit"""
_SURPLUS_TASKS = """
    SELECT id FROM tasks INDEXED BY tasks_by_agent
    WHERE agent_id = :agent_id AND completed_at < :before AND id <= (
        SELECT id FROM tasks WHERE agent_id = :agent_id ORDER BY id DESC LIMIT 1 OFFSET :max_tasks)
    ORDER BY id LIMIT :limit"""
_OLD_LOGS = """
    SELECT id, started_at IS NOT NULL AS ran FROM tasks INDEXED BY tasks_ended
    WHERE agent_id = :agent_id AND logs_gone = 0 AND completed_at < :logs_before
    ORDER BY completed_at LIMIT :limit"""
_OLDER_ARTIFACTS = """
    SELECT version, created_at FROM artifacts
    WHERE agent_id = :agent_id AND version < (SELECT max(version) FROM artifacts WHERE agent_id = :agent_id)
    ORDER BY version LIMIT :limit"""
_SURPLUS_VERSION = """
    SELECT version FROM artifacts WHERE agent_id = :agent_id ORDER BY version DESC LIMIT 1 OFFSET :max_artifacts"""

#: SQLite reads a negative limit as none.
_ALL = -1


class _Batch:
    """What one transaction may still do."""

    def __init__(self, limit: int) -> None:
        self.room = limit
        self._ends = time.monotonic() + LOCK_SECONDS

    def is_over(self) -> bool:
        """Whether it is to commit now."""
        return self.room <= 0 or time.monotonic() >= self._ends

    def execute(self, db: sqlite3.Connection, sql: str, *values: Any) -> None:
        """Delete or change one row."""
        db.execute(sql, values)
        self.room -= 1


class SqliteRetention(SqliteLogs):
    """What a `SqliteStore` forgets."""

    async def agent_ids(self, *, after_id: int = 0, limit: int = 1000) -> Sequence[int]:
        """Return ids of agents."""
        check_page(limit)
        sql, values = "SELECT id FROM agents WHERE id > ? ORDER BY id LIMIT ?", (int64(after_id), limit)
        return [row["id"] for row in await self._file.read(lambda db: db.execute(sql, values).fetchall())]

    async def purge(self, agent_id: int, expiry: Expiry, *, limit: int) -> Purged:
        """Delete in one short transaction."""
        check_page(limit)

        def work(db: sqlite3.Connection) -> Purged:
            batch = _Batch(limit)
            purged = Purged(
                tasks=_delete_tasks(db, agent_id, expiry, batch),
                logs=_delete_logs(db, agent_id, expiry, batch),
                artifacts=_delete_artifacts(db, agent_id, expiry, batch),
            )
            return purged + Purged(more=batch.is_over())

        # Looked for first without the lock that others wait for: most of the time there is nothing to do.
        if not await self._file.read(lambda db: _has_work(db, agent_id, expiry)):
            return Purged()
        return await self._file.write(work)

    async def purgeable(self, agent_id: int, expiry: Expiry) -> Purged:
        """Count what is to go."""

        def work(db: sqlite3.Connection) -> Purged:
            tasks = set(_tasks(db, agent_id, expiry, _ALL))
            logs = _logs(db, agent_id, expiry, _ALL)
            return Purged(
                tasks=len(tasks),
                logs=sum(row["ran"] and row["id"] not in tasks for row in logs),
                artifacts=len(_artifacts(db, agent_id, expiry, _ALL)),
            )

        return await self._file.read(work)


def _has_work(db: sqlite3.Connection, agent_id: int, expiry: Expiry) -> bool:
    looks = (_tasks, _logs, _artifacts)
    return any(any(True for _ in look(db, agent_id, expiry, 1)) for look in looks)


def _delete_tasks(db: sqlite3.Connection, agent_id: int, expiry: Expiry, batch: _Batch) -> int:
    count = 0
    # All of them are read before the first one goes: what is deleted must not move what is still to be read.
    for task_id in dict.fromkeys(_tasks(db, agent_id, expiry, batch.room)):
        if not _delete_chunks(db, task_id, batch):
            break
        batch.execute(db, "DELETE FROM tasks WHERE id = ?", task_id)
        count += 1
    return count


def _delete_logs(db: sqlite3.Connection, agent_id: int, expiry: Expiry, batch: _Batch) -> int:
    count = 0
    for row in () if batch.is_over() else _logs(db, agent_id, expiry, batch.room):
        if not _delete_chunks(db, row["id"], batch):
            break
        batch.execute(db, "UPDATE tasks SET logs_gone = 1 WHERE id = ?", row["id"])
        count += row["ran"]
    return count


def _delete_chunks(db: sqlite3.Connection, task_id: int, batch: _Batch) -> bool:
    """Delete a task's logs and samples; return whether all of them are gone and there is room for the task."""
    if batch.is_over():
        return False
    for table in ("logs", "samples"):
        sql = f"SELECT seq FROM {table} WHERE task_id = ? ORDER BY seq LIMIT ?"  # noqa: S608 - fixed names
        for row in db.execute(sql, (task_id, batch.room)).fetchall():
            one = f"DELETE FROM {table} WHERE task_id = ? AND seq = ?"  # noqa: S608 - as above
            batch.execute(db, one, task_id, row["seq"])
            if batch.is_over():
                return False
    return True


def _delete_artifacts(db: sqlite3.Connection, agent_id: int, expiry: Expiry, batch: _Batch) -> int:
    count = 0
    for version in () if batch.is_over() else _artifacts(db, agent_id, expiry, batch.room):
        if batch.is_over():
            break
        batch.execute(db, "DELETE FROM artifacts WHERE agent_id = ? AND version = ?", agent_id, version)
        count += 1
    return count


def _tasks(db: sqlite3.Connection, agent_id: int, expiry: Expiry, limit: int) -> Iterator[int]:
    """Yield tasks that are to go, some of them twice."""
    values = _values(agent_id, expiry, limit)
    found: list[list[sqlite3.Row]] = []
    if expiry.tasks_before is not None:
        found += [db.execute(_OLD_TASKS, values | {"logs_gone": gone}).fetchall() for gone in (1, 0)]
    if expiry.max_tasks is not None:
        found.append(db.execute(_SURPLUS_TASKS, values).fetchall())
    return (row["id"] for row in chain.from_iterable(found))


def _logs(db: sqlite3.Connection, agent_id: int, expiry: Expiry, limit: int) -> list[sqlite3.Row]:
    """Return tasks whose logs are to go."""
    if expiry.logs_before is None:
        return []
    return db.execute(_OLD_LOGS, _values(agent_id, expiry, limit)).fetchall()


def _artifacts(db: sqlite3.Connection, agent_id: int, expiry: Expiry, limit: int) -> list[int]:
    """Return versions of artifacts that are to go, the oldest first."""
    values = _values(agent_id, expiry, limit)
    surplus = -1
    if expiry.max_artifacts is not None and (row := db.execute(_SURPLUS_VERSION, values).fetchone()):
        surplus = row["version"]
    if surplus < 0 and expiry.artifacts_before is None:
        return []
    found = []
    for row in db.execute(_OLDER_ARTIFACTS, values):
        is_old = expiry.artifacts_before is not None and row["created_at"] < values["artifacts_before"]
        if not (is_old or row["version"] <= surplus) or row["created_at"] >= values["before"]:
            break
        found.append(row["version"])
    return found


def _values(agent_id: int, expiry: Expiry, limit: int) -> dict[str, int | None]:
    instants = {
        name: getattr(expiry, name) for name in ("before", "tasks_before", "logs_before", "artifacts_before")
    }
    return {
        **{name: None if at is None else to_millis(at) for name, at in instants.items()},
        "agent_id": int64(agent_id),
        "max_tasks": expiry.max_tasks,
        "max_artifacts": expiry.max_artifacts,
        "limit": limit,
    }
