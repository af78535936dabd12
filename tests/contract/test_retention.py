"""What a store forgets, and what it never does. An `Expiry` names instants, so no test has to wait for a month."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.contract.places import (
    Place,
    chunk,
    claim,
    completed,
    draft,
    failed_task,
    fire,
    new_task,
    plan,
    running_task,
    scheduled_agent,
    state,
)

from harness.errors import InvalidInputError, LeaseLostError, TaskNotFoundError
from harness.models import Agent, Task, TaskStatus
from harness.ports import Store
from harness.retention import Expiry, Purged

LATER = timedelta(hours=1)
#: More than any test stores.
LIMIT = 1000


async def ended_task(store: Store, agent_id: int, *, chunks: int = 2) -> Task:
    """Have a task done, with output and an artifact."""
    task = await running_task(store, agent_id)
    await store.append_logs(task.id, 1, [await chunk(store, index) for index in range(chunks)])
    return await store.finish_task(task.id, 1, completed(), artifact=state(task=task.id))


async def ended_tasks(place: Place, store: Store, agent_id: int, count: int) -> list[Task]:
    """Have tasks done one after the other, a second apart."""
    tasks = []
    for _ in range(count):
        tasks.append(await ended_task(store, agent_id))
        await place.clock.advance(1)
    return tasks


async def everything(store: Store) -> Expiry:
    """The harshest policy, an hour from now."""
    later = await store.now() + LATER
    return Expiry(
        before=later,
        tasks_before=later,
        max_tasks=1,
        logs_before=later,
        artifacts_before=later,
        max_artifacts=1,
    )


async def purge_all(store: Store, agent_id: int, expiry: Expiry, *, limit: int = LIMIT) -> Purged:
    total = Purged()
    while True:
        purged = await store.purge(agent_id, expiry, limit=limit)
        total += purged
        if not purged.more:
            return total


async def task_ids(store: Store, agent_id: int) -> list[int]:
    """An agent's tasks, the oldest first."""
    return sorted(task.id for task in (await store.list_tasks(agent_id=agent_id, limit=LIMIT)).items)


async def versions(store: Store, agent_id: int) -> list[int]:
    return [artifact.version for artifact in await store.artifact_history(agent_id)]


async def test_tasks_that_ended_before_an_instant_go_with_their_logs(
    place: Place, store: Store, agent: Agent
) -> None:
    old, edge, young = await ended_tasks(place, store, agent.id, 3)
    later = await store.now() + LATER

    purged = await purge_all(store, agent.id, Expiry(later, tasks_before=edge.completed_at))

    assert purged == Purged(tasks=1)
    assert await task_ids(store, agent.id) == [edge.id, young.id]
    assert await store.read_logs(old.id) == []
    assert len(await store.read_logs(edge.id)) == 2


async def test_tasks_past_a_number_go_the_oldest_first(place: Place, store: Store, agent: Agent) -> None:
    tasks = await ended_tasks(place, store, agent.id, 5)

    purged = await purge_all(store, agent.id, Expiry(await store.now() + LATER, max_tasks=2))

    assert purged == Purged(tasks=3)
    assert await task_ids(store, agent.id) == [task.id for task in tasks[3:]]
    assert await store.read_logs(tasks[0].id) == []


async def test_what_has_not_ended_stays_however_old(store: Store, agent: Agent) -> None:
    running = await running_task(store, agent.id)
    pending = await store.create_task(new_task(agent.id))
    retried = await running_task(store, agent.id)
    retried = await store.retry_task(retried.id, 1, completed(), due_at=await store.now() + LATER)
    again = await failed_task(store, agent.id)
    again = await store.reopen_task(again.id, due_at=await store.now() + LATER, max_retries=3)
    gone = await ended_task(store, agent.id)

    purged = await purge_all(store, agent.id, await everything(store))

    assert purged.tasks == 1
    for task in (running, pending, retried, again):
        assert await store.get_task(task.id) == task
    with pytest.raises(TaskNotFoundError):
        await store.get_task(gone.id)
    await store.finish_task(running.id, 1, completed())
    assert [task.id for task in await store.claim_tasks(claim(), limit=9)] == [pending.id]


async def test_every_way_a_task_ends_is_an_end(store: Store, agent: Agent) -> None:
    await failed_task(store, agent.id)
    cancelled = await store.create_task(new_task(agent.id))
    await store.cancel_task(cancelled.id)
    before = await scheduled_agent(store)
    (skipped,) = await store.fire_schedules([plan(before, fire(before, skip_reason="missed"))])
    assert skipped.status is TaskStatus.SKIPPED

    assert (await purge_all(store, agent.id, await everything(store))).tasks == 2
    assert (await purge_all(store, before.agent_id, await everything(store))).tasks == 1
    assert (await store.list_tasks()).total_count == 0


