"""Fires in MongoDB take several writes: cut them between any two, and see them carried out once, by whoever comes next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from tests.contract.places import (
    CRON,
    MONGOMOCK,
    WIRE,
    Place,
    claim,
    completed,
    draft,
    fire,
    plan,
    put_schedule,
    running_task,
    scheduled_agent,
    statuses,
)
from tests.contract.test_cuts import MANY, is_cut, two_stores

from harness.models import (
    FirePlan,
    NewTask,
    ScheduleState,
    SkipReason,
    Task,
    TaskStatus,
    WhenBusy,
)
from harness.ports import Store
from harness.store.mongo import MongoStore
from harness.store.mongo.schedules import OUTBOX, OUTBOX_GRACE_SECONDS, OUTBOX_REVISION

pytestmark = pytest.mark.parametrize("shared_place", [MONGOMOCK, WIRE], indirect=True)

PENDING, SKIPPED, CANCELLED = TaskStatus.PENDING, TaskStatus.SKIPPED, TaskStatus.CANCELLED

NEXT_CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "fire": lambda store: store.fire_schedules([]),
    "due": lambda store: store.due_schedules(),
    "unsynced": lambda store: store.unsynced_schedules(),
}


async def tasks_of(store: Store, agent_id: int) -> list[Task]:
    return sorted((await store.list_tasks(agent_id=agent_id)).items, key=lambda task: task.fire_at or task.id)


def cut(store: MongoStore, fires: FirePlan) -> Callable[[int], Awaitable[bool]]:
    return lambda writes: is_cut(store, writes, lambda: store.fire_schedules([fires]))


async def has_outbox(store: MongoStore, agent_id: int) -> bool:
    document = await store._db.find_one("schedules", {"_id": agent_id})
    return document is not None and OUTBOX in document


@pytest.mark.parametrize("next_call", NEXT_CALLS.values(), ids=NEXT_CALLS.keys())
async def test_a_cut_fire_is_carried_out_once_by_whoever_comes_next(
    shared_place: Place, next_call: Callable[[Store], Awaitable[object]]
) -> None:
    dying, other = await two_stores(shared_place)
    for writes in range(MANY):
        before = await scheduled_agent(other, f"agent {writes}")
        missed = fire(before, skip_reason=SkipReason.MISSED, skipped_count=3)
        late = [fire(before, minutes=n, when_busy=WhenBusy.WAIT) for n in (5, 10)]
        fires = plan(before, missed, *late)

        was_cut = await cut(dying, fires)(writes)
        await shared_place.clock.advance(OUTBOX_GRACE_SECONDS + 0.1)
        await next_call(other)

        tasks = await tasks_of(other, before.agent_id)
        after = (await other.get_schedule(before.agent_id)).state
        assert after is not None
        if writes == 0:
            assert (tasks, after) == ([], before)
            await other.fire_schedules([fires])
            continue
        assert [(task.status, task.fire_at) for task in tasks] == [
            (SKIPPED, missed.fire_at), (PENDING, late[0].fire_at), (PENDING, late[1].fire_at),
        ]  # fmt: skip
        assert (after.revision, after.next_fire_at) == (2, fires.next_fire_at)
        assert not await has_outbox(dying, before.agent_id)
        for call in NEXT_CALLS.values():
            await call(other)
        assert await other.fire_schedules([fires]) == []
        assert await tasks_of(other, before.agent_id) == tasks
        if not was_cut:
            break
    else:
        pytest.fail("fire_schedules takes more writes than expected")
    assert writes > 4


@pytest.mark.parametrize("when_busy", [WhenBusy.SKIP, WhenBusy.QUEUE, WhenBusy.REPLACE])
async def test_a_cut_fire_of_a_busy_agent_does_to_others_what_it_should_once(
    shared_place: Place, when_busy: WhenBusy
) -> None:
    dying, other = await two_stores(shared_place)
    for writes in range(1, MANY):
        before = await scheduled_agent(other, f"agent {writes}")
        running = await running_task(other, before.agent_id, max_active=1)
        waiting = await other.create_task(NewTask(agent_id=before.agent_id, when_busy=WhenBusy.QUEUE))
        fires = plan(before, fire(before, when_busy=when_busy))

        was_cut = await cut(dying, fires)(writes)
        await shared_place.clock.advance(OUTBOX_GRACE_SECONDS + 0.1)
        await other.due_schedules()

        (task,) = [task for task in await tasks_of_any(other, before.agent_id) if task.fire_at is not None]
        wanted = (running.id in await other.cancel_requests("runner-1"), *await statuses(other, waiting.id))
        if when_busy is WhenBusy.REPLACE:
            assert task.status is PENDING
            assert wanted == (True, SKIPPED)
            await other.finish_task(running.id, 1, completed())
            assert [item.id for item in await other.claim_tasks(claim(), limit=9)] == [task.id]
            await other.finish_task(task.id, 1, completed())
        else:
            assert (task.status, task.skip_reason) == (SKIPPED, SkipReason.OVERLAP)
            assert wanted == (False, PENDING)
            await other.cancel_task(waiting.id)
        if not was_cut:
            break
    else:
        pytest.fail("fire_schedules takes more writes than expected")


async def tasks_of_any(store: Store, agent_id: int) -> list[Task]:
    return list((await store.list_tasks(agent_id=agent_id)).items)


async def test_a_fire_that_is_carried_out_very_late_does_nothing_to_its_own_task(
    shared_place: Place,
) -> None:
    dying, other = await two_stores(shared_place)
    before = await scheduled_agent(other)
    assert await cut(dying, plan(before, fire(before, when_busy=WhenBusy.REPLACE)))(1)
    left = await dying._db.find_one("schedules", {"_id": before.agent_id})
    assert left is not None
    await shared_place.clock.advance(OUTBOX_GRACE_SECONDS + 0.1)
    await other.due_schedules()
    (task,) = await other.claim_tasks(claim(), limit=1)

    # As by a process that was frozen after it had read the outbox.
    stored = await dying._deliver(before.agent_id, left[OUTBOX], left[OUTBOX_REVISION])

    assert stored == []
    assert await other.get_task(task.id) == task
    assert (await other.list_tasks()).total_count == 1


async def test_the_next_fire_comes_after_one_that_was_cut(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    first = await scheduled_agent(other)
    new = fire(first, when_busy=WhenBusy.WAIT)
    assert await cut(dying, plan(first, new))(1)
    second = (await other.get_schedule(first.agent_id)).state
    assert second is not None

    # At once: nobody else has looked after it yet.
    (task,) = await other.fire_schedules([plan(second, fire(second, when_busy=WhenBusy.WAIT))])

    assert [item.fire_at for item in await tasks_of(other, first.agent_id)] == [new.fire_at, task.fire_at]
    assert [item.fire_at for item in await other.claim_tasks(claim(), limit=9)] == [new.fire_at]
    assert not await has_outbox(dying, first.agent_id)


async def test_a_schedule_that_is_paused_after_a_cut_fire_still_has_its_task(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    before = await scheduled_agent(other)
    assert await cut(dying, plan(before))(1)
    accepted = (await other.get_schedule(before.agent_id)).state
    assert accepted is not None

    (paused,) = await other.put_schedules(
        [accepted.model_copy(update={"paused": True, "next_fire_at": None, "due_at": None})]
    )
    await shared_place.clock.advance(OUTBOX_GRACE_SECONDS + 0.1)
    await other.unsynced_schedules()

    assert len(await tasks_of(other, before.agent_id)) == 1
    assert (await other.get_schedule(before.agent_id)).state == paused


async def test_a_cut_pause_is_done_with_its_skips_or_not_done(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    for writes in range(MANY):
        before = await scheduled_agent(other, f"agent {writes}")
        paused = before.model_copy(update={"paused": True, "next_fire_at": None, "due_at": None})
        new = fire(before, skip_reason=SkipReason.DISABLED, skipped_count=2)

        async def pause(paused: ScheduleState = paused, new: NewTask = new) -> None:
            await dying.put_schedules([paused], skips=[new])

        was_cut = await is_cut(dying, writes, pause)
        await shared_place.clock.advance(OUTBOX_GRACE_SECONDS + 0.1)
        await other.unsynced_schedules()

        tasks = await tasks_of(other, before.agent_id)
        after = (await other.get_schedule(before.agent_id)).state
        if writes == 0:
            assert (tasks, after) == ([], before)
            continue
        assert [(task.status, task.skipped_count) for task in tasks] == [(SKIPPED, 2)]
        assert after == paused.model_copy(update={"revision": 2})
        assert not await has_outbox(dying, before.agent_id)
        if not was_cut:
            break
    else:
        pytest.fail("put_schedules takes more writes than expected")
    assert writes == 5


async def test_a_pause_after_a_cut_fire_carries_that_out_first(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    before = await scheduled_agent(other)
    assert await cut(dying, plan(before))(1)
    accepted = (await other.get_schedule(before.agent_id)).state
    assert accepted is not None
    paused = accepted.model_copy(update={"paused": True, "next_fire_at": None, "due_at": None})

    # At once: nobody else has looked after the plan yet.
    await other.put_schedules([paused], skips=[fire(accepted, skip_reason=SkipReason.DISABLED)])

    assert [task.status for task in await tasks_of(other, before.agent_id)] == [PENDING, SKIPPED]


async def test_an_agent_can_be_deleted_after_a_cut_fire(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    for writes in range(1, 4):
        before = await scheduled_agent(other, f"agent {writes}")
        assert await cut(dying, plan(before))(writes)
        for task in await tasks_of(other, before.agent_id):
            await other.cancel_task(task.id)

        await other.delete_agent(before.agent_id)
        await shared_place.clock.advance(OUTBOX_GRACE_SECONDS + 0.1)
        await other.due_schedules()

        assert (await other.list_tasks()).total_count == 0
        assert not await has_outbox(dying, before.agent_id)


async def test_a_fire_of_an_agent_that_is_being_deleted_leaves_no_task(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    before = await scheduled_agent(other)
    # The mark is one write, and the schedule goes with the next.
    assert await is_cut(dying, 1, lambda: dying.delete_agent(before.agent_id))

    assert await other.fire_schedules([plan(before)]) == []

    assert (await other.list_tasks()).total_count == 0
    assert await other.due_schedules() == []
    await other.delete_agent(before.agent_id)
    assert await other.next_due_at() is None


async def test_a_schedule_whose_storing_was_cut_is_computed_again(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    for writes in range(MANY):
        agent = await other.create_agent(draft(f"agent {writes}", config=CRON))
        state = ScheduleState(agent_id=agent.id, agent_version=1, anchor_at=agent.created_at)

        was_cut = await is_cut(dying, writes, lambda state=state: dying.put_schedules([state]))  # type: ignore[misc]

        waiting = await other.unsynced_schedules()
        assert [source.agent_id for source in waiting] == [agent.id] * was_cut
        if not was_cut:
            break
        found = waiting[0].state
        await put_schedule(other, **(found or state).model_dump())
        assert await other.unsynced_schedules() == []
    else:
        pytest.fail("put_schedules takes more writes than expected")
    assert writes == 2


async def test_a_schedule_that_outlived_its_agent_is_removed(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    before = await scheduled_agent(other)
    await dying._db.delete("agents", {"_id": before.agent_id})

    assert await other.due_schedules() == []

    assert await dying._db.find_one("schedules", {"_id": before.agent_id}) is None
