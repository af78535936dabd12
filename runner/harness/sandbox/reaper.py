"""`Reaper`: removes, in the background, containers in which nothing of an agent runs any more.

To take a container down costs the engine about as much as to start one, and on the same processors. So removals give way
to dispatch, few of them run at a time, and what waits is bounded: whoever brings one container too many waits with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from harness.ports import Clock
from harness.sandbox.dispatch import Dispatch

#: Removals at a time.
AT_ONCE = 2
#: Containers that may be on their way out, those included that are being removed. Each holds some MiB of memory.
MAX_CONTAINERS = 64
#: How long after it was taken a container waits for dispatch at most, in seconds.
MAX_WAIT_SECONDS = 0.5
#: Between a container's end and the first look whether anything is being dispatched, and between two looks, in seconds:
#: what follows on a run's end (its last write, the next run's begin) comes first.
PAUSE_SECONDS = 0.02


class Reaper:
    """Removes containers by name, each in a task of its own. Whoever owns it calls `settle` before the end."""

    def __init__(self, remove: Callable[[str], Awaitable[None]], dispatch: Dispatch, clock: Clock) -> None:
        """Remove with `remove`, which reports its failures itself, and may be called again after it was cancelled."""
        self._remove = remove
        self._dispatch = dispatch
        self._clock = clock
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._hurries = False
        #: Each container's connection and when it was taken, until it is removed.
        self._held: dict[str, tuple[asyncio.StreamWriter, float]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a container waits to be removed here, or is being removed."""
        return name in self._held

    async def take(self, name: str, attached: asyncio.StreamWriter) -> None:
        """Take a container over, to be removed soon; waits while there are too many already.

        Args:
            name: The container's.
            attached: Its connection, closed when the removal begins: an earlier close would make the engine begin.
        """
        # Before anything that may be cut off, so that `settle` knows of it.
        self._held[name] = attached, self._clock.monotonic()
        while len(self._tasks) >= MAX_CONTAINERS:
            await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        if name in self._held and name not in self._tasks:
            self._start(name)

    async def settle(self) -> None:
        """Remove all that was taken, without giving way any more; return when it is gone."""
        self._hurries = True
        try:
            while self._held:
                # A loop that ends cancels all tasks before it closes anything.
                for name in self._held.keys() - self._tasks.keys():
                    self._start(name)
                await asyncio.wait(self._tasks.values())
        finally:
            self._hurries = False

    def _start(self, name: str) -> None:
        task = asyncio.create_task(self._reap(name))
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name))

    async def _reap(self, name: str) -> None:
        attached, taken_at = self._held[name]
        async with self._at_once:
            await self._give_way(taken_at + MAX_WAIT_SECONDS)
            # A plain close would first wait to send what a program leaves unread.
            attached.transport.abort()
            try:
                await self._remove(name)
            except Exception:
                del self._held[name]
                raise
        del self._held[name]

    async def _give_way(self, until: float) -> None:
        while not self._hurries and len(self._held) < MAX_CONTAINERS:
            left = until - self._clock.monotonic()
            if left <= 0:
                return
            await self._clock.sleep(min(PAUSE_SECONDS, left))
            if self._dispatch.is_quiet:
                return
