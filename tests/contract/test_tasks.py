from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from tests.contract.places import LEASE_SECONDS, Place, claim, completed, draft, new_task, running_task, state

from harness.errors import (
    DuplicateFireError,
    InvalidInputError,
    LeaseLostError,
    StateRejectedError,
    TaskNotFoundError,
)
from harness.jsontext import MAX_DEPTH
from harness.models import (
    Agent,
    Attempt,
    NewArtifact,
    NewTask,
    Outcome,
    Reason,
    SkipReason,
    Task,
    TaskStatus,
    Usage,
)
from harness.ports import Store

NOON = datetime(2026, 1, 1, 12, 0, 0, 500_999, tzinfo=UTC)


def nested(depth: int) -> dict[str, object]:
    value: dict[str, object] = {"leaf": None}
    for _ in range(depth - 1):
        value = {"in": value}
    return value


#: Everything that is valid JSON and that one database or another would spoil as a native value.
ODD_JSON = {
    "$set": {"$inc": 1},
    "a.b": {"": {"": ""}},
    "_id": None,
    "big": 10**40,
    "negative": -(10**40),
    "floats": [0.1, -0.0, 1e308, 5e-324, 1.0],
    "text": '\0 \u2028 \U0001f600 \\ " \x7f',
    "nul\0key": [[], {}, [[]]],
    "é": "é",
    "e\u0301": "e\u0301",
    "deep": nested(MAX_DEPTH - 1),
    "__proto__": True,
}


async def test_a_new_task_is_pending_and_due_at_once(store: Store, agent: Agent) -> None:
    task = await store.create_task(NewTask(agent_id=agent.id))

    now = await store.now()
    assert task == await store.get_task(task.id)
    expected = Task(
        id=1, agent_id=agent.id, status=TaskStatus.PENDING, scheduled_at=now, created_at=now, due_at=now
    )  # fmt: skip
    assert task == expected


async def test_a_task_may_start_later_than_it_is_scheduled(store: Store, agent: Agent) -> None:
    later = NOON + timedelta(seconds=7)

    task = await store.create_task(NewTask(agent_id=agent.id, scheduled_at=NOON, due_at=later))

    assert task == await store.get_task(task.id)
    assert (task.scheduled_at.microsecond, task.due_at) == (500_000, later.replace(microsecond=500_000))


async def test_a_task_created_with_a_claim_already_runs(store: Store, agent: Agent) -> None:
    task = await store.create_task(NewTask(agent_id=agent.id), claim=claim("me"))

    now = await store.now()
    assert task == await store.get_task(task.id)
    assert (task.status, task.fence, task.lease_owner, task.started_at) == (TaskStatus.RUNNING, 1, "me", now)
    assert task.due_at == now + timedelta(seconds=LEASE_SECONDS)
    assert task.attempts == (Attempt(number=1, due_at=now, started_at=now),)


async def test_what_a_task_was_asked_for_is_kept(store: Store, agent: Agent) -> None:
    at = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5)))

    task = await store.create_task(
        NewTask(
            agent_id=agent.id,
            trigger="schedule",
            scheduled_at=at,
            context=ODD_JSON,
            save_handoff=False,
            fire_at=at,
            priority=-7,
            max_retries=5,
        )
    )

    assert task == await store.get_task(task.id)
    assert (task.trigger, task.save_handoff) == ("schedule", False)
    assert (task.priority, task.max_retries, task.retry_count) == (-7, 5, 0)
    assert (
        task.scheduled_at == task.due_at == task.fire_at == datetime(2030, 1, 1, 7, 0, 0, 123000, tzinfo=UTC)
    )
    assert task.scheduled_at.tzinfo is UTC
    assert task.context == ODD_JSON
    assert task.context is not None
    assert list(task.context) == list(ODD_JSON)


