"""`Dispatch`: what can wait gives way while a run is being given its container. No I/O."""

from __future__ import annotations

import asyncio
from types import TracebackType

from harness.ports import Clock

#: A run that was given its container needs the machine this much longer: its agent is about to begin.
SETTLING_SECONDS = 0.1
#: Longest that work gives way, under runs that come one upon the other.
PATIENCE_SECONDS = 0.5


class Dispatch:
    """Entered by whoever gives a run its container; others wait for `quiet`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._under_way = 0
        self._settled_at = 0.0
        self._done = asyncio.Event()
        self._done.set()

    def __enter__(self) -> None:
        self._under_way += 1
        self._done.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._settled_at = self._clock.monotonic() + SETTLING_SECONDS
            self._done.set()

    @property
    def is_quiet(self) -> bool:
        """Whether no run waits for its container or just got it."""
        return self._under_way == 0 and self._clock.monotonic() >= self._settled_at

    async def quiet(self) -> None:
        """Wait until no run waits for its container or just got it, but no longer than `PATIENCE_SECONDS`."""
        waiting = asyncio.create_task(self._until_quiet())
        patience = asyncio.create_task(self._clock.sleep(PATIENCE_SECONDS))
        try:
            await asyncio.wait((waiting, patience), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (waiting, patience):
                task.cancel()
            await asyncio.gather(waiting, patience, return_exceptions=True)

    async def _until_quiet(self) -> None:
        while True:
            await self._done.wait()
            left = self._settled_at - self._clock.monotonic()
            if left <= 0:
                return
            await self._clock.sleep(left)
