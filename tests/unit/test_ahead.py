from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.shop import Shop
from tests.unit.test_firing import NOON, in_force, plan, rules, schedules, source

from harness import ahead
from harness.ahead import AHEAD, BETWEEN, PlansAhead
from harness.errors import StoreError
from harness.firing import holds_at, plan_ahead, synced
from harness.models import FirePlan, ScheduleSource, ScheduleState

SECOND = timedelta(seconds=1)
EVERY_MINUTE = {"type": "interval", "interval_minutes": 1}


def planned(of: ScheduleSource) -> FirePlan | None:
    return plan_ahead(of, retry_max_attempts=3)


def due_of(state: ScheduleState | None) -> datetime:
    assert state is not None
    assert state.due_at is not None
    return state.due_at


@settings(deadline=None)
@given(rules, schedules, st.integers(0, 5 * 86400 * 1000), st.integers(-100, 3000))
def test_a_plan_made_ahead_is_the_one_made_in_time_or_does_not_hold(
    rule: dict[str, Any], schedule: dict[str, Any], since_milliseconds: int, late_milliseconds: int
) -> None:
    began = NOON + timedelta(milliseconds=since_milliseconds)
    of = source(**(rule | schedule | {"interval_minutes": None}))
    of = of.model_copy(update={"state": synced(of, began).state})
    due_at = due_of(of.state)
    now = due_at + timedelta(milliseconds=late_milliseconds)

    made = planned(of)

    assert made is not None
    assert holds_at(made, due_at)
    if holds_at(made, now):
        assert now >= due_at
        assert made == plan(of, now)


def test_a_plan_made_ahead_holds_from_its_due_time_until_it_is_late() -> None:
    made = planned(in_force(misfire_grace_seconds=0))
    assert made is not None
    due_at = due_of(made.before)

    held = [holds_at(made, due_at + timedelta(milliseconds=late)) for late in (-1, 0, 1000, 1001)]

    assert held == [False, True, True, False]


def test_a_plan_made_ahead_does_not_hold_once_the_next_fire_is_due() -> None:
    made = planned(in_force(interval_minutes=None, interval_seconds=1))
    assert made is not None
    due_at = due_of(made.before)

    assert [holds_at(made, due_at + part * SECOND) for part in (0, 0.999, 1)] == [True, True, False]


def test_what_is_more_than_the_next_fire_is_not_planned_ahead() -> None:
    changed = in_force()
    changed_agent = changed.model_copy(update={"agent_version": 2})
    off = changed.model_copy(update={"config": {"schedule": EVERY_MINUTE | {"enabled": False}}})
    assert changed.state is not None
    # A fire of an hourly rule that stayed due, where the rule fires every minute by now.
    several = changed.model_copy(
        update={"state": changed.state.model_copy(update={"due_at": NOON + 61 * 60 * SECOND})}
    )

    assert [planned(of) for of in (changed_agent, off, several)] == [None] * 3


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    await shop.store.open()
    yield shop
    await shop.store.close()


async def due_in(shop: Shop, seconds: float, name: str = "agent", **config: Any) -> ScheduleState:
    """Store an agent whose first fire is due in so many seconds."""
    agent = await shop.agent(name, schedule=EVERY_MINUTE, **config)
    at = shop.clock.now() + timedelta(seconds=seconds)
    state = ScheduleState(
        agent_id=agent.id,
        agent_version=1,
        anchor_at=at - timedelta(minutes=1),
        next_fire_at=at,
        due_at=at,
        rule=EVERY_MINUTE,
    )
    (stored,) = await shop.store.put_schedules([state])
    return stored


async def taken(shop: Shop, plans: PlansAhead) -> list[int]:
    now = await shop.store.now()
    return [made.before.agent_id for made in plans.take(await shop.store.due_marks(), now)]


