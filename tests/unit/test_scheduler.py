from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.shop import COMPLETED, FAILED, PENDING, RUNNING, SKIPPED, Shop, eventually

from harness import firing
from harness.errors import (
    AgentBusyError,
    ConflictError,
    InvalidInputError,
    StoreUnavailableError,
    TaskNotFoundError,
)
from harness.models import (
    Agent,
    AgentDraft,
    NewTask,
    Reason,
    ScheduleSource,
    SkipReason,
    TaskStatus,
    WhenBusy,
)
from harness.polling import BACK_OFF_SECONDS
from harness.ports import SandboxResult
from harness.retention import Expiry
from harness.scheduler import TaskScheduler
from harness.testing import FakeRun

EVERY_MINUTE = {"type": "interval", "interval_minutes": 1}
MINUTE = timedelta(minutes=1)
#: Steps of the clock where minutes pass.
STEP_SECONDS = 5.0


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    # Longer than any test: minutes pass here faster than the store's thread answers.
    shop = Shop(tmp_path, lease_seconds=3600)
    await shop.store.open()
    yield shop
    await shop.store.close()


@pytest.fixture
async def make(shop: Shop) -> AsyncIterator[Callable[..., TaskScheduler]]:
    """Makes schedulers, and stops them with the test."""
    made = []

    def make(*arguments: Any, **options: Any) -> TaskScheduler:
        made.append(TaskScheduler(*arguments, executor=shop.executor, **options))
        return made[-1]

    yield make
    shop.sandbox.release()
    for scheduler in made:
        await scheduler.stop(drain_seconds=0)


@pytest.fixture
def scheduler(make: Make) -> TaskScheduler:
    return make()


Make = Callable[..., TaskScheduler]


async def pass_minutes(shop: Shop, minutes: float) -> None:
    await shop.advance(minutes * 60, step_seconds=STEP_SECONDS)


async def until(shop: Shop, *wanted: TaskStatus) -> None:
    """Wait until the tasks stand like this, while the clock goes on."""

    async def holds() -> bool:
        await shop.advance(0.25)
        return await shop.statuses() == list(wanted)

    await eventually(holds, f"{list(wanted)}")


async def fires(shop: Shop) -> list[tuple[datetime | None, str]]:
    tasks = reversed((await shop.store.list_tasks(limit=1000)).items)
    return [(task.fire_at, task.status) for task in tasks]


async def test_a_schedule_fires_and_its_runs_follow_one_another(shop: Shop, scheduler: TaskScheduler) -> None:
    await shop.agent(schedule=EVERY_MINUTE)
    began = shop.clock.now()
    await scheduler.start()

    await pass_minutes(shop, 3.2)
    await until(shop, COMPLETED, COMPLETED, COMPLETED)

    assert await fires(shop) == [(began + minute * MINUTE, COMPLETED) for minute in (1, 2, 3)]
    assert len(shop.sandbox.jobs) == 3


async def test_an_agent_that_comes_or_changes_later_is_taken_up(shop: Shop, scheduler: TaskScheduler) -> None:
    await scheduler.start()
    agent = await shop.agent(schedule=EVERY_MINUTE)
    await pass_minutes(shop, 1.2)
    await until(shop, COMPLETED)

    config = {"schedule": {"type": "interval", "interval_minutes": 10}}
    await shop.store.update_agent(agent.id, AgentDraft(name="agent", code="pass", config=config))
    await pass_minutes(shop, 5)
    assert await shop.statuses() == [COMPLETED]
    await pass_minutes(shop, 4)
    await until(shop, COMPLETED, COMPLETED)


async def test_a_change_of_the_agent_keeps_a_due_fire(shop: Shop, make: Make) -> None:
    agent = await shop.agent(schedule=EVERY_MINUTE)
    await make().sync_agent_schedule(agent.id)
    began = shop.clock.now()
    await shop.clock.advance(61)
    config = {"schedule": {"type": "interval", "interval_minutes": 10}}
    await shop.store.update_agent(agent.id, AgentDraft(name="agent", code="pass", config=config))

    await make().start()

    await until(shop, COMPLETED)
    assert await fires(shop) == [(began + MINUTE, COMPLETED)]


