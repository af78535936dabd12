"""The runner's end of a relay: what it carries, what it bounds, and what a relay that was taken over gets from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.egress.frames import (
    ACK,
    CUT,
    DATA,
    END,
    MAX_PAYLOAD_BYTES,
    OPEN,
    READY,
    WINDOW_BYTES,
    BadFrameError,
    Decoder,
    Frame,
    encode,
    encode_ack,
)
from harness.egress.mux import MAX_CONNECTIONS, MAX_TASKS, Connection, RelayLink

Serve = Callable[[Connection], Awaitable[None]]


class FakePipe:
    """A relay's end that a test plays."""

    def __init__(self) -> None:
        self._to_runner: asyncio.Queue[bytes] = asyncio.Queue()
        self._sent = Decoder()
        self._frames: list[Frame] = []
        self.takes = asyncio.Event()
        self.takes.set()

    async def read(self) -> bytes:
        return await self._to_runner.get()

    def write(self, data: bytes) -> None:
        self._sent.feed(data)
        while (frame := self._sent.take()) is not None:
            self._frames.append(frame)

    async def drain(self) -> None:
        await self.takes.wait()

    def say(self, *frames: bytes) -> None:
        self._to_runner.put_nowait(b"".join(frames))

    async def heard(self) -> list[Frame]:
        """What the runner sent since the last time, once it has nothing more to do."""
        for _ in range(50):
            await asyncio.sleep(0)
        frames, self._frames = self._frames, []
        return frames


@asynccontextmanager
async def linked(serve: Serve) -> AsyncIterator[tuple[FakePipe, asyncio.Task[None]]]:
    pipe = FakePipe()
    link = RelayLink(pipe, serve)
    pipe.say(encode(READY, 0))
    await link.until_ready()
    running = asyncio.create_task(link.run())
    try:
        yield pipe, running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def echo(connection: Connection) -> None:
    while data := await connection.read():
        await connection.write(data)
    connection.end()


async def wait_for_ever(_connection: Connection) -> None:
    await asyncio.Event().wait()


async def test_what_a_program_sends_is_read_and_answered_in_order() -> None:
    async with linked(echo) as (pipe, _):
        pipe.say(
            encode(OPEN, 1),
            encode(DATA, 1, b"a"),
            encode(OPEN, 2),
            encode(DATA, 2, b"x"),
            encode(DATA, 1, b"b"),
        )
        heard = await pipe.heard()
        pipe.say(encode(END, 1))
        ended = await pipe.heard()

    assert b"".join(frame.payload for frame in heard if frame.kind == DATA and frame.connection == 1) == b"ab"
    assert Frame(DATA, 2, b"x") in heard
    assert sum(int.from_bytes(f.payload, "big") for f in heard if f.kind == ACK and f.connection == 1) == 2
    assert ended == [Frame(END, 1)]


async def test_one_that_does_not_read_gets_a_window_and_holds_up_nobody() -> None:
    async def pour(connection: Connection) -> None:
        while True:
            await connection.write(b"." * 50_000)

    async with linked(pour) as (pipe, _):
        pipe.say(encode(OPEN, 1))
        first = await pipe.heard()
        pipe.say(encode(OPEN, 2), encode_ack(1, 1000))
        second = await pipe.heard()

    assert sum(len(frame.payload) for frame in first) == WINDOW_BYTES
    assert max(len(frame.payload) for frame in first) <= MAX_PAYLOAD_BYTES
    assert sum(len(frame.payload) for frame in second if frame.connection == 1) == 1000
    assert sum(len(frame.payload) for frame in second if frame.connection == 2) == WINDOW_BYTES


async def test_a_relay_that_takes_nothing_makes_the_runner_wait_and_hold_little() -> None:
    async def pour(connection: Connection) -> None:
        while True:
            await connection.write(b"." * 50_000)

    async with linked(pour) as (pipe, _):
        pipe.takes.clear()
        pipe.say(*(encode(OPEN, number) for number in range(1, MAX_CONNECTIONS + 1)))
        heard = await pipe.heard()

    assert sum(len(frame.payload) for frame in heard) <= MAX_CONNECTIONS * MAX_PAYLOAD_BYTES


async def test_of_what_nobody_reads_a_window_is_held_and_more_is_the_relays_end() -> None:
    async with linked(wait_for_ever) as (pipe, running):
        pipe.say(encode(OPEN, 1), *[encode(DATA, 1, b"." * MAX_PAYLOAD_BYTES)] * 4)
        assert await pipe.heard() == []
        assert not running.done()
        pipe.say(encode(DATA, 1, b"."))
        await pipe.heard()
        with pytest.raises(BadFrameError, match="no room"):
            await running


