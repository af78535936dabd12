"""Where the contract suite opens stores: each `Place` is one set of data, opened through as many stores as a test asks."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from harness.models import (
    AgentDraft,
    Claim,
    FirePlan,
    LogChunk,
    NewArtifact,
    NewTask,
    Outcome,
    Reason,
    ScheduleState,
    Task,
    TaskStatus,
    WhenBusy,
    log_seq,
)
from harness.ports import Store
from harness.store.mongo import MongoStore
from harness.store.sqlite import SqliteStore
from harness.testing import FakeClock, MemoryStore

MEMORY, SQLITE, MONGOMOCK, WIRE, MOTOR, NAMED = "memory", "sqlite", "mongomock", "wire", "motor", "named"

#: Servers and files that several stores can open at once, with races as in production.
REAL = [SQLITE, WIRE, MOTOR] + [NAMED] * ("HARNESS_TEST_MONGODB_URI" in os.environ)
#: mongomock shares data between stores, but never yields: no race can show on it.
SHARED = [*REAL, MONGOMOCK]
EVERY = [MEMORY, *SHARED]

LEASE_SECONDS = 30.0


class Place(Protocol):
    """One set of data, empty at first."""

    clock: FakeClock

    def make(self) -> Store:
        """Return a new store on the data, not opened, as another process would have."""

    def expression(self) -> str:
        """Return Python that makes a store on the data in another process."""

    async def pretend_newer(self) -> None:
        """Write another schema version into the data, as a newer release would."""

    async def spoil_task(self, task_id: int) -> None:
        """Give a task a status that no release knows."""

    async def spoil_agent(self, agent_id: int) -> None:
        """Make an agent's config something else than JSON."""

    async def content(self) -> object:
        """Return something that changes whenever the data does."""

    async def clean(self) -> None:
        """Close every store made and remove the data."""


class _Place:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.stores: list[Store] = []

    def keep(self, store: Store) -> Store:
        self.stores.append(store)
        return store

    def expression(self) -> str:
        raise NotImplementedError

    async def pretend_newer(self) -> None:
        raise NotImplementedError

    async def spoil_task(self, task_id: int) -> None:
        raise NotImplementedError

    async def spoil_agent(self, agent_id: int) -> None:
        raise NotImplementedError

    async def content(self) -> object:
        raise NotImplementedError

    async def clean(self) -> None:
        for store in self.stores:
            await store.close()


class MemoryPlace(_Place):
    def make(self) -> Store:
        return self.keep(MemoryStore(clock=self.clock))


