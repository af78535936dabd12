from __future__ import annotations

import pytest
from tests.contract.places import chunk, claim_one, running_task

from harness.errors import InvalidInputError
from harness.models import Agent, log_seq
from harness.ports import Store


async def test_chunks_come_back_in_order_and_byte_for_byte(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    data = [b"", b"\0\xff\xfe", bytes(range(256)), "é😀".encode()[:-1]]
    chunks = [
        await chunk(store, index, piece, stream="stderr" if index % 2 else "stdout")
        for index, piece in enumerate(data)
    ]

    await store.append_logs(task.id, 1, chunks[2:])
    await store.append_logs(task.id, 1, chunks[:2])

    assert await store.read_logs(task.id) == chunks


async def test_reading_goes_on_after_a_sequence_number(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    chunks = [await chunk(store, index) for index in range(12)]
    await store.append_logs(task.id, 1, chunks)

    assert await store.read_logs(task.id, limit=5) == chunks[:5]
    assert await store.read_logs(task.id, after_seq=chunks[4].seq, limit=5) == chunks[5:10]
    assert await store.read_logs(task.id, after_seq=chunks[11].seq) == []
    assert await store.read_logs(task.id, after_seq=2**70) == []
    assert await store.read_logs(task.id, after_seq=-(2**70)) == chunks


async def test_a_chunk_that_is_stored_stays_as_it_is(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    first = [await chunk(store, 0, b"first"), await chunk(store, 1, b"first")]
    await store.append_logs(task.id, 1, first)

    again = [await chunk(store, index, b"again") for index in range(3)]
    await store.append_logs(task.id, 1, again)
    await store.append_logs(task.id, 1, again)

    assert await store.read_logs(task.id) == [*first, again[2]]


async def test_tasks_do_not_see_each_others_logs(store: Store, agent: Agent) -> None:
    tasks = [await running_task(store, agent.id) for _ in range(18)]
    for task in tasks:
        await store.append_logs(task.id, 1, [await chunk(store, 0, str(task.id).encode())])

    for task in tasks:
        assert [piece.data for piece in await store.read_logs(task.id)] == [str(task.id).encode()]


async def test_attempts_follow_each_other_in_one_log(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.append_logs(task.id, 1, [await chunk(store, 2**31, b"first attempt")])
    await store.hand_back_task(task.id, 1, "shut down")
    await claim_one(store, "runner-2")
    await store.append_logs(task.id, 2, [await chunk(store, 0, b"second attempt", attempt=2)])

    chunks = await store.read_logs(task.id)

    assert [piece.data for piece in chunks] == [b"first attempt", b"second attempt"]
    assert await store.read_logs(task.id, after_seq=log_seq(2, 0) - 1) == chunks[1:]


async def test_a_chunk_of_another_attempt_is_refused(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)

    with pytest.raises(InvalidInputError, match="attempt 2, and attempt 1 writes it"):
        await store.append_logs(task.id, 1, [await chunk(store, 0), await chunk(store, 1, attempt=2)])

    assert await store.read_logs(task.id) == []


async def test_large_batches_and_large_chunks_fit(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    big = [await chunk(store, index, b"x" * 8 * 1024 * 1024) for index in range(3)]
    small = [await chunk(store, index, b"x" * 10) for index in range(3, 2003)]

    await store.append_logs(task.id, 1, big + small)

    assert await store.read_logs(task.id, limit=3) == big
    assert len(await store.read_logs(task.id, after_seq=big[-1].seq, limit=3000)) == 2000
    with pytest.raises(InvalidInputError, match="8,388,609 bytes"):
        await store.append_logs(task.id, 1, [await chunk(store, 9999, b"x" * (8 * 1024 * 1024 + 1))])


async def test_a_limit_that_makes_no_sense_is_refused(store: Store, agent: Agent) -> None:
    with pytest.raises(InvalidInputError, match="limit"):
        await store.read_logs(1, limit=0)
