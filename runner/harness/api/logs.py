"""A task's output as one stream of events, over all its attempts and whichever process runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from harness.api.values import LogEvent
from harness.models import LogChunk, log_attempt, log_seq
from harness.ports import Clock, Store

#: Pause between two looks for new output, in seconds.
POLL_SECONDS = 0.2
#: Chunks read at once; a chunk is at most 64 KiB, and so a reader's memory is bounded.
PAGE_CHUNKS = 16


async def follow(
    store: Store, clock: Clock, task_id: int, *, follow: bool, after: int
) -> AsyncIterator[LogEvent]:
    """Yield events after the sequence number `after`; with `follow`, until the task has ended."""
    seq = after
    while True:
        # Looked up before the chunks are read: what a task that has ended wrote is all there.
        task = await store.get_task(task_id)
        while chunks := await store.read_logs(task_id, after_seq=seq, limit=PAGE_CHUNKS):
            for chunk in chunks:
                for event in _events(chunk, seq):
                    yield event
                seq = chunk.seq
        if task.status.is_final:
            attempt = task.attempts[-1].number if task.attempts else 0
            # The highest number that the attempt has: nothing of it comes after this.
            yield LogEvent(
                seq=max(seq, log_seq(attempt + 1, 0) - 2), kind="end", attempt=attempt, at=task.completed_at
            )
            return
        if not follow:
            return
        await clock.sleep(POLL_SECONDS)


def _events(chunk: LogChunk, last_seq: int) -> list[LogEvent]:
    attempt = log_attempt(chunk.seq)
    events = []
    # One below an attempt's first chunk, a number that no chunk has.
    begin = log_seq(attempt, 0) - 1
    if begin > last_seq:
        events.append(LogEvent(seq=begin, kind="attempt", attempt=attempt, at=chunk.at))
    text = chunk.data.decode(errors="replace")
    events.append(LogEvent(seq=chunk.seq, kind=chunk.stream, attempt=attempt, text=text, at=chunk.at))
    return events
