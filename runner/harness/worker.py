"""`Worker`: claims due tasks under leases, drives their runs, passes cancellations on, sweeps up after the dead.

Polling is the truth; `wake` only shortens the wait. Any number of workers share a store, and nothing here depends on
what one of them remembers. A worker never cancels a store call that is under way: a claim whose answer is lost would
hold its task until the lease ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from harness.errors import HarnessError
from harness.executor import AgentExecutor
from harness.models import Claim, Reason, Task
from harness.polling import BACK_OFF_SECONDS, Pause
from harness.recovery import sweep
from harness.run import RunParts, TaskRun

logger = logging.getLogger(__name__)

#: Between two looks for cancellations, in seconds.
CANCEL_POLL_SECONDS = 1.0
#: Sweeps per lease.
SWEEPS_PER_LEASE = 3


class Worker:
    """Runs tasks, `max_concurrent` at a time. Started by `start`, ended by `stop`."""

    def __init__(self, executor: AgentExecutor, parts: RunParts, *, max_concurrent: int = 5) -> None:
        """Work with what the executor works with.

        Args:
            executor: Gives runs their limits, and leases their owner.
            parts: As `AgentExecutor.resolve` returned them.
            max_concurrent: Runs at a time.
        """
        self._executor = executor
        self._parts = parts
        self._max_concurrent = max_concurrent
        self._closing = False
        self._pause = Pause(parts.store, parts.clock)
        self._loops: list[asyncio.Task[None]] = []
        self._runs: dict[asyncio.Task[None], TaskRun | None] = {}

    @property
    def running(self) -> int:
        """How many tasks run here now."""
        return len(self._runs)

    def start(self) -> None:
        """Begin to claim."""
        lease_seconds = self._parts.settings.lease_seconds
        self._loops = [
            asyncio.create_task(self._claim_and_run()),
            asyncio.create_task(self._every(CANCEL_POLL_SECONDS, self._pass_cancellations_on)),
            asyncio.create_task(self._every(lease_seconds / SWEEPS_PER_LEASE, self._sweep)),
        ]

    def wake(self) -> None:
        """Look for due tasks at once."""
        self._pause.wake()

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Claim no more; let runs end for `drain_seconds`; stop the rest and hand their tasks back.

        Cancelling this call cuts the drain short: the remaining containers are killed without grace, and their tasks
        handed back all the same.
        """
        self._closing = True
        self.wake()
        try:
            await self._end_of_claiming()
            if self._runs and drain_seconds > 0:
                await asyncio.wait(self._runs, timeout=drain_seconds)
            message = "its runner was shut down"
            await asyncio.gather(*(run.hand_back(message) for run in self._runs.values() if run is not None))
            if self._runs:
                await asyncio.wait(self._runs)
        finally:
            await asyncio.shield(self._end_all())

    async def _end_of_claiming(self) -> None:
        # A claim that is under way may still bring tasks; they are run or handed back like the others.
        if self._loops:
            await asyncio.wait(self._loops[:1])

    async def _end_all(self) -> None:
        tasks = [*self._loops[1:], *self._runs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*self._loops[:1], *tasks, return_exceptions=True)
        self._loops = []

    async def _claim_and_run(self) -> None:
        claim = Claim(owner=self._executor.owner, lease_seconds=self._parts.settings.lease_seconds)
        while not self._closing:
            free = self._max_concurrent - len(self._runs)
            claimed = 0
            if free > 0:
                claimed_at = self._parts.clock.monotonic()
                try:
                    tasks = await self._parts.store.claim_tasks(claim, limit=free)
                except HarnessError as error:
                    logger.warning("claiming failed: %s", error, extra={"action": "claim_failed"})
                    await self._pause.seconds(BACK_OFF_SECONDS)
                    continue
                claimed = len(tasks)
                for task in tasks:
                    self._begin(task, claimed_at)
            if claimed == 0 or free <= 0:
                await self._pause.until_due()

    def _begin(self, task: Task, claimed_at: float) -> None:
        running = asyncio.create_task(self._run(task, claimed_at))
        self._runs[running] = None
        running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        del self._runs[running]
        self.wake()
        if not running.cancelled() and running.exception() is not None:
            logger.error("a run failed unexpectedly", exc_info=running.exception())

    async def _run(self, task: Task, claimed_at: float) -> None:
        try:
            agent = await self._parts.store.get_agent(task.agent_id)
        except HarnessError as error:
            # Its lease runs out, and then somebody else has it.
            logger.error("task %d not begun: %s", task.id, error, extra={"action": "run_not_begun"})
            return
        run = self._executor.begin(self._parts, task, agent, claimed_at=claimed_at, hand_back_on_cancel=True)
        me = asyncio.current_task()
        assert me is not None
        self._runs[me] = run
        if self._closing:
            await run.hand_back("its runner was shut down")
        result = await run.run()
        outcome = {
            "action": "run_ended",
            "task_id": task.id,
            "agent_id": task.agent_id,
            "reason": result.reason,
        }
        logger.info("task %d ended: %s", task.id, result.reason, extra=outcome)

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await action()
            except HarnessError as error:
                logger.warning("%s", error, extra={"action": "background_failed"})
            await self._parts.clock.sleep(seconds)

    async def _pass_cancellations_on(self) -> None:
        if not self._runs:
            return
        wanted = set(await self._parts.store.cancel_requests(self._executor.owner))
        runs = [run for run in self._runs.values() if run is not None and run.task.id in wanted]
        await asyncio.gather(*(run.stop(Reason.CANCELLED, "cancelled on request") for run in runs))

    async def _sweep(self) -> None:
        await sweep(self._parts.store, self._parts.sandbox)
