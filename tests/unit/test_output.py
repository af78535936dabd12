from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import LeaseLostError, StoreUnavailableError
from harness.models import LogChunk
from harness.output import CHUNK_BYTES, FLUSH_SECONDS, OutputRecorder
from harness.ports import OutputStream, Store
from harness.testing import FakeClock

PIECES = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=60)), max_size=15)


class LogBook:
    """The store's side of one task's log."""

    def __init__(self) -> None:
        self.chunks: dict[int, LogChunk] = {}
        self.writes = 0
        #: ``fine``, ``away`` (nothing is written), ``unsure`` (written, but the answer is lost), ``lost``.
        self.mood = "fine"
        #: The same, for one write.
        self.mood_of_next: str | None = None
        #: When set, a write waits for it before it does anything.
        self.gate: asyncio.Event | None = None

    async def append_logs(self, task_id: int, fence: int, chunks: Sequence[LogChunk]) -> None:
        assert (task_id, fence) == (7, 2)
        self.writes += 1
        if self.gate is not None:
            await self.gate.wait()
        mood, self.mood_of_next = self.mood_of_next or self.mood, None
        if mood == "lost":
            raise LeaseLostError("taken over")
        if mood == "away":
            raise StoreUnavailableError("away")
        for chunk in chunks:
            self.chunks.setdefault(chunk.seq, chunk)
        if mood == "unsure":
            raise StoreUnavailableError("the answer was lost")

    def all(self) -> list[tuple[str, bytes]]:
        """The log in order, neighbours of one stream joined."""
        return joined([(chunk.stream, chunk.data) for _, chunk in sorted(self.chunks.items())])


