"""MongoDB deletes one document at a time, and keeps what makes other writes happen once while somebody may need it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from tests.contract.places import (
    MONGOMOCK,
    WIRE,
    Place,
    chunk,
    claim,
    completed,
    draft,
    failed_task,
    plan,
    running_task,
    scheduled_agent,
    state,
)
from tests.contract.test_cuts import MANY, is_cut, two_stores
from tests.contract.test_retention import ended_task, everything, purge_all, task_ids, versions

from harness.models import TaskStatus
from harness.retention import Expiry, Purged
from harness.store.mongo import MongoStore
from harness.store.mongo.driver import Document
from harness.store.mongo.schedules import OUTBOX_GRACE_SECONDS

pytestmark = pytest.mark.parametrize("shared_place", [MONGOMOCK, WIRE], indirect=True)


async def has_logs(store: MongoStore) -> bool:
    return await store._db.count("logs", {}) > 0


async def test_a_cut_purge_is_finished_by_the_next(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    for writes in range(MANY):
        agent = await other.create_agent(draft(f"agent {writes}"))
        for _ in range(3):
            await ended_task(other, agent.id)
        later = await other.now() + timedelta(hours=1)
        expiries = (Expiry(later, logs_before=later), await everything(other))
        was_cut = False

        for expiry in expiries:
            was_cut = was_cut or await is_cut(
                dying,
                writes,
                lambda agent=agent, expiry=expiry: dying.purge(agent.id, expiry, limit=100),  # type: ignore[misc]
            )

        # What is not deleted is whole: logs are found by their task alone.
        assert await task_ids(other, agent.id) or not await has_logs(dying)
        await purge_all(other, agent.id, expiries[1])
        assert await task_ids(other, agent.id) == []
        assert not await has_logs(dying)
        assert await versions(other, agent.id) == [3]
        if not was_cut:
            break
    else:
        pytest.fail("purge takes more writes than expected")
    assert writes >= 3


async def test_a_task_whose_artifact_is_on_its_way_stays_until_it_is_there(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    task = await running_task(other, agent.id)
    assert await is_cut(dying, 1, lambda: dying.finish_task(task.id, 1, completed(), artifact=state(n=1)))
    later = await other.now() + timedelta(hours=1)
    expiry = Expiry(later, tasks_before=later)

    assert await other.purgeable(agent.id, expiry) == Purged()
    assert await purge_all(other, agent.id, expiry) == Purged()

    newest = await other.newest_artifact(agent.id)
    assert newest is not None
    assert (newest.task_id, newest.run_count) == (task.id, 1)
    assert await purge_all(other, agent.id, expiry) == Purged(tasks=1)


async def test_whoever_is_late_to_move_an_artifact_does_not_bring_it_back(shared_place: Place) -> None:
    late, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    task = await running_task(other, agent.id)
    assert await is_cut(late, 1, lambda: late.finish_task(task.id, 1, completed(), artifact=state(n=1)))
    # It has looked, and stops; when it goes on, all of it is over and deleted.
    (seen,) = await late._db.find("tasks", {"pending_for": agent.id}, sort=[("_id", 1)], limit=1)
    await other.save_artifact(agent.id, state(n=2))
    await purge_all(other, agent.id, await everything(other))
    assert (await versions(other, agent.id), await task_ids(other, agent.id)) == ([2], [])
    await late._place_artifact(seen)

    assert await versions(other, agent.id) == [2]


async def test_a_move_that_was_cut_half_way_is_finished_before_its_artifact_goes(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    task = await running_task(other, agent.id)
    assert await is_cut(dying, 2, lambda: dying.finish_task(task.id, 1, completed(), artifact=state(n=1)))
    # By somebody who had looked for such moves before this one began.
    newer = {"version": 2, "run_count": 2, "state": '{"n": 2}', "summary": ""}
    await dying._insert_artifact(agent.id, await other.now(), newer)
    later = await other.now() + timedelta(hours=1)

    await purge_all(other, agent.id, Expiry(later, max_artifacts=1))

    newest = await other.newest_artifact(agent.id)
    assert newest is not None
    assert (newest.state, newest.version) == ({"n": 2}, 2)


async def test_an_artifact_that_came_to_its_place_lately_stays(shared_place: Place) -> None:
    """However old the run that made it: a second one may be about to move it."""
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    task = await running_task(other, agent.id)
    assert await is_cut(dying, 1, lambda: dying.finish_task(task.id, 1, completed(), artifact=state(n=1)))
    await shared_place.clock.advance(10)
    before = await other.now()
    await shared_place.clock.advance(10)
    await other.save_artifact(agent.id, state(n=2))

    assert await purge_all(other, agent.id, Expiry(before, max_artifacts=1)) == Purged()

    expiry = Expiry(before + timedelta(minutes=1), max_artifacts=1)
    assert await purge_all(other, agent.id, expiry) == Purged(artifacts=1)


async def test_tasks_stay_while_a_fire_that_made_them_may_be_carried_out_once_more(
    shared_place: Place,
) -> None:
    dying, other = await two_stores(shared_place)
    for writes in range(1, MANY):
        before = await scheduled_agent(other, f"agent {writes}")
        expiry = await everything(other)
        fires = plan(before)
        was_cut = await is_cut(dying, writes, lambda fires=fires: dying.fire_schedules([fires]))  # type: ignore[misc]
        for task in (await other.list_tasks(agent_id=before.agent_id)).items:
            await other.cancel_task(task.id)

        made = await task_ids(other, before.agent_id)
        if was_cut:
            assert await purge_all(other, before.agent_id, expiry) == Purged()
            assert await task_ids(other, before.agent_id) == made

        await shared_place.clock.advance(OUTBOX_GRACE_SECONDS + 0.1)
        await other.due_schedules()
        (made_once,) = await task_ids(other, before.agent_id)
        assert made in ([], [made_once])
        await other.cancel_task(made_once)
        assert (await purge_all(other, before.agent_id, expiry)).tasks == 1
        await shared_place.clock.advance(OUTBOX_GRACE_SECONDS + 0.1)
        await other.due_schedules()
        assert await task_ids(other, before.agent_id) == []
        if not was_cut:
            break
    else:
        pytest.fail("fire_schedules takes more writes than expected")
    assert writes >= 3


@pytest.mark.parametrize("whole_tasks", [True, False])
async def test_an_attempt_that_begins_under_a_purge_keeps_its_logs(
    shared_place: Place, monkeypatch: pytest.MonkeyPatch, whole_tasks: bool
) -> None:
    """Its task had ended when it was found, and runs again when its logs are deleted."""
    purging, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    task = await failed_task(other, agent.id)
    line = await chunk(other, 0, attempt=2)
    delete_logs = purging._delete_logs

    async def begin_first(tasks: Sequence[Document], room: int) -> int:
        if (await other.get_task(task.id)).status is TaskStatus.FAILED:
            await other.reopen_task(task.id, due_at=await other.now(), max_retries=9)
            await other.claim_tasks(claim(), limit=1)
            await other.append_logs(task.id, 2, [line])
        return await delete_logs(tasks, room)

    monkeypatch.setattr(purging, "_delete_logs", begin_first)
    later = await other.now() + timedelta(hours=1)
    expiry = Expiry(later, tasks_before=later) if whole_tasks else Expiry(later, logs_before=later)
    assert await purging.purge(agent.id, expiry, limit=100) == Purged()

    assert (await other.get_task(task.id)).status is TaskStatus.RUNNING
    assert await other.read_logs(task.id) == [line]