@pytest.mark.parametrize(
    "frames",
    [
        [encode(OPEN, 0)],
        [encode(OPEN, 2)],
        [encode(OPEN, 1), encode(OPEN, 1)],
        [encode(DATA, 1, b"x")],
        [encode(OPEN, 1), encode(DATA, 2, b"x")],
        [encode(OPEN, 1), encode(CUT, 4_000_000_000)],
        [encode(OPEN, 1), encode(READY, 0)],
        [encode(OPEN, 1), encode(END, 1), encode(DATA, 1, b"x")],
        [encode(OPEN, 1), encode(END, 1), encode(END, 1)],
        [encode(OPEN, 1), encode_ack(1, 1)],
        [encode(OPEN, 1), encode_ack(1, 0xFFFFFFFF)],
        [encode(OPEN, 1, b"x")],
        [encode(OPEN, 1), encode(DATA, 1)],
        [encode(OPEN, 1), encode(DATA, 1, b"x" * (MAX_PAYLOAD_BYTES + 1))],
        [encode(OPEN, 1), encode(ACK, 1, b"\0" * 3)],
        [encode(b"Z", 1)],
        [b"\0" * 100],
        [b"HTTP/1.1 200 OK\r\n\r\n"],
        [encode(OPEN, number) for number in range(1, MAX_CONNECTIONS + 2)],
    ],
)
async def test_a_frame_that_no_relay_sends_ends_it_with_all_its_connections(frames: list[bytes]) -> None:
    served: list[str] = []

    async def serve(connection: Connection) -> None:
        try:
            await wait_for_ever(connection)
        finally:
            served.append("ended")

    async with linked(serve) as (pipe, running):
        pipe.say(*frames)
        with pytest.raises(BadFrameError):
            await asyncio.wait_for(running, 5)
        began = len(asyncio.all_tasks())

    assert began <= 2
    assert all(one == "ended" for one in served)


async def test_a_torn_frame_is_waited_for_and_its_relays_end_is_the_end() -> None:
    async with linked(wait_for_ever) as (pipe, running):
        pipe.say(encode(OPEN, 1), encode(DATA, 1, b"hello")[:-1])
        await pipe.heard()
        assert not running.done()
        pipe.say(b"")
        await asyncio.wait_for(running, 5)


async def test_frames_of_a_connection_that_was_just_closed_are_ignored() -> None:
    async def cut(connection: Connection) -> None:
        await connection.read()

    async with linked(cut) as (pipe, running):
        pipe.say(encode(OPEN, 1), encode(DATA, 1, b"x"))
        assert Frame(CUT, 1) in await pipe.heard()
        pipe.say(encode(DATA, 1, b"y"), encode_ack(1, 7), encode(END, 1), encode(CUT, 1))
        assert await pipe.heard() == []
        assert not running.done()


async def test_a_program_that_leaves_ends_what_is_done_for_it() -> None:
    ended = asyncio.Event()

    async def serve(connection: Connection) -> None:
        try:
            await wait_for_ever(connection)
        finally:
            ended.set()

    async with linked(serve) as (pipe, running):
        pipe.say(encode(OPEN, 1))
        await pipe.heard()
        pipe.say(encode(CUT, 1))
        await asyncio.wait_for(ended.wait(), 5)
        assert await pipe.heard() == []
        assert not running.done()


async def test_connections_that_come_and_go_without_end_are_paced_and_leave_nothing() -> None:
    served = 0

    async def serve(connection: Connection) -> None:
        nonlocal served
        served += 1
        await wait_for_ever(connection)

    async with linked(serve) as (pipe, running):
        pipe.say(*(encode(OPEN, number) + encode(CUT, number) for number in range(1, 100_001)))
        loop = asyncio.get_running_loop()
        began, longest = loop.time(), 0.0
        while loop.time() < began + 0.3:
            before = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - before)
            assert len(asyncio.all_tasks()) <= MAX_TASKS + 5
        assert not running.done()

    # The burst and what a third of a second adds, with room for a machine that is busy.
    assert served <= 300


async def test_a_mistake_of_ours_in_one_connection_ends_that_one_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def serve(connection: Connection) -> None:
        if connection.number == 1:
            raise LookupError("a mistake")
        await echo(connection)

    async with linked(serve) as (pipe, running):
        pipe.say(encode(OPEN, 1), encode(OPEN, 2), encode(DATA, 2, b"x"))
        heard = await pipe.heard()
        assert not running.done()

    assert Frame(CUT, 1) in heard
    assert Frame(DATA, 2, b"x") in heard
    assert "a mistake" in caplog.text


@pytest.mark.parametrize("said", [b"", encode(OPEN, 1), b"Traceback (most recent call last)"])
async def test_a_relay_that_does_not_say_that_it_listens_is_none(said: bytes) -> None:
    pipe = FakePipe()
    pipe.say(said)

    with pytest.raises(BadFrameError):
        await RelayLink(pipe, wait_for_ever).until_ready()


@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_bytes_are_the_same_frames_however_they_come(data: bytes, cut: int) -> None:
    def decode(*pieces: bytes) -> list[object]:
        decoder, found = Decoder(), list[object]()
        try:
            for piece in pieces:
                decoder.feed(piece)
                while (frame := decoder.take()) is not None:
                    found.append(frame)
        except BadFrameError as error:
            found.append(str(error))
        return found

    assert decode(data) == decode(data[:cut], data[cut:])


@given(
    st.lists(
        st.one_of(
            st.builds(Frame, st.just(DATA), st.integers(1, 2**32 - 1), st.binary(min_size=1, max_size=100)),
            st.builds(Frame, st.sampled_from([OPEN, END, CUT]), st.integers(0, 2**32 - 1)),
        )
    )
)
def test_frames_are_read_as_they_were_written(frames: list[Frame]) -> None:
    decoder = Decoder()
    decoder.feed(b"".join(encode(frame.kind, frame.connection, frame.payload) for frame in frames))

    assert [decoder.take() for _ in frames] == frames
    assert decoder.take() is None
