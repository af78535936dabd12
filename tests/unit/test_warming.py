"""What a worker wants to be warm."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from harness.executor import AgentExecutor
from harness.models import Agent, AgentDraft
from harness.ports import SandboxShape
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.testing import FakeClock, FakeSandbox, MemoryStore
from harness.warming import AHEAD_SECONDS, HALF_LIFE_SECONDS, LOOK_SECONDS, Warming, merge


class World:
    def __init__(
        self, store: MemoryStore, clock: FakeClock, executor: AgentExecutor, sandbox: FakeSandbox
    ) -> None:
        self.store, self.clock, self.executor, self.sandbox = store, clock, executor, sandbox
        self.numbers = itertools.count()
        self.warming = Warming(store, sandbox, executor.shape_of, max_containers=5)

    async def agent(self, seconds: int | None = None, **config: Any) -> Agent:
        if seconds is not None:
            start_at = self.clock.now() + timedelta(seconds=seconds)
            config["schedule"] = {
                "type": "interval",
                "interval_minutes": 600,
                "start_at": start_at.isoformat(),
            }
        agent = await self.store.create_agent(
            AgentDraft(
                name=f"agent-{next(self.numbers)}",
                code="" if "command" in config else "pass",
                config=config,
            )
        )
        if seconds is not None:
            scheduler = TaskScheduler(executor=self.executor, store=self.store)
            await scheduler.sync_agent_schedule(agent.id)
        return agent

    def shape(self, agent: Agent) -> SandboxShape:
        shape = self.executor.shape_of(agent)
        assert shape is not None
        return shape

    async def wanted(self) -> dict[SandboxShape, int]:
        await self.warming.look("me")
        return self.sandbox.warm_orders[-1][2]


@pytest.fixture
async def world(tmp_path: Any) -> AsyncIterator[World]:
    clock, sandbox = FakeClock(), FakeSandbox()
    store = MemoryStore(clock=clock)
    await store.open()
    executor = AgentExecutor(store=store, sandbox=sandbox, clock=clock, settings=Settings(data_dir=tmp_path))
    await executor.resolve()
    yield World(store, clock, executor, sandbox)
    await store.close()


async def test_nothing_is_wanted_of_nothing(world: World) -> None:
    assert await world.wanted() == {}
    store_id, owner, _, now = world.sandbox.warm_orders[-1]
    assert (store_id, owner, now) == (world.store.store_id, "me", world.clock.now())


async def test_nothing_is_wanted_any_more_for_a_name_that_was_left(world: World) -> None:
    agent = await world.agent()
    world.warming.began(agent)
    await world.warming.look("me")
    await world.warming.look("me again")
    await world.warming.look("me again")
    wanted = {world.shape(agent): 1}
    orders = [(owner, shapes) for _, owner, shapes, _ in world.sandbox.warm_orders]
    assert orders == [("me", wanted), ("me", {}), ("me again", wanted), ("me again", wanted)]


async def test_a_fire_within_half_a_minute_wants_its_shape(world: World) -> None:
    soon = await world.agent(int(AHEAD_SECONDS) - 1, limits={"max_memory_mb": 99})
    await world.agent(int(AHEAD_SECONDS) + 5)

    assert await world.wanted() == {world.shape(soon): 1}


async def test_fires_of_one_shape_add_up_to_what_there_is_room_for(world: World) -> None:
    agents = [await world.agent(10) for _ in range(7)]

    assert await world.wanted() == {world.shape(agents[0]): 5}


async def test_agents_that_bring_their_own_program_can_not_be_kept_warm(world: World) -> None:
    agent = await world.agent(10, image="some/image", command=["run"])

    world.warming.began(agent)
    assert await world.wanted() == {}


async def test_what_ran_lately_is_wanted_again_and_forgotten_with_time(world: World) -> None:
    agent = await world.agent()
    for _ in range(3):
        world.warming.began(agent)
    assert await world.wanted() == {world.shape(agent): 3}

    looks = int(HALF_LIFE_SECONDS / LOOK_SECONDS)
    for _ in range(looks):
        await world.warming.look("me")
    assert await world.wanted() == {world.shape(agent): 1}
    for _ in range(3 * looks):
        await world.warming.look("me")
    assert await world.wanted() == {}


async def test_what_is_due_goes_before_what_was(world: World) -> None:
    before = await world.agent(limits={"max_memory_mb": 99})
    due = await world.agent(10)
    for _ in range(9):
        world.warming.began(before)

    wanted = await world.wanted()

    assert list(wanted.items()) == [(world.shape(due), 1), (world.shape(before), 4)]


def test_the_larger_number_of_each_counts() -> None:
    one, two = (SandboxShape(None, size, 1.0, 8, 1) for size in (1, 2))

    assert merge({one: 2}, {one: 3, two: 1}, limit=10) == {one: 3, two: 1}
    assert merge({one: 2}, {one: 3, two: 1}, limit=3) == {one: 3}
    assert merge({}, {}, limit=3) == {}
    assert merge({one: 1}, {two: 1}, limit=0) == {}
