from __future__ import annotations

import asyncio

import pytest

from harness.aio import uninterrupted


class Work:
    """Takes until it is told to end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.may_end = asyncio.Event()
        self.began = asyncio.Event()
        self.ended = False

    async def __call__(self) -> str:
        self.began.set()
        await self.may_end.wait()
        self.ended = True
        if self.error is not None:
            raise self.error
        return "done"


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_without_a_cancellation_the_result_comes_back() -> None:
    work = Work()
    work.may_end.set()

    assert await uninterrupted(work()) == "done"


async def test_without_a_cancellation_an_error_comes_out() -> None:
    work = Work(ValueError("broken"))
    work.may_end.set()

    with pytest.raises(ValueError, match="broken"):
        await uninterrupted(work())


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_cancellation_waits_for_the_work_however_often_it_comes(times: int) -> None:
    work = Work()
    caller = asyncio.create_task(uninterrupted(work()))
    await work.began.wait()
    for _ in range(times):
        caller.cancel()
        await settle()

    assert not caller.done()
    assert not work.ended

    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended


async def test_a_cancelled_callers_failing_work_is_named_as_the_cause() -> None:
    error = ValueError("broken")
    work = Work(error)
    caller = asyncio.create_task(uninterrupted(work()))
    await work.began.wait()
    caller.cancel()
    await settle()
    work.may_end.set()

    with pytest.raises(asyncio.CancelledError) as caught:
        await caller
    assert caught.value.__cause__ is error


async def test_a_cancellation_in_the_moment_the_work_ends_is_not_lost() -> None:
    work = Work()
    caller = asyncio.create_task(uninterrupted(work()))
    await work.began.wait()
    work.may_end.set()
    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended


async def test_a_timeout_around_it_fires_after_the_work() -> None:
    ended = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        ended.append(True)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await uninterrupted(work())
    assert ended == [True]


async def test_work_that_cancels_itself_is_a_cancellation() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await uninterrupted(work())
