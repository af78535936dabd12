"""A task's output as one stream of events, over all its attempts and whichever process runs it; and as lines.

Events are read from the store, never from the run, so a reader is no concern of the agent: it may be as slow as it
likes, come late, or ask another process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass

from harness.api.values import LogEvent, LogLine
from harness.errors import StoreUnavailableError, TaskNotFoundError
from harness.models import Attempt, LogChunk, Task, log_attempt, log_seq
from harness.ports import Clock, Store

#: Pause between two looks for new output, in seconds.
POLL_SECONDS = 0.2
#: Pause after a store did not answer, in seconds.
BACK_OFF_SECONDS = 2.0
#: Chunks read at once; a chunk is at most 64 KiB, and so a reader's memory is bounded.
PAGE_CHUNKS = 16
#: Looks that are kept for other readers of the same place, for `POLL_SECONDS`.
MAX_SHARED_LOOKS = 64
#: Output in looks that are kept for others, in bytes.
MAX_SHARED_BYTES = 8 * 1024 * 1024
#: A longer line comes in pieces, so that a reader's memory is bounded whatever an agent prints; in characters.
MAX_LINE_CHARS = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Look:
    """What was there after some sequence number."""

    task: Task
    chunks: tuple[LogChunk, ...]


class LogReader:
    """Reads logs for any number of readers; those that are at the same place share one look at the store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Use an open store, which stays the caller's."""
        self._store = store
        self._clock = clock
        #: By task and sequence number: when the look began, and the look.
        self._looks: OrderedDict[tuple[int, int], tuple[float, asyncio.Task[_Look]]] = OrderedDict()

    async def events(self, task_id: int, *, follow: bool, after: int) -> AsyncGenerator[LogEvent, None]:
        """Yield what comes after the sequence number `after`; see `harness.api.HarnessApi.log_events`."""
        seq = after
        look = await self._look(task_id, seq)
        while True:
            for chunk in look.chunks:
                for mark in _marks(look.task, seq, chunk):
                    yield mark
                yield _event(chunk)
                seq = chunk.seq
            if not look.chunks:
                for mark in _marks(look.task, seq):
                    yield mark
                    seq = mark.seq
                is_final = look.task.status.is_final
                if is_final or not follow:
                    if not is_final or seq < end_seq(look.task):
                        yield _end(look.task, seq)
                    return
                await self._clock.sleep(POLL_SECONDS)
            try:
                look = await self._look_on(task_id, seq)
            except TaskNotFoundError:
                yield LogEvent(seq=seq, kind="end", attempt=log_attempt(max(seq, 0)), text="deleted")
                return

    async def _look_on(self, task_id: int, seq: int) -> _Look:
        """Look again, and wait for a store that is away: a browser's event source that is cut off may not come back."""
        while True:
            try:
                return await self._look(task_id, seq)
            except StoreUnavailableError:
                await self._clock.sleep(BACK_OFF_SECONDS)

    async def _look(self, task_id: int, seq: int) -> _Look:
        """Look at the store, or take part in a look at the same place that is no older than a pause."""
        key, now = (task_id, seq), self._clock.monotonic()
        began_at, looking = self._looks.get(key, (0.0, None))
        if looking is None or now - began_at >= POLL_SECONDS or _has_failed(looking):
            looking = asyncio.create_task(self._read(task_id, seq))
            looking.add_done_callback(
                _has_failed
            )  # counts as a look at its error, should all readers be gone
            self._looks[key] = now, looking
            self._looks.move_to_end(key)
            self._forget_looks(now)
        # A reader that goes away leaves the look to the others.
        return await asyncio.shield(looking)

    def _forget_looks(self, now: float) -> None:
        size = sum(_size(looking) for _, looking in self._looks.values())
        for key, (began_at, looking) in tuple(self._looks.items())[:-1]:
            is_old = now - began_at >= POLL_SECONDS
            if not is_old and len(self._looks) <= MAX_SHARED_LOOKS and size <= MAX_SHARED_BYTES:
                return
            if looking.done():
                size -= _size(looking)
                del self._looks[key]

    async def _read(self, task_id: int, seq: int) -> _Look:
        # The task first: what it wrote before its end, or before its newest attempt, is all there then.
        task = await self._store.get_task(task_id)
        return _Look(task, tuple(await self._store.read_logs(task_id, after_seq=seq, limit=PAGE_CHUNKS)))


