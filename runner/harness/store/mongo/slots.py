"""Storing and changing tasks in MongoDB, and the slots they hold; every write is a compare-and-set on one document."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import Any, TypeVar

from harness.errors import AgentNotFoundError
from harness.models import Claim, NewTask, Task, TaskStatus, WhenBusy
from harness.store import documents, transitions
from harness.store.documents import int64, to_millis
from harness.store.mongo.agents import TASKS
from harness.store.mongo.artifacts import PENDING_ARTIFACT, PENDING_FOR, MongoArtifacts
from harness.store.mongo.driver import Document, DuplicateKey
from harness.store.slots import Candidate, Holder, Place, find_place, free_slot, queue_slot

#: Fields that say what an active task is up to; each is on just the tasks it is about, so its sparse index stays as
#: small as the present, however long the history.
MARKS = (
    #: When a pending task with a slot may start.
    "ready_at",
    #: When a pending task without a slot may start.
    "waits_at",
    #: The agent of a task that holds a slot.
    "active_for",
    #: When a running task's lease ends.
    "expires_at",
    #: The lease's owner, once a running task is to be cancelled.
    "cancel_for",
)

#: Of a pending task without a slot, its agent and its `max_active`: by them together it is found once there is room.
WAITS_FOR, WAITS_MAX = "waits_for", "waits_max"

#: Set on an ended task when its logs are deleted, so that nobody looks for them again.
LOGS_GONE = "logs_gone"

#: Tasks looked at for one claim, of those with a slot and of those that wait for one. Past this many that are due at
#: once, agents take turns among the most urgent ones only.
_MAX_CANDIDATES = 10_000

#: The most slots an agent can have, see `NewTask.max_active`, and as many from when it was allowed more.
_MAX_SLOTS = 2_000

#: What a decision makes of a task; None leaves it as it is.
DecidedT = TypeVar("DecidedT", bound=Task | None)


class MongoSlots(MongoArtifacts):
    """How a `MongoStore` writes tasks.

    Beside its own fields a task's document has `revision`, raised by every write and compared by every write: what was
    decided on a reading takes effect only if nothing changed since.
    """

    async def _store_task(
        self, new: NewTask, *, claim: Claim | None = None, task_id: int | None = None
    ) -> Task | None:
        """Insert a task where there is room for it; None when its fire has a task.

        Args:
            new: The task.
            claim: Who takes it straight away.
            task_id: None: the next one.
        """
        key, has_asked = documents.fire_key(new), False
        while True:
            # Read before the fire is looked for: when that has no task afterwards, none of these is its task.
            taken = await self._holders(new.agent_id)
            waiting = await self._waiting(new)
            if new.when_busy is WhenBusy.REPLACE and await self._fired(key) is not None:
                return None
            # Of a full agent it does not matter who else waits.
            waits = await self._waits(new.agent_id) if len(taken) < new.max_active else []
            place = find_place(new, taken, is_waited=waiting is not None, waiting=len(waits))
            if place is None:
                # The fire counts more, and is looked up last: one that got its task at this moment is no conflict.
                if await self._fired(key) is not None:
                    return None
                raise documents.slot_taken(new.agent_id, next(iter((*taken.values(), *waits))))
            replaces = new.when_busy is WhenBusy.REPLACE and not (place.active_slot or new.skip_reason)
            if replaces and (waiting is not None or not has_asked):
                is_busy = free_slot(new.agent_id, new.max_active, taken) is None
                await self._make_room(taken.values() if is_busy else (), waiting)
                has_asked = True
                continue
            task_id = task_id or await self._db.next_number(TASKS)
            now = await self.now()
            document = _new_document(transitions.new_task(task_id, new, place, now, claim), new, place)
            try:
                await self._db.insert(TASKS, document)
            except DuplicateKey:
                # The number is this call's alone: the driver repeated an insert whose answer was lost.
                if await self._db.find_one(TASKS, {"_id": task_id}, fields=["_id"]) is None:
                    if await self._fired(key) is not None:
                        return None
                    # Somebody else has the slot or the place in the queue; or had it, and the next try succeeds.
                    continue
            try:
                await self._check_agent(new.agent_id, usable=True)
            except AgentNotFoundError:
                await self._db.delete(TASKS, {"_id": task_id})
                raise
            return task_from(document)

    async def _fired(self, fire_key: str | None) -> int | None:
        """Return the id of a fire's task."""
        if fire_key is None:
            return None
        found = await self._db.find_one(TASKS, {"fire_key": fire_key}, fields=["_id"])
        return None if found is None else found["_id"]

    async def _holders(self, agent_id: int) -> dict[str, int]:
        """Return an agent's slots that are held, with the tasks that hold them."""
        query = {"active_for": int64(agent_id)}
        found = await self._db.find(TASKS, query, sort=[("_id", 1)], limit=_MAX_SLOTS, fields=["active_slot"])
        return {task["active_slot"]: task["_id"] for task in found}

    async def _waits(self, agent_id: int) -> list[int]:
        """Return an agent's tasks that wait for a slot; as many as it can have slots are enough."""
        query = {WAITS_FOR: int64(agent_id)}
        found = await self._db.find(TASKS, query, sort=[("_id", 1)], limit=_MAX_SLOTS, fields=["_id"])
        return [task["_id"] for task in found]

    async def _waiting(self, new: NewTask) -> int | None:
        """Return the task in the queue of a new task's agent, if that one may have to do with it."""
        if new.when_busy not in (WhenBusy.QUEUE, WhenBusy.REPLACE):
            return None
        query = {"queue_slot": queue_slot(new.agent_id)}
        found = await self._db.find_one(TASKS, query, fields=["_id"])
        return None if found is None else found["_id"]

    async def _make_room(self, holders: Collection[int], waiting: int | None) -> None:
        """Ask tasks to end, and skip the one that waits."""
        now = await self.now()
        for task_id in holders:
            await self._change(
                task_id, lambda stored: None if stored is None else transitions.cancel(stored, now)
            )
        if waiting is not None:
            await self._change(waiting, lambda stored: transitions.supersede(stored, now))

    async def _candidates(self, now: datetime) -> list[Candidate]:
        """Return tasks that may be claimed; of those that wait, only ones whose agent has a free slot."""
        candidates = await self._find_candidates({"ready_at": {"$lte": now}})
        waited_for = await self._db.distinct(TASKS, WAITS_FOR, {WAITS_FOR: {"$gt": 0}})
        if waited_for:
            held = dict.fromkeys(waited_for, 0)
            for holder in await self._holders_of(waited_for):
                held[holder.agent_id] += 1
            for count in sorted(set(held.values())):
                agent_ids = [agent_id for agent_id in waited_for if held[agent_id] == count]
                candidates += await self._find_candidates(
                    {WAITS_FOR: {"$in": agent_ids}, WAITS_MAX: {"$gt": count}, "waits_at": {"$lte": now}}
                )
        return candidates

    async def _find_candidates(self, query: Document) -> list[Candidate]:
        found = await self._db.find(
            TASKS,
            query,
            sort=[("priority", -1), ("due_at", 1)],
            limit=_MAX_CANDIDATES,
            fields=["agent_id", "priority", "due_at", "active_slot", "max_active"],
        )
        return [
            Candidate(
                -task["priority"],
                to_millis(task["due_at"]),
                task["_id"],
                task["agent_id"],
                task.get("active_slot"),
                task["max_active"],
            )
            for task in found
        ]

    async def _holders_of(self, agent_ids: Iterable[int]) -> list[Holder]:
        query = {"active_for": {"$in": list(agent_ids)}}
        found = await self._db.find(
            TASKS, query, sort=[("_id", 1)], limit=1_000_000, fields=["active_for", "active_slot", "status"]
        )
        return [
            Holder(task["active_for"], task["active_slot"], task["status"] == TaskStatus.RUNNING.value)
            for task in found
        ]

    async def _change(
        self,
        task_id: int,
        decide: Callable[[Task | None], DecidedT],
        *,
        artifact: Document | None = None,
        active_slot: str | None = None,
    ) -> DecidedT:
        """Write what `decide` makes of the stored task; when the task changed in between, read and decide again.

        Args:
            task_id: The task.
            decide: Called with the task as stored; None, or the same task: nothing is written.
            artifact: Stored with it.
            active_slot: For a task that has none yet.

        Raises:
            DuplicateKey: The slot is taken.
        """
        while True:
            document = await self._db.find_one(TASKS, {"_id": int64(task_id)})
            before = None if document is None else task_from(document)
            after = decide(before)
            if document is None or before is None or after is None or after is before:
                return after
            if await self._replace(document, before, after, artifact=artifact, active_slot=active_slot):
                return after

    async def _replace(
        self,
        document: Document,
        before: Task,
        after: Task,
        *,
        artifact: Document | None = None,
        active_slot: str | None = None,
    ) -> bool:
        """Write the difference between two states of a task, if it is still as in `document`."""
        held, queued = document.get("active_slot") or active_slot, document.get("queue_slot")
        place = Place() if after.status.is_final else Place(held, None if held else queued)
        placed = _placed(after, place, document["max_active"])
        changes: Document = documents.task_changes(before, after)
        changes |= {
            name: value for name, value in placed.items() if value is not None and value != document.get(name)
        }
        if artifact is not None:
            changes |= {PENDING_ARTIFACT: artifact, PENDING_FOR: after.agent_id}
        # A next attempt has logs of its own.
        placed |= {LOGS_GONE: None}
        return await self._db.update_one(
            TASKS,
            {
                "_id": before.id,
                "status": before.status.value,
                "fence": before.fence,
                "revision": document["revision"],
            },
            {
                "$set": changes,
                "$unset": {name: "" for name, value in placed.items() if value is None and name in document},
                "$inc": {"revision": 1},
            },
        )


