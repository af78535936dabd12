"""What the parts of the MongoDB store share: the open database, the store's clock, and the layout of keys."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import TypeVar

from harness.errors import StoreUnavailableError
from harness.ports import Clock
from harness.store.documents import int64, whole_millis
from harness.store.mongo.driver import Database

#: How old a measurement of the server's clock may get. Crystals drift by up to 100 ppm, that is 30 ms in this time.
CLOCK_REFRESH_SECONDS = 300.0
#: Looks per measurement. The shortest counts: this process may have been busy elsewhere during another.
CLOCK_LOOKS = 3

#: Operations of one call that are under way at a time.
_AT_ONCE = 16

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def ordered_key(owner_id: int, number: int) -> str:
    """Return a key that sorts by owner and then by number, so that `_id` is the only index its collection needs."""
    return f"{int64(owner_id):016x}:{number:016x}"


def keys_of(owner_id: int, *, after: int = -1, before: int = 2**63) -> dict[str, str]:
    """Return the condition on `_id` for an owner's keys with numbers between two bounds, both left out."""
    low, high = max(-1, min(after, 2**63 - 1)) + 1, max(0, min(before, 2**63))
    return {"$gte": ordered_key(owner_id, low), "$lt": ordered_key(owner_id, high)}


async def each(items: Iterable[ItemT], work: Callable[[ItemT], Awaitable[ResultT]]) -> list[ResultT]:
    """Do `work` on every item, some at a time, and return the results in the items' order.

    When one fails, those under way are let finish; then its error is raised.
    """
    results: list[ResultT] = []
    waiting = iter(items)
    while batch := list(itertools.islice(waiting, _AT_ONCE)):
        outcomes = await asyncio.gather(*map(work, batch), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            results.append(outcome)
    return results


class MongoPart:
    """Base of the parts."""

    def __init__(self, clock: Clock) -> None:
        """Keep the clock by which time is counted between two looks at the server's."""
        self._clock = clock
        self._database: Database | None = None
        self._measured: tuple[datetime, float] | None = None

    @property
    def _db(self) -> Database:
        if self._database is None:
            raise StoreUnavailableError("the MongoDB store is not open; await its open() first")
        return self._database

    async def now(self) -> datetime:
        """Return the server's time.

        Counted on from the last look at the server by the monotonic clock, so that a step of this machine's wall clock
        moves no lease.
        """
        if self._measured and self._clock.monotonic() - self._measured[1] > CLOCK_REFRESH_SECONDS:
            await self._measure_clock()
        elif self._database is None:
            raise StoreUnavailableError("the MongoDB store is not open; await its open() first")
        if self._measured is None:
            return whole_millis(self._clock.now())
        at, monotonic = self._measured
        return whole_millis(at + timedelta(seconds=self._clock.monotonic() - monotonic))

    async def _measure_clock(self) -> None:
        best = None
        for _ in range(CLOCK_LOOKS):
            before = self._clock.monotonic()
            server = await self._db.server_time()
            round_trip = self._clock.monotonic() - before
            if server is None:
                break
            if best is None or round_trip < best[0]:
                # The server looked at its clock somewhere in between; half way is off by half of that at most.
                best = round_trip, (server, before + round_trip / 2)
        self._measured = None if best is None else best[1]
