from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from tests.contract.places import (
    LEASE_SECONDS,
    Place,
    claim,
    claim_one,
    completed,
    failed_task,
    new_task,
    running_task,
    state,
    statuses,
)

from harness.errors import AgentBusyError, ConflictError, LeaseLostError
from harness.models import Agent, NewTask, Outcome, Reason, SkipReason, Task, TaskStatus, Usage, WhenBusy
from harness.ports import Store

PENDING, CANCELLED, FAILED = TaskStatus.PENDING, TaskStatus.CANCELLED, TaskStatus.FAILED

TIMEOUT = Outcome(
    reason=Reason.TIMEOUT,
    exit_code=143,
    error="too slow",
    output_truncated=True,
    usage=Usage(cpu_seconds=1.5, output_bytes=7),
)


async def test_a_retried_task_is_pending_until_its_time(place: Place, store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id, priority=3, context={"a": 1}, max_active=1)
    await place.clock.advance(2)
    now = await store.now()
    due_at = now + timedelta(seconds=8, microseconds=999)

    again = await store.retry_task(task.id, 1, TIMEOUT, due_at=due_at)

    assert again == await store.get_task(task.id)
    assert (again.status, again.due_at, again.retry_count) == (PENDING, now + timedelta(seconds=8), 1)
    assert (again.lease_owner, again.completed_at, again.fence) == (None, None, 1)
    assert (again.reason, again.error) == (Reason.TIMEOUT, "too slow")
    assert (again.priority, again.context, again.started_at) == (3, {"a": 1}, task.started_at)
    assert again.attempt is not None
    assert again.attempt.model_dump(
        exclude={"number", "due_at", "started_at", "ended_at"}
    ) == TIMEOUT.model_dump(exclude={"result"})
    assert again.attempt.ended_at == now
    assert await store.claim_tasks(claim(), limit=1) == []
    await place.clock.advance(8)
    second = await claim_one(store, "runner-2")
    assert (second.id, second.fence, [item.number for item in second.attempts]) == (task.id, 2, [1, 2])
    done = await store.finish_task(task.id, 2, completed(result="well"))
    assert (done.status, done.reason, done.error, done.retry_count) == (
        TaskStatus.COMPLETED, Reason.COMPLETED, None, 1,
    )  # fmt: skip


