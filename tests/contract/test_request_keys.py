"""`NewTask.request_key`: a run that is asked for several times by one key becomes one task, on every store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from tests.contract.places import Place, claim, claim_one, completed, draft, new_task

from harness.errors import AgentBusyError, DuplicateFireError, HarnessError
from harness.models import Agent, NewTask, Task
from harness.ports import Store

REQUESTS = 20


def asked(agent_id: int, key: str = "order-1", max_active: int = 1) -> NewTask:
    return NewTask(agent_id=agent_id, request_key=key, max_active=max_active)


async def test_a_key_makes_one_task_and_tells_which(store: Store, agent: Agent) -> None:
    first = await store.create_task(asked(agent.id, max_active=5))

    with pytest.raises(DuplicateFireError) as raised:
        await store.create_task(asked(agent.id, max_active=5))

    assert raised.value.task_id == first.id
    assert (await store.list_tasks()).total_count == 1


async def test_a_key_that_has_its_task_is_no_conflict_with_that_task(store: Store, agent: Agent) -> None:
    """The agent is busy, with just what is asked for."""
    first = await store.create_task(asked(agent.id), claim=claim())

    with pytest.raises(DuplicateFireError) as raised:
        await store.create_task(asked(agent.id))

    assert raised.value.task_id == first.id


async def test_a_key_holds_after_its_task_has_ended(store: Store, agent: Agent) -> None:
    first = await store.create_task(asked(agent.id))
    task = await claim_one(store)
    await store.finish_task(task.id, task.fence, completed())

    with pytest.raises(DuplicateFireError) as raised:
        await store.create_task(asked(agent.id))

    assert raised.value.task_id == first.id


async def test_a_key_that_was_refused_can_be_used_again(store: Store, agent: Agent) -> None:
    first = await store.create_task(asked(agent.id, "first"), claim=claim())
    with pytest.raises(AgentBusyError, match=f"task {first.id}"):
        await store.create_task(asked(agent.id, "second"))
    await store.finish_task(first.id, 1, completed())

    second = await store.create_task(asked(agent.id, "second"))

    assert second.id != first.id
    with pytest.raises(DuplicateFireError):
        await store.create_task(asked(agent.id, "second"))


async def test_keys_are_told_apart_by_agent_case_and_every_character(store: Store, agent: Agent) -> None:
    other = await store.create_agent(draft("other"))
    keys = ["a", "A", "a ", "a:", "1:key:a", "$a", "a.b", "key:a", "2026-01-01T00:00:00Z"]

    tasks = [await store.create_task(asked(one.id, key, 99)) for one in (agent, other) for key in keys]
    # What a fire is known by has the same form as that last key.
    fire = new_task(agent.id, fire_at=datetime(2026, 1, 1, tzinfo=UTC))
    tasks.append(await store.create_task(fire))

    assert len({task.id for task in tasks}) == 2 * len(keys) + 1


async def test_runs_without_a_key_are_never_taken_for_one_another(store: Store, agent: Agent) -> None:
    await asyncio.gather(*(store.create_task(new_task(agent.id)) for _ in range(3)))

    assert (await store.list_tasks()).total_count == 3


async def test_a_deleted_agents_keys_go_with_it(store: Store, agent: Agent) -> None:
    await store.cancel_task((await store.create_task(asked(agent.id))).id)
    await store.delete_agent(agent.id)
    again = await store.create_agent(draft())

    await store.create_task(asked(again.id))

    assert (await store.list_tasks()).total_count == 1


@pytest.mark.parametrize("max_active", [1, 3, 100])
async def test_of_many_requests_with_one_key_at_once_one_becomes_a_task(
    real_place: Place, max_active: int
) -> None:
    """The others learn its id, also where the agent has no slot left for a second one."""
    stores = [real_place.make() for _ in range(2)]
    for store in stores:
        await store.open()
    agent = await stores[0].create_agent(draft())

    for number in range(3):
        new = asked(agent.id, f"key-{number}", max_active)
        answers = await asyncio.gather(
            *(stores[index % 2].create_task(new) for index in range(REQUESTS)), return_exceptions=True
        )

        (made,) = [answer for answer in answers if isinstance(answer, Task)]
        refused = [answer for answer in answers if isinstance(answer, HarnessError)]
        assert {type(error) for error in refused} == {DuplicateFireError}
        assert {getattr(error, "task_id", 0) for error in refused} == {made.id}
        assert len(refused) == REQUESTS - 1
        await stores[1].cancel_task(made.id)
    assert (await stores[0].list_tasks()).total_count == 3
