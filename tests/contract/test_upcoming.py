"""Schedules that are read before they are due, and the marks by which those are known once they are."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.contract.places import CRON, Place, draft, plan, put_schedule, scheduled_agent

from harness.errors import InvalidInputError
from harness.models import ScheduleMark, ScheduleState
from harness.ports import Store


async def schedules_due_in(store: Store, *seconds: float | None) -> list[ScheduleState]:
    """Store agents with a schedule each, due in so many seconds, or off."""
    now = await store.now()
    states = []
    for number, after in enumerate(seconds):
        agent = await store.create_agent(draft(f"agent {number}", config=CRON))
        at = None if after is None else now + timedelta(seconds=after)
        states.append(
            await put_schedule(
                store, agent_id=agent.id, agent_version=1, next_fire_at=at, due_at=at, anchor_at=now
            )
        )
    return states


async def marked(store: Store) -> list[int]:
    return [mark.agent_id for mark in await store.due_marks()]


async def test_schedules_are_read_before_they_are_due_earliest_first(store: Store) -> None:
    await schedules_due_in(store, 20, 10, 30, None, -5, 0)
    now = await store.now()

    async def upcoming(after: float, until: float, limit: int = 1000) -> list[int]:
        span = {"after": now + timedelta(seconds=after), "until": now + timedelta(seconds=until)}
        return [source.agent_id for source in await store.upcoming_schedules(**span, limit=limit)]

    assert await upcoming(0, 30) == [2, 1, 3]
    assert await upcoming(-60, 10) == [5, 6, 2]
    assert await upcoming(10, 29.999) == [1]
    assert await upcoming(-60, 60, limit=2) == [5, 6]
    assert await upcoming(30, 60) == []
    (source,) = await store.upcoming_schedules(after=now, until=now + timedelta(seconds=10))
    assert source == await store.get_schedule(2)
    with pytest.raises(InvalidInputError, match="limit"):
        await upcoming(0, 1, limit=0)


async def test_marks_are_of_what_is_due_and_never_of_what_will_be(place: Place, store: Store) -> None:
    await schedules_due_in(store, 20, 10, 30, None, -5)

    assert await marked(store) == [5]
    await place.clock.advance(9.999)
    assert await marked(store) == [5]
    await place.clock.advance(0.001)
    assert await marked(store) == [5, 2]
    await place.clock.advance(10)
    assert await marked(store) == [5, 2, 1]
    assert [source.mark for source in await store.due_schedules()] == await store.due_marks()
    assert len(await store.due_marks(limit=2)) == 2
    with pytest.raises(InvalidInputError, match="limit"):
        await store.due_marks(limit=0)


async def test_a_mark_changes_with_the_agent_and_with_where_its_schedule_stands(store: Store) -> None:
    state = await scheduled_agent(store)
    (first,) = await store.due_marks()

    agent = await store.update_agent(state.agent_id, draft(config=CRON | {"priority": 3}))
    (edited,) = await store.due_marks()
    await put_schedule(store, **(state.model_dump() | {"agent_version": agent.version}))
    (computed,) = await store.due_marks()

    assert first == ScheduleMark(state.agent_id, 1, state.revision)
    assert edited == first._replace(agent_version=2)
    assert computed == edited._replace(revision=state.revision + 1)


async def test_a_schedule_that_fired_went_off_or_lost_its_agent_has_no_mark(store: Store) -> None:
    fired, off, gone, kept = [await scheduled_agent(store, name) for name in ("a", "b", "c", "d")]

    await store.fire_schedules([plan(fired)])
    await put_schedule(store, **(off.model_dump() | {"paused": True, "next_fire_at": None, "due_at": None}))
    await store.delete_agent(gone.agent_id)

    assert await marked(store) == [kept.agent_id]
