"""Tasks in SQLite: every change is one transaction."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from harness.errors import StoreError, TaskNotFoundError
from harness.models import (
    MAX_COUNTED,
    Claim,
    NewArtifact,
    NewTask,
    Outcome,
    Page,
    QueueStats,
    Reason,
    Task,
    TaskStatus,
)
from harness.store import documents, transitions
from harness.store.documents import check_page, from_millis, int64, to_millis
from harness.store.slots import SPARE_CANDIDATES, check_new, slot_for_new
from harness.store.sqlite.artifacts import SqliteArtifacts, insert_next_artifact
from harness.store.sqlite.rows import check_agent, one, update_many
from harness.store.sqlite.slots import (
    TaskWriter,
    change_task,
    changes_of,
    claimable,
    has_claimable,
    held_slots,
    max_active_of,
    stored_task,
    task_from_row,
    waiting_tasks,
    with_rows,
)

_log = logging.getLogger(__name__)

#: What a decision makes of a task; None leaves it as it is.
DecidedT = TypeVar("DecidedT", bound=Task | None)

# Each looks into an index that holds nothing else.
_NEXT_DUE = """
    SELECT min(due_at) FROM (
        SELECT min(due_at) AS due_at FROM tasks INDEXED BY tasks_ready
            WHERE status = 'pending' AND active_slot IS NOT NULL AND due_at > :now
        UNION ALL SELECT min(due_at) FROM tasks INDEXED BY tasks_waiting
            WHERE status = 'pending' AND active_slot IS NULL AND due_at > :now
        UNION ALL SELECT min(due_at) FROM schedules WHERE due_at > :now)"""

# The same indexes. Each counts `:most` tasks and no more, those that are due longest first where it is in that order.
_COUNTS = """
    WITH pending AS (
        SELECT * FROM (SELECT 'ready' AS place, due_at FROM tasks INDEXED BY tasks_ready
            WHERE status = 'pending' AND active_slot IS NOT NULL ORDER BY due_at LIMIT :most)
        UNION ALL SELECT * FROM (SELECT 'waiting', due_at FROM tasks INDEXED BY tasks_waiting
            WHERE status = 'pending' AND active_slot IS NULL LIMIT :most)
        UNION ALL SELECT * FROM (SELECT 'running', due_at FROM tasks INDEXED BY tasks_leased
            WHERE status = 'running' ORDER BY due_at LIMIT :most))
    SELECT place, due_at <= :now AS is_due, count(*) AS number, min(due_at) AS since FROM pending GROUP BY 1, 2"""


class SqliteTasks(SqliteArtifacts):
    """The tasks of a `SqliteStore`."""

    async def create_task(self, new: NewTask, *, claim: Claim | None = None) -> Task:
        """Store a task where there is room for it, pending, skipped or already running."""
        check_new(new, claim)
        fire_key = documents.fire_key(new)

        def work(db: sqlite3.Connection) -> Task:
            check_agent(db, new.agent_id, usable=True)
            # The fire first: a fire that exists already needs no skip for being busy.
            if fired := one(db, "SELECT id FROM tasks WHERE fire_key = ?", fire_key):
                raise documents.duplicate_fire(fired["id"], fire_key or "")
            writer = TaskWriter(db, [new.agent_id], self._now())
            task = writer.add(new, fire_key, claim)
            writer.flush()
            # Read back, so that the caller's context is not shared with it.
            return stored_task(db, task.id) or task

        return await self._file.write(work)

    async def get_task(self, task_id: int) -> Task:
        """Return a task."""
        return await self._file.read(lambda db: _existing_task(db, task_id))

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
        # Without a condition SQLite counts an index's pages, with any it counts rows.
        where = f"WHERE {' AND '.join(f'{name} = :{name}' for name in wanted)}" if wanted else ""
        count_sql = f"SELECT count(*) FROM tasks {where}"  # noqa: S608 - fixed names; values are bound
        # The ids come from an index alone, so that a far page does not read the rows before it.
        page_sql = (
            "SELECT * FROM tasks WHERE id IN "  # noqa: S608 - as above
            f"(SELECT id FROM tasks {where} ORDER BY id DESC LIMIT :limit OFFSET :offset) ORDER BY id DESC"
        )

        def work(db: sqlite3.Connection) -> tuple[int, list[sqlite3.Row]]:
            count = db.execute(count_sql, wanted).fetchone()[0]
            return count, db.execute(page_sql, wanted | {"limit": limit, "offset": offset}).fetchall()

        count, rows = await self._file.read(work)
        return Page(tuple(map(task_from_row, rows)), count, limit, offset)

    async def expired_tasks(self, *, limit: int = 100) -> Sequence[Task]:
        """Return running tasks whose lease has run out, earliest first."""
        check_page(limit)
        sql = """
            SELECT * FROM tasks INDEXED BY tasks_leased
            WHERE status = 'running' AND due_at <= ? ORDER BY due_at, id LIMIT ?"""
        values = (to_millis(self._now()), limit)
        return list(map(task_from_row, await self._file.read(lambda db: db.execute(sql, values).fetchall())))

    async def claim_tasks(self, claim: Claim, *, limit: int) -> Sequence[Task]:
        """Take due tasks, all in one transaction."""
        check_page(limit)

        def work(db: sqlite3.Connection) -> list[Task]:
            now = self._now()
            claimed: list[Task] = []
            changes: list[tuple[int, dict[str, Any]]] = []
            for candidate, row in with_rows(
                db, claimable(db, now, limit=limit + SPARE_CANDIDATES), at_once=limit
            ):
                if len(claimed) == limit:
                    break
                try:
                    task = task_from_row(row)
                except StoreError as error:
                    # One record that can't be read must not keep all others waiting.
                    _log.error("not claimed: %s", error, extra={"action": "task_unreadable"})
                    continue
                after = transitions.claim(task, claim, now)
                if after is not None:
                    claimed.append(after)
                    # One that holds its slot already is not written to the indexes of slots again.
                    slot = None if row["active_slot"] else candidate.active_slot
                    changes.append((task.id, changes_of(task, after, active_slot=slot)))
            update_many(db, "tasks", changes)
            return claimed

        # Looked for first without the lock that others wait for: most of the time there is nothing to do.
        if not await self._file.read(lambda db: has_claimable(db, self._now())):
            return []
        return await self._file.write(work)

    async def next_due_at(self) -> datetime | None:
        """Return when something comes due next."""
        now = to_millis(self._now())
        (earliest,) = await self._file.read(lambda db: db.execute(_NEXT_DUE, {"now": now}).fetchone())
        return None if earliest is None else from_millis(earliest)

    async def queue_stats(self) -> QueueStats:
        """Count the work there is."""
        now = self._now()
        values = {"now": to_millis(now), "most": MAX_COUNTED}
        rows = await self._file.read(lambda db: db.execute(_COUNTS, values).fetchall())
        found = {(row["place"], bool(row["is_due"])): (row["number"], row["since"]) for row in rows}
        ready, ready_since = found.get(("ready", True), (0, None))
        waiting, waiting_since = found.get(("waiting", True), (0, None))
        expired, _ = found.get(("running", True), (0, None))
        return QueueStats(
            at=now,
            ready=ready,
            ready_since=None if ready_since is None else from_millis(ready_since),
            waiting=waiting,
            waiting_since=None if waiting_since is None else from_millis(waiting_since),
            delayed=sum(found.get((place, False), (0, None))[0] for place in ("ready", "waiting")),
            running=expired + found.get(("running", False), (0, None))[0],
            expired=expired,
        )

    async def extend_lease(self, task_id: int, fence: int, lease_seconds: float) -> datetime:
        """Prolong a lease that nobody took over."""

        def decide(stored: Task | None) -> Task:
            due_at = transitions.lease_end(self._now(), lease_seconds)
            return transitions.extend(stored, task_id, fence, due_at)

        due_at = (await self._change(task_id, decide)).due_at
        assert due_at is not None
        return due_at

    async def record_reason(self, task_id: int, fence: int, reason: Reason, error: str | None = None) -> None:
        """Write down why the current attempt is about to be stopped."""
        await self._change(
            task_id, lambda stored: transitions.record_reason(stored, task_id, fence, reason, error)
        )

    async def finish_task(
        self, task_id: int, fence: int, outcome: Outcome, *, artifact: NewArtifact | None = None
    ) -> Task:
        """Write a task's end and its artifact, in one transaction."""
        content = None
        if artifact is not None:
            content = documents.artifact_content(artifact) | {"task_id": task_id}
        return await self._change(
            task_id, lambda stored: transitions.finish(stored, task_id, fence, outcome, self._now()), content
        )

    async def retry_task(self, task_id: int, fence: int, outcome: Outcome, *, due_at: datetime) -> Task:
        """End an attempt and let another one follow."""
        return await self._change(
            task_id,
            lambda stored: transitions.retry(stored, task_id, fence, outcome, self._now(), due_at=due_at),
        )

    async def hand_back_task(self, task_id: int, fence: int, error: str) -> Task:
        """End an attempt that its runner can't go on with."""
        return await self._change(
            task_id, lambda stored: transitions.hand_back(stored, task_id, fence, error, self._now())
        )

    async def reopen_task(self, task_id: int, *, due_at: datetime, max_retries: int) -> Task:
        """Make a failed task pending again."""

        def work(db: sqlite3.Connection) -> Task:
            task = _existing_task(db, task_id)
            again = transitions.reopen(task, due_at, max_retries)
            if again is task:
                return task
            check_agent(db, task.agent_id, usable=True)
            taken = held_slots(db, task.agent_id)
            waits = waiting_tasks(db, [task.agent_id])[task.agent_id]
            slot = slot_for_new(task.agent_id, max_active_of(db, task_id), taken, waiting=len(waits))
            if slot is None:
                raise documents.slot_taken(task.agent_id, next(iter((*taken.values(), *waits))))
            return change_task(db, task, again, active_slot=slot)

        return await self._file.write(work)

    async def cancel_task(self, task_id: int) -> Task:
        """Cancel a pending task, or note the wish on a running one."""

        def work(db: sqlite3.Connection) -> Task:
            task = _existing_task(db, task_id)
            return change_task(db, task, transitions.cancel(task, self._now()))

        return await self._file.write(work)

    async def cancel_requests(self, owner: str) -> Sequence[int]:
        """Return the ids of an owner's running tasks that are to be cancelled."""
        sql = """
            SELECT id FROM tasks WHERE status = 'running' AND cancel_requested_at IS NOT NULL AND lease_owner = ?
            ORDER BY id"""
        rows = await self._file.read(lambda db: db.execute(sql, (owner,)).fetchall())
        return [row["id"] for row in rows]

    async def expire_task(self, task: Task, *, retry_at: datetime | None = None) -> Task | None:
        """End a running task whose lease has run out, or its attempt."""
        return await self._change(
            task.id, lambda stored: transitions.expire(stored, task, self._now(), retry_at=retry_at)
        )

    async def _change(
        self,
        task_id: int,
        decide: Callable[[Task | None], DecidedT],
        artifact: dict[str, Any] | None = None,
    ) -> DecidedT:
        """Write what `decide` makes of the stored task, and with it the task's artifact."""

        def work(db: sqlite3.Connection) -> DecidedT:
            before = stored_task(db, task_id)
            after = decide(before)
            if before is None or after is None or after is before:
                return after
            change_task(db, before, after)
            if artifact is not None:
                insert_next_artifact(db, after.agent_id, artifact | {"created_at": after.completed_at})
            return after

        return await self._file.write(work)


def _existing_task(db: sqlite3.Connection, task_id: int) -> Task:
    task = stored_task(db, task_id)
    if task is None:
        raise TaskNotFoundError(f"there is no task {task_id}")
    return task
