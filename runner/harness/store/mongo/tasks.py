"""Tasks in MongoDB: every change is a compare-and-set on one document, so it is atomic on every server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from harness.errors import AgentNotFoundError, StoreError, TaskNotFoundError
from harness.models import Claim, NewArtifact, NewTask, Outcome, Page, Reason, Task, TaskStatus
from harness.store import documents, transitions
from harness.store.documents import check_page, int64
from harness.store.mongo.agents import TASKS
from harness.store.mongo.artifacts import PENDING_ARTIFACT, PENDING_FOR, MongoArtifacts
from harness.store.mongo.driver import Document, DuplicateKey

#: What a decision makes of a task; None leaves it as it is.
DecidedT = TypeVar("DecidedT", bound=Task | None)

_log = logging.getLogger(__name__)


class MongoTasks(MongoArtifacts):
    """The tasks of a `MongoStore`.

    Beside its own fields a task's document has `revision`, raised by every write and compared by every write: what was
    decided on a reading takes effect only if nothing changed since.
    """

    async def create_task(self, new: NewTask, *, claim: Claim | None = None) -> Task:
        """Store a task, pending or already running."""
        fields = documents.task_document(transitions.new_task(0, new, await self.now(), claim))
        await self._usable_agent_document(new.agent_id)
        # Looked up before the insert too, so that refused fires do not use up ids.
        await self._check_keys_are_free(new)
        document = _mongo_document(fields) | {"_id": await self._db.next_number(TASKS), "revision": 0}
        document |= {
            name: key
            for name, key in (("fire_key", new.fire_key), ("active_slot", new.active_slot))
            if key is not None
        }
        while True:
            try:
                await self._db.insert(TASKS, document)
                break
            except DuplicateKey:
                # When the one in the way has just ended, the next try succeeds.
                await self._check_keys_are_free(new)
        try:
            await self._usable_agent_document(new.agent_id)
        except AgentNotFoundError:
            await self._db.delete(TASKS, {"_id": document["_id"]})
            raise
        return _task(document)

    async def _check_keys_are_free(self, new: NewTask) -> None:
        # The fire first: a fire that exists already needs no skip for being busy.
        if new.fire_key is not None and (fired := await self._db.find_one(TASKS, {"fire_key": new.fire_key})):
            raise documents.duplicate_fire(fired["_id"], new.fire_key)
        if new.active_slot is not None:
            active = await self._db.find_one(TASKS, {"active_slot": new.active_slot})
            if active is not None:
                raise documents.slot_taken(new.agent_id, active["_id"])

    async def get_task(self, task_id: int) -> Task:
        """Return a task."""
        document = await self._db.find_one(TASKS, {"_id": int64(task_id)})
        if document is None:
            raise TaskNotFoundError(f"there is no task {task_id}")
        return _task(document)

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
        query: Document = {}
        if agent_id is not None:
            query["agent_id"] = int64(agent_id)
        if status is not None:
            query["status"] = status.value
        found = await self._db.find(TASKS, query, sort=[("_id", -1)], limit=limit, offset=offset)
        return Page(tuple(map(_task, found)), await self._db.count(TASKS, query), limit, offset)

    async def due_tasks(self, *, status: TaskStatus, limit: int = 10) -> Sequence[Task]:
        """Return due tasks, earliest first."""
        check_page(limit)
        query = {"due_at": {"$lte": await self.now()}, "status": status.value}
        found = await self._db.find(TASKS, query, sort=[("due_at", 1), ("_id", 1)], limit=limit)
        return [_task(document) for document in found]

    async def claim_task(self, task: Task, claim: Claim) -> Task | None:
        """Take a due task, unless it changed hands since it was read."""
        now = await self.now()
        return await self._change(task.id, lambda stored: transitions.claim(stored, task, claim, now))

    async def extend_lease(self, task_id: int, fence: int, lease_seconds: float) -> datetime:
        """Prolong a lease that nobody took over."""
        due_at = transitions.lease_end(await self.now(), lease_seconds)
        await self._change(task_id, lambda stored: transitions.extend(stored, task_id, fence, due_at))
        return due_at

    async def record_reason(self, task_id: int, fence: int, reason: Reason, error: str | None = None) -> None:
        """Write down why the current attempt is about to be stopped."""
        await self._change(
            task_id, lambda stored: transitions.record_reason(stored, task_id, fence, reason, error)
        )

    async def expire_task(self, task: Task) -> Task | None:
        """End a running task whose lease has run out."""
        now = await self.now()
        return await self._change(task.id, lambda stored: transitions.expire(stored, task, now))

    async def finish_task(
        self, task_id: int, fence: int, outcome: Outcome, *, artifact: NewArtifact | None = None
    ) -> Task:
        """Write a task's end with its artifact inside, in one update; then move the artifact to its own place."""
        content = None if artifact is None else documents.artifact_content(artifact)
        now = await self.now()
        task = await self._change(
            task_id, lambda stored: transitions.finish(stored, task_id, fence, outcome, now), content
        )
        if content is not None:
            try:
                await self._place_pending_artifacts(task.agent_id)
            except StoreError as error:
                # All of it is stored; whoever asks for the agent's artifacts next moves this one.
                _log.warning(
                    "artifact of task %d is stored, and not in its place yet: %s",
                    task_id,
                    error,
                    extra={"action": "artifact_pending"},
                )
        return task

    async def _check_held(self, task_id: int, fence: int) -> None:
        document = await self._db.find_one(TASKS, {"_id": int64(task_id)})
        transitions.held(None if document is None else _task(document), task_id, fence)

    async def _change(
        self, task_id: int, decide: Callable[[Task | None], DecidedT], artifact: Document | None = None
    ) -> DecidedT:
        """Write what `decide` makes of the stored task; when the task changed in between, read and decide again."""
        while True:
            document = await self._db.find_one(TASKS, {"_id": int64(task_id)})
            before = None if document is None else _task(document)
            after = decide(before)
            if document is None or before is None or after is None or after is before:
                return after
            if await self._replace(document["revision"], before, after, artifact):
                return after

    async def _replace(self, revision: int, before: Task, after: Task, artifact: Document | None) -> bool:
        changes: Document = documents.task_changes(before, after)
        removed = {name: "" for name in ("due_at",) if name in changes and changes[name] is None}
        if after.status.is_final:
            removed["active_slot"] = ""
        if artifact is not None:
            changes |= {PENDING_ARTIFACT: artifact, PENDING_FOR: after.agent_id}
        return await self._db.update_one(
            TASKS,
            {"_id": before.id, "status": before.status.value, "fence": before.fence, "revision": revision},
            {
                "$set": {name: value for name, value in changes.items() if name not in removed},
                "$unset": removed,
                "$inc": {"revision": 1},
            },
        )


def _mongo_document(fields: Document) -> Document:
    """Return a task's fields as MongoDB holds them: `due_at` only when there is one, for the sparse index."""
    return {
        name: value for name, value in fields.items() if name != "id" and (name, value) != ("due_at", None)
    }


def _task(document: Document) -> Task:
    missing: dict[str, Any] = {"id": document["_id"], "due_at": document.get("due_at")}
    return documents.task_from(document | missing)
