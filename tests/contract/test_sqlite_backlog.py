"""The SQLite store under a long history and a long backlog: who is next does not depend on how it is looked for."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta

import pytest
from tests.contract.places import claim, draft, new_task, running_task

from harness.models import WhenBusy
from harness.store.sqlite.slots import claimable
from harness.testing import FakeClock, MemoryStore

#: More than any test stores.
ALL = 100_000

FILL = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
    INSERT INTO tasks (agent_id, status, "trigger", scheduled_at, created_at, fence, priority, retry_count,
        max_retries, skipped_count, save_handoff, max_active, attempts)
    SELECT 1, 'completed', 'schedule', n, n, 1, 0, 0, 3, 0, 1, 1, '[]' FROM numbers"""


@pytest.fixture
async def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[MemoryStore]:
    made = MemoryStore(clock=clock)
    await made.open()
    yield made
    await made.close()


async def in_order(store: MemoryStore, now: datetime, limit: int) -> list[int]:
    """Return the first tasks that a claim would take."""
    found = await store._file.read(lambda db: claimable(db, now, limit=limit))
    return [candidate.task_id for candidate in found]


@pytest.mark.parametrize("seed", range(20))
async def test_the_first_of_a_backlog_are_the_first_of_all_of_it(
    store: MemoryStore, clock: FakeClock, seed: int
) -> None:
    chance = random.Random(seed)
    agents = [(await store.create_agent(draft(f"agent {n}"))).id for n in range(6)]
    slots = {agent_id: chance.choice([2, 5, 50]) for agent_id in agents}
    now = clock.now()
    for _ in range(80):
        agent_id = chance.choice(agents)
        await store.create_task(
            new_task(
                agent_id,
                max_active=slots[agent_id] + chance.choice([0, 0, 1]),
                when_busy=WhenBusy.WAIT,
                priority=chance.choice([0, 0, 0, 1, 5]),
                due_at=now + timedelta(seconds=chance.randint(-20, 2)),
            )
        )
    await store.claim_tasks(claim(), limit=6)
    everything = await in_order(store, now, ALL)
    assert len(everything) >= 10

    for limit in (1, 2, 3, 5, 8, 13, 21):
        assert await in_order(store, now, limit) == everything[:limit]


async def test_work_is_found_at_the_same_cost_after_any_history(store: MemoryStore) -> None:
    agent = await store.create_agent(draft())
    for _ in range(3):
        await store.create_task(new_task(agent.id))
        await running_task(store, agent.id)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "claim": lambda: store.claim_tasks(claim(), limit=1),
        "next": store.next_due_at,
        "expired": store.expired_tasks,
        "due": store.due_schedules,
        "marks": store.due_marks,
        "cancel": lambda: store.cancel_requests("me"),
        "page": lambda: store.list_tasks(limit=1),
        "load": lambda: store.load_agents([agent.id]),
    }

    costs = []
    for count in (100, 10_000):
        await store._file.write(lambda db, count=count: db.execute(FILL, {"count": count}).rowcount)  # type: ignore[misc]
        costs.append({name: await steps(store, call) for name, call in calls.items()})

    few, many = costs
    for name, cost in few.items():
        assert 0 < many[name] <= cost * 1.2, name


async def steps(store: MemoryStore, call: Callable[[], Awaitable[object]]) -> int:
    """Return how many instructions SQLite's machine takes for a call: a cost without the machine's noise."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    def watch(handler: Callable[[], None] | None) -> Callable[[sqlite3.Connection], None]:
        return lambda db: db.set_progress_handler(handler, 1)

    await store._file.read(watch(step))
    await call()
    await store._file.read(watch(None))
    return count
