"""Storing and changing tasks inside one transaction of the SQLite store, and the slots they hold."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from harness.models import Claim, NewTask, Task, WhenBusy
from harness.store import documents, transitions
from harness.store.documents import int64, to_millis
from harness.store.slots import Candidate, Holder, Place, find_place, free_slot, order_of_claims, queue_slot
from harness.store.sqlite.rows import insert_many, json_list, one, to_document, update

_HOLDERS = """
    SELECT agent_id, active_slot, status = 'running' AS is_running, id FROM tasks
    WHERE active_slot IS NOT NULL AND agent_id IN (SELECT value FROM json_each(?))"""
_HOLDERS_FOR_CLAIM = f"""{_HOLDERS}
    AND (status = 'running' OR agent_id IN (SELECT value FROM json_each(?)))"""  # noqa: S608 - the text above
# In both of these the columns are those of `Candidate`. Indexes are named, since without statistics SQLite takes all
# values of `status` for equally frequent.
#
# The first ones of those with a slot, in the order of `order_of_claims`: nothing that is read beside them can bring one
# forward that is left out here. So of a backlog of thousands only these are made objects of.
_READY = """
    WITH running AS MATERIALIZED (
        SELECT agent_id, count(*) AS runs FROM tasks INDEXED BY tasks_in_slots
        WHERE active_slot IS NOT NULL AND status = 'running' GROUP BY agent_id),
    ready AS (
        SELECT priority, due_at, id, agent_id, active_slot, max_active,
            row_number() OVER (PARTITION BY agent_id, priority ORDER BY due_at, id) AS turn
        FROM tasks INDEXED BY tasks_ready
        WHERE status = 'pending' AND active_slot IS NOT NULL AND due_at <= :now)
    SELECT -priority, due_at, id, agent_id, active_slot, max_active FROM ready LEFT JOIN running USING (agent_id)
    ORDER BY priority DESC, turn, coalesce(runs, 0), due_at, id LIMIT :limit"""
_IS_READY = """
    SELECT 1 FROM tasks INDEXED BY tasks_ready
    WHERE status = 'pending' AND active_slot IS NOT NULL AND due_at <= :now LIMIT 1"""
# As many of those that wait as there are free slots for; so a long queue that is blocked is never read beyond its index.
_QUEUED = """
    WITH holding AS MATERIALIZED (
        SELECT agent_id, count(*) AS held FROM tasks WHERE active_slot IS NOT NULL GROUP BY agent_id),
    waiting AS (
        SELECT agent_id, max(max_active) AS most FROM tasks INDEXED BY tasks_waiting
        WHERE status = 'pending' AND active_slot IS NULL GROUP BY agent_id),
    room AS (
        SELECT agent_id, most, coalesce(held, 0) AS held FROM waiting LEFT JOIN holding USING (agent_id)
        WHERE most > coalesce(held, 0)),
    queued AS (
        SELECT priority, due_at, id, agent_id, max_active, most - held AS places,
            row_number() OVER (PARTITION BY agent_id ORDER BY priority DESC, due_at, id) AS place
        FROM room CROSS JOIN tasks INDEXED BY tasks_waiting USING (agent_id)
        WHERE status = 'pending' AND active_slot IS NULL AND due_at <= :now AND max_active > held)
    SELECT -priority, due_at, id, agent_id, NULL, max_active FROM queued WHERE place <= places"""


class TaskWriter:
    """Stores new tasks of some agents, one after the other, each where the ones before it leave room."""

    def __init__(self, db: sqlite3.Connection, agent_ids: Iterable[int], now: datetime) -> None:
        """Read which slots of these agents are held, inside of a writing transaction."""
        self._db = db
        self._now = now
        self._taken: defaultdict[int, dict[str, int]] = defaultdict(dict)
        ids = sorted(set(agent_ids))
        for agent_id, slot, _, task_id in db.execute(_HOLDERS, (json_list(ids),)):
            self._taken[agent_id][slot] = task_id
        sql = "SELECT agent_id, id FROM tasks WHERE queue_slot IN (SELECT value FROM json_each(?))"
        names = json_list(queue_slot(agent_id) for agent_id in ids)
        self._waiting: dict[int, int] = dict(db.execute(sql, (names,)).fetchall())
        self._waits = waiting_tasks(db, ids)
        last = one(db, "SELECT seq FROM sqlite_sequence WHERE name = 'tasks'")
        self._last_id: int = 0 if last is None else last["seq"]
        self._rows: list[dict[str, Any]] = []

    def add(self, new: NewTask, fire_key: str | None, claim: Claim | None = None) -> Task:
        """Store a task, at the latest with `flush`.

        Args:
            new: The task.
            fire_key: As `harness.store.documents.fire_key` gives it.
            claim: Who takes it at once.

        Raises:
            AgentBusyError: No slot is free, and the task neither waits nor is skipped.
        """
        agent_id, taken = new.agent_id, self._taken[new.agent_id]
        waits = self._waits[agent_id]
        place = find_place(new, taken, is_waited=agent_id in self._waiting, waiting=len(waits))
        if (
            new.when_busy is WhenBusy.REPLACE
            and place is not None
            and not (place.active_slot or new.skip_reason)
        ):
            self._make_room(new)
            place = find_place(new, taken, is_waited=False, waiting=len(waits))
        if place is None:
            raise documents.slot_taken(agent_id, next(iter((*taken.values(), *waits))))
        task = transitions.new_task(self._last_id + 1, new, place, self._now, claim)
        self._rows.append(_task_fields(task, new, place, fire_key))
        self._last_id = task.id
        if place.active_slot is not None:
            taken[place.active_slot] = task.id
        elif place.skip_reason is None:
            waits.append(task.id)
            if place.queue_slot is not None:
                self._waiting[agent_id] = task.id
        return task

    def flush(self) -> None:
        """Write what was added."""
        insert_many(self._db, "tasks", self._rows)
        self._rows.clear()

    def _make_room(self, new: NewTask) -> None:
        """Skip the task that waits, and if no slot is free, ask those that hold them to end."""
        self.flush()
        agent_id, taken = new.agent_id, self._taken[new.agent_id]
        is_busy = free_slot(agent_id, new.max_active, taken) is None
        for slot, task_id in list(taken.items()) if is_busy else ():
            task = stored_task(self._db, task_id)
            if task is not None:
                after = change_task(self._db, task, transitions.cancel(task, self._now))
                if after.status.is_final:
                    del taken[slot]
        waiting = stored_task(self._db, self._waiting.pop(agent_id, 0))
        if waiting is not None:
            self._waits[agent_id].remove(waiting.id)
        skipped = transitions.supersede(waiting, self._now)
        if waiting is not None and skipped is not None:
            change_task(self._db, waiting, skipped)


def stored_task(db: sqlite3.Connection, task_id: int) -> Task | None:
    """Return the task with that id."""
    row = one(db, "SELECT * FROM tasks WHERE id = ?", int64(task_id))
    return None if row is None else task_from_row(row)


def task_from_row(row: sqlite3.Row) -> Task:
    """Return the task of a row."""
    return documents.task_from(to_document(row))


def change_task(db: sqlite3.Connection, before: Task, after: Task, *, active_slot: str | None = None) -> Task:
    """Write the difference between two states of a task, which may also get a slot; return the second."""
    update(db, "tasks", after.id, changes_of(before, after, active_slot=active_slot))
    return after


def changes_of(before: Task, after: Task, *, active_slot: str | None = None) -> dict[str, Any]:
    """Return the columns in which two states of a task differ, of which the second may also get a slot."""
    changes = documents.task_changes(before, after)
    if before.status.is_final and not after.status.is_final:
        # Its next attempt has logs of its own.
        changes["logs_gone"] = False
    if after.status.is_final:
        changes |= {"active_slot": None, "queue_slot": None}
    elif active_slot is not None:
        changes |= {"active_slot": active_slot, "queue_slot": None}
    return changes


def held_slots(db: sqlite3.Connection, agent_id: int) -> dict[str, int]:
    """Return an agent's slots that are held, with the tasks that hold them."""
    rows = db.execute(_HOLDERS, (json_list([agent_id]),)).fetchall()
    return {row["active_slot"]: row["id"] for row in rows}


