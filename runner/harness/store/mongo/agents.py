"""Agents in MongoDB."""

from __future__ import annotations

from harness.errors import AgentBusyError, AgentNotFoundError
from harness.models import Agent, AgentDraft, Page
from harness.store import documents
from harness.store.documents import check_page, int64
from harness.store.mongo.base import MongoPart, keys_of
from harness.store.mongo.driver import Document, DuplicateKey

AGENTS, TASKS, LOGS, ARTIFACTS, SCHEDULES = "agents", "tasks", "logs", "artifacts", "schedules"
SAMPLES = "samples"

#: Set on agents whose schedule may have to be computed, by the write that makes it so, hence never missing.
UNSYNCED = "schedule_unsynced"

#: Tasks deleted at a time.
_DELETE_BATCH = 100


class MongoAgents(MongoPart):
    """The agents of a `MongoStore`."""

    async def create_agent(self, draft: AgentDraft) -> Agent:
        """Store a new agent."""
        fields = documents.draft_document(draft)
        now = await self.now()
        # Also checked before the insert, so that refused names do not use up ids.
        await self._check_name_is_free(draft.name)
        agent_id = await self._db.next_number(AGENTS)
        document = {"_id": agent_id, **fields, "version": 1, "created_at": now, "updated_at": now}
        if documents.has_schedule(draft.config):
            document[UNSYNCED] = True
        while True:
            try:
                await self._db.insert(AGENTS, document)
            except DuplicateKey:
                # The number is this call's alone: the driver repeated an insert whose answer was lost.
                if await self._db.find_one(AGENTS, {"_id": agent_id}, fields=["_id"]) is None:
                    await self._check_name_is_free(draft.name)
                    continue
            return _agent(document)

    async def get_agent(self, agent_id: int) -> Agent:
        """Return an agent."""
        return _agent(await self._agent_document(agent_id))

    async def find_agent(self, name: str) -> Agent:
        """Return the agent of that name."""
        # No agent has a name that is not printable, and such text may have no UTF-8 to look for.
        document = await self._db.find_one(AGENTS, {"name": name}) if name.isprintable() else None
        if document is None:
            raise AgentNotFoundError(f"there is no agent named {name!r}")
        return _agent(document)

    async def list_agents(self, *, limit: int = 100, offset: int = 0) -> Page[Agent]:
        """Return agents by falling id."""
        check_page(limit, offset)
        found = await self._db.find(AGENTS, {}, sort=[("_id", -1)], limit=limit, offset=offset)
        return Page(tuple(map(_agent, found)), await self._db.count(AGENTS, {}), limit, offset)

    async def update_agent(
        self, agent_id: int, draft: AgentDraft, *, expected_version: int | None = None
    ) -> Agent:
        """Replace what the owner wrote, by compare-and-set on the version."""
        fields = documents.draft_document(draft)
        while True:
            document = await self._agent_document(agent_id)
            if document.get("deleting"):
                raise documents.agent_is_being_deleted(agent_id)
            version = document["version"]
            if expected_version is not None and version != expected_version:
                raise documents.version_conflict(agent_id, version, expected_version)
            # Also without a schedule: there may have been one, and `unsynced_schedules` looks closer.
            changes = fields | {"version": version + 1, "updated_at": await self.now(), UNSYNCED: True}
            unchanged = {"_id": agent_id, "version": version, "deleting": None}
            try:
                if await self._db.update_one(AGENTS, unchanged, {"$set": changes}):
                    return _agent(document | changes)
            except DuplicateKey:
                await self._check_name_is_free(draft.name)

    async def delete_agent(self, agent_id: int) -> None:
        """Delete what belongs to an agent, and then the agent.

        The mark `deleting` comes first: from then on nothing new is stored for the agent, and `create_task` looks for
        the mark once more after its insert. So either this sees a new task, or that sees the mark.
        """
        await self._check_agent(agent_id)
        await self._check_is_idle(agent_id)
        has_marked = await self._db.update_one(
            AGENTS, {"_id": agent_id, "deleting": None}, {"$set": {"deleting": True}}
        )
        try:
            await self._check_is_idle(agent_id)
        except AgentBusyError:
            # Another call's mark stays: that call may be past this check.
            if has_marked:
                await self._db.update_one(AGENTS, {"_id": agent_id}, {"$unset": {"deleting": ""}})
            raise
        # Fires that were accepted and have no task yet go with it.
        await self._db.delete(SCHEDULES, {"_id": agent_id})
        while batch := await self._db.find(
            TASKS, {"agent_id": agent_id}, sort=[("_id", 1)], limit=_DELETE_BATCH, fields=["_id"]
        ):
            ids = [task["_id"] for task in batch]
            # Logs first: without its task nobody would find them again after an interruption.
            for collection in (LOGS, SAMPLES):
                await self._db.delete(collection, {"$or": [{"_id": keys_of(task_id)} for task_id in ids]})
            await self._db.delete(TASKS, {"_id": {"$in": ids}})
        await self._db.delete(ARTIFACTS, {"_id": keys_of(agent_id)})
        await self._db.delete(AGENTS, {"_id": agent_id})

    async def _agent_document(self, agent_id: int) -> Document:
        document = await self._db.find_one(AGENTS, {"_id": int64(agent_id)})
        if document is None:
            raise AgentNotFoundError(f"there is no agent {agent_id}")
        return document

    async def _check_agent(self, agent_id: int, *, usable: bool = False) -> None:
        """Check that an agent exists, without reading its code; with `usable`, one being deleted counts as gone."""
        document = await self._db.find_one(AGENTS, {"_id": int64(agent_id)}, fields=["deleting"])
        if document is None:
            raise AgentNotFoundError(f"there is no agent {agent_id}")
        if usable and document.get("deleting"):
            raise documents.agent_is_being_deleted(agent_id)

    async def _check_name_is_free(self, name: str) -> None:
        if other := await self._db.find_one(AGENTS, {"name": name}):
            raise documents.name_taken(other["_id"], name)

    async def _check_is_idle(self, agent_id: int) -> None:
        active = {"agent_id": agent_id, "status": {"$in": ["pending", "running"]}}
        if task := await self._db.find_one(TASKS, active, fields=["_id"]):
            raise documents.agent_is_active(agent_id, task["_id"])


def _agent(document: Document) -> Agent:
    return documents.agent_from(document | {"id": document["_id"]})
