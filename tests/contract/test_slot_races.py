"""Slots, claims and fires while several processes want the same at the same moment."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta

import pytest
from tests.contract.places import (
    LEASE_SECONDS,
    Place,
    claim,
    completed,
    draft,
    failed_task,
    fire,
    new_task,
    plan,
    scheduled_agent,
)

from harness.errors import AgentBusyError, HarnessError
from harness.models import NewTask, Outcome, Reason, SkipReason, TaskStatus, WhenBusy
from harness.ports import Store

RACERS = 5


@pytest.fixture
async def stores(real_place: Place) -> list[Store]:
    """Stores on the same data, each with connections of its own, as in as many processes."""
    made = [real_place.make() for _ in range(RACERS)]
    for store in made:
        await store.open()
    return made


async def active_tasks(store: Store, agent_id: int) -> int:
    """Count the tasks that hold a slot, where none waits."""
    counts = [
        (await store.list_tasks(agent_id=agent_id, status=status, limit=1)).total_count
        for status in (TaskStatus.PENDING, TaskStatus.RUNNING)
    ]
    return sum(counts)


async def test_many_claimers_take_each_of_many_agents_tasks_once(stores: list[Store]) -> None:
    agents = [await stores[0].create_agent(draft(f"a{n}")) for n in range(8)]
    created = [
        (await stores[0].create_task(new_task(agent.id, priority=n % 3))).id
        for agent in agents
        for n in range(5)
    ]
    taken: list[tuple[int, int]] = []

    async def drain(store: Store, owner: str) -> None:
        while (await store.list_tasks(status=TaskStatus.PENDING, limit=1)).total_count:
            taken.extend((task.id, task.fence) for task in await store.claim_tasks(claim(owner), limit=4))

    await asyncio.gather(*(drain(store, f"runner-{n}") for n, store in enumerate(stores)))

    assert sorted(taken) == [(task_id, 1) for task_id in created]


async def test_of_many_tasks_as_many_as_there_are_slots_are_stored(stores: list[Store]) -> None:
    agent = await stores[0].create_agent(draft())
    for max_active in (1, 3):
        results = await asyncio.gather(
            *(
                store.create_task(new_task(agent.id, max_active=max_active), claim=claim())
                for store in stores * 2
            ),
            return_exceptions=True,
        )

        won = [task for task in results if not isinstance(task, BaseException)]
        assert len(won) == max_active
        assert {type(error) for error in results if isinstance(error, BaseException)} == {AgentBusyError}
        for task in won:
            await stores[0].finish_task(task.id, 1, completed())


async def test_slots_are_never_exceeded(real_place: Place, stores: list[Store]) -> None:
    agent = await stores[0].create_agent(draft())
    for _ in range(6):
        await failed_task(stores[0], agent.id, max_active=2)
    running: set[int] = set()
    most = 0
    # How the racers go on must not depend on each other, or a slow one would keep in step with the others.
    chances = [random.Random(n) for n in range(RACERS)]

    async def work(store: Store, chance: random.Random) -> None:
        nonlocal most
        for _ in range(12):
            now = await store.now()
            try:
                match chance.randrange(4):
                    case 0:
                        await store.create_task(new_task(agent.id, max_active=2))
                    case 1:
                        await store.create_task(new_task(agent.id, max_active=2, when_busy=WhenBusy.WAIT))
                    case 2:
                        failed = await store.list_tasks(status=TaskStatus.FAILED, limit=3)
                        chosen = chance.choice(failed.items)
                        await store.reopen_task(chosen.id, due_at=now, max_retries=1000)
            except (HarnessError, IndexError):
                pass
            for task in await store.claim_tasks(claim(), limit=2):
                running.add(task.id)
                most = max(most, len(running))
                await asyncio.sleep(0)
                running.discard(task.id)
                outcome = Outcome(reason=Reason.EXIT_NONZERO) if chance.random() < 0.5 else completed()
                await store.finish_task(task.id, task.fence, outcome)

    await asyncio.gather(*(work(*pair) for pair in zip(stores, chances, strict=True)))

    assert 1 <= most <= 2
    await real_place.clock.advance(1)
    for _ in range(200):
        tasks = await stores[0].claim_tasks(claim(), limit=9)
        assert len(tasks) <= 2
        for task in tasks:
            await stores[0].finish_task(task.id, task.fence, completed())
        if not tasks:
            break
    assert await active_tasks(stores[0], agent.id) == 0


async def test_one_of_many_tasks_queues(real_place: Place, stores: list[Store]) -> None:
    agent = await stores[0].create_agent(draft())
    for _ in range(3):
        task = await stores[0].create_task(NewTask(agent_id=agent.id), claim=claim())

        tasks = await asyncio.gather(
            *(store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.QUEUE)) for store in stores)
        )

        assert Counter(task.status for task in tasks) == {
            TaskStatus.PENDING: 1,
            TaskStatus.SKIPPED: RACERS - 1,
        }
        await stores[0].finish_task(task.id, 1, completed())
        # The clocks of two stores differ by what a round trip took.
        await real_place.clock.advance(1)
        (queued,) = await stores[0].claim_tasks(claim(), limit=9)
        await stores[0].finish_task(queued.id, 1, completed())


async def test_of_many_replacements_the_last_one_waits(stores: list[Store]) -> None:
    agent = await stores[0].create_agent(draft())
    running = await stores[0].create_task(NewTask(agent_id=agent.id), claim=claim())

    tasks = await asyncio.gather(
        *(store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.REPLACE)) for store in stores)
    )

    stored = [await stores[0].get_task(task.id) for task in tasks]
    assert Counter((task.status, task.skip_reason) for task in stored) == {
        (TaskStatus.PENDING, None): 1,
        (TaskStatus.SKIPPED, SkipReason.SUPERSEDED): RACERS - 1,
    }
    assert await stores[0].cancel_requests("runner-1") == [running.id]


async def test_a_plan_carried_out_by_many_becomes_one_set_of_tasks(
    real_place: Place, stores: list[Store]
) -> None:
    states = [await scheduled_agent(stores[0], f"a{n}") for n in range(6)]
    plans = [
        plan(
            state,
            fire(state, skip_reason=SkipReason.MISSED, skipped_count=2),
            fire(state, minutes=5, when_busy=WhenBusy.WAIT),
            fire(state, minutes=10, when_busy=WhenBusy.REPLACE),
        )
        for state in states
    ]

    returned = await asyncio.gather(*(store.fire_schedules(plans) for store in stores))

    await real_place.clock.advance(2)
    await asyncio.gather(*(store.due_schedules() for store in stores))
    tasks = (await stores[0].list_tasks()).items
    fires = Counter((task.agent_id, task.fire_at) for task in tasks)
    assert fires == {(new.agent_id, new.fire_at): 1 for fires in plans for new in fires.tasks}
    ids = [task.id for tasks in returned for task in tasks]
    assert sorted(ids) == sorted(task.id for task in tasks)
    for state in states:
        after = (await stores[0].get_schedule(state.agent_id)).state
        assert after is not None
        assert after.revision == 2


async def test_of_many_changes_of_a_schedule_one_is_stored(stores: list[Store]) -> None:
    state = await scheduled_agent(stores[0])

    changes = [
        state.model_copy(update={"anchor_at": state.anchor_at + timedelta(seconds=n)}) for n in range(RACERS)
    ]
    stored = await asyncio.gather(
        *(store.put_schedules([change]) for store, change in zip(stores, changes, strict=True)),
        stores[0].fire_schedules([plan(state)]),
    )

    winners = [result for result in stored if result]
    assert len(winners) == 1
    after = (await stores[0].get_schedule(state.agent_id)).state
    assert after is not None
    assert after.revision == 2


async def test_a_task_is_cancelled_or_runs_but_never_both(stores: list[Store]) -> None:
    agent = await stores[0].create_agent(draft())
    for _ in range(8):
        pending = await stores[0].create_task(NewTask(agent_id=agent.id))

        _, taken = await asyncio.gather(
            stores[1].cancel_task(pending.id), stores[2].claim_tasks(claim(), limit=1)
        )

        stored = await stores[3].get_task(pending.id)
        if taken:
            assert stored.status is TaskStatus.RUNNING
            assert await stores[3].cancel_requests("runner-1") == [stored.id]
            ended = await stores[3].hand_back_task(stored.id, 1, "shut down")
            assert ended.status is TaskStatus.CANCELLED
        else:
            assert stored.status is TaskStatus.CANCELLED


async def test_a_lost_task_is_tried_again_once(real_place: Place, stores: list[Store]) -> None:
    agent = await stores[0].create_agent(draft())
    task = await stores[0].create_task(NewTask(agent_id=agent.id, max_retries=5), claim=claim())
    await real_place.clock.advance(LEASE_SECONDS + 1)
    at = await stores[0].now()

    ended = await asyncio.gather(*(store.expire_task(task, retry_at=at) for store in stores))

    assert sum(item is not None for item in ended) == 1
    assert (await stores[0].get_task(task.id)).retry_count == 1
