from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import LeaseLostError, StoreUnavailableError
from harness.lease import BEATS_PER_LEASE, LeaseKeeper
from harness.ports import Store
from harness.testing import FakeClock

LEASE_SECONDS = 12.0
BEAT_SECONDS = LEASE_SECONDS / BEATS_PER_LEASE


class LeaseBook:
    """The store's side of one lease: answers as it is told, and knows when somebody else may take over."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.beats: list[float] = []
        #: Until when the store holds others off.
        self.held_until = LEASE_SECONDS
        self.answer: Callable[[], Awaitable[None]] = self.agree

    async def agree(self) -> None:
        """Extend the lease."""

    async def be_away(self) -> None:
        raise StoreUnavailableError("away")

    async def extend_lease(self, task_id: int, fence: int, lease_seconds: float) -> None:
        assert (task_id, fence, lease_seconds) == (7, 2, LEASE_SECONDS)
        self.beats.append(self.clock.monotonic())
        await self.answer()
        self.held_until = self.clock.monotonic() + lease_seconds


class Losses:
    """Counts calls of `on_lost`, with their times."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.at: list[float] = []

    async def __call__(self) -> None:
        self.at.append(self.clock.monotonic())


def keeper(store: LeaseBook, claimed_at: float = 0.0) -> LeaseKeeper:
    return LeaseKeeper(
        cast("Store", store),
        store.clock,
        task_id=7,
        fence=2,
        lease_seconds=LEASE_SECONDS,
        claimed_at=claimed_at,
    )


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def advance(clock: FakeClock, seconds: float) -> None:
    await settle()
    await clock.advance(seconds)
    await settle()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> LeaseBook:
    return LeaseBook(clock)


async def test_a_lease_is_extended_for_as_long_as_it_is_kept(clock: FakeClock, store: LeaseBook) -> None:
    async with keeper(store) as lease:
        await advance(clock, 10 * LEASE_SECONDS)

        assert lease.is_live
        lease.check()
    assert store.beats == [BEAT_SECONDS * n for n in range(1, 10 * BEATS_PER_LEASE + 1)]


async def test_beats_stop_when_the_keeper_is_left(clock: FakeClock, store: LeaseBook) -> None:
    async with keeper(store):
        await settle()

    await advance(clock, 2 * LEASE_SECONDS)

    assert store.beats == []
    assert clock.sleepers == 0


async def test_two_failed_beats_in_a_row_do_not_lose_the_lease(clock: FakeClock, store: LeaseBook) -> None:
    losses = Losses(clock)
    async with keeper(store) as lease:
        lease.when_lost(losses)
        store.answer = store.be_away
        await advance(clock, 2 * BEAT_SECONDS)
        assert len(store.beats) == 2
        store.answer = store.agree
        await advance(clock, LEASE_SECONDS)

        assert lease.is_live
    assert losses.at == []


async def test_a_store_away_loses_the_lease_at_its_end_and_not_later(
    clock: FakeClock, store: LeaseBook
) -> None:
    losses = Losses(clock)
    async with keeper(store) as lease:
        lease.when_lost(losses)
        store.answer = store.be_away
        await advance(clock, LEASE_SECONDS - 0.1)
        lease.check()
        assert losses.at == []
        await advance(clock, 0.1)

        assert not lease.is_live
        assert losses.at == [LEASE_SECONDS]
        with pytest.raises(LeaseLostError, match=r"task 7 \(fence 2\)"):
            lease.check()


async def test_a_store_that_hangs_does_not_hide_the_end_of_the_lease(
    clock: FakeClock, store: LeaseBook
) -> None:
    losses = Losses(clock)
    store.answer = asyncio.Event().wait  # type: ignore[assignment] # never returns
    async with keeper(store) as lease:
        lease.when_lost(losses)
        await advance(clock, LEASE_SECONDS)

        assert losses.at == [LEASE_SECONDS]
        assert not lease.is_live
    assert clock.sleepers == 0


async def test_a_takeover_is_noticed_at_the_next_beat(clock: FakeClock, store: LeaseBook) -> None:
    async def refuse() -> None:
        raise LeaseLostError("taken over")

    losses = Losses(clock)
    store.answer = refuse
    async with keeper(store) as lease:
        lease.when_lost(losses)
        await advance(clock, BEAT_SECONDS)

        assert not lease.is_live
    assert losses.at == [BEAT_SECONDS]


async def test_an_error_nobody_thought_of_counts_as_a_failed_beat(clock: FakeClock, store: LeaseBook) -> None:
    async def break_down() -> None:
        raise RuntimeError("a bug")

    losses = Losses(clock)
    store.answer = break_down
    async with keeper(store) as lease:
        lease.when_lost(losses)
        await advance(clock, BEAT_SECONDS)
        assert lease.is_live
        await advance(clock, LEASE_SECONDS)

    assert losses.at == [LEASE_SECONDS]


async def test_a_lost_lease_stays_lost_even_if_the_store_comes_back(
    clock: FakeClock, store: LeaseBook
) -> None:
    store.answer = store.be_away
    async with keeper(store) as lease:
        await advance(clock, LEASE_SECONDS)
        store.answer = store.agree
        await advance(clock, LEASE_SECONDS)

        assert not lease.is_live


async def test_time_between_the_claim_and_the_first_beat_counts(clock: FakeClock, store: LeaseBook) -> None:
    await clock.advance(LEASE_SECONDS - 1)
    store.answer = store.be_away
    losses = Losses(clock)
    async with keeper(store, claimed_at=0.0) as lease:
        lease.when_lost(losses)
        lease.check()
        await advance(clock, 1)

        assert not lease.is_live
    assert losses.at == [LEASE_SECONDS]


async def test_a_claim_older_than_its_lease_is_never_live(clock: FakeClock, store: LeaseBook) -> None:
    await clock.advance(LEASE_SECONDS)
    losses = Losses(clock)
    async with keeper(store, claimed_at=0.0) as lease:
        lease.when_lost(losses)
        assert not lease.is_live
        await settle()

    assert store.beats == []
    assert losses.at == [LEASE_SECONDS]


async def test_nothing_is_called_when_there_is_nothing_more_to_stop(
    clock: FakeClock, store: LeaseBook
) -> None:
    losses = Losses(clock)
    store.answer = store.be_away
    async with keeper(store) as lease:
        lease.when_lost(losses)
        lease.when_lost(None)
        await advance(clock, 2 * LEASE_SECONDS)

        assert not lease.is_live
    assert losses.at == []


@given(
    answers=st.lists(st.sampled_from(["agree", "away", "slow", "after"]), max_size=12),
    steps=st.lists(st.floats(0.1, 5), min_size=1, max_size=30),
)
def test_a_lease_is_never_live_after_somebody_else_could_take_the_task(
    answers: list[str], steps: list[float]
) -> None:
    """Whatever the store does: slow answers, errors, and errors of extensions that did happen."""

    async def check() -> None:
        clock = FakeClock()
        store = LeaseBook(clock)
        script = iter(answers)

        async def answer() -> None:
            match next(script, "away"):
                case "away":
                    raise StoreUnavailableError("away")
                case "slow":
                    await clock.sleep(2.5)
                case "after":
                    store.held_until = clock.monotonic() + LEASE_SECONDS
                    raise StoreUnavailableError("the answer was lost")

        store.answer = answer
        losses = Losses(clock)
        async with keeper(store) as lease:
            lease.when_lost(losses)
            for step in steps:
                await advance(clock, step)
                if clock.monotonic() >= store.held_until:
                    assert not lease.is_live
                    assert losses.at
                    assert losses.at[0] <= store.held_until

    asyncio.run(check())
