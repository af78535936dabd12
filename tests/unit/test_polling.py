from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import cast

import pytest

from harness.errors import StoreUnavailableError
from harness.polling import POLL_SECONDS, REMIND_SECONDS, Outage, Pause
from harness.ports import Store
from harness.testing import FakeClock


class DueBook:
    """The store's side of a wait: when something falls due."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.due_at: datetime | None = None
        self.is_away = False

    async def next_due_at(self) -> datetime | None:
        if self.is_away:
            raise StoreUnavailableError("away")
        return self.due_at

    async def now(self) -> datetime:
        return self.clock.now()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def book(clock: FakeClock) -> DueBook:
    return DueBook(clock)


@pytest.fixture
def pause(book: DueBook, clock: FakeClock) -> Pause:
    return Pause(cast("Store", book), clock)


async def waited(pause: Pause, clock: FakeClock) -> float:
    """Wait until due; return how long that took."""
    began = clock.monotonic()
    waiting = asyncio.create_task(pause.until_due())
    await settle()
    while not waiting.done():
        await clock.advance(0.125)
        await settle()
    await waiting
    return clock.monotonic() - began


async def test_with_nothing_due_the_wait_is_one_poll(pause: Pause, clock: FakeClock) -> None:
    assert await waited(pause, clock) == pytest.approx(POLL_SECONDS)


async def test_the_wait_ends_when_something_falls_due(pause: Pause, book: DueBook, clock: FakeClock) -> None:
    book.due_at = clock.now() + timedelta(seconds=0.25)
    assert await waited(pause, clock) == pytest.approx(0.25)


async def test_what_is_far_off_does_not_make_the_wait_longer(
    pause: Pause, book: DueBook, clock: FakeClock
) -> None:
    book.due_at = clock.now() + timedelta(days=1)
    assert await waited(pause, clock) == pytest.approx(POLL_SECONDS)


async def test_what_is_due_already_does_not_make_it_spin(
    pause: Pause, book: DueBook, clock: FakeClock
) -> None:
    book.due_at = clock.now() - timedelta(seconds=1)
    assert await waited(pause, clock) == pytest.approx(POLL_SECONDS)


async def test_a_store_that_is_away_is_asked_again_after_a_poll(
    pause: Pause, book: DueBook, clock: FakeClock
) -> None:
    book.is_away = True
    assert await waited(pause, clock) == pytest.approx(POLL_SECONDS)


async def test_a_wake_up_ends_the_wait(pause: Pause, clock: FakeClock) -> None:
    waiting = asyncio.create_task(pause.seconds(60))
    await settle()
    pause.wake()
    await settle()
    assert waiting.done()
    await waiting
    assert clock.sleepers == 0


async def test_a_wake_up_between_two_waits_ends_the_next_one_only(pause: Pause, clock: FakeClock) -> None:
    pause.wake()
    assert await waited(pause, clock) == 0
    assert await waited(pause, clock) == pytest.approx(POLL_SECONDS)


async def test_an_outage_is_told_at_once_then_now_and_then_and_when_it_is_over(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage(clock, "claiming", "claim")
    with caplog.at_level(logging.INFO):
        outage.over()
        for _ in range(61):
            outage.failed(StoreUnavailableError("away"))
            await clock.advance(REMIND_SECONDS / 30)
        outage.over()
        outage.over()
        outage.failed(RuntimeError("a bug"))

    told = [(record.getMessage(), vars(record)["action"]) for record in caplog.records]
    assert told == [
        *[("claiming failed: away", "claim_failed")] * 3,
        ("claiming works again after 122 s", "claim_resumed"),
        ("claiming failed", "claim_failed"),
    ]
    assert caplog.records[-1].exc_info is not None
