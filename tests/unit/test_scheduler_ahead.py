"""Fires that a scheduler planned before they were due: what changes in the last moment counts all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.shop import SKIPPED, Shop, eventually

from harness.ahead import PlansAhead
from harness.models import Agent, AgentDraft, SkipReason, Task
from harness.scheduler import TaskScheduler

EVERY_MINUTE = {"type": "interval", "interval_minutes": 1}
MINUTE = timedelta(minutes=1)
#: From the start to a moment when the first fire is planned, and not due.
ALMOST = 59.6


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    # Longer than any test, as in the other tests of schedulers.
    shop = Shop(tmp_path, lease_seconds=3600)
    await shop.store.open()
    yield shop
    await shop.store.close()


@pytest.fixture
async def scheduler(shop: Shop) -> AsyncIterator[TaskScheduler]:
    scheduler = TaskScheduler(executor=shop.executor)
    yield scheduler
    await scheduler.stop(drain_seconds=0)


@pytest.fixture
def ahead(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The agents whose schedules were read before they were due."""
    read: set[int] = set()
    upcoming = shop.store.upcoming_schedules

    async def note(**span: Any) -> Any:
        sources = await upcoming(**span)
        read.update(source.agent_id for source in sources)
        return sources

    monkeypatch.setattr(shop.store, "upcoming_schedules", note)
    return read


async def almost_due(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int], *, name: str = "agent", **schedule: Any
) -> Agent:
    """Start the scheduler, and go on to a moment when an agent's fire is planned but not due."""
    agent = await shop.agent(name, schedule=EVERY_MINUTE | schedule)
    await scheduler.start()
    await shop.advance(ALMOST)
    await eventually(lambda: agent.id in ahead, "the plan")
    assert await tasks_of(shop) == []
    return agent


async def tasks_of(shop: Shop) -> list[Task]:
    return list(reversed((await shop.store.list_tasks()).items))


async def until_tasks(shop: Shop, count: int) -> list[Task]:
    async def are_there() -> bool:
        await shop.advance(0.25)
        return len(await tasks_of(shop)) >= count

    await eventually(are_there, f"{count} tasks")
    return await tasks_of(shop)


async def test_fires_planned_ahead_need_no_reading_when_they_are_due(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(**_: object) -> None:
        raise AssertionError("read when it was due")

    began = shop.clock.now()
    await almost_due(shop, scheduler, ahead)
    monkeypatch.setattr(shop.store, "due_schedules", fail)

    tasks = await until_tasks(shop, 2)

    assert [task.fire_at for task in tasks] == [began + MINUTE, began + 2 * MINUTE]
    for task in tasks:
        assert task.fire_at is not None
        assert timedelta() <= task.created_at - task.fire_at < timedelta(seconds=1)


async def test_an_agent_that_changes_in_the_last_moment_fires_as_it_is_then(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int]
) -> None:
    agent = await almost_due(shop, scheduler, ahead)

    config = {"schedule": EVERY_MINUTE, "priority": 7, "retry": {"max_attempts": 9}}
    await shop.store.update_agent(agent.id, AgentDraft(name="agent", code="pass", config=config))

    (task,) = await until_tasks(shop, 1)
    assert (task.priority, task.max_retries) == (7, 9)


async def test_a_rule_that_changes_in_the_last_moment_takes_the_planned_fire_away(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int]
) -> None:
    began = shop.clock.now()
    agent = await almost_due(shop, scheduler, ahead)

    config = {"schedule": {"type": "interval", "interval_minutes": 2}}
    await shop.store.update_agent(agent.id, AgentDraft(name="agent", code="pass", config=config))
    await scheduler.sync_agent_schedule(agent.id)

    await shop.advance(5)
    assert await tasks_of(shop) == []
    await shop.advance(54)
    (task,) = await until_tasks(shop, 1)
    assert task.fire_at == began + 2 * MINUTE


@pytest.mark.parametrize(
    "switch_off",
    [
        lambda scheduler, shop, agent_id: scheduler.pause(agent_id),
        lambda scheduler, shop, agent_id: scheduler.remove_agent_schedule(agent_id),
        lambda scheduler, shop, agent_id: shop.store.delete_agent(agent_id),
    ],
    ids=["paused", "removed", "deleted"],
)
async def test_a_schedule_that_goes_off_in_the_last_moment_fires_nothing(
    shop: Shop,
    scheduler: TaskScheduler,
    ahead: set[int],
    switch_off: Callable[[TaskScheduler, Shop, int], Awaitable[object]],
) -> None:
    agent = await almost_due(shop, scheduler, ahead)

    await switch_off(scheduler, shop, agent.id)

    await shop.advance(5)
    assert await tasks_of(shop) == []