async def test_a_task_handed_back_is_due_at_once(place: Place, store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.record_reason(task.id, 1, Reason.TIMEOUT, "too slow")
    await place.clock.advance(2)

    again = await store.hand_back_task(task.id, 1, "its runner was shut down")

    now = await store.now()
    assert again == await store.get_task(task.id)
    assert (again.status, again.due_at, again.retry_count, again.lease_owner) == (PENDING, now, 0, None)
    assert again.attempt is not None
    assert (again.attempt.reason, again.attempt.error) == (Reason.LOST, "its runner was shut down")
    assert again.attempt.ended_at == now
    assert (await claim_one(store)).fence == 2


async def test_a_task_whose_lease_ran_out_can_be_tried_again(
    place: Place, store: Store, agent: Agent
) -> None:
    task = await running_task(store, agent.id, max_active=1)
    await place.clock.advance(LEASE_SECONDS)
    now = await store.now()

    again = await store.expire_task(task, retry_at=now + timedelta(seconds=4, microseconds=5))

    assert again is not None
    assert again == await store.get_task(task.id)
    assert (again.status, again.due_at, again.retry_count) == (PENDING, now + timedelta(seconds=4), 1)
    assert (again.fence, again.lease_owner, again.reason) == (1, None, Reason.LOST)
    assert again.attempt is not None
    assert (again.attempt.reason, again.attempt.ended_at) == (Reason.LOST, now)
    with pytest.raises(AgentBusyError):
        await store.create_task(NewTask(agent_id=agent.id))
    assert await store.expire_task(task, retry_at=now) is None
    assert await store.expire_task(again, retry_at=now) is None


async def test_an_expiry_keeps_the_reason_that_was_recorded(place: Place, store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.record_reason(task.id, 1, Reason.TIMEOUT, "too slow")
    await place.clock.advance(LEASE_SECONDS)

    again = await store.expire_task(task, retry_at=await store.now())

    assert again is not None
    assert again.attempt is not None
    assert (again.status, again.reason, again.attempt.reason) == (PENDING, Reason.TIMEOUT, Reason.TIMEOUT)
    assert (again.error, again.attempt.error) == ("too slow", "too slow")


EndsAttempt = Callable[[Store, Task], Awaitable[Task | None]]


async def _retry(store: Store, task: Task) -> Task:
    return await store.retry_task(task.id, 1, TIMEOUT, due_at=await store.now())


async def _expire_and_retry(store: Store, task: Task) -> Task | None:
    return await store.expire_task(task, retry_at=await store.now())


ENDS: dict[str, tuple[EndsAttempt, Reason]] = {
    "retry": (_retry, Reason.TIMEOUT),
    "hand back": (lambda store, task: store.hand_back_task(task.id, 1, "shut down"), Reason.LOST),
    "expire": (lambda store, task: store.expire_task(task), Reason.LOST),
    "expire and retry": (_expire_and_retry, Reason.LOST),
}


@pytest.mark.parametrize(("end", "reason"), ENDS.values(), ids=ENDS.keys())
async def test_a_task_that_is_to_be_cancelled_is_not_tried_again(
    place: Place, store: Store, agent: Agent, end: EndsAttempt, reason: Reason
) -> None:
    task = await running_task(store, agent.id, max_active=1)
    await store.cancel_task(task.id)
    await place.clock.advance(LEASE_SECONDS)

    ended = await end(store, task)

    assert ended is not None
    assert ended == await store.get_task(task.id)
    assert (ended.status, ended.reason, ended.retry_count) == (CANCELLED, Reason.CANCELLED, 0)
    assert (ended.completed_at, ended.due_at, ended.lease_owner) == (await store.now(), None, None)
    assert ended.attempt is not None
    assert (ended.attempt.reason, ended.attempt.ended_at) == (reason, await store.now())
    assert await store.cancel_requests("runner-1") == []
    assert await store.claim_tasks(claim(), limit=1) == []
    await store.create_task(NewTask(agent_id=agent.id))


async def _repeat_retry(store: Store, task: Task) -> Task:
    # Due later by the time of the second try, as a runner computes it anew.
    return await store.retry_task(task.id, 1, TIMEOUT, due_at=await store.now() + timedelta(seconds=9))


PUTS_BACK: dict[
    str, tuple[Callable[[Store, Task], Awaitable[Task]], Callable[[Store, Task], Awaitable[Task]]]
] = {
    "retry": (_retry, _repeat_retry),
    "hand back": (
        lambda store, task: store.hand_back_task(task.id, 1, "shut down"),
        lambda store, task: store.hand_back_task(task.id, 1, "shut down"),
    ),
}


@pytest.mark.parametrize(("put_back", "repeat"), PUTS_BACK.values(), ids=PUTS_BACK.keys())
@pytest.mark.parametrize("then", ["waits", "runs again", "ran again", "was cancelled", "was to be cancelled"])
async def test_a_task_that_was_put_back_may_be_put_back_once_more_after_a_lost_answer(
    place: Place,
    store: Store,
    agent: Agent,
    put_back: Callable[[Store, Task], Awaitable[Task]],
    repeat: Callable[[Store, Task], Awaitable[Task]],
    then: str,
) -> None:
    task = await running_task(store, agent.id)
    await store.record_reason(task.id, 1, Reason.TIMEOUT, "too slow")
    if then == "was to be cancelled":
        await store.cancel_task(task.id)
    await put_back(store, task)
    await place.clock.advance(1)
    if then in ("runs again", "ran again"):
        again = await claim_one(store, "runner-2")
        if then == "ran again":
            await store.finish_task(task.id, again.fence, completed(), artifact=state(n=1))
    elif then == "was cancelled":
        await store.cancel_task(task.id)
    stored = await store.get_task(task.id)

    assert await repeat(store, task) == stored
    assert await store.get_task(task.id) == stored


@pytest.mark.parametrize("repeat", [_repeat_retry, PUTS_BACK["hand back"][1]], ids=["retry", "hand back"])
@pytest.mark.parametrize("ended_by", ["finish", "expiry", "another outcome"])
async def test_a_task_that_ended_otherwise_is_not_put_back(
    place: Place,
    store: Store,
    agent: Agent,
    repeat: Callable[[Store, Task], Awaitable[Task]],
    ended_by: str,
) -> None:
    task = await running_task(store, agent.id)
    if ended_by == "finish":
        outcome = TIMEOUT if repeat is _repeat_retry else Outcome(reason=Reason.LOST, error="shut down")
        await store.finish_task(task.id, 1, outcome)
    elif ended_by == "expiry":
        await place.clock.advance(LEASE_SECONDS)
        await store.expire_task(task, retry_at=await store.now())
    else:
        other = Outcome(reason=Reason.EXIT_NONZERO, exit_code=1)
        await store.retry_task(task.id, 1, other, due_at=await store.now())
    stored = await store.get_task(task.id)

    with pytest.raises(LeaseLostError, match="nothing was written"):
        await repeat(store, task)

    assert await store.get_task(task.id) == stored


async def test_a_task_is_opened_again_once_however_often_it_is_asked_for(
    place: Place, store: Store, agent: Agent
) -> None:
    failed = await failed_task(store, agent.id, max_active=1)
    due_at = await store.now() + timedelta(seconds=3, microseconds=7)
    task = await store.reopen_task(failed.id, due_at=due_at, max_retries=2)
    await place.clock.advance(1)

    # The slot that it holds is its own.
    assert await store.reopen_task(failed.id, due_at=due_at, max_retries=2) == task
    for numbers in ({"due_at": due_at + timedelta(seconds=1)}, {"max_retries": 3}):
        with pytest.raises(ConflictError, match="is pending"):
            await store.reopen_task(failed.id, **({"due_at": due_at, "max_retries": 2} | numbers))  # type: ignore[arg-type]
    await place.clock.advance(3)
    running = await claim_one(store)
    with pytest.raises(ConflictError, match="is running"):
        await store.reopen_task(failed.id, due_at=due_at, max_retries=2)

    assert await store.get_task(failed.id) == running


async def test_a_pending_task_is_cancelled_at_once(place: Place, store: Store, agent: Agent) -> None:
    task = await store.create_task(NewTask(agent_id=agent.id))
    await place.clock.advance(1)

    cancelled = await store.cancel_task(task.id)

    assert cancelled == await store.get_task(task.id)
    assert (cancelled.status, cancelled.reason) == (CANCELLED, Reason.CANCELLED)
    assert (cancelled.completed_at, cancelled.due_at) == (await store.now(), None)
    assert await store.cancel_task(task.id) == cancelled
    assert await store.claim_tasks(claim(), limit=1) == []
    await store.create_task(NewTask(agent_id=agent.id))


async def test_a_wish_to_cancel_a_running_task_is_noted_once(
    place: Place, store: Store, agent: Agent
) -> None:
    mine = [await running_task(store, agent.id) for _ in range(3)]
    other = await store.create_task(new_task(agent.id), claim=claim("runner-2"))
    assert await store.cancel_requests("runner-1") == []
    await place.clock.advance(1)
    at = await store.now()

    noted = await store.cancel_task(mine[1].id)
    await store.cancel_task(other.id)
    await place.clock.advance(1)

    assert noted == mine[1].model_copy(update={"cancel_requested_at": at})
    assert await store.cancel_task(mine[1].id) == noted == await store.get_task(mine[1].id)
    assert await store.cancel_requests("runner-1") == [mine[1].id]
    assert await store.cancel_requests("runner-2") == [other.id]
    assert await store.cancel_requests("nobody") == []
    await store.cancel_task(mine[0].id)
    assert await store.cancel_requests("runner-1") == [mine[0].id, mine[1].id]
    await store.finish_task(mine[1].id, 1, Outcome(reason=Reason.CANCELLED))
    assert await store.cancel_requests("runner-1") == [mine[0].id]


@pytest.mark.parametrize("reason", [Reason.COMPLETED, Reason.EXIT_NONZERO])
async def test_a_run_may_end_by_itself_before_it_is_cancelled(
    store: Store, agent: Agent, reason: Reason
) -> None:
    task = await running_task(store, agent.id)
    await store.cancel_task(task.id)

    done = await store.finish_task(task.id, 1, Outcome(reason=reason))

    assert done.status is reason.status
    assert await store.cancel_task(task.id) == done == await store.get_task(task.id)
    assert await store.cancel_requests("runner-1") == []


async def test_a_failed_task_can_be_opened_again(place: Place, store: Store, agent: Agent) -> None:
    failed = await failed_task(store, agent.id, priority=4, max_active=1)
    await place.clock.advance(5)
    due_at = await store.now() + timedelta(seconds=3)

    task = await store.reopen_task(failed.id, due_at=due_at + timedelta(microseconds=1), max_retries=2)

    assert task == await store.get_task(failed.id)
    assert (task.status, task.due_at) == (PENDING, due_at)
    assert (task.retry_count, task.max_retries, task.priority) == (1, 2, 4)
    assert (task.completed_at, task.attempts) == (None, failed.attempts)
    with pytest.raises(AgentBusyError):
        await store.create_task(NewTask(agent_id=agent.id))
    await place.clock.advance(3)
    assert (await claim_one(store)).fence == 2


async def test_a_reopened_task_forgets_an_old_wish_to_cancel_it(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.cancel_task(task.id)
    await store.finish_task(task.id, 1, Outcome(reason=Reason.EXIT_NONZERO))

    again = await store.reopen_task(task.id, due_at=await store.now(), max_retries=1)
    await claim_one(store)

    assert again.cancel_requested_at is None
    assert await store.cancel_requests("runner-1") == []


async def test_only_failed_tasks_are_opened_again(store: Store, agent: Agent) -> None:
    now = await store.now()
    tasks = [
        await store.create_task(new_task(agent.id)),
        await running_task(store, agent.id),
        await store.create_task(new_task(agent.id, skip_reason=SkipReason.MISSED)),
    ]
    for reason in (Reason.COMPLETED, Reason.CANCELLED):
        task = await running_task(store, agent.id)
        tasks.append(await store.finish_task(task.id, 1, Outcome(reason=reason)))

    for task in tasks:
        with pytest.raises(ConflictError, match=f"task {task.id} is {task.status}"):
            await store.reopen_task(task.id, due_at=now, max_retries=9)
        assert await store.get_task(task.id) == task


async def test_a_task_is_not_opened_again_past_its_retries(store: Store, agent: Agent) -> None:
    failed = await failed_task(store, agent.id)
    now = await store.now()

    with pytest.raises(ConflictError, match="max_retries"):
        await store.reopen_task(failed.id, due_at=now, max_retries=0)
    await store.reopen_task(failed.id, due_at=now, max_retries=1)
    task = await claim_one(store)
    failed = await store.finish_task(task.id, 2, Outcome(reason=Reason.TIMEOUT))

    with pytest.raises(ConflictError, match="max_retries is 1"):
        await store.reopen_task(failed.id, due_at=now, max_retries=1)
    assert await store.get_task(failed.id) == failed
    assert (await store.reopen_task(failed.id, due_at=now, max_retries=2)).retry_count == 2


async def test_a_task_of_a_busy_agent_is_not_opened_again(store: Store, agent: Agent) -> None:
    failed = await failed_task(store, agent.id, max_active=1)
    active = await running_task(store, agent.id, max_active=1)
    now = await store.now()

    with pytest.raises(AgentBusyError, match=f"task {active.id}"):
        await store.reopen_task(failed.id, due_at=now, max_retries=1)

    assert await store.get_task(failed.id) == failed
    await store.finish_task(active.id, 1, completed())
    await store.reopen_task(failed.id, due_at=now, max_retries=1)
    assert await statuses(store, failed.id, active.id) == [PENDING, TaskStatus.COMPLETED]


async def test_a_task_that_waited_keeps_the_slot_it_was_given(store: Store, agent: Agent) -> None:
    first = await running_task(store, agent.id, max_active=1)
    await store.create_task(NewTask(agent_id=agent.id, when_busy=WhenBusy.QUEUE))
    await store.finish_task(first.id, 1, completed())
    task = await claim_one(store)

    await store.retry_task(task.id, 1, TIMEOUT, due_at=await store.now() + timedelta(hours=1))

    with pytest.raises(AgentBusyError, match=f"task {task.id}"):
        await store.create_task(NewTask(agent_id=agent.id))
