"""What measuring costs: calls of an SQLite store and whole runs, plain and observed, in turns. Containers are faked; a real
one adds 100 ms and more to each run.

``python -m tests.benchmarks.telemetry``. The goal is less than 3 % of a run; a call of the store takes 3 µs more.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from harness.executor import AgentExecutor
from harness.models import AgentDraft, Claim, NewTask
from harness.observed import observed_sandbox, observed_store
from harness.ports import Store
from harness.settings import Settings
from harness.store.sqlite import SqliteStore
from harness.telemetry import Telemetries, Telemetry
from harness.testing import FakeSandbox
from harness_server.metrics import Metrics
from harness_server.scraping import Scraper
from harness_server.tracing import Tracing

ROUNDS = 200
CALLS = 20
RUNS = 1
HISTORY = 100_000

Act = Callable[[], Awaitable[object]]


class _Nowhere(SpanExporter):
    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def in_turns(acts: dict[str, Act], count: int) -> dict[str, float]:
    """Return the microseconds of one act, in the quickest of rounds that take turns: what others do only adds to it."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(ROUNDS):
        for name, act in acts.items():
            began = time.perf_counter()
            for _ in range(count):
                await act()
            seconds[name].append((time.perf_counter() - began) / count)
    return {name: min(values) * 1e6 for name, values in seconds.items()}


def show(what: str, found: dict[str, float]) -> None:
    """Print a line, with each in relation to the first."""
    base = next(iter(found.values()))
    figures = "; ".join(f"{name} {value:.1f} µs ({value / base - 1:+.1%})" for name, value in found.items())
    print(f"{what}: {figures}")


async def measure(folder: Path) -> None:
    """Measure all and print it."""
    store = SqliteStore(folder / "bench.db")
    await store.open()
    tracing = Tracing(_Nowhere())
    parts: dict[str, Telemetry | None] = {
        "plain": None,
        "metrics": Metrics(),
        "metrics and traces": Telemetries(Metrics(), tracing),
    }
    agent = await store.create_agent(AgentDraft(name="bench", code="pass"))
    task = await store.create_task(NewTask(agent_id=agent.id))
    stores: dict[str, Store] = {
        name: store if part is None else observed_store(store, part) for name, part in parts.items()
    }

    lease = Claim(owner="me", lease_seconds=3600)
    (task,) = await store.claim_tasks(lease, limit=1)
    writes: dict[str, Act] = {
        name: partial(each.extend_lease, task.id, task.fence, 3600) for name, each in stores.items()
    }
    show("write a lease", await in_turns(writes, CALLS))
    reads: dict[str, Act] = {name: partial(each.get_task, task.id) for name, each in stores.items()}
    show("read a task", await in_turns(reads, CALLS))

    runs: dict[str, Act] = {}
    for name, part in parts.items():
        mine = await store.create_agent(AgentDraft(name=name, code="pass"))
        sandbox = FakeSandbox() if part is None else observed_sandbox(FakeSandbox(), part)
        executor = AgentExecutor(store=stores[name], sandbox=sandbox, settings=Settings(data_dir=folder))
        runs[name] = partial(executor.execute_agent, mine.id)
    show("run without a container", await in_turns(runs, RUNS))
    tracing.close()

    await measure_scrape(store, agent.id)
    await store.close()


async def measure_scrape(store: SqliteStore, agent_id: int) -> None:
    """Measure the questions of a scrape behind a long history."""
    columns = (
        'agent_id, status, "trigger", scheduled_at, created_at, fence, priority, retry_count, max_retries, '
        "skipped_count, save_handoff, max_active, attempts"
    )
    sql = f"""
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {HISTORY})
        INSERT INTO tasks ({columns}) SELECT {agent_id}, 'completed', 'manual', 0, 0, 1, 0, 0, 0, 0, 1, 1, '[]' FROM n"""
    await store._file.write(lambda db: db.execute(sql))
    scraper = Scraper(Metrics(), {}, store.queue_stats, lambda: 0)
    asked = await in_turns({"queue_stats": store.queue_stats}, CALLS)
    scraped = await in_turns({"a scrape": lambda: scraper.scrape("")}, 1)
    show(f"with {HISTORY:,} tasks", asked | scraped)
    await scraper.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as place:
        asyncio.run(measure(Path(place)))