def joined(pieces: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    result: list[tuple[str, bytes]] = []
    for stream, data in pieces:
        if data and result and result[-1][0] == stream:
            result[-1] = (stream, result[-1][1] + data)
        elif data:
            result.append((stream, data))
    return result


def per_stream(pieces: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """Each stream by itself: the begin of a character waits for the rest, also when the other stream speaks."""
    return {
        name: b"".join(data for stream, data in pieces if stream == name) for name in ("stdout", "stderr")
    }


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> LogBook:
    return LogBook()


def recorder(store: LogBook, clock: FakeClock | None = None, max_bytes: int = 1 << 20) -> OutputRecorder:
    return OutputRecorder(cast("Store", store), clock or FakeClock(), task_id=7, fence=2, max_bytes=max_bytes)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@given(pieces=PIECES, cap=st.integers(0, 400), flush_at=st.sets(st.integers(0, 15)))
def test_what_is_kept_is_the_beginning_of_what_was_written_in_order(
    pieces: list[tuple[OutputStream, bytes]], cap: int, flush_at: set[int]
) -> None:
    async def check() -> None:
        store = LogBook()
        output = recorder(store, max_bytes=cap)
        for index, (stream, data) in enumerate(pieces):
            output(stream, data)
            if index in flush_at:
                await output.flush()
        await output.flush(is_last=True)

        # No byte after the first that was dropped is kept, on either stream.
        left, expected = cap, []
        for stream, data in pieces:
            expected.append((stream, data[:left]))
            left -= len(expected[-1][1])
        written = sum(len(data) for _, data in pieces)
        assert per_stream(store.all()) == per_stream(expected)
        assert output.total_bytes == written
        assert output.truncated == (written > cap)
        names: tuple[OutputStream, ...] = ("stdout", "stderr")
        for name in names:
            text = b"".join(data for stream, data in expected if stream == name).decode(errors="replace")
            assert output.text(name) == text

    asyncio.run(check())


@given(pieces=PIECES, moods=st.lists(st.sampled_from(["fine", "away", "unsure"]), max_size=15))
def test_a_store_that_fails_in_any_way_and_comes_back_has_everything_once(
    pieces: list[tuple[OutputStream, bytes]], moods: list[str]
) -> None:
    async def check() -> None:
        store = LogBook()
        output = recorder(store)
        for index, (stream, data) in enumerate(pieces):
            output(stream, data)
            store.mood = moods[index] if index < len(moods) else "fine"
            try:
                await output.flush()
            except StoreUnavailableError:
                assert store.mood != "fine"
        store.mood = "fine"
        await output.flush(is_last=True)

        assert per_stream(store.all()) == per_stream(pieces)

    asyncio.run(check())


async def test_a_large_piece_is_stored_in_bounded_chunks_numbered_in_order(store: LogBook) -> None:
    output = recorder(store)
    data = bytes(range(256)) * 1000

    output("stdout", data)
    await output.flush()

    chunks = [store.chunks[seq] for seq in sorted(store.chunks)]
    assert b"".join(chunk.data for chunk in chunks) == data
    assert max(len(chunk.data) for chunk in chunks) == CHUNK_BYTES
    assert [chunk.seq for chunk in chunks] == [(2 << 32) | index for index in range(len(chunks))]
    assert store.writes == 1


async def test_lines_between_two_writes_share_a_chunk_and_streams_do_not(store: LogBook) -> None:
    output = recorder(store)
    streams: tuple[OutputStream, ...] = ("stdout", "stdout", "stderr", "stdout")
    for stream in streams:
        output(stream, b"line\n")

    await output.flush()

    assert [chunk.data for _, chunk in sorted(store.chunks.items())] == [
        b"line\nline\n",
        b"line\n",
        b"line\n",
    ]


async def test_a_flush_without_output_writes_nothing(store: LogBook) -> None:
    output = recorder(store)
    output("stdout", b"")

    await output.flush()

    assert store.writes == 0


async def test_what_is_kept_is_passed_on_and_what_is_dropped_is_not(store: LogBook) -> None:
    seen: list[tuple[str, bytes]] = []
    output = OutputRecorder(
        cast("Store", store),
        FakeClock(),
        task_id=7,
        fence=2,
        max_bytes=6,
        forward=lambda stream, data: seen.append((stream, data)),
    )

    output("stdout", b"four")
    output("stderr", b"four")
    output("stdout", b"four")

    assert seen == [("stdout", b"four"), ("stderr", b"fo")]


async def test_bytes_that_are_no_utf8_are_stored_as_they_are_and_shown_as_replacement(store: LogBook) -> None:
    output = recorder(store)
    output("stdout", b"caf\xe9")

    await output.flush(is_last=True)

    assert output.text("stdout") == "caf\ufffd"
    assert store.all() == [("stdout", b"caf\xe9")]


async def test_a_character_cut_between_two_pieces_is_read_whole(store: LogBook) -> None:
    output = recorder(store)
    for byte in "é".encode():
        output("stdout", bytes([byte]))

    assert output.text("stdout") == "é"


async def test_output_reaches_the_store_while_the_run_lives(clock: FakeClock, store: LogBook) -> None:
    output = recorder(store, clock)
    flushing = asyncio.create_task(output.flush_periodically())
    output("stdout", b"one")
    await settle()
    assert store.all() == []

    await clock.advance(FLUSH_SECONDS)
    await settle()

    assert store.all() == [("stdout", b"one")]
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)


async def test_a_store_away_is_tried_again_at_the_next_beat(clock: FakeClock, store: LogBook) -> None:
    output = recorder(store, clock)
    flushing = asyncio.create_task(output.flush_periodically())
    store.mood = "away"
    output("stdout", b"one")
    await settle()
    await clock.advance(3 * FLUSH_SECONDS)
    await settle()
    assert store.writes == 3

    store.mood = "fine"
    output("stdout", b"two")
    await clock.advance(FLUSH_SECONDS)
    await settle()

    assert store.all() == [("stdout", b"onetwo")]
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)


async def test_a_lost_lease_ends_the_writing(clock: FakeClock, store: LogBook) -> None:
    output = recorder(store, clock)
    flushing = asyncio.create_task(output.flush_periodically())
    store.mood = "lost"
    output("stdout", b"one")
    await settle()
    await clock.advance(FLUSH_SECONDS)

    await asyncio.wait_for(flushing, 5)

    assert store.all() == []
    with pytest.raises(LeaseLostError):
        await output.flush()


