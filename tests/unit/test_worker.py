from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.unit.shop import (
    CANCELLED,
    COMPLETED,
    FAILED,
    LEASE_SECONDS,
    PENDING,
    RUNNING,
    Shop,
    eventually,
)

from harness.errors import EngineUnavailableError, LeaseLostError, SandboxError, StoreUnavailableError
from harness.lease import BEATS_PER_LEASE
from harness.models import Claim, NewTask, Reason
from harness.polling import BACK_OFF_SECONDS, POLL_SECONDS
from harness.ports import SandboxLabels, SandboxResult
from harness.testing import FakeRun, FakeSession
from harness.worker import CANCEL_POLL_SECONDS, SWEEPS_PER_LEASE, Worker

FAILURE = SandboxResult(Reason.EXIT_NONZERO, 3, "exited with code 3")


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    await shop.store.open()
    yield shop
    await shop.store.close()


@pytest.fixture
async def hire(shop: Shop) -> AsyncIterator[Callable[..., Worker]]:
    """Makes workers that are started, and ends them with the test."""
    workers = []

    def make(max_concurrent: int = 5) -> Worker:
        workers.append(Worker(shop.executor, shop.parts, max_concurrent=max_concurrent))
        workers[-1].start()
        return workers[-1]

    yield make
    shop.sandbox.release()
    for worker in workers:
        await worker.kill()


Hire = Callable[..., Worker]


async def test_due_tasks_are_claimed_up_to_the_capacity_and_no_further(shop: Shop, hire: Hire) -> None:
    await shop.agents_with_tasks(5)
    shop.sandbox.hold()
    worker = hire(3)

    await shop.sandbox.until_running(3)
    await shop.advance(2)
    assert sorted(await shop.statuses()) == [PENDING, PENDING, RUNNING, RUNNING, RUNNING]
    assert worker.running == shop.sandbox.running == 3

    shop.sandbox.release()
    await shop.until_statuses(*[COMPLETED] * 5)
    await eventually(lambda: worker.running == 0)


async def test_a_slot_that_gets_free_is_filled_without_a_poll(shop: Shop, hire: Hire) -> None:
    await shop.agents_with_tasks(20)
    hire(1)

    # The clock stands still, so no poll can have passed.
    await shop.until_statuses(*[COMPLETED] * 20)


async def test_a_new_task_is_found_by_the_next_poll_or_at_once_by_a_wake_up(shop: Shop, hire: Hire) -> None:
    worker = hire()
    await eventually(lambda: shop.clock.sleepers >= 3)
    task = await shop.pending(await shop.agent())
    await shop.clock.advance(POLL_SECONDS)
    await shop.until_status(task, COMPLETED)

    task = await shop.pending(await shop.agent("other"))
    worker.wake()
    await shop.until_status(task, COMPLETED, ticking=False)


async def test_a_task_begins_when_it_is_due(shop: Shop, hire: Hire) -> None:
    hire()
    await eventually(lambda: shop.clock.sleepers >= 3)
    due_at = (await shop.store.now()).replace(microsecond=0).replace(second=7)
    task = await shop.pending(await shop.agent(), due_at=due_at)

    await shop.advance(6.5)
    assert (await shop.store.get_task(task.id)).status is PENDING
    await shop.advance(1)
    done = await shop.until_status(task, COMPLETED)
    assert done.started_at is not None
    assert abs((done.started_at - due_at).total_seconds()) <= 2 * POLL_SECONDS


async def test_a_stop_lets_runs_end_and_claims_no_more(shop: Shop, hire: Hire) -> None:
    first, second = await shop.agents_with_tasks(2)
    shop.sandbox.hold()
    worker = hire(1)
    await shop.sandbox.until_running()

    stopping = asyncio.create_task(worker.stop(drain_seconds=5))
    await asyncio.sleep(0)
    shop.sandbox.release()
    await stopping

    assert (await shop.store.get_task(first.id)).status is COMPLETED
    assert (await shop.store.get_task(second.id)).status is PENDING
    assert shop.sandbox.stops == []


