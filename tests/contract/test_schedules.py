from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.contract.places import (
    CRON,
    Place,
    claim,
    claim_one,
    completed,
    draft,
    fire,
    new_task,
    plan,
    put_schedule,
    running_task,
    scheduled_agent,
    statuses,
)

from harness.errors import AgentNotFoundError, InvalidInputError
from harness.models import (
    Agent,
    FirePlan,
    NewTask,
    ScheduleSource,
    ScheduleState,
    SkipReason,
    TaskStatus,
    WhenBusy,
)
from harness.ports import Store


async def unsynced(store: Store) -> list[int]:
    return [source.agent_id for source in await store.unsynced_schedules()]


async def due(store: Store) -> list[int]:
    return [source.agent_id for source in await store.due_schedules()]


async def test_a_new_agent_with_a_schedule_is_unsynced(store: Store, agent: Agent) -> None:
    scheduled = await store.create_agent(draft("scheduled", config=CRON | {"env": {"A": "$b.c"}}))

    (source,) = await store.unsynced_schedules()

    assert source == ScheduleSource(
        agent_id=scheduled.id,
        agent_version=1,
        agent_created_at=scheduled.created_at,
        config=scheduled.config,
        state=None,
    )
    assert source == await store.get_schedule(scheduled.id)


async def test_unsynced_agents_come_by_rising_id_in_batches(store: Store) -> None:
    for n in range(5):
        await store.create_agent(draft(f"a{n}", config=CRON if n != 1 else {}))

    assert await unsynced(store) == [1, 3, 4, 5]
    assert [source.agent_id for source in await store.unsynced_schedules(limit=2)] == [1, 3]
    with pytest.raises(InvalidInputError, match="limit"):
        await store.unsynced_schedules(limit=0)


async def test_a_schedule_comes_back_as_it_was_stored(store: Store) -> None:
    agent = await store.create_agent(draft(config=CRON))
    now = await store.now()
    state = ScheduleState(
        agent_id=agent.id,
        agent_version=1,
        next_fire_at=now + timedelta(seconds=60),
        due_at=now + timedelta(seconds=61, microseconds=999),
        anchor_at=now - timedelta(days=400),
        last_fire_at=now - timedelta(seconds=1),
        paused=True,
        removed=True,
        rule={"type": "cron", "cron": "*/5 * * * *", "$odd": {"a.b": [1.5, None]}},
    )

    (stored,) = await store.put_schedules([state])

    assert stored == state.model_copy(update={"revision": 1, "due_at": now + timedelta(seconds=61)})
    source = await store.get_schedule(agent.id)
    assert source.state == stored
    assert (source.agent_version, source.config) == (1, CRON)


async def test_an_unknown_agents_schedule_is_not_found(store: Store, agent: Agent) -> None:
    for agent_id in (0, -1, 2, 2**63):
        with pytest.raises(AgentNotFoundError, match=str(agent_id)):
            await store.get_schedule(agent_id)
    assert (await store.get_schedule(agent.id)).state is None


async def test_a_computed_schedule_is_in_step_until_its_agent_changes(store: Store) -> None:
    agent = await store.create_agent(draft(config=CRON))
    now = await store.now()

    first = await put_schedule(store, agent_id=agent.id, agent_version=1, anchor_at=now)
    assert await unsynced(store) == []
    await store.update_agent(agent.id, draft(config=CRON, code="print(2)"))
    assert await unsynced(store) == [agent.id]
    # Computed from what the agent was before: still not in step.
    (second,) = await store.put_schedules([first.model_copy(update={"paused": True})])
    assert await unsynced(store) == [agent.id]
    await store.put_schedules([second.model_copy(update={"agent_version": 2})])

    assert await unsynced(store) == []


async def test_a_schedule_that_was_taken_out_of_the_config_is_unsynced_while_its_state_is_old(
    store: Store,
) -> None:
    agent = await store.create_agent(draft(config=CRON))
    state = await put_schedule(store, agent_id=agent.id, agent_version=1, anchor_at=await store.now())

    await store.update_agent(agent.id, draft())

    (source,) = await store.unsynced_schedules()
    assert (source.agent_id, source.agent_version, source.config, source.state) == (agent.id, 2, {}, state)
    await store.put_schedules([state.model_copy(update={"agent_version": 2})])
    assert await unsynced(store) == []