@pytest.mark.parametrize("mood", ["fine", "away", "unsure"])
async def test_a_write_under_way_when_the_run_ends_loses_nothing(
    clock: FakeClock, store: LogBook, mood: str
) -> None:
    output = recorder(store, clock)
    flushing = asyncio.create_task(output.flush_periodically())
    output("stdout", b"last words")
    await settle()
    store.gate = asyncio.Event()
    await clock.advance(FLUSH_SECONDS)
    await settle()
    assert store.writes == 1

    async def end() -> None:
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        await output.flush()

    ending = asyncio.create_task(end())
    await settle()
    store.mood_of_next = mood
    store.gate.set()
    await ending

    assert store.all() == [("stdout", b"last words")]


TEXTS = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(max_size=12)), max_size=10)


@given(texts=TEXTS, cuts=st.lists(st.integers(1, 7), min_size=1, max_size=8), flush_every=st.integers(1, 5))
def test_no_chunk_ends_within_a_character_however_writes_are_cut(
    texts: list[tuple[OutputStream, str]], cuts: list[int], flush_every: int
) -> None:
    async def check() -> None:
        store = LogBook()
        output = recorder(store)
        pieces = 0
        for stream, text in texts:
            data = text.encode()
            while data:
                size = cuts[pieces % len(cuts)]
                output(stream, data[:size])
                data = data[size:]
                pieces += 1
                if pieces % flush_every == 0:
                    await output.flush()
        await output.flush(is_last=True)

        assert all(chunk.data.decode() for chunk in store.chunks.values())
        expected = joined([(stream, text.encode()) for stream, text in texts])
        assert store.all() == expected

    asyncio.run(check())


@given(data=st.binary(max_size=40), cuts=st.sets(st.integers(0, 40)))
def test_chunk_by_chunk_bytes_that_are_no_utf8_read_as_they_do_in_one(data: bytes, cuts: set[int]) -> None:
    async def check() -> None:
        store = LogBook()
        output = recorder(store)
        edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        for start, end in pairwise(edges):
            output("stdout", data[start:end])
            await output.flush()
        await output.flush(is_last=True)

        chunks = [chunk.data.decode(errors="replace") for _, chunk in sorted(store.chunks.items())]
        assert "".join(chunks) == data.decode(errors="replace")

    asyncio.run(check())


async def test_a_character_that_never_ends_is_stored_with_the_last_output(store: LogBook) -> None:
    output = recorder(store)
    output("stdout", b"a\xf0\x9f")
    await output.flush()
    assert store.all() == [("stdout", b"a")]

    await output.flush(is_last=True)
    await output.flush(is_last=True)

    assert store.all() == [("stdout", b"a\xf0\x9f")]


async def test_a_large_output_is_stored_by_bounded_writes_and_only_its_end_stays_in_memory(
    store: LogBook,
) -> None:
    output = OutputRecorder(
        cast("Store", store), FakeClock(), task_id=7, fence=2, max_bytes=1 << 30, keep_bytes=1000
    )
    line = b"x" * 99 + b"\n"
    for _ in range(50_000):
        output("stdout", line)
    assert len(output.text("stdout")) <= 2000
    assert not output.is_whole("stdout")
    assert output.is_whole("stderr")

    await output.flush(is_last=True)

    assert store.writes == 5
    assert store.all() == [("stdout", line * 50_000)]


async def test_what_waits_for_a_store_that_is_away_is_bounded(
    store: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.output.MAX_WAITING_BYTES", 3 * CHUNK_BYTES)
    output = recorder(store, max_bytes=1 << 30)
    store.mood = "away"
    for _ in range(10):
        output("stdout", b"x" * CHUNK_BYTES)
        with pytest.raises(StoreUnavailableError):
            await output.flush()
    assert output.truncated

    store.mood = "fine"
    await output.flush(is_last=True)

    assert store.all() == [("stdout", b"x" * 3 * CHUNK_BYTES)]
