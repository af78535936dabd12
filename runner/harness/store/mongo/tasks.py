"""Tasks in MongoDB."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from datetime import datetime

from harness.errors import AgentNotFoundError, StoreError, StoreUnavailableError, TaskNotFoundError
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
from harness.store.documents import check_page, int64
from harness.store.mongo.agents import SCHEDULES, TASKS
from harness.store.mongo.base import each
from harness.store.mongo.driver import Document, DuplicateKey
from harness.store.mongo.slots import MongoSlots, task_from
from harness.store.slots import (
    SPARE_CANDIDATES,
    Candidate,
    check_new,
    free_slot,
    order_of_claims,
    slot_for_new,
)

_log = logging.getLogger(__name__)

#: Requests passed on at a time; a runner asks again after a moment.
_MAX_REQUESTS = 1000


class MongoTasks(MongoSlots):
    """The tasks of a `MongoStore`."""

    async def create_task(self, new: NewTask, *, claim: Claim | None = None) -> Task:
        """Store a task where there is room for it, pending, skipped or already running."""
        check_new(new, claim)
        # Before anything is looked at: a context that can't be kept is refused in any case.
        documents.new_task_document(new)
        await self._check_agent(new.agent_id, usable=True)
        key = documents.fire_key(new)
        # The fire first: a fire that exists already needs no skip for being busy.
        task = None if await self._fired(key) is not None else await self._store_task(new, claim=claim)
        if task is None:
            raise documents.duplicate_fire(await self._fired(key) or 0, key or "")
        return task

    async def get_task(self, task_id: int) -> Task:
        """Return a task."""
        _, task = await self._existing(task_id)
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
        query: Document = {}
        if agent_id is not None:
            query["agent_id"] = int64(agent_id)
        if status is not None:
            query["status"] = status.value
        found = await self._db.find(TASKS, query, sort=[("_id", -1)], limit=limit, offset=offset)
        return Page(tuple(map(task_from, found)), await self._db.count(TASKS, query), limit, offset)

    async def expired_tasks(self, *, limit: int = 100) -> Sequence[Task]:
        """Return running tasks whose lease has run out, earliest first."""
        check_page(limit)
        query = {"expires_at": {"$lte": await self.now()}}
        found = await self._db.find(TASKS, query, sort=[("expires_at", 1), ("_id", 1)], limit=limit)
        return [task_from(document) for document in found]

    async def claim_tasks(self, claim: Claim, *, limit: int) -> Sequence[Task]:
        """Take due tasks, each by its own compare-and-set."""
        check_page(limit)
        candidates = await self._candidates(await self.now())
        if not candidates:
            return []
        holders = await self._holders_of({candidate.agent_id for candidate in candidates})
        chosen = iter(order_of_claims(candidates, holders, limit=limit + SPARE_CANDIDATES))
        claimed: list[Task] = []
        failed: StoreError | None = None
        while batch := list(itertools.islice(chosen, limit - len(claimed))):
            for task, error in await each(batch, lambda candidate: self._claim_or_error(candidate, claim)):
                claimed += [] if task is None else [task]
                failed = error or failed
            if isinstance(failed, StoreUnavailableError):
                break
        if failed is not None:
            # What was claimed must get to its runner: nobody else can have it before its lease runs out. And one record
            # that can't be read must not keep all others waiting.
            _log.error("not claimed: %s", failed, extra={"action": "claim_failed"})
            if isinstance(failed, StoreUnavailableError) and not claimed:
                raise failed
        return claimed

    async def _claim_or_error(
        self, candidate: Candidate, claim: Claim
    ) -> tuple[Task | None, StoreError | None]:
        try:
            return await self._claim(candidate, claim), None
        except StoreError as error:
            return None, error

    async def _claim(self, candidate: Candidate, claim: Claim) -> Task | None:
        slot = candidate.active_slot
        now = await self.now()
        while slot is not None:
            try:
                return await self._change(
                    candidate.task_id,
                    lambda stored: transitions.claim(stored, claim, now),
                    active_slot=slot,
                )
            except DuplicateKey:
                taken = await self._holders(candidate.agent_id)
                slot = free_slot(candidate.agent_id, candidate.max_active, taken)
        return None

    async def next_due_at(self) -> datetime | None:
        """Return when something comes due next."""
        now = await self.now()
        looks = [(TASKS, "ready_at"), (TASKS, "waits_at"), (SCHEDULES, "due_at")]
        found = await each(looks, lambda look: self._earliest(*look, now))
        return min((at for at in found if at is not None), default=None)

    async def _earliest(self, collection: str, field: str, after: datetime) -> datetime | None:
        query = {field: {"$gt": after}}
        found = await self._db.find_one(collection, query, [(field, 1)], fields=[field])
        return None if found is None else found[field]

    async def queue_stats(self) -> QueueStats:
        """Count the work there is, by the sparse marks that only active tasks have."""
        now = await self.now()
        due, later = {"$lte": now}, {"$gt": now}
        queries: list[Document] = [
            {"ready_at": due},
            {"waits_at": due},
            {"ready_at": later},
            {"waits_at": later},
            {"expires_at": due},
            {"expires_at": later},
        ]
        counts = await each(queries, lambda query: self._db.count(TASKS, query, limit=MAX_COUNTED))
        ready, waiting, delayed, delayed_waiting, expired, live = counts
        ready_since, waiting_since = await each(
            ["ready_at", "waits_at"], lambda mark: self._due_since(mark, now)
        )
        return QueueStats(
            at=now,
            ready=ready,
            ready_since=ready_since,
            waiting=waiting,
            waiting_since=waiting_since,
            delayed=delayed + delayed_waiting,
            running=expired + live,
            expired=expired,
        )

    async def _due_since(self, mark: str, now: datetime) -> datetime | None:
        found = await self._db.find_one(TASKS, {mark: {"$lte": now}}, [(mark, 1)], fields=[mark])
        return None if found is None else found[mark]

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

    async def finish_task(
        self, task_id: int, fence: int, outcome: Outcome, *, artifact: NewArtifact | None = None
    ) -> Task:
        """Write a task's end with its artifact inside, in one update; then move the artifact to its own place."""
        content = None if artifact is None else documents.artifact_content(artifact)
        now = await self.now()
        if content is not None:
            # What earlier runs of the agent left goes first: their artifacts must not come after this one.
            document = await self._db.find_one(TASKS, {"_id": int64(task_id)}, fields=["agent_id"]) or {}
            await self._place_pending_artifacts(document.get("agent_id", 0))
        task = await self._change(
            task_id,
            lambda stored: transitions.finish(stored, task_id, fence, outcome, now),
            artifact=content,
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

    async def retry_task(self, task_id: int, fence: int, outcome: Outcome, *, due_at: datetime) -> Task:
        """End an attempt and let another one follow."""
        now = await self.now()
        return await self._change(
            task_id, lambda stored: transitions.retry(stored, task_id, fence, outcome, now, due_at=due_at)
        )

    async def hand_back_task(self, task_id: int, fence: int, error: str) -> Task:
        """End an attempt that its runner can't go on with."""
        now = await self.now()
        return await self._change(
            task_id, lambda stored: transitions.hand_back(stored, task_id, fence, error, now)
        )

    async def reopen_task(self, task_id: int, *, due_at: datetime, max_retries: int) -> Task:
        """Make a failed task pending again."""
        while True:
            document, before = await self._existing(task_id)
            again = transitions.reopen(before, due_at, max_retries)
            if again is before:
                return again
            taken, waits = await self._holders(before.agent_id), await self._waits(before.agent_id)
            slot = slot_for_new(before.agent_id, document["max_active"], taken, waiting=len(waits))
            if slot is None:
                raise documents.slot_taken(before.agent_id, next(iter((*taken.values(), *waits))))
            try:
                if await self._replace(document, before, again, active_slot=slot):
                    break
            except DuplicateKey:
                continue
        try:
            # As after the insert of a new task: either this sees the deletion, or that sees the active task.
            await self._check_agent(before.agent_id, usable=True)
        except AgentNotFoundError:
            await self._change(task_id, lambda stored: before if stored == again else None)
            raise
        return again

    async def cancel_task(self, task_id: int) -> Task:
        """Cancel a pending task, or note the wish on a running one."""
        now = await self.now()
        while True:
            document, before = await self._existing(task_id)
            after = transitions.cancel(before, now)
            if after is before or await self._replace(document, before, after):
                return after

    async def cancel_requests(self, owner: str) -> Sequence[int]:
        """Return the ids of an owner's running tasks that are to be cancelled."""
        query = {"cancel_for": owner}
        found = await self._db.find(TASKS, query, sort=[("_id", 1)], limit=_MAX_REQUESTS, fields=["_id"])
        return [document["_id"] for document in found]

    async def expire_task(self, task: Task, *, retry_at: datetime | None = None) -> Task | None:
        """End a running task whose lease has run out, or its attempt."""
        now = await self.now()
        return await self._change(
            task.id, lambda stored: transitions.expire(stored, task, now, retry_at=retry_at)
        )

    async def _existing(self, task_id: int) -> tuple[Document, Task]:
        document = await self._db.find_one(TASKS, {"_id": int64(task_id)})
        if document is None:
            raise TaskNotFoundError(f"there is no task {task_id}")
        return document, task_from(document)

    async def _check_held(self, task_id: int, fence: int) -> None:
        document = await self._db.find_one(TASKS, {"_id": int64(task_id)})
        transitions.held(None if document is None else task_from(document), task_id, fence)