async def test_nothing_goes_that_ended_since_an_instant(place: Place, store: Store, agent: Agent) -> None:
    old, edge, young = await ended_tasks(place, store, agent.id, 3)
    assert edge.completed_at is not None
    expiry = Expiry(before=edge.completed_at, max_tasks=1, max_artifacts=1)

    purged = await purge_all(store, agent.id, expiry)

    assert (purged.tasks, purged.artifacts) == (1, 1)
    assert await task_ids(store, agent.id) == [edge.id, young.id]
    assert old.id not in [artifact.task_id for artifact in await store.artifact_history(agent.id)]


async def test_logs_may_go_before_their_task_and_once(place: Place, store: Store, agent: Agent) -> None:
    old, edge, young = await ended_tasks(place, store, agent.id, 3)
    expiry = Expiry(await store.now() + LATER, logs_before=edge.completed_at)

    assert await purge_all(store, agent.id, expiry) == Purged(logs=1)

    assert await store.get_task(old.id) == old
    assert await store.read_logs(old.id) == []
    assert len(await store.read_logs(edge.id)) == len(await store.read_logs(young.id)) == 2
    assert await purge_all(store, agent.id, expiry) == Purged()
    # The task itself goes later all the same.
    expiry = Expiry(await store.now() + LATER, tasks_before=edge.completed_at)
    assert await purge_all(store, agent.id, expiry) == Purged(tasks=1)


async def test_a_task_that_never_ran_has_no_logs_to_lose(store: Store, agent: Agent) -> None:
    task = await store.create_task(new_task(agent.id))
    await store.cancel_task(task.id)
    later = await store.now() + LATER

    assert await store.purgeable(agent.id, Expiry(later, logs_before=later)) == Purged()
    assert await purge_all(store, agent.id, Expiry(later, logs_before=later)) == Purged()


async def test_a_task_that_is_tried_again_gets_logs_of_its_own(store: Store, agent: Agent) -> None:
    task = await failed_task(store, agent.id)
    later = await store.now() + LATER
    expiry = Expiry(later, logs_before=later)
    assert (await purge_all(store, agent.id, expiry)).logs == 1

    await store.reopen_task(task.id, due_at=await store.now(), max_retries=3)
    (again,) = await store.claim_tasks(claim(), limit=1)
    await store.append_logs(again.id, 2, [await chunk(store, 0, attempt=2)])
    assert await purge_all(store, agent.id, expiry) == Purged()
    await store.finish_task(again.id, 2, completed())

    assert len(await store.read_logs(task.id)) == 1
    assert (await purge_all(store, agent.id, expiry)).logs == 1
    assert await store.read_logs(task.id) == []


async def test_an_artifact_outlives_its_task(store: Store, agent: Agent) -> None:
    task = await ended_task(store, agent.id)
    newest = await store.newest_artifact(agent.id)
    later = await store.now() + LATER

    assert (await purge_all(store, agent.id, Expiry(later, tasks_before=later))).tasks == 1

    assert await store.newest_artifact(agent.id) == newest
    assert newest is not None
    assert newest.task_id == task.id


async def test_artifacts_go_by_age_and_by_number(place: Place, store: Store, agent: Agent) -> None:
    await ended_tasks(place, store, agent.id, 6)
    saved_at = [artifact.created_at for artifact in await store.artifact_history(agent.id)]
    later = await store.now() + LATER

    by_age = await purge_all(store, agent.id, Expiry(later, artifacts_before=saved_at[3]))
    assert by_age == Purged(artifacts=2)
    assert await versions(store, agent.id) == [6, 5, 4, 3]

    by_number = await purge_all(store, agent.id, Expiry(later, max_artifacts=3))
    assert by_number == Purged(artifacts=1)
    assert await versions(store, agent.id) == [6, 5, 4]


async def test_the_newest_artifact_stays_and_counting_goes_on(store: Store, agent: Agent) -> None:
    for number in range(1, 8):
        await ended_task(store, agent.id)
        await purge_all(store, agent.id, await everything(store))

        (kept,) = await store.artifact_history(agent.id)
        assert kept == await store.newest_artifact(agent.id)
        assert (kept.version, kept.run_count) == (number, number)


async def test_a_clear_that_is_the_newest_stays(store: Store, agent: Agent) -> None:
    await store.save_artifact(agent.id, state(n=1))
    await store.save_artifact(agent.id, state(n=2))
    await store.clear_artifact(agent.id)

    assert (await purge_all(store, agent.id, await everything(store))).artifacts == 2

    (kept,) = await store.artifact_history(agent.id)
    assert (kept.cleared, kept.version) == (True, 3)
    assert await store.newest_artifact(agent.id) is None
    saved = await store.save_artifact(agent.id, state(n=3))
    assert (saved.version, saved.run_count) == (4, 1)


