"""Agents, by both implementations of `HarnessApi`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from tests.integration.api.conftest import Maker, draft

from harness.api import HarnessApi
from harness.errors import (
    AgentBusyError,
    AgentNameTakenError,
    AgentNotFoundError,
    InvalidInputError,
    TaskNotFoundError,
    VersionConflictError,
)
from harness.models import AgentDraft

NOBODY = 999_999_999


async def test_a_created_agent_is_found_by_id_and_by_name(api: HarnessApi) -> None:
    new = draft("print('å 日本')", limits={"cpus": 0.5}, env={"N": "1"})

    agent = await api.create_agent(new)

    assert agent == await api.get_agent(agent.id) == await api.find_agent(new.name)
    assert AgentDraft.model_validate(agent.model_dump(include=set(AgentDraft.model_fields))) == new
    assert (agent.version, agent.created_at) == (1, agent.updated_at)


async def test_an_agent_of_several_files_keeps_them(api: HarnessApi) -> None:
    files = {"main.py": "import lib.a", "lib/a.py": "x = '\\u0000 \x7f \U0001f600'\n"}
    agent = await api.create_agent(AgentDraft(name=draft().name, files=files, entrypoint="main.py"))

    assert (await api.get_agent(agent.id)).files == files


@pytest.mark.parametrize("name", ["a b/c?d=e&f#g%20", "åäö 日本", "..", "{agent_id}", "a+b"])
async def test_any_name_is_found(name: str, api: HarnessApi) -> None:
    mine = f"{name}{draft().name}"
    agent = await api.create_agent(draft().model_copy(update={"name": mine}))

    assert (await api.find_agent(mine)).id == agent.id


async def test_agents_are_listed_page_by_page_the_newest_first(api: HarnessApi, make: Maker) -> None:
    agents = [await make() for _ in range(3)]

    first, second = await api.list_agents(limit=2), await api.list_agents(limit=2, offset=2)

    assert [agent.id for agent in first.items] == [agents[2].id, agents[1].id]
    assert second.items[0].id == agents[0].id
    assert (first.limit, first.offset, second.offset) == (2, 0, 2)
    assert first.total_count == second.total_count >= 3
    assert (await api.list_agents(offset=first.total_count)).items == ()


async def test_an_update_replaces_all_of_it(api: HarnessApi, make: Maker) -> None:
    before = await make(env={"N": "1"})

    after = await api.update_agent(before.id, AgentDraft(name=before.name, code="print(2)"))

    assert (after.version, after.code, after.config) == (2, "print(2)", {})
    assert after.created_at == before.created_at <= after.updated_at
    assert await api.get_agent(before.id) == after


async def test_an_agent_as_read_can_be_changed_and_written_back(api: HarnessApi, make: Maker) -> None:
    before = await make()
    changed = before.model_copy(update={"code": "print(2)"})

    assert (await api.update_agent(before.id, changed, expected_version=before.version)).code == "print(2)"


async def test_an_update_of_another_version_changes_nothing(api: HarnessApi, make: Maker) -> None:
    agent = await make()
    now = await api.update_agent(agent.id, draft("print(2)"), expected_version=1)

    with pytest.raises(VersionConflictError, match="version"):
        await api.update_agent(agent.id, draft("print(3)"), expected_version=1)

    assert await api.get_agent(agent.id) == now


async def test_a_name_belongs_to_one_agent(api: HarnessApi, make: Maker) -> None:
    agent, other = await make(), await make()
    taken = draft().model_copy(update={"name": other.name})

    with pytest.raises(AgentNameTakenError, match=other.name):
        await api.create_agent(taken)
    with pytest.raises(AgentNameTakenError, match=other.name):
        await api.update_agent(agent.id, taken)

    assert await api.get_agent(agent.id) == agent


async def test_a_deleted_agent_is_gone_with_its_tasks(api: HarnessApi, make: Maker) -> None:
    agent = await make()
    task = await api.run(agent.id, wait_seconds=20)

    await api.delete_agent(agent.id)

    with pytest.raises(AgentNotFoundError, match=str(agent.id)):
        await api.get_agent(agent.id)
    with pytest.raises(AgentNotFoundError, match=agent.name):
        await api.find_agent(agent.name)
    with pytest.raises(TaskNotFoundError, match=str(task.id)):
        await api.get_task(task.id)
    with pytest.raises(AgentNotFoundError):
        await api.delete_agent(agent.id)


async def test_an_agent_with_an_active_task_is_not_deleted(api: HarnessApi, make: Maker) -> None:
    agent = await make("import time; time.sleep(60)")
    task = await api.run(agent.id)

    with pytest.raises(AgentBusyError, match=f"task {task.id}"):
        await api.delete_agent(agent.id)

    assert (await api.get_agent(agent.id)).id == agent.id
    await api.cancel_task(task.id)


Ask = Callable[[HarnessApi, int], Awaitable[object]]

#: Every call that names an agent.
ASK: dict[str, Ask] = {
    "get": lambda api, agent_id: api.get_agent(agent_id),
    "update": lambda api, agent_id: api.update_agent(agent_id, draft()),
    "update at a version": lambda api, agent_id: api.update_agent(agent_id, draft(), expected_version=1),
    "delete": lambda api, agent_id: api.delete_agent(agent_id),
    "run": lambda api, agent_id: api.run(agent_id),
    "run by a key": lambda api, agent_id: api.run(agent_id, idempotency_key="k"),
    "get schedule": lambda api, agent_id: api.get_schedule(agent_id),
    "put schedule": lambda api, agent_id: api.put_schedule(
        agent_id, {"type": "interval", "interval_minutes": 5}
    ),
    "delete schedule": lambda api, agent_id: api.delete_schedule(agent_id),
    "remove schedule": lambda api, agent_id: api.remove_schedule(agent_id),
    "pause": lambda api, agent_id: api.pause_schedule(agent_id),
    "resume": lambda api, agent_id: api.resume_schedule(agent_id),
    "get handoff": lambda api, agent_id: api.get_handoff(agent_id),
    "put handoff": lambda api, agent_id: api.put_handoff(agent_id, {"a": 1}),
    "clear handoff": lambda api, agent_id: api.clear_handoff(agent_id),
    "history": lambda api, agent_id: api.handoff_history(agent_id),
    "rollback": lambda api, agent_id: api.rollback_handoff(agent_id, 1),
    "diff": lambda api, agent_id: api.diff_handoff(agent_id, 1),
}


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("agent_id", [NOBODY, 2**63 - 1, 2**63, 10**30])
async def test_an_unknown_agent_is_not_found(ask: str, agent_id: int, api: HarnessApi) -> None:
    with pytest.raises(AgentNotFoundError):
        await ASK[ask](api, agent_id)


async def test_pages_have_bounds(api: HarnessApi) -> None:
    for limit, offset in [(0, 0), (-1, 0), (1, -1)]:
        with pytest.raises(InvalidInputError):
            await api.list_agents(limit=limit, offset=offset)
        with pytest.raises(InvalidInputError):
            await api.list_tasks(limit=limit, offset=offset)