async def test_a_stop_hands_back_what_does_not_end_in_time(shop: Shop, hire: Hire) -> None:
    (task,) = await shop.agents_with_tasks(1)
    shop.sandbox.hold()
    worker = hire()
    await shop.sandbox.until_running()

    await worker.stop()

    after = await shop.store.get_task(task.id)
    assert (after.status, after.due_at, after.retry_count) == (PENDING, await shop.store.now(), 0)
    assert after.attempts[0].reason is Reason.LOST
    assert shop.sandbox.stops == [(Reason.LOST, "its runner was shut down")]
    assert shop.sandbox.sessions == []
    # Another one begins it anew.
    shop.sandbox.release()
    hire()
    done = await shop.until_status(task, COMPLETED)
    assert [attempt.number for attempt in done.attempts] == [1, 2]


async def test_a_cancelled_stop_kills_without_grace_and_hands_back_all_the_same(
    shop: Shop, hire: Hire
) -> None:
    (task,) = await shop.agents_with_tasks(1)
    shop.sandbox.hold()
    worker = hire()
    await shop.sandbox.until_running()

    stopping = asyncio.create_task(worker.stop(drain_seconds=60))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping

    assert (await shop.store.get_task(task.id)).status is PENDING
    assert (shop.sandbox.stops, shop.sandbox.sessions, worker.running) == ([], [], 0)