async def test_a_schedule_that_is_paused_and_resumed_in_the_last_moment_fires_once(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int]
) -> None:
    began = shop.clock.now()
    agent = await almost_due(shop, scheduler, ahead)

    await scheduler.pause(agent.id)
    await scheduler.resume(agent.id)

    await shop.advance(5)
    assert [task.fire_at for task in await tasks_of(shop)] == [began + MINUTE]


async def test_nothing_fires_early_when_the_clock_is_set_back(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int]
) -> None:
    began = shop.clock.now()
    await almost_due(shop, scheduler, ahead)

    shop.clock.set_wall_clock(shop.clock.now() - timedelta(seconds=30))

    await shop.advance(30)
    assert await tasks_of(shop) == []
    (task,) = await until_tasks(shop, 1)
    assert task.fire_at == began + MINUTE
    assert task.created_at >= task.fire_at


@pytest.mark.parametrize(("grace_seconds", "skipped"), [(60, False), (10, True)])
async def test_whether_a_fire_is_on_time_is_seen_when_it_is_fired_and_not_when_it_was_planned(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int], grace_seconds: int, skipped: bool
) -> None:
    began = shop.clock.now()
    await almost_due(shop, scheduler, ahead, catch_up="none", misfire_grace_seconds=grace_seconds)

    shop.clock.set_wall_clock(shop.clock.now() + timedelta(seconds=30))

    (task,) = await until_tasks(shop, 1)
    assert task.fire_at == began + MINUTE
    assert (task.status is SKIPPED, task.skip_reason is SkipReason.MISSED) == (skipped, skipped)


async def test_what_was_planned_ahead_and_missed_since_is_caught_up_as_the_schedule_says(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int]
) -> None:
    began = shop.clock.now()
    await almost_due(shop, scheduler, ahead)

    shop.clock.set_wall_clock(began + timedelta(minutes=10, seconds=30))

    skip, run = await until_tasks(shop, 2)
    assert (skip.status, skip.fire_at, skip.skipped_count) == (SKIPPED, began + MINUTE, 9)
    assert (run.fire_at, run.skip_reason) == (began + 10 * MINUTE, None)


async def test_a_fire_that_two_schedulers_planned_ahead_is_one_task(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int]
) -> None:
    other = TaskScheduler(executor=shop.executor)
    await other.start()
    began = shop.clock.now()
    await almost_due(shop, scheduler, ahead)

    await shop.advance(65)

    assert [task.fire_at for task in await tasks_of(shop)] == [began + MINUTE, began + 2 * MINUTE]
    await other.stop(drain_seconds=0)


async def test_a_schedule_that_nobody_planned_ahead_fires_beside_those_that_were(
    shop: Shop, scheduler: TaskScheduler, ahead: set[int]
) -> None:
    planned = await almost_due(shop, scheduler, ahead)
    schedule = EVERY_MINUTE | {"start_at": (shop.clock.now() + timedelta(seconds=0.4)).isoformat()}
    late = await shop.agent("late", schedule=schedule)
    await scheduler.sync_agent_schedule(late.id)

    tasks = await until_tasks(shop, 2)

    assert {task.agent_id for task in tasks} == {planned.id, late.id}
    assert late.id not in ahead


async def test_one_look_fires_all_that_is_due_whether_it_was_planned_ahead_or_not(
    shop: Shop, scheduler: TaskScheduler
) -> None:
    first, second = [await shop.agent(name, schedule=EVERY_MINUTE) for name in ("first", "second")]
    await scheduler.sync_agent_schedule(first.id)
    await shop.clock.advance(58.5)
    plans = PlansAhead(shop.store, scheduler._plan_ahead)
    await plans.look()
    start_at = (shop.clock.now() + timedelta(seconds=1)).isoformat()
    draft = second.model_copy(update={"config": {"schedule": EVERY_MINUTE | {"start_at": start_at}}})
    await shop.store.update_agent(second.id, draft)
    await scheduler.sync_agent_schedule(second.id)
    await shop.clock.advance(1.5)

    assert not await scheduler._fire_due(shop.store, plans)

    assert {task.agent_id for task in await tasks_of(shop)} == {first.id, second.id}
