from __future__ import annotations

from datetime import timedelta

import pytest
from tests.contract.places import (
    LEASE_SECONDS,
    Place,
    claim,
    claim_one,
    completed,
    draft,
    new_task,
    put_schedule,
    running_task,
)

from harness.errors import InvalidInputError
from harness.models import Agent, Attempt, NewTask, Task, TaskStatus, WhenBusy
from harness.ports import Store


def ids(tasks: object) -> list[int]:
    assert isinstance(tasks, list | tuple)
    return [task.id for task in tasks]


async def test_a_claim_begins_an_attempt(place: Place, store: Store, agent: Agent) -> None:
    pending = await store.create_task(new_task(agent.id))
    await place.clock.advance(3)

    task = await claim_one(store, "me", 12.5)

    now = await store.now()
    assert task == await store.get_task(pending.id)
    assert (task.status, task.fence, task.lease_owner, task.started_at) == (TaskStatus.RUNNING, 1, "me", now)
    assert task.due_at == now + timedelta(seconds=12.5)
    assert task.attempts == (Attempt(number=1, due_at=pending.due_at, started_at=now),)


async def test_a_task_is_claimed_once(store: Store, agent: Agent) -> None:
    await store.create_task(new_task(agent.id))
    first = await claim_one(store)

    assert await store.claim_tasks(claim("runner-2"), limit=10) == []

    assert await store.get_task(first.id) == first


async def test_a_task_is_claimed_when_its_time_has_come(place: Place, store: Store, agent: Agent) -> None:
    at = await store.now() + timedelta(seconds=60)
    await store.create_task(new_task(agent.id, scheduled_at=at))
    await store.create_task(new_task(agent.id, due_at=at + timedelta(milliseconds=1)))

    await place.clock.advance(59.999)
    assert await store.claim_tasks(claim(), limit=10) == []
    await place.clock.advance(0.001)

    assert ids(await store.claim_tasks(claim(), limit=10)) == [1]


async def test_running_and_final_tasks_are_not_claimed(place: Place, store: Store, agent: Agent) -> None:
    await running_task(store, agent.id)
    ended = await running_task(store, agent.id)
    await store.finish_task(ended.id, 1, completed())
    await place.clock.advance(LEASE_SECONDS * 2)

    assert await store.claim_tasks(claim(), limit=10) == []


async def test_no_more_than_the_limit_are_claimed(store: Store, agent: Agent) -> None:
    for _ in range(5):
        await store.create_task(new_task(agent.id))

    assert ids(await store.claim_tasks(claim(), limit=2)) == [1, 2]
    assert ids(await store.claim_tasks(claim(), limit=9)) == [3, 4, 5]
    for limit in (0, -1):
        with pytest.raises(InvalidInputError, match="limit"):
            await store.claim_tasks(claim(), limit=limit)


async def test_higher_priority_goes_first(store: Store, agent: Agent) -> None:
    now = await store.now()
    for priority in (0, 5, -5, 5):
        await store.create_task(new_task(agent.id, priority=priority, scheduled_at=now))
    other = await store.create_agent(draft("other"))
    await store.create_task(new_task(other.id, priority=-5, scheduled_at=now - timedelta(hours=1)))

    assert ids(await store.claim_tasks(claim(), limit=9)) == [2, 4, 1, 5, 3]


async def test_an_agents_own_tasks_go_by_their_time(store: Store, agent: Agent) -> None:
    now = await store.now()
    for seconds in (5, 30, 5, 10):
        await store.create_task(new_task(agent.id, scheduled_at=now - timedelta(seconds=seconds)))

    assert ids(await store.claim_tasks(claim(), limit=9)) == [2, 4, 1, 3]


async def test_agents_take_turns(store: Store) -> None:
    now = await store.now()
    agents = [await store.create_agent(draft(name)) for name in ("backlog", "b", "c")]
    for age, agent in enumerate([agents[0]] * 5 + [agents[1]] * 2 + [agents[2]]):
        await store.create_task(new_task(agent.id, scheduled_at=now - timedelta(seconds=60 - age)))

    assert [task.agent_id for task in await store.claim_tasks(claim(), limit=4)] == [1, 2, 3, 1]
    # Backlog runs two now, the others one each.
    assert [task.agent_id for task in await store.claim_tasks(claim(), limit=9)] == [2, 1, 1, 1]


async def test_agents_with_fewer_running_tasks_go_first(store: Store) -> None:
    now = await store.now()
    agents = [await store.create_agent(draft(name)) for name in "abc"]
    for agent, count in zip(agents, (2, 0, 1), strict=True):
        for _ in range(count):
            await running_task(store, agent.id)
        await store.create_task(new_task(agent.id, scheduled_at=now - timedelta(seconds=count)))

    assert [task.agent_id for task in await store.claim_tasks(claim(), limit=9)] == [2, 3, 1]


