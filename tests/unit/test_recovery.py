from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from harness import recovery
from harness.errors import EngineUnavailableError, LeaseLostError, SandboxError
from harness.models import AgentDraft, Claim, NewTask, Outcome, Reason, Task, TaskStatus
from harness.ports import WARM_NAMING_SECONDS, OwnedContainer, SandboxLabels, WarmLabels
from harness.recovery import CREATED_SECONDS, SweepReport, sweep
from harness.testing import FakeClock, FakeSandbox, MemoryStore

LEASE_SECONDS = 30.0
CLAIM = Claim(owner="runner", lease_seconds=LEASE_SECONDS)


class World:
    """A store with one agent, and a sandbox."""

    def __init__(self, store: MemoryStore, sandbox: FakeSandbox, clock: FakeClock, agent_id: int) -> None:
        self.store, self.sandbox, self.clock, self.agent_id = store, sandbox, clock, agent_id

    async def running_task(self) -> Task:
        return await self.store.create_task(NewTask(agent_id=self.agent_id, max_active=10), claim=CLAIM)

    def container(self, task: Task, *, fence: int | None = None, state: str = "running") -> str:
        labels = SandboxLabels(self.store.store_id, task.id, task.fence if fence is None else fence)
        return self.sandbox.add_container(labels, state)

    def waiting(self, *, owner: str = CLAIM.owner, state: str = "running", seconds: float = 900) -> str:
        """Add a container that waits for a task."""
        labels = WarmLabels(self.store.store_id, owner, self.clock.now() + timedelta(seconds=seconds))
        return self.sandbox.add_container(labels, state, self.clock.now())

    async def sweep_slowly(self) -> SweepReport:
        """Sweep, time going on when it is waited for."""
        sweeping = asyncio.create_task(sweep(self.store, self.sandbox, clock=self.clock))
        while not sweeping.done():
            await asyncio.sleep(0)
            if self.clock.sleepers:
                await self.clock.advance(0.25)
        return await sweeping

    async def containers(self) -> list[str]:
        return [owned.container_id for owned in await self.sandbox.owned_containers(self.store.store_id)]

    async def let_leases_end(self) -> None:
        await self.clock.advance(LEASE_SECONDS + 1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    await store.open()
    agent = await store.create_agent(AgentDraft(name="a", code="x = 1"))
    yield World(store, FakeSandbox(), clock, agent.id)
    await store.close()


async def test_with_nothing_to_do_nothing_is_done(world: World) -> None:
    report = await sweep(world.store, world.sandbox)

    assert (report.removed_containers, report.lost_tasks) == (0, ())


async def test_a_container_with_a_live_lease_stays_and_its_task_runs_on(world: World) -> None:
    task = await world.running_task()
    container = world.container(task)

    report = await sweep(world.store, world.sandbox)

    assert (report.removed_containers, report.lost_tasks) == (0, ())
    assert await world.containers() == [container]
    assert (await world.store.get_task(task.id)).status is TaskStatus.RUNNING


@pytest.mark.parametrize("state", ["created", "running", "paused", "exited", "dead"])
async def test_a_task_whose_lease_ran_out_ends_as_lost_and_its_container_goes(
    world: World, state: str
) -> None:
    task = await world.running_task()
    world.container(task, state=state)
    await world.let_leases_end()

    report = await sweep(world.store, world.sandbox)

    assert (report.removed_containers, report.lost_tasks) == (1, (task.id,))
    assert await world.containers() == []
    ended = await world.store.get_task(task.id)
    assert (ended.status, ended.reason) == (TaskStatus.FAILED, Reason.LOST)
    assert ended.completed_at is not None
    with pytest.raises(LeaseLostError):
        await world.store.finish_task(task.id, task.fence, Outcome(reason=Reason.COMPLETED))


async def test_a_task_without_a_container_ends_as_lost_as_well(world: World) -> None:
    task = await world.running_task()
    await world.let_leases_end()

    assert (await sweep(world.store, world.sandbox)).lost_tasks == (task.id,)


async def test_a_reason_recorded_before_the_runner_died_stays(world: World) -> None:
    task = await world.running_task()
    await world.store.record_reason(task.id, task.fence, Reason.TIMEOUT, "ran longer than its limit")
    await world.let_leases_end()

    await sweep(world.store, world.sandbox)

    ended = await world.store.get_task(task.id)
    assert (ended.reason, ended.error) == (Reason.TIMEOUT, "ran longer than its limit")


async def test_the_slot_of_a_lost_task_is_free(world: World) -> None:
    new = NewTask(agent_id=world.agent_id)
    await world.store.create_task(new, claim=CLAIM)
    await world.let_leases_end()

    await sweep(world.store, world.sandbox)

    assert (await world.store.create_task(new, claim=CLAIM)).status is TaskStatus.RUNNING


async def test_the_container_of_an_older_fence_goes_and_that_of_the_live_one_stays(world: World) -> None:
    task = await world.running_task()
    old = world.container(task)
    await world.let_leases_end()
    await world.store.expire_task(task, retry_at=await world.store.now())
    (again,) = await world.store.claim_tasks(CLAIM, limit=1)
    new = world.container(again)

    report = await sweep(world.store, world.sandbox)

    assert report.removed_containers == 1
    assert await world.containers() == [new]
    assert old != new


async def test_the_container_of_an_ended_or_unknown_task_goes(world: World) -> None:
    task = await world.running_task()
    await world.store.finish_task(task.id, task.fence, Outcome(reason=Reason.COMPLETED))
    world.container(task)
    world.sandbox.add_container(SandboxLabels(world.store.store_id, 999, 1))

    assert (await sweep(world.store, world.sandbox)).removed_containers == 2
    assert await world.containers() == []


async def test_another_stores_containers_are_none_of_ours(world: World) -> None:
    world.sandbox.add_container(SandboxLabels("another store", 1, 1))

    assert (await sweep(world.store, world.sandbox)).removed_containers == 0
    assert len(await world.sandbox.owned_containers("another store")) == 1


async def test_a_task_whose_container_will_not_go_is_not_given_up(world: World) -> None:
    stuck, other = await world.running_task(), await world.running_task()
    world.container(stuck)
    await world.let_leases_end()
    world.sandbox.remove_error = SandboxError("device or resource busy")

    report = await sweep(world.store, world.sandbox)

    assert (report.removed_containers, report.lost_tasks) == (0, (other.id,))
    assert (await world.store.get_task(stuck.id)).status is TaskStatus.RUNNING
    world.sandbox.remove_error = None
    assert (await sweep(world.store, world.sandbox)).lost_tasks == (stuck.id,)


async def test_an_engine_that_does_not_answer_leaves_every_task_alone(world: World) -> None:
    task = await world.running_task()
    await world.let_leases_end()

    class Silent(FakeSandbox):
        async def owned_containers(self, store_id: str) -> Any:
            raise EngineUnavailableError("no answer")

    with pytest.raises(EngineUnavailableError):
        await sweep(world.store, Silent())
    assert (await world.store.get_task(task.id)).status is TaskStatus.RUNNING


async def test_a_lease_extended_during_the_sweep_keeps_its_task(world: World) -> None:
    task = await world.running_task()
    await world.let_leases_end()
    extended = False
    look = world.store.expired_tasks

    async def extend_after_the_look(**arguments: Any) -> Any:
        nonlocal extended
        due = await look(**arguments)
        if not extended:
            extended = True
            await world.store.extend_lease(task.id, task.fence, LEASE_SECONDS)
        return due

    world.store.expired_tasks = extend_after_the_look  # type: ignore[method-assign]

    assert (await sweep(world.store, world.sandbox)).lost_tasks == ()
    assert (await world.store.get_task(task.id)).status is TaskStatus.RUNNING


async def test_a_container_started_by_a_frozen_runner_during_the_sweep_goes_too(world: World) -> None:
    task = await world.running_task()
    await world.let_leases_end()

    class Thawing(FakeSandbox):
        looks = 0

        async def owned_containers(self, store_id: str) -> list[OwnedContainer]:
            found = list(await super().owned_containers(store_id))
            if not self.looks:
                self.add_container(SandboxLabels(store_id, task.id, task.fence))
            self.looks += 1
            return found

    sandbox = Thawing()
    report = await sweep(world.store, sandbox)

    assert (report.removed_containers, report.lost_tasks) == (1, (task.id,))
    assert await sandbox.owned_containers(world.store.store_id) == []


async def test_a_container_that_its_own_sandbox_is_about_to_remove_is_left_to_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    task = await world.running_task()
    await world.let_leases_end()

    class Removing(FakeSandbox):
        async def owned_containers(self, store_id: str) -> list[OwnedContainer]:
            labels = SandboxLabels(store_id, task.id, task.fence)
            return [OwnedContainer("leaving", labels, "running", world.clock.now(), is_leaving=True)]

        async def remove_container(self, container_id: str) -> None:
            pytest.fail("it was removed twice")

    report = await sweep(world.store, Removing())

    assert (report.removed_containers, report.lost_tasks) == (0, (task.id,))
    assert "orphan" not in caplog.text


async def test_two_sweeps_at_once_end_a_task_once(world: World) -> None:
    task = await world.running_task()
    world.container(task)
    await world.let_leases_end()

    reports = await asyncio.gather(*(sweep(world.store, world.sandbox) for _ in range(3)))

    assert sorted(lost for report in reports for lost in report.lost_tasks) == [task.id]
    assert await world.containers() == []


async def test_more_lost_tasks_than_a_sweep_looks_at_go_in_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "BATCH", 2)
    tasks = [await world.running_task() for _ in range(5)]
    await world.let_leases_end()

    lost = [(await sweep(world.store, world.sandbox)).lost_tasks for _ in range(4)]

    assert [len(batch) for batch in lost] == [2, 2, 1, 0]
    assert {task_id for batch in lost for task_id in batch} == {task.id for task in tasks}


