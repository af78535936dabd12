"""Samples of what a task uses, as one stream over all its attempts and whichever process runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.errors import StoreUnavailableError, TaskNotFoundError
from harness.models import UsageSample
from harness.ports import Clock, Store

#: Pause between two looks for new samples, and after a store did not answer, in seconds.
POLL_SECONDS, BACK_OFF_SECONDS = 1.0, 2.0
#: Samples read at once.
PAGE_SAMPLES = 1000


async def follow(
    store: Store, clock: Clock, task_id: int, *, follow: bool, after: int
) -> AsyncIterator[UsageSample]:
    """Yield samples after the sequence number `after`; see `harness.api.HarnessApi.stats`."""
    seq = after
    # Once by itself: a task that is not there, or a store that is away, is the caller's to know at once.
    task = await store.get_task(task_id)
    while True:
        try:
            # The task before its samples: what it wrote before its end is all there then.
            task = await store.get_task(task_id)
            samples = await store.read_samples(task_id, after_seq=seq, limit=PAGE_SAMPLES)
        except TaskNotFoundError:
            return
        except StoreUnavailableError:
            await clock.sleep(BACK_OFF_SECONDS)
            continue
        for sample in samples:
            yield sample
            seq = sample.seq
        if samples:
            continue
        if task.status.is_final or not follow:
            return
        await clock.sleep(POLL_SECONDS)
