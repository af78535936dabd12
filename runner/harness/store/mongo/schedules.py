"""Schedules in MongoDB, and the tasks they turn into.

A plan changes several documents, and only one changes atomically on every server. So the schedule's own document takes
the next fire and, in the same update, the plan's tasks: its *outbox*. From there the tasks are inserted one by one,
recognised by their unique `fire_key`, and then the outbox is removed. Whoever looks for schedules finishes outboxes that
were left behind; that two do it at once, or that one does it once more, changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from harness.errors import AgentNotFoundError, StoreError, StoreUnavailableError
from harness.models import FirePlan, NewTask, Page, ScheduleMark, ScheduleSource, ScheduleState, Task
from harness.store import documents, transitions
from harness.store.documents import check_page, from_millis, int64
from harness.store.mongo.agents import AGENTS, SCHEDULES, TASKS, UNSYNCED
from harness.store.mongo.base import each
from harness.store.mongo.driver import Document, DuplicateKey
from harness.store.mongo.tasks import MongoTasks
from harness.store.slots import check_plan, check_skips

_log = logging.getLogger(__name__)

#: Fields of a schedule whose accepted plan is not carried out yet: the tasks, since when (indexed), and the revision
#: that came with them.
OUTBOX, OUTBOX_SINCE, OUTBOX_REVISION = "outbox", "outbox_since", "outbox_revision"

#: Whoever accepted a plan carries it out within milliseconds. Others look after what is older than this.
OUTBOX_GRACE_SECONDS = 1.0

_AGENT_FIELDS = ("version", "created_at", "config", "deleting")


class MongoSchedules(MongoTasks):
    """The schedules of a `MongoStore`."""

    async def unsynced_schedules(self, *, limit: int = 1000) -> Sequence[ScheduleSource]:
        """Return agents whose schedule has to be computed."""
        check_page(limit)
        await self._finish_outboxes()
        sources: list[ScheduleSource] = []
        last = 0
        while len(sources) < limit:
            room = limit - len(sources)
            query = {UNSYNCED: True, "_id": {"$gt": last}}
            agents = await self._db.find(
                AGENTS, query, sort=[("_id", 1)], limit=room, fields=[*_AGENT_FIELDS]
            )
            states = await self._states([agent["_id"] for agent in agents])
            for agent in agents:
                source = _source(agent, states.get(agent["_id"]))
                if source.state is not None or documents.has_schedule(source.config):
                    sources += [source] * (not agent.get("deleting"))
                else:
                    # It changed, but there is nothing to compute and nothing to take back.
                    await self._unmark(source.agent_id, source.agent_version)
            if len(agents) < room:
                break
            last = agents[-1]["_id"]
        return sources

    async def get_schedule(self, agent_id: int) -> ScheduleSource:
        """Return what an agent's owner wrote and where its schedule stands."""
        agent = await self._db.find_one(AGENTS, {"_id": int64(agent_id)}, fields=[*_AGENT_FIELDS])
        if agent is None:
            raise AgentNotFoundError(f"there is no agent {agent_id}")
        states = await self._states([agent["_id"]])
        return _source(agent, states.get(agent["_id"]))

    async def put_schedules(
        self, states: Sequence[ScheduleState], *, skips: Sequence[NewTask] = ()
    ) -> Sequence[ScheduleState]:
        """Store schedules whose revision nobody changed, each with its skips by its own compare-and-set."""
        outboxes: dict[int, list[Document]] = {}
        for new in check_skips(states, skips):
            outboxes.setdefault(new.agent_id, []).append(documents.new_task_document(new))
        stored = await each(states, lambda state: self._put(state, outboxes.get(state.agent_id, [])))
        return [state for state in stored if state is not None]

    async def _put(self, state: ScheduleState, outbox: list[Document]) -> ScheduleState | None:
        fields = documents.schedule_document(state) | {"revision": state.revision + 1}
        agent_id = int64(fields.pop("agent_id"))
        if state.revision == 0:
            document = {name: value for name, value in fields.items() if (name, value) != ("due_at", None)}
            try:
                await self._db.insert(
                    SCHEDULES, {"_id": agent_id, **document, **await self._outbox_fields(outbox, 1)}
                )
            except DuplicateKey:
                return None
        elif not await self._accept(agent_id, state.revision, fields, outbox):
            return None
        if outbox:
            await self._deliver(agent_id, outbox, state.revision + 1)
        if not await self._unmark(agent_id, state.agent_version):
            # The agent changed since this was computed, and then its mark stands already; or it is gone.
            alive = {"_id": agent_id, "deleting": None}
            if not await self._db.update_one(AGENTS, alive, {"$set": {UNSYNCED: True}}):
                if state.revision == 0:
                    await self._db.delete(SCHEDULES, {"_id": agent_id})
                return None
        return documents.schedule_from(fields | {"agent_id": agent_id})

    async def due_schedules(self, *, limit: int = 1000) -> Sequence[ScheduleSource]:
        """Return schedules that are due, earliest first."""
        check_page(limit)
        await self._finish_outboxes()
        query = {"due_at": {"$lte": await self.now()}}
        found = await self._with_agents(query, limit, [*ScheduleState.model_fields], _AGENT_FIELDS)
        return [_source(agent, _state(schedule)) for agent, schedule in found]

    async def upcoming_schedules(
        self, *, after: datetime, until: datetime, limit: int = 1000
    ) -> Sequence[ScheduleSource]:
        """Return schedules that are due in a span of time, earliest first."""
        check_page(limit)
        query = {"due_at": {"$gt": after, "$lte": until}}
        found = await self._with_agents(query, limit, [*ScheduleState.model_fields], _AGENT_FIELDS)
        return [_source(agent, _state(schedule)) for agent, schedule in found]

    async def due_marks(self, *, limit: int = 1000) -> Sequence[ScheduleMark]:
        """Return which schedules are due, earliest first."""
        check_page(limit)
        query = {"due_at": {"$lte": await self.now()}}
        found = await self._with_agents(query, limit, ["revision"], ("version", "deleting"))
        return [
            ScheduleMark(agent["_id"], agent["version"], schedule["revision"]) for agent, schedule in found
        ]

    async def _with_agents(
        self, query: Document, limit: int, fields: Sequence[str], agent_fields: Sequence[str]
    ) -> list[tuple[Document, Document]]:
        """Return agents and their schedules, those due earliest first."""
        order = [("due_at", 1), ("_id", 1)]
        found = await self._db.find(SCHEDULES, query, sort=order, limit=limit, fields=[*fields])
        ids = [schedule["_id"] for schedule in found]
        if not ids:
            return []
        agents = await self._db.find(
            AGENTS, {"_id": {"$in": ids}}, sort=[("_id", 1)], limit=limit, fields=[*agent_fields]
        )
        by_id = {agent["_id"]: agent for agent in agents}
        # Stored by a call that was cut while the agent was being deleted.
        orphans = [agent_id for agent_id in ids if agent_id not in by_id]
        if orphans:
            await self._db.delete(SCHEDULES, {"_id": {"$in": orphans}})
        return [
            (agent, schedule)
            for schedule in found
            if (agent := by_id.get(schedule["_id"])) is not None and not agent.get("deleting")
        ]

    async def next_schedules(self, *, limit: int = 100) -> Page[ScheduleState]:
        """Return the schedules in force, those that are due next first."""
        check_page(limit)
        query = {"due_at": {"$gt": from_millis(0)}}
        order = [("due_at", 1), ("_id", 1)]
        fields = [*ScheduleState.model_fields]
        found = await self._db.find(SCHEDULES, query, sort=order, limit=limit, fields=fields)
        return Page(tuple(map(_state, found)), await self._db.count(SCHEDULES, query), limit, 0)

    async def fire_schedules(self, plans: Sequence[FirePlan]) -> Sequence[Task]:
        """Carry plans out, each on its own."""
        prepared = [
            (plan, [documents.new_task_document(new) for new in plan.tasks])
            for plan in map(check_plan, plans)
        ]
        await self._finish_outboxes()
        stored = await each(prepared, lambda item: self._carry_out(*item))
        return [task for tasks in stored for task in tasks]

    async def _carry_out(self, plan: FirePlan, outbox: list[Document]) -> list[Task]:
        state = transitions.fired(plan)
        agent_id = int64(state.agent_id)
        if await self._accept(agent_id, plan.before.revision, documents.fired_document(state), outbox):
            return await self._deliver(agent_id, outbox, state.revision) if outbox else []
        return []

    async def _accept(self, agent_id: int, revision: int, fields: Document, outbox: list[Document]) -> bool:
        """Write a schedule's fields and its outbox, in one update, if it is still of that revision."""
        unchanged = {"_id": agent_id, "revision": revision} | ({OUTBOX: None} if outbox else {})
        while True:
            update = _set_schedule(fields)
            update["$set"] |= await self._outbox_fields(outbox, revision + 1)
            if await self._db.update_one(SCHEDULES, unchanged, update):
                return True
            schedule = await self._db.find_one(SCHEDULES, {"_id": agent_id})
            if schedule is None or schedule["revision"] != revision or OUTBOX not in schedule:
                return False
            # An earlier plan was cut: its tasks come first.
            await self._deliver(agent_id, schedule[OUTBOX], schedule[OUTBOX_REVISION])

    async def _outbox_fields(self, outbox: list[Document], revision: int) -> Document:
        if not outbox:
            return {}
        return {OUTBOX: outbox, OUTBOX_SINCE: await self.now(), OUTBOX_REVISION: revision}

    async def _finish_outboxes(self) -> None:
        """Carry out plans that were accepted by somebody who did not get to it."""
        query = {OUTBOX_SINCE: {"$lte": await self.now() - timedelta(seconds=OUTBOX_GRACE_SECONDS)}}
        left = await self._db.find(SCHEDULES, query, sort=[(OUTBOX_SINCE, 1)], limit=1000)
        await each(left, self._finish_outbox)

    async def _finish_outbox(self, schedule: Document) -> None:
        try:
            await self._deliver(schedule["_id"], schedule[OUTBOX], schedule[OUTBOX_REVISION])
        except StoreUnavailableError:
            raise
        except StoreError as error:
            # One record that can't be read must not stop all other schedules.
            details = {"action": "fire_unreadable", "agent_id": schedule["_id"]}
            _log.error("a fire of agent %d has no task: %s", schedule["_id"], error, extra=details)

    async def _deliver(self, agent_id: int, outbox: Sequence[Document], revision: int) -> list[Task]:
        """Store an outbox's tasks that are not stored yet, and remove it; return those stored by this call."""
        next_id = await self._db.next_number(TASKS, len(outbox))
        stored = []
        try:
            # One after the other: each takes its place where those before it leave room.
            for task_id, document in enumerate(outbox, next_id):
                task = await self._store_task(documents.new_task_from(document), task_id=task_id)
                stored += [] if task is None else [task]
        except AgentNotFoundError:
            # It is being deleted, and its tasks with it.
            stored = []
        removed = {OUTBOX: "", OUTBOX_SINCE: "", OUTBOX_REVISION: ""}
        delivered = {"_id": agent_id, OUTBOX_REVISION: revision}
        await self._db.update_one(SCHEDULES, delivered, {"$unset": removed})
        return stored

    async def _states(self, agent_ids: Sequence[int]) -> dict[int, ScheduleState]:
        found = await self._db.find(
            SCHEDULES,
            {"_id": {"$in": list(agent_ids)}},
            sort=[("_id", 1)],
            limit=max(len(agent_ids), 1),
            fields=[*ScheduleState.model_fields],
        )
        return {schedule["_id"]: _state(schedule) for schedule in found}

    async def _unmark(self, agent_id: int, version: int) -> bool:
        """Take an agent of that version for in step; return whether there is one."""
        computed = {"_id": agent_id, "version": version, "deleting": None}
        return await self._db.update_one(AGENTS, computed, {"$unset": {UNSYNCED: ""}})


def _state(schedule: Document) -> ScheduleState:
    return documents.schedule_from(schedule | {"agent_id": schedule["_id"], "due_at": schedule.get("due_at")})


def _source(agent: Document, state: ScheduleState | None) -> ScheduleSource:
    return documents.schedule_source(agent | {"id": agent["_id"]}, state)


def _set_schedule(fields: Document) -> dict[str, Document]:
    """Return the update that writes a schedule's fields: `due_at` only when there is one, for its sparse index."""
    removed = {"due_at": ""} if fields["due_at"] is None else {}
    return {
        "$set": {name: value for name, value in fields.items() if name not in removed},
        "$unset": removed,
    }
