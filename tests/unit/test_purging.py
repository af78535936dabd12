from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta

import pytest
from tests.unit.shop import eventually

from harness import purging
from harness.errors import AgentNotFoundError, StoreUnavailableError, TaskNotFoundError
from harness.models import Agent, AgentDraft, Claim, NewArtifact, NewTask, Outcome, Reason, Task
from harness.purging import RETRY_SECONDS, ROUND_SECONDS, Purger
from harness.retention import Expiry, Purged, Retention
from harness.testing import FakeClock, MemoryStore

POLICY = Retention(task_days=10, max_tasks=5, log_days=3, max_artifacts=2)


class Shelf:
    """A store, and a clock that a test moves by days."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.purger = Purger(self.store, self.clock, POLICY)

    async def agent(self, name: str = "agent", **retention: float) -> Agent:
        config = {"retention": retention} if retention else {}
        return await self.store.create_agent(AgentDraft(name=name, code="pass", config=config))

    async def run(self, agent: Agent) -> Task:
        claim = Claim(owner="me", lease_seconds=30)
        task = await self.store.create_task(NewTask(agent_id=agent.id), claim=claim)
        outcome, artifact = Outcome(reason=Reason.COMPLETED), NewArtifact(state={"task": task.id})
        return await self.store.finish_task(task.id, 1, outcome, artifact=artifact)

    def days_pass(self, days: float) -> None:
        """Move the store's time on, without waking anybody."""
        self.clock.set_wall_clock(self.clock.now() + timedelta(days=days))

    async def purge(self, agent: Agent) -> Purged:
        return await self.patiently(self.purger.purge(agent.id))

    async def patiently(self, work: Awaitable[Purged]) -> Purged:
        """Let a purge have its rests."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await self.clock.advance(1)
            await asyncio.sleep(0.001)
        return await task

    async def count(self, agent: Agent) -> int:
        return (await self.store.list_tasks(agent_id=agent.id)).total_count


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    shelf = Shelf()
    await shelf.store.open()
    yield shelf
    await shelf.store.close()


@pytest.fixture
async def running(shelf: Shelf) -> AsyncIterator[asyncio.Task[None]]:
    """The purger, at work for as long as the test."""
    task = asyncio.create_task(shelf.purger.run())
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_agent_forgets_by_age_and_by_number(shelf: Shelf) -> None:
    agent = await shelf.agent()
    for _ in range(4):
        await shelf.run(agent)
    shelf.days_pass(4)
    for _ in range(3):
        await shelf.run(agent)
    shelf.days_pass(1)

    assert await shelf.purger.purgeable(agent.id) == Purged(tasks=2, logs=2, artifacts=5)
    assert await shelf.purge(agent) == Purged(tasks=2, logs=2, artifacts=5)

    shelf.days_pass(6)
    assert await shelf.purge(agent) == Purged(tasks=2, logs=3)
    assert [task.id for task in (await shelf.store.list_tasks()).items] == [7, 6, 5]


async def test_nothing_goes_within_an_hour_of_its_end(shelf: Shelf) -> None:
    agent = await shelf.agent(task_days=0.001, max_tasks=1, log_days=0.001, max_artifacts=1)
    for _ in range(3):
        await shelf.run(agent)

    shelf.days_pass(59 / 60 / 24)
    assert await shelf.purge(agent) == Purged()
    shelf.days_pass(2 / 60 / 24)
    assert await shelf.purge(agent) == Purged(tasks=3, artifacts=2)


async def test_what_an_agent_says_goes_before_the_settings(shelf: Shelf) -> None:
    short, forever, plain = (
        await shelf.agent("short", task_days=1),
        await shelf.agent("forever", task_days=0, log_days=0),
        await shelf.agent("plain"),
    )
    for agent in (short, forever, plain):
        await shelf.run(agent)

    shelf.days_pass(2)
    await shelf.patiently(shelf.purger.purge_all())
    assert [await shelf.count(agent) for agent in (short, forever, plain)] == [0, 1, 1]
    shelf.days_pass(1000)
    await shelf.patiently(shelf.purger.purge_all())
    assert [await shelf.count(agent) for agent in (short, forever, plain)] == [0, 1, 0]


async def test_a_round_is_one_line_in_the_log(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        await shelf.run(await shelf.agent(f"agent {number}"))
    caplog.set_level(logging.INFO)

    shelf.days_pass(11)
    assert await shelf.patiently(shelf.purger.purge_all()) == Purged(tasks=3)
    assert await shelf.patiently(shelf.purger.purge_all()) == Purged()

    (record,) = caplog.records
    assert (record.levelname, vars(record)["action"]) == ("INFO", "purged")
    assert [vars(record)[name] for name in ("tasks", "logs", "artifacts")] == [3, 0, 0]


async def test_steps_are_small_and_the_store_rests_between(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "BATCH", 2)
    agent = await shelf.agent(max_artifacts=0)
    for _ in range(5):
        await shelf.run(agent)
    shelf.days_pass(11)

    work = asyncio.create_task(shelf.purger.purge(agent.id))
    for left in (3, 1, 0):
        await eventually(lambda: shelf.clock.sleepers == 1)
        assert await shelf.count(agent) == left
        await shelf.clock.advance(purging.MIN_REST_SECONDS)
        await asyncio.sleep(0)
    assert await work == Purged(tasks=5)


async def test_the_store_rests_also_while_agents_have_nothing_to_delete(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_seconds = 0.6 * purging.LOOK_SECONDS
    events: list[object] = []
    purge = shelf.store.purge

    async def look(agent_id: int, expiry: Expiry, *, limit: int) -> Purged:
        await shelf.clock.advance(look_seconds)
        events.append(agent_id)
        return await purge(agent_id, expiry, limit=limit)

    async def sleep(seconds: float) -> None:
        events.append(pytest.approx(seconds))

    monkeypatch.setattr(shelf.store, "purge", look)
    monkeypatch.setattr(shelf.clock, "sleep", sleep)
    for number in range(5):
        await shelf.agent(f"agent {number}")

    assert await shelf.purger.purge_all() == Purged()
    rest_seconds = purging.REST_FACTOR * 2 * look_seconds
    assert events == [1, 2, rest_seconds, 3, 4, rest_seconds, 5]


async def test_an_agent_that_cannot_be_read_does_not_keep_the_others(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt, fine = await shelf.agent("spoilt"), await shelf.agent("fine")
    for agent in (spoilt, fine):
        await shelf.run(agent)
    config = '{"retention": {"task_days": "of an older release"}}'
    await shelf.store._file.write(
        lambda db: db.execute("UPDATE agents SET config = ? WHERE id = ?", (config, spoilt.id))
    )

    shelf.days_pass(11)
    assert await shelf.patiently(shelf.purger.purge_all()) == Purged(tasks=1)

    assert await shelf.count(spoilt) == 1
    assert [vars(record)["agent_id"] for record in caplog.records] == [spoilt.id]
    assert "config.retention is not valid" in caplog.text


async def test_an_agent_that_is_deleted_meanwhile_is_passed_over(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone, fine = await shelf.agent("gone"), await shelf.agent("fine")
    await shelf.run(fine)
    ids = await shelf.store.agent_ids()
    await shelf.store.delete_agent(gone.id)

    async def as_before(*, after_id: int = 0, limit: int = 1000) -> list[int]:
        return [agent_id for agent_id in ids if agent_id > after_id]

    monkeypatch.setattr(shelf.store, "agent_ids", as_before)
    shelf.days_pass(11)

    assert await shelf.patiently(shelf.purger.purge_all()) == Purged(tasks=1)
    assert "WARNING" not in caplog.text
    with pytest.raises(AgentNotFoundError):
        await shelf.purger.purge(gone.id)


async def test_it_works_at_the_start_and_about_every_hour(shelf: Shelf, running: asyncio.Task[None]) -> None:
    agent = await shelf.agent()
    old = await shelf.run(agent)
    await eventually(lambda: shelf.clock.sleepers == 1)
    assert await shelf.count(agent) == 1

    shelf.days_pass(11)
    await shelf.clock.advance(ROUND_SECONDS - 1)
    assert await shelf.count(agent) == 1
    await shelf.clock.advance(0.1 * ROUND_SECONDS + 1)

    async def is_gone() -> bool:
        await shelf.clock.advance(1)
        return await shelf.count(agent) == 0

    await eventually(is_gone)
    with pytest.raises(TaskNotFoundError):
        await shelf.store.get_task(old.id)


async def test_while_the_store_is_away_it_says_so_once_and_goes_on_afterwards(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    agent = await shelf.agent()
    await shelf.run(agent)
    shelf.days_pass(11)
    tries = 0
    purge = shelf.store.purge

    async def fail_twice(agent_id: int, expiry: Expiry, *, limit: int) -> Purged:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise StoreUnavailableError("away")
        return await purge(agent_id, expiry, limit=limit)

    monkeypatch.setattr(shelf.store, "purge", fail_twice)
    work = asyncio.create_task(shelf.purger.run())

    async def is_well_again() -> bool:
        await shelf.clock.advance(RETRY_SECONDS / 4)
        return "purge_resumed" in [vars(record).get("action") for record in caplog.records]

    await eventually(is_well_again)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)

    assert await shelf.count(agent) == 0
    assert shelf.clock.monotonic() >= 2 * RETRY_SECONDS
    actions = [vars(record)["action"] for record in caplog.records]
    assert actions == ["purge_failed", "purge_failed", "purged", "purge_resumed"]


async def test_a_stop_in_the_middle_says_what_was_done(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(purging, "BATCH", 1)
    caplog.set_level(logging.INFO)
    agent = await shelf.agent()
    for _ in range(3):
        await shelf.run(agent)
    shelf.days_pass(11)

    work = asyncio.create_task(shelf.purger.run())
    await eventually(lambda: shelf.clock.sleepers == 1)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)

    assert await shelf.count(agent) == 2
    assert [vars(record)["tasks"] for record in caplog.records] == [1]
