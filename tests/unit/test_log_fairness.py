"""A flood of output takes the event loop in small pieces: whoever else is served there waits for one of them at most."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from harness.api.logs import LogReader
from harness.models import AgentDraft, Claim, NewTask
from harness.output import OutputRecorder
from harness.runsecrets import RunSecrets
from harness.sandbox.engine import STREAM_BUFFER_BYTES, demultiplex
from harness.sandbox.frames import ResultScanner
from harness.testing import FakeClock, MemoryStore
from harness_server.streams import READERS_PER_TURN, Streams

#: Bound on one turn of the event loop, in seconds of this thread's CPU time: what other programs take does not count.
#: Twice what is aimed at, for machines whose cores do other things as well.
TURN_SECONDS = 0.02
FLOOD_BYTES = 8 * 1024 * 1024


@asynccontextmanager
async def longest_turn() -> AsyncIterator[list[float]]:
    """Yield a list whose one item is the longest turn of the event loop in the block."""
    longest = [0.0]
    before = time.thread_time()

    async def watch() -> None:
        nonlocal before
        while True:
            before = time.thread_time()
            # Everything that is ready now runs before this goes on.
            await asyncio.sleep(0)
            longest[0] = max(longest[0], time.thread_time() - before)

    watching = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        watching.cancel()


@pytest.mark.parametrize(
    "line", [b"\n", b"line 0123456 of a program that has a lot to say\n", b"x" * 16383 + b"\n"]
)
@pytest.mark.parametrize("secrets", [{}, {"TOKEN": "a secret of some length"}])
async def test_reading_storing_and_following_a_flood_never_holds_the_event_loop_for_long(
    line: bytes, secrets: dict[str, str]
) -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    await store.open()
    agent = await store.create_agent(AgentDraft(name="talkative", code="pass"))
    task = await store.create_task(NewTask(agent_id=agent.id), claim=Claim(owner="here", lease_seconds=60))
    recorder = OutputRecorder(
        store, clock, task_id=task.id, fence=task.fence, max_bytes=FLOOD_BYTES, keep_bytes=65536
    )
    sink = RunSecrets(secrets).sink(recorder)
    scanner = ResultScanner("0" * 32, max_state_bytes=65536)
    reader = asyncio.StreamReader(limit=STREAM_BUFFER_BYTES)
    frame = b"\1\0\0\0" + len(line).to_bytes(4, "big") + line
    count = FLOOD_BYTES // len(frame)
    reader.feed_data(frame * count)
    reader.feed_eof()

    async with longest_turn() as longest:
        await demultiplex(reader, lambda _, data: sink("stdout", scanner.feed("stdout", data)))
        sink.finish()
        await recorder.flush(is_last=True)
        size = 0
        async for event in LogReader(store, clock).events(task.id, follow=False, after=-1):
            # As for a reader of events.
            event.model_dump_json()
            size += len(event.text) if event.kind == "stdout" else 0

    await store.close()
    assert size == count * len(line)
    assert longest[0] < TURN_SECONDS


async def test_hundreds_of_readers_take_turns() -> None:
    streams, made = Streams(), 0

    def make() -> None:
        nonlocal made
        made += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(400):
            group.create_task(streams._in_turn(make))
        turns = 0
        while made < 400:
            before, turns = made, turns + 1
            await asyncio.sleep(0)
            assert made - before <= READERS_PER_TURN
            assert turns < 4000
