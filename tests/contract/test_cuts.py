"""MongoDB writes one document at a time: cut every operation between any two writes, and look with another store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.contract.places import (
    MONGOMOCK,
    WIRE,
    MongoPlace,
    Place,
    chunk,
    claim,
    completed,
    draft,
    failed_task,
    new_task,
    running_task,
    state,
)

from harness.errors import AgentNotFoundError, DuplicateFireError, StoreUnavailableError, TaskNotFoundError
from harness.models import Agent, NewTask, Task, TaskStatus
from harness.ports import Store
from harness.store.mongo import MongoStore

pytestmark = pytest.mark.parametrize("shared_place", [MONGOMOCK, WIRE], indirect=True)

WRITES = {"insert", "insert_missing", "update_one", "delete", "next_number"}

#: More writes than any operation here takes.
MANY = 20


class Killed(BaseException):
    """The process ends here; nothing in the product may catch this."""


class DyingDatabase:
    """Passes calls on to a database, until the process dies before a write."""

    def __init__(self, database: Any, writes_left: int, error: Callable[[], BaseException] = Killed) -> None:
        self.database = database
        self.writes_left = writes_left
        self.error = error

    def __getattr__(self, name: str) -> Any:
        if name in WRITES:
            if not self.writes_left:
                raise self.error()
            self.writes_left -= 1
        return getattr(self.database, name)


async def two_stores(place: Place) -> tuple[MongoStore, Store]:
    dying, other = place.make(), place.make()
    await dying.open()
    await other.open()
    assert isinstance(dying, MongoStore)
    return dying, other


async def is_cut(store: MongoStore, writes: int, call: Callable[[], Awaitable[object]]) -> bool:
    """Run a call on a store that dies before write number `writes`, counted from 0; return whether it did."""
    alive = store._database
    store._database = DyingDatabase(alive, writes)  # type: ignore[assignment]
    try:
        await call()
    except Killed:
        return True
    finally:
        store._database = alive
    return False


async def test_a_cut_finish_is_done_or_not_done(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    saved = 0
    for writes in range(MANY):
        task = await running_task(other, agent.id)

        async def finish(task: Task = task) -> None:
            await dying.finish_task(task.id, 1, completed(), artifact=state(task=task.id))

        was_cut = await is_cut(dying, writes, finish)

        stored = await other.get_task(task.id)
        if writes == 0:
            assert stored == task
            assert await other.newest_artifact(agent.id) is None
            await other.finish_task(task.id, 1, completed())
            continue
        saved += 1
        assert stored.status is TaskStatus.COMPLETED
        # Seen at once, by everybody, and still so when asked again.
        for _ in range(2):
            newest = await other.newest_artifact(agent.id)
            assert newest is not None
            assert (newest.task_id, newest.state, newest.version) == (task.id, {"task": task.id}, saved)
            assert (newest.run_count, newest.created_at) == (saved, stored.completed_at)
        assert len(await other.artifact_history(agent.id)) == saved
        if not was_cut:
            break
    else:
        pytest.fail("finish_task takes more writes than expected")
    assert saved == 3


@pytest.mark.parametrize("next_call", ["save", "clear", "history", "load", "finish"])
async def test_what_follows_a_cut_finish_comes_after_its_artifact(
    shared_place: Place, next_call: str
) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    for writes in (1, 2):
        task = await running_task(other, agent.id)
        following = await running_task(other, agent.id)
        before = [artifact.task_id for artifact in await other.artifact_history(agent.id)]

        async def finish(task: Task = task) -> None:
            await dying.finish_task(task.id, 1, completed(), artifact=state(n=1))

        assert await is_cut(dying, writes, finish)
        added: list[int | None] = []
        if next_call == "save":
            added = [(await other.save_artifact(agent.id, state(n=2))).task_id]
        elif next_call == "clear":
            await other.clear_artifact(agent.id)
            added = [None]
        elif next_call == "load":
            loaded = (await other.load_agents([agent.id]))[agent.id].artifact
            assert loaded is not None
            assert loaded.task_id == task.id
        elif next_call == "finish":
            await other.finish_task(following.id, 1, completed(), artifact=state(n=2))
            added = [following.id]

        history = await other.artifact_history(agent.id)
        assert [artifact.task_id for artifact in history] == [*added, task.id, *before]
        assert [artifact.version for artifact in history] == list(range(len(history), 0, -1))
        if next_call == "clear":
            assert history[0].cleared
            assert await other.newest_artifact(agent.id) is None


async def test_several_cut_finishes_are_placed_in_the_order_of_their_ends(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    tasks = [await running_task(other, agent.id) for _ in range(4)]
    ended = [tasks[2], tasks[0], tasks[3], tasks[1]]
    for task in ended:
        await shared_place.clock.advance(1)

        async def finish(task: Task = task) -> None:
            # Without an agent's document in hand: ends the task, and dies before moving what is pending.
            dying._place_pending_artifacts = nothing  # type: ignore[method-assign]
            await dying.finish_task(task.id, 1, completed(), artifact=state(task=task.id))

        async def nothing(agent_id: int) -> None:
            pass

        await finish()

    history = await other.artifact_history(agent.id)

    assert [artifact.task_id for artifact in reversed(history)] == [task.id for task in ended]


async def test_a_finish_is_done_though_the_store_goes_away_before_its_artifact_is_in_place(
    shared_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    task = await running_task(other, agent.id)
    alive = dying._database
    dying._database = DyingDatabase(alive, 1, lambda: StoreUnavailableError("gone"))  # type: ignore[assignment]

    done = await dying.finish_task(task.id, 1, completed(), artifact=state(n=1))

    dying._database = alive
    assert done == await other.get_task(task.id)
    assert [record.__dict__["action"] for record in caplog.records] == ["artifact_pending"]
    newest = await other.newest_artifact(agent.id)
    assert newest is not None
    assert newest.state == {"n": 1}


async def test_a_task_whose_artifact_is_pending_can_be_read_and_deleted(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    task = await running_task(other, agent.id)

    async def finish() -> None:
        await dying.finish_task(task.id, 1, completed(), artifact=state(n=1))

    assert await is_cut(dying, 1, finish)
    assert (await other.list_tasks()).items == (await other.get_task(task.id),)
    await other.delete_agent(agent.id)

    assert await other.artifact_history(agent.id) == []


async def test_a_cut_deletion_can_be_repeated(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    for writes in range(MANY):
        agent = await other.create_agent(draft(f"agent {writes}"))
        tasks = [await running_task(other, agent.id) for n in range(3)]
        for task in tasks:
            await other.append_logs(task.id, 1, [await chunk(other, 0)])
            await other.finish_task(task.id, 1, completed(), artifact=state())

        was_cut = await is_cut(dying, writes, lambda agent=agent: dying.delete_agent(agent.id))  # type: ignore[misc]

        if was_cut:
            assert await other.find_agent(agent.name) == agent
            if writes:
                await nothing_is_added(other, agent)
            await other.delete_agent(agent.id)
        with pytest.raises(AgentNotFoundError):
            await other.delete_agent(agent.id)
        for task in tasks:
            with pytest.raises(TaskNotFoundError):
                await other.get_task(task.id)
            assert await other.read_logs(task.id) == []
        assert await other.artifact_history(agent.id) == []
        assert (await other.list_agents()).total_count == 0
        if not was_cut:
            break
    else:
        pytest.fail("delete_agent takes more writes than expected")
    assert writes > 3


async def nothing_is_added(store: Store, agent: Agent) -> None:
    for call in (
        store.create_task(NewTask(agent_id=agent.id)),
        store.save_artifact(agent.id, state()),
        store.update_agent(agent.id, draft("renamed")),
    ):
        with pytest.raises(
            AgentNotFoundError, match="is being deleted; if that was interrupted, delete it once more"
        ):
            await call


async def test_a_cut_creation_is_done_or_not_done(shared_place: Place) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    for writes in range(MANY):
        new = new_task(agent.id, fire_at=datetime(2026, 1, 1, 0, writes, tzinfo=UTC))

        was_cut = await is_cut(dying, writes, lambda new=new: dying.create_task(new, claim=claim()))  # type: ignore[misc]

        if not was_cut:
            break
        task = await other.create_task(new, claim=claim())
        with pytest.raises(DuplicateFireError, match=f"task {task.id}"):
            await other.create_task(new)
    else:
        pytest.fail("create_task takes more writes than expected")
    assert (await other.list_tasks()).total_count == writes + 1


@pytest.mark.parametrize(
    "call",
    [
        "claim",
        "extend",
        "expire",
        "retry",
        "hand back",
        "reopen",
        "cancel",
        "reason",
        "save",
        "clear",
        "update",
        "agent",
    ],
)
async def test_other_writes_are_one_write(shared_place: Place, call: str) -> None:
    dying, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    await other.save_artifact(agent.id, state())
    failed = await failed_task(other, agent.id)
    task = await running_task(other, agent.id)
    await other.create_task(new_task(agent.id))
    # The clocks of two stores differ by what a round trip took; the expiry of a lease is not within that.
    await shared_place.clock.advance(60 if call == "expire" else 1)
    before = await shared_place.content()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "claim": lambda: dying.claim_tasks(claim(), limit=1),
        "extend": lambda: dying.extend_lease(task.id, 1, 99),
        "expire": lambda: dying.expire_task(task),
        "retry": lambda: dying.retry_task(task.id, 1, completed(), due_at=task.created_at),
        "hand back": lambda: dying.hand_back_task(task.id, 1, "shut down"),
        "reopen": lambda: dying.reopen_task(failed.id, due_at=task.created_at, max_retries=1),
        "cancel": lambda: dying.cancel_task(task.id),
        "reason": lambda: dying.record_reason(task.id, 1, completed().reason),
        "save": lambda: dying.save_artifact(agent.id, state(n=2)),
        "clear": lambda: dying.clear_artifact(agent.id),
        "update": lambda: dying.update_agent(agent.id, draft("renamed")),
        "agent": lambda: dying.create_agent(draft("another")),
    }

    assert await is_cut(dying, 0, calls[call])
    assert await shared_place.content() == before

    # The number of a new agent is the one write that may come without the other.
    assert not await is_cut(dying, 2 if call == "agent" else 1, calls[call])
    assert await shared_place.content() != before


async def test_an_artifact_that_cannot_be_placed_keeps_no_other_agent_from_being_loaded(
    shared_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    dying, other = await two_stores(shared_place)
    stuck, sound = [await other.create_agent(draft(name)) for name in ("stuck", "sound")]
    await other.save_artifact(stuck.id, state(n=0))
    task = await running_task(other, stuck.id)

    async def finish() -> None:
        await dying.finish_task(task.id, 1, completed(), artifact=state(n=1))

    assert await is_cut(dying, 1, finish)
    assert isinstance(shared_place, MongoPlace)
    await shared_place.raw()["artifacts"].update_many({"agent_id": stuck.id}, {"$set": {"state": "dreams"}})

    assert list(await other.load_agents([stuck.id, sound.id])) == [sound.id]
    assert "agent_unreadable" in {record.__dict__.get("action") for record in caplog.records}


class StutteringDatabase:
    """Has every write done twice, as a driver does that got no answer to the first, from a server that keeps no record
    of it."""

    def __init__(self, database: Any) -> None:
        self.database = database

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.database, name)
        if name not in ("insert", "update_one"):
            return call

        async def twice(*args: Any, **kwargs: Any) -> Any:
            await call(*args, **kwargs)
            return await call(*args, **kwargs)

        return twice


REPEATED: dict[str, Callable[[Store, Agent, Task, Task], Awaitable[object]]] = {
    "create": lambda store, agent, _running, _failed: store.create_task(new_task(agent.id)),
    "create and claim": lambda store, agent, _running, _failed: store.create_task(
        NewTask(agent_id=agent.id, max_active=3), claim=claim()
    ),
    "create a fire": lambda store, agent, running, _failed: store.create_task(
        new_task(agent.id, fire_at=running.created_at)
    ),
    "finish": lambda store, _agent, running, _failed: store.finish_task(
        running.id, 1, completed(), artifact=state(n=1)
    ),
    "retry": lambda store, _agent, running, _failed: store.retry_task(
        running.id, 1, completed(), due_at=running.created_at
    ),
    "hand back": lambda store, _agent, running, _failed: store.hand_back_task(running.id, 1, "shut down"),
    "reopen": lambda store, _agent, running, failed: store.reopen_task(
        failed.id, due_at=running.created_at, max_retries=1
    ),
    "cancel": lambda store, _agent, running, _failed: store.cancel_task(running.id),
    "agent": lambda store, _agent, _running, _failed: store.create_agent(draft("another")),
}


@pytest.mark.parametrize("call", REPEATED.values(), ids=REPEATED.keys())
async def test_a_write_that_the_driver_repeats_has_the_result_of_one(
    shared_place: Place, call: Callable[[Store, Agent, Task, Task], Awaitable[object]]
) -> None:
    store, other = await two_stores(shared_place)
    agent = await other.create_agent(draft())
    failed = await failed_task(other, agent.id)
    running = await running_task(other, agent.id)
    count = (await other.list_tasks()).total_count
    alive = store._database
    store._database = StutteringDatabase(alive)  # type: ignore[assignment]

    made = await call(store, agent, running, failed)

    store._database = alive
    if isinstance(made, Task):
        assert made == await other.get_task(made.id)
        assert made.retry_count <= 1
        is_new = made.id not in (failed.id, running.id)
        assert (await other.list_tasks()).total_count == count + is_new
    else:
        assert made == await other.find_agent("another")
