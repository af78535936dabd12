from __future__ import annotations

from datetime import timedelta

import pytest
from tests.contract.places import (
    Place,
    claim,
    claim_one,
    completed,
    draft,
    failed_task,
    new_task,
    running_task,
    statuses,
)

from harness.errors import AgentBusyError, DuplicateFireError, InvalidInputError
from harness.models import Agent, NewTask, Outcome, Reason, SkipReason, TaskStatus, WhenBusy
from harness.ports import Store

PENDING, RUNNING, CANCELLED, SKIPPED = (
    TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.CANCELLED, TaskStatus.SKIPPED,
)  # fmt: skip


async def test_an_agent_has_one_active_task_unless_more_are_allowed(store: Store, agent: Agent) -> None:
    other = await store.create_agent(draft("other"))
    first = await store.create_task(NewTask(agent_id=agent.id), claim=claim())

    with pytest.raises(AgentBusyError, match=f"agent {agent.id} has the active task {first.id}"):
        await store.create_task(NewTask(agent_id=agent.id))
    await store.create_task(NewTask(agent_id=other.id))
    await store.finish_task(first.id, 1, completed())

    second = await store.create_task(NewTask(agent_id=agent.id))
    with pytest.raises(AgentBusyError, match=f"task {second.id}"):
        await store.create_task(NewTask(agent_id=agent.id), claim=claim())
    assert (await store.list_tasks()).total_count == 3


async def test_as_many_tasks_as_allowed_hold_slots(store: Store, agent: Agent) -> None:
    tasks = [await running_task(store, agent.id, max_active=3) for _ in range(3)]

    with pytest.raises(AgentBusyError):
        await store.create_task(new_task(agent.id, max_active=3))
    await store.finish_task(tasks[1].id, 1, completed())

    await store.create_task(new_task(agent.id, max_active=3))
    with pytest.raises(AgentBusyError):
        await store.create_task(new_task(agent.id, max_active=3))
    await store.create_task(new_task(agent.id, max_active=4))


async def test_a_bound_that_was_lowered_counts_tasks_from_before(store: Store, agent: Agent) -> None:
    tasks = [await running_task(store, agent.id, max_active=3) for _ in range(3)]
    await store.finish_task(tasks[0].id, 1, completed())

    with pytest.raises(AgentBusyError):
        await store.create_task(new_task(agent.id, max_active=2))

    await store.finish_task(tasks[1].id, 1, completed())
    await store.create_task(new_task(agent.id, max_active=2))


@pytest.mark.parametrize("how", ["finish", "expire", "cancel", "retry", "hand back"])
async def test_a_slot_is_held_to_the_final_write(place: Place, store: Store, agent: Agent, how: str) -> None:
    task = await running_task(store, agent.id, max_active=1)
    now = await store.now()
    match how:
        case "finish":
            await store.finish_task(task.id, 1, Outcome(reason=Reason.TIMEOUT))
        case "expire":
            await place.clock.advance(60)
            await store.expire_task(task)
        case "retry":
            await store.retry_task(task.id, 1, Outcome(reason=Reason.TIMEOUT), due_at=now)
        case "hand back":
            await store.hand_back_task(task.id, 1, "shut down")
        case "cancel":
            await store.hand_back_task(task.id, 1, "shut down")
            await store.cancel_task(task.id)

    new = NewTask(agent_id=agent.id)
    if (await store.get_task(task.id)).status.is_final:
        await store.create_task(new)
    else:
        with pytest.raises(AgentBusyError):
            await store.create_task(new)


async def test_a_task_of_a_busy_agent_can_be_skipped(store: Store, agent: Agent) -> None:
    await running_task(store, agent.id, max_active=1)
    at = await store.now() + timedelta(seconds=3)

    task = await store.create_task(NewTask(agent_id=agent.id, fire_at=at, when_busy=WhenBusy.SKIP))

    assert task == await store.get_task(task.id)
    assert (task.status, task.skip_reason, task.fire_at) == (SKIPPED, SkipReason.OVERLAP, at)
    assert (task.completed_at, task.due_at, task.attempts) == (await store.now(), None, ())
    assert (task.skipped_until, task.skipped_count) == (None, 1)
    assert await store.claim_tasks(claim(), limit=10) == []
    with pytest.raises(DuplicateFireError):
        await store.create_task(NewTask(agent_id=agent.id, fire_at=at))


@pytest.mark.parametrize("when_busy", list(WhenBusy))
async def test_an_agent_with_a_free_slot_is_not_busy(store: Store, agent: Agent, when_busy: WhenBusy) -> None:
    first = await running_task(store, agent.id, max_active=2)

    task = await store.create_task(new_task(agent.id, max_active=2, when_busy=when_busy))

    assert task.status is PENDING
    assert (await claim_one(store)).id == task.id
    assert await store.cancel_requests("runner-1") == []
    assert (await store.get_task(first.id)) == first


