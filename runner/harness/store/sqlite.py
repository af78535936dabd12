"""The embedded store: one SQLite file, no server. Several processes of one machine may use it at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from harness.clock import SystemClock
from harness.errors import (
    AgentNotFoundError,
    StoreUnavailableError,
    TaskNotFoundError,
)
from harness.models import (
    Agent,
    AgentDraft,
    Claim,
    HandoffArtifact,
    LogChunk,
    NewArtifact,
    NewTask,
    Outcome,
    Page,
    Reason,
    Task,
    TaskStatus,
)
from harness.ports import Clock
from harness.store import documents, transitions
from harness.store.documents import check_page, from_millis, int64, to_millis, whole_millis
from harness.store.sqlite_file import SqliteFile

#: Tasks deleted per transaction, so that deleting an agent with a long history does not lock others out.
_DELETE_BATCH = 100

#: What a decision makes of a task; None leaves it as it is.
DecidedT = TypeVar("DecidedT", bound=Task | None)

_INSTANTS = frozenset(
    {"created_at", "updated_at", "scheduled_at", "started_at", "completed_at", "due_at", "at"}
)
_LISTS = frozenset({"files", "attempts"})


class SqliteStore:
    """`harness.ports.Store` on one SQLite file in WAL mode."""

    def __init__(self, path: Path | None, *, clock: Clock | None = None) -> None:
        """Remember where the file is; `open` makes it, with mode 0600, and its folder, with mode 0700.

        Args:
            path: On a local disk: SQLite's write-ahead log does not work across network file systems. None for a
                database in memory that ends with `close`.
            clock: None for the machine's.
        """
        self._file = SqliteFile(path)
        self._clock = clock or SystemClock()

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

    async def now(self) -> datetime:
        """Return the machine's time: all users of the file share it."""
        return self._now()

    def _now(self) -> datetime:
        return whole_millis(self._clock.now())

    # Agents

    async def create_agent(self, draft: AgentDraft) -> Agent:
        """Store a new agent."""
        fields = documents.draft_document(draft)
        now = self._now()
        fields |= {"version": 1, "created_at": now, "updated_at": now}

        def work(db: sqlite3.Connection) -> Agent:
            _check_name_is_free(db, draft.name)
            return documents.agent_from({"id": _insert(db, "agents", fields), **fields})

        return await self._file.write(work)

    async def get_agent(self, agent_id: int) -> Agent:
        """Return an agent."""
        row = await self._file.read(lambda db: _agent_row(db, agent_id))
        return documents.agent_from(_document(row))

    async def find_agent(self, name: str) -> Agent:
        """Return the agent of that name."""
        row = None
        # No agent has a name that is not printable, and such text may have no UTF-8 to look for.
        if name.isprintable():
            row = await self._file.read(lambda db: _one(db, "SELECT * FROM agents WHERE name = ?", name))
        if row is None:
            raise AgentNotFoundError(f"there is no agent named {name!r}")
        return documents.agent_from(_document(row))

    async def list_agents(self, *, limit: int = 100, offset: int = 0) -> Page[Agent]:
        """Return agents by falling id."""
        check_page(limit, offset)

        def work(db: sqlite3.Connection) -> tuple[int, list[sqlite3.Row]]:
            count = db.execute("SELECT count(*) FROM agents").fetchone()[0]
            sql = "SELECT * FROM agents ORDER BY id DESC LIMIT ? OFFSET ?"
            return count, db.execute(sql, (limit, offset)).fetchall()

        count, rows = await self._file.read(work)
        return Page(tuple(documents.agent_from(_document(row)) for row in rows), count, limit, offset)

    async def update_agent(
        self, agent_id: int, draft: AgentDraft, *, expected_version: int | None = None
    ) -> Agent:
        """Replace what the owner wrote."""
        fields = documents.draft_document(draft)
        now = self._now()

        def work(db: sqlite3.Connection) -> Agent:
            row = _agent_row(db, agent_id, usable=True)
            if expected_version is not None and row["version"] != expected_version:
                raise documents.version_conflict(agent_id, row["version"], expected_version)
            if row["name"] != draft.name:
                _check_name_is_free(db, draft.name)
            changes = fields | {"version": row["version"] + 1, "updated_at": now}
            _update(db, "agents", agent_id, changes)
            return documents.agent_from(_document(row) | changes)

        return await self._file.write(work)

    async def delete_agent(self, agent_id: int) -> None:
        """Delete an agent and all that belongs to it, in batches; the agent itself goes with the last one."""

        def work(db: sqlite3.Connection) -> bool:
            _agent_row(db, agent_id)
            sql = "SELECT id FROM tasks WHERE agent_id = ? AND status IN ('pending', 'running') LIMIT 1"
            if active := _one(db, sql, agent_id):
                raise documents.agent_is_active(agent_id, active["id"])
            _update(db, "agents", agent_id, {"deleting": 1})
            db.execute(
                "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE agent_id = ? LIMIT ?)",
                (agent_id, _DELETE_BATCH),
            )
            if _one(db, "SELECT id FROM tasks WHERE agent_id = ? LIMIT 1", agent_id):
                return False
            db.execute("DELETE FROM agents WHERE id = ?", (agent_id,))
            return True

        while not await self._file.write(work):
            pass

    # Tasks

    async def create_task(self, new: NewTask, *, claim: Claim | None = None) -> Task:
        """Store a task, pending or already running."""
        fields = documents.task_document(transitions.new_task(0, new, self._now(), claim))
        del fields["id"]
        fields |= {"fire_key": new.fire_key, "active_slot": new.active_slot}

        def work(db: sqlite3.Connection) -> int:
            _agent_row(db, new.agent_id, usable=True)
            # The fire first: a fire that exists already needs no skip for being busy.
            if fired := _one(db, "SELECT id FROM tasks WHERE fire_key = ?", new.fire_key):
                raise documents.duplicate_fire(fired["id"], new.fire_key or "")
            if active := _one(db, "SELECT id FROM tasks WHERE active_slot = ?", new.active_slot):
                raise documents.slot_taken(new.agent_id, active["id"])
            return _insert(db, "tasks", fields)

        return documents.task_from({"id": await self._file.write(work), **fields})

    async def get_task(self, task_id: int) -> Task:
        """Return a task."""
        task = await self._file.read(lambda db: _stored_task(db, task_id))
        if task is None:
            raise TaskNotFoundError(f"there is no task {task_id}")
        return task

    async def list_tasks(
        self,
        *,
        agent_id: int | None = None,
        status: TaskStatus | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Page[Task]:
        """Return tasks by falling id."""
        check_page(limit, offset)
        wanted: dict[str, Any] = {}
        if agent_id is not None:
            wanted["agent_id"] = int64(agent_id)
        if status is not None:
            wanted["status"] = status.value
        where = " AND ".join(f"{name} = :{name}" for name in wanted) or "TRUE"
        count_sql = f"SELECT count(*) FROM tasks WHERE {where}"  # noqa: S608 - fixed names; values are bound
        # The ids come from an index alone, so that a far page does not read the rows before it.
        page_sql = (
            "SELECT * FROM tasks WHERE id IN "  # noqa: S608 - as above
            f"(SELECT id FROM tasks WHERE {where} ORDER BY id DESC LIMIT :limit OFFSET :offset) ORDER BY id DESC"
        )

        def work(db: sqlite3.Connection) -> tuple[int, list[sqlite3.Row]]:
            count = db.execute(count_sql, wanted).fetchone()[0]
            return count, db.execute(page_sql, wanted | {"limit": limit, "offset": offset}).fetchall()

        count, rows = await self._file.read(work)
        return Page(tuple(map(_task, rows)), count, limit, offset)

    async def due_tasks(self, *, status: TaskStatus, limit: int = 10) -> Sequence[Task]:
        """Return due tasks, earliest first."""
        check_page(limit)
        sql = "SELECT * FROM tasks WHERE due_at <= ? AND +status = ? ORDER BY due_at, id LIMIT ?"
        values = (to_millis(self._now()), status.value, limit)
        return [_task(row) for row in await self._file.read(lambda db: db.execute(sql, values).fetchall())]

    async def claim_task(self, task: Task, claim: Claim) -> Task | None:
        """Take a due task, unless it changed hands since it was read."""
        now = self._now()
        return await self._change(task.id, lambda stored: transitions.claim(stored, task, claim, now))

    async def extend_lease(self, task_id: int, fence: int, lease_seconds: float) -> datetime:
        """Prolong a lease that nobody took over."""
        due_at = transitions.lease_end(self._now(), lease_seconds)
        await self._change(task_id, lambda stored: transitions.extend(stored, task_id, fence, due_at))
        return due_at

    async def record_reason(self, task_id: int, fence: int, reason: Reason, error: str | None = None) -> None:
        """Write down why the current attempt is about to be stopped."""
        await self._change(
            task_id, lambda stored: transitions.record_reason(stored, task_id, fence, reason, error)
        )

    async def expire_task(self, task: Task) -> Task | None:
        """End a running task whose lease has run out."""
        now = self._now()
        return await self._change(task.id, lambda stored: transitions.expire(stored, task, now))

    async def finish_task(
        self, task_id: int, fence: int, outcome: Outcome, *, artifact: NewArtifact | None = None
    ) -> Task:
        """Write a task's end and its artifact, in one transaction."""
        now = self._now()
        content = None
        if artifact is not None:
            content = documents.artifact_content(artifact) | {"created_at": now, "task_id": task_id}
        return await self._change(
            task_id, lambda stored: transitions.finish(stored, task_id, fence, outcome, now), content
        )

    async def _change(
        self,
        task_id: int,
        decide: Callable[[Task | None], DecidedT],
        artifact: dict[str, Any] | None = None,
    ) -> DecidedT:
        """Write what `decide` makes of the stored task, and with it the task's artifact."""

        def work(db: sqlite3.Connection) -> DecidedT:
            before = _stored_task(db, task_id)
            after = decide(before)
            if before is None or after is None or after is before:
                return after
            changes = documents.task_changes(before, after)
            if after.status.is_final:
                changes["active_slot"] = None
            if changes:
                _update(db, "tasks", task_id, changes)
            if artifact is not None:
                newest = _newest_artifact(db, after.agent_id)
                _insert_artifact(db, after.agent_id, documents.artifact_after(newest) | artifact)
            return after

        return await self._file.write(work)

    # Logs

    async def append_logs(self, task_id: int, fence: int, chunks: Sequence[LogChunk]) -> None:
        """Add output of an attempt."""
        documents.check_chunks(fence, chunks)
        rows = [(task_id, chunk.seq, chunk.stream, chunk.data, to_millis(chunk.at)) for chunk in chunks]

        def work(db: sqlite3.Connection) -> None:
            transitions.held(_stored_task(db, task_id), task_id, fence)
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

    # Handoff artifacts

    async def save_artifact(self, agent_id: int, artifact: NewArtifact) -> HandoffArtifact:
        """Save an artifact outside of any run."""
        content = documents.artifact_content(artifact) | {"created_at": self._now()}

        def work(db: sqlite3.Connection) -> HandoffArtifact:
            _agent_row(db, agent_id, usable=True)
            newest = _newest_artifact(db, agent_id)
            return _insert_artifact(db, agent_id, documents.artifact_after(newest) | content)

        return await self._file.write(work)

    async def newest_artifact(self, agent_id: int) -> HandoffArtifact | None:
        """Return the newest artifact, unless it marks a clear."""
        newest = await self._file.read(lambda db: _newest_artifact(db, agent_id))
        return None if newest is None or newest.cleared else newest

    async def clear_artifact(self, agent_id: int) -> None:
        """Make the next run a first run."""
        content = documents.clear_content() | {"created_at": self._now()}

        def work(db: sqlite3.Connection) -> None:
            newest = _newest_artifact(db, agent_id)
            if newest is not None and not newest.cleared:
                _insert_artifact(db, agent_id, documents.artifact_after(newest) | content)

        await self._file.write(work)

    async def artifact_history(
        self, agent_id: int, *, limit: int = 100, before_version: int | None = None
    ) -> Sequence[HandoffArtifact]:
        """Return artifacts by falling version."""
        check_page(limit)
        before = int64(2**63 if before_version is None else before_version)
        sql = "SELECT * FROM artifacts WHERE agent_id = ? AND version < ? ORDER BY version DESC LIMIT ?"
        values = (int64(agent_id), before, limit)
        rows = await self._file.read(lambda db: db.execute(sql, values).fetchall())
        return [documents.artifact_from(_document(row)) for row in rows]


def _one(db: sqlite3.Connection, sql: str, *values: object) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(sql, values).fetchone()
    return row


def _insert(db: sqlite3.Connection, table: str, fields: Mapping[str, Any]) -> int:
    names = ", ".join(f'"{name}"' for name in fields)
    marks = ", ".join("?" for _ in fields)
    # Table and field names are ours; all values are bound.
    cursor = db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", _row(fields))  # noqa: S608
    return cursor.lastrowid or 0


def _update(db: sqlite3.Connection, table: str, key: int, changes: Mapping[str, Any]) -> None:
    marks = ", ".join(f'"{name}" = ?' for name in changes)
    db.execute(f"UPDATE {table} SET {marks} WHERE id = ?", [*_row(changes), key])  # noqa: S608 - as in _insert


def _row(fields: Mapping[str, Any]) -> list[Any]:
    """Return a plain document's values as SQLite holds them."""
    return [_column(value) for value in fields.values()]


def _column(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_millis(value)
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=datetime.isoformat)
    return value


def _document(row: sqlite3.Row) -> dict[str, Any]:
    """Return a row as a plain document; instants inside of lists stay text, which pydantic reads as well."""
    document = dict(row)
    for name in _INSTANTS.intersection(document):
        if document[name] is not None:
            document[name] = from_millis(document[name])
    for name in _LISTS.intersection(document):
        document[name] = json.loads(document[name])
    return document


def _agent_row(db: sqlite3.Connection, agent_id: int, *, usable: bool = False) -> sqlite3.Row:
    """Return an agent's row; with `usable`, one whose deletion began counts as gone."""
    row = _one(db, "SELECT * FROM agents WHERE id = ?", int64(agent_id))
    if row is None:
        raise AgentNotFoundError(f"there is no agent {agent_id}")
    if usable and row["deleting"]:
        raise documents.agent_is_being_deleted(agent_id)
    return row


def _check_name_is_free(db: sqlite3.Connection, name: str) -> None:
    if other := _one(db, "SELECT id FROM agents WHERE name = ?", name):
        raise documents.name_taken(other["id"], name)


def _task(row: sqlite3.Row) -> Task:
    return documents.task_from(_document(row))


def _stored_task(db: sqlite3.Connection, task_id: int) -> Task | None:
    row = _one(db, "SELECT * FROM tasks WHERE id = ?", int64(task_id))
    return None if row is None else _task(row)


def _newest_artifact(db: sqlite3.Connection, agent_id: int) -> HandoffArtifact | None:
    row = _one(
        db, "SELECT * FROM artifacts WHERE agent_id = ? ORDER BY version DESC LIMIT 1", int64(agent_id)
    )
    return None if row is None else documents.artifact_from(_document(row))


def _insert_artifact(db: sqlite3.Connection, agent_id: int, fields: Mapping[str, Any]) -> HandoffArtifact:
    fields = {"cleared": False, "task_id": None, **fields, "agent_id": agent_id}
    _insert(db, "artifacts", fields)
    return documents.artifact_from(fields)
