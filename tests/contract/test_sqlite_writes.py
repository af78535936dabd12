"""Writes of one SQLite store that wait at the same moment share a commit, and fail each for its own reason only."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from tests.contract.places import completed, draft, new_task, running_task, state

from harness.errors import AgentNameTakenError, StoreBusyError, StoreError
from harness.models import Agent
from harness.store.sqlite import SqliteStore, writes
from harness.store.sqlite.writes import GROUP_SECONDS

INSERT = "INSERT INTO unsynced VALUES (?)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite3"


@pytest.fixture
async def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqliteStore]:
    # What waits together shares a commit, however busy the machine is.
    monkeypatch.setattr(writes, "GROUP_SECONDS", 10.0)
    made = SqliteStore(path)
    # Short, so that waiting for somebody else's lock is quick to end.
    made._file._lock_timeout_seconds = 0.2
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def agent(store: SqliteStore) -> Agent:
    return await store.create_agent(draft())


@pytest.fixture
def other(store: SqliteStore, path: Path) -> Iterator[sqlite3.Connection]:
    """Another program on the same file."""
    with closing(
        sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)
    ) as connection:
        yield connection


async def on_writer(store: SqliteStore, work: Callable[[sqlite3.Connection], Any]) -> Any:
    """Run something in the thread, and on the connection, that writes."""
    connection = store._file._connection
    assert connection is not None
    return await connection.run(work)


@asynccontextmanager
async def busy(store: SqliteStore) -> AsyncIterator[None]:
    """Keep the writing thread busy, so that all writes begun meanwhile wait for it."""
    loop, began, over = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def work(_db: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(began.set)
        over.wait(20)

    reading = asyncio.create_task(on_writer(store, work))
    try:
        await began.wait()
        yield
        # Once around the loop, for tasks that were just made to come to their write.
        await asyncio.sleep(0)
    finally:
        over.set()
        await reading


async def outcomes(store: SqliteStore, *calls: Awaitable[Any]) -> list[Any]:
    """Have calls wait together; return what became of each."""
    async with busy(store):
        answers = asyncio.gather(*calls, return_exceptions=True)
    return await answers


async def traced(store: SqliteStore) -> list[str]:
    """Return a list that all statements from now on are added to."""
    statements: list[str] = []
    await on_writer(store, lambda db: db.set_trace_callback(statements.append))
    return statements


def executing(sql: str, *values: object, then: Callable[[], None] | None = None) -> Any:
    """Return the work of a write: a statement, and something that may raise."""

    def work(db: sqlite3.Connection) -> None:
        db.execute(sql, values)
        if then is not None:
            then()

    return work


def fail() -> None:
    raise ValueError("no")


async def unsynced(store: SqliteStore) -> list[int]:
    rows = await store._file.read(lambda db: db.execute("SELECT agent_id FROM unsynced").fetchall())
    return [row[0] for row in rows]


async def test_writes_that_wait_together_share_a_commit(store: SqliteStore, agent: Agent) -> None:
    statements = await traced(store)

    tasks = await outcomes(store, *(store.create_task(new_task(agent.id)) for _ in range(20)))

    assert statements.count("BEGIN IMMEDIATE") == 1
    assert [task.id for task in tasks] == list(range(1, 21))
    assert [await store.get_task(task.id) for task in tasks] == tasks


async def test_nobody_is_answered_before_the_commit(
    store: SqliteStore, agent: Agent, other: sqlite3.Connection
) -> None:
    first: asyncio.Future[Any] = asyncio.ensure_future(asyncio.sleep(0))
    seen: list[tuple[bool, int]] = []

    def look(_db: sqlite3.Connection) -> None:
        # Long enough for an answer to arrive.
        time.sleep(0.01)
        seen.append((first.done(), other.execute("SELECT count(*) FROM tasks").fetchone()[0]))

    async with busy(store):
        first = asyncio.create_task(store.create_task(new_task(agent.id)))
        second = asyncio.create_task(store._file.write(look))
    await asyncio.gather(first, second)

    assert seen == [(False, 0)]
    assert other.execute("SELECT count(*) FROM tasks").fetchone()[0] == 1


async def test_one_that_raises_undoes_only_itself(store: SqliteStore, agent: Agent) -> None:
    before, taken, refused, after = await outcomes(
        store,
        store.create_task(new_task(agent.id)),
        store.create_agent(draft(agent.name)),
        store._file.write(executing(INSERT, agent.id, then=fail)),
        store.create_agent(draft("another")),
    )

    assert await store.get_task(1) == before
    assert isinstance(taken, AgentNameTakenError)
    assert isinstance(refused, ValueError)
    assert await store.find_agent("another") == after
    assert await unsynced(store) == []


async def test_a_commit_that_fails_fails_those_only_that_are_to_blame(
    store: SqliteStore, agent: Agent
) -> None:
    def orphan(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute(INSERT, (4711,))

    before, failed, after = await outcomes(
        store,
        store.create_task(new_task(agent.id)),
        store._file.write(orphan),
        store.create_task(new_task(agent.id)),
    )

    assert isinstance(failed, StoreError)
    assert "FOREIGN KEY" in str(failed)
    assert (await store.list_tasks()).items == (after, before)
    assert [before.id, after.id] == [1, 2]
    assert await unsynced(store) == []


async def test_when_sqlite_rolls_all_back_nothing_undone_is_taken_for_done(
    store: SqliteStore, agent: Agent
) -> None:
    def roll_back(db: sqlite3.Connection) -> None:
        # Its conflict clause ends the whole transaction, as a failing disk does.
        db.execute("INSERT OR ROLLBACK INTO agents SELECT * FROM agents")

    before, failed, after = await outcomes(
        store,
        store.create_task(new_task(agent.id)),
        store._file.write(roll_back),
        store.create_task(new_task(agent.id)),
    )

    assert isinstance(failed, StoreError)
    assert (await store.list_tasks()).items == (after, before)


async def test_a_disk_too_full_for_one_takes_the_others(store: SqliteStore, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    pages = await on_writer(store, lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await on_writer(store, lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())

    before, failed, after = await outcomes(
        store,
        store.create_task(new_task(agent.id)),
        store.finish_task(task.id, 1, completed(), artifact=state(x="x" * 100_000)),
        store.create_task(new_task(agent.id)),
    )

    assert isinstance(failed, StoreError)
    assert "full" in str(failed)
    assert (await store.list_tasks()).items == (after, before, task)


async def test_a_lock_that_does_not_come_is_waited_for_once_by_all_that_wait(
    store: SqliteStore, agent: Agent, other: sqlite3.Connection
) -> None:
    statements = await traced(store)
    other.execute("BEGIN IMMEDIATE")

    failed = await outcomes(store, *(store.create_task(new_task(agent.id)) for _ in range(5)))

    assert [type(error) for error in failed] == [StoreBusyError] * 5
    assert statements.count("BEGIN IMMEDIATE") == 1
    other.execute("COMMIT")
    assert (await store.create_task(new_task(agent.id))).id == 1


async def test_a_cancelled_write_among_others_happens_whole(store: SqliteStore, agent: Agent) -> None:
    async with busy(store):
        writes = [asyncio.create_task(store.create_task(new_task(agent.id))) for _ in range(3)]
        await asyncio.sleep(0)
        writes[1].cancel()
    first, cancelled, third = await asyncio.gather(*writes, return_exceptions=True)

    assert isinstance(cancelled, asyncio.CancelledError)
    kept = await store.get_task(2)
    assert (await store.list_tasks()).items == (third, kept, first)


async def test_a_long_queue_lets_other_processes_in_between(
    store: SqliteStore, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "GROUP_SECONDS", GROUP_SECONDS)
    statements = await traced(store)
    count = 8

    await outcomes(
        store,
        *(
            store._file.write(executing("SELECT 1", then=lambda: time.sleep(GROUP_SECONDS * 0.6)))
            for _ in range(count)
        ),
    )

    # Two of them are over the bound.
    assert statements.count("BEGIN IMMEDIATE") >= count / 2


async def test_a_write_alone_costs_no_more_statements_than_it_needs(store: SqliteStore) -> None:
    statements = await traced(store)
    statements.clear()

    await store._file.write(executing("SELECT 1"))

    assert statements == ["BEGIN IMMEDIATE", "SELECT 1", "COMMIT"]
