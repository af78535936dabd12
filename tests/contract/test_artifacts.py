from __future__ import annotations

import pytest
from tests.contract.places import Place, completed, draft, running_task, state
from tests.contract.test_tasks import ODD_JSON

from harness.errors import InvalidInputError, StateRejectedError
from harness.models import Agent, HandoffArtifact, LoadedAgent, NewArtifact
from harness.ports import Store


async def test_a_new_agent_has_no_artifact(store: Store, agent: Agent) -> None:
    assert await store.newest_artifact(agent.id) is None
    assert await store.artifact_history(agent.id) == []


async def test_an_artifact_comes_back_as_it_was_saved(store: Store, agent: Agent) -> None:
    saved = await store.save_artifact(agent.id, NewArtifact(state=ODD_JSON, summary="sum\0mary é 😀"))

    assert saved == await store.newest_artifact(agent.id)
    assert await store.artifact_history(agent.id) == [saved]
    assert saved == HandoffArtifact(
        agent_id=agent.id,
        state=ODD_JSON,
        summary="sum\0mary é 😀",
        created_at=await store.now(),
        run_count=1,
        version=1,
    )
    assert list(saved.state) == list(ODD_JSON)


async def test_a_run_saves_its_artifact_with_its_end(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)

    done = await store.finish_task(
        task.id, 1, completed(), artifact=NewArtifact(state={"n": 1}, summary="one")
    )

    newest = await store.newest_artifact(agent.id)
    assert newest is not None
    assert (newest.state, newest.summary, newest.task_id) == ({"n": 1}, "one", task.id)
    assert (newest.version, newest.run_count, newest.created_at) == (1, 1, done.completed_at)
    assert newest.cleared is False
    assert await store.get_task(task.id) == done


async def test_a_run_without_an_artifact_saves_none(store: Store, agent: Agent) -> None:
    await store.save_artifact(agent.id, state(n=1))
    task = await running_task(store, agent.id)

    await store.finish_task(task.id, 1, completed())

    assert len(await store.artifact_history(agent.id)) == 1


async def test_versions_and_run_counts_go_on_whoever_saves(store: Store, agent: Agent) -> None:
    for n in range(3):
        task = await running_task(store, agent.id)
        await store.finish_task(task.id, 1, completed(), artifact=state(n=n))
        await store.save_artifact(agent.id, state(n=n + 0.5))

    history = await store.artifact_history(agent.id)

    assert [artifact.version for artifact in history] == [6, 5, 4, 3, 2, 1]
    assert [artifact.run_count for artifact in history] == [6, 5, 4, 3, 2, 1]
    assert [artifact.state["n"] for artifact in history] == [2.5, 2, 1.5, 1, 0.5, 0]
    assert [artifact.task_id for artifact in history] == [None, 3, None, 2, None, 1]
    assert await store.newest_artifact(agent.id) == history[0]


async def test_agents_do_not_see_each_others_artifacts(store: Store) -> None:
    agents = [await store.create_agent(draft(f"a{n}")) for n in range(12)]
    for agent in agents:
        for _ in range(2):
            await store.save_artifact(agent.id, state(owner=agent.id))

    for agent in agents:
        assert [item.state for item in await store.artifact_history(agent.id)] == [{"owner": agent.id}] * 2


async def test_history_is_read_in_pages(store: Store, agent: Agent) -> None:
    for n in range(25):
        await store.save_artifact(agent.id, state(n=n))

    first = await store.artifact_history(agent.id, limit=10)
    second = await store.artifact_history(agent.id, limit=10, before_version=first[-1].version)

    assert [artifact.version for artifact in first] == list(range(25, 15, -1))
    assert [artifact.version for artifact in second] == list(range(15, 5, -1))
    assert [item.version for item in await store.artifact_history(agent.id, before_version=2**70)][:1] == [25]
    assert await store.artifact_history(agent.id, before_version=1) == []
    with pytest.raises(InvalidInputError, match="limit"):
        await store.artifact_history(agent.id, limit=0)


async def test_a_clear_makes_the_next_run_a_first_run(place: Place, store: Store, agent: Agent) -> None:
    await store.save_artifact(agent.id, state(n=1))
    await store.save_artifact(agent.id, state(n=2))
    await place.clock.advance(1)

    await store.clear_artifact(agent.id)

    assert await store.newest_artifact(agent.id) is None
    clear, *older = await store.artifact_history(agent.id)
    assert (clear.cleared, clear.version, clear.run_count, clear.state) == (True, 3, 0, {})
    assert clear.created_at == await store.now()
    assert [artifact.state for artifact in older] == [{"n": 2}, {"n": 1}]
    task = await running_task(store, agent.id)
    await store.finish_task(task.id, 1, completed(), artifact=state(n=3))
    newest = await store.newest_artifact(agent.id)
    assert newest is not None
    assert (newest.version, newest.run_count, newest.state) == (4, 1, {"n": 3})