# Containers that wait for a task


async def test_what_a_living_runner_keeps_waiting_stays(world: World) -> None:
    waiting = [world.waiting(), world.waiting(state="created")]

    assert (await world.sweep_slowly()).removed_containers == 0
    assert await world.containers() == waiting


@pytest.mark.parametrize("state", ["exited", "dead", "removing"])
async def test_one_that_waits_no_more_goes(world: World, state: str) -> None:
    world.waiting(state=state)

    assert (await world.sweep_slowly()).removed_containers == 1


async def test_one_that_waits_longer_than_anybody_needs_it_goes(world: World) -> None:
    world.waiting(seconds=10)
    await world.clock.advance(11)

    assert (await world.sweep_slowly()).removed_containers == 1


async def test_one_that_was_made_and_never_started_goes(world: World) -> None:
    world.waiting(state="created")
    await world.clock.advance(CREATED_SECONDS + 1)

    assert (await world.sweep_slowly()).removed_containers == 1


async def test_where_a_lease_ran_out_its_owners_unnamed_containers_go_before_the_task_does(
    world: World,
) -> None:
    task = await world.running_task()
    mine, others = world.waiting(), world.waiting(owner="another runner")
    await world.let_leases_end()

    report = await world.sweep_slowly()

    assert mine != others
    assert (report.removed_containers, report.lost_tasks) == (1, (task.id,))
    assert await world.containers() == [others]


async def test_a_container_that_gets_its_name_in_time_is_judged_by_its_own_task(world: World) -> None:
    lost, alive = await world.running_task(), await world.running_task()
    unnamed = world.waiting()
    await world.let_leases_end()
    await world.store.extend_lease(alive.id, alive.fence, LEASE_SECONDS)

    async def name_it() -> None:
        await world.clock.sleep(WARM_NAMING_SECONDS / 2)
        world.sandbox.give(unnamed, SandboxLabels(world.store.store_id, alive.id, alive.fence))

    naming = asyncio.create_task(name_it())
    report = await world.sweep_slowly()
    await naming

    assert report.lost_tasks == (lost.id,)
    assert await world.containers() == [unnamed]


async def test_an_unnamed_container_that_will_not_go_keeps_its_owners_tasks_from_being_given_up(
    world: World,
) -> None:
    task = await world.running_task()
    world.waiting()
    await world.let_leases_end()
    world.sandbox.remove_error = SandboxError("device or resource busy")

    assert (await world.sweep_slowly()).lost_tasks == ()
    assert (await world.store.get_task(task.id)).status is TaskStatus.RUNNING
    world.sandbox.remove_error = None
    assert (await world.sweep_slowly()).lost_tasks == (task.id,)
