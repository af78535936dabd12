"""Plain documents to rows and back, and the few statements every part of the SQLite store is made of."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from pydantic_core import to_json

from harness.errors import AgentNotFoundError
from harness.store import documents
from harness.store.documents import from_millis, int64, to_millis

_INSTANTS = frozenset(
    {
        "created_at",
        "updated_at",
        "scheduled_at",
        "started_at",
        "completed_at",
        "fire_at",
        "skipped_until",
        "cancel_requested_at",
        "due_at",
        "at",
        "expires_at",
        "last_used_at",
        "revoked_at",
        *documents.SCHEDULE_INSTANTS,
    }
)
_LISTS = frozenset({"files", "attempts"})


def _encode(value: list[Any]) -> str:
    return to_json(value).decode()


def one(db: sqlite3.Connection, sql: str, *values: Any) -> sqlite3.Row | None:
    """Return the first row, or None."""
    row: sqlite3.Row | None = db.execute(sql, values).fetchone()
    return row


def insert(db: sqlite3.Connection, table: str, fields: Mapping[str, Any]) -> int:
    """Insert a plain document; return its row id."""
    return db.execute(_insert_sql(table, tuple(fields)), to_row(fields)).lastrowid or 0


def insert_many(db: sqlite3.Connection, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert plain documents that all have the same fields."""
    listed = list(rows)
    if listed:
        db.executemany(_insert_sql(table, tuple(listed[0])), map(to_row, listed))


def update(db: sqlite3.Connection, table: str, key: int, changes: Mapping[str, Any]) -> None:
    """Change the row with that id."""
    update_many(db, table, [(key, changes)])


def update_many(db: sqlite3.Connection, table: str, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """Change the rows with those ids, one after the other."""
    for names, some in itertools.groupby(rows, key=lambda row: tuple(row[1])):
        if names:
            db.executemany(_update_sql(table, names), [[*to_row(changes), key] for key, changes in some])


def json_list(values: Iterable[object]) -> str:
    """Return values as one bound parameter: ``IN (SELECT value FROM json_each(?))`` takes any number of them."""
    return json.dumps(list(values), ensure_ascii=False)


def to_row(fields: Mapping[str, Any]) -> list[Any]:
    """Return a plain document's values as SQLite holds them."""
    return [
        value if (convert := _converter(value.__class__)) is None else convert(value)
        for value in fields.values()
    ]


def to_document(row: sqlite3.Row) -> dict[str, Any]:
    """Return a row as a plain document; instants inside of lists stay text, which pydantic reads as well."""
    names = tuple(row.keys())
    instants, lists = _converted(names)
    document = dict(zip(names, row, strict=True))
    for name in instants:
        if document[name] is not None:
            document[name] = from_millis(document[name])
    for name in lists:
        document[name] = json.loads(document[name])
    return document


def check_agent(db: sqlite3.Connection, agent_id: int, *, usable: bool = False) -> None:
    """Check that an agent exists, without reading its code; with `usable`, one whose deletion began counts as gone.

    Raises:
        AgentNotFoundError: It does not.
    """
    row = one(db, "SELECT deleting FROM agents WHERE id = ?", int64(agent_id))
    if row is None:
        raise AgentNotFoundError(f"there is no agent {agent_id}")
    if usable and row["deleting"]:
        raise documents.agent_is_being_deleted(agent_id)


@cache
def _converter(kind: type) -> Callable[[Any], Any] | None:
    """Return what makes values of a type what SQLite holds; None: nothing has to."""
    if issubclass(kind, datetime):
        return to_millis
    return _encode if issubclass(kind, list) else None


@lru_cache
def _converted(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which columns hold instants, and which hold lists."""
    return tuple(name for name in names if name in _INSTANTS), tuple(name for name in names if name in _LISTS)


@lru_cache
def _insert_sql(table: str, names: tuple[str, ...]) -> str:
    columns = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join("?" for _ in names)
    # Table and field names are ours; all values are bound.
    return f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608


@lru_cache
def _update_sql(table: str, names: tuple[str, ...]) -> str:
    marks = ", ".join(f'"{name}" = ?' for name in names)
    return f"UPDATE {table} SET {marks} WHERE id = ?"  # noqa: S608 - as in _insert_sql
