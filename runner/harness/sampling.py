"""What a run uses while it lives: sampled gently, stored where every server sees it, its peaks kept with the attempt."""

from __future__ import annotations

import logging
from typing import TypeVar

from harness.aio import uninterrupted
from harness.errors import HarnessError
from harness.models import UsageSample, log_seq
from harness.ports import Clock, SandboxSession, Store

NumberT = TypeVar("NumberT", int, float)

logger = logging.getLogger(__name__)

#: Pause between two samples: this at first, in seconds, and the given part of a run's age when that is more, so that a
#: run of a day has a few hundred samples and not 86,400.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 1.0, 60.0
PAUSE_PER_AGE = 0.02
#: Samples wait this long for others to be stored with, in seconds; fifty runs share one store.
STORE_SECONDS = 3.0
#: Most samples stored of one attempt; the peaks go on.
MAX_SAMPLES = 2000


class UsageSampler:
    """Samples one attempt's container. Nothing that fails here is the run's concern."""

    def __init__(self, store: Store, clock: Clock, *, task_id: int, fence: int) -> None:
        """Store samples of the attempt `fence` of a task."""
        self._store = store
        self._clock = clock
        self._task_id = task_id
        self._fence = fence
        self._waiting: list[UsageSample] = []
        self._count = 0
        #: Highest so far; None without a sample that says.
        self.peak_memory_bytes: int | None = None
        self.peak_cpu_percent: float | None = None
        self.peak_processes: int | None = None
        #: At the last sample.
        self.cpu_seconds: float | None = None

    async def sample_periodically(self, session: SandboxSession) -> None:
        """Take samples until cancelled. The first comes after a pause: a short run costs the engine nothing."""
        began = stored_at = self._clock.monotonic()
        while True:
            age = self._clock.monotonic() - began
            await self._clock.sleep(min(max(FIRST_PAUSE_SECONDS, age * PAUSE_PER_AGE), LAST_PAUSE_SECONDS))
            await self._sample(session)
            if self._clock.monotonic() - stored_at >= STORE_SECONDS or self._count == 1:
                await uninterrupted(self.flush())
                stored_at = self._clock.monotonic()

    async def _sample(self, session: SandboxSession) -> None:
        usage = await session.usage()
        if usage is None:
            return
        self.peak_memory_bytes = _higher(self.peak_memory_bytes, usage.memory_bytes)
        self.peak_cpu_percent = _higher(self.peak_cpu_percent, usage.cpu_percent)
        self.peak_processes = _higher(self.peak_processes, usage.processes)
        self.cpu_seconds = _higher(self.cpu_seconds, usage.cpu_seconds)
        if self._count < MAX_SAMPLES:
            sample = UsageSample(
                seq=log_seq(self._fence, self._count),
                at=self._clock.now(),
                memory_bytes=usage.memory_bytes,
                cpu_percent=None if usage.cpu_percent is None else round(usage.cpu_percent, 2),
                cpu_seconds=usage.cpu_seconds,
                processes=usage.processes,
            )
            self._waiting.append(sample)
            self._count += 1

    async def flush(self) -> None:
        """Store what is waiting; what can't be stored now waits on, and is lost with the run."""
        if not self._waiting:
            return
        count = len(self._waiting)
        try:
            await self._store.append_samples(self._task_id, self._fence, self._waiting[:count])
        except HarnessError as error:
            logger.debug("samples of task %d not stored: %s", self._task_id, error)
        else:
            del self._waiting[:count]


def _higher(one: NumberT | None, other: NumberT | None) -> NumberT | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
