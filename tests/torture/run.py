"""One run of the oracle test: start, hurt, let rest, collect, check."""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Literal

from pydantic import SecretStr
from tests.engines import OwnEngine, can_start_engines
from tests.mongo import MongoServer
from tests.torture.checker import Violation, check, lateness
from tests.torture.evidence import origins, stories
from tests.torture.facts import AgentSeen, Facts, Sight, Switched
from tests.torture.faults import Hand, StoreOutage, freeze_process, lock_sqlite, make_plan
from tests.torture.fleet import Member, make_agents, make_members
from tests.torture.recorder import Recorder
from tests.torture.switches import Switchboard

from harness.clock import SystemClock
from harness.models import Task, TaskStatus
from harness.ports import Sandbox, Store, WarmLabels
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.store.mongo import MongoStore
from harness.store.mongo.schedules import OUTBOX_SINCE
from harness.testing import FakeSandbox
from harness.wiring import make_sandbox, make_store

LEASE_SECONDS = 3.0
#: Longest wait for one more task to come to its end when the faults are over. What is left by then is a matter of how
#: slow machine and store are, so only a standstill says that something hangs.
STANDSTILL_SECONDS = 180.0
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Torture:
    """What a run is: the same one gives the same agents and the same faults at the same times."""

    seed: int
    seconds: float
    store: Literal["sqlite", "mongo"] = "sqlite"
    agents: int = 30
    #: `HARNESS_WARM_CONTAINERS` of each process.
    warm: int = Settings.model_fields["warm_containers"].default


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    violations: list[Violation]
    #: How often each thing happened.
    numbers: dict[str, dict[str, int]]
    #: In rising order; see `checker.lateness`.
    lateness: list[float]
    quiet_seconds: float
    exit_code: int | None

    def text(self) -> str:
        """Render it for people."""
        lines = [f"{name}: {counts}" for name, counts in self.numbers.items()]
        if self.lateness:
            shares = {
                share: self.lateness[int(share * (len(self.lateness) - 1))] for share in (0.5, 0.9, 0.99, 1.0)
            }
            rendered = ", ".join(f"{share:.0%} {late:.2f} s" for share, late in shares.items())
            lines.append(f"lateness of {len(self.lateness)} starts under faults: {rendered}")
        lines.append(f"quiet after {self.quiet_seconds:.1f} s; the last server's exit code: {self.exit_code}")
        lines += [str(violation) for violation in self.violations[:50]]
        lines.append(f"violations: {len(self.violations)}")
        return "\n".join(lines)


async def torture(what: Torture, image: str, folder: Path, say: Callable[[str], None]) -> Report:
    """Run it in `folder`, which keeps the processes' logs."""
    rng = random.Random(what.seed)
    async with _engine(image) as engine, _store(what, folder) as (environment, store_outage):
        settings = Settings(
            data_dir=folder / "data",
            lease_seconds=LEASE_SECONDS,
            mongodb_uri=SecretStr(uri) if (uri := environment.get("HARNESS_MONGODB_URI")) else None,
            docker_host=engine.address.url if engine else Settings.load().docker_host,
        )
        store, sandbox = make_store(settings, SystemClock()), make_sandbox(settings, SystemClock())
        environment |= {
            "HARNESS_DATA_DIR": str(folder / "data"),
            "HARNESS_LEASE_SECONDS": str(LEASE_SECONDS),
            "HARNESS_SANDBOX_IMAGE": image,
            "HARNESS_WARM_CONTAINERS": str(what.warm),
            "DOCKER_HOST": sandbox.engine.address.url,
        }
        members = make_members(environment, folder)
        scheduler = TaskScheduler(store=store, sandbox=FakeSandbox(), settings=Settings(data_dir=Path()))
        switchboard = Switchboard(scheduler)
        hand = Hand(members, engine, store_outage, switchboard)
        try:
            await store.open()
            return await _run(
                what,
                rng,
                _Scene(store, sandbox, sandbox.engine.address.url, members, hand, switchboard, say),
            )
        finally:
            for member in members:
                await member.end(signal.SIGKILL)
            await hand.settle()
            for container in await sandbox.owned_containers(store.store_id):
                await sandbox.remove_container(container.container_id)
            await store.close()
            await sandbox.close()


@dataclass(frozen=True, slots=True)
class _Scene:
    store: Store
    sandbox: Sandbox
    engine_url: str
    members: list[Member]
    hand: Hand
    switchboard: Switchboard
    say: Callable[[str], None]


async def _run(what: Torture, rng: random.Random, scene: _Scene) -> Report:
    recorder = Recorder(scene.engine_url, scene.store.store_id)
    await asyncio.to_thread(recorder.start)
    try:
        end_at = datetime.now(UTC) + timedelta(seconds=what.seconds)
        for draft in make_agents(rng, what.agents, end_at=end_at):
            agent = await scene.store.create_agent(draft)
            await scene.switchboard.scheduler.sync_agent_schedule(agent.id)
            scene.switchboard.add(agent.id)
        await _hurt(what, rng, scene)
        exit_code, quiet_seconds = await _rest(scene)
    finally:
        await asyncio.to_thread(recorder.stop)
    facts = replace(
        await collect(scene.store, scene.sandbox, recorder.sights, scene.switchboard.switched),
        heard=recorder.listener.heard(),
        ended=[end for member in scene.members for end in member.ended],
        engine_away=scene.hand.engine_away,
    )
    numbers = {
        "faults": scene.hand.done,
        "starts of processes": {member.name: member.starts for member in scene.members},
        "exit codes": dict(Counter(str(code) for member in scene.members for code in member.codes)),
        "tasks": dict(Counter(task.status.value for task in facts.tasks)),
        "attempts": dict(Counter(str(one.reason) for task in facts.tasks for one in task.attempts)),
        "skips": dict(Counter(str(task.skip_reason) for task in facts.tasks if task.skip_reason)),
        "containers": dict(origins(stories(facts))),
        "events": dict(Counter(getattr(sight, "action", "engine came back") for sight in recorder.sights)),
    }
    return Report(check(facts), numbers, lateness(facts), quiet_seconds, exit_code)


