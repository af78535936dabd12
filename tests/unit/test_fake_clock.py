from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from harness.ports import Clock
from harness.testing import FakeClock


async def test_time_stands_still_until_it_is_moved() -> None:
    clock: Clock = FakeClock(datetime(2026, 6, 1, tzinfo=UTC))
    fake = clock
    assert isinstance(fake, FakeClock)
    before = (clock.now(), clock.monotonic())
    await asyncio.sleep(0)
    assert (clock.now(), clock.monotonic()) == before

    await fake.advance(1.5)

    assert clock.now() == before[0] + timedelta(seconds=1.5)
    assert clock.monotonic() == before[1] + 1.5


async def test_sleepers_wake_at_their_instant_and_in_order() -> None:
    clock = FakeClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("late", 3), ("early", 1), ("same", 1), ("now", 0)):
            group.create_task(sleeper(name, seconds))
        for _ in range(5):
            await asyncio.sleep(0)
        assert clock.sleepers == 3
        await clock.advance(2)
        assert woken == [("now", 0), ("early", 1), ("same", 1)]
        assert clock.sleepers == 1
        await clock.advance(1)

    assert woken[-1] == ("late", 3)


async def test_a_periodic_sleeper_wakes_every_time() -> None:
    clock = FakeClock()
    beats: list[float] = []

    async def beat() -> None:
        while True:
            await clock.sleep(10)
            beats.append(clock.monotonic())

    task = asyncio.create_task(beat())
    await asyncio.sleep(0)
    await clock.advance(35)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert beats == [10, 20, 30]
    assert clock.sleepers == 0
    await clock.advance(100)


async def test_a_step_of_the_wall_clock_wakes_nobody() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)

    clock.set_wall_clock(datetime(2000, 1, 1, tzinfo=UTC))

    assert clock.now() == datetime(2000, 1, 1, tzinfo=UTC)
    assert clock.sleepers == 1
    await clock.advance(1)
    await task
