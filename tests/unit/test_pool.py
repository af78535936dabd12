"""The pool's own rules, on a fake clock and containers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import SandboxError
from harness.ports import SandboxShape, WarmLabels
from harness.sandbox import pool as pools
from harness.sandbox.containers import Started
from harness.sandbox.dispatch import PATIENCE_SECONDS, SETTLING_SECONDS, Dispatch
from harness.sandbox.pool import SPARE_BYTES, Spare, WarmPool
from harness.testing import FakeClock

SHAPE = SandboxShape(image=None, memory_bytes=1 << 26, cpus=1.0, max_processes=64, tmp_bytes=1 << 24)
BIGGER = replace(SHAPE, memory_bytes=1 << 28, cpus=2.0, max_processes=32)
OTHER = replace(SHAPE, tmp_bytes=1 << 25)
NOW = datetime(2026, 5, 1, tzinfo=UTC)
ME = ("store", "me")


class Maker:
    """Makes spares of nothing; counts."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.made: list[Spare] = []
        self.discarded: list[Spare] = []
        self.error: SandboxError | None = None
        self.seconds = 0.0
        self.under_way = self.most_under_way = 0

    async def make_spare(self, shape: SandboxShape, labels: WarmLabels) -> Spare:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.clock.sleep(self.seconds)
            if self.error is not None:
                raise self.error
        finally:
            self.under_way -= 1
        writer = SimpleNamespace(transport=SimpleNamespace(is_closing=lambda: False))
        started = Started(str(len(self.made)), asyncio.StreamReader(), cast("Any", writer))
        spare = Spare(started, shape, labels, "image", None, self.clock.monotonic())
        self.made.append(spare)
        return spare

    async def discard_spare(self, spare: Spare) -> None:
        self.discarded.append(spare)

    def left(self) -> list[Spare]:
        return [spare for spare in self.made if spare not in self.discarded]


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.maker = Maker(self.clock)
        self.dispatch = Dispatch(self.clock)
        self.available = 1.0
        self.pool = self.make_pool()

    def make_pool(self, **changes: Any) -> WarmPool:
        bounds = {"max_containers": 4, "max_bytes": 1 << 40} | changes
        return WarmPool(self.maker, self.dispatch, self.clock, available=lambda: self.available, **bounds)

    def want(self, wanted: dict[SandboxShape, int], owner: tuple[str, str] = ME) -> None:
        self.pool.want(*owner, wanted, now=NOW)

    async def settle(self, seconds: float = 1.0) -> None:
        """Let the pool do what it does within some seconds."""
        for _ in range(50):
            await asyncio.sleep(0)
        await self.clock.advance(seconds)
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.pool.close()


async def test_what_is_wanted_comes_to_wait_and_nothing_before_it_is_wanted(world: World) -> None:
    await world.settle()
    assert world.maker.made == []

    world.want({SHAPE: 2, OTHER: 1})
    await world.settle()

    assert (world.pool.count(SHAPE), world.pool.count(OTHER), world.pool.count()) == (2, 1, 3)


async def test_each_is_given_away_once_and_replaced(world: World) -> None:
    world.want({SHAPE: 1})
    await world.settle()

    first = world.pool.take(*ME, SHAPE)
    assert first is not None
    assert first[1] == "warm"
    assert world.pool.take(*ME, SHAPE) is None
    await world.settle()
    second = world.pool.take(*ME, SHAPE)

    assert second is not None
    assert second[0] is not first[0]


async def test_only_its_owner_gets_it(world: World) -> None:
    world.want({SHAPE: 1})
    await world.settle()

    assert world.pool.take("store", "somebody else", SHAPE) is None
    assert world.pool.take("another store", "me", SHAPE) is None


async def test_one_that_differs_in_what_can_be_changed_is_given_to_be_adapted(world: World) -> None:
    world.want({SHAPE: 1})
    await world.settle()

    assert world.pool.take(*ME, OTHER) is None
    taken = world.pool.take(*ME, BIGGER)

    assert taken is not None
    assert (taken[0].shape, taken[1]) == (SHAPE, "adapted")


async def test_one_that_nobody_waits_for_is_adapted_first(world: World) -> None:
    third = replace(SHAPE, memory_bytes=1 << 27)
    world.want({SHAPE: 1, BIGGER: 1})
    await world.settle()
    world.want({SHAPE: 1})

    taken = world.pool.take(*ME, third)

    assert taken is not None
    assert taken[0].shape == BIGGER


@pytest.mark.parametrize("bounds", [{"max_containers": 2}, {"max_bytes": 2 * SPARE_BYTES}])
async def test_it_stays_within_its_bounds_the_first_wanted_first(
    world: World, bounds: dict[str, int]
) -> None:
    world.pool = world.make_pool(**bounds)
    world.want({SHAPE: 1, OTHER: 5})
    await world.settle()

    assert (world.pool.count(SHAPE), world.pool.count(OTHER)) == (1, 1)


async def test_without_room_it_does_nothing(world: World) -> None:
    world.pool = world.make_pool(max_containers=0)
    world.want({SHAPE: 1})
    await world.settle()

    assert world.maker.made == []