async def test_clearing_nothing_writes_nothing(store: Store, agent: Agent) -> None:
    await store.clear_artifact(agent.id)
    assert await store.artifact_history(agent.id) == []
    await store.save_artifact(agent.id, state())

    await store.clear_artifact(agent.id)
    await store.clear_artifact(agent.id)

    assert [artifact.cleared for artifact in await store.artifact_history(agent.id)] == [True, False]


async def test_three_megabytes_of_state_fit(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id, context={"context": "c" * 3_000_000})

    # Two bytes each, and escaped when JSON is kept as ASCII.
    await store.finish_task(task.id, 1, completed(), artifact=state(text="é" * 1_500_000))

    newest = await store.newest_artifact(agent.id)
    assert newest is not None
    assert newest.state == {"text": "é" * 1_500_000}


async def test_context_and_state_at_their_bounds_fit_together(store: Store, agent: Agent) -> None:
    bound = 4 * 1024 * 1024 - len('{"t":""}')
    task = await running_task(store, agent.id, context={"t": "c" * bound})
    artifact = NewArtifact(state={"t": "s" * bound}, summary="u" * 1024 * 1024)

    await store.finish_task(task.id, 1, completed(result="r" * 10_000), artifact=artifact)

    newest = await store.newest_artifact(agent.id)
    assert newest is not None
    assert newest.state == artifact.state


async def test_a_state_over_the_bound_is_refused(store: Store, agent: Agent) -> None:
    with pytest.raises(StateRejectedError, match=r"state is 4,\d+,\d+ bytes.*limit of 4,194,304"):
        await store.save_artifact(agent.id, state(text="x" * 4_200_000))

    assert await store.artifact_history(agent.id) == []


async def test_what_a_caller_does_to_its_dict_later_does_not_reach_the_store(
    store: Store, agent: Agent
) -> None:
    mine = {"list": [1]}
    saved = await store.save_artifact(agent.id, NewArtifact(state=mine))
    mine["list"].append(2)
    saved.state["list"].append(3)

    newest = await store.newest_artifact(agent.id)
    assert newest is not None
    assert newest.state == {"list": [1]}


async def test_agents_are_loaded_each_with_its_newest_artifact(store: Store, agent: Agent) -> None:
    second = await store.create_agent(draft("second", config={"limits": {"cpus": 2}}))
    cleared = await store.create_agent(draft("cleared"))
    new = await store.create_agent(draft("new"))
    other = await store.create_agent(draft("other"))
    for number in range(3):
        await store.save_artifact(agent.id, state(n=number))
    for each in (second, cleared, other):
        await store.save_artifact(each.id, state(of=each.name))
    await store.clear_artifact(cleared.id)

    loaded = await store.load_agents([second.id, agent.id, cleared.id, new.id, agent.id, 99, 2**70])

    assert loaded == {
        agent.id: LoadedAgent(agent, await store.newest_artifact(agent.id)),
        second.id: LoadedAgent(second, await store.newest_artifact(second.id)),
        cleared.id: LoadedAgent(cleared, None),
        new.id: LoadedAgent(new, None),
    }
    artifact = loaded[agent.id].artifact
    assert artifact is not None
    assert artifact.state == {"n": 2}
    assert await store.load_agents([]) == {}


async def test_an_agent_is_loaded_with_the_artifact_of_a_task_that_just_ended(
    store: Store, agent: Agent
) -> None:
    tasks = [await running_task(store, agent.id) for _ in range(2)]
    for number, task in enumerate(tasks):
        await store.finish_task(task.id, 1, completed(), artifact=state(n=number))

    artifact = (await store.load_agents([agent.id]))[agent.id].artifact

    assert artifact is not None
    assert (artifact.version, artifact.task_id, artifact.state) == (2, tasks[1].id, {"n": 1})


async def test_an_agent_that_cannot_be_read_keeps_no_other_from_being_loaded(
    shared_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    store = shared_place.make()
    await store.open()
    spoiled, sound = [await store.create_agent(draft(name)) for name in ("spoiled", "sound")]
    await shared_place.spoil_agent(spoiled.id)

    loaded = await store.load_agents([spoiled.id, sound.id])

    assert loaded == {sound.id: LoadedAgent(sound, None)}
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert "the stored agent 1 is not readable" in record.getMessage()