def end_seq(task: Task) -> int:
    """Return the sequence number of a task's ``end``: above all it wrote, below what a further attempt would write."""
    return log_seq((task.attempts[-1].number if task.attempts else 0) + 1, 0) - 2


def begin_seq(attempt: int) -> int:
    """Return the sequence number of an attempt's mark: one below its first chunk, a number that no chunk has."""
    return log_seq(attempt, 0) - 1


def _has_failed(looking: asyncio.Task[_Look]) -> bool:
    return looking.done() and (looking.cancelled() or looking.exception() is not None)


def _size(looking: asyncio.Task[_Look]) -> int:
    if not looking.done() or _has_failed(looking):
        return 0
    return sum(len(chunk.data) for chunk in looking.result().chunks)


def _marks(task: Task, seq: int, chunk: LogChunk | None = None) -> Iterator[LogEvent]:
    """Yield marks of attempts that begin after `seq`, up to the one that `chunk` is of, or all there are."""
    last = log_attempt(chunk.seq) if chunk is not None else None
    known: dict[int, Attempt] = {attempt.number: attempt for attempt in task.attempts}
    # The chunk may be of an attempt that began after the task was looked up.
    numbers = [*known, last] if last is not None and last not in known else [*known]
    for number in numbers:
        if begin_seq(number) > seq and (last is None or number <= last):
            at = known[number].started_at if number in known else chunk.at if chunk is not None else None
            yield LogEvent(seq=begin_seq(number), kind="attempt", attempt=number, at=at)


def _event(chunk: LogChunk) -> LogEvent:
    # Built without checks: a chunk was checked when it was stored, and there may be thousands a second.
    return LogEvent.model_construct(
        seq=chunk.seq,
        kind=chunk.stream,
        attempt=log_attempt(chunk.seq),
        text=chunk.data.decode(errors="replace"),
        at=chunk.at,
    )


def _end(task: Task, seq: int) -> LogEvent:
    attempt = task.attempts[-1].number if task.attempts else 0
    is_final = task.status.is_final
    return LogEvent(
        seq=end_seq(task) if is_final else seq,
        kind="end",
        attempt=attempt,
        text=str(task.status),
        at=task.completed_at,
    )


async def lines_of(events: AsyncGenerator[LogEvent, None]) -> AsyncGenerator[LogLine, None]:
    """Put events together to lines; see `harness.api.HarnessApi.logs`."""
    async with contextlib.aclosing(events):
        async for line in _lines(events):
            yield line


async def _lines(events: AsyncIterator[LogEvent]) -> AsyncIterator[LogLine]:
    #: The begin of each stream's current line, and the last event with a part of it.
    begun: dict[str, tuple[str, LogEvent]] = {}
    is_first = True
    async for event in events:
        if event.kind == "stdout" or event.kind == "stderr":  # noqa: PLR1714 - this way the type checker sees it
            stream, attempt, at, seq = event.kind, event.attempt, event.at, event.seq
            begin = begun.pop(stream, None)
            *ended, rest = (event.text if begin is None else begin[0] + event.text).split("\n")
            for text in ended:
                yield LogLine(text, stream, attempt, at, seq)
            while len(rest) > MAX_LINE_CHARS:
                yield LogLine(rest[:MAX_LINE_CHARS], stream, attempt, at, seq)
                rest = rest[MAX_LINE_CHARS:]
            if rest:
                begun[stream] = rest, event
            continue
        for text, last in begun.values():
            yield LogLine(
                text, "stdout" if last.kind == "stdout" else "stderr", last.attempt, last.at, last.seq
            )
        begun.clear()
        if event.kind == "attempt":
            if not is_first:
                yield LogLine(f"attempt {event.attempt}", None, event.attempt, event.at, event.seq)
            is_first = False
