"""Schedules, by both implementations of `HarnessApi`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.integration.api.conftest import Maker

from harness.api import HarnessApi
from harness.errors import ConflictError, InvalidInputError

NIGHTLY = {"type": "cron", "cron": "0 3 * * *"}
HOURLY = {"type": "interval", "interval_minutes": 60}


async def test_an_agent_without_a_schedule_says_so(api: HarnessApi, make: Maker) -> None:
    agent = await make()

    view = await api.get_schedule(agent.id)

    assert (view.agent_id, view.schedule, view.status, view.next_fires) == (agent.id, None, "none", ())


async def test_a_schedule_in_a_new_agents_config_is_in_force_at_once(api: HarnessApi, make: Maker) -> None:
    agent = await make(schedule=NIGHTLY)

    view = await api.get_schedule(agent.id, fires=3)

    assert (view.schedule, view.status) == (NIGHTLY, "in_force")
    assert view.state is not None
    assert view.state.next_fire_at == view.next_fires[0] > datetime.now(UTC)
    assert [fire.hour for fire in view.next_fires] == [3, 3, 3]
    assert (await api.get_schedule(agent.id, fires=0)).next_fires == ()


async def test_a_schedule_is_put_into_the_config_beside_the_rest(api: HarnessApi, make: Maker) -> None:
    agent = await make(env={"N": "1"})

    view = await api.put_schedule(agent.id, NIGHTLY)

    assert (view.schedule, view.status) == (NIGHTLY, "in_force")
    assert (await api.get_agent(agent.id)).config == {"env": {"N": "1"}, "schedule": NIGHTLY}
    assert (await api.get_agent(agent.id)).version == 2
    await api.put_schedule(agent.id, NIGHTLY)
    assert (await api.get_agent(agent.id)).version == 2


@pytest.mark.parametrize("schedule", [{"type": "cron"}, {"type": "cron", "cron": "61 * * * *"}, {"a": 1}, {}])
async def test_a_schedule_that_is_none_changes_nothing(
    schedule: dict[str, Any], api: HarnessApi, make: Maker
) -> None:
    agent = await make(schedule=NIGHTLY)

    with pytest.raises(InvalidInputError) as raised:
        await api.put_schedule(agent.id, schedule)
    with pytest.raises(InvalidInputError):
        await api.preview_schedule(schedule)

    assert raised.value.problems
    assert await api.get_agent(agent.id) == agent


async def test_a_paused_schedule_fires_no_more_until_it_is_resumed(api: HarnessApi, make: Maker) -> None:
    agent = await make(schedule=NIGHTLY)

    paused = await api.pause_schedule(agent.id)
    resumed = await api.resume_schedule(agent.id)

    assert (paused.status, paused.next_fires) == ("paused", ())
    assert (resumed.status, len(resumed.next_fires)) == ("in_force", 5)


async def test_a_removed_schedule_stays_in_the_config_until_it_is_resumed(
    api: HarnessApi, make: Maker
) -> None:
    agent = await make(schedule=NIGHTLY)

    removed = await api.remove_schedule(agent.id)

    assert (removed.status, removed.schedule, removed.next_fires) == ("removed", NIGHTLY, ())
    assert (await api.resume_schedule(agent.id)).status == "in_force"
    assert await api.get_agent(agent.id) == agent


async def test_a_new_schedule_ends_a_pause(api: HarnessApi, make: Maker) -> None:
    agent = await make(schedule=NIGHTLY)
    await api.pause_schedule(agent.id)

    assert (await api.put_schedule(agent.id, HOURLY)).status == "in_force"


async def test_a_disabled_schedule_says_so(api: HarnessApi, make: Maker) -> None:
    agent = await make(schedule={**NIGHTLY, "enabled": False})

    view = await api.get_schedule(agent.id)

    assert (view.status, view.next_fires) == ("disabled", ())


async def test_a_deleted_schedule_is_out_of_the_config(api: HarnessApi, make: Maker) -> None:
    agent = await make(schedule=NIGHTLY, env={"N": "1"})

    for _ in range(2):
        await api.delete_schedule(agent.id)

    assert (await api.get_agent(agent.id)).config == {"env": {"N": "1"}}
    assert (await api.get_schedule(agent.id)).status == "none"
    for call in (api.pause_schedule, api.resume_schedule):
        with pytest.raises((ConflictError, InvalidInputError), match="no schedule"):
            await call(agent.id)


async def test_a_preview_shows_fires_and_stores_nothing(api: HarnessApi) -> None:
    before = (await api.list_agents(limit=1)).total_count

    fires = await api.preview_schedule(NIGHTLY, fires=2)

    assert fires[1] - fires[0] == timedelta(days=1)
    assert fires[0] > datetime.now(UTC)
    assert (await api.list_agents(limit=1)).total_count == before


@pytest.mark.parametrize("fires", [-1, 1001])
async def test_fires_have_bounds(fires: int, api: HarnessApi, make: Maker) -> None:
    agent = await make(schedule=NIGHTLY)

    with pytest.raises(InvalidInputError, match="fires"):
        await api.get_schedule(agent.id, fires=fires)
    with pytest.raises(InvalidInputError, match="fires"):
        await api.preview_schedule(NIGHTLY, fires=fires)


async def test_missed_fires_are_made_up_for_once(api: HarnessApi, make: Maker) -> None:
    agent = await make(schedule=NIGHTLY)
    end = datetime.now(UTC).replace(hour=3, minute=0, second=0, microsecond=0) - timedelta(days=1)
    start = end - timedelta(days=2)

    made = await api.backfill(agent.id, start, end)
    again = await api.backfill(agent.id, start)

    tasks = [await api.get_task(task_id) for task_id in made]
    assert [task.fire_at for task in tasks] == [start, start + timedelta(days=1), end]
    assert not set(again) & set(made)
    await api.cancel_tasks(agent_id=agent.id)


async def test_a_range_of_missed_fires_ends_after_its_begin_and_before_now(
    api: HarnessApi, make: Maker
) -> None:
    agent, without = await make(schedule=NIGHTLY), await make()
    now = datetime.now(UTC)

    with pytest.raises(InvalidInputError, match="future"):
        await api.backfill(agent.id, now, now + timedelta(days=1))
    with pytest.raises(InvalidInputError, match="before"):
        await api.backfill(agent.id, now - timedelta(days=1), now - timedelta(days=2))
    with pytest.raises(InvalidInputError, match="begin it in 1970"):
        await api.backfill(agent.id, datetime.min.replace(tzinfo=UTC))
    with pytest.raises(InvalidInputError, match="no schedule"):
        await api.backfill(without.id, now - timedelta(days=1))
