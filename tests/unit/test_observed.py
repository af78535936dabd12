from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.shop import FAILED, LEASE_SECONDS, SKIPPED, Shop

from harness.errors import AgentNotFoundError, EngineUnavailableError, LeaseLostError
from harness.executor import AgentExecutor
from harness.models import (
    Attempt,
    Claim,
    FirePlan,
    NewTask,
    Outcome,
    Reason,
    ScheduleState,
    SkipReason,
    Task,
    WhenBusy,
)
from harness.observed import MEASURED_METHODS, observed_sandbox, observed_store
from harness.ports import SandboxResult, Store
from harness.telemetry import Telemetries, Telemetry
from harness.testing import FakeRun


class Recorder(Telemetry):
    """Remembers what it is told, the store's calls apart."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, BaseException | None]] = []
        self.told: list[tuple[Any, ...]] = []

    def store_called(self, method: str, seconds: float, error: BaseException | None) -> None:
        assert seconds >= 0
        self.calls.append((method, error))

    def fired(self, task: Task) -> None:
        self.told.append(("fired", task.status))

    def claimed(self, task: Task) -> None:
        self.told.append(("claimed", task.id, task.fence))

    def skipped(self, skip: NewTask) -> None:
        self.told.append(("skipped", skip.agent_id, skip.skip_reason))

    def attempt_ended(self, task: Task, attempt: Attempt, save_seconds: float) -> None:
        self.told.append(("attempt_ended", task.id, attempt.number, attempt.reason))

    def attempt_lost(self, task_id: int, fence: int) -> None:
        self.told.append(("attempt_lost", task_id, fence))

    def task_ended(self, task: Task) -> None:
        self.told.append(("task_ended", task.id, task.reason))

    def sandbox_started(self, labels: Any, origin: str, seconds: float) -> None:
        self.told.append(("sandbox_started", labels.task_id, labels.fence, origin, seconds))

    def sandbox_failed(self, labels: Any, error: BaseException) -> None:
        self.told.append(("sandbox_failed", labels.task_id, type(error)))

    def sandbox_ended(self, labels: Any) -> None:
        self.told.append(("sandbox_ended", labels.task_id))

    def agent_ended(self, labels: Any, result: SandboxResult, seconds: float) -> None:
        self.told.append(("agent_ended", labels.task_id, result.reason))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    await shop.store.open()
    yield shop
    await shop.store.close()


@pytest.fixture
def store(shop: Shop, recorder: Recorder) -> Store:
    return observed_store(shop.store, recorder)


@pytest.fixture
def executor(shop: Shop, store: Store, recorder: Recorder) -> AgentExecutor:
    sandbox = observed_sandbox(shop.sandbox, recorder)
    return AgentExecutor(store=store, sandbox=sandbox, clock=shop.clock, settings=shop.settings)


CLAIM = Claim(owner="me", lease_seconds=LEASE_SECONDS)


def test_every_call_of_the_port_is_measured_but_for_looks_at_the_clock() -> None:
    port = {name for name, member in vars(Store).items() if inspect.iscoroutinefunction(member)}

    assert port - set(MEASURED_METHODS) == {"open", "close", "now"}


async def test_a_call_is_told_with_its_error_and_both_pass_through(store: Store, recorder: Recorder) -> None:
    assert (await store.list_agents(limit=1)).total_count == 0
    with pytest.raises(AgentNotFoundError):
        await store.get_agent(7)

    assert [(method, type(error)) for method, error in recorder.calls] == [
        ("list_agents", type(None)),
        ("get_agent", AgentNotFoundError),
    ]
    assert recorder.told == []


async def test_what_is_not_measured_reaches_the_store(shop: Shop, store: Store, recorder: Recorder) -> None:
    assert store.store_id == shop.store.store_id
    assert await store.now() == await shop.store.now()
    assert recorder.calls == []


async def test_a_run_is_told_from_its_claim_to_its_end(
    shop: Shop, executor: AgentExecutor, recorder: Recorder
) -> None:
    agent = await shop.agent()

    await executor.execute_agent(agent.id)

    assert recorder.told == [
        ("claimed", 1, 1),
        ("sandbox_started", 1, 1, "cold", 0.125),
        ("agent_ended", 1, Reason.COMPLETED),
        ("sandbox_ended", 1),
        ("attempt_ended", 1, 1, Reason.COMPLETED),
        ("task_ended", 1, Reason.COMPLETED),
    ]


async def test_a_container_that_does_not_start_has_not_ended(
    shop: Shop, executor: AgentExecutor, recorder: Recorder
) -> None:
    agent = await shop.agent()
    shop.sandbox.open_error = EngineUnavailableError("it is away")

    await executor.execute_agent(agent.id)

    told = [told for told in recorder.told if told[0].startswith("sandbox")]
    assert told == [("sandbox_failed", 1, EngineUnavailableError)]


async def test_an_attempt_that_is_retried_ends_and_its_task_does_not(
    shop: Shop, store: Store, recorder: Recorder
) -> None:
    await shop.pending(await shop.agent())
    (task,) = await store.claim_tasks(CLAIM, limit=1)
    failed = Outcome(reason=Reason.TIMEOUT)
    await store.retry_task(task.id, task.fence, failed, due_at=await store.now())
    (task,) = await store.claim_tasks(CLAIM, limit=1)
    await store.finish_task(task.id, task.fence, failed)

    assert recorder.told == [
        ("claimed", 1, 1),
        ("attempt_ended", 1, 1, Reason.TIMEOUT),
        ("claimed", 1, 2),
        ("attempt_ended", 1, 2, Reason.TIMEOUT),
        ("task_ended", 1, Reason.TIMEOUT),
    ]


async def test_a_repeated_end_tells_of_its_own_attempt_and_not_of_the_next(
    shop: Shop, store: Store, recorder: Recorder
) -> None:
    await shop.pending(await shop.agent())
    (task,) = await store.claim_tasks(CLAIM, limit=1)
    failed, due_at = Outcome(reason=Reason.TIMEOUT), await store.now()
    await shop.store.retry_task(task.id, task.fence, failed, due_at=due_at)
    await store.claim_tasks(CLAIM, limit=1)

    await store.retry_task(task.id, task.fence, failed, due_at=due_at)

    assert recorder.told[2:] == [("attempt_ended", 1, 1, Reason.TIMEOUT)]


async def test_a_refused_write_is_a_lost_attempt(shop: Shop, store: Store, recorder: Recorder) -> None:
    await shop.pending(await shop.agent())
    (task,) = await store.claim_tasks(CLAIM, limit=1)
    await shop.store.finish_task(task.id, task.fence, Outcome(reason=Reason.LOST))

    with pytest.raises(LeaseLostError):
        await store.extend_lease(task.id, task.fence, 5)

    assert recorder.told[1:] == [("attempt_lost", 1, 1)]


async def test_a_sweep_tells_of_what_it_ended_and_of_nothing_else(
    shop: Shop, store: Store, recorder: Recorder
) -> None:
    await shop.pending(await shop.agent())
    (task,) = await store.claim_tasks(CLAIM, limit=1)
    assert await store.expire_task(task) is None
    await shop.clock.advance(LEASE_SECONDS + 1)

    assert await store.expire_task(task) is not None
    assert await store.expire_task(task) is None

    assert recorder.told[1:] == [("attempt_ended", 1, 1, Reason.LOST), ("task_ended", 1, Reason.LOST)]


async def test_a_cancelled_task_ends_once_however_often_it_is_cancelled(
    shop: Shop, store: Store, recorder: Recorder
) -> None:
    task = await shop.pending(await shop.agent())

    await store.cancel_task(task.id)
    await store.cancel_task(task.id)

    assert recorder.told == [("task_ended", 1, Reason.CANCELLED)]


async def test_the_end_of_a_cancelled_run_is_told_by_its_runner(
    shop: Shop, store: Store, recorder: Recorder
) -> None:
    await shop.pending(await shop.agent())
    (task,) = await store.claim_tasks(CLAIM, limit=1)

    await store.cancel_task(task.id)
    assert recorder.told == [("claimed", 1, 1)]
    await store.finish_task(task.id, task.fence, Outcome(reason=Reason.CANCELLED))

    assert recorder.told[1:] == [
        ("attempt_ended", 1, 1, Reason.CANCELLED),
        ("task_ended", 1, Reason.CANCELLED),
    ]


async def test_fires_and_skips_are_told_by_whoever_stored_them(
    shop: Shop, store: Store, recorder: Recorder
) -> None:
    agent = await shop.agent(schedule={"type": "cron", "cron": "*/5 * * * *"})
    now = await store.now()
    (before,) = await store.put_schedules(
        [ScheduleState(agent_id=agent.id, agent_version=1, next_fire_at=now, due_at=now, anchor_at=now)]
    )
    fires = [
        NewTask(
            agent_id=agent.id, trigger="schedule", fire_at=now + timedelta(minutes=n), when_busy=WhenBusy.SKIP
        )
        for n in range(2)
    ]
    plan = FirePlan(before=before, tasks=tuple(fires), next_fire_at=None, due_at=None)

    await store.fire_schedules([plan])
    await store.fire_schedules([plan])

    assert recorder.told == [("fired", "pending"), ("fired", SKIPPED)]
    assert (await store.get_task(2)).skip_reason is SkipReason.OVERLAP


async def test_skips_that_come_of_a_change_are_told_if_the_change_was_accepted(
    shop: Shop, store: Store, recorder: Recorder
) -> None:
    agent = await shop.agent(schedule={"type": "cron", "cron": "*/5 * * * *"})
    now = await store.now()
    state = ScheduleState(agent_id=agent.id, agent_version=1, anchor_at=now)
    skip = NewTask(agent_id=agent.id, trigger="schedule", fire_at=now, skip_reason=SkipReason.DISABLED)

    await store.put_schedules([state], skips=[skip])
    await store.put_schedules([state], skips=[skip])

    assert recorder.told == [("skipped", agent.id, SkipReason.DISABLED)]


async def test_several_are_told_everything() -> None:
    told: list[str] = []
    names = [
        name for name, _ in inspect.getmembers(Telemetry, inspect.isfunction) if not name.startswith("_")
    ]

    class Each(Telemetry):
        def __getattribute__(self, name: str) -> Any:
            return (lambda *_: told.append(name)) if name in names else super().__getattribute__(name)

    both = Telemetries(Each(), Each())
    for name in names:
        method = getattr(both, name)
        method(*[None] * len(inspect.signature(method).parameters))

    assert told == [name for name in names for _ in range(2)]
    assert all(name in vars(Telemetries) for name in names)


async def test_a_failing_agent_is_told_as_such(
    shop: Shop, executor: AgentExecutor, recorder: Recorder
) -> None:
    agent = await shop.agent()
    shop.sandbox.behave = lambda _job: FakeRun(
        result=SandboxResult(Reason.EXIT_NONZERO, 3, "exited with code 3")
    )

    await executor.execute_agent(agent.id)

    assert ("task_ended", 1, Reason.EXIT_NONZERO) in recorder.told
    assert await shop.statuses() == [FAILED]
