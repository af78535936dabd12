"""Fakes for tests of code that uses Agent Harness: a clock that a test moves, and a store in memory."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

from harness.ports import Clock
from harness.store.sqlite import SqliteStore

__all__ = ["FakeClock", "MemoryStore"]


class FakeClock:
    """A `harness.ports.Clock` that stands still until a test moves it."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        """Start at `now`, which is aware."""
        self._now = now.astimezone(UTC)
        self._monotonic = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """Return the fake wall-clock time."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds advanced since the start."""
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), woken))
        await woken

    @property
    def sleepers(self) -> int:
        """How many calls of `sleep` are waiting; a test waits for this to rise before it advances."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move on, stopping at each instant somebody sleeps towards, so that periodic sleepers wake every time."""
        end = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self._move_to(at)
            woken.set_result(None)
            # Lets the woken task run up to its next sleep, if that is all it does.
            for _ in range(10):
                await asyncio.sleep(0)
        self._move_to(end)

    def set_wall_clock(self, now: datetime) -> None:
        """Step the wall clock only, as NTP or an administrator does; sleepers do not notice."""
        self._now = now.astimezone(UTC)

    def _move_to(self, monotonic: float) -> None:
        self._now += timedelta(seconds=monotonic - self._monotonic)
        self._monotonic = monotonic


class MemoryStore(SqliteStore):
    """A `harness.ports.Store` in memory, for one process; everything in it ends with `close`."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        """Make an empty store.

        Args:
            clock: Usually a `FakeClock`. None for the machine's.
        """
        super().__init__(None, clock=clock)
