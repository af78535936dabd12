"""Keeping a claim on a running task alive, and knowing the moment it can't be trusted any more.

A lease is *live* for its holder until the local, monotonic deadline counted from before the last successful extension
was sent. That is never later than what the store believes, so whoever checks `is_live` before a step with an effect
stops before anybody else may take the task over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from harness.errors import LeaseLostError
from harness.ports import Clock, Store

logger = logging.getLogger(__name__)

#: A beat is this part of a lease: one extension may fail, and a second, and the third is still in time.
BEATS_PER_LEASE = 4

OnLost = Callable[[], Awaitable[None]]


class LeaseKeeper:
    """Extends one lease in the background while it is entered."""

    def __init__(
        self, store: Store, clock: Clock, *, task_id: int, fence: int, lease_seconds: float, claimed_at: float
    ) -> None:
        """Keep the lease of a task claimed at `claimed_at`, a reading of ``clock.monotonic`` from before the claim."""
        self._store = store
        self._clock = clock
        self._task_id = task_id
        self._fence = fence
        self._lease_seconds = lease_seconds
        self._deadline = claimed_at + lease_seconds
        self._lost = False
        self._on_lost: OnLost | None = None
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._beating is not None
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)

    def when_lost(self, action: OnLost | None) -> None:
        """Await `action` once when the lease is lost; None: nothing more to stop."""
        self._on_lost = action

    @property
    def is_live(self) -> bool:
        """Whether the claim certainly still holds."""
        return not self._lost and self._clock.monotonic() < self._deadline

    def check(self) -> None:
        """Raise `LeaseLostError` unless the claim certainly still holds."""
        if not self.is_live:
            raise LeaseLostError(f"the lease on task {self._task_id} (fence {self._fence}) was lost")

    async def _beat(self) -> None:
        while self.is_live:
            # Never past the deadline: an agent whose lease has ended must be stopped then, not at the next beat.
            await self._clock.sleep(min(self._lease_seconds / BEATS_PER_LEASE, self._left_seconds))
            if self.is_live:
                await self._extend()
        self._lost = True
        logger.error("lease lost", extra={"action": "lease_lost", "task_id": self._task_id})
        if self._on_lost is not None:
            await self._on_lost()

    @property
    def _left_seconds(self) -> float:
        return max(0.0, self._deadline - self._clock.monotonic())

    async def _extend(self) -> None:
        """Extend the lease, or give up at its end: a store that hangs must not hide that the lease is over."""
        sent_at = self._clock.monotonic()
        extending = asyncio.ensure_future(
            self._store.extend_lease(self._task_id, self._fence, self._lease_seconds)
        )
        expiring = asyncio.ensure_future(self._clock.sleep(self._left_seconds))
        try:
            await asyncio.wait((extending, expiring), return_when=asyncio.FIRST_COMPLETED)
            if extending.done():
                extending.result()
                self._deadline = sent_at + self._lease_seconds
        except LeaseLostError:
            self._lost = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the beat must go on until the lease ends
            logger.warning("lease of task %d not extended: %s", self._task_id, error)
        finally:
            extending.cancel()
            expiring.cancel()
            await asyncio.gather(extending, expiring, return_exceptions=True)
