"""An agent goes on, run after run, and what it carries stays small."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.sandboxes import used_store_ids

from harness.compression import RECENT_OUTPUTS_KEY
from harness.executor import AgentExecutor
from harness.jsontext import encode_document
from harness.models import AgentDraft
from harness.sandbox.docker import DockerSandbox
from harness.settings import Settings
from harness.store.sqlite import SqliteStore

MAX_STATE_BYTES = 4096

STATEFUL = """
import handoff
assert context == handoff.context
count = context.get("count", 0) + 1
assert handoff.task.run_count == count - 1
seen = [*context.get("seen", []), count][-20:]
print(f"run {count} of agent {handoff.task.agent_id}")
handoff.save({"count": count, "seen": seen}, f"run {count}")
"""

#: Says a lot, and nothing to the harness.
TALKATIVE = """
import sys
past = context.get("_recent_outputs", [])
print(f"run with {len(past)} remembered outputs")
for line in range(200):
    print(f"checked item {line}: " + "x" * 50)
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "harness.db")
    await store.open()
    used_store_ids.add(store.store_id)
    yield store
    await store.close()


@pytest.fixture
def executor(store: SqliteStore, sandbox: DockerSandbox) -> AgentExecutor:
    return AgentExecutor(store=store, sandbox=sandbox, settings=Settings(max_state_bytes=MAX_STATE_BYTES))


def size_of(state: dict[str, object] | None) -> int:
    return len(encode_document(state, what="state").encode())


@pytest.mark.timeout(180)
async def test_a_counter_counts_through_120_runs(store: SqliteStore, executor: AgentExecutor) -> None:
    agent = await store.create_agent(AgentDraft(name="counter", code=STATEFUL))

    for run in range(1, 121):
        result = await executor.execute_agent(agent.id)

        assert result.success, (run, result)
        assert result.state is not None
        assert result.state["count"] == run
        assert size_of(result.state) <= MAX_STATE_BYTES

    artifact = await store.newest_artifact(agent.id)
    assert artifact is not None
    assert artifact.state == {"count": 120, "seen": list(range(101, 121))}
    assert (artifact.run_count, artifact.version, artifact.summary) == (120, 120, "run 120")
    history = await store.artifact_history(agent.id, limit=1000)
    assert [old.state["count"] for old in history] == list(range(120, 0, -1))
    assert len({old.task_id for old in history}) == 120
    tasks = await store.list_tasks(agent_id=agent.id, limit=1000)
    assert tasks.total_count == 120
    assert {task.status for task in tasks.items} == {"completed"}
    assert all(
        task.attempt is not None and (task.attempt.usage.peak_memory_bytes or 0) > 0 for task in tasks.items
    )


@pytest.mark.timeout(120)
async def test_an_agent_that_only_prints_keeps_a_bounded_memory_over_60_runs(
    store: SqliteStore, executor: AgentExecutor
) -> None:
    agent = await store.create_agent(AgentDraft(name="talkative", code=TALKATIVE))
    sizes = []

    for run in range(60):
        result = await executor.execute_agent(agent.id)

        assert result.success, (run, result)
        remembered = len((result.state or {})[RECENT_OUTPUTS_KEY])
        assert 1 <= remembered <= 10
        sizes.append(size_of(result.state))
        assert sizes[-1] <= MAX_STATE_BYTES

    artifact = await store.newest_artifact(agent.id)
    assert artifact is not None
    assert artifact.run_count == 60
    assert artifact.state[RECENT_OUTPUTS_KEY][-1]["number"] == 60
    # It has found its size, and does not creep towards the bound.
    assert max(sizes[-20:]) - min(sizes[-20:]) < 100