async def test_what_came_due_while_nobody_was_there_is_caught_up_and_the_rest_recorded(
    shop: Shop, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    agent = await shop.agent(schedule=EVERY_MINUTE)
    began = shop.clock.now()
    await make().sync_agent_schedule(agent.id)
    await shop.clock.advance(3600 + 90)

    with caplog.at_level(logging.WARNING):
        await make().start()
        await until(shop, SKIPPED, COMPLETED)

    skip, run = reversed((await shop.store.list_tasks()).items)
    assert (skip.fire_at, skip.skipped_until, skip.skipped_count) == (began + MINUTE, began + 60 * MINUTE, 60)
    assert run.fire_at == began + 61 * MINUTE
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["count"]) == ("agent 1: 60 fires are skipped (missed)", 60)


async def test_two_schedulers_fire_once(shop: Shop, make: Make) -> None:
    for number in range(5):
        await shop.agent(f"agent {number}", schedule=EVERY_MINUTE)
    await make().start()
    await make().start()

    await pass_minutes(shop, 2.2)

    await until(shop, *[COMPLETED] * 10)
    assert len(set(await fires(shop))) == 2


async def test_starting_twice_and_stopping_twice_is_fine_and_it_can_start_again(
    shop: Shop, scheduler: TaskScheduler
) -> None:
    await scheduler.stop()
    await scheduler.start()
    await scheduler.start()
    await scheduler.stop()
    await scheduler.stop()
    assert not scheduler.is_started

    await scheduler.start()
    await scheduler.trigger_now((await shop.agent()).id)
    await until(shop, COMPLETED)


async def test_a_stop_that_is_cancelled_leaves_nothing_running(shop: Shop, scheduler: TaskScheduler) -> None:
    shop.sandbox.hold()
    await scheduler.start()
    await scheduler.trigger_now((await shop.agent()).id)
    await shop.sandbox.until_running()
    assert scheduler.running == 1

    stopping = asyncio.create_task(scheduler.stop(drain_seconds=3600))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping

    assert await shop.statuses() == [PENDING]
    assert (scheduler.running, shop.sandbox.sessions) == (0, [])


async def test_an_invalid_config_turns_one_schedule_off_and_leaves_the_others(
    shop: Shop, scheduler: TaskScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await shop.agent("bad", schedule=EVERY_MINUTE)
    good = await shop.agent("good", schedule=EVERY_MINUTE)
    synced = firing.synced

    def check(source: ScheduleSource, now: datetime) -> object:
        # As after an upgrade that no longer takes what was stored.
        if source.agent_id == bad.id:
            raise InvalidInputError("config is not valid: schedule: gone")
        return synced(source, now)

    monkeypatch.setattr("harness.scheduler.synced", check)
    await scheduler.start()
    await pass_minutes(shop, 1.2)
    await until(shop, COMPLETED)

    assert [task.agent_id for task in (await shop.store.list_tasks()).items] == [good.id]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "agent 1 is not scheduled: config is not valid: schedule: gone"
    ]