async def test_what_falls_due_soon_is_planned_once_and_taken_once_and_never_early(shop: Shop) -> None:
    soon, later = await due_in(shop, 1.5, "soon"), await due_in(shop, 60, "later")
    seen: list[int] = []

    def count(of: ScheduleSource) -> FirePlan | None:
        seen.append(of.agent_id)
        return planned(of)

    plans = PlansAhead(shop.store, count)
    for _ in range(14):
        await plans.look()
        assert await taken(shop, plans) == []
        await shop.clock.advance(0.1)
    await shop.clock.advance(0.1)

    assert await taken(shop, plans) == [soon.agent_id]
    assert await taken(shop, plans) == []
    assert seen == [soon.agent_id]
    await shop.clock.advance(57)
    await plans.look()
    await shop.clock.advance(1.5)
    assert await taken(shop, plans) == [later.agent_id]


async def test_a_plan_is_thrown_away_when_its_agent_or_its_schedule_changed(shop: Shop) -> None:
    states = [await due_in(shop, 1, name) for name in ("edited", "changed", "deleted", "kept")]
    edited, changed, deleted, kept = (state.agent_id for state in states)
    plans = PlansAhead(shop.store, planned)
    await plans.look()

    draft = (await shop.store.get_agent(edited)).model_copy(update={"code": "print()"})
    await shop.store.update_agent(edited, draft)
    await shop.store.put_schedules([states[1]])
    await shop.store.delete_agent(deleted)
    await shop.clock.advance(1)

    assert [mark.agent_id for mark in await shop.store.due_marks()] == [edited, changed, kept]
    assert await taken(shop, plans) == [kept]


async def test_a_plan_that_comes_late_is_thrown_away(shop: Shop) -> None:
    await due_in(shop, 1)
    plans = PlansAhead(shop.store, planned)
    await plans.look()
    # As when the process was stopped, or the machine's clock was set.
    shop.clock.set_wall_clock(shop.clock.now() + timedelta(hours=1))

    assert await taken(shop, plans) == []


async def test_a_clock_that_is_set_back_has_schedules_read_again_when_their_time_comes(shop: Shop) -> None:
    state = await due_in(shop, 1)
    plans = PlansAhead(shop.store, planned)
    await plans.look()
    shop.clock.set_wall_clock(shop.clock.now() - timedelta(hours=1))
    await plans.look()
    await shop.clock.advance(1)
    assert await taken(shop, plans) == []

    await shop.clock.advance(3600 - 1)
    await plans.look()
    assert await taken(shop, plans) == []
    await shop.clock.advance(1)
    assert await taken(shop, plans) == [state.agent_id]


async def test_no_more_than_so_many_plans_are_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MAX_PLANS", 3)
    for number in range(5):
        await due_in(shop, 0.5 + number / 10, f"agent {number}")
    await due_in(shop, 3, "next")
    plans = PlansAhead(shop.store, planned)

    await plans.look()
    await shop.clock.advance(1)
    assert await taken(shop, plans) == [1, 2, 3]
    await shop.clock.advance(1.5)
    await plans.look()
    await shop.clock.advance(0.5)

    assert await taken(shop, plans) == [6]


async def test_plans_that_nobody_takes_make_room_for_others(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "MAX_PLANS", 2)
    plans = PlansAhead(shop.store, planned)
    for turn in range(3):
        for number in range(2):
            state = await due_in(shop, 1.5, f"agent {turn} {number}")
            await plans.look()
            paused = state.model_copy(update={"paused": True, "next_fire_at": None, "due_at": None})
            await shop.store.put_schedules([paused])
            await shop.clock.advance(BETWEEN.total_seconds())
        await shop.clock.advance(AHEAD.total_seconds() + 1)
    last = await due_in(shop, 1.5, "last")
    await plans.look()
    await shop.clock.advance(1.5)

    assert await taken(shop, plans) == [last.agent_id]


async def test_what_cannot_be_read_ahead_is_left_for_its_time(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(**_: object) -> None:
        raise StoreError("not readable")

    await due_in(shop, 1)
    plans = PlansAhead(shop.store, planned)
    with monkeypatch.context() as broken:
        broken.setattr(shop.store, "upcoming_schedules", fail)
        await plans.look()
    await shop.clock.advance(1)

    assert await taken(shop, plans) == []
    assert len(await shop.store.due_schedules()) == 1