def task_from(document: Document) -> Task:
    """Return the task of a document."""
    return documents.task_from(document | {"id": document["_id"]})


def _new_document(task: Task, new: NewTask, place: Place) -> Document:
    fields = documents.task_document(task)
    document: dict[str, Any] = {
        "_id": fields.pop("id"),
        **fields,
        "max_active": new.max_active,
        "revision": 0,
    }
    placed = {"fire_key": documents.fire_key(new), **_placed(task, place, new.max_active)}
    # Only when there is one: a sparse index holds every document that has the field.
    return document | {name: value for name, value in placed.items() if value is not None}


def _placed(task: Task, place: Place, max_active: int) -> Document:
    """Return a task's slot and what it is found by; None for fields it is not to have."""
    slot = place.active_slot
    is_pending, is_running = task.status is TaskStatus.PENDING, task.status is TaskStatus.RUNNING
    waits = is_pending and slot is None
    return {
        "active_slot": slot,
        "queue_slot": place.queue_slot,
        "ready_at": task.due_at if is_pending and slot is not None else None,
        WAITS_FOR: task.agent_id if waits else None,
        WAITS_MAX: max_active if waits else None,
        "waits_at": task.due_at if waits else None,
        "active_for": None if slot is None else task.agent_id,
        "expires_at": task.due_at if is_running else None,
        "cancel_for": task.lease_owner if is_running and task.cancel_requested_at is not None else None,
    }
