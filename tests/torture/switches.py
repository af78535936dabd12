"""Turns schedules off and on while all else goes wrong, by the product's own calls, and notes when it did."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from tests.torture.facts import Switched

from harness.errors import StoreError
from harness.scheduler import TaskScheduler


class Switchboard:
    """The schedules of the agents that were added."""

    def __init__(self, scheduler: TaskScheduler) -> None:
        self.scheduler = scheduler
        self.switched: defaultdict[int, list[Switched]] = defaultdict(list)
        self._agent_ids: list[int] = []
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    def add(self, agent_id: int) -> None:
        """Know an agent."""
        self._agent_ids.append(agent_id)

    async def turn_off_and_on(self, number: int, kind: str, seconds: float) -> None:
        """Pause or remove one of the schedules, and after a while resume it or add it again."""
        agent_id = self._agent_ids[number % len(self._agent_ids)]
        off, on = {
            "pause": (self.scheduler.pause, self.scheduler.resume),
            "remove": (self.scheduler.remove_agent_schedule, self.scheduler.add_agent_schedule),
        }[kind]
        async with self._locks[agent_id]:
            await self._switch(agent_id, off, is_on=False)
            await asyncio.sleep(seconds)
            await self._switch(agent_id, on, is_on=True)

    async def _switch(self, agent_id: int, call: Callable[[int], Awaitable[object]], *, is_on: bool) -> None:
        began_at = datetime.now(UTC)
        while True:
            try:
                await call(agent_id)
            except StoreError:
                # The store is away, which is another of the faults. The call may have taken effect all the same.
                await asyncio.sleep(0.1)
            else:
                break
        self.switched[agent_id].append(Switched(is_on, began_at, datetime.now(UTC)))
