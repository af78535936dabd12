"""What a dashboard asks a server all the time, under 100,000 tasks of history, on both stores.

The history is made of two tasks that the store itself wrote, one completed and one failed, copied with other ids and
agents; so every record has the form that years of running would have left. In MongoDB the copies are there before the
indexes are: the wire-protocol server of the tests takes ten times as long the other way round. ``HARNESS_TEST_MONGODB_URI``
names a server to measure instead of that one, in a database that is dropped at the end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import secrets
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from tests.benchmarks.scheduling import percentile
from tests.mongo import MongoServer
from tests.services import running_server

from harness.clock import SystemClock
from harness.models import (
    AgentDraft,
    Claim,
    LogChunk,
    NewTask,
    Outcome,
    Reason,
    ScheduleState,
    Usage,
    UsageSample,
    log_seq,
)
from harness.ports import Store
from harness.settings import Settings
from harness.store.mongo.driver import connect
from harness.wiring import make_store

HISTORY = 100_000
AGENTS = 100
#: In each task that is copied.
SAMPLES = 500
REQUESTS = 100
#: Requests before those that are measured: the first one counts what later ones know.
WARM_UP = 2
#: Bound on the 95th percentile of each, in milliseconds.
GOAL_MS = 50.0

#: Nothing is deleted meanwhile: looking for what is too old, at the start and then hourly, takes the wire-protocol server
#: of the tests some ten seconds, since it reads whole records.
_NO_RETENTION = {
    f"HARNESS_RETENTION_{name}": "0"
    for name in ("TASK_DAYS", "MAX_TASKS", "LOG_DAYS", "ARTIFACT_DAYS", "MAX_ARTIFACTS")
}

#: What the server and this program cost by themselves, on this machine at this moment.
CONTROL = "/healthz"
PATHS = (
    CONTROL,
    "/api/tasks",
    "/api/tasks?status=completed",
    "/api/tasks?status=failed",
    "/api/tasks?status=running",
    "/api/tasks?agent_id=2",
    "/api/tasks?offset=5000",
    "/api/tasks?offset=90000",
    "/api/tasks?status=completed&offset=60000",
    "/api/tasks/agents/2/tasks",
    "/api/tasks/agents/2/tasks?offset=900",
    "/api/tasks/agents/2/tasks?status=completed&limit=10",
    "/api/tasks/1",
    "/api/tasks/1/stats",
    "/api/tasks/1/logs?follow=false",
    "/api/agents",
    "/api/agents/2/schedule",
    "/api/audit",
    "/metrics",
)


@dataclass(frozen=True)
class Figures:
    """One kind of request on one store, in milliseconds."""

    store: str
    path: str
    first: float
    p50: float
    p95: float


async def fill(store: Store) -> list[int]:
    """Store agents with schedules that lie ahead, and one task that completed and one that failed; return their ids."""
    ahead = await store.now() + timedelta(hours=1)
    config = {"schedule": {"type": "interval", "interval_seconds": 86_400}}
    states = []
    for number in range(AGENTS):
        agent = await store.create_agent(AgentDraft(name=f"agent {number}", code="pass", config=config))
        states.append(
            ScheduleState(
                agent_id=agent.id, agent_version=1, anchor_at=ahead, next_fire_at=ahead, due_at=ahead
            )
        )
    await store.put_schedules(states)
    return [
        await _run(store, states[0].agent_id, reason) for reason in (Reason.COMPLETED, Reason.EXIT_NONZERO)
    ]


async def _run(store: Store, agent_id: int, reason: Reason) -> int:
    now = await store.now()
    new = NewTask(agent_id=agent_id, fire_at=now, context={"known": ["item"] * 10})
    task = await store.create_task(new, claim=Claim(owner="bench", lease_seconds=300))
    samples = [
        UsageSample(
            seq=log_seq(task.fence, n),
            at=now,
            memory_bytes=n,
            cpu_percent=50.0,
            cpu_seconds=n / 2,
            processes=3,
        )
        for n in range(SAMPLES)
    ]
    await store.append_samples(task.id, task.fence, samples)
    output = LogChunk(seq=log_seq(task.fence, 0), stream="stdout", data=b"a line of output\n" * 200, at=now)
    await store.append_logs(task.id, task.fence, [output])
    usage = Usage(
        peak_memory_bytes=1 << 24, cpu_seconds=1.5, wall_seconds=2.5, output_bytes=3400, peak_processes=3
    )
    is_ok = reason is Reason.COMPLETED
    outcome = Outcome(
        reason=reason, exit_code=0 if is_ok else 1, usage=usage,
        result="what it found " * 15 if is_ok else None, error=None if is_ok else "it exited with code 1",
    )  # fmt: skip
    return (await store.finish_task(task.id, task.fence, outcome)).id


def copies(completed: Mapping[str, Any], failed: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """Yield the history as the store's own records.

    Args:
        completed: A record of a task.
        failed: Another one.
        key: The field of the id.
    """
    for number in range(failed[key] + 1, HISTORY + 1):
        agent_id = 1 + number % AGENTS
        record = completed if number % 10 else failed
        yield {**record, key: number, "agent_id": agent_id, "fire_key": f"{agent_id}:{number}"}


def copy_in_sqlite(path: Path, task_ids: list[int]) -> None:
    """Write the history."""
    with closing(sqlite3.connect(path)) as db, db:
        db.row_factory = sqlite3.Row
        both = [
            dict(db.execute("SELECT * FROM tasks WHERE id = ?", (task_id,)).fetchone())
            for task_id in task_ids
        ]
        names = ", ".join(f'"{name}"' for name in both[0])
        sql = f"INSERT INTO tasks ({names}) VALUES ({', '.join('?' * len(both[0]))})"
        db.executemany(sql, (tuple(record.values()) for record in copies(both[0], both[1], "id")))


async def copy_in_mongodb(uri: str, database: str, task_ids: list[int]) -> None:
    """Write the history, and take the indexes away; the next store that is opened makes them."""
    async with connect(uri) as client:
        tasks = client[database]["tasks"]
        both = [await tasks.find_one({"_id": task_id}) or {} for task_id in task_ids]
        await tasks.drop_indexes()
        history = copies(both[0], both[1], "_id")
        while batch := list(itertools.islice(history, 2000)):
            await tasks.insert_many(batch, ordered=False)
        await client[database]["counters"].update_one({"_id": "tasks"}, {"$set": {"value": HISTORY}})


async def prepare(settings: Settings) -> None:
    """Fill a store."""
    store = make_store(settings, SystemClock())
    await store.open()
    try:
        task_ids = await fill(store)
    finally:
        await store.close()
    if settings.mongodb_uri is None:
        await asyncio.to_thread(copy_in_sqlite, settings.data_dir / "harness.db", task_ids)
        return
    await copy_in_mongodb(settings.mongodb_uri.get_secret_value(), settings.mongodb_database, task_ids)
    # Opened once more, to make the indexes with all the time it takes.
    uri = settings.mongodb_uri.get_secret_value()
    patient = f"{uri}{'&' if '?' in uri else '?'}socketTimeoutMS=300000"
    store = make_store(settings.model_copy(update={"mongodb_uri": SecretStr(patient)}), SystemClock())
    await store.open()
    await store.close()


async def measure(store: str, url: str) -> list[Figures]:
    """Ask for everything, one request after the other."""
    figures = []
    async with aiohttp.ClientSession() as session:
        for path in PATHS:
            seconds = []
            for _ in range(WARM_UP + REQUESTS):
                began = time.perf_counter()
                async with session.get(url + path) as answer:
                    body = await answer.text()
                    if answer.status != 200:
                        raise SystemExit(f"{path} was answered with {answer.status}: {body}")
                seconds.append(time.perf_counter() - began)
            warm = seconds[WARM_UP:]
            figures.append(
                Figures(
                    store,
                    path,
                    *(
                        round(value * 1000, 1)
                        for value in (seconds[0], statistics.median(warm), percentile(warm, 0.95))
                    ),
                )
            )
    return figures


def _measure_store(name: str, folder: Path, settings: Settings) -> list[Figures]:
    began = time.perf_counter()
    asyncio.run(prepare(settings))
    print(f"{name}: {HISTORY:,} tasks of {AGENTS} agents stored in {time.perf_counter() - began:.0f} s")
    environment = {**_NO_RETENTION, "HARNESS_MONGODB_DATABASE": settings.mongodb_database}
    with running_server(folder, settings=settings, **environment) as server:
        return asyncio.run(measure(name, server.url))


@contextmanager
def _mongodb(folder: Path) -> Iterator[str]:
    """Yield the address of the server that the environment names, else of one that is started."""
    if named := os.environ.get("HARNESS_TEST_MONGODB_URI"):
        yield named
        return
    server = MongoServer(folder / "mongo")
    server.start()
    try:
        yield server.uri
    finally:
        server.stop()


async def _drop(uri: str, database: str) -> None:
    async with connect(uri) as client:
        await client.drop_database(database)


def compare(json_path: Path | None) -> None:
    """Measure both stores, print a table, and write the figures as JSON where that is wanted."""
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as name:
        folder = Path(name)
        figures = _measure_store("SQLite", folder, Settings(data_dir=folder / "data"))
        with _mongodb(folder) as uri:
            database = f"harness_bench_{secrets.token_hex(4)}"
            settings = Settings(
                data_dir=folder / "unused", mongodb_uri=SecretStr(uri), mongodb_database=database
            )
            try:
                figures += _measure_store("MongoDB", folder, settings)
            finally:
                asyncio.run(_drop(uri, database))
    table = Table(
        title=f"{HISTORY:,} tasks; ms over HTTP, {REQUESTS} requests each", caption=platform.platform()
    )
    for column in ("", "store", "first", "p50", "p95", "goal for p95"):
        table.add_column(column, justify="left" if column in ("", "store") else "right")
    for row in sorted(figures, key=lambda row: PATHS.index(row.path)):
        is_control = row.path == CONTROL
        table.add_row(
            "control: nothing stored is read" if is_control else row.path,
            row.store, f"{row.first}", f"{row.p50}", f"{row.p95}", "" if is_control else f"{GOAL_MS:g}",
        )  # fmt: skip
    Console(width=110).print(table)
    slow = [f"{row.path} on {row.store}" for row in figures if row.p95 >= GOAL_MS]
    print(f"the goal is a p95 under {GOAL_MS:g} ms each; over it: {', '.join(slow) or 'none'}")
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(row) for row in figures], indent=2) + "\n")
