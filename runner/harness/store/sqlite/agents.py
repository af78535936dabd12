"""Agents in SQLite."""

from __future__ import annotations

import sqlite3

from harness.errors import AgentNotFoundError
from harness.models import Agent, AgentDraft, Page
from harness.store import documents
from harness.store.documents import check_page, int64
from harness.store.sqlite.base import SqlitePart
from harness.store.sqlite.rows import check_agent, insert, one, to_document, update

#: Tasks or artifacts deleted per transaction, so that deleting an agent with a long history locks nobody out.
_DELETE_BATCH = 100


class SqliteAgents(SqlitePart):
    """The agents of a `SqliteStore`."""

    async def create_agent(self, draft: AgentDraft) -> Agent:
        """Store a new agent."""
        fields = documents.draft_document(draft)
        now = self._now()
        fields |= {"version": 1, "created_at": now, "updated_at": now}

        def work(db: sqlite3.Connection) -> Agent:
            _check_name_is_free(db, draft.name)
            agent_id = insert(db, "agents", fields)
            if documents.has_schedule(draft.config):
                _mark_unsynced(db, agent_id)
            return documents.agent_from({"id": agent_id, **fields})

        return await self._file.write(work)

    async def get_agent(self, agent_id: int) -> Agent:
        """Return an agent."""
        row = await self._file.read(lambda db: _agent_row(db, agent_id))
        return documents.agent_from(to_document(row))

    async def find_agent(self, name: str) -> Agent:
        """Return the agent of that name."""
        row = None
        # No agent has a name that is not printable, and such text may have no UTF-8 to look for.
        if name.isprintable():
            row = await self._file.read(lambda db: one(db, "SELECT * FROM agents WHERE name = ?", name))
        if row is None:
            raise AgentNotFoundError(f"there is no agent named {name!r}")
        return documents.agent_from(to_document(row))

    async def list_agents(self, *, limit: int = 100, offset: int = 0) -> Page[Agent]:
        """Return agents by falling id."""
        check_page(limit, offset)

        def work(db: sqlite3.Connection) -> tuple[int, list[sqlite3.Row]]:
            count = db.execute("SELECT count(*) FROM agents").fetchone()[0]
            sql = "SELECT * FROM agents ORDER BY id DESC LIMIT ? OFFSET ?"
            return count, db.execute(sql, (limit, offset)).fetchall()

        count, rows = await self._file.read(work)
        return Page(tuple(documents.agent_from(to_document(row)) for row in rows), count, limit, offset)

    async def update_agent(
        self, agent_id: int, draft: AgentDraft, *, expected_version: int | None = None
    ) -> Agent:
        """Replace what the owner wrote."""
        fields = documents.draft_document(draft)
        now = self._now()

        def work(db: sqlite3.Connection) -> Agent:
            check_agent(db, agent_id, usable=True)
            row = _agent_row(db, agent_id)
            if expected_version is not None and row["version"] != expected_version:
                raise documents.version_conflict(agent_id, row["version"], expected_version)
            if row["name"] != draft.name:
                _check_name_is_free(db, draft.name)
            changes = fields | {"version": row["version"] + 1, "updated_at": now}
            update(db, "agents", agent_id, changes)
            has_state = one(db, "SELECT 1 FROM schedules WHERE agent_id = ?", agent_id)
            if documents.has_schedule(draft.config) or has_state:
                _mark_unsynced(db, agent_id)
            else:
                db.execute("DELETE FROM unsynced WHERE agent_id = ?", (agent_id,))
            return documents.agent_from(to_document(row) | changes)

        return await self._file.write(work)

    async def delete_agent(self, agent_id: int) -> None:
        """Delete an agent and all that belongs to it, in batches; the agent itself goes with the last one."""

        def work(db: sqlite3.Connection) -> bool:
            check_agent(db, agent_id)
            sql = "SELECT id FROM tasks WHERE agent_id = ? AND status IN ('pending', 'running') LIMIT 1"
            if active := one(db, sql, agent_id):
                raise documents.agent_is_active(agent_id, active["id"])
            update(db, "agents", agent_id, {"deleting": 1})
            # With the mark, so that no schedule is ever due for an agent that can't run.
            db.execute("DELETE FROM schedules WHERE agent_id = ?", (agent_id,))
            db.execute("DELETE FROM unsynced WHERE agent_id = ?", (agent_id,))
            for table in ("tasks", "artifacts"):
                rows = f"SELECT rowid FROM {table} WHERE agent_id = ? LIMIT ?"  # noqa: S608 - the names above
                db.execute(f"DELETE FROM {table} WHERE rowid IN ({rows})", (agent_id, _DELETE_BATCH))  # noqa: S608
                if one(db, rows, agent_id, 1):
                    return False
            db.execute("DELETE FROM agents WHERE id = ?", (agent_id,))
            return True

        while not await self._file.write(work):
            pass


def _agent_row(db: sqlite3.Connection, agent_id: int) -> sqlite3.Row:
    row = one(db, "SELECT * FROM agents WHERE id = ?", int64(agent_id))
    if row is None:
        raise AgentNotFoundError(f"there is no agent {agent_id}")
    return row


def _check_name_is_free(db: sqlite3.Connection, name: str) -> None:
    if other := one(db, "SELECT id FROM agents WHERE name = ?", name):
        raise documents.name_taken(other["id"], name)


def _mark_unsynced(db: sqlite3.Connection, agent_id: int) -> None:
    db.execute("INSERT OR IGNORE INTO unsynced VALUES (?)", (agent_id,))
