"""Many agents fall due in the same second, before two servers and two runners on one store."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.mongo import MongoServer
from tests.sandboxes import used_store_ids
from tests.torture.evidence import stories
from tests.torture.facts import Facts
from tests.torture.fleet import CODE, make_members
from tests.torture.recorder import Recorder
from tests.torture.run import is_quiet

from harness.clock import SystemClock
from harness.models import AgentDraft, TaskStatus, render_instant
from harness.sandbox.docker import DockerSandbox
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.testing import FakeSandbox
from harness.wiring import make_store

#: Agents, and how long it takes for them to be stored and for the processes to be up, in seconds.
CASES = {"sqlite": (200, 15.0), "mongo": (60, 25.0)}


@pytest.fixture
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Connection string of the store, empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    server = MongoServer(tmp_path / "mongo")
    try:
        server.start()
        yield server.uri
    finally:
        server.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("uri", "agents", "lead_seconds"),
    [(store, *numbers) for store, numbers in CASES.items()],
    ids=CASES,
    indirect=["uri"],
)
async def test_each_of_many_fires_in_one_second_becomes_one_run(
    sandbox: DockerSandbox, sandbox_image: str, tmp_path: Path, uri: str, agents: int, lead_seconds: float
) -> None:
    settings = Settings(data_dir=tmp_path, mongodb_uri=SecretStr(uri) if uri else None)
    store = make_store(settings, SystemClock())
    await store.open()
    used_store_ids.add(store.store_id)
    fire_at = (datetime.now(UTC) + timedelta(seconds=lead_seconds)).replace(microsecond=0)
    schedule = {"type": "interval", "interval_minutes": 60}
    schedule |= {"start_at": render_instant(fire_at), "end_at": render_instant(fire_at)}
    scheduler = TaskScheduler(store=store, sandbox=FakeSandbox(), settings=settings)
    environment = {
        "HARNESS_DATA_DIR": str(tmp_path),
        "HARNESS_SANDBOX_IMAGE": sandbox_image,
        "HARNESS_MONGODB_URI": uri,
    }
    members = make_members(environment, tmp_path)
    recorder = Recorder(sandbox.engine.address.url, store.store_id)
    await asyncio.to_thread(recorder.start)
    try:
        for member in members:
            member.tend()
        for number in range(agents):
            code = CODE.format(seconds=0, fails=0)
            agent = await store.create_agent(
                AgentDraft(name=f"a{number}", code=code, config={"schedule": schedule})
            )
            await scheduler.sync_agent_schedule(agent.id)
        assert datetime.now(UTC) < fire_at, "the machine is too slow for the lead time"
        await asyncio.sleep((fire_at - datetime.now(UTC)).total_seconds() + 0.5)
        async with asyncio.timeout(180):
            while not await is_quiet(store, sandbox, *members):  # noqa: ASYNC110 - it happens in other processes
                await asyncio.sleep(0.25)
        codes = [await member.end() for member in members]
    finally:
        for member in members:
            await member.end(signal.SIGKILL)
        await asyncio.to_thread(recorder.stop)
        tasks = (await store.list_tasks(limit=10 * agents)).items
        await store.close()

    assert codes == [0, 0, 0, 0]
    assert len(tasks) == agents
    assert {task.agent_id for task in tasks} == set(range(1, agents + 1))
    assert {task.status for task in tasks} == {TaskStatus.COMPLETED}
    assert {task.fire_at for task in tasks} == {fire_at}
    facts = Facts([], tasks, {}, recorder.sights, recorder.listener.heard())
    containers = [one for one in stories(facts).values() if one.started_at is not None and one.attempts]
    assert Counter(task_id for one in containers for task_id, _ in one.attempts) == Counter(
        task.id for task in tasks
    )
    owners = {member.name for member in members if '"run_ended"' in member.log()}
    assert len(owners) == 4, f"only {owners} ran tasks"
