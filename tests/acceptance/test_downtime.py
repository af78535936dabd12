"""A day without a server, and clocks that step: what the schedules owe is settled, bounded, and never twice.

The processes see another time by libfaketime; the machine's clock stays as it is.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxes import used_store_ids, wait_until
from tests.torture.checker import check
from tests.torture.facts import Facts
from tests.torture.fleet import CODE, Member
from tests.torture.run import collect, is_quiet

from harness.clock import SystemClock
from harness.models import Agent, AgentDraft, SkipReason, Task, TaskStatus, render_instant
from harness.sandbox.docker import DockerSandbox
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.store.sqlite import SqliteStore
from harness.testing import FakeSandbox

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

pytestmark = [
    pytest.mark.skipif(
        FAKETIME is None, reason="libfaketime is missing; run scripts/test-tools as root on Debian"
    ),
    pytest.mark.timeout(120),
]


class Elsewhen:
    """A store, and a server on it whose clock is off by what the test says."""

    def __init__(self, folder: Path, sandbox: DockerSandbox, image: str) -> None:
        self.sandbox = sandbox
        self.store = SqliteStore(folder / "harness.db", clock=SystemClock())
        self._offset = folder / "offset"
        self.set_clock(0)
        environment = {
            "HARNESS_DATA_DIR": str(folder),
            "HARNESS_MONGODB_URI": "",
            "HARNESS_LEASE_SECONDS": "2",
            "HARNESS_SANDBOX_IMAGE": image,
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.server = Member("serve", ["serve", "--port", "0", "--log-format", "json"], environment, folder)

    def set_clock(self, seconds: int) -> None:
        """Have the server's clock be that far off the machine's, from now on."""
        # In one step: the library may read it at any time.
        new = self._offset.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._offset)

    async def add(self, name: str, schedule: dict[str, Any], *, seconds: float = 0) -> Agent:
        """Store an agent, whose schedule is in force from now on by the machine's clock."""
        draft = AgentDraft(
            name=name, code=CODE.format(seconds=seconds, fails=0), config={"schedule": schedule}
        )
        agent = await self.store.create_agent(draft)
        scheduler = TaskScheduler(store=self.store, sandbox=FakeSandbox(), settings=Settings(data_dir=Path()))
        await scheduler.sync_agent_schedule(agent.id)
        return agent

    async def settle(self) -> Facts:
        """Wait until nothing is left to be done, end the server, and return what was."""
        async with asyncio.timeout(60):
            while not await is_quiet(self.store, self.sandbox, self.server):  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.1)
        # Before the facts are collected, as containers may wait for its tasks until then.
        assert await self.server.end() == 0, self.server.log()
        return await collect(self.store, self.sandbox, [])

    async def tasks(self, agent: Agent) -> list[Task]:
        """Return the agent's tasks, oldest first."""
        page = await self.store.list_tasks(agent_id=agent.id, limit=10_000)
        return list(reversed(page.items))

    def logged(self, action: str) -> list[dict[str, Any]]:
        """Return what the server logged under an action."""
        events = [json.loads(line) for line in self.server.log().splitlines()]
        return [event for event in events if event.get("action") == action]


@pytest.fixture
async def elsewhen(sandbox: DockerSandbox, sandbox_image: str, tmp_path: Path) -> AsyncIterator[Elsewhen]:
    made = Elsewhen(tmp_path, sandbox, sandbox_image)
    await made.store.open()
    used_store_ids.add(made.store.store_id)
    yield made
    await made.server.end(signal.SIGKILL)
    await made.store.close()


