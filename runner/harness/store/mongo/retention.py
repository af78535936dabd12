"""Deleting what is not to be kept from MongoDB: a task's logs before the task, and nothing that is still on its way.

Two kinds of record make other writes happen only once: a task its fire, an artifact the move out of its task. They are
not deleted while an outbox may still be carried out (a schedule's, a task's), nor for `retention.MIN_AGE` after: a process
that read an outbox and was stopped for less than that finds them when it goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime

from harness.models import log_seq
from harness.retention import Expiry, Purged
from harness.store.documents import check_page, int64
from harness.store.mongo.agents import AGENTS, ARTIFACTS, LOGS, SAMPLES, SCHEDULES, TASKS
from harness.store.mongo.artifacts import PENDING_FOR, PLACED_AT
from harness.store.mongo.base import each, keys_of
from harness.store.mongo.driver import Document
from harness.store.mongo.logs import MongoLogs
from harness.store.mongo.schedules import OUTBOX_SINCE
from harness.store.mongo.slots import LOGS_GONE

#: Tasks whose logs are looked for at a time.
_AT_ONCE = 100
#: Documents read at a time to count.
_PAGE = 1000

_TASK_FIELDS = ("started_at", "fence")
_ARTIFACT_FIELDS = ("version", "created_at", PLACED_AT)


class MongoRetention(MongoLogs):
    """What a `MongoStore` forgets."""

    async def agent_ids(self, *, after_id: int = 0, limit: int = 1000) -> Sequence[int]:
        """Return ids of agents."""
        check_page(limit)
        query = {"_id": {"$gt": int64(after_id)}}
        found = await self._db.find(AGENTS, query, sort=[("_id", 1)], limit=limit, fields=["_id"])
        return [agent["_id"] for agent in found]

    async def purge(self, agent_id: int, expiry: Expiry, *, limit: int) -> Purged:
        """Delete in steps that can be cut anywhere."""
        check_page(limit)
        purged, room = Purged(), limit
        for query in await self._task_queries(agent_id, expiry):
            tasks = await self._db.find(TASKS, query, sort=_order(query), limit=room, fields=_TASK_FIELDS)
            count, room = await self._delete_tasks(tasks, query, room)
            purged += Purged(tasks=count)
            if room <= 0:
                return purged + Purged(more=True)
        if expiry.logs_before is not None:
            query = _ended(agent_id, expiry.logs_before) | {LOGS_GONE: None}
            tasks = await self._db.find(TASKS, query, sort=_order(query), limit=room, fields=_TASK_FIELDS)
            count, room = await self._delete_logs_of(tasks, query, room)
            purged += Purged(logs=count)
            if room <= 0:
                return purged + Purged(more=True)
        keys = await self._old_artifacts(agent_id, expiry, limit=room)
        count = 0
        if keys:
            # The one that a task still has may be among these: a move that was cut after its first half.
            await self._place_pending_artifacts(agent_id)
            count = await self._db.delete(ARTIFACTS, {"_id": {"$in": keys}})
        return purged + Purged(artifacts=count, more=len(keys) >= room)

    async def purgeable(self, agent_id: int, expiry: Expiry) -> Purged:
        """Count what is to go."""
        task_ids: set[int] = set()
        for query in await self._task_queries(agent_id, expiry):
            task_ids.update(task["_id"] for task in await self._all_tasks(query))
        logs: set[int] = set()
        if expiry.logs_before is not None:
            query = _ended(agent_id, expiry.logs_before) | {LOGS_GONE: None}
            logs = {task["_id"] for task in await self._all_tasks(query) if task["started_at"] is not None}
        artifacts = await self._old_artifacts(agent_id, expiry, limit=2**31 - 1)
        return Purged(tasks=len(task_ids), logs=len(logs - task_ids), artifacts=len(artifacts))

    async def _task_queries(self, agent_id: int, expiry: Expiry) -> list[Document]:
        """Return what finds the tasks that are to go; each query finds only tasks that may be deleted."""
        outbox = {"_id": int64(agent_id), OUTBOX_SINCE: {"$exists": True}}
        if await self._db.find_one(SCHEDULES, outbox, fields=["_id"]):
            # Fires in it may have their tasks already, and without these would get them a second time.
            return []
        queries: list[Document] = []
        if expiry.tasks_before is not None:
            ended = _ended(agent_id, expiry.tasks_before) | {PENDING_FOR: None}
            queries += [ended | {LOGS_GONE: True}, ended | {LOGS_GONE: None}]
        if expiry.max_tasks is not None:
            surplus = await self._db.find(
                TASKS,
                {"agent_id": int64(agent_id)},
                sort=[("_id", -1)],
                limit=1,
                offset=expiry.max_tasks,
                fields=["_id"],
            )
            ended = _ended(agent_id, expiry.before) | {PENDING_FOR: None}
            queries += [ended | {"_id": {"$lte": task["_id"]}} for task in surplus]
        return queries

    async def _delete_tasks(self, tasks: Sequence[Document], query: Document, room: int) -> tuple[int, int]:
        """Delete tasks and their logs; return how many tasks went, and how much room is left."""
        count = 0
        for begin in range(0, len(tasks), _AT_ONCE):
            batch = tasks[begin : begin + _AT_ONCE]
            room = await self._delete_logs(batch, room)
            if room <= 0:
                break
            # Compared once more: one that was tried again meanwhile has not ended.
            batch = batch[:room]
            count += await self._db.delete(TASKS, query | {"_id": {"$in": [task["_id"] for task in batch]}})
            room -= len(batch)
        return count, room

    async def _delete_logs_of(self, tasks: Sequence[Document], query: Document, room: int) -> tuple[int, int]:
        """Delete the logs of tasks that stay; return how many of these ran, and how much room is left."""
        count = 0
        for begin in range(0, len(tasks), _AT_ONCE):
            batch = tasks[begin : begin + _AT_ONCE]
            room = await self._delete_logs(batch, room)
            if room <= 0:
                break
            batch = batch[:room]
            done = await each(batch, lambda task: self._mark_logs_gone(query | {"_id": task["_id"]}))
            count += sum(
                marked and task["started_at"] is not None for marked, task in zip(done, batch, strict=True)
            )
            room -= len(batch)
        return count, room

    async def _mark_logs_gone(self, query: Document) -> bool:
        # The revision goes up, so that whoever is about to have the task tried again sees the mark, and takes it off.
        return await self._db.update_one(TASKS, query, {"$set": {LOGS_GONE: True}, "$inc": {"revision": 1}})

    async def _delete_logs(self, tasks: Sequence[Document], room: int) -> int:
        """Delete tasks' logs and samples as far as there is room; return what is left of it: 0 when there may be more."""
        # Up to the attempts they had when they were found: one that is tried again meanwhile writes more.
        keys = [keys_of(task["_id"], before=log_seq(task["fence"] + 1, 0)) for task in tasks]
        query = {"$or": [{"_id": key} for key in keys]}
        for collection in (LOGS, SAMPLES):
            if room <= 0:
                break
            found = await self._db.find(collection, query, sort=[("_id", 1)], limit=room, fields=["_id"])
            if found:
                await self._db.delete(collection, {"_id": {"$in": [document["_id"] for document in found]}})
            room -= len(found)
        return room

    async def _old_artifacts(self, agent_id: int, expiry: Expiry, *, limit: int) -> list[str]:
        """Return the keys of artifacts that are to go, the oldest first."""
        query = {"_id": keys_of(agent_id)}
        newest = await self._db.find(ARTIFACTS, query, sort=[("_id", -1)], limit=1, fields=["version"])
        surplus = -1
        if expiry.max_artifacts is not None:
            found = await self._db.find(
                ARTIFACTS, query, sort=[("_id", -1)], limit=1, offset=expiry.max_artifacts, fields=["version"]
            )
            surplus = found[0]["version"] if found else -1
        if not newest or (surplus < 0 and expiry.artifacts_before is None):
            return []
        older = {"_id": keys_of(agent_id, before=newest[0]["version"])}
        keys: list[str] = []
        # The oldest one first: mostly it stays, and then all do.
        for size in (1, limit):
            found = await self._db.find(
                ARTIFACTS, older, sort=[("_id", 1)], limit=size, fields=_ARTIFACT_FIELDS
            )
            expired = itertools.takewhile(lambda artifact: _is_expired(artifact, expiry, surplus), found)
            keys = [artifact["_id"] for artifact in expired]
            if not keys:
                break
        return keys

    async def _all_tasks(self, query: Document) -> list[Document]:
        """Return all tasks that match, by their ids and starts."""
        tasks: list[Document] = []
        last = 0
        while page := await self._db.find(
            TASKS,
            {"$and": [query, {"_id": {"$gt": last}}]},
            sort=[("_id", 1)],
            limit=_PAGE,
            fields=_TASK_FIELDS,
        ):
            tasks += page
            last = page[-1]["_id"]
        return tasks


def _is_expired(artifact: Document, expiry: Expiry, surplus: int) -> bool:
    """Whether an artifact is to go that is not the newest: by its age, or since its version is `surplus` or lower."""
    made_at: datetime = artifact["created_at"]
    placed_at: datetime = artifact.get(PLACED_AT) or made_at
    is_old = expiry.artifacts_before is not None and made_at < expiry.artifacts_before
    return (is_old or artifact["version"] <= surplus) and placed_at < expiry.before


def _ended(agent_id: int, before: datetime) -> Document:
    return {"agent_id": int64(agent_id), "completed_at": {"$lt": before}}


def _order(query: Document) -> list[tuple[str, int]]:
    """Return the order of the index that a query walks."""
    return [("_id", 1)] if "_id" in query else [("completed_at", 1)]
