from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

import pytest
from tests.contract.places import Place, claim, completed, draft, new_task, running_task, state
from tests.contract.processes import start_process

from harness.audit import AuditDraft
from harness.errors import SchemaTooNewError, StoreError, StoreUnavailableError
from harness.models import Agent, NewTask, Reason, ScheduleState, Task, TaskStatus
from harness.ports import Store
from harness.retention import Expiry
from harness.secrets.cipher import SecretCipher
from harness.tokens import TokenDraft, hash_secret

CIPHERTEXT = SecretCipher([bytes(32)], store_id="store").encrypt("key", "a value that nobody knows")


def every_call(store: Store, task: Task) -> dict[str, Awaitable[object]]:
    """Call every method of the port once."""
    return {
        "now": store.now(),
        "create_agent": store.create_agent(draft("every")),
        "get_agent": store.get_agent(1),
        "find_agent": store.find_agent("agent"),
        "list_agents": store.list_agents(),
        "update_agent": store.update_agent(1, draft("agent")),
        "delete_agent": store.delete_agent(1),
        "create_task": store.create_task(NewTask(agent_id=1, fire_at=task.created_at), claim=claim()),
        "get_task": store.get_task(1),
        "list_tasks": store.list_tasks(),
        "expired_tasks": store.expired_tasks(),
        "claim_tasks": store.claim_tasks(claim(), limit=1),
        "next_due_at": store.next_due_at(),
        "queue_stats": store.queue_stats(),
        "next_schedules": store.next_schedules(),
        "extend_lease": store.extend_lease(1, 1, 30),
        "record_reason": store.record_reason(1, 1, Reason.TIMEOUT),
        "finish_task": store.finish_task(1, 1, completed(), artifact=state()),
        "expire_task": store.expire_task(task),
        "retry_task": store.retry_task(1, 1, completed(), due_at=task.created_at),
        "hand_back_task": store.hand_back_task(1, 1, "shut down"),
        "reopen_task": store.reopen_task(1, due_at=task.created_at, max_retries=3),
        "cancel_task": store.cancel_task(1),
        "cancel_requests": store.cancel_requests("runner-1"),
        "unsynced_schedules": store.unsynced_schedules(),
        "get_schedule": store.get_schedule(1),
        "put_schedules": store.put_schedules(
            [ScheduleState(agent_id=1, agent_version=1, anchor_at=task.created_at)]
        ),
        "due_schedules": store.due_schedules(),
        "due_marks": store.due_marks(),
        "upcoming_schedules": store.upcoming_schedules(after=task.created_at, until=task.created_at),
        "fire_schedules": store.fire_schedules([]),
        "append_logs": store.append_logs(1, 1, []),
        "read_logs": store.read_logs(1),
        "append_samples": store.append_samples(1, 1, []),
        "read_samples": store.read_samples(1),
        "save_artifact": store.save_artifact(1, state()),
        "newest_artifact": store.newest_artifact(1),
        "load_agents": store.load_agents([1]),
        "clear_artifact": store.clear_artifact(1),
        "artifact_history": store.artifact_history(1),
        "put_secret": store.put_secret("key", CIPHERTEXT),
        "replace_secret": store.replace_secret("key", CIPHERTEXT, CIPHERTEXT),
        "get_secrets": store.get_secrets(["key"]),
        "list_secrets": store.list_secrets(),
        "delete_secret": store.delete_secret("key"),
        "agent_ids": store.agent_ids(),
        "purge": store.purge(1, Expiry(task.created_at), limit=1),
        "purgeable": store.purgeable(1, Expiry(task.created_at)),
        "create_token": store.create_token(TokenDraft(name="ci", scope="run"), hash_secret("s")),
        "find_token": store.find_token(1),
        "has_tokens": store.has_tokens(),
        "list_tokens": store.list_tokens(),
        "revoke_token": store.revoke_token(1),
        "touch_token": store.touch_token(1),
        "append_audit": store.append_audit(AuditDraft(actor="ci", action="x", status=200), max_entries=9),
        "list_audit": store.list_audit(),
    }


def a_task(place: Place) -> Task:
    now = place.clock.now()
    return Task(id=1, agent_id=1, status=TaskStatus.PENDING, scheduled_at=now, created_at=now, due_at=now)


def test_every_call_is_every_method_of_the_port(place: Place) -> None:
    calls = every_call(place.make(), a_task(place))
    for call in calls.values():
        assert inspect.iscoroutine(call)
        call.close()

    methods = {name for name, member in vars(Store).items() if inspect.iscoroutinefunction(member)}
    assert set(calls) == methods - {"open", "close"}


async def test_a_store_that_is_not_open_says_so(place: Place) -> None:
    store = place.make()
    with pytest.raises(StoreUnavailableError, match="open"):
        _ = store.store_id
    for _ in range(2):
        for name, call in every_call(store, a_task(place)).items():
            if name == "now":
                # The machine's clock needs no open store; the server's does.
                await asyncio.gather(call, return_exceptions=True)
                continue
            with pytest.raises(StoreUnavailableError, match="not open"):
                await call
        await store.open()
        await store.close()


