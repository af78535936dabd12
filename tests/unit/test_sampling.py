from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.contract.places import draft, running_task

from harness.errors import StoreUnavailableError
from harness.models import Task, UsageSample
from harness.ports import SandboxSession, SandboxUsage
from harness.sampling import LAST_PAUSE_SECONDS, UsageSampler
from harness.testing import FakeClock, MemoryStore


class Meter:
    """The one thing that a sampler asks of a session."""

    def __init__(self) -> None:
        self.usages: list[SandboxUsage | None] = []
        self.asked_at: list[float] = []
        self.clock: FakeClock | None = None

    async def usage(self) -> SandboxUsage | None:
        assert self.clock is not None
        self.asked_at.append(self.clock.monotonic())
        return self.usages.pop(0) if self.usages else SandboxUsage(1, 1.0, 1.0, 1)


class Rig:
    def __init__(self, store: MemoryStore, clock: FakeClock, task: Task) -> None:
        self.store, self.clock, self.task = store, clock, task
        self.meter = Meter()
        self.meter.clock = clock
        self.sampler = UsageSampler(store, clock, task_id=task.id, fence=1)

    async def run(self, seconds: float, step: float = 0.5) -> None:
        session: SandboxSession = self.meter  # type: ignore[assignment]  # it asks for no more
        sampling = asyncio.create_task(self.sampler.sample_periodically(session))
        for _ in range(round(seconds / step)):
            await self._until_it_sleeps()
            await self.clock.advance(step)
        await self._until_it_sleeps()
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)

    async def _until_it_sleeps(self) -> None:
        """Storing takes the store's thread some time that the fake clock knows nothing of."""
        async with asyncio.timeout(20):
            while not self.clock.sleepers:  # noqa: ASYNC110 - the clock has no event for this
                await asyncio.sleep(0)

    async def stored(self) -> list[UsageSample]:
        return list(await self.store.read_samples(self.task.id))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    await store.open()
    agent = await store.create_agent(draft())
    yield Rig(store, clock, await running_task(store, agent.id))
    await store.close()


async def test_peaks_are_kept_and_samples_stored_while_the_run_lives(rig: Rig) -> None:
    rig.meter.usages = [
        SandboxUsage(10, None, 0.5, 2), None, SandboxUsage(30, 80.123, 0.9, None), SandboxUsage(20, 20.0, 1.5, 1)
    ]  # fmt: skip

    await rig.run(6.0)

    stored = await rig.stored()
    assert [(s.memory_bytes, s.cpu_percent, s.cpu_seconds, s.processes) for s in stored[:3]] == [
        (10, None, 0.5, 2), (30, 80.12, 0.9, None), (20, 20.0, 1.5, 1)
    ]  # fmt: skip
    sampler = rig.sampler
    assert (sampler.peak_memory_bytes, sampler.peak_cpu_percent, sampler.peak_processes) == (30, 80.123, 2)
    assert sampler.cpu_seconds == 1.5


async def test_a_long_run_is_sampled_ever_more_seldom_and_never_not_at_all(rig: Rig) -> None:
    await rig.run(4 * 3600, step=5)

    pauses = [
        later - earlier for earlier, later in zip(rig.meter.asked_at, rig.meter.asked_at[1:], strict=False)
    ]
    assert rig.meter.asked_at[0] == 1.0
    assert max(pauses) <= LAST_PAUSE_SECONDS + 5
    assert len(rig.meter.asked_at) < 500
    assert pauses[-1] > 50


async def test_a_store_that_is_away_costs_samples_nothing_but_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "append_samples", away)
        await rig.run(5.0)
    assert await rig.stored() == []

    await rig.sampler.flush()

    assert len(await rig.stored()) == len(rig.meter.asked_at)
