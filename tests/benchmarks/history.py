"""What a run and the usual questions cost as the store fills up. Containers are faked: a real one costs the same each time.

SQLite, the embedded store. `store` holds more of its calls to a bound.
"""

from __future__ import annotations

from tests.benchmarks.bench import Bench
from tests.benchmarks.figures import Found, Row, milliseconds, row
from tests.benchmarks.service import Service, started
from tests.benchmarks.store import AGENTS, Call, add_history, durations

from harness.store.sqlite import SqliteStore
from harness.testing import FakeSandbox


async def _measure(bench: Bench, history: int) -> dict[str, list[float]]:
    """Return seconds, by what took them, and the bytes of the store per task of the history."""
    async with bench.runtime(keeps_all=True) as runtime:
        store = runtime.store
        assert isinstance(store, SqliteStore)
        async with started(store, FakeSandbox(), runtime.settings) as service:
            agents = [(await service.create(f"agent {number}", "pass")).id for number in range(AGENTS)]
            before = await _bytes(store)
            await add_history(store, history)
            grown = (await _bytes(store) - before) / history
            calls: dict[str, Call] = {
                "enqueued → final, no container": lambda: _run(service, agents[0]),
                "first page of 100 tasks": store.list_tasks,
                "an agent's page of 100": lambda: store.list_tasks(agent_id=agents[0]),
                "count of the queue": store.queue_stats,
            }
            found = {name: await durations(bench.sizes.history_runs, call) for name, call in calls.items()}
    return found | {"store": [grown]}


async def _run(service: Service, agent_id: int) -> float:
    return await service.run(await service.store.get_agent(agent_id))


async def _bytes(store: SqliteStore) -> int:
    return await store._file.read(
        lambda db: int(
            db.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
        )
    )


async def measure(bench: Bench) -> Found:
    """Measure at each size of the history."""
    found = Found("history", "Cost as history grows")
    by_size = {history: await _measure(bench, history) for history in bench.sizes.history}
    first = bench.sizes.history[0]
    for what in by_size[first]:
        base: Row | None = None
        for history, measured in by_size.items():
            name = f"{what}, {history:,} tasks"
            if what == "store":
                next_row = row(f"bytes per task, {history:,} tasks", "B", measured[what], beside=base)
            else:
                next_row = milliseconds(name, measured[what], beside=base)
            base = base or next_row
            found.rows.append(next_row)
    found.notes.append("each task of the history has a result of 400 characters and no log")
    return found
