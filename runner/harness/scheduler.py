"""`TaskScheduler`: fires schedules into tasks, runs them with a worker of its own, and has old ones deleted.

Any number of schedulers share a store. What a schedule owes is decided from the store alone (`harness.firing`), and
accepted there by compare-and-set, so it makes no difference which of them does it, or whether one dies meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from harness.ahead import PlansAhead
from harness.aio import uninterrupted
from harness.clockwatch import ClockWatch
from harness.config import AgentConfig
from harness.errors import AgentNotFoundError, ConflictError, DuplicateFireError, InvalidInputError
from harness.executor import AgentExecutor
from harness.firelog import log_fire, log_skips
from harness.firing import (
    Synced,
    overdue,
    past_trigger,
    plan_ahead,
    plan_fires,
    plan_nothing,
    switched_off,
    synced,
)
from harness.models import (
    FirePlan,
    NewTask,
    ScheduleSource,
    ScheduleState,
    Task,
    TaskStatus,
    WhenBusy,
)
from harness.polling import BACK_OFF_SECONDS, Outage, Pause
from harness.ports import Clock, Sandbox, Store
from harness.purging import Purger
from harness.retention import Retention
from harness.retry import retry_delay_by_hand
from harness.settings import Settings
from harness.triggers import fires_between, make_trigger, preview
from harness.worker import Worker

logger = logging.getLogger(__name__)

#: Schedules handled at a time.
BATCH = 1000
#: Most fires that one backfill makes tasks of.
MAX_BACKFILL = 1000
#: Tries of a change that others may make at the same time.
CHANGE_TRIES = 10


class TaskScheduler:
    """Runs agents by their schedules, retries what fails, and deletes what is older than it is to be kept.

    ``TaskScheduler()`` uses the store and the engine that this process's environment names.
    """

    def __init__(
        self,
        max_concurrent: int = 5,
        retry_max_attempts: int = 3,
        *,
        store: Store | None = None,
        sandbox: Sandbox | None = None,
        clock: Clock | None = None,
        settings: Settings | None = None,
        executor: AgentExecutor | None = None,
    ) -> None:
        """Take what it works with; does no I/O.

        Args:
            max_concurrent: Runs at a time in this process.
            retry_max_attempts: Retries of a failed task, for agents whose config sets no ``retry.max_attempts``.
            store: An open store, owned by the caller. None: the one shared by this process.
            sandbox: Where containers are made, owned by the caller. None: the one shared by this process.
            clock: None: the system's.
            settings: None: the environment's.
            executor: Gives runs their limits; takes the place of store, sandbox, clock and settings.

        Raises:
            InvalidInputError: A number is out of range.
        """
        if max_concurrent < 1:
            raise InvalidInputError(f"max_concurrent is {max_concurrent}; give at least 1")
        if retry_max_attempts < 0:
            raise InvalidInputError(f"retry_max_attempts is {retry_max_attempts}; give 0 or more")
        self.max_concurrent = max_concurrent
        self.retry_max_attempts = retry_max_attempts
        self._store = store
        self._executor = executor or AgentExecutor(
            store=store, sandbox=sandbox, clock=clock, settings=settings
        )
        self._worker: Worker | None = None
        self._firing: asyncio.Task[None] | None = None
        self._purging: asyncio.Task[None] | None = None
        self._closing = False
        self._pause: Pause | None = None

    @property
    def is_started(self) -> bool:
        """Whether it fires and claims: between `start` and `stop`."""
        return self._firing is not None

    @property
    def running(self) -> int:
        """How many tasks run in this process now."""
        return 0 if self._worker is None else self._worker.running

    async def start(self) -> None:
        """Load all agents' schedules and begin to fire and run them, and to delete what is not to be kept.

        Calling it again does nothing.

        The engine need not answer yet: tasks wait until it does.

        Raises:
            StoreUnavailableError: The store does not answer. Once started, it is asked again until it does.
        """
        if self._firing is not None:
            return
        parts = await self._executor.resolve()
        self._closing = False
        self._worker = Worker(self._executor, parts, max_concurrent=self.max_concurrent)
        while await self._sync(parts.store):
            pass
        self._worker.start()
        self._pause = Pause(parts.store, parts.clock)
        self._firing = asyncio.create_task(self._fire_forever(parts.store, parts.clock, self._pause))
        purger = Purger(parts.store, parts.clock, Retention.by_settings(parts.settings))
        self._purging = asyncio.create_task(purger.run())

    async def stop(self, *, drain_seconds: float = 30.0) -> None:
        """Fire no more, claim no more, let runs end for `drain_seconds`, stop the rest and hand their tasks back.

        Cancelling this call cuts it short: containers are killed without grace, and their tasks handed back all the
        same. Calling it again, or before `start`, does nothing.
        """
        firing, purging, worker = self._firing, self._purging, self._worker
        if firing is None or purging is None or worker is None:
            return
        self._firing = self._purging = self._worker = None
        self._closing = True
        worker.stop_claiming()
        # Deleting can be cut anywhere.
        purging.cancel()
        self._wake()
        try:
            # Not cancelled: a plan that is under way is carried out.
            await asyncio.wait([firing])
            await worker.stop(drain_seconds=drain_seconds)
        finally:
            await worker.kill()
            await uninterrupted(_ended(firing, purging))

    async def add_agent_schedule(self, agent_id: int) -> ScheduleState:
        """Take the schedule in an agent's config into force, also after `remove_agent_schedule` or a pause.

        Agents that are created or changed with a schedule are taken up without this.

        Returns:
            Where the schedule stands: its next fire.

        Raises:
            AgentNotFoundError: There is no such agent.
            InvalidInputError: Its config has no schedule.
        """
        return await self._change(agent_id, {"removed": False, "paused": False}, needs_schedule=True)

    async def sync_agent_schedule(self, agent_id: int) -> ScheduleState:
        """Take an agent's schedule up as it is now; a scheduler that runs does so by itself within a second.

        With it a schedule's first fire counts from now, even if no scheduler runs yet.

        Raises:
            AgentNotFoundError: There is no such agent.
        """
        return await self._change(agent_id, {})

    async def remove_agent_schedule(self, agent_id: int) -> None:
        """Fire an agent no more until `add_agent_schedule`, over restarts too; tasks that exist stay.

        A fire whose time has come already, and that nobody got to, is recorded as skipped.

        Raises:
            AgentNotFoundError: There is no such agent.
        """
        await self._change(agent_id, {"removed": True})

    async def pause(self, agent_id: int) -> ScheduleState:
        """Fire an agent no more until `resume`. What would fire meanwhile is no fire, and not caught up.

        A fire whose time has come already, and that nobody got to, is recorded as skipped.
        """
        return await self._change(agent_id, {"paused": True}, needs_schedule=True)

    async def resume(self, agent_id: int) -> ScheduleState:
        """Fire an agent again, from now on."""
        return await self._change(agent_id, {"paused": False}, needs_schedule=True)

    async def next_fires(self, agent_id: int, n: int = 5) -> list[datetime]:
        """Return an agent's next `n` fire times; none when its schedule is off."""
        store = await self._resolve_store()
        source = await store.get_schedule(agent_id)
        now = await store.now()
        state = synced(source, now).state
        schedule = AgentConfig.parse(source.config).schedule
        if state.next_fire_at is None or schedule is None:
            return []
        trigger = make_trigger(schedule, agent_id=agent_id, anchor=state.anchor_at)
        return [state.next_fire_at, *preview(trigger, state.next_fire_at, n - 1)]

    async def trigger_now(
        self,
        agent_id: int,
        context: dict[str, Any] | None = None,
        *,
        save_handoff: bool = True,
        request_key: str | None = None,
    ) -> Task:
        """Make a task of an agent at once, whatever its schedule says.

        Args:
            agent_id: The agent.
            context: What it sees as ``context``; None: the state that its last run left.
            save_handoff: Whether a completed run saves its state.
            request_key: With it, a repetition makes no second task.

        Raises:
            AgentNotFoundError: There is no such agent.
            AgentBusyError: It has as many active tasks as it may.
            DuplicateFireError: There is a task of that key; the error has its id.
        """
        store = await self._resolve_store()
        agent = await store.get_agent(agent_id)
        new = self._new_task(agent_id, agent.options, context=context)
        task = await store.create_task(
            new.model_copy(update={"save_handoff": save_handoff, "request_key": request_key})
        )
        self._wake_worker()
        return task

    async def backfill(self, agent_id: int, start: datetime, end: datetime) -> Sequence[Task]:
        """Make tasks of the fires from `start` to `end` that have none; they run one after the other.

        Returns:
            The new tasks. Fires that have a task, or were skipped one by one, are passed over; those whose tasks
            were deleted, since they are not to be kept for so long, have none, and run again.

        Raises:
            InvalidInputError: The agent has no schedule, the range lies in the future, or holds too many fires.
        """
        store = await self._resolve_store()
        source = await store.get_schedule(agent_id)
        options = AgentConfig.parse(source.config)
        if options.schedule is None:
            raise _no_schedule(agent_id)
        if end > await store.now():
            raise InvalidInputError(
                f"the range ends at {end.isoformat()}, in the future; end it now or earlier"
            )
        if source.state is None:
            await self.sync_agent_schedule(agent_id)
            source = await store.get_schedule(agent_id)
        trigger = past_trigger(source, start)
        just_before = start - timedelta(microseconds=1)
        count = trigger.count_between(just_before, end)
        if count > MAX_BACKFILL:
            raise InvalidInputError(
                f"the range holds {count:,} fires, more than {MAX_BACKFILL:,}; take a shorter one"
            )
        tasks = []
        for fire in fires_between(trigger, just_before, end, MAX_BACKFILL):
            new = self._new_task(agent_id, options, fire_at=fire.fire_time, when_busy=WhenBusy.WAIT)
            try:
                tasks.append(await store.create_task(new))
            except DuplicateFireError:
                continue
        self._wake_worker()
        return tasks

    async def retry_failed_task(self, task_id: int, *, force: bool = False) -> Task:
        """Have a failed task tried again: after 2 s, 4 s, 8 s by its retry count; the due time is stored.

        Args:
            task_id: The task.
            force: Once more also when its retries are used up.

        Returns:
            The task, pending, with its new `retry_count` and `due_at`.

        Raises:
            TaskNotFoundError: There is no such task.
            ConflictError: It did not fail, or was retried as often as it may be.
            AgentBusyError: Its agent runs.
        """
        store = await self._resolve_store()
        task = await store.get_task(task_id)
        if task.status is not TaskStatus.FAILED:
            raise ConflictError(f"task {task_id} is {task.status}; only failed tasks can be retried")
        agent = await store.get_agent(task.agent_id)
        due_at = await store.now() + retry_delay_by_hand(agent.options.retry, task)
        max_retries = max(task.max_retries, agent.options.retry.max_retries(self.retry_max_attempts))
        if force:
            max_retries = max(max_retries, task.retry_count + 1)
        task = await store.reopen_task(task_id, due_at=due_at, max_retries=max_retries)
        self._wake_worker()
        return task

    async def cancel_task(self, task_id: int) -> Task:
        """Cancel a task: a pending one at once, a running one, wherever it runs, within a second or two.

        Raises:
            TaskNotFoundError: There is no such task.
        """
        store = await self._resolve_store()
        return await store.cancel_task(task_id)

    async def _resolve_store(self) -> Store:
        return self._store or (await self._executor.resolve()).store

    # Firing

    async def _fire_forever(self, store: Store, clock: Clock, pause: Pause) -> None:
        outage, watch = Outage(clock, "firing", "firing"), ClockWatch(clock)
        ahead = PlansAhead(store, self._plan_ahead)
        while not self._closing:
            try:
                watch.look(await store.now())
                await self._sync(store)
                again = await self._fire_due(store, ahead)
                if not again and not self._closing:
                    await ahead.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the other schedules must go on
                outage.failed(error)
                await pause.seconds(BACK_OFF_SECONDS)
            else:
                outage.over()
                if not again and not self._closing:
                    await pause.until_due()

    async def _sync(self, store: Store) -> bool:
        """Compute schedules that changed; return whether there may be more."""
        sources = await store.unsynced_schedules(limit=BATCH)
        if not sources:
            return False
        now = await store.now()
        changed = []
        for source in sources:
            settled = await self._settled(store, source, now)
            after = None if settled is None else _synced_or_off(settled, now)
            changed += [] if after is None else [after]
        if not changed:
            return len(sources) == BATCH
        skips = [skip for after in changed for skip in after.skips]
        stored = await store.put_schedules([after.state for after in changed], skips=skips)
        log_skips(stored, skips)
        return len(sources) == BATCH

    async def _settled(self, store: Store, source: ScheduleSource, now: datetime) -> ScheduleSource | None:
        """Return an agent with nothing due by a rule that it has no more; None when it is gone."""
        plan = self._overdue_or_nothing(source, now)
        if plan is None:
            return source
        await self._carry_out(store, [plan])
        try:
            return await store.get_schedule(source.agent_id)
        except AgentNotFoundError:
            return None

    async def _fire_due(self, store: Store, ahead: PlansAhead) -> bool:
        """Fire what is due; return whether there may be more."""
        marks = await store.due_marks(limit=BATCH)
        ready = ahead.take(marks, await store.now())
        if ready:
            await self._carry_out(store, ready)
        # At once, and not at the next look: then others that were planned ahead may be due again, and then again.
        if len(ready) < len(marks):
            sources = await store.due_schedules(limit=BATCH)
            now = await store.now()
            if plans := [plan for source in sources if (plan := self._plan_or_off(source, now))]:
                await self._carry_out(store, plans)
        return len(marks) == BATCH

    async def _carry_out(self, store: Store, plans: Sequence[FirePlan]) -> None:
        tasks = await store.fire_schedules(plans)
        self._wake()
        for task in tasks:
            log_fire(task)

    def _plan_or_off(self, source: ScheduleSource, now: datetime) -> FirePlan | None:
        try:
            return plan_fires(source, now, retry_max_attempts=self.retry_max_attempts)
        except InvalidInputError as error:
            logger.error(
                "agent %d fires no more: %s", source.agent_id, error, extra={"action": "schedule_invalid"}
            )
            return plan_nothing(source, now)
        except Exception:
            # It stays due. What is wrong with one schedule must not keep the others from firing.
            logger.exception("agent %d can't fire", source.agent_id, extra={"action": "plan_failed"})
            return None

    def _plan_ahead(self, source: ScheduleSource) -> FirePlan | None:
        try:
            return plan_ahead(source, retry_max_attempts=self.retry_max_attempts)
        except Exception:  # noqa: BLE001 - planned once more when it is due, and what is wrong is said and done then
            return None

    def _overdue_or_nothing(self, source: ScheduleSource, now: datetime) -> FirePlan | None:
        try:
            return overdue(source, now, retry_max_attempts=self.retry_max_attempts)
        except InvalidInputError:
            # The config is not valid any more, which `_synced_or_off` says.
            return None
        except Exception:
            logger.exception("agent %d can't fire", source.agent_id, extra={"action": "plan_failed"})
            return None

    async def _change(
        self, agent_id: int, changes: dict[str, bool], *, needs_schedule: bool = False
    ) -> ScheduleState:
        store = await self._resolve_store()
        for _ in range(CHANGE_TRIES):
            source = await store.get_schedule(agent_id)
            if needs_schedule and source.config.get("schedule") is None:
                raise _no_schedule(agent_id)
            now = await store.now()
            plan = overdue(source, now, retry_max_attempts=self.retry_max_attempts, **changes)
            if plan is not None:
                await self._carry_out(store, [plan])
                continue
            after = synced(source, now, **changes)
            stored = await store.put_schedules([after.state], skips=after.skips)
            if stored:
                log_skips(stored, after.skips)
                self._wake()
                return stored[0]
        raise ConflictError(f"the schedule of agent {agent_id} is changed by others all the time; try again")

    def _new_task(
        self,
        agent_id: int,
        options: AgentConfig,
        *,
        context: dict[str, Any] | None = None,
        fire_at: datetime | None = None,
        when_busy: WhenBusy = WhenBusy.REJECT,
    ) -> NewTask:
        return NewTask(
            agent_id=agent_id,
            trigger="manual" if fire_at is None else "schedule",
            scheduled_at=fire_at,
            fire_at=fire_at,
            context=context,
            max_active=options.max_active,
            when_busy=when_busy,
            priority=options.priority,
            max_retries=options.retry.max_retries(self.retry_max_attempts),
        )

    def _wake_worker(self) -> None:
        """Have a new task claimed at once; schedules have nothing to do with it."""
        if self._worker is not None:
            self._worker.wake()

    def _wake(self) -> None:
        """Have both loops look again: what changed may be due at once."""
        self._wake_worker()
        if self._pause is not None:
            self._pause.wake()


def _synced_or_off(source: ScheduleSource, now: datetime) -> Synced | None:
    try:
        return synced(source, now)
    except InvalidInputError as error:
        logger.error(
            "agent %d is not scheduled: %s", source.agent_id, error, extra={"action": "schedule_invalid"}
        )
        return switched_off(source, now)
    except Exception:
        logger.exception("agent %d can't be scheduled", source.agent_id, extra={"action": "sync_failed"})
        return None


def _no_schedule(agent_id: int) -> InvalidInputError:
    return InvalidInputError(
        f"agent {agent_id} has no schedule in its config; set one, for example "
        '{"schedule": {"type": "interval", "interval_minutes": 60}}'
    )


async def _ended(*tasks: asyncio.Task[None]) -> None:
    await asyncio.wait(tasks)
