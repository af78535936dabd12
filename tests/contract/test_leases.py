from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from tests.contract.places import (
    LEASE_SECONDS,
    MANY,
    Place,
    chunk,
    claim,
    completed,
    new_task,
    running_task,
    state,
)

from harness.errors import InvalidInputError, LeaseLostError
from harness.models import Agent, Reason, Task, TaskStatus
from harness.ports import Store


async def take_over(place: Place, store: Store, task: Task) -> Task:
    await place.clock.advance(LEASE_SECONDS)
    assert await store.expire_task(task, retry_at=await store.now()) is not None
    taken = await store.claim_tasks(claim("runner-2"), limit=MANY)
    return next(other for other in taken if other.id == task.id)


async def test_an_extended_lease_defeats_an_expiry_decided_before(
    place: Place, store: Store, agent: Agent
) -> None:
    task = await running_task(store, agent.id)
    await place.clock.advance(LEASE_SECONDS)
    (expired,) = await store.expired_tasks()

    end = await store.extend_lease(task.id, 1, 10)

    assert end == await store.now() + timedelta(seconds=10)
    assert (await store.get_task(task.id)).due_at == end
    assert await store.expire_task(expired) is None
    await place.clock.advance(9.999)
    assert await store.expired_tasks() == []
    await place.clock.advance(0.001)
    assert len(await store.expired_tasks()) == 1


async def test_expired_leases_come_earliest_first(place: Place, store: Store, agent: Agent) -> None:
    tasks = [
        await store.create_task(new_task(agent.id), claim=claim(lease_seconds=seconds))
        for seconds in (30, 10, 20)
    ]
    await store.create_task(new_task(agent.id))
    await place.clock.advance(25)

    assert await store.expired_tasks() == [tasks[1], tasks[2]]
    assert await store.expired_tasks(limit=1) == [tasks[1]]
    with pytest.raises(InvalidInputError, match="limit"):
        await store.expired_tasks(limit=0)


async def test_an_extension_changes_nothing_else(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)

    end = await store.extend_lease(task.id, 1, 60)

    assert await store.get_task(task.id) == task.model_copy(update={"due_at": end})


async def test_the_first_recorded_reason_stays(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)

    await store.record_reason(task.id, 1, Reason.TIMEOUT, "too slow")
    await store.record_reason(task.id, 1, Reason.CANCELLED, "asked to")

    stored = await store.get_task(task.id)
    assert (stored.status, stored.reason) == (TaskStatus.RUNNING, None)
    assert stored.attempt is not None
    assert (stored.attempt.reason, stored.attempt.error) == (Reason.TIMEOUT, "too slow")
    assert stored.attempt.ended_at is None


async def test_a_reason_may_come_without_a_sentence(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)

    await store.record_reason(task.id, 1, Reason.OUT_OF_MEMORY)

    attempt = (await store.get_task(task.id)).attempt
    assert attempt is not None
    assert (attempt.reason, attempt.error) == (Reason.OUT_OF_MEMORY, None)


FencedWrite = Callable[[Store, Task, int], Awaitable[object]]


async def _append(store: Store, task: Task, fence: int) -> None:
    await store.append_logs(task.id, fence, [await chunk(store, 0, attempt=fence)])


FENCED_WRITES: dict[str, FencedWrite] = {
    "extend_lease": lambda store, task, fence: store.extend_lease(task.id, fence, 60),
    "record_reason": lambda store, task, fence: store.record_reason(task.id, fence, Reason.TIMEOUT),
    "finish_task": lambda store, task, fence: store.finish_task(
        task.id, fence, completed(), artifact=state(a=1)
    ),
    "retry_task": lambda store, task, fence: store.retry_task(
        task.id, fence, completed(), due_at=task.created_at
    ),
    "hand_back_task": lambda store, task, fence: store.hand_back_task(task.id, fence, "shut down"),
    "append_logs": _append,
    "append_nothing": lambda store, task, fence: store.append_logs(task.id, fence, []),
}


@pytest.mark.parametrize("write", FENCED_WRITES.values(), ids=FENCED_WRITES.keys())
@pytest.mark.parametrize("fence", [0, 1, 3, 2**40, -1])
async def test_a_write_under_another_fence_changes_nothing(
    place: Place, store: Store, agent: Agent, write: FencedWrite, fence: int
) -> None:
    taken = await take_over(place, store, await running_task(store, agent.id))

    with pytest.raises(LeaseLostError, match=f"task {taken.id} .*nothing was written"):
        await write(store, taken, fence)

    assert await store.get_task(taken.id) == taken
    assert await store.read_logs(taken.id) == []
    assert await store.artifact_history(agent.id) == []