async def test_what_a_claim_under_way_brings_is_handed_back_without_a_container(
    shop: Shop, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = await shop.agents_with_tasks(1)
    claim_tasks, asked, go_on = shop.store.claim_tasks, asyncio.Event(), asyncio.Event()

    async def slow_claim(claim: Claim, *, limit: int) -> object:
        claimed = await claim_tasks(claim, limit=limit)
        asked.set()
        await go_on.wait()
        return claimed

    monkeypatch.setattr(shop.store, "claim_tasks", slow_claim)
    worker = hire()
    await asked.wait()
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    go_on.set()
    await stopping

    assert (await shop.store.get_task(task.id)).status is PENDING
    assert shop.sandbox.specs == []


async def test_a_cancellation_is_passed_on_within_a_poll(shop: Shop, hire: Hire) -> None:
    task, other = await shop.agents_with_tasks(2)
    shop.sandbox.hold()
    hire()
    await shop.sandbox.until_running(2)

    await shop.store.cancel_task(task.id)
    await shop.advance(CANCEL_POLL_SECONDS)

    cancelled = await shop.until_status(task, CANCELLED)
    assert cancelled.reason is Reason.CANCELLED
    assert (await shop.store.get_task(other.id)).status is RUNNING


async def test_a_cancelled_task_is_not_handed_back_by_a_stop(shop: Shop, hire: Hire) -> None:
    (task,) = await shop.agents_with_tasks(1)
    shop.sandbox.hold()
    worker = hire()
    await shop.sandbox.until_running()
    await shop.store.cancel_task(task.id)

    await worker.stop()

    assert (await shop.store.get_task(task.id)).status is CANCELLED


async def test_a_worker_that_lost_a_lease_claims_under_another_name_and_still_hears_of_cancellations(
    shop: Shop, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, kept = await shop.agents_with_tasks(2)
    shop.sandbox.hold()
    worker = hire()
    await shop.sandbox.until_running(2)
    extend = shop.store.extend_lease

    async def lose_one(task_id: int, fence: int, lease_seconds: float) -> None:
        if task_id == lost.id:
            raise LeaseLostError("taken over")
        await extend(task_id, fence, lease_seconds)

    monkeypatch.setattr(shop.store, "extend_lease", lose_one)
    await shop.advance(LEASE_SECONDS / BEATS_PER_LEASE)
    await eventually(lambda: worker.running == 1)
    later = await shop.pending(await shop.agent("later"))
    worker.wake()
    await shop.until_status(later, RUNNING, ticking=False)

    owners = [(await shop.store.get_task(task.id)).lease_owner for task in (lost, kept, later)]
    assert owners[0] == owners[1] != owners[2]
    for task in (kept, later):
        await shop.store.cancel_task(task.id)
        await shop.until_status(task, CANCELLED)


async def test_a_failed_attempt_is_followed_by_another_after_its_wait(shop: Shop, hire: Hire) -> None:
    shop.sandbox.behave = lambda _job: FakeRun(result=FAILURE)
    task = await shop.pending(await shop.agent(), max_retries=3)
    hire()

    for retry_count, seconds in enumerate((2, 4, 8), start=1):

        async def is_waiting(count: int = retry_count) -> bool:
            # Its worker may just have begun a pause, which ends with time only.
            await shop.advance(0.05)
            return (await shop.store.get_task(task.id)).retry_count == count

        await eventually(is_waiting)
        waiting = await shop.store.get_task(task.id)
        assert waiting.status is PENDING
        ended = waiting.attempts[-1].ended_at
        assert waiting.due_at is not None
        assert ended is not None
        assert (waiting.due_at - ended).total_seconds() == pytest.approx(seconds, abs=0.5)
        await shop.advance(seconds + POLL_SECONDS)

    failed = await shop.until_status(task, FAILED)
    assert (len(failed.attempts), failed.reason) == (4, Reason.EXIT_NONZERO)


async def test_a_dead_runners_task_is_taken_over_by_a_sweep_after_its_container_is_gone(
    shop: Shop, hire: Hire
) -> None:
    agent = await shop.agent(retry={"delay_seconds": 1})
    dead = await shop.store.create_task(
        NewTask(agent_id=agent.id, max_retries=1), claim=Claim(owner="dead", lease_seconds=LEASE_SECONDS)
    )
    shop.sandbox.add_container(SandboxLabels(shop.store.store_id, dead.id, 1))
    hire()

    await shop.advance(LEASE_SECONDS - 1)
    assert (await shop.store.get_task(dead.id)).status is RUNNING
    shop.sandbox.remove_error = SandboxError("stuck")
    await shop.advance(1 + LEASE_SECONDS / SWEEPS_PER_LEASE)
    # As long as the container is there, the task is not given up.
    assert (await shop.store.get_task(dead.id)).status is RUNNING
    shop.sandbox.remove_error = None
    await shop.advance(2 + LEASE_SECONDS / SWEEPS_PER_LEASE)

    done = await shop.until_status(dead, COMPLETED)
    assert [attempt.reason for attempt in done.attempts] == [Reason.LOST, Reason.COMPLETED]
    assert await shop.sandbox.owned_containers(shop.store.store_id) == []


class Engine:
    """Lets the engine of a shop be away."""

    def __init__(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_away = False
        self.shop = shop
        owned_containers = shop.sandbox.owned_containers

        async def ask(store_id: str) -> object:
            if self.is_away:
                raise EngineUnavailableError("away")
            return await owned_containers(store_id)

        monkeypatch.setattr(shop.sandbox, "owned_containers", ask)

    def leave(self) -> None:
        self.is_away = True
        self.shop.sandbox.open_error = EngineUnavailableError("away")

    def come_back(self) -> None:
        self.is_away = False
        self.shop.sandbox.open_error = None


@pytest.fixture
def engine(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(shop, monkeypatch)


async def test_while_the_engine_is_away_at_the_start_nothing_is_claimed(
    shop: Shop, hire: Hire, engine: Engine
) -> None:
    (task,) = await shop.agents_with_tasks(1)
    engine.leave()
    hire()

    await shop.advance(3 * BACK_OFF_SECONDS)
    assert (await shop.store.get_task(task.id)).attempts == ()
    engine.come_back()
    await shop.advance(BACK_OFF_SECONDS)

    assert len((await shop.until_status(task, COMPLETED)).attempts) == 1


async def test_an_engine_that_goes_away_costs_no_retries_and_few_attempts(
    shop: Shop, hire: Hire, engine: Engine
) -> None:
    hire()
    await eventually(lambda: shop.clock.sleepers >= 3)
    engine.leave()
    task = await shop.pending(await shop.agent(), max_retries=0)

    await shop.advance(5 * BACK_OFF_SECONDS)
    waiting = await shop.store.get_task(task.id)
    assert (waiting.status, waiting.retry_count, len(waiting.attempts)) == (PENDING, 0, 1)
    engine.come_back()
    await shop.advance(BACK_OFF_SECONDS)

    assert [attempt.reason for attempt in (await shop.until_status(task, COMPLETED)).attempts] == [
        Reason.LOST,
        Reason.COMPLETED,
    ]


async def test_an_engine_that_answers_and_makes_no_container_is_not_asked_in_a_loop(
    shop: Shop, hire: Hire, engine: Engine
) -> None:
    hire()
    await eventually(lambda: shop.clock.sleepers >= 3)
    engine.leave()
    engine.is_away = False  # as on a connection that is kept
    task = await shop.pending(await shop.agent(), max_retries=0)

    for _ in range(5):
        await shop.advance(BACK_OFF_SECONDS)
    assert 2 <= len((await shop.store.get_task(task.id)).attempts) <= 6
    engine.come_back()
    await shop.advance(BACK_OFF_SECONDS)

    assert (await shop.until_status(task, COMPLETED)).retry_count == 0


async def test_a_container_that_cannot_be_made_is_a_failure(shop: Shop, hire: Hire) -> None:
    (task,) = await shop.agents_with_tasks(1)
    shop.sandbox.open_error = SandboxError("the engine does not have the image")
    hire()

    assert (await shop.until_status(task, FAILED)).reason is Reason.SANDBOX_ERROR


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), RuntimeError("a bug")])
async def test_a_store_that_fails_is_asked_again_after_a_pause(
    shop: Shop,
    hire: Hire,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (task,) = await shop.agents_with_tasks(1)
    calls = 0

    async def fail(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        raise error

    with monkeypatch.context() as away:
        for name in ("claim_tasks", "next_due_at", "expired_tasks", "cancel_requests"):
            away.setattr(shop.store, name, fail)
        with caplog.at_level(logging.WARNING):
            hire()
            await shop.advance(3 * BACK_OFF_SECONDS)
        assert 3 <= calls <= 6
    await shop.advance(BACK_OFF_SECONDS)

    await shop.until_status(task, COMPLETED)
    assert {getattr(record, "action", None) for record in caplog.records} == {
        "claim_failed",
        "background_failed",
    }


async def test_a_task_whose_agent_cannot_be_read_is_left_to_its_lease(
    shop: Shop, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await shop.pending(await shop.agent(retry={"delay_seconds": 0}), max_retries=1)

    async def fail(_agent_ids: object) -> None:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as away:
        away.setattr(shop.store, "load_agents", fail)
        worker = hire()
        await shop.until_status(task, RUNNING)
        await eventually(lambda: worker.running == 0)
    await shop.advance(LEASE_SECONDS + LEASE_SECONDS / SWEEPS_PER_LEASE + 1)

    done = await shop.until_status(task, COMPLETED)
    assert [attempt.reason for attempt in done.attempts] == [Reason.LOST, Reason.COMPLETED]


async def test_one_run_that_fails_in_an_unforeseen_way_does_not_end_the_worker(
    shop: Shop, hire: Hire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeSession.run

    async def stumble(self: FakeSession, *arguments: object, **options: object) -> object:
        monkeypatch.setattr(FakeSession, "run", run)
        raise RuntimeError("a bug")

    monkeypatch.setattr(FakeSession, "run", stumble)
    await shop.agents_with_tasks(2)
    hire(1)

    await shop.until_statuses(FAILED, COMPLETED)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "a run failed unexpectedly"
    ]


async def test_ending_a_worker_that_was_not_started_does_nothing(shop: Shop) -> None:
    worker = Worker(shop.executor, shop.parts)
    await worker.stop()
    await worker.kill()