async def test_one_task_waits_in_the_queue_and_the_next_is_skipped(store: Store, agent: Agent) -> None:
    first = await running_task(store, agent.id, max_active=1)
    queued = NewTask(agent_id=agent.id, when_busy=WhenBusy.QUEUE)

    waiting = await store.create_task(queued)
    skipped = await store.create_task(queued)

    assert (waiting.status, waiting.due_at) == (PENDING, await store.now())
    assert (skipped.status, skipped.skip_reason) == (SKIPPED, SkipReason.OVERLAP)
    assert await store.claim_tasks(claim(), limit=10) == []
    await store.finish_task(first.id, 1, completed())
    assert (await claim_one(store)).id == waiting.id
    # Its place in the queue is free again.
    assert (await store.create_task(queued)).status is PENDING
    with pytest.raises(AgentBusyError):
        await store.create_task(NewTask(agent_id=agent.id))


async def test_queues_of_agents_are_their_own(store: Store, agent: Agent) -> None:
    other = await store.create_agent(draft("other"))
    for owner in (agent, other):
        await running_task(store, owner.id, max_active=1)
        task = await store.create_task(NewTask(agent_id=owner.id, when_busy=WhenBusy.QUEUE))
        assert task.status is PENDING


async def test_one_that_waits_is_not_overtaken_once_a_slot_is_free(store: Store, agent: Agent) -> None:
    first = await running_task(store, agent.id, max_active=1)
    queued = NewTask(agent_id=agent.id, when_busy=WhenBusy.QUEUE)
    waiting = await store.create_task(queued)
    await store.finish_task(first.id, 1, completed())

    assert (await store.create_task(queued)).status is SKIPPED
    assert (await claim_one(store)).id == waiting.id


async def test_one_that_waits_is_replaced_also_once_a_slot_is_free(store: Store, agent: Agent) -> None:
    first = await running_task(store, agent.id, max_active=1)
    waiting = await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.QUEUE))
    await store.finish_task(first.id, 1, completed())

    newest = await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.REPLACE))

    assert (await store.get_task(waiting.id)).skip_reason is SkipReason.SUPERSEDED
    assert (await claim_one(store)).id == newest.id


async def test_nobody_is_asked_to_end_where_a_slot_is_free(store: Store, agent: Agent) -> None:
    running = [await running_task(store, agent.id, max_active=2) for _ in range(2)]
    waiting = await store.create_task(new_task(agent.id, max_active=2, when_busy=WhenBusy.QUEUE))
    await store.finish_task(running[0].id, 1, completed())

    newest = await store.create_task(new_task(agent.id, max_active=2, when_busy=WhenBusy.REPLACE))

    assert await statuses(store, waiting.id) == [SKIPPED]
    assert await store.cancel_requests("runner-1") == []
    assert (await claim_one(store)).id == newest.id


async def test_a_place_in_the_queue_is_free_once_its_task_is_cancelled(store: Store, agent: Agent) -> None:
    await running_task(store, agent.id, max_active=1)
    queued = NewTask(agent_id=agent.id, when_busy=WhenBusy.QUEUE)
    waiting = await store.create_task(queued)

    await store.cancel_task(waiting.id)

    assert (await store.create_task(queued)).status is PENDING


async def test_any_number_waits(place: Place, store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id, max_active=1)
    now = await store.now()
    for seconds in (3, 1, 2):
        at = now + timedelta(seconds=seconds)
        await store.create_task(
            NewTask(agent_id=agent.id, scheduled_at=at, when_busy=WhenBusy.WAIT, max_active=1)
        )
    await place.clock.advance(5)

    order = []
    while True:
        await store.finish_task(task.id, 1, completed())
        claimed = await store.claim_tasks(claim(), limit=10)
        if not claimed:
            break
        (task,) = claimed
        order.append(task.id)

    assert order == [3, 4, 2]


@pytest.mark.parametrize("waits_as", [WhenBusy.QUEUE, WhenBusy.WAIT])
async def test_a_slot_that_gets_free_belongs_to_the_task_that_waits_for_it(
    store: Store, agent: Agent, waits_as: WhenBusy
) -> None:
    failed = await failed_task(store, agent.id, max_active=1)
    first = await running_task(store, agent.id, max_active=1)
    waiting = await store.create_task(NewTask(agent_id=agent.id, when_busy=waits_as))
    await store.finish_task(first.id, 1, completed())

    for refused in (
        store.create_task(NewTask(agent_id=agent.id)),
        store.create_task(NewTask(agent_id=agent.id), claim=claim()),
        store.reopen_task(failed.id, due_at=first.created_at, max_retries=1),
    ):
        with pytest.raises(AgentBusyError, match=f"task {waiting.id}"):
            await refused
    skipped = await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.SKIP))
    assert (skipped.status, skipped.skip_reason) == (SKIPPED, SkipReason.OVERLAP)
    behind = await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.WAIT))

    assert [task.id for task in await store.claim_tasks(claim(), limit=10)] == [waiting.id]
    await store.finish_task(waiting.id, 1, completed())
    assert [task.id for task in await store.claim_tasks(claim(), limit=10)] == [behind.id]
    await store.finish_task(behind.id, 1, completed())
    await store.create_task(NewTask(agent_id=agent.id))