async def test_agents_without_a_schedule_are_in_step(store: Store, agent: Agent) -> None:
    await store.update_agent(agent.id, draft(code="print(2)"))
    # Its schedule was never computed, so there is nothing to take back.
    other = await store.create_agent(draft("other", config=CRON))
    await store.update_agent(other.id, draft("other", config={"schedule": None}))

    assert await store.unsynced_schedules() == []


async def test_a_schedule_changes_only_from_its_stored_revision(store: Store) -> None:
    first = await scheduled_agent(store)
    assert first.revision == 1

    (second,) = await store.put_schedules([first.model_copy(update={"paused": True})])

    assert second == first.model_copy(update={"paused": True, "revision": 2})
    for revision in (0, 1, 3):
        stale = second.model_copy(update={"paused": False, "revision": revision})
        assert await store.put_schedules([stale]) == []
    assert (await store.get_schedule(first.agent_id)).state == second


def off(before: ScheduleState, **fields: Any) -> ScheduleState:
    return before.model_copy(
        update={"paused": True, "next_fire_at": None, "due_at": None, "rule": None, **fields}
    )


def skip(before: ScheduleState, **fields: Any) -> NewTask:
    values: dict[str, Any] = {"skip_reason": SkipReason.DISABLED, "skipped_count": 2}
    return fire(before, **(values | fields))


async def test_a_schedule_that_goes_off_takes_its_due_fires_with_it_as_skips(store: Store) -> None:
    first, other = await scheduled_agent(store), await scheduled_agent(store, "other")
    until = fire(first, minutes=5).fire_at
    new = skip(first, skipped_until=until)

    (stored, _) = await store.put_schedules([off(first), off(other)], skips=[new])

    assert stored == (await store.get_schedule(first.agent_id)).state == off(first, revision=2)
    (task,) = (await store.list_tasks()).items
    assert (task.agent_id, task.status, task.skip_reason) == (
        first.agent_id, TaskStatus.SKIPPED, SkipReason.DISABLED,
    )  # fmt: skip
    assert (task.fire_at, task.skipped_until, task.skipped_count) == (first.next_fire_at, until, 2)
    assert await due(store) == []


async def test_a_skip_comes_with_its_schedules_change_or_not_at_all(store: Store) -> None:
    first, other = await scheduled_agent(store), await scheduled_agent(store, "other")
    # Somebody else fired it meanwhile.
    (task,) = await store.fire_schedules([plan(first)])

    stored = await store.put_schedules([off(first), off(other)], skips=[skip(first), skip(other)])

    assert [state.agent_id for state in stored] == [other.agent_id]
    assert [one.agent_id for one in (await store.list_tasks()).items] == [other.agent_id, task.agent_id]
    # Repeated, as after an answer that was lost.
    assert await store.put_schedules([off(first), off(other)], skips=[skip(first), skip(other)]) == []
    assert (await store.list_tasks()).total_count == 2


async def test_a_schedule_without_a_task_for_its_due_fire_is_skipped_with_its_first_state(
    store: Store,
) -> None:
    agent = await store.create_agent(draft(config=CRON))
    now = await store.now()
    fresh = ScheduleState(agent_id=agent.id, agent_version=1, anchor_at=now, next_fire_at=now)

    (stored,) = await store.put_schedules([off(fresh)], skips=[skip(fresh)])

    assert stored.revision == 1
    assert [task.fire_at for task in (await store.list_tasks()).items] == [now]


@pytest.mark.parametrize("fields", [{"fire_at": None}, {"agent_id": 99}, {"skip_reason": None}])
async def test_a_skip_that_is_not_one_of_these_schedules_is_refused(
    store: Store, fields: dict[str, Any]
) -> None:
    state = await scheduled_agent(store)

    with pytest.raises(InvalidInputError, match="can't be stored with the schedules"):
        await store.put_schedules([off(state)], skips=[skip(state, **fields)])

    assert (await store.get_schedule(state.agent_id)).state == state
    assert (await store.list_tasks()).total_count == 0


