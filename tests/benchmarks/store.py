"""The embedded store under 100,000 tasks of history and a backlog of 5,000: what is asked of it all the time."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.models import AgentDraft, Claim, FirePlan, NewTask, ScheduleState, TaskStatus, WhenBusy
from harness.store.sqlite import SqliteStore

HISTORY = 100_000
AGENTS = 100
BACKLOG = 5_000
RUNS = 21
#: The goal for the median of each call.
GOAL_MS = 10.0

_FILL = f"""
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
    INSERT INTO tasks (agent_id, status, "trigger", scheduled_at, created_at, fence, priority, retry_count,
        max_retries, skipped_count, save_handoff, max_active, attempts, result)
    SELECT 1 + n % {AGENTS}, iif(n % 10, 'completed', 'failed'), 'schedule', n, n, 1, 0, 0, 3, 0, 1, 1, '[]',
        hex(zeroblob(200))
    FROM numbers"""

Call = Callable[[], Awaitable[object]]


async def durations(runs: int, call: Call) -> list[float]:
    """Return the seconds of each of some calls."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return seconds


async def measure(runs: int, call: Call) -> float:
    """Return the median of a call, in milliseconds."""
    return statistics.median(await durations(runs, call)) * 1000


async def add_history(store: SqliteStore, count: int) -> None:
    """Store final tasks of the first `AGENTS` agents."""
    # By hand, as years of running would; the store has no call for the past.
    await store._file.write(lambda db: db.execute(_FILL, (count,)))


async def fill(store: SqliteStore) -> list[int]:
    """Store the history, the backlog, and schedules that lie ahead; return the agents."""
    drafts = [AgentDraft(name=f"agent {number}", code="pass") for number in range(AGENTS)]
    agents = [agent.id for agent in await asyncio.gather(*map(store.create_agent, drafts))]
    await add_history(store, HISTORY)
    ahead = await store.now() + timedelta(hours=1)
    await store.put_schedules(
        [
            ScheduleState(agent_id=agent, agent_version=1, anchor_at=ahead, next_fire_at=ahead, due_at=ahead)
            for agent in agents
        ]
    )
    waiting = [
        NewTask(agent_id=agents[number % AGENTS], max_active=60, when_busy=WhenBusy.WAIT)
        for number in range(BACKLOG)
    ]
    await asyncio.gather(*map(store.create_task, waiting))
    return agents


def calls_of(store: SqliteStore, agents: list[int]) -> dict[str, Call]:
    """Return what is measured."""
    claim = Claim(owner="bench", lease_seconds=300)
    all_pages, one = store.list_tasks, agents[0]
    return {
        "claim 5 of the backlog": lambda: store.claim_tasks(claim, limit=5),
        "when something falls due next": store.next_due_at,
        "expired leases": store.expired_tasks,
        "due schedules": store.due_schedules,
        "first page of 100 tasks": all_pages,
        "page at 90,000": lambda: all_pages(offset=90_000),
        "an agent's page": lambda: all_pages(agent_id=one),
        "an agent's page at 900": lambda: all_pages(agent_id=one, offset=900),
        "failed tasks": lambda: all_pages(status=TaskStatus.FAILED),
        "count of all tasks": lambda: all_pages(limit=1),
        "count of a status": lambda: all_pages(limit=1, status=TaskStatus.COMPLETED),
        "store a task": lambda: store.create_task(NewTask(agent_id=one, when_busy=WhenBusy.WAIT)),
        "5 agents and their handoffs": lambda: store.load_agents(agents[:5]),
    }


async def replace_running(store: SqliteStore, count: int) -> float:
    """Return the milliseconds of firing schedules whose agents all run, and whose policy is `cancel_running`."""
    drafts = [AgentDraft(name=f"busy {number}", code="pass") for number in range(count)]
    agents = [agent.id for agent in await asyncio.gather(*map(store.create_agent, drafts))]
    now = datetime.now(UTC)
    states = await store.put_schedules(
        [ScheduleState(agent_id=agent, agent_version=1, anchor_at=now, next_fire_at=now) for agent in agents]
    )
    claim = Claim(owner="bench", lease_seconds=300)
    await asyncio.gather(*(store.create_task(NewTask(agent_id=agent), claim=claim) for agent in agents))
    plans = [
        FirePlan(
            before=state,
            tasks=(NewTask(agent_id=state.agent_id, fire_at=now, when_busy=WhenBusy.REPLACE),),
            next_fire_at=None,
            due_at=None,
        )
        for state in states
    ]
    began = time.perf_counter()
    await store.fire_schedules(plans)
    return (time.perf_counter() - began) * 1000


async def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as folder:
        store = SqliteStore(Path(folder) / "harness.db")
        await store.open()
        agents = await fill(store)
        medians = {name: await measure(RUNS, call) for name, call in calls_of(store, agents).items()}
        replaced = await replace_running(store, 1000)
        await store.close()
    table = Table(title=f"{HISTORY:,} tasks of history, {BACKLOG:,} pending; medians of {RUNS}")
    table.add_column("")
    table.add_column("ms", justify="right")
    for name, median in medians.items():
        table.add_row(name, f"{median:.1f}")
    Console(width=110).print(table)
    print(f"firing 1,000 agents that run, under cancel_running: {replaced:.0f} ms")
    slow = [name for name, median in medians.items() if median >= GOAL_MS]
    print(f"the goal is {GOAL_MS:g} ms each; over it: {', '.join(slow) or 'none'}")