async def test_ids_of_deleted_tasks_are_not_used_again(store: Store, agent: Agent) -> None:
    last = [await ended_task(store, agent.id) for _ in range(3)][-1]

    assert (await purge_all(store, agent.id, await everything(store))).tasks == 3

    assert (await store.create_task(new_task(agent.id))).id > last.id


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_a_call_stops_at_its_limit_and_the_next_one_goes_on(
    store: Store, agent: Agent, limit: int
) -> None:
    for _ in range(4):
        await ended_task(store, agent.id, chunks=3)
    expiry = await everything(store)
    calls = 0
    total = Purged()
    while True:
        before = await records(store, agent.id)
        purged = await store.purge(agent.id, expiry, limit=limit)
        assert before - await records(store, agent.id) <= limit
        assert not await orphans(store, agent.id)
        calls += 1
        total += purged
        if not purged.more:
            break

    assert total == Purged(tasks=4, artifacts=3)
    # Four tasks, three chunks of each, three artifacts.
    assert calls >= 19 // limit


async def records(store: Store, agent_id: int) -> int:
    ids = await task_ids(store, agent_id)
    chunks = [len(await store.read_logs(task_id)) for task_id in ids]
    return len(ids) + sum(chunks) + len(await versions(store, agent_id))


async def orphans(store: Store, agent_id: int) -> list[int]:
    """Ids below the highest one whose task is gone while there are logs of it."""
    kept = await task_ids(store, agent_id)
    gone = set(range(1, 20)) - set(kept)
    return [task_id for task_id in gone if await store.read_logs(task_id)]


async def test_what_would_go_is_what_goes(place: Place, store: Store, agent: Agent) -> None:
    tasks = await ended_tasks(place, store, agent.id, 8)
    await failed_task(store, agent.id)
    await running_task(store, agent.id)
    later = await store.now() + LATER
    for expiry, expected in [
        (Expiry(later), Purged()),
        (Expiry(later, logs_before=tasks[5].completed_at, max_tasks=8), Purged(tasks=2, logs=3)),
        (Expiry(later, tasks_before=tasks[3].completed_at, max_tasks=100), Purged(tasks=1)),
        (Expiry(later, tasks_before=tasks[4].completed_at, max_tasks=5, max_artifacts=2), None),
        (await everything(store), None),
    ]:
        counted = await store.purgeable(agent.id, expiry)
        assert counted == await purge_all(store, agent.id, expiry)
        assert counted == expected or expected is None
        assert await store.purgeable(agent.id, expiry) == Purged()


async def test_other_agents_keep_theirs(store: Store, agent: Agent) -> None:
    other = await store.create_agent(draft("other"))
    kept = await ended_task(store, other.id)
    await ended_task(store, agent.id)
    await ended_task(store, other.id)

    await purge_all(store, agent.id, await everything(store))

    assert len(await task_ids(store, other.id)) == 2
    assert len(await store.read_logs(kept.id)) == 2
    assert await versions(store, other.id) == [2, 1]


async def test_an_agent_that_is_not_there_has_nothing_to_delete(store: Store) -> None:
    expiry = await everything(store)

    assert await store.purge(99, expiry, limit=LIMIT) == Purged()
    assert await store.purge(2**70, expiry, limit=LIMIT) == Purged()
    assert await store.purgeable(99, expiry) == Purged()


async def test_a_deleted_task_is_as_one_that_never_was(store: Store, agent: Agent) -> None:
    task = await failed_task(store, agent.id)
    await purge_all(store, agent.id, await everything(store))

    for call in (
        store.get_task(task.id),
        store.cancel_task(task.id),
        store.reopen_task(task.id, due_at=await store.now(), max_retries=9),
    ):
        with pytest.raises(TaskNotFoundError, match=f"there is no task {task.id}"):
            await call
    for write in (
        store.append_logs(task.id, 1, [await chunk(store, 0)]),
        store.finish_task(task.id, 1, completed()),
        store.extend_lease(task.id, 1, 30),
    ):
        with pytest.raises(LeaseLostError, match="does not exist any more"):
            await write
    assert await store.expire_task(task) is None
    assert await store.read_logs(task.id) == []


async def test_a_fire_whose_task_is_deleted_is_not_fired_again(store: Store) -> None:
    before = await scheduled_agent(store)
    (task,) = await store.fire_schedules([plan(before)])
    await store.cancel_task(task.id)
    assert (await purge_all(store, before.agent_id, await everything(store))).tasks == 1

    assert await store.fire_schedules([plan(before)]) == []
    assert [source.agent_id for source in await store.due_schedules()] == []
    assert (await store.list_tasks()).total_count == 0


async def test_ids_of_agents_come_in_pages(store: Store) -> None:
    agents = [await store.create_agent(draft(f"agent {number}")) for number in range(5)]
    await store.delete_agent(agents[2].id)
    ids = [agent.id for agent in agents if agent is not agents[2]]

    assert await store.agent_ids() == ids
    assert await store.agent_ids(limit=3) == ids[:3]
    assert await store.agent_ids(after_id=ids[2], limit=3) == ids[3:]
    assert await store.agent_ids(after_id=2**70) == []


async def test_a_limit_that_makes_no_sense_is_refused(store: Store, agent: Agent) -> None:
    with pytest.raises(InvalidInputError, match="limit must be 1 or more, got 0"):
        await store.purge(agent.id, await everything(store), limit=0)
    with pytest.raises(InvalidInputError, match="limit must be 1 or more, got 0"):
        await store.agent_ids(limit=0)
