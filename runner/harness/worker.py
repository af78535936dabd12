"""`Worker`: claims due tasks under leases, drives their runs, passes cancellations on, sweeps up after the dead.

Polling is the truth; `wake` only shortens the wait. Any number of workers share a store, and nothing here depends on
what one of them remembers. A claim that is under way is never cancelled: if its answer were lost, it would hold its tasks
until their leases end.

Nothing but `stop` and `kill` ends a worker. While the store is away it asks again; while the engine is away it claims
nothing, so that tasks wait instead of failing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from harness import warming
from harness.aio import uninterrupted
from harness.errors import AgentNotFoundError, EngineUnavailableError, HarnessError
from harness.executor import AgentExecutor
from harness.models import Claim, LoadedAgent, Reason, Task
from harness.polling import BACK_OFF_SECONDS, POLL_SECONDS, Outage, Pause
from harness.recovery import sweep
from harness.run import RunParts, TaskRun
from harness.warming import Warming

logger = logging.getLogger(__name__)

#: Between two looks for cancellations, in seconds.
CANCEL_POLL_SECONDS = 1.0
#: Sweeps per lease.
SWEEPS_PER_LEASE = 3

_SHUT_DOWN = "its runner was shut down"


class Worker:
    """Runs tasks, `max_concurrent` at a time. Started by `start`, ended by `stop` or `kill`."""

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
        warm_containers = min(max_concurrent, parts.settings.warm_containers)
        #: None: no container is kept warm, and nothing is done for it.
        self._warming: Warming | None = None
        if warm_containers > 0:
            self._warming = Warming(
                parts.store,
                parts.sandbox,
                executor.shape_of,
                max_containers=warm_containers,
            )
        self._closing = False
        self._engine_answers = False
        #: What a run that has ended met; what runs still may meet is told by themselves.
        self._engine_was_away: EngineUnavailableError | None = None
        self._pause = Pause(parts.store, parts.clock)
        self._loops: list[asyncio.Task[None]] = []
        self._runs: dict[asyncio.Task[None], TaskRun | None] = {}
        #: The store's time and ours as the last sweep began: they go on together, unless a clock is set.
        self._steady_since: tuple[datetime, float] | None = None
        self._leapt = False

    @property
    def running(self) -> int:
        """How many tasks run here now."""
        return len(self._runs)

    @property
    def _free(self) -> int:
        return self._max_concurrent - len(self._runs)

    def start(self) -> None:
        """Begin to claim, as soon as the engine answers."""
        lease_seconds = self._parts.settings.lease_seconds
        self._loops = [
            asyncio.create_task(self._claim_and_run()),
            asyncio.create_task(self._every(CANCEL_POLL_SECONDS, self._pass_cancellations_on, "cancelling")),
            asyncio.create_task(self._every(lease_seconds / SWEEPS_PER_LEASE, self._sweep, "sweeping")),
        ]
        if self._warming is not None:
            self._loops.append(asyncio.create_task(self._every(warming.LOOK_SECONDS, self._warm, "warming")))

    def wake(self) -> None:
        """Look for due tasks at once."""
        self._pause.wake()

    def stop_claiming(self) -> None:
        """Claim no more; what runs goes on."""
        self._closing = True
        self.wake()

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Claim no more; let runs end for `drain_seconds`; stop the rest, with their grace, and hand their tasks back.

        Cancelling this call cuts it short, as by `kill`.
        """
        self.stop_claiming()
        try:
            if self._loops:
                # A claim that is under way may still bring tasks; `_run` hands them back.
                await asyncio.wait(self._loops[:1])
            await self._drain(drain_seconds)
            await asyncio.gather(
                *(run.hand_back(_SHUT_DOWN) for run in self._runs.values() if run is not None),
                return_exceptions=True,
            )
            if self._runs:
                await asyncio.wait(self._runs)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Claim no more, kill the containers without grace, and hand their tasks back."""
        self.stop_claiming()
        await uninterrupted(self._end_all())

    async def _drain(self, seconds: float) -> None:
        if not self._runs:
            return
        extra = {"action": "draining", "running": len(self._runs), "drain_seconds": seconds}
        logger.info("%d runs have %g s to end", len(self._runs), seconds, extra=extra)
        if seconds > 0:
            await asyncio.wait(self._runs, timeout=seconds)

    async def _end_all(self) -> None:
        # A run that has not come to its `TaskRun` yet hands its task back by itself; cancelled, it would keep it.
        tasks = [*self._loops[1:], *(task for task, run in self._runs.items() if run is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*self._loops[:1], *tasks, return_exceptions=True)
        while self._runs:
            await asyncio.wait(self._runs)
        self._loops = []

    async def _claim_and_run(self) -> None:
        outage = Outage(self._parts.clock, "claiming", "claim")
        while not self._closing:
            try:
                claimed = await self._claim()
            except Exception as error:  # noqa: BLE001 - whatever it is, the other tasks must go on
                outage.failed(error)
                await self._pause.seconds(BACK_OFF_SECONDS)
            else:
                outage.over()
                if self._free <= 0:
                    # The end of a run wakes it, as does the end of all; what falls due before could not be claimed.
                    await self._pause.seconds(POLL_SECONDS)
                elif claimed == 0 and not self._closing:
                    await self._pause.until_due()

    async def _claim(self) -> int:
        """Begin as many due tasks as there is room for; return their number."""
        free = self._free
        if free <= 0:
            return 0
        self._heed_engine()
        if not self._engine_answers:
            await self._parts.sandbox.owned_containers(self._parts.store.store_id)
            self._engine_answers = True
        for run in self._runs.values():
            self._leave_lost_lease(run)
        claim = Claim(owner=self._executor.owner, lease_seconds=self._parts.settings.lease_seconds)
        claimed_at = self._parts.clock.monotonic()
        tasks = await self._parts.store.claim_tasks(claim, limit=free)
        if not tasks:
            return 0
        # One reading for all of them; each waits for it by itself, so that what fails of it ends no more than a run.
        agent_ids = {task.agent_id for task in tasks}
        loading = asyncio.ensure_future(self._parts.store.load_agents(agent_ids))
        for task in tasks:
            running = asyncio.create_task(self._run(task, claimed_at, loading))
            self._runs[running] = None
            running.add_done_callback(self._ended)
        return len(tasks)

    def _heed_engine(self) -> None:
        """Raise what a run met that found the engine away: its task is due again at once, and would be for ever.

        It counts whatever the engine answers now: on a connection that is kept, an engine that takes no new one still does.
        """
        met = [
            self._engine_was_away,
            *(run.engine_was_away for run in self._runs.values() if run is not None),
        ]
        self._engine_was_away = None
        if away := next(filter(None, met), None):
            self._engine_answers = False
            raise away

    def _leave_lost_lease(self, run: TaskRun | None) -> None:
        """Take another name once a run has lost its lease, as after a freeze.

        Whoever finds a lease ended removes all that its owner has waiting (see `harness.recovery`), and must not find
        what the next claims begin with.
        """
        if run is not None and not run.has_lease and run.task.lease_owner == self._executor.owner:
            self._executor.change_owner()

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._leave_lost_lease(self._runs.pop(running))
        self.wake()
        if not running.cancelled() and running.exception() is not None:
            extra = {"action": "run_failed"}
            logger.error("a run failed unexpectedly", exc_info=running.exception(), extra=extra)

    async def _run(
        self, task: Task, claimed_at: float, loading: asyncio.Future[Mapping[int, LoadedAgent]]
    ) -> None:
        about: dict[str, object] = {"task_id": task.id, "agent_id": task.agent_id, "attempt": task.fence}
        try:
            loaded = (await asyncio.shield(loading)).get(task.agent_id)
            if loaded is None:
                raise AgentNotFoundError(f"agent {task.agent_id} is gone, or its record can't be read")
            run = self._executor.begin(
                self._parts, task, loaded.agent, claimed_at=claimed_at, loaded=loaded, can_hand_back=True
            )
            me = asyncio.current_task()
            assert me is not None
            self._runs[me] = run
            if self._warming is not None:
                self._warming.began(loaded.agent)
            if self._closing:
                await run.hand_back(_SHUT_DOWN)
            else:
                logger.info("task %d begins", task.id, extra={"action": "run_began", **about})
            result = await run.run()
        except HarnessError as error:
            # Its lease runs out, and then somebody else has it.
            logger.error("task %d given up: %s", task.id, error, extra={"action": "run_given_up", **about})
            return
        self._engine_was_away = run.engine_was_away or self._engine_was_away
        if run.was_handed_back:
            return
        about |= {"reason": result.reason, "seconds": round(result.duration_seconds, 3)}
        logger.info("task %d ended: %s", task.id, result.reason, extra={"action": "run_ended", **about})

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]], work: str) -> None:
        outage = Outage(self._parts.clock, work, "background")
        while True:
            try:
                await action()
            except Exception as error:  # noqa: BLE001 - the next time it may do
                outage.failed(error)
            else:
                outage.over()
            await self._parts.clock.sleep(seconds)

    async def _pass_cancellations_on(self) -> None:
        if not self._runs:
            return
        owners = {run.task.lease_owner for run in self._runs.values() if run is not None}
        wanted = {
            task_id
            for owner in owners
            if owner is not None
            for task_id in await self._parts.store.cancel_requests(owner)
        }
        runs = [run for run in self._runs.values() if run is not None and run.task.id in wanted]
        await asyncio.gather(*(run.stop(Reason.CANCELLED, "cancelled on request") for run in runs))

    async def _warm(self) -> None:
        assert self._warming is not None
        await self._warming.look(self._executor.owner)

    async def _sweep(self) -> None:
        began_at = await self._reading()
        if self._steady_since is None:
            self._steady_since = began_at
        try:
            await sweep(
                self._parts.store, self._parts.sandbox, clock=self._parts.clock, believe=self._is_steady
            )
        except EngineUnavailableError:
            self._engine_answers = False
            raise
        finally:
            # Runners that live extend their leases by the next beat, which is sooner than the next sweep.
            self._steady_since = await self._reading() if self._leapt else began_at
            self._leapt = False

    async def _is_steady(self) -> bool:
        """Return whether the store's clock has not leapt forward since the last sweep, past the ends of live leases."""
        assert self._steady_since is not None
        now, reading = await self._reading()
        leap = (now - self._steady_since[0]).total_seconds() - (reading - self._steady_since[1])
        # A lease that is kept has always more than this before it.
        if leap < self._parts.settings.lease_seconds / 2:
            return True
        if not self._leapt:
            extra = {"action": "clock_leapt", "seconds": round(leap, 3)}
            logger.warning(
                "the store's clock leapt forward by %.1f s: no lease is ended yet", leap, extra=extra
            )
        self._leapt = True
        return False

    async def _reading(self) -> tuple[datetime, float]:
        return await self._parts.store.now(), self._parts.clock.monotonic()
