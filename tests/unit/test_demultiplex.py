from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sandbox.engine import demultiplex

STREAMS = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12)


def header(stream: int, length: int) -> bytes:
    return bytes([stream, 0, 0, 0]) + length.to_bytes(4, "big")


def multiplexed(frames: list[tuple[int, bytes]]) -> bytes:
    return b"".join(header(stream, len(data)) + data for stream, data in frames)


async def read(chunks: list[bytes], error: Exception | None = None) -> list[tuple[int, bytes]]:
    reader = asyncio.StreamReader()
    seen: list[tuple[int, bytes]] = []
    reading = asyncio.create_task(demultiplex(reader, lambda stream, data: seen.append((stream, data))))
    for chunk in chunks:
        reader.feed_data(chunk)
        await asyncio.sleep(0)
    if error is None:
        reader.feed_eof()
    else:
        reader.set_exception(error)
    await reading
    return seen


def joined(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Neighbours of one stream as one piece: how output is cut up means nothing."""
    result: list[tuple[int, bytes]] = []
    for stream, data in pieces:
        if data and result and result[-1][0] == stream:
            result[-1] = (stream, result[-1][1] + data)
        elif data:
            result.append((stream, data))
    return result


@given(frames=STREAMS, places=st.lists(st.integers(0, 1000), max_size=10))
def test_any_chunking_gives_every_byte_once_in_order_and_told_apart(
    frames: list[tuple[int, bytes]], places: list[int]
) -> None:
    data = multiplexed(frames)
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    chunks = [data[start:end] for start, end in pairwise(edges) if end > start]

    assert joined(asyncio.run(read(chunks))) == joined(frames)


async def test_lines_that_come_together_are_passed_on_together() -> None:
    seen = await read([multiplexed([(1, b"a\n"), (1, b"b\n"), (2, b"c\n"), (1, b"d\n")])])

    assert seen == [(1, b"a\nb\n"), (2, b"c\n"), (1, b"d\n")]


async def test_a_frame_cut_off_by_the_end_of_the_stream_is_left_out() -> None:
    assert await read([multiplexed([(1, b"whole")]) + header(1, 100) + b"torn"]) == [(1, b"whole")]


async def test_a_connection_that_breaks_ends_the_stream_like_a_close() -> None:
    assert await read([multiplexed([(1, b"said")])], ConnectionResetError()) == [(1, b"said")]


async def test_a_frame_longer_than_the_readers_buffer_arrives_whole() -> None:
    big = b"x" * (3 << 20)
    data = multiplexed([(2, big), (1, b"end")])

    seen = await read([data[at : at + 100_000] for at in range(0, len(data), 100_000)])

    assert joined(seen) == [(2, big), (1, b"end")]


@pytest.mark.parametrize("count", [0, 7])
async def test_less_than_a_header_is_nothing(count: int) -> None:
    assert await read([b"\1" * count] if count else []) == []