@pytest.mark.parametrize("write", FENCED_WRITES.values(), ids=FENCED_WRITES.keys())
@pytest.mark.parametrize("became", ["pending", "completed", "deleted"])
async def test_a_write_to_a_task_that_does_not_run_changes_nothing(
    store: Store, agent: Agent, write: FencedWrite, became: str
) -> None:
    task = await store.create_task(new_task(agent.id), claim=None if became == "pending" else claim())
    if became != "pending":
        task = await store.finish_task(task.id, 1, completed(result="another end"))
    if became == "deleted":
        await store.delete_agent(agent.id)

    for fence in (0, 1):
        with pytest.raises(LeaseLostError, match="nothing was written"):
            await write(store, task, fence)

    assert await store.read_logs(task.id) == []
    assert await store.artifact_history(agent.id) == []
    if became != "deleted":
        assert await store.get_task(task.id) == task


@pytest.mark.parametrize("write", FENCED_WRITES.values(), ids=FENCED_WRITES.keys())
async def test_an_expired_lease_that_nobody_took_still_writes(
    place: Place, store: Store, agent: Agent, write: FencedWrite
) -> None:
    task = await running_task(store, agent.id)
    await place.clock.advance(LEASE_SECONDS * 2)

    await write(store, task, 1)


async def test_attempts_are_numbered_without_gaps(place: Place, store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    for _ in range(3):
        task = await take_over(place, store, task)
    done = await store.finish_task(task.id, task.fence, completed())

    assert [attempt.number for attempt in done.attempts] == [1, 2, 3, 4]
    assert [attempt.reason for attempt in done.attempts] == [Reason.LOST] * 3 + [Reason.COMPLETED]


async def test_an_expired_task_ends_as_lost(place: Place, store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id, max_active=1)
    await place.clock.advance(LEASE_SECONDS)

    ended = await store.expire_task(task)

    now = await store.now()
    assert ended is not None
    assert ended == await store.get_task(task.id)
    assert (ended.status, ended.reason, ended.fence) == (TaskStatus.FAILED, Reason.LOST, 1)
    assert (ended.completed_at, ended.due_at, ended.lease_owner) == (now, None, None)
    assert ended.attempt is not None
    assert (ended.attempt.number, ended.attempt.ended_at, ended.attempt.reason) == (1, now, Reason.LOST)
    assert await store.expired_tasks() == []
    assert await store.expire_task(task) is None
    assert await store.expire_task(ended) is None
    await running_task(store, agent.id, max_active=1)


async def test_an_expired_task_keeps_the_reason_that_was_recorded(
    place: Place, store: Store, agent: Agent
) -> None:
    task = await running_task(store, agent.id)
    await store.record_reason(task.id, 1, Reason.CANCELLED, "asked to")
    await place.clock.advance(LEASE_SECONDS)

    ended = await store.expire_task(task)

    assert ended is not None
    assert (ended.status, ended.reason, ended.error) == (TaskStatus.CANCELLED, Reason.CANCELLED, "asked to")


async def test_a_lease_that_is_live_or_changed_hands_does_not_expire(
    place: Place, store: Store, agent: Agent
) -> None:
    pending = await store.create_task(new_task(agent.id))
    assert await store.expire_task(pending) is None
    task = await running_task(store, agent.id)
    await place.clock.advance(LEASE_SECONDS - 0.001)
    assert await store.expire_task(task) is None
    await place.clock.advance(0.001)

    await store.extend_lease(task.id, 1, LEASE_SECONDS)
    assert await store.expire_task(task) is None
    taken = await take_over(place, store, task)
    await place.clock.advance(LEASE_SECONDS)
    assert await store.expire_task(task) is None

    assert await store.get_task(task.id) == taken
    assert await store.expire_task(taken) is not None
    assert await store.expire_task(task.model_copy(update={"id": 99})) is None


@pytest.mark.parametrize("write", FENCED_WRITES.values(), ids=FENCED_WRITES.keys())
@pytest.mark.parametrize("then", ["ended", "waits", "waits as opened again", "runs again", "was cancelled"])
async def test_a_runner_whose_task_expired_writes_nothing_more(
    place: Place, store: Store, agent: Agent, write: FencedWrite, then: str
) -> None:
    task = await running_task(store, agent.id)
    await place.clock.advance(LEASE_SECONDS)
    now = await store.now()
    becomes_pending = then in ("waits", "runs again", "was cancelled")
    await store.expire_task(task, retry_at=now if becomes_pending else None)
    if then == "waits as opened again":
        await store.reopen_task(task.id, due_at=now, max_retries=1)
    elif then == "runs again":
        await store.claim_tasks(claim("runner-2"), limit=1)
    elif then == "was cancelled":
        await store.cancel_task(task.id)
    before = await store.get_task(task.id)

    with pytest.raises(LeaseLostError, match="nothing was written"):
        await write(store, task, 1)

    assert await store.get_task(task.id) == before
    assert await store.read_logs(task.id) == []
    assert await store.artifact_history(agent.id) == []
