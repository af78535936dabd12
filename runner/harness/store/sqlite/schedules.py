"""Schedules in SQLite, and the tasks they turn into: a batch of plans is one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from harness.errors import AgentNotFoundError
from harness.models import FirePlan, NewTask, Page, ScheduleMark, ScheduleSource, ScheduleState, Task
from harness.store import documents, transitions
from harness.store.documents import check_page, from_millis, int64, to_millis
from harness.store.slots import check_plan, check_skips
from harness.store.sqlite.rows import json_list, one, to_row
from harness.store.sqlite.slots import TaskWriter
from harness.store.sqlite.tasks import SqliteTasks

_STATE_FIELDS = tuple(ScheduleState.model_fields)
#: A schedule beside its agent, without the agent's code. Some of their fields have the same names, hence the prefix.
_SOURCE = f"""
    SELECT agents.id, agents.version, agents.created_at, agents.config,
        {", ".join(f"schedules.{name} AS s_{name}" for name in _STATE_FIELDS)}
    FROM agents"""  # noqa: S608 - the model's field names
_FROM_DUE = """JOIN schedules ON schedules.agent_id = agents.id
    WHERE schedules.due_at > ? AND schedules.due_at <= ? ORDER BY schedules.due_at, schedules.agent_id LIMIT ?"""
_DUE = f"{_SOURCE} {_FROM_DUE}"
_DUE_MARKS = f"SELECT agents.id, agents.version, schedules.revision FROM agents {_FROM_DUE}"  # noqa: S608 - as above
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_MARKS = ", ".join("?" for _ in _STATE_FIELDS)
# `schedule_document` has the fields in the model's order.
_INSERT = f"""
    INSERT INTO schedules ({", ".join(_STATE_FIELDS)}) SELECT {_MARKS} FROM agents WHERE id = ? AND NOT deleting
    ON CONFLICT DO NOTHING"""  # noqa: S608 - as above
_UPDATE = f"""
    UPDATE schedules SET ({", ".join(_STATE_FIELDS)}) = ({_MARKS})
    WHERE agent_id = ? AND revision = ?"""  # noqa: S608 - as above
_ACCEPT = f"""
    UPDATE schedules SET {", ".join(f"{name} = ?" for name in documents.FIRED_FIELDS)}
    WHERE agent_id = ? AND revision = ?"""  # noqa: S608 - as above


class SqliteSchedules(SqliteTasks):
    """The schedules of a `SqliteStore`."""

    async def unsynced_schedules(self, *, limit: int = 1000) -> Sequence[ScheduleSource]:
        """Return agents whose schedule has to be computed."""
        check_page(limit)
        sql = f"""{_SOURCE} LEFT JOIN schedules ON schedules.agent_id = agents.id
            WHERE agents.id IN (SELECT agent_id FROM unsynced ORDER BY agent_id LIMIT ?)
            ORDER BY agents.id"""  # noqa: S608 - as above
        rows = await self._file.read(lambda db: db.execute(sql, (limit,)).fetchall())
        return list(map(_source, rows))

    async def get_schedule(self, agent_id: int) -> ScheduleSource:
        """Return what an agent's owner wrote and where its schedule stands."""
        sql = f"{_SOURCE} LEFT JOIN schedules ON schedules.agent_id = agents.id WHERE agents.id = ?"
        row = await self._file.read(lambda db: one(db, sql, int64(agent_id)))
        if row is None:
            raise AgentNotFoundError(f"there is no agent {agent_id}")
        return _source(row)

    async def put_schedules(
        self, states: Sequence[ScheduleState], *, skips: Sequence[NewTask] = ()
    ) -> Sequence[ScheduleState]:
        """Store schedules whose revision nobody changed, and the fires they skip by that, in one transaction."""
        rows = [documents.schedule_document(state) for state in states]
        checked = check_skips(states, skips)

        def work(db: sqlite3.Connection) -> list[ScheduleState]:
            stored = [raised for fields in rows if (raised := _put(db, fields))]
            agent_ids = {state.agent_id for state in stored}
            if checked:
                _store_fires(db, [new for new in checked if new.agent_id in agent_ids], self._now())
            _update_marks(db, agent_ids)
            return stored

        return await self._file.write(work)

    async def due_schedules(self, *, limit: int = 1000) -> Sequence[ScheduleSource]:
        """Return schedules that are due, earliest first."""
        return await self._due_between(_LONG_AGO, self._now(), limit)

    async def upcoming_schedules(
        self, *, after: datetime, until: datetime, limit: int = 1000
    ) -> Sequence[ScheduleSource]:
        """Return schedules that are due in a span of time, earliest first."""
        return await self._due_between(after, until, limit)

    async def _due_between(self, after: datetime, until: datetime, limit: int) -> list[ScheduleSource]:
        check_page(limit)
        values = (to_millis(after), to_millis(until), limit)
        return list(map(_source, await self._file.read(lambda db: db.execute(_DUE, values).fetchall())))

    async def due_marks(self, *, limit: int = 1000) -> Sequence[ScheduleMark]:
        """Return which schedules are due, earliest first."""
        check_page(limit)
        values = (to_millis(_LONG_AGO), to_millis(self._now()), limit)
        return await self._file.read(
            lambda db: [ScheduleMark(*row) for row in db.execute(_DUE_MARKS, values)]
        )

    async def next_schedules(self, *, limit: int = 100) -> Page[ScheduleState]:
        """Return the schedules in force, those that are due next first."""
        check_page(limit)
        sql = f"""SELECT {", ".join(f"{name} AS s_{name}" for name in _STATE_FIELDS)} FROM schedules
            WHERE due_at IS NOT NULL ORDER BY due_at, agent_id LIMIT ?"""  # noqa: S608 - as above

        def work(db: sqlite3.Connection) -> tuple[int, list[sqlite3.Row]]:
            count = db.execute("SELECT count(*) FROM schedules WHERE due_at IS NOT NULL").fetchone()[0]
            return count, db.execute(sql, (limit,)).fetchall()

        count, rows = await self._file.read(work)
        return Page(tuple(map(_state, rows)), count, limit, 0)

    async def fire_schedules(self, plans: Sequence[FirePlan]) -> Sequence[Task]:
        """Carry plans out, all of them in one transaction."""
        checked = list(map(check_plan, plans))

        def work(db: sqlite3.Connection) -> list[Task]:
            accepted = _accept(db, checked)
            return _store_fires(db, [new for plan in accepted for new in plan.tasks], self._now())

        return await self._file.write(work)