async def test_each_of_many_schedules_is_stored_or_not(store: Store) -> None:
    states = [await scheduled_agent(store, name) for name in "abc"]
    await store.put_schedules([states[1].model_copy(update={"paused": True})])
    new = await store.create_agent(draft("new", config=CRON))
    fresh = ScheduleState(agent_id=new.id, agent_version=1, anchor_at=await store.now())
    unknown = fresh.model_copy(update={"agent_id": 99})
    beyond = fresh.model_copy(update={"agent_id": 10**40})

    stored = await store.put_schedules([*states, unknown, beyond, fresh, fresh])

    assert [state.agent_id for state in stored] == [states[0].agent_id, states[2].agent_id, new.id]
    assert [state.revision for state in stored] == [2, 2, 1]
    assert (await store.put_schedules([])) == []


async def test_schedules_are_due_earliest_first(place: Place, store: Store) -> None:
    now = await store.now()
    for name, seconds in (("a", 20), ("b", 10), ("c", 30), ("d", None), ("e", -5)):
        agent = await store.create_agent(draft(name, config=CRON))
        at = None if seconds is None else now + timedelta(seconds=seconds)
        await put_schedule(
            store, agent_id=agent.id, agent_version=1, next_fire_at=now, due_at=at, anchor_at=now
        )

    assert await due(store) == [5]
    await place.clock.advance(20)
    assert await due(store) == [5, 2, 1]
    assert [source.agent_id for source in await store.due_schedules(limit=2)] == [5, 2]
    (source, *_) = await store.due_schedules()
    assert source == await store.get_schedule(5)
    with pytest.raises(InvalidInputError, match="limit"):
        await store.due_schedules(limit=0)


async def test_the_schedules_in_force_are_counted_and_come_by_their_next_fires(store: Store) -> None:
    now = await store.now()
    for name, seconds in (("a", 20), ("b", 10), ("c", 3600), ("d", None), ("e", -5)):
        agent = await store.create_agent(draft(name, config=CRON))
        at = None if seconds is None else now + timedelta(seconds=seconds)
        await put_schedule(
            store, agent_id=agent.id, agent_version=1, next_fire_at=at, due_at=at, anchor_at=now
        )
    await store.create_agent(draft("not taken up yet", config=CRON))

    page = await store.next_schedules(limit=3)

    assert ([state.agent_id for state in page.items], page.total_count, page.limit) == ([5, 2, 1], 4, 3)
    assert page.items[0] == (await store.get_schedule(5)).state
    assert len((await store.next_schedules()).items) == 4
    with pytest.raises(InvalidInputError, match="limit"):
        await store.next_schedules(limit=0)


async def test_a_plan_becomes_a_task_and_the_next_fire(place: Place, store: Store) -> None:
    state = await scheduled_agent(store)
    await place.clock.advance(1)
    new = fire(state, priority=2, max_retries=3, context={"a": 1}, save_handoff=False)
    fires = plan(state, new)

    (task,) = await store.fire_schedules([fires])

    assert task == await store.get_task(task.id)
    assert (task.status, task.trigger, task.fire_at) == (
        TaskStatus.PENDING, "schedule", state.next_fire_at,
    )  # fmt: skip
    assert (task.scheduled_at, task.due_at, task.created_at) == (
        state.next_fire_at, state.next_fire_at, await store.now(),
    )  # fmt: skip
    assert (task.priority, task.max_retries, task.context, task.save_handoff) == (2, 3, {"a": 1}, False)
    after = (await store.get_schedule(state.agent_id)).state
    assert after == state.model_copy(
        update={
            "next_fire_at": fires.next_fire_at,
            "due_at": fires.due_at,
            "last_fire_at": state.next_fire_at,
            "revision": 2,
        }
    )
    assert await due(store) == []
    assert (await claim_one(store)).id == task.id


async def test_a_plan_that_was_carried_out_does_nothing_more(store: Store) -> None:
    state = await scheduled_agent(store)
    fires = plan(state)
    await store.fire_schedules([fires])
    after = await store.get_schedule(state.agent_id)

    assert await store.fire_schedules([fires]) == []
    assert await store.fire_schedules([fires, fires]) == []

    assert await store.get_schedule(state.agent_id) == after
    assert (await store.list_tasks()).total_count == 1