async def test_what_is_wanted_no_more_makes_room_for_what_is(world: World) -> None:
    world.want({SHAPE: 4})
    await world.settle()
    world.want({OTHER: 3})
    await world.settle()

    assert (world.pool.count(SHAPE), world.pool.count(OTHER)) == (1, 3)
    assert len(world.maker.left()) == 4


async def test_few_are_made_at_a_time(world: World) -> None:
    world.maker.seconds = 0.1
    world.want({SHAPE: 4})
    await world.settle()

    assert world.pool.count() == 4
    assert world.maker.most_under_way == pools.REFILL_AT_ONCE


async def test_none_is_made_while_a_run_waits_for_its_container_or_just_got_it(world: World) -> None:
    with world.dispatch:
        world.want({SHAPE: 1})
        await world.settle(PATIENCE_SECONDS / 2)
        assert world.maker.made == []
    await world.settle(SETTLING_SECONDS / 2)
    assert world.maker.made == []
    await world.settle(SETTLING_SECONDS)

    assert world.pool.count() == 1


async def test_runs_without_end_do_not_keep_it_from_being_filled(world: World) -> None:
    with world.dispatch:
        world.want({SHAPE: 1})
        await world.settle(PATIENCE_SECONDS + 0.01)

        assert world.pool.count() == 1


async def test_an_engine_that_fails_is_asked_ever_more_rarely_until_it_is_well(world: World) -> None:
    tries = 0

    async def fail(shape: SandboxShape, labels: WarmLabels) -> Spare:
        nonlocal tries
        tries += 1
        raise SandboxError("the engine said no")

    make, world.maker.make_spare = world.maker.make_spare, fail  # type: ignore[method-assign]
    world.want({SHAPE: 1})
    await world.settle(50)
    few = tries
    world.maker.make_spare = make  # type: ignore[method-assign]
    for _ in range(3):
        world.want({SHAPE: 1})
        await world.settle(pools.LAST_PAUSE_SECONDS / 2)

    assert few < 20
    assert world.pool.count() == 1


async def test_a_slow_engine_is_left_alone_for_a_while(world: World) -> None:
    world.maker.seconds = pools.SLOW_SECONDS + 1
    world.want({SHAPE: 4})
    await world.settle(world.maker.seconds + 0.5)
    assert world.pool.count() == pools.REFILL_AT_ONCE
    await world.settle(world.maker.seconds * pools.REST_FACTOR - 1)

    assert world.maker.under_way == 0


async def test_the_old_are_replaced(world: World) -> None:
    world.want({SHAPE: 1})
    await world.settle()
    (old,) = world.maker.made
    for _ in range(int(pools.MAX_AGE_SECONDS / 30)):
        world.want({SHAPE: 1})
        await world.settle(30)
    await world.settle(10)

    assert old in world.maker.discarded
    assert world.pool.count() == 1


async def test_the_labels_of_all_live_longer_than_they_get_old(world: World) -> None:
    world.want({SHAPE: 1})
    await world.settle()
    await world.settle(20)
    world.pool.take(*ME, SHAPE)
    await world.settle()

    first, second = world.maker.made
    assert first.labels.until == NOW + timedelta(seconds=pools.LEASE_SECONDS)
    # The store's time goes on between two orders.
    assert second.labels.until > first.labels.until + timedelta(seconds=20)
    assert pools.LEASE_SECONDS > pools.MAX_AGE_SECONDS + pools.LOOK_SECONDS


async def test_one_that_ended_is_neither_given_nor_kept(world: World) -> None:
    world.want({SHAPE: 1})
    await world.settle()
    (dead,) = world.maker.made
    dead.started.reader.feed_eof()

    assert world.pool.count() == 0
    assert world.pool.take(*ME, SHAPE) is None
    await world.settle(pools.LOOK_SECONDS + 1)
    assert dead in world.maker.discarded
    assert world.pool.count() == 1


async def test_a_machine_short_of_memory_keeps_none(world: World) -> None:
    world.want({SHAPE: 2})
    await world.settle()
    world.available = pools.MIN_AVAILABLE / 2
    await world.settle(pools.LOOK_SECONDS + 1)
    assert world.maker.left() == []

    world.available = 1.0
    await world.settle(2 * pools.LOOK_SECONDS)
    assert world.pool.count() == 2


async def test_what_nobody_asks_for_any_more_goes(world: World) -> None:
    world.want({SHAPE: 2})
    await world.settle()
    await world.settle(pools.ORDER_SECONDS + 2 * pools.LOOK_SECONDS)

    assert world.maker.left() == []


async def test_closing_removes_all_and_stops_those_being_made(world: World) -> None:
    world.maker.seconds = 0.5
    world.want({SHAPE: 4})
    await world.settle(0.6)
    closing = asyncio.create_task(world.pool.close())
    await world.settle()
    await closing
    world.want({SHAPE: 4})
    await world.settle()

    assert world.pool.count() == 0
    assert world.maker.under_way == 0
