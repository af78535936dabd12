"""The SQLite store forgets much without keeping anybody waiting; bounds are on work, since machines differ in speed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from tests.contract.places import chunk, claim, completed, draft, new_task, running_task
from tests.contract.test_retention import ended_task, everything, purge_all

from harness.clock import SystemClock
from harness.models import TaskStatus
from harness.purging import BATCH, Purger
from harness.retention import Expiry, Purged, Retention
from harness.store.sqlite import SqliteStore, retention

DAY_MILLIS = 86_400_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.sqlite3"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(path)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def raw(store: SqliteStore, path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


async def make_old_tasks(
    store: SqliteStore, raw: sqlite3.Connection, agent_id: int, count: int, chunks: int = 1
) -> None:
    """Store tasks that ended a year ago, as copies of one."""
    task = await ended_task(store, agent_id, chunks=chunks)
    columns = [row[1] for row in raw.execute("PRAGMA table_info(tasks)") if row[1] != "id"]
    names = ", ".join(f'"{name}"' for name in columns)
    raw.execute("BEGIN IMMEDIATE")
    raw.execute(
        f"""WITH RECURSIVE n(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < ?)
            INSERT INTO tasks ({names}) SELECT {names} FROM n, tasks WHERE id = ?""",
        (count, task.id),
    )
    raw.execute(
        "INSERT INTO logs SELECT tasks.id, seq, stream, data, at FROM tasks, logs WHERE task_id = ? AND tasks.id > ?",
        (task.id, task.id),
    )
    raw.execute("UPDATE tasks SET completed_at = completed_at - ?", (365 * DAY_MILLIS,))
    raw.execute("COMMIT")


async def steps_of(store: SqliteStore, call: Callable[[], Awaitable[object]]) -> int:
    """Count what SQLite's virtual machine does for a call, in hundreds of instructions."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    await store._file.read(lambda db: db.set_progress_handler(count, 100))
    try:
        await call()
    finally:
        await store._file.read(lambda db: db.set_progress_handler(None, 100))
    return steps


async def test_20_000_tasks_go_in_short_steps_while_claims_go_on(
    store: SqliteStore, raw: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await store.create_agent(draft())
    await make_old_tasks(store, raw, agent.id, 20_000, chunks=0)
    runner = SqliteStore(path)
    await runner.open()
    steps: list[int] = []
    done = asyncio.Event()
    purge = store.purge

    async def count_steps(agent_id: int, expiry: Expiry, *, limit: int) -> Purged:
        purged = await purge(agent_id, expiry, limit=limit)
        steps.append(purged.tasks)
        return purged

    monkeypatch.setattr(store, "purge", count_steps)

    async def forget() -> Purged:
        try:
            return await Purger(store, SystemClock(), Retention(task_days=90)).purge_all()
        finally:
            done.set()

    async def run_tasks() -> int:
        count = 0
        while not done.is_set():
            created = await runner.create_task(new_task(agent.id))
            assert [task.id for task in await runner.claim_tasks(claim(), limit=1)] == [created.id]
            await runner.finish_task(created.id, 1, completed())
            count += 1
        return count

    purged, runs = await asyncio.gather(forget(), run_tasks())
    await runner.close()

    assert purged == Purged(tasks=20_000)
    assert max(steps) <= BATCH
    # A step and its rest take about as long as a few runs.
    assert runs >= len(steps) / 10
    assert (await store.list_tasks()).total_count == runs


async def test_a_step_costs_the_same_however_much_there_is(
    store: SqliteStore, raw: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOCK_SECONDS", 60)
    small, large = [await store.create_agent(draft(name)) for name in ("small", "large")]
    await make_old_tasks(store, raw, small.id, 300)
    await make_old_tasks(store, raw, large.id, 20_000)
    later = await store.now() + timedelta(hours=1)
    expiry = Expiry(later, tasks_before=later, logs_before=later)

    steps = [
        await steps_of(store, lambda agent=agent: store.purge(agent.id, expiry, limit=100))  # type: ignore[misc]
        for agent in (small, large)
    ]

    assert steps[1] <= 1.2 * steps[0]


async def test_with_nothing_to_do_nothing_is_read_or_locked(
    store: SqliteStore, raw: sqlite3.Connection
) -> None:
    agent = await store.create_agent(draft())
    await make_old_tasks(store, raw, agent.id, 20_000)
    ancient = await store.now() - timedelta(days=1000)
    expiry = Expiry(ancient, tasks_before=ancient, max_tasks=10_000, logs_before=ancient, max_artifacts=1)
    raw.execute("BEGIN IMMEDIATE")
    try:
        # Of the surplus only the index is read, up to where it begins.
        assert await steps_of(store, lambda: store.purge(agent.id, Expiry(ancient, ancient), limit=100)) <= 5
        assert await store.purge(agent.id, expiry, limit=100) == Purged()
    finally:
        raw.execute("ROLLBACK")


async def test_a_step_ends_in_time_whatever_its_rows_hold(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await store.create_agent(draft())
    for _ in range(3):
        await ended_task(store, agent.id, chunks=3)
    # Every look at the clock finds the time over.
    monkeypatch.setattr(retention, "LOCK_SECONDS", 0)
    expiry = await everything(store)

    purged = await store.purge(agent.id, expiry, limit=1000)
    assert purged == Purged(more=True)

    monkeypatch.setattr(retention, "LOCK_SECONDS", 60)
    assert await purge_all(store, agent.id, expiry) == Purged(tasks=3, artifacts=2)


async def test_pages_of_what_was_deleted_are_used_again(store: SqliteStore, raw: sqlite3.Connection) -> None:
    agent = await store.create_agent(draft())
    pages = []
    for _ in range(4):
        for _ in range(20):
            task = await running_task(store, agent.id)
            await store.append_logs(task.id, 1, [await chunk(store, 0, b"x" * 50_000)])
            await store.finish_task(task.id, 1, completed())
        pages.append(raw.execute("PRAGMA page_count").fetchone()[0])
        await purge_all(store, agent.id, await everything(store))

    assert pages[-1] <= 1.1 * pages[0]


async def test_a_file_of_an_older_release_learns_to_forget(path: Path) -> None:
    before = SqliteStore(path)
    await before.open()
    agent = await before.create_agent(draft())
    task = await ended_task(before, agent.id)
    await before.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("DROP INDEX tasks_ended")
        old.execute("ALTER TABLE tasks DROP COLUMN logs_gone")

    store = SqliteStore(path)
    for _ in range(2):
        await store.open()
        assert await store.get_task(task.id) == task
        await store.close()

    await store.open()
    later = await store.now() + timedelta(hours=1)
    assert await purge_all(store, agent.id, Expiry(later, logs_before=later)) == Purged(logs=1)
    assert (await store.get_task(task.id)).status is TaskStatus.COMPLETED
    assert await purge_all(store, agent.id, await everything(store)) == Purged(tasks=1)
    await store.close()
