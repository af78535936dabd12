"""A server killed or frozen between any two of its steps, and another one started: no fire is lost, doubled or undone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr
from tests.mongo import MongoServer
from tests.sandboxes import used_store_ids, wait_until
from tests.torture.checker import check
from tests.torture.fleet import CODE, Member
from tests.torture.recorder import Recorder
from tests.torture.run import collect, is_quiet

from harness.clock import SystemClock
from harness.models import AgentDraft, Reason, render_instant
from harness.ports import Store
from harness.sandbox.docker import DockerSandbox
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.testing import FakeSandbox
from harness.wiring import make_store

KILLED_SERVICE = Path(__file__).with_name("killed_service.py")

STEPS = (
    "about to fire", "about to advance", "schedule advanced", "about to insert fires", "fires inserted", "fired",
    "about to claim", "claimed", "run begins", "about to create", "created", "about to start", "started",
    "about to send the job", "agent ended", "about to remove", "removed", "about to save", "saved",
    "about to retry", "retried", "released",
)  # fmt: skip
#: Of a server that finds a run whose server died: it takes the container away first, and then ends the attempt.
SWEEP_STEPS = ("about to remove an orphan", "orphan removed", "dead runner found", "expired")
#: On MongoDB, where one step is several writes: the schedule with its outbox, each fire, the outbox's removal; each claim;
#: a task's end with its artifact inside, and that in its own place. All else is the same code, or one write.
MONGO_STEPS = (
    "schedule advanced", "fire inserted", "outbox removed", "one claimed",
    "artifact inside its task", "artifact inserted",
)  # fmt: skip
#: At which a server is frozen for longer than its lease, and goes on when its task is another's. A container that waited
#: has the attempt's name only some time after the job, so it seems to be waiting still.
FREEZE_STEPS = ("claimed", "run begins", "about to send the job", "about to name", "named", "about to save")
#: Of `STEPS` at a time, each with a server of its own.
ABREAST = 4
#: How long the schedules last, from the time their agents are stored.
FIRING_SECONDS = 8
#: The same where containers wait for tasks, which they do some time after the first runs.
WARM_FIRING_SECONDS = 16
#: Short, so that what a dead server leaves is found soon.
LEASE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is, and on which engine, with which image, its servers run tasks."""

    settings: Settings
    sandbox: DockerSandbox
    image: str

    @property
    def environment(self) -> dict[str, str]:
        """Of its servers."""
        uri = self.settings.mongodb_uri
        return {
            "HARNESS_DATA_DIR": str(self.settings.data_dir),
            "HARNESS_MONGODB_URI": "" if uri is None else uri.get_secret_value(),
            "HARNESS_MONGODB_DATABASE": self.settings.mongodb_database,
            "HARNESS_LEASE_SECONDS": str(LEASE_SECONDS),
            "HARNESS_SANDBOX_IMAGE": self.image,
            "HARNESS_WARM_CONTAINERS": str(self.settings.warm_containers),
            "DOCKER_HOST": self.sandbox.engine.address.url,
        }


@pytest.fixture(scope="module")
def mongo_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = MongoServer(tmp_path_factory.mktemp("mongo"))
    try:
        server.start()
        yield server.uri
    finally:
        server.stop()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, len(STEPS), ABREAST))
async def test_promises_hold_over_a_kill(
    sandbox: DockerSandbox, sandbox_image: str, tmp_path: Path, first: int
) -> None:
    async with asyncio.TaskGroup() as group:
        for number, step in enumerate(STEPS[first : first + ABREAST]):
            settings = Settings(data_dir=tmp_path / str(number), mongodb_uri=None)
            group.create_task(_kill_and_restart([(step, 2)], Place(settings, sandbox, sandbox_image)))


