from __future__ import annotations

import asyncio
import re
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.contract.places import (
    chunk,
    claim,
    completed,
    draft,
    new_task,
    running_task,
    scheduled_agent,
    state,
)

from harness.errors import StoreBusyError, StoreError, StoreUnavailableError
from harness.models import NewTask, WhenBusy
from harness.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.sqlite3"


@pytest.fixture
def foreign_path(path: Path) -> Path:
    """Where somebody else keeps a file, in a folder of theirs."""
    path.parent.mkdir(mode=0o755)
    path.parent.chmod(0o755)
    return path


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(path)
    # Short, so that waiting for somebody else's lock is quick to end.
    made._file._lock_timeout_seconds = 0.2
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def other(store: SqliteStore, path: Path) -> Iterator[sqlite3.Connection]:
    """Another program on the same file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
        yield connection


def spoil(path: Path, data: bytes, *, at: int = 0, file_mode: int = 0o600) -> None:
    path.touch()
    path.chmod(file_mode)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def content(path: Path) -> bytes:
    return path.read_bytes()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_only_the_owner_can_read_a_new_store(store: SqliteStore, path: Path) -> None:
    await store.create_agent(draft())

    assert mode(path.parent) == 0o700
    assert {file.name: mode(file) for file in path.parent.iterdir()} == {
        "store.sqlite3": 0o600, "store.sqlite3-wal": 0o600, "store.sqlite3-shm": 0o600,
    }  # fmt: skip


async def test_a_folder_and_a_file_that_exist_keep_their_modes(foreign_path: Path) -> None:
    spoil(foreign_path, b"", file_mode=0o640)
    store = SqliteStore(foreign_path)

    await store.open()
    await store.close()

    assert (mode(foreign_path.parent), mode(foreign_path)) == (0o755, 0o640)


async def test_commits_survive_a_power_cut(store: SqliteStore) -> None:
    def pragmas(db: sqlite3.Connection) -> list[object]:
        return [
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]

    # 2 is FULL.
    assert await store._file.write(pragmas) == ["wal", 2, 1]


async def test_a_file_from_before_a_column_was_added_gets_it(
    store: SqliteStore, path: Path, other: sqlite3.Connection
) -> None:
    before = await scheduled_agent(store)
    await store.close()
    other.execute("ALTER TABLE schedules DROP COLUMN rule")

    await store.open()

    assert (await store.get_schedule(before.agent_id)).state == before
    (stored,) = await store.put_schedules([before.model_copy(update={"rule": {"type": "cron"}})])
    assert (await store.get_schedule(before.agent_id)).state == stored


async def test_a_path_that_cannot_be_made_is_named(foreign_path: Path) -> None:
    spoil(foreign_path, b"")
    for path in (foreign_path / "below" / "a_file", Path("/proc/nowhere/store.sqlite3"), foreign_path.parent):
        store = SqliteStore(path)
        with pytest.raises(StoreUnavailableError, match=f"{path} cannot be"):
            await store.open()
        await store.close()


async def test_a_file_that_is_no_database_is_left_alone(foreign_path: Path) -> None:
    spoil(foreign_path, b"my diary\n" * 1000)

    with pytest.raises(StoreError, match=f"{foreign_path} is not an SQLite database; move it away"):
        await SqliteStore(foreign_path).open()

    assert content(foreign_path) == b"my diary\n" * 1000


async def test_another_programs_database_is_left_alone(foreign_path: Path) -> None:
    with closing(sqlite3.connect(foreign_path)) as connection:
        connection.execute("CREATE TABLE meta (schema_version INTEGER, store_id TEXT)")
    before = content(foreign_path)

    with pytest.raises(StoreError, match="is another program's SQLite database"):
        await SqliteStore(foreign_path).open()

    assert content(foreign_path) == before


async def test_a_damaged_file_is_reported_with_a_remedy(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    for n in range(200):
        await store.create_agent(draft(f"agent {n}", code="x" * 3000))
    await store.close()
    # Behind the pages that hold the schema.
    spoil(path, b"\xff" * 4096 * 100, at=4096 * 40)

    await store.open()
    with pytest.raises(StoreError, match=rf"{path} is damaged .*restore a backup"):
        await store.list_agents(limit=200)
    await store.close()


async def test_a_full_disk_is_reported_and_undoes_the_write(store: SqliteStore) -> None:
    agent = await store.create_agent(draft())
    task = await running_task(store, agent.id)
    pages = await store._file.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await store._file.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())

    with pytest.raises(StoreError, match=r"the disk that holds the store .* is full; free some space"):
        await store.finish_task(task.id, 1, completed(), artifact=state(x="x" * 100_000))

    assert await store.get_task(task.id) == task
    await store._file.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
    await store.finish_task(task.id, 1, completed(), artifact=state(x="x" * 100_000))


async def test_a_lock_that_is_not_released_in_time_makes_the_store_busy(
    store: SqliteStore, other: sqlite3.Connection, path: Path
) -> None:
    agent = await store.create_agent(draft())
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreBusyError, match=rf"{path} was locked by another process for more than 0\.2 s"):
        await store.create_task(NewTask(agent_id=agent.id))
    # Readers never wait for a writer.
    assert await store.get_agent(agent.id) == agent

    other.execute("COMMIT")
    assert (await store.create_task(NewTask(agent_id=agent.id))).id == 1


async def test_opening_a_file_that_stays_locked_makes_the_store_busy(foreign_path: Path) -> None:
    with closing(sqlite3.connect(foreign_path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        store = SqliteStore(foreign_path)
        store._file._lock_timeout_seconds = 0.1
        with pytest.raises(StoreBusyError, match="locked"):
            await store.open()
        connection.execute("ROLLBACK")
        await store.open()
        await store.close()


async def test_a_call_cancelled_while_it_waits_for_a_lock_leaves_none_behind(
    store: SqliteStore, other: sqlite3.Connection
) -> None:
    agent = await store.create_agent(draft())
    for _ in range(5):
        other.execute("BEGIN IMMEDIATE")
        waiting = [
            asyncio.create_task(store.create_task(NewTask(agent_id=agent.id))),
            asyncio.create_task(store.save_artifact(agent.id, state())),
        ]
        await asyncio.sleep(0.01)
        for call in waiting:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        other.execute("COMMIT")

        task = await running_task(store, agent.id)
        await store.append_logs(task.id, 1, [await chunk(store, 0)])
        # Nothing of ours is open: another process gets the lock at once.
        other.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")


async def test_closing_waits_for_what_is_under_way(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    agent = await store.create_agent(draft())
    calls = [asyncio.create_task(store.create_task(new_task(agent.id))) for _ in range(20)]
    await asyncio.sleep(0)

    await store.close()

    assert sorted(task.id for task in await asyncio.gather(*calls)) == list(range(1, 21))


async def test_lists_stay_on_indexes(store: SqliteStore) -> None:
    """The plans of what is asked all the time; at 100,000 tasks a scan would take 100 times as long."""
    plans = {
        "SELECT id FROM tasks ORDER BY id DESC LIMIT 5 OFFSET 90000": "COVERING INDEX tasks_by_id",
        "SELECT count(*) FROM tasks WHERE agent_id = 1": "COVERING INDEX tasks_by_agent",
        "SELECT count(*) FROM tasks WHERE status = 'failed'": "COVERING INDEX tasks_by_status",
        "SELECT id FROM tasks WHERE agent_id = 1 AND status = 'failed' ORDER BY id DESC LIMIT 5":
            "COVERING INDEX tasks_by_agent_and_status",
    }  # fmt: skip
    for sql, expected in plans.items():
        rows = await store._file.read(lambda db, sql=sql: db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall())  # type: ignore[misc]
        plan = "; ".join(row["detail"] for row in rows)
        assert expected in plan
        assert "TEMP B-TREE" not in plan


#: What an index of the present is called. Others grow with the history.
PRESENT = re.compile("tasks_ready|tasks_waiting|tasks_in_slots|tasks_leased|tasks_to_cancel|schedules_by_due")


@pytest.mark.parametrize("call", ["claim", "next", "stats", "expired", "cancel"])
async def test_looking_for_work_reads_nothing_of_the_past(store: SqliteStore, call: str) -> None:
    asked: list[str] = []
    await store._file.read(lambda db: db.set_trace_callback(asked.append))
    agent = await store.create_agent(draft())
    await running_task(store, agent.id, max_active=1)
    await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.WAIT))
    asked.clear()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "claim": lambda: store.claim_tasks(claim(), limit=5),
        "next": store.next_due_at,
        "stats": store.queue_stats,
        "expired": store.expired_tasks,
        "cancel": lambda: store.cancel_requests("me"),
    }

    await calls[call]()

    queries = [sql for sql in asked if "FROM" in sql]
    assert queries
    for sql in queries:
        rows = await store._file.read(lambda db, sql=sql: db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall())  # type: ignore[misc]
        looks = [row["detail"] for row in rows if re.match("(SCAN|SEARCH) (tasks|schedules)", row["detail"])]
        assert looks
        assert [look for look in looks if not PRESENT.search(look)] == []


async def test_a_close_that_is_cancelled_leaves_no_thread_that_keeps_the_process(path: Path) -> None:
    before = threading.active_count()
    store = SqliteStore(path)
    await store.open()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    async with asyncio.timeout(5):
        while threading.active_count() > before:  # noqa: ASYNC110 - there is no event for the end of a thread
            await asyncio.sleep(0.01)