async def test_an_empty_context_is_not_the_same_as_none(store: Store, agent: Agent) -> None:
    task = await store.create_task(NewTask(agent_id=agent.id, context={}))

    assert (await store.get_task(task.id)).context == {}


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"x": float("nan")}, r"context\.x is nan"),
        ({"x": {1: 2}}, "keys are strings"),
        ({"x": "\ud800"}, "lone surrogate"),
        ({"x": datetime(2026, 1, 1, tzinfo=UTC)}, "datetime"),
        (nested(MAX_DEPTH + 1), "nested deeper than 64"),
        ({"x": "x" * 4_200_000}, "more than the limit"),
    ],
)
async def test_a_context_that_json_cannot_hold_is_refused(
    store: Store, agent: Agent, context: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        await store.create_task(NewTask(agent_id=agent.id, context=context))

    assert (await store.list_tasks()).total_count == 0


async def test_a_fire_has_one_task_for_ever(store: Store, agent: Agent) -> None:
    other = await store.create_agent(draft("other"))
    first = await store.create_task(new_task(agent.id, fire_at=NOON), claim=claim())
    again = new_task(agent.id, fire_at=NOON.astimezone(timezone(timedelta(hours=5))))
    message = f"task {first.id} .*{agent.id}:2026-01-01T12:00:00.500000Z"

    with pytest.raises(DuplicateFireError, match=message):
        await store.create_task(again)
    await store.finish_task(first.id, 1, completed())
    for new in (again, again.model_copy(update={"skip_reason": SkipReason.MISSED})):
        with pytest.raises(DuplicateFireError, match=message):
            await store.create_task(new)

    assert (await store.list_tasks()).total_count == 1
    await store.create_task(new_task(agent.id, fire_at=NOON + timedelta(milliseconds=1)))
    await store.create_task(new_task(other.id, fire_at=NOON))


async def test_a_duplicate_fire_says_so_also_while_the_agent_is_busy(store: Store, agent: Agent) -> None:
    new = new_task(agent.id, fire_at=NOON, max_active=1)
    await store.create_task(new)

    with pytest.raises(DuplicateFireError):
        await store.create_task(new)


async def test_tasks_without_a_fire_do_not_exclude_each_other(store: Store, agent: Agent) -> None:
    for _ in range(3):
        await store.create_task(new_task(agent.id))

    assert (await store.list_tasks()).total_count == 3


@pytest.mark.parametrize("task_id", [0, -1, 2, 2**63, 10**40])
async def test_an_unknown_task_is_named_by_its_id(store: Store, agent: Agent, task_id: int) -> None:
    await store.create_task(NewTask(agent_id=agent.id))

    with pytest.raises(TaskNotFoundError, match=str(task_id)):
        await store.get_task(task_id)
    assert await store.read_logs(task_id) == []
    with pytest.raises(LeaseLostError, match=str(task_id)):
        await store.extend_lease(task_id, 1, 1)
    with pytest.raises(TaskNotFoundError, match=str(task_id)):
        await store.cancel_task(task_id)
    with pytest.raises(TaskNotFoundError, match=str(task_id)):
        await store.reopen_task(task_id, due_at=NOON, max_retries=1)
    with pytest.raises(LeaseLostError, match=str(task_id)):
        await store.append_logs(task_id, 1, [])


async def test_tasks_are_listed_by_falling_id_with_filters(store: Store, agent: Agent) -> None:
    other = await store.create_agent(draft("other"))
    ids: dict[tuple[int, TaskStatus], list[int]] = {}
    for n in range(12):
        owner = agent if n % 3 else other
        task = await running_task(store, owner.id)
        if n % 2:
            task = await store.finish_task(task.id, 1, completed())
        ids.setdefault((owner.id, task.status), []).insert(0, task.id)

    everything = await store.list_tasks()
    assert [task.id for task in everything.items] == list(range(12, 0, -1))
    for (agent_id, status), expected in ids.items():
        page = await store.list_tasks(agent_id=agent_id, status=status)
        assert [task.id for task in page.items] == expected
        assert page.total_count == len(expected)
        part = await store.list_tasks(agent_id=agent_id, status=status, limit=1, offset=1)
        assert [task.id for task in part.items] == expected[1:2]
        assert (part.total_count, part.limit, part.offset) == (len(expected), 1, 1)
    assert (await store.list_tasks(agent_id=agent.id)).total_count == 8
    assert (await store.list_tasks(status=TaskStatus.COMPLETED)).total_count == 6
    assert (await store.list_tasks(status=TaskStatus.SKIPPED)).items == ()
    assert everything.items[0] == await store.get_task(12)


async def test_a_finished_task_says_how_it_ended(place: Place, store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id, max_active=1)
    await place.clock.advance(2.5)
    usage = Usage(
        peak_memory_bytes=2**40,
        cpu_seconds=0.25,
        wall_seconds=2.5,
        container_start_seconds=0.1,
        output_bytes=7,
    )

    done = await store.finish_task(
        task.id,
        1,
        Outcome(
            reason=Reason.EXIT_NONZERO,
            exit_code=3,
            result="last line",
            error="exit code 3",
            output_truncated=True,
            usage=usage,
        ),
    )

    now = await store.now()
    assert done == await store.get_task(task.id)
    assert (done.status, done.reason, done.completed_at) == (TaskStatus.FAILED, Reason.EXIT_NONZERO, now)
    assert (done.result, done.error, done.due_at, done.lease_owner) == (
        "last line",
        "exit code 3",
        None,
        None,
    )
    assert done.attempts == (
        Attempt(
            number=1,
            due_at=task.created_at,
            started_at=task.created_at,
            ended_at=now,
            reason=Reason.EXIT_NONZERO,
            exit_code=3,
            error="exit code 3",
            output_truncated=True,
            usage=usage,
        ),
    )


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_reason_leads_to_its_final_status(store: Store, agent: Agent, reason: Reason) -> None:
    task = await running_task(store, agent.id)

    done = await store.finish_task(task.id, 1, Outcome(reason=reason))

    assert (done.status, done.reason) == (reason.status, reason)
    assert done.status.is_final


async def test_a_final_status_is_final(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    done = await store.finish_task(task.id, 1, completed())

    with pytest.raises(LeaseLostError, match="completed, not running"):
        await store.finish_task(task.id, 1, Outcome(reason=Reason.LOST), artifact=state(late=True))
    with pytest.raises(LeaseLostError):
        await store.record_reason(task.id, 1, Reason.TIMEOUT)
    with pytest.raises(LeaseLostError):
        await store.extend_lease(task.id, 1, 60)
    with pytest.raises(LeaseLostError):
        await store.retry_task(task.id, 1, completed(), due_at=await store.now())
    with pytest.raises(LeaseLostError):
        await store.hand_back_task(task.id, 1, "shut down")
    assert await store.claim_tasks(claim(), limit=10) == []
    assert await store.cancel_task(task.id) == done

    assert await store.get_task(task.id) == done
    assert await store.artifact_history(agent.id) == []


@pytest.mark.parametrize("text", ["", "é\0\U0001f600", "\ud800 lone"])
async def test_any_output_can_be_a_result(store: Store, agent: Agent, text: str) -> None:
    task = await running_task(store, agent.id)

    done = await store.finish_task(task.id, 1, completed(result=text, error=text), artifact=state())

    assert done == await store.get_task(task.id)
    assert done.result == text.replace("\ud800", "?")


async def test_a_huge_result_is_cut_and_never_fails_the_final_write(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.record_reason(task.id, 1, Reason.TIMEOUT, "e" * 20_000_000)

    done = await store.finish_task(task.id, 1, completed(result="x" * 20_000_000, error="y" * 20_000_000))

    assert done == await store.get_task(task.id)
    assert (done.result, done.error) == ("x" * 8191 + "…", "y" * 8191 + "…")


async def test_a_state_that_is_refused_leaves_the_task_running(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)

    for artifact in (
        state(x="x" * 4_200_000),
        NewArtifact(state={"x": float("inf")}),
        NewArtifact(state={}, summary="x" * 1_100_000),
    ):
        with pytest.raises(StateRejectedError, match=r"limit|inf"):
            await store.finish_task(task.id, 1, completed(), artifact=artifact)

    assert await store.get_task(task.id) == task
    assert await store.newest_artifact(agent.id) is None


async def test_a_finish_whose_answer_was_lost_can_be_repeated(
    place: Place, store: Store, agent: Agent
) -> None:
    task = await running_task(store, agent.id)
    outcome = completed(result="\ud800" + "x" * 9000, usage=Usage(cpu_seconds=0.1, peak_memory_bytes=5))
    done = await store.finish_task(task.id, 1, outcome, artifact=state(n=1))
    await place.clock.advance(5)

    assert await store.finish_task(task.id, 1, outcome, artifact=state(n=1)) == done

    assert await store.get_task(task.id) == done
    assert [artifact.state for artifact in await store.artifact_history(agent.id)] == [{"n": 1}]
    with pytest.raises(LeaseLostError):
        await store.finish_task(task.id, 1, completed(result="another"), artifact=state(n=2))
