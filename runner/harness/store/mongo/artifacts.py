"""Handoff artifacts in MongoDB.

A run's artifact is first stored inside the task that saves it, by the update that ends the task, since only one
document changes atomically on every server. From there it is moved to its own place: inserted under the next version,
then removed from the task. Whoever asks for an agent's artifacts first finishes moves that were cut. The unique
`task_id` lets a move that is repeated, or done by two at once, insert only once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from harness.errors import AgentNotFoundError, StoreError, StoreUnavailableError
from harness.models import HandoffArtifact, LoadedAgent, NewArtifact
from harness.store import documents
from harness.store.documents import check_page, int64
from harness.store.mongo.agents import AGENTS, ARTIFACTS, TASKS, MongoAgents
from harness.store.mongo.base import each, keys_of, ordered_key
from harness.store.mongo.driver import Document, DuplicateKey

#: Fields of a task while its artifact is not in its place: the artifact, and (indexed) the agent.
PENDING_ARTIFACT, PENDING_FOR = "pending_artifact", "pending_for"

#: When an artifact came to its place, which can be long after it was made. It is not deleted soon after that: a process
#: that was about to move it too must find it there, or it would make an old state the newest.
PLACED_AT = "placed_at"

_log = logging.getLogger(__name__)


class MongoArtifacts(MongoAgents):
    """The handoff artifacts of a `MongoStore`."""

    async def save_artifact(self, agent_id: int, artifact: NewArtifact) -> HandoffArtifact:
        """Save an artifact outside of any run."""
        content = documents.artifact_content(artifact)
        await self._check_agent(agent_id, usable=True)
        await self._place_pending_artifacts(agent_id)
        now = await self.now()
        while True:
            newest = await self._newest_artifact(agent_id)
            saved = await self._insert_artifact(agent_id, now, documents.artifact_after(newest) | content)
            if saved is not None:
                break
        try:
            await self._check_agent(agent_id, usable=True)
        except AgentNotFoundError:
            await self._db.delete(ARTIFACTS, {"_id": ordered_key(agent_id, saved.version)})
            raise
        return saved

    async def newest_artifact(self, agent_id: int) -> HandoffArtifact | None:
        """Return the newest artifact, unless it marks a clear."""
        await self._place_pending_artifacts(agent_id)
        newest = await self._newest_artifact(agent_id)
        return None if newest is None or newest.cleared else newest

    async def load_agents(self, agent_ids: Collection[int]) -> Mapping[int, LoadedAgent]:
        """Return agents by id, each with its newest artifact."""
        ids = {int64(agent_id) for agent_id in agent_ids}
        for agent_id in await self._db.distinct(TASKS, PENDING_FOR, {PENDING_FOR: {"$in": list(ids)}}):
            try:
                await self._place_pending_artifacts(agent_id)
            except StoreUnavailableError:
                raise
            except StoreError as error:
                _log.error("not loaded: %s", error, extra={"action": "agent_unreadable"})
                ids.discard(agent_id)
        if not ids:
            return {}
        agents = await self._db.find(AGENTS, {"_id": {"$in": list(ids)}}, sort=[("_id", 1)], limit=len(ids))
        artifacts = await each(ids, self._newest_document)
        return documents.loaded_agents(
            (agent | {"id": agent["_id"]} for agent in agents),
            (_with_task_id(artifact) for artifact in artifacts if artifact is not None),
        )

    async def clear_artifact(self, agent_id: int) -> None:
        """Make the next run a first run."""
        await self._place_pending_artifacts(agent_id)
        now = await self.now()
        while True:
            newest = await self._newest_artifact(agent_id)
            if newest is None or newest.cleared:
                return
            fields = documents.artifact_after(newest) | documents.clear_content()
            if await self._insert_artifact(agent_id, now, fields):
                return

    async def artifact_history(
        self, agent_id: int, *, limit: int = 100, before_version: int | None = None
    ) -> Sequence[HandoffArtifact]:
        """Return artifacts by falling version."""
        check_page(limit)
        await self._place_pending_artifacts(agent_id)
        query = {"_id": keys_of(agent_id, before=2**63 if before_version is None else before_version)}
        found = await self._db.find(ARTIFACTS, query, sort=[("_id", -1)], limit=limit)
        return [_artifact(document) for document in found]

    async def _place_pending_artifacts(self, agent_id: int) -> None:
        query = {PENDING_FOR: int64(agent_id)}
        # In the order in which the tasks ended.
        order = [("completed_at", 1), ("_id", 1)]
        for task in await self._db.find(TASKS, query, sort=order, limit=1000):
            await self._place_artifact(task)

    async def _place_artifact(self, task: Document) -> None:
        agent_id, content = task["agent_id"], task[PENDING_ARTIFACT]
        while True:
            newest = await self._newest_artifact(agent_id)
            # Looked up after that: if somebody else moved it long ago, it may be deleted by now, and once more it would
            # be the newest.
            if not await self._db.find_one(
                TASKS, {"_id": task["_id"], PENDING_FOR: agent_id}, fields=["_id"]
            ):
                return
            fields = documents.artifact_after(newest) | content
            if await self._insert_artifact(agent_id, task["completed_at"], fields, task["_id"]):
                break
            # Either another artifact has this version now, or this one was inserted before.
            if await self._db.find_one(ARTIFACTS, {"task_id": task["_id"]}):
                break
        await self._db.update_one(
            TASKS,
            {"_id": task["_id"]},
            {"$unset": {PENDING_ARTIFACT: "", PENDING_FOR: ""}, "$inc": {"revision": 1}},
        )

    async def _newest_artifact(self, agent_id: int) -> HandoffArtifact | None:
        document = await self._newest_document(agent_id)
        return None if document is None else _artifact(document)

    async def _newest_document(self, agent_id: int) -> Document | None:
        return await self._db.find_one(ARTIFACTS, {"_id": keys_of(agent_id)}, sort=[("_id", -1)])

    async def _insert_artifact(
        self, agent_id: int, now: datetime, fields: Document, task_id: int | None = None
    ) -> HandoffArtifact | None:
        """Insert an artifact, or return None when its version or its task has one."""
        document = {
            "_id": ordered_key(agent_id, fields["version"]),
            "agent_id": agent_id,
            "created_at": now,
            PLACED_AT: await self.now(),
            "cleared": False,
            **fields,
        }
        if task_id is not None:
            document["task_id"] = task_id
        try:
            await self._db.insert(ARTIFACTS, document)
        except DuplicateKey:
            return None
        return _artifact(document)


def _artifact(document: Document) -> HandoffArtifact:
    return documents.artifact_from(_with_task_id(document))


def _with_task_id(document: Document) -> Document:
    return document | {"task_id": document.get("task_id")}
