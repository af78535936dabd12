"""The store's clock is set while tasks run: nobody who keeps a lease loses it by that."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.shop import COMPLETED, LEASE_SECONDS, RUNNING, Shop

from harness.models import Claim, NewTask, Reason
from harness.ports import SandboxLabels
from harness.recovery import sweep
from harness.scheduler import TaskScheduler
from harness.worker import Worker


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    await shop.store.open()
    yield shop
    await shop.store.close()


@pytest.fixture
async def worker(shop: Shop) -> AsyncIterator[Worker]:
    worker = Worker(shop.executor, shop.parts)
    worker.start()
    yield worker
    shop.sandbox.release()
    await worker.kill()


@pytest.mark.parametrize("seconds", [-3600, 3600])
async def test_a_run_outlives_a_clock_that_is_set(
    shop: Shop, worker: Worker, caplog: pytest.LogCaptureFixture, seconds: int
) -> None:
    shop.sandbox.hold()
    task = await shop.pending(await shop.agent())
    worker.wake()
    await shop.sandbox.until_running()
    await shop.advance(LEASE_SECONDS)

    with caplog.at_level(logging.WARNING):
        shop.clock.set_wall_clock(shop.clock.now() + timedelta(seconds=seconds))
        await shop.advance(2 * LEASE_SECONDS)
    shop.sandbox.release()
    done = await shop.until_status(task, COMPLETED)

    assert [attempt.reason for attempt in done.attempts] == [Reason.COMPLETED]
    leaps = [record.message for record in caplog.records if getattr(record, "action", "") == "clock_leapt"]
    assert len(leaps) <= int(seconds > 0)


async def test_a_dead_runners_task_is_ended_at_the_sweep_after_a_leap(shop: Shop, worker: Worker) -> None:
    agent = await shop.agent(retry={"max_attempts": 0})
    claim = Claim(owner="dead", lease_seconds=LEASE_SECONDS)
    task = await shop.store.create_task(NewTask(agent_id=agent.id), claim=claim)
    shop.sandbox.add_container(SandboxLabels(shop.store.store_id, task.id, task.fence))
    await shop.advance(LEASE_SECONDS / 2)

    shop.clock.set_wall_clock(shop.clock.now() + timedelta(hours=1))
    await shop.advance(LEASE_SECONDS)

    assert (await shop.store.get_task(task.id)).reason is Reason.LOST
    assert await shop.sandbox.owned_containers(shop.store.store_id) == []


async def test_a_sweep_that_does_not_believe_in_ends_of_leases_touches_what_needs_none(shop: Shop) -> None:
    async def never() -> bool:
        return False

    claim = Claim(owner="somebody", lease_seconds=LEASE_SECONDS)
    task = await shop.store.create_task(NewTask(agent_id=(await shop.agent()).id), claim=claim)
    kept = shop.sandbox.add_container(SandboxLabels(shop.store.store_id, task.id, task.fence))
    shop.sandbox.add_container(SandboxLabels(shop.store.store_id, task.id, task.fence + 1))
    shop.sandbox.add_container(SandboxLabels(shop.store.store_id, task.id + 1, 1))
    await shop.clock.advance(LEASE_SECONDS + 1)

    report = await sweep(shop.store, shop.sandbox, believe=never)

    assert (report.removed_containers, report.lost_tasks) == (2, ())
    assert [one.container_id for one in await shop.sandbox.owned_containers(shop.store.store_id)] == [kept]
    assert (await shop.store.get_task(task.id)).status is RUNNING


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (-3600, "the store's clock was set back by 3600.0 s: nothing fires until it shows 2026-01-01T00:0"),
        (-5.1, "the store's clock was set back by 5.1 s"),
        (3600, "the store's clock went forward by 3600.0 s, set or after a sleep"),
        (5.1, "the store's clock went forward by 5.1 s"),
    ],
)
async def test_a_clock_that_is_set_explains_once_why_schedules_are_silent_or_late(
    shop: Shop, caplog: pytest.LogCaptureFixture, seconds: float, message: str
) -> None:
    await shop.agent(schedule={"type": "interval", "interval_minutes": 1})
    scheduler = TaskScheduler(executor=shop.executor)
    await scheduler.start()
    await shop.advance(65)

    shop.clock.set_wall_clock(shop.clock.now() + timedelta(seconds=seconds))
    # Between fires; one that the step brought about has its own lines.
    await shop.advance(20)
    await scheduler.stop()

    said = [record for record in caplog.records if record.__dict__.get("action") == "clock_stepped"]
    assert [(record.levelno, record.__dict__["seconds"]) for record in said] == [(logging.WARNING, seconds)]
    assert said[0].getMessage().startswith(message)


@pytest.mark.parametrize("seconds", [-4.9, 4.9])
async def test_a_clock_that_is_put_right_by_little_is_not_worth_a_word(
    shop: Shop, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    scheduler = TaskScheduler(executor=shop.executor)
    await scheduler.start()
    await shop.advance(2)

    shop.clock.set_wall_clock(shop.clock.now() + timedelta(seconds=seconds))
    await shop.advance(2)
    await scheduler.stop()

    assert "clock_stepped" not in [record.__dict__.get("action") for record in caplog.records]
