"""The tables and indexes of the embedded store, and what a release adds to a file that an older one made."""

from __future__ import annotations

import sqlite3

#: Tells our files from other programs' ("AgHs"); `file` and `sqlite3` show it.
APPLICATION_ID = 0x41674873

SCHEMA = (
    "CREATE TABLE meta (schema_version INTEGER NOT NULL, store_id TEXT NOT NULL)",
    # The large columns last: SQLite reads a row up to the last column it is asked for.
    """CREATE TABLE agents (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL,
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, deleting INTEGER NOT NULL DEFAULT 0,
        config TEXT NOT NULL, entrypoint TEXT, code TEXT NOT NULL, files TEXT NOT NULL)""",
    """CREATE TABLE tasks (
        id INTEGER PRIMARY KEY AUTOINCREMENT, agent_id INTEGER NOT NULL REFERENCES agents (id), status TEXT NOT NULL,
        "trigger" TEXT NOT NULL, scheduled_at INTEGER NOT NULL, created_at INTEGER NOT NULL, started_at INTEGER,
        completed_at INTEGER, due_at INTEGER, lease_owner TEXT, fence INTEGER NOT NULL, priority INTEGER NOT NULL,
        retry_count INTEGER NOT NULL, max_retries INTEGER NOT NULL, reason TEXT, skip_reason TEXT, fire_at INTEGER,
        skipped_until INTEGER, skipped_count INTEGER NOT NULL, cancel_requested_at INTEGER,
        save_handoff INTEGER NOT NULL, max_active INTEGER NOT NULL, fire_key TEXT UNIQUE, active_slot TEXT UNIQUE,
        queue_slot TEXT UNIQUE, result TEXT, error TEXT, attempts TEXT NOT NULL, context TEXT)""",
    # Each ends in the row's id, so one serves both a filter and the order by id, and counts without the table.
    # The same for pages of all tasks: the table has the ids too, but spread over everything else.
    "CREATE INDEX tasks_by_id ON tasks (id)",
    "CREATE INDEX tasks_by_agent ON tasks (agent_id)",
    "CREATE INDEX tasks_by_status ON tasks (status)",
    "CREATE INDEX tasks_by_agent_and_status ON tasks (agent_id, status)",
    # These hold active tasks only: they stay as small as the present, however long the history, and the first three
    # have all that a decision about a claim needs.
    """CREATE INDEX tasks_ready ON tasks (due_at, agent_id, priority, active_slot, max_active, status)
        WHERE status = 'pending' AND active_slot IS NOT NULL""",
    """CREATE INDEX tasks_waiting ON tasks (agent_id, priority DESC, due_at, id, max_active, active_slot, status)
        WHERE status = 'pending' AND active_slot IS NULL""",
    "CREATE INDEX tasks_in_slots ON tasks (agent_id, active_slot, status) WHERE active_slot IS NOT NULL",
    "CREATE INDEX tasks_leased ON tasks (due_at) WHERE status = 'running'",
    """CREATE INDEX tasks_to_cancel ON tasks (lease_owner)
        WHERE status = 'running' AND cancel_requested_at IS NOT NULL""",
    """CREATE TABLE schedules (
        agent_id INTEGER PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE, agent_version INTEGER NOT NULL,
        next_fire_at INTEGER, due_at INTEGER, anchor_at INTEGER NOT NULL, last_fire_at INTEGER,
        paused INTEGER NOT NULL, removed INTEGER NOT NULL, revision INTEGER NOT NULL)""",
    "CREATE INDEX schedules_by_due ON schedules (due_at) WHERE due_at IS NOT NULL",
    # Agents whose schedule has to be computed. A table, since a mark in an agent's row would rewrite its code.
    "CREATE TABLE unsynced (agent_id INTEGER PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE)",
    """CREATE TABLE logs (
        task_id INTEGER NOT NULL REFERENCES tasks (id) ON DELETE CASCADE, seq INTEGER NOT NULL, stream TEXT NOT NULL,
        data BLOB NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (task_id, seq))""",
    """CREATE TABLE artifacts (
        agent_id INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE, version INTEGER NOT NULL,
        state TEXT NOT NULL, summary TEXT NOT NULL, created_at INTEGER NOT NULL, run_count INTEGER NOT NULL,
        task_id INTEGER UNIQUE, cleared INTEGER NOT NULL, PRIMARY KEY (agent_id, version))""",
    f"PRAGMA application_id = {APPLICATION_ID}",
)

#: Made by this release also in a file that an older one made, which goes on to work with it.
_LATER_COLUMNS = (
    # What a schedule was computed from.
    ("schedules", "rule", "TEXT"),
    # Set on an ended task when its logs are deleted, so that nobody looks for them again.
    ("tasks", "logs_gone", "INTEGER NOT NULL DEFAULT 0"),
)
_LATER_PARTS = (
    # Ended tasks, those whose logs are gone apart from the others, each in the order of their ends.
    """CREATE INDEX IF NOT EXISTS tasks_ended ON tasks (agent_id, logs_gone, completed_at)
        WHERE completed_at IS NOT NULL""",
    """CREATE TABLE IF NOT EXISTS samples (
        task_id INTEGER NOT NULL REFERENCES tasks (id) ON DELETE CASCADE, seq INTEGER NOT NULL, at INTEGER NOT NULL,
        memory_bytes INTEGER, cpu_percent REAL, cpu_seconds REAL, processes INTEGER, PRIMARY KEY (task_id, seq))""",
    # AUTOINCREMENT: a number is never used twice, so what is said of one token is never taken for another's.
    """CREATE TABLE IF NOT EXISTS tokens (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, scope TEXT NOT NULL, secret_hash TEXT NOT NULL,
        created_at INTEGER NOT NULL, expires_at INTEGER, last_used_at INTEGER, revoked_at INTEGER)""",
    """CREATE TABLE IF NOT EXISTS audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, token_id INTEGER, actor TEXT NOT NULL,
        peer TEXT NOT NULL, action TEXT NOT NULL, target TEXT NOT NULL, made TEXT, status INTEGER NOT NULL,
        request_id TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS secrets (
        name TEXT PRIMARY KEY, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
        ciphertext BLOB NOT NULL)""",
)


def add_later_parts(connection: sqlite3.Connection) -> None:
    """Add what is missing, inside the open transaction."""
    for table, column, kind in _LATER_COLUMNS:
        known = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
        if column not in known:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    for statement in _LATER_PARTS:
        connection.execute(statement)