async def test_closing_is_idempotent_and_fine_before_opening(place: Place) -> None:
    store = place.make()
    await store.close()
    await store.close()
    await store.open()
    await store.close()
    await store.close()


async def test_opening_twice_changes_nothing(store: Store, agent: Agent) -> None:
    store_id = store.store_id

    await store.open()

    assert store.store_id == store_id
    assert await store.get_agent(agent.id) == agent


async def test_opening_twice_at_once_is_opening_once(place: Place) -> None:
    store = place.make()

    await asyncio.gather(store.open(), store.open(), store.open())

    await store.create_agent(draft())


async def test_data_outlives_the_store_object(shared_place: Place) -> None:
    first = shared_place.make()
    await first.open()
    agent = await first.create_agent(draft())
    task = await running_task(first, agent.id)
    store_id = first.store_id
    await first.close()

    second = shared_place.make()
    await second.open()

    assert second.store_id == store_id
    assert await second.get_agent(agent.id) == agent
    assert await second.get_task(task.id) == task
    await first.open()
    assert first.store_id == store_id
    assert await first.get_task(task.id) == task


async def test_every_store_has_an_id_of_its_own(place: Place) -> None:
    store = place.make()
    await store.open()

    assert len(store.store_id) == 32
    assert store.store_id.isalnum()


async def test_a_store_of_a_newer_release_is_left_alone(shared_place: Place) -> None:
    older = shared_place.make()
    await older.open()
    await older.create_agent(draft())
    await older.close()
    await shared_place.pretend_newer()
    before = await shared_place.content()

    store = shared_place.make()
    with pytest.raises(
        SchemaTooNewError, match=r"schema version 7, and this release knows versions up to 1; install"
    ):
        await store.open()

    assert await shared_place.content() == before
    with pytest.raises(StoreUnavailableError):
        await store.list_agents()


async def test_a_record_that_something_else_changed_is_named(shared_place: Place) -> None:
    store = shared_place.make()
    await store.open()
    agent = await store.create_agent(draft())
    task = await running_task(store, agent.id)
    await shared_place.spoil_task(task.id)

    with pytest.raises(StoreError, match=f"stored task {task.id} is not readable .*dreaming.*restore"):
        await store.get_task(task.id)


async def test_stores_opened_at_once_agree_on_their_id(shared_place: Place) -> None:
    stores = [shared_place.make() for _ in range(8)]

    await asyncio.gather(*(store.open() for store in stores))

    assert len({store.store_id for store in stores}) == 1
    agents = await asyncio.gather(
        *(store.create_agent(draft(f"agent {index}")) for index, store in enumerate(stores))
    )
    assert len({agent.id for agent in agents}) == 8


async def test_processes_may_open_a_fresh_store_at_once(real_place: Place) -> None:
    code = """
        agent = await store.create_agent(AgentDraft(name=f"by {os.getpid()}", code="1"))
        print(store.store_id, agent.id)
    """
    processes = [await start_process(real_place, code) for _ in range(4)]

    answers = [await process.communicate() for process in processes]

    assert [process.returncode for process in processes] == [0] * 4
    lines = [out.decode().split() for out, _ in answers]
    assert len({store_id for store_id, _ in lines}) == 1
    assert len({agent_id for _, agent_id in lines}) == 4


async def test_times_are_whole_milliseconds_in_utc(place: Place) -> None:
    store = place.make()
    await store.open()
    before = await store.now()

    await place.clock.advance(1.2345678)

    now = await store.now()
    assert now.tzinfo is UTC
    assert now.microsecond % 1000 == 0
    assert abs(now - before - timedelta(seconds=1.2345678)) < timedelta(milliseconds=2)


def fire_of(agent: Agent, number: int) -> NewTask:
    """Return a task for the agent's fire of that number."""
    return new_task(agent.id, fire_at=datetime(2026, 1, 1, 0, number, tzinfo=UTC))


async def test_a_cancelled_call_leaves_a_working_store(place: Place) -> None:
    store = place.make()
    await store.open()
    agent = await store.create_agent(draft())
    # After every number of turns of the event loop that a call may take.
    for turns in range(12):
        calls = [
            asyncio.ensure_future(store.create_task(fire_of(agent, turns))),
            asyncio.ensure_future(store.save_artifact(agent.id, state(n=turns))),
            asyncio.ensure_future(store.list_tasks()),
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

        task = await running_task(store, agent.id)
        await store.finish_task(task.id, 1, completed(), artifact=state(turns=turns))

    page = await store.list_tasks(status=TaskStatus.COMPLETED)
    assert page.total_count == 12
    history = await store.artifact_history(agent.id)
    assert [artifact.version for artifact in history] == list(range(len(history), 0, -1))
