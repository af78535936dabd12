"""What loops that run for months share: the wait between two looks at the store, and what they say of an outage."""

from __future__ import annotations

import asyncio
import logging

from harness.errors import HarnessError, StoreError
from harness.ports import Clock, Store

logger = logging.getLogger(__name__)

#: Longest wait between two looks, in seconds: half of what promise P4 allows. Others may have changed the store.
POLL_SECONDS = 0.5
#: Pause after a store did not answer, in seconds.
BACK_OFF_SECONDS = 2.0
#: Between two lines about one outage, in seconds.
REMIND_SECONDS = 60.0


class Pause:
    """One loop's wait. A wake-up that comes between two waits is not lost."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """End the wait, or the next one."""
        self._woken.set()

    async def until_due(self) -> None:
        """Wait until something falls due, `POLL_SECONDS` at most.

        What is due already and was left alone (no slot is free, say) does not shorten the wait.
        """
        seconds = POLL_SECONDS
        try:
            due_at = await self._store.next_due_at()
            left = (due_at - await self._store.now()).total_seconds() if due_at else 0.0
        except StoreError:
            left = 0.0
        await self.seconds(min(seconds, left) if left > 0 else seconds)

    async def seconds(self, seconds: float) -> None:
        """Wait for `seconds`."""
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        waking = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait((sleeping, waking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()
            self._woken.clear()


class Outage:
    """Says that one loop's work fails: at once, then once a minute, and when it is over."""

    def __init__(self, clock: Clock, work: str, action: str) -> None:
        """Be about some work, such as "claiming", with the actions ``{action}_failed`` and ``{action}_resumed``."""
        self._clock = clock
        self._work = work
        self._action = action
        self._began: float | None = None
        self._said = 0.0

    def failed(self, error: Exception) -> None:
        """Take note of a failure. One that is not the product's own error is a bug, and gets its traceback."""
        now = self._clock.monotonic()
        if self._began is None:
            self._began = now
        elif now - self._said < REMIND_SECONDS:
            return
        self._said = now
        extra = {"action": f"{self._action}_failed"}
        if isinstance(error, HarnessError):
            logger.warning("%s failed: %s", self._work, error, extra=extra)
        else:
            logger.error("%s failed", self._work, exc_info=error, extra=extra)

    def over(self) -> None:
        """Take note of a success."""
        if self._began is None:
            return
        seconds = self._clock.monotonic() - self._began
        self._began = None
        extra = {"action": f"{self._action}_resumed", "seconds": round(seconds, 3)}
        logger.info("%s works again after %.0f s", self._work, seconds, extra=extra)
