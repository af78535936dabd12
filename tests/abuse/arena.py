"""Where cases happen: one server, a victim agent that fires every five seconds, and a client that asks all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from tests.abuse.case import Case, HarmError, Seen
from tests.abuse.clients.target import START_SECONDS, ClientCase, Target, attack, open_target
from tests.benchmarks.figures import percentile

from harness.client import HarnessClient
from harness.errors import ArtifactNotFoundError
from harness.models import AgentDraft, TaskStatus

#: Of the victim's schedule.
EVERY_SECONDS = 5
#: Between two questions of the client that measures.
ASK_SECONDS = 0.05
#: How long a case may take in all, in seconds; each has a time limit of its own that is far below.
CASE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one case."""

    case: Case | ClientCase
    observed: str
    seconds: float
    is_held: bool


@dataclass(slots=True)
class Neighbours:
    """How the others fared meanwhile."""

    fires: int = 0
    #: Fires of the victim that did not become a completed run, as words.
    missed: list[str] = field(default_factory=list)
    latest_start_seconds: float = 0.0
    answers_seconds: list[float] = field(default_factory=list)
    wrong_answers: int = 0

    @property
    def p99_seconds(self) -> float:
        return percentile(self.answers_seconds, 0.99)


class Arena:
    """A running server."""

    def __init__(self, client: HarnessClient, target: Target) -> None:
        self.client = client
        self.neighbours = Neighbours()
        self._target = target
        self._victim_id = 0

    async def add_victim(self) -> None:
        """Have an agent fire from now on."""
        config = {"schedule": {"type": "interval", "interval_seconds": EVERY_SECONDS}}
        victim = await self.client.create_agent(
            AgentDraft(name="victim", code="print('still here')", config=config)
        )
        self._victim_id = victim.id

    async def ask_for_ever(self) -> None:
        """Ask the server for a list of tasks again and again, and note how long it takes."""
        headers = {"Authorization": f"Bearer {self._target.owner}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while True:
                began = time.perf_counter()
                async with session.get(f"{self._target.url}/api/tasks", params={"limit": 10}) as answer:
                    await answer.read()
                self.neighbours.answers_seconds.append(time.perf_counter() - began)
                self.neighbours.wrong_answers += answer.status != 200
                await asyncio.sleep(ASK_SECONDS)

    async def run(self, case: Case | ClientCase) -> Result:
        """Have a hostile agent run, or a hostile client attack, and judge."""
        began = time.perf_counter()
        try:
            if isinstance(case, ClientCase):
                # In a thread of its own, so that the client that measures does not wait for what attackers compute.
                attacking = attack(case, self._target, seconds=CASE_SECONDS)
                observed = await asyncio.to_thread(asyncio.run, attacking)
            else:
                observed = case.judge(await self._see(case))
            is_held = True
        except HarmError as harm:
            observed, is_held = str(harm), False
        return Result(case, observed, time.perf_counter() - began, is_held)

    async def _see(self, case: Case) -> Seen:
        config = {"limits": dict(case.limits), "retry": {"max_attempts": 0}, "egress": list(case.egress)}
        name = f"{case.group}: {case.attack}"[:100]
        agent = await self.client.create_agent(AgentDraft(name=name, code=case.code, config=config))
        task = await self.client.run(agent.id, wait_seconds=CASE_SECONDS)
        if not task.status.is_final:
            raise HarmError(f"it still was {task.status} after {CASE_SECONDS} s")
        text = {"stdout": "", "stderr": ""}
        async for event in self.client.log_events(task.id, follow=False):
            if event.kind in text:
                text[event.kind] += event.text
        try:
            state = dict((await self.client.get_handoff(agent.id)).state)
        except ArtifactNotFoundError:
            state = None
        return Seen(task, text["stdout"], text["stderr"], state)

    async def look_after_victim(self) -> None:
        """End the victim's schedule, after one fire at least, and note what became of its fires."""
        async with asyncio.timeout(EVERY_SECONDS + START_SECONDS):
            while not (await self.client.list_tasks(agent_id=self._victim_id, limit=1)).items:  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.1)
        await self.client.delete_schedule(self._victim_id)
        async with asyncio.timeout(START_SECONDS):
            while True:
                tasks = (await self.client.list_tasks(agent_id=self._victim_id, limit=1000)).items
                if all(task.status.is_final for task in tasks):
                    break
                await asyncio.sleep(0.1)
        fires = [task for task in tasks if task.fire_at is not None]
        self.neighbours.fires = len(fires)
        for task in fires:
            if task.status is not TaskStatus.COMPLETED:
                self.neighbours.missed.append(
                    f"{task.fire_at}: {task.status}, {task.reason or task.skip_reason}"
                )
            elif task.started_at is not None and task.fire_at is not None:
                late = (task.started_at - task.fire_at).total_seconds()
                self.neighbours.latest_start_seconds = max(late, self.neighbours.latest_start_seconds)


@asynccontextmanager
async def open_arena(folder: Path) -> AsyncIterator[Arena]:
    """Start a server on a store of its own; end it when this is left."""
    async with (
        open_target(folder, "--log-format", "json") as target,
        HarnessClient(target.url, token=target.owner) as client,
    ):
        arena = Arena(client, target)
        await arena.add_victim()
        asking = asyncio.create_task(arena.ask_for_ever())
        try:
            yield arena
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
