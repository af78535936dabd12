"""Handoff artifacts in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness.models import HandoffArtifact, LoadedAgent, NewArtifact
from harness.store import documents
from harness.store.documents import check_page, int64
from harness.store.sqlite.agents import SqliteAgents
from harness.store.sqlite.rows import check_agent, insert, json_list, one, to_document

_NEWEST_OF = """
    SELECT artifacts.* FROM json_each(?) AS wanted JOIN artifacts ON artifacts.agent_id = wanted.value
    WHERE version = (SELECT max(version) FROM artifacts WHERE agent_id = wanted.value)"""


class SqliteArtifacts(SqliteAgents):
    """The handoff artifacts of a `SqliteStore`."""

    async def save_artifact(self, agent_id: int, artifact: NewArtifact) -> HandoffArtifact:
        """Save an artifact outside of any run."""
        content = documents.artifact_content(artifact) | {"created_at": self._now()}

        def work(db: sqlite3.Connection) -> HandoffArtifact:
            check_agent(db, agent_id, usable=True)
            return insert_next_artifact(db, agent_id, content)

        return await self._file.write(work)

    async def newest_artifact(self, agent_id: int) -> HandoffArtifact | None:
        """Return the newest artifact, unless it marks a clear."""
        newest = await self._file.read(lambda db: _newest_artifact(db, agent_id))
        return None if newest is None or newest.cleared else newest

    async def load_agents(self, agent_ids: Collection[int]) -> Mapping[int, LoadedAgent]:
        """Return agents by id, each with its newest artifact."""
        ids = json_list(map(int64, set(agent_ids)))

        def work(db: sqlite3.Connection) -> tuple[list[sqlite3.Row], list[sqlite3.Row]]:
            sql = "SELECT * FROM agents WHERE id IN (SELECT value FROM json_each(?))"
            return db.execute(sql, (ids,)).fetchall(), db.execute(_NEWEST_OF, (ids,)).fetchall()

        agents, artifacts = await self._file.read(work)
        return documents.loaded_agents(map(to_document, agents), map(to_document, artifacts))

    async def clear_artifact(self, agent_id: int) -> None:
        """Make the next run a first run."""
        content = documents.clear_content() | {"created_at": self._now()}

        def work(db: sqlite3.Connection) -> None:
            newest = _newest_artifact(db, agent_id)
            if newest is not None and not newest.cleared:
                insert_next_artifact(db, agent_id, content)

        await self._file.write(work)

    async def artifact_history(
        self, agent_id: int, *, limit: int = 100, before_version: int | None = None
    ) -> Sequence[HandoffArtifact]:
        """Return artifacts by falling version."""
        check_page(limit)
        before = int64(2**63 if before_version is None else before_version)
        sql = "SELECT * FROM artifacts WHERE agent_id = ? AND version < ? ORDER BY version DESC LIMIT ?"
        values = (int64(agent_id), before, limit)
        rows = await self._file.read(lambda db: db.execute(sql, values).fetchall())
        return [documents.artifact_from(to_document(row)) for row in rows]


def insert_next_artifact(db: sqlite3.Connection, agent_id: int, content: dict[str, Any]) -> HandoffArtifact:
    """Insert the artifact that follows an agent's newest."""
    order = documents.artifact_after(_newest_artifact(db, agent_id))
    fields = {"cleared": False, "task_id": None, **order, **content, "agent_id": agent_id}
    insert(db, "artifacts", fields)
    return documents.artifact_from(fields)


def _newest_artifact(db: sqlite3.Connection, agent_id: int) -> HandoffArtifact | None:
    sql = "SELECT * FROM artifacts WHERE agent_id = ? ORDER BY version DESC LIMIT 1"
    row = one(db, sql, int64(agent_id))
    return None if row is None else documents.artifact_from(to_document(row))
