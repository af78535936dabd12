from __future__ import annotations

import unicodedata

import pytest
from tests.contract.places import Place, chunk, completed, draft, new_task, running_task, state

from harness.errors import (
    AgentBusyError,
    AgentNameTakenError,
    AgentNotFoundError,
    InvalidInputError,
    TaskNotFoundError,
    VersionConflictError,
)
from harness.models import Agent, NewTask, TaskStatus
from harness.ports import Store

ODD_CONFIG = {
    "env": {"PATH_LIKE": "$HOME/a.b\n\t\\ ' \" \u2028 \U0001f600", "EMPTY": ""},
    "schedule": {"type": "cron", "cron": "*/5 * * * *"},
}


async def test_an_agent_comes_back_as_it_was_stored(store: Store) -> None:
    files = {"pkg/$main.py": "print('\0')\r\n", "a.b.c": "", "ünïcode.py": "x = '\U0001f600'"}
    written = draft("writer", code="", files=files, entrypoint="a.b.c", config=ODD_CONFIG)

    agent = await store.create_agent(written)

    assert agent == await store.get_agent(agent.id) == await store.find_agent("writer")
    assert {name: getattr(agent, name) for name in type(written).model_fields} == dict(written)
    assert list(agent.files) == list(files)
    assert (agent.id, agent.version) == (1, 1)
    assert agent.created_at == agent.updated_at == await store.now()


async def test_the_largest_code_fits(store: Store) -> None:
    # Control characters are the worst case for any JSON encoding of the code.
    agent = await store.create_agent(draft(code="\x01" * (4 * 1024 * 1024)))

    assert len((await store.get_agent(agent.id)).code) == 4 * 1024 * 1024


async def test_a_config_over_its_bound_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInputError, match=r"config is 5,\d+,\d+ bytes.*limit of 4,194,304"):
        await store.create_agent(draft(config={"env": {"BIG": "x" * 5_100_000}}))

    assert (await store.list_agents()).total_count == 0


async def test_ids_count_up_from_one_and_are_never_used_twice(store: Store) -> None:
    first, second = await store.create_agent(draft("a")), await store.create_agent(draft("b"))
    await store.delete_agent(second.id)
    third = await store.create_agent(draft("c"))

    assert (first.id, second.id, third.id) == (1, 2, 3)


async def test_a_name_is_taken_once(store: Store, agent: Agent) -> None:
    with pytest.raises(AgentNameTakenError, match="agent 1 has the name 'agent'"):
        await store.create_agent(draft())

    assert (await store.list_agents()).items == (agent,)


@pytest.mark.parametrize(
    "name", ["Ω", "ß", "İstanbul", "a b", "$where", "a.b", "'; DROP TABLE agents; --", "%", "😀"]
)
async def test_names_are_any_printable_text(store: Store, name: str) -> None:
    agent = await store.create_agent(draft(name))

    assert await store.find_agent(name) == agent


async def test_names_differ_when_their_code_points_do(store: Store) -> None:
    names = ["e\u0301", "\u00e9", "E\u0301", "strasse", "straße", "Agent", "agent"]
    assert unicodedata.normalize("NFC", names[0]) == names[1]
    agents = [await store.create_agent(draft(name)) for name in names]

    assert [await store.find_agent(name) for name in names] == agents


@pytest.mark.parametrize("agent_id", [0, -1, 2, 2**63, 10**40, -(10**40)])
async def test_an_unknown_agent_is_named_by_its_id(store: Store, agent: Agent, agent_id: int) -> None:
    for call in (
        store.get_agent(agent_id),
        store.update_agent(agent_id, draft("x")),
        store.delete_agent(agent_id),
        store.create_task(NewTask(agent_id=agent_id)),
        store.save_artifact(agent_id, state()),
    ):
        with pytest.raises(AgentNotFoundError, match=str(agent_id)):
            await call
    assert await store.newest_artifact(agent_id) is None
    assert await store.artifact_history(agent_id) == []
    await store.clear_artifact(agent_id)
    assert (await store.list_tasks(agent_id=agent_id)).total_count == 0
    assert (await store.list_tasks()).total_count == 0


@pytest.mark.parametrize("name", ["", "nobody", "\ud800", "\0", "AGENT"])
async def test_an_unknown_name_is_not_found(store: Store, agent: Agent, name: str) -> None:
    with pytest.raises(AgentNotFoundError):
        await store.find_agent(name)


async def test_agents_are_listed_by_falling_id_in_pages(store: Store) -> None:
    agents = [await store.create_agent(draft(f"a{n}")) for n in range(5)]

    page = await store.list_agents(limit=2, offset=1)

    assert page.items == (agents[3], agents[2])
    assert (page.total_count, page.limit, page.offset) == (5, 2, 1)
    assert (await store.list_agents()).items == tuple(reversed(agents))
    beyond = await store.list_agents(offset=5)
    assert (beyond.items, beyond.total_count) == ((), 5)