class SqlitePlace(_Place):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "data" / "store.sqlite3"

    def make(self) -> Store:
        return self.keep(SqliteStore(self.path, clock=self.clock))

    def expression(self) -> str:
        return f"SqliteStore(Path({str(self.path)!r}))"

    async def pretend_newer(self) -> None:
        self.execute("UPDATE meta SET schema_version = 7")

    async def spoil_task(self, task_id: int) -> None:
        self.execute("UPDATE tasks SET status = 'dreaming' WHERE id = ?", task_id)

    async def spoil_agent(self, agent_id: int) -> None:
        self.execute("UPDATE agents SET config = 'dreams' WHERE id = ?", agent_id)

    def execute(self, sql: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(sql, values).fetchall()

    async def content(self) -> object:
        return self.path.read_bytes()


class MongoPlace(_Place):
    def __init__(self, make_client: Callable[[], Any], uri: str = "") -> None:
        super().__init__()
        self.uri = uri
        self.database = f"harness_test_{uuid.uuid4().hex}"
        self.make_client = make_client
        self.clients: list[Any] = []

    def client(self) -> Any:
        self.clients.append(self.make_client())
        return self.clients[-1]

    def make(self) -> Store:
        return self.keep(MongoStore(self.client(), database=self.database, clock=self.clock))

    def expression(self) -> str:
        return f"MongoStore.connect({self.uri!r}, database={self.database!r})"

    async def pretend_newer(self) -> None:
        raw = self.raw()
        await raw["meta"].update_one({"_id": "store"}, {"$set": {"schema_version": 7}}, upsert=True)

    async def spoil_task(self, task_id: int) -> None:
        await self.raw()["tasks"].update_one({"_id": task_id}, {"$set": {"status": "dreaming"}})

    async def spoil_agent(self, agent_id: int) -> None:
        await self.raw()["agents"].update_one({"_id": agent_id}, {"$set": {"config": "dreams"}})

    async def content(self) -> object:
        raw = self.raw()
        names = sorted(await raw.list_collection_names())
        return {name: await raw[name].find({}).to_list(None) for name in names}

    def raw(self) -> Any:
        return self.client()[self.database]

    async def clean(self) -> None:
        await super().clean()
        if self.clients:
            await self.clients[0].drop_database(self.database)
        for client in self.clients:
            closing = client.close()
            if isinstance(closing, Awaitable):
                await closing


def draft(name: str = "agent", **fields: Any) -> AgentDraft:
    return AgentDraft(**({"name": name, "code": "print(1)"} | fields))


def claim(owner: str = "runner-1", lease_seconds: float = LEASE_SECONDS) -> Claim:
    return Claim(owner=owner, lease_seconds=lease_seconds)


def completed(**fields: Any) -> Outcome:
    values: dict[str, Any] = {"reason": Reason.COMPLETED, "exit_code": 0}
    return Outcome(**(values | fields))


def state(**fields: Any) -> NewArtifact:
    return NewArtifact(state=fields)


#: More slots than a test takes, for tests that are not about slots.
MANY = 100

CRON = {"schedule": {"type": "cron", "cron": "*/5 * * * *"}}


def new_task(agent_id: int, **fields: Any) -> NewTask:
    return NewTask(**({"agent_id": agent_id, "max_active": MANY} | fields))


async def running_task(store: Store, agent_id: int, **fields: Any) -> Task:
    return await store.create_task(new_task(agent_id, **fields), claim=claim())


async def claim_one(store: Store, owner: str = "runner-1", lease_seconds: float = LEASE_SECONDS) -> Task:
    (task,) = await store.claim_tasks(claim(owner, lease_seconds), limit=1)
    return task


async def failed_task(store: Store, agent_id: int, **fields: Any) -> Task:
    task = await running_task(store, agent_id, **fields)
    return await store.finish_task(
        task.id, task.fence, Outcome(reason=Reason.EXIT_NONZERO, exit_code=1, error="exit code 1")
    )


async def scheduled_agent(store: Store, name: str = "scheduled") -> ScheduleState:
    """Store an agent with a schedule that is due now; return where that stands."""
    agent = await store.create_agent(draft(name, config=CRON))
    now = await store.now()
    return await put_schedule(
        store, agent_id=agent.id, agent_version=1, next_fire_at=now, due_at=now, anchor_at=now
    )


async def put_schedule(store: Store, **fields: Any) -> ScheduleState:
    (state,) = await store.put_schedules([ScheduleState(**fields)])
    return state


def plan(before: ScheduleState, *tasks: NewTask, minutes: float = 5) -> FirePlan:
    """Return a plan whose next fire is `minutes` after the one before; without `tasks` it fires one."""
    assert before.next_fire_at is not None
    following = before.next_fire_at + timedelta(minutes=minutes)
    fires = tasks or (fire(before),)
    return FirePlan(before=before, tasks=fires, next_fire_at=following, due_at=following)


def fire(before: ScheduleState, *, minutes: float = 0, **fields: Any) -> NewTask:
    """Return the task of the fire `minutes` after the one that is due."""
    assert before.next_fire_at is not None
    at = before.next_fire_at + timedelta(minutes=minutes)
    values: dict[str, Any] = {
        "agent_id": before.agent_id,
        "trigger": "schedule",
        "scheduled_at": at,
        "fire_at": at,
        "when_busy": WhenBusy.SKIP,
    }
    return NewTask(**(values | fields))


async def statuses(store: Store, *task_ids: int) -> list[TaskStatus]:
    return [(await store.get_task(task_id)).status for task_id in task_ids]


async def chunk(
    store: Store, index: int, data: bytes = b"line\n", *, attempt: int = 1, **fields: Any
) -> LogChunk:
    values: dict[str, Any] = {
        "seq": log_seq(attempt, index),
        "stream": "stdout",
        "data": data,
        "at": await store.now(),
    }
    return LogChunk(**(values | fields))