def waiting_tasks(db: sqlite3.Connection, agent_ids: Iterable[int]) -> defaultdict[int, list[int]]:
    """Return, by agent, the tasks that wait for a slot."""
    sql = """
        SELECT agent_id, id FROM tasks INDEXED BY tasks_waiting
        WHERE status = 'pending' AND active_slot IS NULL AND agent_id IN (SELECT value FROM json_each(?))"""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for agent_id, task_id in db.execute(sql, (json_list(agent_ids),)):
        found[agent_id].append(task_id)
    return found


def max_active_of(db: sqlite3.Connection, task_id: int) -> int:
    """Return how many tasks may hold a slot of its agent for this one to get one."""
    row = one(db, "SELECT max_active FROM tasks WHERE id = ?", int64(task_id))
    return 1 if row is None else row["max_active"]


def has_claimable(db: sqlite3.Connection, now: datetime) -> bool:
    """Whether there is anything to be claimed."""
    values = {"now": to_millis(now)}
    return any(db.execute(sql, values).fetchone() for sql in (_IS_READY, f"{_QUEUED} LIMIT 1"))


def claimable(db: sqlite3.Connection, now: datetime, *, limit: int) -> Sequence[Candidate]:
    """Return what is to be claimed, in order, each with the slot it has or gets."""
    values = {"now": to_millis(now), "limit": limit}
    candidates = [Candidate(*row) for sql in (_READY, _QUEUED) for row in db.execute(sql, values)]
    agent_ids = json_list({candidate.agent_id for candidate in candidates})
    waiting_ids = json_list({candidate.agent_id for candidate in candidates if candidate.active_slot is None})
    holders = (Holder(*row[:3]) for row in db.execute(_HOLDERS_FOR_CLAIM, (agent_ids, waiting_ids)))
    return order_of_claims(candidates, holders, limit=limit)


def with_rows(
    db: sqlite3.Connection, candidates: Sequence[Candidate], *, at_once: int
) -> Iterator[tuple[Candidate, sqlite3.Row]]:
    """Yield candidates with their rows, read for `at_once` of them at a time."""
    sql = "SELECT * FROM tasks WHERE id IN (SELECT value FROM json_each(?))"
    for start in range(0, len(candidates), at_once):
        some = candidates[start : start + at_once]
        rows = db.execute(sql, (json_list(candidate.task_id for candidate in some),))
        by_id = {row["id"]: row for row in rows}
        yield from ((candidate, by_id[candidate.task_id]) for candidate in some)


def _task_fields(task: Task, new: NewTask, place: Place, fire_key: str | None) -> dict[str, Any]:
    return documents.task_document(task) | {
        "max_active": new.max_active,
        "fire_key": fire_key,
        "active_slot": place.active_slot,
        "queue_slot": place.queue_slot,
    }