async def test_a_schedule_that_cannot_be_planned_keeps_no_other_from_firing(
    shop: Shop, scheduler: TaskScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await shop.agent("bad", schedule=EVERY_MINUTE)
    await shop.agent("good", schedule=EVERY_MINUTE)
    plan_fires = firing.plan_fires

    def plan(source: ScheduleSource, now: datetime, *, retry_max_attempts: int) -> object:
        if source.agent_id == bad.id:
            raise RuntimeError("a bug")
        return plan_fires(source, now, retry_max_attempts=retry_max_attempts)

    with monkeypatch.context() as broken:
        broken.setattr("harness.scheduler.plan_fires", plan)
        # Planned ahead it is no better.
        broken.setattr("harness.firing.plan_fires", plan)
        await scheduler.start()
        await pass_minutes(shop, 1.2)
        await until(shop, COMPLETED)
        assert "agent 1 can't fire" in caplog.text
    await pass_minutes(shop, 0.1)

    # It stayed due.
    await until(shop, COMPLETED, COMPLETED)


async def test_a_store_that_is_away_delays_fires_and_loses_none(
    shop: Shop, scheduler: TaskScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.agent(schedule=EVERY_MINUTE | {"misfire_grace_seconds": 600, "overlap": "allow"})
    await scheduler.start()

    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as away:
        for name in ("due_marks", "due_schedules", "unsynced_schedules", "next_due_at"):
            away.setattr(shop.store, name, fail)
        await pass_minutes(shop, 2.5)
        assert await shop.statuses() == []
    await shop.advance(BACK_OFF_SECONDS)

    await until(shop, COMPLETED, COMPLETED)


async def test_a_store_that_is_away_at_the_start_is_said_so(
    shop: Shop, scheduler: TaskScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(shop.store, "unsynced_schedules", fail)
    with pytest.raises(StoreUnavailableError):
        await scheduler.start()
    assert not scheduler.is_started


async def test_pause_and_resume_hold_fires_back_without_a_trace(shop: Shop, scheduler: TaskScheduler) -> None:
    agent = await shop.agent(schedule=EVERY_MINUTE)
    began = shop.clock.now()
    await scheduler.start()
    state = await scheduler.pause(agent.id)
    assert (state.paused, state.next_fire_at) == (True, None)
    assert await scheduler.next_fires(agent.id) == []

    await pass_minutes(shop, 3.5)
    assert await shop.statuses() == []
    assert (await scheduler.resume(agent.id)).next_fire_at == began + 4 * MINUTE
    await pass_minutes(shop, 0.7)
    await until(shop, COMPLETED)


async def test_a_removed_schedule_comes_back_with_add_only(shop: Shop, scheduler: TaskScheduler) -> None:
    agent = await shop.agent(schedule=EVERY_MINUTE)
    began = shop.clock.now()
    await scheduler.add_agent_schedule(agent.id)
    await scheduler.remove_agent_schedule(agent.id)
    await shop.store.update_agent(agent.id, AgentDraft(name="new name", code="pass", config=agent.config))
    await scheduler.resume(agent.id)
    await scheduler.start()

    await pass_minutes(shop, 1.5)
    assert await shop.statuses() == []
    assert (await scheduler.add_agent_schedule(agent.id)).next_fire_at == began + 2 * MINUTE


@pytest.mark.parametrize("how", ["pause", "remove", "disable", "take out", "spoil"])
async def test_fires_that_came_due_while_nobody_was_there_are_recorded_when_their_schedule_goes_off(
    shop: Shop, make: Make, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level(logging.INFO)
    agent = await shop.agent(schedule=EVERY_MINUTE)
    scheduler = make()
    await scheduler.sync_agent_schedule(agent.id)
    began = shop.clock.now()
    await pass_minutes(shop, 3.5)

    if how == "pause":
        await scheduler.pause(agent.id)
    elif how == "remove":
        await scheduler.remove_agent_schedule(agent.id)
    else:
        config: dict[str, Any] = {"disable": {"schedule": EVERY_MINUTE | {"enabled": False}}}.get(how, {})
        if how == "spoil":
            # As by a release that took what this one does not.
            config = {"schedule": {"type": "moon"}}
        draft = AgentDraft(name="agent", code="pass").model_copy(update={"config": config})
        await shop.store.update_agent(agent.id, draft)
    await scheduler.start()
    await pass_minutes(shop, 1.2)
    await until(shop, SKIPPED)

    (skip,) = (await shop.store.list_tasks()).items
    assert (skip.skip_reason, skip.fire_at, skip.skipped_until, skip.skipped_count) == (
        SkipReason.DISABLED, began + MINUTE, began + 3 * MINUTE, 3,
    )  # fmt: skip
    assert [
        (record.levelno, record.__dict__["count"], record.getMessage())
        for record in caplog.records
        if record.__dict__.get("action") == "fire_skipped"
    ] == [(logging.INFO, 3, f"agent {agent.id}: 3 fires are skipped (disabled)")]


async def test_fires_that_came_due_before_a_change_of_the_rule_are_settled_by_the_old_one(
    shop: Shop, make: Make
) -> None:
    agent = await shop.agent(schedule=EVERY_MINUTE | {"catch_up": "none", "misfire_grace_seconds": 0})
    scheduler = make()
    await scheduler.sync_agent_schedule(agent.id)
    began = shop.clock.now()
    await pass_minutes(shop, 3.5)
    config = {"schedule": {"type": "interval", "interval_minutes": 10}}
    await shop.store.update_agent(agent.id, AgentDraft(name="agent", code="pass", config=config))

    state = await scheduler.sync_agent_schedule(agent.id)

    assert state.next_fire_at == began + 10 * MINUTE
    (skip,) = (await shop.store.list_tasks()).items
    assert (skip.skip_reason, skip.fire_at, skip.skipped_until, skip.skipped_count) == (
        SkipReason.MISSED, began + MINUTE, began + 3 * MINUTE, 3,
    )  # fmt: skip


@pytest.mark.parametrize("config", [{}, {"schedule": None}])
async def test_an_agent_without_a_schedule_has_none_to_change(
    shop: Shop, scheduler: TaskScheduler, config: dict[str, Any]
) -> None:
    agent = await shop.agent(**config)
    for change in (scheduler.pause, scheduler.resume, scheduler.add_agent_schedule):
        with pytest.raises(InvalidInputError, match="has no schedule"):
            await change(agent.id)
    assert await scheduler.next_fires(agent.id) == []


async def test_the_next_fires_are_told(shop: Shop, scheduler: TaskScheduler) -> None:
    agent = await shop.agent(schedule=EVERY_MINUTE)
    began = shop.clock.now()

    assert await scheduler.next_fires(agent.id, 3) == [began + minute * MINUTE for minute in (1, 2, 3)]


async def test_a_run_by_hand_starts_at_once_with_its_context(shop: Shop, scheduler: TaskScheduler) -> None:
    shop.sandbox.hold()
    agent = await shop.agent(schedule=EVERY_MINUTE)
    await scheduler.start()

    task = await scheduler.trigger_now(agent.id, {"who": "you"})
    await shop.sandbox.until_running()

    assert shop.sandbox.jobs[0].context == {"who": "you"}
    assert (task.trigger, task.max_retries) == ("manual", 3)
    with pytest.raises(AgentBusyError):
        await scheduler.trigger_now(agent.id)


async def test_a_task_is_cancelled_and_only_a_failed_one_retried(shop: Shop, make: Make) -> None:
    scheduler = make()
    task = await scheduler.trigger_now((await shop.agent()).id)
    await scheduler.cancel_task(task.id)

    with pytest.raises(ConflictError, match="cancelled"):
        await scheduler.retry_failed_task(task.id)


async def test_a_failed_task_is_retried_by_hand_as_often_as_allowed_and_by_force_once_more(
    shop: Shop, make: Make
) -> None:
    shop.sandbox.behave = lambda _job: FakeRun(result=SandboxResult(Reason.EXIT_NONZERO, 1))
    agent = await shop.agent(retry={"max_attempts": 1, "on": []})
    scheduler = make()
    await scheduler.start()
    task = await scheduler.trigger_now(agent.id)
    await shop.until_status(task, FAILED)

    again = await scheduler.retry_failed_task(task.id)
    assert (again.status, again.retry_count) == (PENDING, 1)
    assert again.due_at == shop.clock.now() + timedelta(seconds=2)
    await shop.advance(3)
    await shop.until_status(task, FAILED)
    with pytest.raises(ConflictError):
        await scheduler.retry_failed_task(task.id)

    forced = await scheduler.retry_failed_task(task.id, force=True)
    assert (forced.retry_count, forced.max_retries) == (2, 2)
    assert forced.due_at == shop.clock.now() + timedelta(seconds=4)


async def test_a_backfill_runs_what_has_no_task_one_after_the_other(
    shop: Shop, scheduler: TaskScheduler
) -> None:
    agent = await shop.agent(schedule=EVERY_MINUTE)
    await shop.clock.advance(3600)
    end = await shop.store.now()
    known = end - 2 * MINUTE
    await shop.store.create_task(
        NewTask(agent_id=agent.id, trigger="schedule", fire_at=known, when_busy=WhenBusy.WAIT)
    )

    tasks = await scheduler.backfill(agent.id, end - 4 * MINUTE, end)

    assert [task.fire_at for task in tasks] == [end - minute * MINUTE for minute in (4, 3, 1, 0)]
    assert await scheduler.backfill(agent.id, end - 4 * MINUTE, end) == []
    most = 0

    def count(_job: object) -> FakeRun:
        nonlocal most
        most = max(most, len(shop.sandbox.sessions))
        return FakeRun()

    shop.sandbox.behave = count
    # Turned off, so that what runs is the backfill alone.
    await scheduler.pause(agent.id)
    await scheduler.start()
    await until(shop, *[COMPLETED] * 5)
    assert most == 1


@pytest.mark.parametrize(
    ("begin", "end", "complaint"),
    [(-10, 10, "future"), (-10_000, 0, "10,001 fires")],
)
async def test_a_backfill_is_bounded(
    shop: Shop, scheduler: TaskScheduler, begin: int, end: int, complaint: str
) -> None:
    agent = await shop.agent(schedule=EVERY_MINUTE)
    now = await shop.store.now()

    with pytest.raises(InvalidInputError, match=complaint):
        await scheduler.backfill(agent.id, now + begin * MINUTE, now + end * MINUTE)


async def test_busy_agents_skip_fires_and_it_is_no_warning(
    shop: Shop, scheduler: TaskScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    shop.sandbox.hold()
    await shop.agent(schedule=EVERY_MINUTE, limits={"timeout_seconds": 3600})
    await scheduler.start()

    with caplog.at_level(logging.INFO):
        await pass_minutes(shop, 2.2)
        await until(shop, RUNNING, SKIPPED)

    skipped = [record for record in caplog.records if vars(record).get("action") == "fire_skipped"]
    assert [(record.levelno, vars(record)["reason"]) for record in skipped] == [
        (logging.INFO, SkipReason.OVERLAP)
    ]


@pytest.mark.parametrize("numbers", [(0, 3), (5, -1)])
def test_numbers_out_of_range_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError):
        TaskScheduler(*numbers)


async def test_commands_need_no_engine(shop: Shop) -> None:
    """A scheduler with a store alone changes it; nothing is opened for that."""
    agent: Agent = await shop.agent(schedule=EVERY_MINUTE)
    scheduler = TaskScheduler(store=shop.store)

    await scheduler.pause(agent.id)
    task = await scheduler.trigger_now(agent.id)
    assert (await scheduler.cancel_task(task.id)).status.is_final
    await eventually(lambda: not scheduler.is_started)


async def test_it_deletes_what_is_not_to_be_kept_until_it_is_stopped(
    shop: Shop, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    agent = await shop.agent(retention={"task_days": 1, "max_artifacts": 1})
    first = make()
    await first.start()
    for _ in range(2):
        task = await first.trigger_now(agent.id)
        await until_ended(shop, task.id)
    await first.stop(drain_seconds=0)
    assert await shop.statuses() == [COMPLETED, COMPLETED]

    await shop.advance(2 * 86_400, step_seconds=86_400)
    second = make()
    await second.start()

    async def is_empty() -> bool:
        await shop.advance(0.25)
        return await shop.statuses() == []

    await eventually(is_empty)
    (kept,) = await shop.store.artifact_history(agent.id)
    assert kept.run_count == 2
    task = await second.trigger_now(agent.id)
    await until_ended(shop, task.id)
    newest = await shop.store.newest_artifact(agent.id)
    assert newest is not None
    assert (newest.run_count, newest.version) == (3, 3)
    await second.stop(drain_seconds=0)
    assert shop.clock.sleepers == 0


async def test_a_task_that_was_deleted_cannot_be_tried_again(shop: Shop, scheduler: TaskScheduler) -> None:
    agent = await shop.agent()
    task = await shop.store.create_task(NewTask(agent_id=agent.id))
    await shop.store.cancel_task(task.id)
    later = shop.clock.now() + timedelta(days=1)
    await shop.store.purge(agent.id, Expiry(later, tasks_before=later), limit=10)

    with pytest.raises(TaskNotFoundError, match=f"there is no task {task.id}"):
        await scheduler.retry_failed_task(task.id, force=True)


async def until_ended(shop: Shop, task_id: int) -> None:
    async def has_ended() -> bool:
        await shop.advance(0.25)
        return (await shop.store.get_task(task_id)).status.is_final

    await eventually(has_ended)
