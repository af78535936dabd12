"""The product in this process, as the benchmarks use it: a store of its own, a real scheduler and worker, and their counts."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from harness.executor import AgentExecutor
from harness.models import Agent, AgentDraft, Task, TaskStatus
from harness.observed import observed_store
from harness.ports import Sandbox, Store
from harness.sandbox.engine import Engine
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.telemetry import Telemetry

#: Bound on one task, in seconds.
TASK_SECONDS = 300


class Ends(Telemetry):
    """Knows when tasks became final in the store, and how often each of its methods was called."""

    def __init__(self) -> None:
        self.store_calls: Counter[str] = Counter()
        self._at: dict[int, float] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._failures: list[str] = []

    def store_called(self, method: str, seconds: float, error: BaseException | None) -> None:
        self.store_calls[method] += 1

    def task_ended(self, task: Task) -> None:
        if task.status is not TaskStatus.COMPLETED:
            self._failures.append(f"task {task.id} is {task.status}: {task.error}")
        self._at[task.id] = time.perf_counter()
        if waiting := self._waiting.pop(task.id, None):
            waiting.set_result(None)

    def check(self) -> None:
        """End the benchmarks if a task failed: what such a run took says nothing."""
        if self._failures:
            raise SystemExit(self._failures[0])

    @property
    def at(self) -> Mapping[int, float]:
        """When tasks ended, by ``time.perf_counter``."""
        return self._at

    async def of(self, task_id: int) -> float:
        """Wait for a task's end; return when it was, by ``time.perf_counter``."""
        if task_id not in self._at:
            waiting = self._waiting.setdefault(task_id, asyncio.get_running_loop().create_future())
            async with asyncio.timeout(TASK_SECONDS):
                await waiting
        self.check()
        return self._at[task_id]


class Service:
    """A scheduler with its worker, and what they were seen to do."""

    def __init__(self, scheduler: TaskScheduler, executor: AgentExecutor, store: Store, ends: Ends) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.store = store
        self.ends = ends

    async def create(self, name: str, code: str, **config: Any) -> Agent:
        """Store an agent."""
        return await self.store.create_agent(AgentDraft(name=name, code=code, config=config))

    async def run(self, agent: Agent) -> float:
        """Enqueue a task and wait until it is final in the store; return the seconds between."""
        began = time.perf_counter()
        task = await self.scheduler.trigger_now(agent.id)
        return await self.ends.of(task.id) - began

    async def idle(self) -> None:
        """Wait until no run is left, with all that comes after a task's end."""
        async with asyncio.timeout(TASK_SECONDS):
            while self.scheduler.running:  # noqa: ASYNC110 - what it waits for has no event of its own
                await asyncio.sleep(0.005)


@asynccontextmanager
async def started(
    store: Store, sandbox: Sandbox, settings: Settings, *, max_concurrent: int = 5
) -> AsyncIterator[Service]:
    """Start a scheduler on an open store; stop it at the end."""
    ends = Ends()
    executor = AgentExecutor(store=observed_store(store, ends), sandbox=sandbox, settings=settings)
    scheduler = TaskScheduler(max_concurrent, executor=executor)
    await scheduler.start()
    try:
        yield Service(scheduler, executor, store, ends)
    finally:
        await scheduler.stop(drain_seconds=0)


def count_calls(engine: Engine) -> Counter[str]:
    """Return what counts the calls of an engine from now on, by the name of the SDK's method, or of ours."""
    counts: Counter[str] = Counter()

    def counted(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            counts[args[0].__name__ if name == "call" else name] += 1
            return await method(*args, **kwargs)

        return call

    for name, method in inspect.getmembers(engine, inspect.iscoroutinefunction):
        if not name.startswith("_") and name != "close":
            setattr(engine, name, counted(name, method))
    return counts
