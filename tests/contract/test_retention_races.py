"""Purges beside everything else that goes on, on stores where races are real."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from tests.contract.places import Place, chunk, claim, completed, draft, failed_task, new_task, state
from tests.contract.test_races import RACERS, race
from tests.contract.test_retention import ended_task, everything, purge_all, task_ids

from harness.errors import ConflictError, TaskNotFoundError
from harness.models import Agent, TaskStatus
from harness.ports import Store
from harness.retention import Expiry


@pytest.fixture
async def stores(real_place: Place) -> list[Store]:
    made = [real_place.make() for _ in range(RACERS)]
    for store in made:
        await store.open()
    return made


@pytest.fixture
async def agent(stores: list[Store]) -> Agent:
    return await stores[0].create_agent(draft())


async def test_several_purges_delete_everything_once(stores: list[Store], agent: Agent) -> None:
    for _ in range(12):
        await ended_task(stores[0], agent.id)
    expiry = await everything(stores[0])

    totals = await asyncio.gather(*(purge_all(store, agent.id, expiry, limit=3) for store in stores))

    assert sum(total.tasks for total in totals) == 12
    assert sum(total.artifacts for total in totals) == 11
    assert await task_ids(stores[0], agent.id) == []
    for task_id in range(1, 13):
        assert await stores[0].read_logs(task_id) == []
    (kept,) = await stores[0].artifact_history(agent.id)
    assert (kept.version, kept.run_count) == (12, 12)


async def test_a_task_is_either_tried_again_or_deleted(stores: list[Store], agent: Agent) -> None:
    for _ in range(15):
        task = await failed_task(stores[0], agent.id)
        now = await stores[0].now()
        expiry = await everything(stores[0])

        purged, (reopened, lost) = await asyncio.gather(
            purge_all(stores[0], agent.id, expiry),
            # With the same numbers the second would be a repetition of the first.
            race(
                store.reopen_task(task.id, due_at=now, max_retries=number)
                for number, store in enumerate(stores[1:3], start=8)
            ),
        )

        if purged.tasks:
            assert reopened == []
            assert lost == {TaskNotFoundError: 2}
            assert await task_ids(stores[0], agent.id) == []
        else:
            assert len(reopened) == 1
            assert lost == {ConflictError: 1}
            assert (await stores[0].get_task(task.id)).status is TaskStatus.PENDING
            await stores[0].cancel_task(task.id)
            await purge_all(stores[0], agent.id, expiry)


async def test_runs_go_on_while_what_they_leave_is_deleted(stores: list[Store], agent: Agent) -> None:
    done = asyncio.Event()
    counts: list[int] = []

    async def work() -> None:
        for number in range(1, 31):
            await stores[0].create_task(new_task(agent.id))
            (task,) = await stores[0].claim_tasks(claim(), limit=1)
            newest = await stores[0].newest_artifact(agent.id)
            assert (0 if newest is None else newest.run_count) == number - 1
            await stores[0].append_logs(task.id, 1, [await chunk(stores[0], 0)])
            ended = await stores[0].finish_task(task.id, 1, completed(), artifact=state(n=number))
            assert ended.status is TaskStatus.COMPLETED
        done.set()

    async def forget(store: Store) -> None:
        while not done.is_set():
            later = await store.now() + timedelta(hours=1)
            expiry = Expiry(later, tasks_before=later, max_artifacts=2)
            counts.append((await purge_all(store, agent.id, expiry, limit=4)).tasks)

    await asyncio.gather(work(), *(forget(store) for store in stores[1:3]))

    assert sum(counts) > 0
    await purge_all(stores[0], agent.id, await everything(stores[0]))
    (kept,) = await stores[0].artifact_history(agent.id)
    assert (kept.state, kept.version, kept.run_count) == ({"n": 30}, 30, 30)


async def test_an_agent_may_be_deleted_while_it_is_purged(stores: list[Store], agent: Agent) -> None:
    for _ in range(10):
        await ended_task(stores[0], agent.id)
    expiry = await everything(stores[0])

    await asyncio.gather(
        stores[0].delete_agent(agent.id),
        *(purge_all(store, agent.id, expiry, limit=2) for store in stores[1:3]),
    )

    assert (await stores[0].list_agents()).total_count == 0
    assert (await stores[0].list_tasks()).total_count == 0
    assert await stores[0].artifact_history(agent.id) == []
