"""A server killed between any two of its steps, and another one started: no fire is lost, doubled or left undone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.sandboxes import used_store_ids
from tests.torture.checker import check
from tests.torture.fleet import CODE, Member
from tests.torture.recorder import Recorder
from tests.torture.run import collect, is_quiet

from harness.clock import SystemClock
from harness.models import AgentDraft, render_instant
from harness.sandbox.docker import DockerSandbox
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.store.sqlite import SqliteStore
from harness.testing import FakeSandbox

KILLED_SERVICE = Path(__file__).with_name("killed_service.py")

STEPS = (
    "about to fire", "about to advance", "schedule advanced", "about to insert fires", "fires inserted", "fired",
    "about to claim", "claimed", "run begins", "about to create", "created", "about to start", "started",
    "about to send the job", "agent ended", "about to remove", "removed", "about to save", "saved",
    "about to retry", "retried", "released",
)  # fmt: skip
#: At a time, each with a server of its own.
ABREAST = 4
#: How long the schedules last, from the time their agents are stored.
FIRING_SECONDS = 8


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, len(STEPS), ABREAST))
async def test_promises_hold_over_a_kill(
    sandbox: DockerSandbox, sandbox_image: str, tmp_path: Path, first: int
) -> None:
    async with asyncio.TaskGroup() as group:
        for number, step in enumerate(STEPS[first : first + ABREAST]):
            group.create_task(_kill_and_restart(step, sandbox, sandbox_image, tmp_path / str(number)))


async def _kill_and_restart(step: str, sandbox: DockerSandbox, image: str, folder: Path) -> None:
    store = SqliteStore(folder / "harness.db", clock=SystemClock())
    await store.open()
    try:
        await _judge_a_kill(step, sandbox, image, folder, store)
    finally:
        await store.close()


async def _judge_a_kill(
    step: str, sandbox: DockerSandbox, image: str, folder: Path, store: SqliteStore
) -> None:
    settings = Settings(data_dir=folder, mongodb_uri=None)
    used_store_ids.add(store.store_id)
    recorder = Recorder(sandbox.engine.address.url, store.store_id)
    await asyncio.to_thread(recorder.start)
    scheduler = TaskScheduler(store=store, sandbox=FakeSandbox(), settings=settings)
    end_at = datetime.now(UTC) + timedelta(seconds=FIRING_SECONDS)
    for number, fails in enumerate((0, 100)):
        schedule = {"type": "interval", "interval_seconds": 2, "end_at": render_instant(end_at)}
        schedule["overlap"] = ("queue_one", "skip")[number]
        config = {"schedule": schedule, "retry": {"delay_seconds": 0.2, "max_attempts": 2}}
        code = CODE.format(seconds=0.1, fails=fails)
        agent = await store.create_agent(AgentDraft(name=f"a{number}", code=code, config=config))
        await scheduler.sync_agent_schedule(agent.id)
    environment = {
        "HARNESS_DATA_DIR": str(folder),
        "HARNESS_MONGODB_URI": "",
        "HARNESS_LEASE_SECONDS": "2",
        "HARNESS_SANDBOX_IMAGE": image,
        "DOCKER_HOST": sandbox.engine.address.url,
    }
    member = Member("serve", ["serve", "--port", "0", "--log-format", "json"], environment, folder)
    try:
        victim = await asyncio.create_subprocess_exec(
            sys.executable, KILLED_SERVICE, step, env={**os.environ, **environment}
        )
        try:
            async with asyncio.timeout(30):
                assert await victim.wait() == -signal.SIGKILL, f"{step!r} was not reached"
        finally:
            if victim.returncode is None:
                victim.kill()
                await victim.wait()
        async with asyncio.timeout(40):
            while not await is_quiet(store, sandbox):
                member.tend()
                await asyncio.sleep(0.1)
    finally:
        exit_code = await member.end()
        await asyncio.to_thread(recorder.stop)
    facts = await collect(store, sandbox, recorder.sights)

    assert (exit_code, member.codes) == (0, []), member.log()
    assert [str(violation) for violation in check(facts)] == [], step
