from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from harness.compression import RECENT_OUTPUTS_KEY
from harness.errors import AgentNotFoundError, ArtifactNotFoundError, InvalidInputError, StateRejectedError
from harness.handoff import HandoffManager
from harness.models import AgentDraft
from harness.testing import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.ports import Store


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = MemoryStore()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def agent_id(store: Store) -> int:
    return (await store.create_agent(AgentDraft(name="collector", code="pass"))).id


@pytest.fixture
def manager(store: Store) -> HandoffManager:
    return HandoffManager(store=store)


class ConstantCompressor:
    """Returns what it was made with, and remembers what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    async def compress(self, **question: Any) -> dict[str, Any]:
        self.asked.append(question)
        answer: dict[str, Any] = self.answer
        return answer


async def test_there_is_no_artifact_before_the_first_run(manager: HandoffManager, agent_id: int) -> None:
    assert await manager.load_artifact(agent_id=agent_id) is None


async def test_a_saved_artifact_is_loaded_again(manager: HandoffManager, agent_id: int) -> None:
    saved = await manager.save_artifact(
        agent_id=agent_id, state={"counter": 42, "last_value": "test"}, summary="Processed 10 items"
    )

    loaded = await manager.load_artifact(agent_id=agent_id)

    assert loaded == saved
    assert loaded is not None
    assert loaded.agent_id == agent_id
    assert loaded.state == {"counter": 42, "last_value": "test"}
    assert loaded.summary == "Processed 10 items"
    assert loaded.run_count == 1
    assert loaded.created_at.tzinfo is not None


async def test_the_run_count_counts_saves_and_starts_again_after_a_clear(
    manager: HandoffManager, agent_id: int
) -> None:
    await manager.save_artifact(agent_id, {"n": 1})
    assert (await manager.save_artifact(agent_id, {"n": 2})).run_count == 2

    await manager.clear_artifact(agent_id=agent_id)

    assert await manager.load_artifact(agent_id) is None
    assert (await manager.save_artifact(agent_id, {"n": 3})).run_count == 1


async def test_the_documented_loop_remembers_over_100_runs(manager: HandoffManager, agent_id: int) -> None:
    for run in range(1, 121):
        artifact = await manager.load_artifact(agent_id=agent_id)
        context = artifact.state if artifact else {}
        output = f'run {run}\nHANDOFF_STATE {{"counter": {context.get("counter", 0) + 1}}}\n'
        new_state = await manager.compress_context(
            agent_id=agent_id, raw_output=output, previous_state=context
        )
        await manager.save_artifact(agent_id=agent_id, state=new_state)

    artifact = await manager.load_artifact(agent_id)
    assert artifact is not None
    assert artifact.run_count == 120
    assert artifact.state["counter"] == 120
    assert artifact.state[RECENT_OUTPUTS_KEY][-1]["number"] == 120


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ([1], "must be a JSON object"),
        ({"a": {1: 2}}, r"state\.a has the key 1 \(int\)"),
        ({"a": [object()]}, r"state\.a\[0\] is a object"),
        ({"a": float("nan")}, r"state\.a is nan"),
        ({"a": "x" * 70_000}, r"70,008 bytes.*limit of 65,536 bytes.*max_state_bytes"),
    ],
)
async def test_an_unacceptable_state_is_refused_with_what_is_wrong(
    manager: HandoffManager, agent_id: int, state: Any, complaint: str
) -> None:
    with pytest.raises(StateRejectedError, match=complaint):
        await manager.save_artifact(agent_id, state)

    assert await manager.load_artifact(agent_id) is None


async def test_a_state_may_have_keys_that_databases_treat_specially(
    manager: HandoffManager, agent_id: int
) -> None:
    state = {"$set": {"a.b": 1}, "": None, "big": 10**30, "é": "\0"}

    await manager.save_artifact(agent_id, state)

    artifact = await manager.load_artifact(agent_id)
    assert artifact is not None
    assert artifact.state == state


async def test_saving_for_an_unknown_agent_says_so(manager: HandoffManager) -> None:
    with pytest.raises(AgentNotFoundError):
        await manager.save_artifact(99, {})


async def test_a_summary_is_cut_and_made_storable(manager: HandoffManager, agent_id: int) -> None:
    artifact = await manager.save_artifact(agent_id, {}, "\ud800" + "x" * 5000)

    assert artifact.summary == "?" + "x" * 1999


async def test_an_agents_own_limit_goes_before_the_default(store: Store, manager: HandoffManager) -> None:
    large = await store.create_agent(
        AgentDraft(name="large", code="pass", config={"limits": {"max_state_bytes": 200_000}})
    )
    state = {"a": "x" * 100_000}

    await manager.save_artifact(large.id, state)

    assert await manager.compress_context(large.id, "", state) == state


async def test_a_bound_given_to_the_manager_goes_before_everything(store: Store, agent_id: int) -> None:
    manager = HandoffManager(store=store, max_state_bytes=300)

    with pytest.raises(StateRejectedError, match="limit of 300 bytes"):
        await manager.save_artifact(agent_id, {"a": "x" * 300})
    with pytest.raises(StateRejectedError, match="limit of 300 bytes"):
        await manager.compress_context(agent_id, "", {"a": "x" * 300})


async def test_with_a_bound_of_its_own_compressing_needs_no_agent(store: Store) -> None:
    manager = HandoffManager(store=store, max_state_bytes=1000)

    assert await manager.compress_context(99, 'HANDOFF_STATE {"a": 1}', {}) == {"a": 1}


async def test_a_compressor_of_ones_own_is_asked(store: Store, agent_id: int) -> None:
    compressor = ConstantCompressor({"learnt": (1, 2)})
    manager = HandoffManager(store=store, compressor=compressor, max_state_bytes=1000)

    state = await manager.compress_context(agent_id, "output", {"a": 1})

    assert state == {"learnt": [1, 2]}
    assert compressor.asked == [
        {"agent_id": agent_id, "raw_output": "output", "previous_state": {"a": 1}, "max_bytes": 1000}
    ]


@pytest.mark.parametrize("answer", [None, "text", {"a": object()}, {"a": "x" * 2000}])
async def test_what_a_compressor_returns_is_checked(store: Store, agent_id: int, answer: Any) -> None:
    manager = HandoffManager(store=store, compressor=ConstantCompressor(answer), max_state_bytes=1000)

    with pytest.raises(StateRejectedError, match="the state made by ConstantCompressor"):
        await manager.compress_context(agent_id, "output", {})


async def test_a_compressor_that_fails_gives_no_state_and_a_reason(store: Store, agent_id: int) -> None:
    class FailingCompressor:
        async def compress(self, **_: Any) -> dict[str, Any]:
            raise TimeoutError("the model did not answer")

    manager = HandoffManager(store=store, compressor=FailingCompressor(), max_state_bytes=1000)

    with pytest.raises(
        StateRejectedError, match="FailingCompressor made no state: TimeoutError: the model did not"
    ):
        await manager.compress_context(agent_id, "output", {})


async def test_the_compressed_state_shares_nothing_with_the_previous_one(
    manager: HandoffManager, agent_id: int
) -> None:
    previous: dict[str, Any] = {"list": [1]}

    state = await manager.compress_context(agent_id, "", previous)
    state["list"].append(2)

    assert previous == {"list": [1]}


async def test_bytes_and_missing_states_are_refused_by_name(manager: HandoffManager, agent_id: int) -> None:
    raw: Any = b"output"
    with pytest.raises(InvalidInputError, match="raw_output is bytes"):
        await manager.compress_context(agent_id, raw, {})
    nothing: Any = None
    with pytest.raises(StateRejectedError, match="previous_state is NoneType"):
        await manager.compress_context(agent_id, "output", nothing)


async def test_the_history_holds_clears_and_pages_by_version(manager: HandoffManager, agent_id: int) -> None:
    for number in (1, 2, 3):
        await manager.save_artifact(agent_id, {"n": number})
    await manager.clear_artifact(agent_id)

    newest = await manager.history(agent_id, limit=2)
    older = await manager.history(agent_id, before_version=newest[-1].version)

    assert [artifact.cleared for artifact in newest] == [True, False]
    assert [artifact.state["n"] for artifact in [newest[1], *older]] == [3, 2, 1]
    with pytest.raises(InvalidInputError, match="limit is 0"):
        await manager.history(agent_id, limit=0)


async def test_a_rollback_saves_the_old_state_as_the_newest(manager: HandoffManager, agent_id: int) -> None:
    good = await manager.save_artifact(agent_id, {"n": 1})
    await manager.save_artifact(agent_id, {"n": "broken"})

    restored = await manager.rollback(agent_id, good.version)

    assert restored.state == {"n": 1}
    assert restored.version > good.version
    assert restored.summary == f"Rolled back to version {good.version}"
    assert await manager.load_artifact(agent_id) == restored
    assert len(await manager.history(agent_id)) == 3


async def test_rolling_back_to_nothing_is_refused(manager: HandoffManager, agent_id: int) -> None:
    await manager.save_artifact(agent_id, {"n": 1})
    await manager.clear_artifact(agent_id)
    clear = (await manager.history(agent_id))[0]

    for version in (0, -1, 99):
        with pytest.raises(ArtifactNotFoundError, match=f"version {version}"):
            await manager.rollback(agent_id, version)
    with pytest.raises(ArtifactNotFoundError, match="is a clear"):
        await manager.rollback(agent_id, clear.version)
    with pytest.raises(AgentNotFoundError):
        await manager.rollback(99, 1)


async def test_without_arguments_the_shared_runtime_is_used(
    store: Store, agent_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def shared_runtime() -> SimpleNamespace:
        return SimpleNamespace(store=store, settings=SimpleNamespace(max_state_bytes=1000))

    wiring = ModuleType("harness.wiring")
    monkeypatch.setattr(wiring, "shared_runtime", shared_runtime, raising=False)
    monkeypatch.setitem(sys.modules, "harness.wiring", wiring)
    manager = HandoffManager()

    await manager.save_artifact(agent_id=agent_id, state={"a": 1})

    assert (await store.newest_artifact(agent_id)) == await manager.load_artifact(agent_id=agent_id)
    with pytest.raises(StateRejectedError, match="limit of 1,000 bytes"):
        await manager.compress_context(agent_id, "", {"a": "x" * 1000})