@pytest.mark.parametrize("agent_id", [0, -1, 99])
async def test_a_plan_of_no_agent_does_nothing(store: Store, agent_id: int) -> None:
    state = (await scheduled_agent(store)).model_copy(update={"agent_id": agent_id})

    assert await store.fire_schedules([plan(state)]) == []
    assert (await store.list_tasks()).total_count == 0


async def test_a_plan_from_another_revision_does_nothing(store: Store) -> None:
    state = await scheduled_agent(store)
    (paused,) = await store.put_schedules([state.model_copy(update={"paused": True})])

    assert await store.fire_schedules([plan(state)]) == []

    assert (await store.get_schedule(state.agent_id)).state == paused
    assert (await store.list_tasks()).total_count == 0


async def test_the_plan_of_a_deleted_agent_does_nothing(store: Store) -> None:
    gone, kept = await scheduled_agent(store), await scheduled_agent(store, "kept")
    await store.delete_agent(gone.agent_id)

    (task,) = await store.fire_schedules([plan(gone), plan(kept)])

    assert task.agent_id == kept.agent_id
    assert await store.put_schedules([gone]) == []
    assert await due(store) == await unsynced(store) == []
    with pytest.raises(AgentNotFoundError):
        await store.get_schedule(gone.agent_id)


async def test_a_fire_that_has_a_task_is_passed_over(store: Store) -> None:
    state = await scheduled_agent(store)
    by_hand = await store.create_task(fire(state, when_busy=WhenBusy.REJECT), claim=claim())

    tasks = await store.fire_schedules([plan(state, fire(state), fire(state, minutes=5))])

    assert [task.fire_at for task in tasks] == [fire(state, minutes=5).fire_at]
    assert await store.get_task(by_hand.id) == by_hand
    assert (await store.list_tasks()).total_count == 2


async def test_a_plan_can_hold_skips_and_several_runs(store: Store) -> None:
    state = await scheduled_agent(store)
    missed = fire(
        state,
        minutes=-40,
        when_busy=WhenBusy.REJECT,
        skip_reason=SkipReason.MISSED,
        skipped_until=fire(state, minutes=-20).fire_at,
        skipped_count=5,
    )
    late = [fire(state, minutes=n, when_busy=WhenBusy.WAIT) for n in (-15, -10, -5)]

    tasks = await store.fire_schedules([plan(state, missed, *late, fire(state))])

    assert [task.status for task in tasks] == [
        TaskStatus.SKIPPED, TaskStatus.PENDING, TaskStatus.PENDING, TaskStatus.PENDING, TaskStatus.SKIPPED,
    ]  # fmt: skip
    assert [task.skip_reason for task in tasks] == [SkipReason.MISSED, None, None, None, SkipReason.OVERLAP]
    assert (tasks[0].skipped_count, tasks[0].skipped_until) == (5, missed.skipped_until)
    assert [await store.get_task(task.id) for task in tasks] == list(tasks)
    after = (await store.get_schedule(state.agent_id)).state
    assert after is not None
    assert after.last_fire_at == state.next_fire_at
    for task in tasks[1:4]:
        assert (await claim_one(store)).id == task.id
        await store.finish_task(task.id, 1, completed())
    assert await store.claim_tasks(claim(), limit=9) == []


async def test_the_last_fire_of_a_skipped_run_is_its_end(store: Store) -> None:
    state = await scheduled_agent(store)
    end = fire(state, minutes=20).fire_at
    missed = fire(state, skip_reason=SkipReason.MISSED, skipped_until=end, skipped_count=5)

    await store.fire_schedules([plan(state, missed)])

    after = (await store.get_schedule(state.agent_id)).state
    assert after is not None
    assert after.last_fire_at == end


async def test_a_plan_without_tasks_moves_its_schedule_on(store: Store) -> None:
    state = await scheduled_agent(store)

    assert await store.fire_schedules(
        [FirePlan(before=state, tasks=(), next_fire_at=None, due_at=None)]
    ) == []  # fmt: skip

    after = (await store.get_schedule(state.agent_id)).state
    assert after == state.model_copy(update={"next_fire_at": None, "due_at": None, "revision": 2})
    assert await due(store) == []
    assert await store.fire_schedules([]) == []