def _put(db: sqlite3.Connection, fields: dict[str, Any]) -> ScheduleState | None:
    """Store one schedule, if its agent is there and its revision is still the stored one."""
    fields["agent_id"] = int64(fields["agent_id"])
    raised = fields | {"revision": fields["revision"] + 1}
    if fields["revision"] == 0:
        done = db.execute(_INSERT, [*to_row(raised), fields["agent_id"]])
    else:
        done = db.execute(_UPDATE, [*to_row(raised), fields["agent_id"], fields["revision"]])
    return documents.schedule_from(raised) if done.rowcount else None


def _update_marks(db: sqlite3.Connection, agent_ids: Iterable[int]) -> None:
    """Have in `unsynced` those of these agents whose schedule was computed from another version than theirs."""
    ids = json_list(agent_ids)
    db.execute("DELETE FROM unsynced WHERE agent_id IN (SELECT value FROM json_each(?))", (ids,))
    db.execute(
        """INSERT INTO unsynced SELECT agents.id FROM schedules JOIN agents ON agents.id = schedules.agent_id
            WHERE agents.id IN (SELECT value FROM json_each(?)) AND agents.version <> schedules.agent_version""",
        (ids,),
    )


def _accept(db: sqlite3.Connection, plans: Sequence[FirePlan]) -> list[FirePlan]:
    """Store the next fires of the plans' schedules, unless somebody else was faster; return those of the others."""
    sql = "SELECT agent_id, revision FROM schedules WHERE agent_id IN (SELECT value FROM json_each(?))"
    revisions = dict(db.execute(sql, (json_list(int64(plan.before.agent_id) for plan in plans),)).fetchall())
    accepted = []
    changes = []
    for plan in plans:
        agent_id, revision = plan.before.agent_id, plan.before.revision
        if revisions.get(agent_id) == revision:
            fields = documents.fired_document(transitions.fired(plan))
            revisions[agent_id] = fields["revision"]
            accepted.append(plan)
            changes.append([*to_row(fields), agent_id, revision])
    db.executemany(_ACCEPT, changes)
    return accepted


def _store_fires(db: sqlite3.Connection, news: Sequence[NewTask], now: datetime) -> list[Task]:
    """Store the tasks of fires that have none yet."""
    keys = [documents.fire_key(new) for new in news]
    sql = "SELECT fire_key FROM tasks WHERE fire_key IN (SELECT value FROM json_each(?))"
    fired = {row["fire_key"] for row in db.execute(sql, (json_list(keys),))}
    writer = TaskWriter(db, (new.agent_id for new in news), now)
    tasks = []
    for key, new in zip(keys, news, strict=True):
        if key not in fired:
            fired.add(key)
            tasks.append(writer.add(new, key))
    writer.flush()
    return tasks


def _source(row: sqlite3.Row) -> ScheduleSource:
    agent = {name: row[name] for name in ("id", "version", "config")}
    agent["created_at"] = from_millis(row["created_at"])
    return documents.schedule_source(agent, None if row["s_agent_id"] is None else _state(row))


def _state(row: sqlite3.Row) -> ScheduleState:
    state = {name: row[f"s_{name}"] for name in _STATE_FIELDS}
    for name in documents.SCHEDULE_INSTANTS:
        if state[name] is not None:
            state[name] = from_millis(state[name])
    return documents.schedule_from(state)