async def _hurt(what: Torture, rng: random.Random, scene: _Scene) -> None:
    """Let the faults happen, until the schedules have ended."""
    without = () if can_start_engines() else ("engine_stop", "engine_kill", "engine_freeze")
    plan = make_plan(
        rng, seconds=what.seconds, lease_seconds=LEASE_SECONDS, members=len(scene.members), without=without
    )
    began = monotonic()
    while (passed := monotonic() - began) < what.seconds:
        for member in scene.members:
            member.tend()
        while plan and plan[0].at_seconds <= passed:
            scene.say(str(plan[0]))
            scene.hand.begin(plan.pop(0))
        await asyncio.sleep(0.05)


async def _rest(scene: _Scene) -> tuple[int | None, float]:
    """Leave one healthy server, and wait until nothing is left to do; return its exit code and how long that took."""
    survivor, *others = scene.members
    for member in others:
        member.send(signal.SIGKILL)
        member.retire()
    resting = asyncio.create_task(scene.hand.settle())
    began = moved_at = monotonic()
    left = -1
    while monotonic() - moved_at < STANDSTILL_SECONDS:
        survivor.tend()
        if resting.done() and await is_quiet(scene.store, scene.sandbox, survivor):
            break
        before, left = left, await _active(scene.store)
        if left != before:
            moved_at = monotonic()
        await asyncio.sleep(0.2)
    quiet_seconds = monotonic() - began
    await resting
    return await survivor.end(), quiet_seconds


async def _active(store: Store) -> int:
    """Return how many tasks have not ended."""
    pages = [
        await store.list_tasks(status=status, limit=1) for status in (TaskStatus.PENDING, TaskStatus.RUNNING)
    ]
    return sum(page.total_count for page in pages)


async def is_quiet(store: Store, sandbox: Sandbox, *members: Member) -> bool:
    """Return whether nothing is left to do.

    No task is active, no schedule fires any more or has fires on their way, and no container is left but those that wait
    for tasks of `members`.
    """
    # The schedules first: the last fire becomes a task in the moment in which its schedule ends.
    agents = (await store.list_agents(limit=_PAGE)).items
    due = [(await store.get_schedule(agent.id)).state for agent in agents]
    if any(state is None or state.next_fire_at for state in due) or await _has_outbox(store):
        return False
    # Pending twice: a task that failed between two looks waits for its retry.
    for status in (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.PENDING):
        if (await store.list_tasks(status=status, limit=1)).items:
            return False
    labels = [container.labels for container in await sandbox.owned_containers(store.store_id)]
    return all(isinstance(one, WarmLabels) and any(member.owns(one) for member in members) for one in labels)


async def _has_outbox(store: Store) -> bool:
    if not isinstance(store, MongoStore):
        return False
    query = {OUTBOX_SINCE: {"$gt": datetime.fromtimestamp(0, UTC)}}
    return await store._db.find_one("schedules", query, fields=["_id"]) is not None


async def collect(
    store: Store,
    sandbox: Sandbox,
    sights: Sequence[Sight],
    switched: Mapping[int, Sequence[Switched]] = MappingProxyType({}),
) -> Facts:
    """Return all facts there are."""
    tasks: list[Task] = []
    agents = []
    total = (await store.list_tasks(limit=1)).total_count
    for offset in range(0, total, _PAGE):
        tasks += (await store.list_tasks(limit=_PAGE, offset=offset)).items
    for agent in (await store.list_agents(limit=_PAGE)).items:
        state = (await store.get_schedule(agent.id)).state
        assert state is not None
        newest = await store.newest_artifact(agent.id)
        history = await store.artifact_history(agent.id, limit=100_000)
        switches = switched.get(agent.id, ())
        agents.append(AgentSeen(agent.id, agent.config, state, list(reversed(history)), newest, switches))
    logs = {task.id: await store.read_logs(task.id) for task in tasks if task.attempts}
    left = [container.container_id for container in await sandbox.owned_containers(store.store_id)]
    slack = timedelta(seconds=6 * LEASE_SECONDS if isinstance(store, MongoStore) else 0)
    return Facts(agents, list(reversed(tasks)), logs, list(sights), containers_left=left, stamp_slack=slack)


@asynccontextmanager
async def _engine(image: str) -> AsyncIterator[OwnEngine | None]:
    """An engine that may be killed; None where this machine lets us start none."""
    if not can_start_engines():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="harness-engine-") as folder:
        engine = OwnEngine(Path(folder))
        try:
            await engine.start()
            await engine.load_image(image)
            yield engine
        finally:
            await asyncio.to_thread(engine.end)


@asynccontextmanager
async def _store(what: Torture, folder: Path) -> AsyncIterator[tuple[dict[str, str], StoreOutage]]:
    """Where the store is, for the processes' environment, and how it is taken away."""
    if what.store == "sqlite":
        yield {"HARNESS_MONGODB_URI": ""}, lock_sqlite(folder / "data" / "harness.db")
        return
    server = MongoServer(folder / "mongo")
    try:
        await asyncio.to_thread(server.start)
        yield {"HARNESS_MONGODB_URI": server.uri}, freeze_process(server.process)
    finally:
        server.stop()