@pytest.mark.timeout(120)
async def test_promises_hold_over_a_kill_in_the_middle_of_a_sweep(
    sandbox: DockerSandbox, sandbox_image: str, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        for number, step in enumerate(SWEEP_STEPS):
            settings = Settings(data_dir=tmp_path / str(number), mongodb_uri=None)
            place = Place(settings, sandbox, sandbox_image)
            group.create_task(_kill_and_restart([("about to send the job", 2), (step, 1)], place))


@pytest.mark.timeout(120)
async def test_promises_hold_over_a_kill_between_two_documents(
    sandbox: DockerSandbox, sandbox_image: str, tmp_path: Path, mongo_uri: str
) -> None:
    async with asyncio.TaskGroup() as group:
        for number, step in enumerate(MONGO_STEPS):
            settings = Settings(
                data_dir=tmp_path / str(number),
                mongodb_uri=SecretStr(mongo_uri),
                mongodb_database=f"killed_{number}",
            )
            group.create_task(_kill_and_restart([(step, 2)], Place(settings, sandbox, sandbox_image)))


@pytest.mark.timeout(120)
async def test_promises_hold_over_a_freeze_that_is_longer_than_the_lease(
    sandbox: DockerSandbox, sandbox_image: str, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        for number, step in enumerate(FREEZE_STEPS):
            settings = Settings(data_dir=tmp_path / str(number), mongodb_uri=None, warm_containers=2)
            group.create_task(_freeze_and_thaw(step, Place(settings, sandbox, sandbox_image)))


async def _kill_and_restart(deaths: Sequence[tuple[str, int]], place: Place) -> None:
    """Have one server after the other die at a step, by so many times that it was reached, and see what the next makes
    of that."""
    async with _trial(place) as trial:
        for step, times in deaths:
            async with _victim(step, times, signal.SIGKILL, place) as victim, asyncio.timeout(30):
                assert await victim.wait() == -signal.SIGKILL, f"{step!r} was not reached"
        await trial.until_quiet()
    assert trial.violations == [], deaths


async def _freeze_and_thaw(step: str, place: Place) -> None:
    """Freeze a server at a step, until another one has taken over, and see what it does to that one's work."""
    # So long that what the frozen one began, or begins when it is thawed, meets the run of the other.
    async with _trial(place, run_seconds=2 * LEASE_SECONDS, failures=0) as trial:
        async with _victim(step, 1, signal.SIGSTOP, place) as victim:
            process = psutil.Process(victim.pid)
            await wait_until(
                lambda: _is(process.status() == psutil.STATUS_STOPPED), what=step, timeout_seconds=30
            )
            await trial.until_taken_over(step)
            victim.send_signal(signal.SIGCONT)
            # Time for it to do what it must not.
            await asyncio.sleep(LEASE_SECONDS)
        await trial.until_quiet()
    assert trial.violations == [], (step, trial.violations)


async def _is(holds: bool) -> bool:
    return holds


class _Trial:
    """A store with agents, a server to take over, and what the oracle says in the end."""

    def __init__(self, place: Place, store: Store, member: Member) -> None:
        self.place, self.store, self.member = place, store, member
        self.violations: list[str] = []

    async def until_quiet(self) -> None:
        async with asyncio.timeout(40):
            while not await is_quiet(self.store, self.place.sandbox, self.member):
                self.member.tend()
                await asyncio.sleep(0.1)

    async def until_taken_over(self, step: str) -> None:
        """Wait until an attempt was found lost, and another one made."""

        async def is_taken_over() -> bool:
            self.member.tend()
            tasks = (await self.store.list_tasks(limit=100)).items
            return any(earlier.reason is Reason.LOST for task in tasks for earlier in task.attempts[:-1])

        await wait_until(is_taken_over, what=f"a take-over after {step!r}", timeout_seconds=30)


@asynccontextmanager
async def _trial(place: Place, *, run_seconds: float = 0.1, failures: int = 100) -> AsyncIterator[_Trial]:
    place.settings.data_dir.mkdir(exist_ok=True)
    store, sandbox = make_store(place.settings, SystemClock()), place.sandbox
    await store.open()
    try:
        used_store_ids.add(store.store_id)
        recorder = Recorder(sandbox.engine.address.url, store.store_id)
        await asyncio.to_thread(recorder.start)
        await _add_agents(store, place.settings, run_seconds=run_seconds, failures=failures)
        arguments = ["serve", "--port", "0", "--log-format", "json"]
        member = Member("serve", arguments, place.environment, place.settings.data_dir)
        trial = _Trial(place, store, member)
        try:
            yield trial
        finally:
            exit_code = await member.end()
            await asyncio.to_thread(recorder.stop)
        # On a slow machine the schedules may have ended, and nothing be left to do, by the time the last victim died.
        assert (exit_code, member.codes) == (0 if member.starts else None, []), member.log()
        facts = replace(await collect(store, sandbox, recorder.sights), heard=recorder.listener.heard())
        trial.violations = [str(violation) for violation in check(facts)]
    finally:
        await store.close()


async def _add_agents(store: Store, settings: Settings, *, run_seconds: float, failures: int) -> None:
    scheduler = TaskScheduler(store=store, sandbox=FakeSandbox(), settings=settings)
    firing_seconds = WARM_FIRING_SECONDS if settings.warm_containers else FIRING_SECONDS
    end_at = datetime.now(UTC) + timedelta(seconds=firing_seconds)
    for number, fails in enumerate((0, failures)):
        schedule = {"type": "interval", "interval_seconds": 2, "end_at": render_instant(end_at)}
        schedule["overlap"] = ("queue_one", "skip")[number]
        config = {"schedule": schedule, "retry": {"delay_seconds": 0.2, "max_attempts": 2}}
        code = CODE.format(seconds=run_seconds, fails=fails)
        agent = await store.create_agent(AgentDraft(name=f"a{number}", code=code, config=config))
        await scheduler.sync_agent_schedule(agent.id)


@asynccontextmanager
async def _victim(step: str, times: int, number: signal.Signals, place: Place) -> AsyncIterator[Process]:
    """A server that sends itself a signal at a step; killed at the end."""
    victim = await asyncio.create_subprocess_exec(
        sys.executable, KILLED_SERVICE, step, str(times), number.name, env={**os.environ, **place.environment}
    )
    try:
        yield victim
    finally:
        if victim.returncode is None:
            victim.kill()
            await victim.wait()