async def test_a_day_without_a_server_is_settled_by_each_agents_policy(elsewhen: Elsewhen) -> None:
    now = datetime.now(UTC)
    # All fires are minutes late by the time the server starts.
    end_at = now + timedelta(days=1, minutes=-2)
    minutely = {"type": "cron", "cron": "* * * * *", "end_at": render_instant(end_at)}
    policies: dict[str, dict[str, Any]] = {
        "latest": {"catch_up": "latest"},
        "all": {"catch_up": "all", "catch_up_limit": 4},
        "all, allowed to overlap": {"catch_up": "all", "catch_up_limit": 3, "overlap": "allow"},
        "none": {"catch_up": "none"},
        "latest, and the newest one cancels": {"catch_up": "latest", "overlap": "cancel_running"},
    }
    expected_runs = {"latest": 1, "all": 4, "all, allowed to overlap": 3, "none": 0}
    agents = {name: await elsewhen.add(name, minutely | policy) for name, policy in policies.items()}
    elsewhen.set_clock(24 * 3600)

    elsewhen.server.tend()
    facts = await elsewhen.settle()

    fires = int(
        (end_at.replace(second=0, microsecond=0) - now.replace(second=0, microsecond=0)).total_seconds() / 60
    )
    assert 1437 <= fires <= 1438
    for name, agent in agents.items():
        skip, *runs = await elsewhen.tasks(agent)
        count = expected_runs.get(name, 1)
        assert [task.status for task in runs] == [TaskStatus.COMPLETED] * count, name
        assert (skip.status, skip.skip_reason) == (TaskStatus.SKIPPED, SkipReason.MISSED), name
        assert skip.skipped_count == fires - count, name
        newest = [end_at.replace(second=0, microsecond=0) - timedelta(minutes=back) for back in range(count)]
        assert [task.fire_at for task in runs] == newest[::-1], name
        logged = [event for event in elsewhen.logged("fire_skipped") if event["agent_id"] == agent.id]
        assert [(event["level"], event["reason"], event["count"]) for event in logged] == [
            ("warning", "missed", fires - count)
        ], name
    # Caught up one after the other, and the oracle's own word on it all.
    assert [
        str(violation)
        for violation in check(facts)
        if violation.promise != "P2" or "container" not in violation.what
    ] == []


async def test_a_clock_that_steps_an_hour_back_and_forth_fires_nothing_twice(elsewhen: Elsewhen) -> None:
    end_at = datetime.now(UTC) + timedelta(seconds=3600 + 90)
    every_second = {"type": "interval", "interval_seconds": 1, "misfire_grace_seconds": 0}
    agent = await elsewhen.add("often", every_second | {"end_at": render_instant(end_at)})
    # One fire, whose run lasts over all steps but the last.
    once = {
        "type": "interval",
        "interval_seconds": 1,
        "end_at": render_instant(datetime.now(UTC) + timedelta(seconds=1)),
    }
    steady = await elsewhen.add("steady", once, seconds=9)

    async def completed(more: int) -> None:
        before = len([task for task in await elsewhen.tasks(agent) if task.status is TaskStatus.COMPLETED])

        async def enough() -> bool:
            elsewhen.server.tend()
            tasks = await elsewhen.tasks(agent)
            return len([task for task in tasks if task.status is TaskStatus.COMPLETED]) >= before + more

        await wait_until(enough, what=f"{more} more runs", timeout_seconds=20)

    await completed(2)
    elsewhen.set_clock(-3600)
    await asyncio.sleep(2)
    silent = len(await elsewhen.tasks(agent))
    await asyncio.sleep(3)
    # These instants have had their runs: nothing fires until the clock has passed them again.
    assert len(await elsewhen.tasks(agent)) == silent
    elsewhen.set_clock(0)
    await completed(2)
    elsewhen.set_clock(-4)
    await completed(2)
    run, *skips = await elsewhen.tasks(steady)
    assert skips == []
    await wait_until(lambda: _is_completed(elsewhen, run.id), what="the run that lasts over the steps")
    assert len((await elsewhen.store.get_task(run.id)).attempts) == 1
    elsewhen.set_clock(3600)
    await completed(2)
    # Past the end of its schedule.
    elsewhen.set_clock(3600 + 90)

    facts = await elsewhen.settle()
    assert elsewhen.server.starts == 1
    steps = [event["seconds"] for event in elsewhen.logged("clock_stepped")]
    # Four seconds are not worth a word.
    assert steps == pytest.approx([-3600, 3600, 3604, 90], abs=0.5)
    # Not what it judges by comparing times that were taken before and after a step.
    untimed = ("says overlap", "overlap", "no container ran")
    found = [str(violation) for violation in check(facts)]
    assert [line for line in found if not any(word in line for word in untimed)] == []


async def _is_completed(elsewhen: Elsewhen, task_id: int) -> bool:
    return (await elsewhen.store.get_task(task_id)).status is TaskStatus.COMPLETED
