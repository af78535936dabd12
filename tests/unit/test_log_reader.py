from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest
from tests.contract.places import claim_one, draft, running_task

from harness.api.logs import BACK_OFF_SECONDS, MAX_LINE_CHARS, POLL_SECONDS, LogReader, lines_of
from harness.api.values import LogEvent
from harness.errors import StoreUnavailableError, TaskNotFoundError
from harness.models import LogChunk, Outcome, Reason, Task, log_seq
from harness.ports import OutputStream
from harness.testing import FakeClock, MemoryStore

DONE = Outcome(reason=Reason.COMPLETED)


class CountingStore(MemoryStore):
    """Counts its readings, and can be away."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.readings = 0
        self.is_away = False

    async def read_logs(self, task_id: int, *, after_seq: int = -1, limit: int = 1000) -> Sequence[LogChunk]:
        self.readings += 1
        if self.is_away:
            raise StoreUnavailableError("away")
        return await super().read_logs(task_id, after_seq=after_seq, limit=limit)


class Desk:
    """A task that runs, and readers of its log."""

    def __init__(self, store: CountingStore, clock: FakeClock, task: Task) -> None:
        self.store, self.clock, self.task = store, clock, task
        self.reader = LogReader(store, clock)

    async def write(self, index: int, text: str, stream: OutputStream = "stdout", attempt: int = 1) -> None:
        at = await self.store.now()
        chunk = LogChunk(seq=log_seq(attempt, index), stream=stream, data=text.encode(), at=at)
        await self.store.append_logs(self.task.id, attempt, [chunk])

    async def read(self, *, follow: bool = False, after: int = -1) -> list[LogEvent]:
        return [event async for event in self.reader.events(self.task.id, follow=follow, after=after)]

    async def until(self, events: list[Any], count: int) -> None:
        """Let readers work, moving the clock, until there are so many events."""
        async with asyncio.timeout(10):
            while len(events) < count:
                await self.clock.advance(POLL_SECONDS)
                await asyncio.sleep(0.002)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    clock = FakeClock()
    store = CountingStore(clock)
    await store.open()
    agent = await store.create_agent(draft())
    yield Desk(store, clock, await running_task(store, agent.id))
    await store.close()


def shown(events: list[LogEvent]) -> list[tuple[str, str]]:
    return [(event.kind, event.text or str(event.attempt)) for event in events]


async def test_what_is_there_ends_with_where_to_go_on(desk: Desk) -> None:
    await desk.write(0, "one\n")
    events = await desk.read()
    assert shown(events) == [("attempt", "1"), ("stdout", "one\n"), ("end", "running")]

    await desk.clock.advance(1)
    await desk.write(1, "two\n")
    assert shown(await desk.read(after=events[-1].seq)) == [("stdout", "two\n"), ("end", "running")]


async def test_every_place_in_a_log_is_one_to_go_on_from(desk: Desk) -> None:
    await desk.write(0, "one\n")
    await desk.write(1, "oh\n", "stderr")
    await desk.store.hand_back_task(desk.task.id, 1, "shut down")
    await claim_one(desk.store, "runner-2")
    await desk.write(0, "again\n", attempt=2)
    await desk.store.finish_task(desk.task.id, 2, DONE)

    events = await desk.read(follow=True)

    assert shown(events) == [
        ("attempt", "1"), ("stdout", "one\n"), ("stderr", "oh\n"), ("attempt", "2"), ("stdout", "again\n"),
        ("end", "completed"),
    ]  # fmt: skip
    for number, event in enumerate(events):
        assert await desk.read(follow=True, after=event.seq) == events[number + 1 :]


async def test_attempts_that_print_nothing_are_marked_as_well(desk: Desk) -> None:
    await desk.store.hand_back_task(desk.task.id, 1, "shut down")
    await claim_one(desk.store, "runner-2")
    events: list[LogEvent] = []

    async def read() -> None:
        async for event in desk.reader.events(desk.task.id, follow=True, after=-1):
            events.append(event)  # noqa: PERF401 - seen while it grows

    reading = asyncio.create_task(read())
    await desk.until(events, 2)
    assert shown(events) == [("attempt", "1"), ("attempt", "2")]

    await desk.store.finish_task(desk.task.id, 2, DONE)
    await desk.until(events, 3)
    await reading
    assert shown(events[2:]) == [("end", "completed")]


async def test_readers_at_the_same_place_share_one_look_at_the_store(desk: Desk) -> None:
    await desk.write(0, "one\n")
    seen: list[list[LogEvent]] = [[] for _ in range(50)]

    async def read(events: list[LogEvent]) -> None:
        async for event in desk.reader.events(desk.task.id, follow=True, after=-1):
            events.append(event)  # noqa: PERF401 - seen while it grows

    async with asyncio.TaskGroup() as group:
        for events in seen:
            group.create_task(read(events))
        await desk.until(seen[-1], 2)
        before = desk.store.readings
        await desk.write(1, "two\n")
        await desk.until(seen[-1], 3)
        await desk.store.finish_task(desk.task.id, 1, DONE)
        await desk.until(seen[-1], 4)

    assert all(events == seen[0] for events in seen)
    assert before < 20
    assert desk.store.readings < 60


async def test_a_reader_that_goes_away_in_the_middle_of_a_look_disturbs_no_other(desk: Desk) -> None:
    first, second = asyncio.create_task(desk.read()), asyncio.create_task(desk.read())
    await asyncio.sleep(0)
    first.cancel()

    assert shown(await second) == [("attempt", "1"), ("end", "running")]


async def test_a_store_that_goes_away_is_waited_for(desk: Desk) -> None:
    await desk.write(0, "one\n")
    events: list[LogEvent] = []

    async def read() -> None:
        async for event in desk.reader.events(desk.task.id, follow=True, after=-1):
            events.append(event)  # noqa: PERF401 - seen while it grows

    reading = asyncio.create_task(read())
    await desk.until(events, 2)
    desk.store.is_away = True
    await desk.clock.advance(3 * BACK_OFF_SECONDS)
    await asyncio.sleep(0.01)
    await desk.write(1, "two\n")
    await desk.store.finish_task(desk.task.id, 1, DONE)
    desk.store.is_away = False
    await desk.until(events, 4)
    await reading

    assert shown(events[2:]) == [("stdout", "two\n"), ("end", "completed")]


async def test_a_store_that_is_away_at_first_and_a_task_that_is_not_there_are_told_at_once(
    desk: Desk,
) -> None:
    with pytest.raises(TaskNotFoundError):
        await anext(desk.reader.events(99, follow=True, after=-1))
    desk.store.is_away = True
    with pytest.raises(StoreUnavailableError):
        await anext(desk.reader.events(desk.task.id, follow=True, after=-1))


def event(kind: Any, text: str = "", attempt: int = 1, seq: int = 0) -> LogEvent:
    return LogEvent(seq=seq, kind=kind, attempt=attempt, text=text)


async def lines(*events: LogEvent) -> list[tuple[str | None, str]]:
    async def stream() -> AsyncGenerator[LogEvent, None]:
        for one in events:
            yield one

    return [(line.stream, line.text) async for line in lines_of(stream())]


async def test_lines_are_put_together_by_stream_and_end_with_their_attempt() -> None:
    seen = await lines(
        event("attempt"),
        event("stdout", "a\nb"),
        event("stderr", "oh"),
        event("stdout", "c\n\nd"),
        event("stderr", " no\n"),
        event("attempt", attempt=3),
        event("stdout", "e", attempt=3),
        event("end", "completed", attempt=3),
    )

    assert seen == [
        ("stdout", "a"), ("stdout", "bc"), ("stdout", ""), ("stderr", "oh no"), ("stdout", "d"), (None, "attempt 3"),
        ("stdout", "e"),
    ]  # fmt: skip


async def test_a_line_without_an_end_comes_in_pieces() -> None:
    events = [event("stdout", "x" * (MAX_LINE_CHARS // 2)) for _ in range(5)]

    seen = await lines(*events, event("stdout", "y\n"))

    assert [len(text) for _, text in seen] == [MAX_LINE_CHARS, MAX_LINE_CHARS, MAX_LINE_CHARS // 2 + 1]