async def test_a_slot_beyond_those_that_are_waited_for_is_free(store: Store, agent: Agent) -> None:
    running = [await running_task(store, agent.id, max_active=3) for _ in range(3)]
    waiting = await store.create_task(new_task(agent.id, max_active=3, when_busy=WhenBusy.WAIT))
    for task in running[:2]:
        await store.finish_task(task.id, 1, completed())

    allowed = await store.create_task(new_task(agent.id, max_active=3, when_busy=WhenBusy.SKIP))
    beyond = await store.create_task(new_task(agent.id, max_active=3, when_busy=WhenBusy.SKIP))

    assert await statuses(store, allowed.id, beyond.id) == [PENDING, SKIPPED]
    assert {task.id for task in await store.claim_tasks(claim(), limit=10)} == {waiting.id, allowed.id}


async def test_fires_that_are_caught_up_are_not_overtaken_by_one_that_replaces(
    store: Store, agent: Agent
) -> None:
    first = await running_task(store, agent.id, max_active=1)
    late = await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.WAIT))
    await store.finish_task(first.id, 1, completed())

    newest = await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.REPLACE))

    assert await store.cancel_requests("runner-1") == []
    assert (await claim_one(store)).id == late.id
    await store.finish_task(late.id, 1, completed())
    assert (await claim_one(store)).id == newest.id


async def test_a_replacement_asks_the_running_tasks_to_end_and_waits(store: Store, agent: Agent) -> None:
    running = [await running_task(store, agent.id, max_active=2) for _ in range(2)]
    other = await store.create_agent(draft("other"))
    bystander = await running_task(store, other.id)

    task = await store.create_task(new_task(agent.id, max_active=2, when_busy=WhenBusy.REPLACE))

    assert task.status is PENDING
    assert await store.cancel_requests("runner-1") == [item.id for item in running]
    assert await store.claim_tasks(claim(), limit=10) == []
    assert await store.get_task(bystander.id) == bystander
    await store.finish_task(running[0].id, 1, Outcome(reason=Reason.CANCELLED))
    assert (await claim_one(store)).id == task.id


async def test_a_replacement_skips_the_task_that_waits(place: Place, store: Store, agent: Agent) -> None:
    await running_task(store, agent.id, max_active=1)
    new = NewTask(agent_id=agent.id, when_busy=WhenBusy.REPLACE)
    waiting = await store.create_task(new)
    requested = (await store.get_task(1)).cancel_requested_at
    await place.clock.advance(1)

    newer = await store.create_task(new)

    old = await store.get_task(waiting.id)
    assert (old.status, old.skip_reason, old.skipped_count) == (SKIPPED, SkipReason.SUPERSEDED, 1)
    assert (old.completed_at, old.due_at) == (await store.now(), None)
    assert newer.status is PENDING
    assert (await store.get_task(1)).cancel_requested_at == requested


async def test_a_replacement_takes_the_slot_of_a_task_that_has_not_begun(store: Store, agent: Agent) -> None:
    first = await store.create_task(NewTask(agent_id=agent.id))

    task = await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.REPLACE))

    assert await statuses(store, first.id, task.id) == [CANCELLED, PENDING]
    assert (await claim_one(store)).id == task.id


async def test_a_task_can_be_stored_as_skipped_for_a_run_of_fires(store: Store, agent: Agent) -> None:
    await running_task(store, agent.id, max_active=1)
    now = await store.now()
    new = NewTask(
        agent_id=agent.id,
        trigger="schedule",
        fire_at=now - timedelta(hours=2),
        skip_reason=SkipReason.MISSED,
        skipped_until=now - timedelta(hours=1),
        skipped_count=13,
    )

    task = await store.create_task(new)

    assert task == await store.get_task(task.id)
    assert (task.status, task.skip_reason) == (SKIPPED, SkipReason.MISSED)
    assert (task.fire_at, task.skipped_until, task.skipped_count) == (new.fire_at, new.skipped_until, 13)
    assert (task.completed_at, task.due_at) == (now, None)
    with pytest.raises(DuplicateFireError):
        await store.create_task(new)


@pytest.mark.parametrize(
    "fields",
    [{"when_busy": when_busy} for when_busy in WhenBusy if when_busy is not WhenBusy.REJECT]
    + [{"skip_reason": SkipReason.MISSED}],
)
async def test_only_a_task_that_is_sure_to_run_can_be_created_with_a_claim(
    store: Store, agent: Agent, fields: dict[str, object]
) -> None:
    with pytest.raises(InvalidInputError, match="claim"):
        await store.create_task(new_task(agent.id, **fields), claim=claim())

    assert (await store.list_tasks()).total_count == 0
