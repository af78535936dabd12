"""Scheduling beside APScheduler with its durable store: load 10,000 schedules, then 1,000 fall due in one second.

Each contender runs in a process of its own, in turns, on an SQLite file as both are meant to be durable. Runs are faked
in both, so that what is measured is scheduling: from the instant a fire is due to the moment its task is durably
claimed (ours), or its job's next run time durably stored (APScheduler), and handed to the runner. Ours does more from
there on before an agent begins, such as keeping a lease; when its job reaches the sandbox is told beside it.

Loading uses each as its users would. Ours is asynchronous, so `AT_ONCE` agents are stored at a time, each by a call of
its own that returns when it is durable. APScheduler 3's `add_job` is synchronous: one call after the other.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

SCHEDULES = 10_000
#: Calls of ours under way at a time while loading.
AT_ONCE = 100
DUE_AT_ONCE = 1_000
#: Time between the end of loading and the second in which the fires fall due.
LEAD_SECONDS = 5.0


def percentile(values: list[float], share: float) -> float:
    """Return a percentile of unsorted values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(load_seconds: float, lateness: list[float], **more: float) -> None:
    """Print a contender's figures as one line of JSON."""
    figures = {
        "load_seconds": round(load_seconds, 2),
        "memory_mb": round(_peak_kib() / 1024, 1),
        "late_p50_ms": round(statistics.median(lateness) * 1000, 1),
        "late_p99_ms": round(percentile(lateness, 0.99) * 1000, 1),
        "fires": len(lateness),
    }
    print(json.dumps(figures | more))


def _peak_kib() -> int:
    """Return the most memory that this process had; getrusage(2) would tell of what the one that started it had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def run_apscheduler(folder: Path) -> None:
    """Measure APScheduler's asyncio scheduler on its SQLAlchemy store."""
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
    from apscheduler.schedulers.asyncio import AsyncIOScheduler
    from apscheduler.triggers.interval import IntervalTrigger

    async def main() -> None:
        url = f"sqlite:///{folder / 'apscheduler.db'}"
        scheduler = AsyncIOScheduler(jobstores={"default": SQLAlchemyJobStore(url=url)}, timezone=UTC)
        scheduler.start(paused=True)
        began = time.perf_counter()
        for number in range(SCHEDULES - DUE_AT_ONCE):
            scheduler.add_job(_fire, IntervalTrigger(hours=10), args=[0.0], id=f"later-{number}")
        due = due_second(time.perf_counter() - began)
        for number in range(DUE_AT_ONCE):
            trigger = IntervalTrigger(hours=10, start_date=due)
            scheduler.add_job(
                _fire, trigger, args=[due.timestamp()], id=f"due-{number}", misfire_grace_time=60
            )
        load_seconds = time.perf_counter() - began
        scheduler.resume()
        await asyncio.wait_for(_all_fired.wait(), 240)
        report(load_seconds, _LATENESS)
        scheduler.shutdown(wait=False)

    asyncio.run(main())


_LATENESS: list[float] = []
_all_fired = asyncio.Event()


async def _fire(due: float) -> None:
    _LATENESS.append(time.time() - due)
    if len(_LATENESS) == DUE_AT_ONCE:
        _all_fired.set()


def run_ours(folder: Path) -> None:
    """Measure `TaskScheduler` on the embedded store, its runs faked."""
    from harness.executor import AgentExecutor
    from harness.models import AgentDraft
    from harness.ports import SandboxJob
    from harness.run import TaskRun
    from harness.scheduler import TaskScheduler
    from harness.settings import Settings
    from harness.store.sqlite import SqliteStore
    from harness.testing import FakeRun, FakeSandbox

    handed_over_at: list[float] = []
    sandboxed_at: list[float] = []

    class Runner(AgentExecutor):
        def begin(self, *arguments: Any, **more: Any) -> TaskRun:
            handed_over_at.append(time.time())
            return super().begin(*arguments, **more)

    async def main() -> None:
        all_ran = asyncio.Event()

        def behave(_job: SandboxJob) -> FakeRun:
            sandboxed_at.append(time.time())
            if len(sandboxed_at) == DUE_AT_ONCE:
                all_ran.set()
            return FakeRun()

        store = SqliteStore(folder / "harness.db")
        await store.open()
        executor = Runner(store=store, sandbox=FakeSandbox(behave), settings=Settings(data_dir=folder))
        scheduler = TaskScheduler(max_concurrent=DUE_AT_ONCE, executor=executor)

        async def load(name: str, count: int, schedule: dict[str, object]) -> None:
            numbers = iter(range(count))

            async def store_some() -> None:
                for number in numbers:
                    draft = AgentDraft(name=f"{name}-{number}", code="pass", config={"schedule": schedule})
                    await store.create_agent(draft)

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(store_some())

        began = time.perf_counter()
        await load("later", SCHEDULES - DUE_AT_ONCE, {"type": "interval", "interval_minutes": 600})
        due = due_second(time.perf_counter() - began)
        soon = {"type": "interval", "interval_minutes": 600, "start_at": due.isoformat()}
        await load("due", DUE_AT_ONCE, soon)
        created_seconds = time.perf_counter() - began
        began = time.perf_counter()
        await scheduler.start()
        start_seconds = time.perf_counter() - began
        await asyncio.wait_for(all_ran.wait(), 120)
        report(
            created_seconds + start_seconds,
            [at - due.timestamp() for at in handed_over_at],
            start_seconds=round(start_seconds, 2),
            sandbox_p99_ms=round((percentile(sandboxed_at, 0.99) - due.timestamp()) * 1000, 1),
        )
        await scheduler.stop()
        await store.close()

    asyncio.run(main())


def due_second(spent_seconds: float) -> datetime:
    """Return a second that comes when the last schedules are loaded too, at the pace of the others."""
    pace = spent_seconds / (SCHEDULES - DUE_AT_ONCE)
    left = pace * DUE_AT_ONCE * 2 + LEAD_SECONDS
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=round(left))


def measure(contender: str) -> dict[str, float]:
    """Run one contender in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as folder:
        command = [sys.executable, "-m", "tests.benchmarks.scheduling", contender, folder]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    figures: dict[str, float] = json.loads(printed.splitlines()[-1])
    return figures


def compare() -> None:
    """Measure both contenders in turns and print the figures with their ratios."""
    theirs, ours = measure("apscheduler"), measure("ours")
    for name in ("load_seconds", "late_p50_ms", "late_p99_ms", "memory_mb"):
        ratio = theirs[name] / ours[name]
        print(f"{name:>14}: APScheduler {theirs[name]:10.1f}   ours {ours[name]:10.1f}   {ratio:6.1f} times")
    print(f"of our load, {ours['start_seconds']} s are the scheduler's start; the rest is storing the agents")
    print(f"ours in the sandbox: p99 {ours['sandbox_p99_ms']} ms after it was due")


if __name__ == "__main__":
    {"ours": run_ours, "apscheduler": run_apscheduler}[sys.argv[1]](Path(sys.argv[2]))