async def test_a_waiting_task_gets_a_slot_with_its_claim(store: Store, agent: Agent) -> None:
    running = [await running_task(store, agent.id, max_active=2) for _ in range(2)]
    new = new_task(agent.id, max_active=2, when_busy=WhenBusy.WAIT)
    waiting = [await store.create_task(new) for _ in range(3)]
    await store.finish_task(running[1].id, 1, completed())

    assert ids(await store.claim_tasks(claim(), limit=9)) == [waiting[0].id]

    assert await store.claim_tasks(claim(), limit=9) == []
    for task in (running[0], waiting[0]):
        await store.finish_task(task.id, 1, completed())
    assert ids(await store.claim_tasks(claim(), limit=9)) == ids(waiting[1:])


async def test_tasks_that_wait_hold_nobody_up(store: Store, agent: Agent) -> None:
    await running_task(store, agent.id, max_active=1)
    for _ in range(20):
        await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.WAIT, priority=9))
    other = await store.create_agent(draft("other"))
    task = await store.create_task(new_task(other.id))

    assert ids(await store.claim_tasks(claim(), limit=1)) == [task.id]


async def test_of_tasks_that_wait_the_more_urgent_gets_the_slot(
    place: Place, store: Store, agent: Agent
) -> None:
    running = await running_task(store, agent.id, max_active=1)
    now = await store.now()
    late: list[Task] = []
    for priority, seconds in ((0, 1), (7, 60), (5, 3), (5, 2)):
        late.append(
            await store.create_task(
                NewTask(
                    agent_id=agent.id,
                    priority=priority,
                    scheduled_at=now + timedelta(seconds=seconds),
                    when_busy=WhenBusy.WAIT,
                )
            )
        )
    await store.finish_task(running.id, 1, completed())
    await place.clock.advance(5)

    # The one with priority 7 is not due.
    assert ids(await store.claim_tasks(claim(), limit=9)) == [late[3].id]


async def test_a_task_that_waits_for_fewer_others_does_not_wait_for_more(store: Store, agent: Agent) -> None:
    await running_task(store, agent.id, max_active=1)
    second = await running_task(store, agent.id, max_active=2)
    narrow = await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.WAIT))
    wide = await store.create_task(new_task(agent.id, max_active=2, when_busy=WhenBusy.WAIT))
    await store.finish_task(second.id, 1, completed())

    claimed = await store.claim_tasks(claim(), limit=9)

    # One slot is held: room for one of two, and none for one of one.
    assert ids(claimed) == [wide.id]
    assert (await store.get_task(narrow.id)).status is TaskStatus.PENDING


async def test_what_is_due_next_is_the_earliest_time_to_come(
    place: Place, store: Store, agent: Agent
) -> None:
    assert await store.next_due_at() is None
    now = await store.now()
    await running_task(store, agent.id)
    assert await store.next_due_at() is None

    for seconds in (60, 20, 40, -5, 0):
        await store.create_task(new_task(agent.id, due_at=now + timedelta(seconds=seconds)))
    assert await store.next_due_at() == now + timedelta(seconds=20)
    at = now + timedelta(seconds=10)
    await put_schedule(store, agent_id=agent.id, agent_version=1, next_fire_at=now, due_at=at, anchor_at=now)
    assert await store.next_due_at() == at
    await store.create_task(
        NewTask(agent_id=agent.id, due_at=now + timedelta(seconds=5), when_busy=WhenBusy.WAIT)
    )
    assert await store.next_due_at() == now + timedelta(seconds=5)

    for seconds in (5, 10, 20, 40):
        await place.clock.advance((now + timedelta(seconds=seconds) - await store.now()).total_seconds())
        following = {5: 10, 10: 20, 20: 40, 40: 60}[seconds]
        assert await store.next_due_at() == now + timedelta(seconds=following)
    await place.clock.advance(20)
    assert await store.next_due_at() is None


async def test_a_task_that_cannot_be_read_keeps_no_other_waiting(shared_place: Place) -> None:
    store = shared_place.make()
    await store.open()
    agent = await store.create_agent(draft())
    tasks = [await store.create_task(new_task(agent.id)) for _ in range(3)]
    await shared_place.spoil_task(tasks[0].id)

    assert ids(await store.claim_tasks(claim(), limit=1)) == [tasks[1].id]
    assert ids(await store.claim_tasks(claim(), limit=9)) == [tasks[2].id]
    assert await store.claim_tasks(claim(), limit=9) == []