@pytest.mark.parametrize(
    ("when_busy", "expected"),
    [
        (WhenBusy.REJECT, [TaskStatus.SKIPPED, TaskStatus.SKIPPED]),
        (WhenBusy.SKIP, [TaskStatus.SKIPPED, TaskStatus.SKIPPED]),
        (WhenBusy.QUEUE, [TaskStatus.PENDING, TaskStatus.SKIPPED]),
        (WhenBusy.WAIT, [TaskStatus.PENDING, TaskStatus.PENDING]),
        (WhenBusy.REPLACE, [TaskStatus.SKIPPED, TaskStatus.PENDING]),
    ],
)
async def test_a_fire_of_a_busy_agent_is_never_lost(
    store: Store, when_busy: WhenBusy, expected: list[TaskStatus]
) -> None:
    state = await scheduled_agent(store)
    running = await running_task(store, state.agent_id, max_active=1)

    tasks = await store.fire_schedules(
        [plan(state, *(fire(state, minutes=n, when_busy=when_busy) for n in (0, 5)))]
    )

    assert await statuses(store, *(task.id for task in tasks)) == expected
    wanted = [running.id] if when_busy is WhenBusy.REPLACE else []
    assert await store.cancel_requests("runner-1") == wanted


async def test_a_plan_may_replace_its_own_task(store: Store) -> None:
    state = await scheduled_agent(store)

    tasks = await store.fire_schedules(
        [plan(state, *(fire(state, minutes=n, when_busy=WhenBusy.REPLACE) for n in (0, 5)))]
    )

    assert await statuses(store, *(task.id for task in tasks)) == [TaskStatus.CANCELLED, TaskStatus.PENDING]


@pytest.mark.parametrize("fields", [{"fire_at": None}, {"agent_id": 99}])
async def test_a_plan_with_a_task_that_is_not_its_own_fire_is_refused(
    store: Store, fields: dict[str, Any]
) -> None:
    state, other = await scheduled_agent(store), await scheduled_agent(store, "other")

    with pytest.raises(InvalidInputError, match="plan for agent"):
        await store.fire_schedules([plan(other), plan(state, fire(state, **fields))])

    assert (await store.list_tasks()).total_count == 0
    assert (await store.get_schedule(other.agent_id)).state == other


async def test_a_context_that_json_cannot_hold_stops_the_batch_before_it_begins(store: Store) -> None:
    state, other = await scheduled_agent(store), await scheduled_agent(store, "other")

    with pytest.raises(InvalidInputError, match="context"):
        await store.fire_schedules([plan(other), plan(state, fire(state, context={"x": float("nan")}))])

    assert (await store.list_tasks()).total_count == 0
    assert (await store.get_schedule(other.agent_id)).state == other


async def test_many_schedules_fire_in_one_call(store: Store) -> None:
    states = [await scheduled_agent(store, f"a{n}") for n in range(40)]

    tasks = await store.fire_schedules([plan(state) for state in states])

    assert [task.agent_id for task in tasks] == [state.agent_id for state in states]
    assert len({task.id for task in tasks}) == 40
    assert await due(store) == []
    assert len(await store.claim_tasks(claim(), limit=100)) == 40
    assert (await store.create_task(new_task(1))).id > max(task.id for task in tasks)


async def test_a_schedule_goes_with_its_agent(store: Store) -> None:
    state = await scheduled_agent(store)
    again = await store.create_agent(draft("again", config=CRON))

    await store.delete_agent(state.agent_id)
    await store.delete_agent(again.id)

    assert await due(store) == await unsynced(store) == []
    assert await store.next_due_at() is None


async def test_an_agent_that_could_not_be_deleted_keeps_its_schedule(store: Store) -> None:
    state = await scheduled_agent(store)
    await store.create_task(NewTask(agent_id=state.agent_id))

    with pytest.raises(Exception, match="active"):
        await store.delete_agent(state.agent_id)

    assert (await store.get_schedule(state.agent_id)).state == state
    assert await due(store) == [state.agent_id]
