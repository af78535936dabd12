"""What tests of workers and schedulers work with: a store in memory, scripted sandboxes, and a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from harness.executor import AgentExecutor
from harness.models import Agent, AgentDraft, NewTask, Task, TaskStatus
from harness.run import RunParts
from harness.settings import Settings
from harness.testing import FakeClock, FakeSandbox, MemoryStore

LEASE_SECONDS = 6.0
#: Bound on what has to come to be while the clock stands still, in real seconds.
PATIENCE_SECONDS = 10.0

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, SKIPPED = TaskStatus


async def eventually(condition: Callable[[], Awaitable[bool] | bool], what: str = "it") -> None:
    """Wait until a condition holds; the store works in a thread, so this takes real time, though little."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                holds = condition()
                if isinstance(holds, Awaitable):
                    holds = await holds
                if holds:
                    return
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true") from None


class Shop:
    """A store, a sandbox, a clock, and an executor on them."""

    def __init__(self, folder: Path, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.sandbox = FakeSandbox()
        self.settings = Settings(data_dir=folder, lease_seconds=lease_seconds)
        self.executor = AgentExecutor(
            store=self.store, sandbox=self.sandbox, clock=self.clock, settings=self.settings
        )
        self.parts = RunParts(self.store, self.sandbox, self.clock, self.settings)

    async def agent(self, name: str = "agent", **config: Any) -> Agent:
        return await self.store.create_agent(AgentDraft(name=name, code="pass", config=config))

    async def pending(self, agent: Agent, **fields: Any) -> Task:
        return await self.store.create_task(NewTask(**({"agent_id": agent.id} | fields)))

    async def agents_with_tasks(self, count: int) -> list[Task]:
        return [await self.pending(await self.agent(f"agent {number}")) for number in range(count)]

    async def statuses(self) -> list[TaskStatus]:
        """Of all tasks, the oldest first."""
        return [task.status for task in reversed((await self.store.list_tasks(limit=1000)).items)]

    async def until_statuses(self, *wanted: TaskStatus) -> None:
        async def holds() -> bool:
            return await self.statuses() == list(wanted)

        try:
            await eventually(holds)
        except AssertionError:
            raise AssertionError(f"{await self.statuses()} instead of {list(wanted)}") from None

    async def until_status(self, task: Task, status: TaskStatus, *, ticking: bool = True) -> Task:
        """Wait until a task stands like this; with `ticking` the clock goes on meanwhile, slowly."""

        async def holds() -> bool:
            if ticking:
                await self.advance(0.1)
            return (await self.store.get_task(task.id)).status is status

        await eventually(holds, f"task {task.id} {status}")
        return await self.store.get_task(task.id)

    async def advance(self, seconds: float, *, step_seconds: float = 0.25) -> None:
        """Move the clock on in small steps, with time for the store's thread after each."""
        end = self.clock.now() + timedelta(seconds=seconds)
        while self.clock.now() < end:
            await self.clock.advance(min(step_seconds, (end - self.clock.now()).total_seconds()))
            # One question through the store's thread: what was asked before is answered then.
            await self.store.now()
            await self.store.list_agents(limit=1)
