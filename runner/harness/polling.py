"""The wait between two looks at the store: until somebody wakes it, something falls due, or a bound has passed."""

from __future__ import annotations

import asyncio

from harness.errors import StoreError
from harness.ports import Clock, Store

#: Longest wait between two looks, in seconds: half of what promise P4 allows. Others may have changed the store.
POLL_SECONDS = 0.5
#: Pause after a store did not answer, in seconds.
BACK_OFF_SECONDS = 2.0


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
