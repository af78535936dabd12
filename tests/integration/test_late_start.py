"""A runner that comes back after its lease was lost, while its container was being made, starts nothing any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.sandboxes import Lab, used_store_ids

from harness.clock import SystemClock
from harness.errors import LeaseLostError
from harness.executor import AgentExecutor
from harness.models import AgentDraft, Claim, NewTask, Reason, TaskStatus
from harness.recovery import sweep
from harness.sandbox.engine import Engine, EngineRefusedError
from harness.settings import Settings
from harness.store.sqlite import SqliteStore


class JumpingClock(SystemClock):
    """Its monotonic time can be moved on, as it is for a process that was frozen."""

    frozen_seconds = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.frozen_seconds


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The containers that are started."""
    names: list[str] = []
    start = Engine.start_container

    async def note(engine: Engine, container: str) -> None:
        names.append(container)
        await start(engine, container)

    monkeypatch.setattr(Engine, "start_container", note)
    return names


async def _states(lab: Lab) -> list[str]:
    return [container.state for container in await lab.sandbox.owned_containers(lab.store_id)]


async def test_a_sandbox_asks_between_creation_and_start(lab: Lab, started: list[str]) -> None:
    def refuse() -> None:
        raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError):
        async with lab.sandbox.open(lab.spec(("sh", "-c", "echo ran")), before_start=refuse):
            pytest.fail("it started")

    assert started == []
    assert await _states(lab) == []


async def test_a_container_that_was_swept_before_its_start_never_starts(lab: Lab) -> None:
    async with lab.sandbox.open(lab.spec()) as session:
        pass

    with pytest.raises(EngineRefusedError):
        await lab.engine.start_container(session.container_id)


async def test_a_command_runs_once_though_its_first_runner_was_frozen_while_it_made_the_container(
    lab: Lab, started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock = SqliteStore(tmp_path / "harness.db"), JumpingClock()
    await store.open()
    lab.store_id = store.store_id
    used_store_ids.add(lab.store_id)
    settings = Settings(data_dir=tmp_path, lease_seconds=1)
    executor = AgentExecutor(store=store, sandbox=lab.sandbox, clock=clock, settings=settings)
    config = {"command": ["sh", "-c", "echo ran"], "image": lab.image}
    agent = await store.create_agent(AgentDraft(name="plain", config=config))
    create = Engine.create_container

    async def freeze_after(engine: Engine, *arguments: Any, **more: Any) -> str:
        created = await create(engine, *arguments, **more)
        clock.frozen_seconds = 5
        return created

    monkeypatch.setattr(Engine, "create_container", freeze_after)
    claim = Claim(owner="frozen", lease_seconds=1)
    claimed_at = clock.monotonic()
    task = await store.create_task(NewTask(agent_id=agent.id), claim=claim)

    result = await executor.begin(await executor.resolve(), task, agent, claimed_at=claimed_at).run()

    assert result.reason is Reason.LOST
    assert started == []
    assert await _states(lab) == []
    assert (await store.get_task(task.id)).status is TaskStatus.RUNNING
    await sweep(store, lab.sandbox)
    await store.close()
