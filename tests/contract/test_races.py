from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from tests.contract.places import (
    LEASE_SECONDS,
    Place,
    chunk,
    claim,
    completed,
    draft,
    new_task,
    running_task,
    state,
)
from tests.contract.processes import start_process

from harness.errors import (
    AgentBusyError,
    AgentNameTakenError,
    AgentNotFoundError,
    DuplicateFireError,
    HarnessError,
    LeaseLostError,
    VersionConflictError,
)
from harness.models import Agent, HandoffArtifact, NewTask, Reason, Task, TaskStatus
from harness.ports import Store

RACERS = 6

T = TypeVar("T")


@pytest.fixture
async def stores(real_place: Place) -> list[Store]:
    """Stores on the same data, each with connections of its own, as in as many processes."""
    made = [real_place.make() for _ in range(RACERS)]
    for store in made:
        await store.open()
    return made


@pytest.fixture
async def agent(stores: list[Store]) -> Agent:
    return await stores[0].create_agent(draft())


async def take_over(store: Store, task: Task) -> Task | None:
    """Give a task of a runner that seems dead to the next one; None when its runner was faster."""
    return await store.expire_task(task, retry_at=await store.now() + timedelta(hours=1))


async def race(calls: Iterable[Awaitable[T]]) -> tuple[list[T], Counter[type]]:
    """Run calls at once; return what the winners got, and how often each error ended a loser."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    won: list[T] = []
    lost: Counter[type] = Counter()
    for result in results:
        if isinstance(result, HarnessError):
            lost[type(result)] += 1
        elif isinstance(result, BaseException):
            raise result
        else:
            won.append(result)
    return won, lost


async def test_of_many_claims_exactly_one_wins(stores: list[Store], agent: Agent) -> None:
    for _ in range(10):
        pending = await stores[0].create_task(new_task(agent.id))

        won, lost = await race(
            store.claim_tasks(claim(f"runner-{n}"), limit=1) for n, store in enumerate(stores)
        )

        (taken,) = [task for tasks in won for task in tasks]
        assert lost == Counter()
        assert await stores[0].get_task(pending.id) == taken


async def test_runners_that_drain_a_queue_take_every_task_once(stores: list[Store], agent: Agent) -> None:
    created = [await stores[0].create_task(new_task(agent.id)) for _ in range(30)]
    taken: list[int] = []

    async def drain(store: Store, owner: str) -> None:
        while (await store.list_tasks(status=TaskStatus.PENDING)).items:
            for task in await store.claim_tasks(claim(owner), limit=3):
                taken.append(task.id)
                await store.finish_task(task.id, task.fence, completed())

    await asyncio.gather(*(drain(store, f"runner-{n}") for n, store in enumerate(stores)))

    assert sorted(taken) == [task.id for task in created]
    tasks = (await stores[0].list_tasks()).items
    assert {(task.status, task.fence) for task in tasks} == {(TaskStatus.COMPLETED, 1)}


async def test_of_many_tasks_for_one_slot_exactly_one_is_stored(stores: list[Store], agent: Agent) -> None:
    for _ in range(5):
        won, lost = await race(
            store.create_task(NewTask(agent_id=agent.id), claim=claim()) for store in stores
        )

        assert len(won) == 1
        assert lost == {AgentBusyError: RACERS - 1}
        await stores[-1].finish_task(won[0].id, 1, completed())

    assert (await stores[0].list_tasks()).total_count == 5


async def test_of_many_tasks_for_one_fire_exactly_one_is_stored(stores: list[Store], agent: Agent) -> None:
    for fire in range(5):
        new = new_task(agent.id, fire_at=datetime(2026, 1, 1, 0, fire, tzinfo=UTC))

        won, lost = await race(store.create_task(new) for store in stores)

        assert len(won) == 1
        assert lost == {DuplicateFireError: RACERS - 1}


async def test_a_slot_passes_from_task_to_task_under_load(stores: list[Store], agent: Agent) -> None:
    active: set[int] = set()
    order: list[int | None] = []

    async def work(store: Store) -> None:
        done = 0
        while done < 4:
            try:
                task = await running_task(store, agent.id, max_active=1)
            except AgentBusyError:
                continue
            assert not active
            active.add(task.id)
            await asyncio.sleep(0)
            order.append(task.id)
            active.remove(task.id)
            await store.finish_task(task.id, 1, completed(), artifact=state(task=task.id))
            done += 1

    await asyncio.gather(*(work(store) for store in stores))

    history = await stores[0].artifact_history(agent.id)
    assert [artifact.version for artifact in history] == list(range(4 * RACERS, 0, -1))
    assert [artifact.task_id for artifact in reversed(history)] == order


async def test_of_many_agents_of_one_name_exactly_one_is_stored(stores: list[Store]) -> None:
    won, lost = await race(store.create_agent(draft("same")) for store in stores)

    assert len(won) == 1
    assert lost == {AgentNameTakenError: RACERS - 1}
    assert (await stores[0].list_agents()).items == tuple(won)


async def test_of_many_renames_to_one_name_exactly_one_is_done(stores: list[Store]) -> None:
    agents = [await stores[0].create_agent(draft(f"a{n}")) for n in range(RACERS)]

    won, lost = await race(
        store.update_agent(agent.id, draft("same")) for store, agent in zip(stores, agents, strict=True)
    )

    assert len(won) == 1
    assert lost == {AgentNameTakenError: RACERS - 1}
    assert await stores[0].find_agent("same") == won[0]


async def test_no_update_of_an_agent_is_lost(stores: list[Store], agent: Agent) -> None:
    won, lost = await race(store.update_agent(agent.id, draft(code=f"{n}")) for n, store in enumerate(stores))
    assert lost == Counter()
    assert sorted(updated.version for updated in won) == list(range(2, RACERS + 2))

    won, lost = await race(
        store.update_agent(agent.id, draft(code=f"{n}"), expected_version=RACERS + 1)
        for n, store in enumerate(stores)
    )
    assert len(won) == 1
    assert lost == {VersionConflictError: RACERS - 1}
    assert await stores[0].get_agent(agent.id) == won[0]


async def test_artifacts_saved_at_once_get_versions_of_their_own(stores: list[Store], agent: Agent) -> None:
    tasks = [await running_task(stores[0], agent.id) for _ in stores]

    async def both(store: Store, task: Task) -> None:
        await asyncio.gather(
            store.save_artifact(agent.id, state(by="hand")),
            store.finish_task(task.id, 1, completed(), artifact=state(by=task.id)),
            store.newest_artifact(agent.id),
        )

    await asyncio.gather(*(both(store, task) for store, task in zip(stores, tasks, strict=True)))

    history = await stores[0].artifact_history(agent.id)
    assert [artifact.version for artifact in history] == list(range(2 * RACERS, 0, -1))
    assert [artifact.run_count for artifact in history] == list(range(2 * RACERS, 0, -1))
    by = Counter(artifact.task_id for artifact in history)
    assert by == {None: RACERS} | {task.id: 1 for task in tasks}


async def test_clears_and_saves_at_once_keep_the_history_whole(stores: list[Store], agent: Agent) -> None:
    for n in range(3):
        await asyncio.gather(
            *(
                store.clear_artifact(agent.id) if index % 2 else store.save_artifact(agent.id, state(n=n))
                for index, store in enumerate(stores)
            )
        )

    history = list(reversed(await stores[0].artifact_history(agent.id)))
    assert [artifact.version for artifact in history] == list(range(1, len(history) + 1))
    count = 0
    for artifact in history:
        count = 0 if artifact.cleared else count + 1
        assert artifact.run_count == count


async def test_either_the_holder_extends_or_another_takes_over(
    real_place: Place, stores: list[Store], agent: Agent
) -> None:
    outcomes = Counter[str]()
    for round_number in range(12):
        task = await running_task(stores[0], agent.id)
        # Each way of reaching the end of a lease must leave one winner. Staggered, so that either may be first.
        await real_place.clock.advance(LEASE_SECONDS)
        later = round_number % 3

        async def after(turns: int, call: Awaitable[T]) -> T:
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            return await call

        extended, taken, ended = await asyncio.gather(
            after(later, stores[0].extend_lease(task.id, 1, LEASE_SECONDS)),
            after(2 - later, take_over(stores[1], task)),
            after(1, stores[2].expire_task(task)),
            return_exceptions=True,
        )

        stored = await stores[3].get_task(task.id)
        winners = [not isinstance(extended, BaseException), taken is not None, ended is not None]
        if winners[1] or winners[2]:
            # An extension that came first would have defeated both.
            assert isinstance(extended, LeaseLostError)
            assert winners[1] != winners[2]
            assert stored == (taken or ended)
        else:
            assert winners[0]
            assert stored.due_at == extended
        outcomes[str(winners)] += 1
        if stored.status is TaskStatus.RUNNING:
            await stores[0].finish_task(task.id, stored.fence, completed())
    assert outcomes.total() == 12


async def test_either_the_holder_finishes_or_another_takes_over(
    real_place: Place, stores: list[Store], agent: Agent
) -> None:
    for _ in range(8):
        task = await running_task(stores[0], agent.id)
        before = len(await stores[0].artifact_history(agent.id))
        await real_place.clock.advance(LEASE_SECONDS)

        finished, taken = await asyncio.gather(
            stores[0].finish_task(task.id, 1, completed(), artifact=state(n=1)),
            take_over(stores[1], task),
            return_exceptions=True,
        )

        stored = await stores[2].get_task(task.id)
        saved = len(await stores[2].artifact_history(agent.id)) - before
        if taken is None:
            assert (stored, saved) == (finished, 1)
        else:
            assert isinstance(finished, LeaseLostError)
            assert (stored, saved) == (taken, 0)


async def test_a_holders_own_writes_do_not_disturb_each_other(stores: list[Store], agent: Agent) -> None:
    task = await running_task(stores[0], agent.id)
    chunks = [await chunk(stores[0], index) for index in range(20)]

    await asyncio.gather(
        *(stores[0].append_logs(task.id, 1, [piece]) for piece in chunks),
        *(stores[0].extend_lease(task.id, 1, 30 + n) for n in range(5)),
        *(stores[0].record_reason(task.id, 1, Reason.TIMEOUT, str(n)) for n in range(5)),
    )

    assert await stores[1].read_logs(task.id) == chunks
    stored = await stores[1].get_task(task.id)
    assert stored.attempt is not None
    assert stored.attempt.reason is Reason.TIMEOUT
    assert (await stores[0].finish_task(task.id, 1, completed())).status is TaskStatus.COMPLETED


async def test_a_deleted_agent_leaves_no_task_behind_however_they_race(stores: list[Store]) -> None:
    for n in range(8):
        agent = await stores[0].create_agent(draft(f"agent {n}"))
        for _ in range(n % 3):
            old = await running_task(stores[0], agent.id)
            await stores[0].finish_task(old.id, 1, completed(), artifact=state())

        created, deleted, saved = await asyncio.gather(
            stores[1].create_task(NewTask(agent_id=agent.id)),
            stores[2].delete_agent(agent.id),
            stores[3].save_artifact(agent.id, state()),
            return_exceptions=True,
        )

        tasks = await stores[4].list_tasks(agent_id=agent.id)
        if deleted is None:
            assert isinstance(created, AgentNotFoundError)
            assert isinstance(saved, HandoffArtifact | AgentNotFoundError)
            assert tasks.total_count == 0
            assert await stores[4].artifact_history(agent.id) == []
            with pytest.raises(AgentNotFoundError):
                await stores[4].get_agent(agent.id)
        else:
            assert isinstance(deleted, AgentBusyError)
            assert await stores[4].get_agent(agent.id) == agent
            if isinstance(created, BaseException):
                # It saw the mark of a deletion that then found it in the way.
                assert isinstance(created, AgentNotFoundError)


async def test_an_agent_may_be_deleted_by_several_at_once(stores: list[Store], agent: Agent) -> None:
    for _ in range(3):
        task = await running_task(stores[0], agent.id)
        await stores[0].finish_task(task.id, 1, completed())

    _, lost = await race(store.delete_agent(agent.id) for store in stores)

    assert set(lost) <= {AgentNotFoundError}
    assert (await stores[0].list_tasks()).total_count == 0
    assert (await stores[0].list_agents()).total_count == 0


async def test_a_killed_process_leaves_every_promise_kept(real_place: Place) -> None:
    store = real_place.make()
    await store.open()
    agent = await store.create_agent(draft())
    code = f"""
        while True:
            task = await store.create_task(
                NewTask(agent_id={agent.id}), claim=Claim(owner=str(os.getpid()), lease_seconds=0.05)
            )
            at = await store.now()
            await store.append_logs(task.id, 1, [LogChunk(seq=log_seq(1, 0), stream="stdout", data=b"x" * 9000, at=at)])
            await store.finish_task(
                task.id, 1, Outcome(reason=Reason.COMPLETED), artifact=NewArtifact(state={{"task": task.id}})
            )
            print(task.id, flush=True)
    """
    chance = random.Random(7)
    reported: list[int] = []
    for _ in range(4):
        process = await start_process(real_place, code)
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(chance.randint(3, 12))]
        await asyncio.sleep(chance.random() * 0.01)
        process.kill()
        lines += (await process.stdout.read()).splitlines(keepends=True)
        reported += [int(line) for line in lines if line.endswith(b"\n")]
        await process.wait()
        # A server still does what it was asked before the kill.
        await asyncio.sleep(0.1)
        left = (await store.list_tasks(agent_id=agent.id, status=TaskStatus.RUNNING)).items
        for task in left:
            with suppress(LeaseLostError):
                await store.finish_task(task.id, 1, completed(result="left"))

    tasks = (await store.list_tasks(limit=1000)).items
    ended = {task.id for task in tasks if task.result != "left"}
    assert set(reported) <= ended
    assert {task.status for task in tasks} == {TaskStatus.COMPLETED}
    history = await store.artifact_history(agent.id, limit=1000)
    assert {artifact.task_id for artifact in history} == ended
    assert [artifact.state["task"] for artifact in history] == [artifact.task_id for artifact in history]
    assert [artifact.version for artifact in history] == list(range(len(history), 0, -1))
    for task_id in reported:
        assert len(await store.read_logs(task_id)) == 1
