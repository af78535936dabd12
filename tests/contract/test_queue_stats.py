"""`Store.queue_stats`: what there is to do, and since when."""

from __future__ import annotations

from datetime import timedelta

from tests.contract.places import LEASE_SECONDS, Place, claim, completed, new_task, running_task

from harness.models import Agent, NewTask, Outcome, QueueStats, Reason, WhenBusy
from harness.ports import Store


async def test_an_empty_store_has_nothing_to_do(store: Store) -> None:
    stats = await store.queue_stats()

    assert stats == QueueStats(at=stats.at)


async def test_tasks_are_counted_by_what_they_wait_for(store: Store, agent: Agent, place: Place) -> None:
    began_at = await store.now()
    await store.create_task(NewTask(agent_id=agent.id))
    for _ in range(2):
        await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.WAIT))
    await place.clock.advance(5)
    await store.create_task(new_task(agent.id))
    await store.create_task(new_task(agent.id, due_at=await store.now() + timedelta(seconds=60)))

    stats = await store.queue_stats()

    assert (stats.ready, stats.waiting, stats.delayed, stats.running) == (2, 2, 1, 0)
    assert stats.ready_since is not None
    assert abs(stats.ready_since - began_at) < timedelta(seconds=2)
    assert stats.waiting_since is not None
    assert abs(stats.waiting_since - began_at) < timedelta(seconds=2)


async def test_running_tasks_are_counted_wherever_they_run(store: Store, agent: Agent) -> None:
    first = await running_task(store, agent.id)
    await running_task(store, agent.id)
    assert (await store.queue_stats()).running == 2

    await store.finish_task(first.id, first.fence, completed())

    stats = await store.queue_stats()
    assert (stats.running, stats.expired, stats.ready) == (1, 0, 0)


async def test_running_tasks_of_the_dead_are_counted_apart(store: Store, agent: Agent, place: Place) -> None:
    await running_task(store, agent.id)
    await place.clock.advance(LEASE_SECONDS + 5)

    stats = await store.queue_stats()

    assert (stats.running, stats.expired) == (1, 1)


async def test_what_has_ended_is_not_counted(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.finish_task(task.id, task.fence, completed())
    pending = await store.create_task(new_task(agent.id))
    await store.cancel_task(pending.id)

    stats = await store.queue_stats()

    assert stats == QueueStats(at=stats.at)


async def test_an_attempt_knows_since_when_it_was_due(store: Store, agent: Agent) -> None:
    created = await store.create_task(new_task(agent.id))
    (task,) = await store.claim_tasks(claim(), limit=1)
    assert task.attempt is not None
    assert task.attempt.due_at == created.due_at

    again_at = await store.now()
    failed = Outcome(reason=Reason.EXIT_NONZERO, exit_code=1)
    await store.retry_task(task.id, task.fence, failed, due_at=again_at)
    (again,) = await store.claim_tasks(claim(lease_seconds=LEASE_SECONDS), limit=1)

    assert [attempt.due_at for attempt in (await store.get_task(again.id)).attempts] == [
        created.due_at,
        again_at,
    ]
