"""The list endpoint of a real server under 100,000 tasks of history, on both stores: what a dashboard asks all the time."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table
from tests.benchmarks.scheduling import percentile
from tests.benchmarks.store import fill_history
from tests.mongo import MongoServer
from tests.services import running_server

from harness.models import AgentDraft
from harness.settings import Settings
from harness.store.mongo import MongoStore
from harness.store.mongo.driver import connect
from harness.store.sqlite import SqliteStore

HISTORY = 100_000
AGENTS = 100
REQUESTS = 100
#: Bound on the 95th percentile of each, in milliseconds.
GOAL_MS = 50.0

PATHS = (
    "/api/tasks?limit=100",
    "/api/tasks?limit=100&status=failed",
    "/api/tasks?limit=100&offset=90000",
    "/api/tasks/agents/1/tasks",
    "/api/tasks/agents/1/tasks?status=completed&limit=10",
)


@asynccontextmanager
async def _filled_mongo(uri: str) -> AsyncIterator[None]:
    store = MongoStore.connect(uri, database=Settings().mongodb_database)
    await store.open()
    client = connect(uri)
    try:
        for number in range(AGENTS):
            await store.create_agent(AgentDraft(name=f"agent {number}", code="pass"))
        agent = await store.get_agent(1)
        tasks = client[Settings().mongodb_database]["tasks"]
        for start in range(0, HISTORY, 5000):
            # By hand, as years of running would; the store has no call for the past.
            await tasks.insert_many([_document(n, agent.created_at) for n in range(start + 1, start + 5001)])
        yield
    finally:
        await store.close()
        await client.close()


def _document(number: int, at: object) -> dict[str, object]:
    return {
        "_id": number, "agent_id": 1 + number % AGENTS, "status": "completed" if number % 10 else "failed",
        "trigger": "schedule", "scheduled_at": at, "created_at": at, "started_at": at, "completed_at": at,
        "due_at": None, "lease_owner": None, "fence": 1, "priority": 0, "retry_count": 0, "max_retries": 3,
        "reason": None, "skip_reason": None, "fire_at": None, "skipped_until": None, "skipped_count": 0,
        "cancel_requested_at": None, "save_handoff": True, "max_active": 1, "result": "x" * 200, "error": None,
        "attempts": [], "context": None, "revision": 1,
    }  # fmt: skip


async def measure(url: str) -> dict[str, tuple[float, float]]:
    """Return the median and the 95th percentile of each request, in milliseconds."""
    figures = {}
    async with aiohttp.ClientSession() as session:
        for path in PATHS:
            seconds = []
            for _ in range(REQUESTS):
                began = time.perf_counter()
                async with session.get(url + path) as answer:
                    body = await answer.json()
                    assert answer.status == 200, body
                    assert body["tasks"], body
                seconds.append(time.perf_counter() - began)
            figures[path] = (percentile(seconds, 0.5) * 1000, percentile(seconds, 0.95) * 1000)
    return figures


async def _fill_sqlite(settings: Settings) -> None:
    store = SqliteStore(settings.data_dir / "harness.db")
    await store.open()
    try:
        await fill_history(store)
    finally:
        await store.close()


async def _fill_mongo(uri: str) -> None:
    async with _filled_mongo(uri):
        pass


def compare() -> None:
    """Measure both stores, and print a table."""
    table = Table("request", "SQLite p50", "p95", "MongoDB p50", "p95", title="ms, over HTTP")
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as name:
        folder = Path(name)
        settings = Settings(data_dir=folder / "data")
        asyncio.run(_fill_sqlite(settings))
        with running_server(folder, settings=settings) as server:
            sqlite = asyncio.run(measure(server.url))
        mongo_server = MongoServer(folder / "mongo")
        mongo_server.start()
        try:
            asyncio.run(_fill_mongo(mongo_server.uri))
            settings = Settings.model_validate({"data_dir": folder / "other", "mongodb_uri": mongo_server.uri})
            with running_server(folder, settings=settings, HARNESS_MONGODB_URI=mongo_server.uri) as server:
                mongo = asyncio.run(measure(server.url))
        finally:
            mongo_server.stop()
    for path in PATHS:
        table.add_row(path, *(f"{value:.1f}" for value in (*sqlite[path], *mongo[path])))
    Console().print(table)
    worst = max(p95 for figures in (sqlite, mongo) for _, p95 in figures.values())
    print(f"the worst 95th percentile is {worst:.1f} ms; the goal is {GOAL_MS:g} ms")
