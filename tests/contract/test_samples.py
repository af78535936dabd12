from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.contract.places import Place, chunk, claim_one, running_task

from harness.errors import InvalidInputError, LeaseLostError
from harness.models import Agent, Outcome, Reason, UsageSample, log_seq
from harness.ports import Store
from harness.retention import Expiry

AT = datetime(2026, 1, 1, 12, 0, 0, 123000, tzinfo=UTC)


def sample(index: int, *, attempt: int = 1, memory_bytes: int | None = 2**40) -> UsageSample:
    return UsageSample(
        seq=log_seq(attempt, index),
        at=AT,
        memory_bytes=memory_bytes,
        cpu_percent=99.5,
        cpu_seconds=0.25,
        processes=3,
    )


async def test_samples_come_back_in_order_as_they_were(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    samples = [sample(0), sample(1, memory_bytes=None), UsageSample(seq=log_seq(1, 2), at=AT), sample(3)]

    await store.append_samples(task.id, 1, samples[2:])
    await store.append_samples(task.id, 1, samples[:2])

    assert await store.read_samples(task.id) == samples
    assert await store.read_samples(task.id, limit=2) == samples[:2]
    assert await store.read_samples(task.id, after_seq=samples[1].seq) == samples[2:]
    assert await store.read_samples(task.id, after_seq=2**70) == []
    assert await store.read_samples(task.id + 1) == []
    assert await store.read_logs(task.id) == []


async def test_a_sample_that_is_stored_stays_as_it_is(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.append_samples(task.id, 1, [sample(0)])
    await store.append_samples(task.id, 1, [sample(0, memory_bytes=1), sample(1)])

    assert await store.read_samples(task.id) == [sample(0), sample(1)]


async def test_only_the_holder_of_the_lease_adds_samples(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.append_samples(task.id, 1, [sample(0)])
    await store.hand_back_task(task.id, 1, "shut down")
    await claim_one(store, "runner-2")

    with pytest.raises(LeaseLostError):
        await store.append_samples(task.id, 1, [sample(1)])
    with pytest.raises(InvalidInputError, match="attempt 1, and attempt 2 writes it"):
        await store.append_samples(task.id, 2, [sample(1)])
    await store.append_samples(task.id, 2, [sample(0, attempt=2)])

    assert await store.read_samples(task.id) == [sample(0), sample(0, attempt=2)]


async def test_samples_go_with_their_task(store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.append_logs(task.id, 1, [await chunk(store, 0)])
    await store.append_samples(task.id, 1, [sample(0)])
    await store.finish_task(task.id, 1, Outcome(reason=Reason.COMPLETED))

    await store.delete_agent(agent.id)

    assert await store.read_samples(task.id) == []
    assert await store.read_logs(task.id) == []


async def test_a_page_that_makes_no_sense_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInputError, match="limit"):
        await store.read_samples(1, limit=0)


async def test_samples_go_when_the_logs_of_their_task_do(place: Place, store: Store, agent: Agent) -> None:
    task = await running_task(store, agent.id)
    await store.append_samples(task.id, 1, [sample(0), sample(1)])
    await store.finish_task(task.id, 1, Outcome(reason=Reason.COMPLETED))
    await place.clock.advance(3600)
    later = await store.now()

    purged = await store.purge(agent.id, Expiry(later, logs_before=later), limit=100)

    assert not purged.more
    assert await store.read_samples(task.id) == []
    assert (await store.get_task(task.id)).id == task.id