@pytest.mark.parametrize(("limit", "offset"), [(0, 0), (-1, 0), (1, -1), (2**63, 0), (1, 2**63)])
async def test_a_page_that_makes_no_sense_is_refused(store: Store, limit: int, offset: int) -> None:
    with pytest.raises(InvalidInputError, match=r"limit|offset"):
        await store.list_agents(limit=limit, offset=offset)
    with pytest.raises(InvalidInputError, match=r"limit|offset"):
        await store.list_tasks(limit=limit, offset=offset)


async def test_an_update_replaces_what_the_owner_wrote(place: Place, store: Store) -> None:
    before = await store.create_agent(draft("old", config=ODD_CONFIG))
    await place.clock.advance(1.5)

    after = await store.update_agent(before.id, draft("new", code="", files={"m.py": "1"}, entrypoint="m.py"))

    assert after == await store.get_agent(before.id) == await store.find_agent("new")
    assert (after.name, after.code, after.files, after.config) == ("new", "", {"m.py": "1"}, {})
    assert (after.id, after.version, after.created_at) == (before.id, 2, before.created_at)
    assert after.updated_at == await store.now() > before.updated_at
    with pytest.raises(AgentNotFoundError):
        await store.find_agent("old")


async def test_an_update_may_keep_the_name(store: Store, agent: Agent) -> None:
    assert (await store.update_agent(agent.id, draft(code="print(2)"))).version == 2


async def test_an_update_from_another_version_is_refused(store: Store, agent: Agent) -> None:
    await store.update_agent(agent.id, draft(code="print(2)"), expected_version=1)

    with pytest.raises(VersionConflictError, match="has version 2, not 1"):
        await store.update_agent(agent.id, draft(code="print(3)"), expected_version=1)

    assert (await store.get_agent(agent.id)).code == "print(2)"


async def test_an_update_may_not_take_another_agents_name(store: Store, agent: Agent) -> None:
    other = await store.create_agent(draft("other"))

    with pytest.raises(AgentNameTakenError, match="agent 1 has the name"):
        await store.update_agent(other.id, draft("agent"))

    assert await store.get_agent(other.id) == other


async def test_a_deleted_agent_takes_everything_along(store: Store, agent: Agent) -> None:
    kept = await store.create_agent(draft("kept"))
    kept_task = await running_task(store, kept.id)
    await store.append_logs(kept_task.id, 1, [await chunk(store, 0)])
    await store.save_artifact(kept.id, state(a=1))
    task = await running_task(store, agent.id, fire_at=agent.created_at, max_active=1)
    await store.append_logs(task.id, 1, [await chunk(store, 0)])
    await store.finish_task(task.id, 1, completed(), artifact=state(n=1))
    await store.save_artifact(agent.id, state(n=2))

    await store.delete_agent(agent.id)

    with pytest.raises(AgentNotFoundError):
        await store.get_agent(agent.id)
    with pytest.raises(TaskNotFoundError):
        await store.get_task(task.id)
    assert await store.read_logs(task.id) == []
    assert await store.artifact_history(agent.id) == []
    assert (await store.list_tasks(agent_id=agent.id)).total_count == 0
    with pytest.raises(AgentNotFoundError):
        await store.delete_agent(agent.id)
    assert (await store.get_task(kept_task.id)).status is TaskStatus.RUNNING
    assert len(await store.read_logs(kept_task.id)) == len(await store.artifact_history(kept.id)) == 1
    assert (await store.create_agent(draft())).id == 3


async def test_many_tasks_are_deleted_with_their_agent(store: Store, agent: Agent) -> None:
    for n in range(120):
        await store.save_artifact(agent.id, state(n=n))
    tasks = [await running_task(store, agent.id, max_active=230) for _ in range(230)]
    for task in tasks:
        await store.append_logs(task.id, 1, [await chunk(store, 0)])
        await store.finish_task(task.id, 1, completed())

    await store.delete_agent(agent.id)

    assert (await store.list_tasks()).total_count == 0
    assert [await store.read_logs(task.id) for task in tasks] == [[]] * 230
    assert await store.artifact_history(agent.id) == []


@pytest.mark.parametrize("is_running", [True, False])
async def test_an_agent_with_an_active_task_is_not_deleted(
    store: Store, agent: Agent, is_running: bool
) -> None:
    if is_running:
        task = await running_task(store, agent.id)
    else:
        task = await store.create_task(NewTask(agent_id=agent.id))

    with pytest.raises(AgentBusyError, match=f"task {task.id} is active"):
        await store.delete_agent(agent.id)

    assert await store.get_agent(agent.id) == agent
    await store.create_task(new_task(agent.id))
