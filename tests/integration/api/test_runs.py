"""Runs and tasks, by both implementations of `HarnessApi`; the server runs them on the real engine."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from tests.integration.api.conftest import Maker
from tests.sandboxes import wait_until

from harness.api import HarnessApi
from harness.errors import (
    AgentBusyError,
    ConflictError,
    IdempotencyKeyReusedError,
    InvalidInputError,
    TaskNotFoundError,
)
from harness.models import Reason, Task, TaskStatus

ECHO = "import json; print(json.dumps(context))"
LONG = "import time; time.sleep(60)"
COUNTER = "import handoff\nn = context.get('n', 0) + 1\nhandoff.save({'n': n}, f'run {n}')\n"
EVERY_HOUR = {"type": "interval", "interval_minutes": 60}
FAILS = "raise SystemExit(3)"
#: And, by hand, only after longer than a test takes.
NEVER_RETRIED: dict[str, Any] = {"retry": {"max_attempts": 0, "delay_seconds": 600}}


async def ended(api: HarnessApi, task: Task) -> Task:
    async def has_ended() -> bool:
        return (await api.get_task(task.id)).status.is_final

    await wait_until(has_ended, what=f"the end of task {task.id}", timeout_seconds=20)
    return await api.get_task(task.id)


async def test_a_run_that_is_waited_for_comes_back_at_its_end(api: HarnessApi, make: Maker) -> None:
    agent = await make("print('first'); print('last')")

    task = await api.run(agent.id, wait_seconds=30)

    assert (task.status, task.reason, task.result) == (TaskStatus.COMPLETED, Reason.COMPLETED, "last")
    assert (task.agent_id, task.trigger, len(task.attempts)) == (agent.id, "manual", 1)
    assert task.attempts[0].usage.output_bytes == 11
    assert task == await api.get_task(task.id)


async def test_a_run_that_is_not_waited_for_comes_back_at_once(api: HarnessApi, make: Maker) -> None:
    task = await api.run((await make()).id)

    assert task.status in (TaskStatus.PENDING, TaskStatus.RUNNING)
    assert (await ended(api, task)).status is TaskStatus.COMPLETED


async def test_a_wait_ends_before_a_long_run_does(api: HarnessApi, make: Maker) -> None:
    task = await api.run((await make(LONG)).id, wait_seconds=0.5)

    assert not task.status.is_final
    await api.cancel_task(task.id)
    task = await ended(api, task)
    assert (task.status, task.reason) == (TaskStatus.CANCELLED, Reason.CANCELLED)


CONTEXT = {"å": "日本", "$where": {"a.b": [1, 2.5, None, True]}, "big": 2**70, "": "", "quote": "'\"\\\n"}


async def test_a_given_context_is_seen_and_its_state_not_kept(api: HarnessApi, make: Maker) -> None:
    agent = await make(f"assert context == {CONTEXT!r}\nimport handoff\nhandoff.save({{'n': 1}})")

    task = await api.run(agent.id, CONTEXT, wait_seconds=30)

    assert (task.status, task.context, task.save_handoff) == (TaskStatus.COMPLETED, CONTEXT, False)
    assert list(await api.handoff_history(agent.id)) == []


async def test_what_a_run_with_a_context_leaves_is_kept_if_asked_for(api: HarnessApi, make: Maker) -> None:
    agent = await make(COUNTER)

    await api.run(agent.id, {"n": 6}, save_handoff=True, wait_seconds=30)

    assert (await api.get_handoff(agent.id)).state == {"n": 7}


async def test_state_goes_from_run_to_run(api: HarnessApi, make: Maker) -> None:
    agent = await make(COUNTER)

    results = [(await api.run(agent.id, wait_seconds=30)).result for _ in range(3)]
    forgetful = await api.run(agent.id, save_handoff=False, wait_seconds=30)

    assert [*results, forgetful.result] == ["run 1", "run 2", "run 3", "run 4"]
    assert (await api.get_handoff(agent.id)).state == {"n": 3}


async def test_an_empty_context_is_not_the_same_as_none(api: HarnessApi, make: Maker) -> None:
    agent = await make(ECHO)
    await api.put_handoff(agent.id, {"n": 1})

    assert (await api.run(agent.id, {}, wait_seconds=30)).result == "{}"
    assert (await api.run(agent.id, wait_seconds=30)).result == '{"n": 1}'


@pytest.mark.parametrize(
    "context", [{"n": math.nan}, {"n": math.inf}, {"s": "\ud800"}, {"o": object()}, {1: 2}, {"b": b"x"}]
)
async def test_a_context_that_json_cannot_hold_is_refused(
    context: dict[Any, Any], api: HarnessApi, make: Maker
) -> None:
    agent = await make()

    with pytest.raises(InvalidInputError):
        await api.run(agent.id, context)

    assert (await api.list_tasks(agent_id=agent.id)).total_count == 0


@pytest.mark.parametrize("seconds", [-1, 300.5, math.nan, math.inf])
async def test_a_wait_has_a_bound(seconds: float, api: HarnessApi, make: Maker) -> None:
    agent = await make()

    with pytest.raises(InvalidInputError, match="wait"):
        await api.run(agent.id, wait_seconds=seconds)

    assert (await api.list_tasks(agent_id=agent.id)).total_count == 0


async def test_a_busy_agent_is_not_run_twice(api: HarnessApi, make: Maker) -> None:
    agent = await make(LONG)
    task = await api.run(agent.id)

    with pytest.raises(AgentBusyError, match=f"task {task.id}"):
        await api.run(agent.id)

    await api.cancel_task(task.id)


# Idempotency keys


async def test_a_run_asked_for_twice_by_one_key_is_one_run(api: HarnessApi, make: Maker) -> None:
    agent = await make(LONG)
    first = await api.run(agent.id, {"a": 1}, idempotency_key="order 7")

    again = await api.run(agent.id, {"a": 1}, idempotency_key="order 7")
    await api.cancel_task(first.id)
    at_last = await api.run(agent.id, {"a": 1}, idempotency_key="order 7", wait_seconds=20)

    assert first.id == again.id == at_last.id
    assert at_last.status is TaskStatus.CANCELLED
    assert (await api.list_tasks(agent_id=agent.id)).total_count == 1


@pytest.mark.parametrize("other", [{"context": {"a": 2}}, {"context": None}, {"save_handoff": True}])
async def test_a_key_is_not_taken_for_another_run(
    other: dict[str, Any], api: HarnessApi, make: Maker
) -> None:
    agent = await make()
    asked: dict[str, Any] = {"context": {"a": 1}, "idempotency_key": "order 7"}
    task = await api.run(agent.id, **asked)

    with pytest.raises(IdempotencyKeyReusedError, match=f"task {task.id}"):
        await api.run(agent.id, **{**asked, **other})


async def test_a_key_is_one_agents_own(api: HarnessApi, make: Maker) -> None:
    tasks = [await api.run((await make()).id, idempotency_key="order 7") for _ in range(2)]

    assert tasks[0].id != tasks[1].id


async def test_twenty_requests_with_one_key_at_once_are_one_run(api: HarnessApi, make: Maker) -> None:
    agent = await make()

    tasks = await asyncio.gather(*(api.run(agent.id, {"a": 1}, idempotency_key="k") for _ in range(20)))

    assert len({task.id for task in tasks}) == 1
    assert (await api.list_tasks(agent_id=agent.id)).total_count == 1


@pytest.mark.parametrize("key", ["", "x" * 201, "å", "a\nb", "a\tb", " a", "a ", "\x7f"])
async def test_a_key_is_plain_text_without_blanks_at_its_ends(key: str, api: HarnessApi, make: Maker) -> None:
    agent = await make()

    with pytest.raises(InvalidInputError, match="idempotency key"):
        await api.run(agent.id, idempotency_key=key)

    assert (await api.list_tasks(agent_id=agent.id)).total_count == 0


# Tasks


async def test_tasks_are_listed_by_agent_and_status(api: HarnessApi, make: Maker) -> None:
    good, bad = await make(), await make(FAILS, **NEVER_RETRIED)
    done = [await api.run(good.id, wait_seconds=30) for _ in range(2)]
    failed = await api.run(bad.id, wait_seconds=30)

    assert (await api.list_tasks(agent_id=good.id)).items == (done[1], done[0])
    assert (await api.list_tasks(agent_id=good.id, limit=1, offset=1)).items == (done[0],)
    assert (await api.list_tasks(agent_id=good.id, status=TaskStatus.FAILED)).total_count == 0
    assert (await api.list_tasks(agent_id=bad.id, status=TaskStatus.FAILED)).items == (failed,)
    assert (await api.list_tasks(limit=1)).items == (failed,)
    assert (await api.list_tasks(agent_id=999_999_999)).items == ()


@pytest.mark.parametrize("task_id", [999_999_999, 2**63 - 1, 2**63, 10**30])
async def test_an_unknown_task_is_not_found(task_id: int, api: HarnessApi) -> None:
    with pytest.raises(TaskNotFoundError):
        await api.get_task(task_id)
    with pytest.raises(TaskNotFoundError):
        await api.cancel_task(task_id)
    with pytest.raises(TaskNotFoundError):
        await api.retry_task(task_id)


async def test_a_failed_task_is_retried_as_often_as_it_may_be_and_once_more_by_force(
    api: HarnessApi, make: Maker
) -> None:
    agent = await make(FAILS, **NEVER_RETRIED)
    task = await api.run(agent.id, wait_seconds=30)
    assert (task.status, task.reason, task.attempts[0].exit_code) == ("failed", Reason.EXIT_NONZERO, 3)

    with pytest.raises(ConflictError, match="retr"):
        await api.retry_task(task.id)
    again = await api.retry_task(task.id, force=True)

    assert (again.status, again.retry_count) == (TaskStatus.PENDING, 1)
    assert again.due_at is not None
    assert (await api.cancel_task(task.id)).status is TaskStatus.CANCELLED


async def test_a_completed_task_is_not_retried_and_stays_when_cancelled(api: HarnessApi, make: Maker) -> None:
    task = await api.run((await make()).id, wait_seconds=30)

    with pytest.raises(ConflictError, match="completed"):
        await api.retry_task(task.id, force=True)

    assert await api.cancel_task(task.id) == task


async def test_all_active_tasks_of_an_agent_are_cancelled(api: HarnessApi, make: Maker) -> None:
    agent, other = await make(LONG, schedule={"overlap": "allow", **EVERY_HOUR}), await make(LONG)
    tasks = [await api.run(agent.id) for _ in range(3)]
    kept = await api.run(other.id)

    cancelled = await api.cancel_tasks(agent_id=agent.id)

    assert list(cancelled) == [task.id for task in tasks]
    assert {(await ended(api, task)).status for task in tasks} == {TaskStatus.CANCELLED}
    assert not (await api.get_task(kept.id)).status.is_final
    assert list(await api.cancel_tasks(agent_id=other.id, status="pending")) in ([], [kept.id])
    await api.cancel_tasks(agent_id=other.id)
    assert list(await api.cancel_tasks(agent_id=agent.id)) == []


async def test_the_machine_has_memory_and_processors(api: HarnessApi) -> None:
    machine = await api.system_resources()

    assert machine.total_memory_mb > machine.available_memory_mb > 0
    assert machine.cpu_count >= 1
