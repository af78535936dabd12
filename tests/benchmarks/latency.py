"""From enqueueing a task that does nothing to its final status in the store, through a real scheduler and worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.benchmarks.bench import Bench
from tests.benchmarks.figures import Found, Goal, milliseconds
from tests.benchmarks.service import Service, started
from tests.benchmarks.warm import Pool, WatchedSandbox

from harness.models import Agent
from harness.wiring import Runtime

#: To all of ``docker run --rm``.
WARM_GOAL = 1 / 5


class _Ours:
    """A service and an agent that does nothing."""

    def __init__(self, service: Service, sandbox: WatchedSandbox, runtime: Runtime, agent: Agent) -> None:
        self._service = service
        self._sandbox = sandbox
        self._pool = Pool(runtime.sandbox, runtime.store, service.executor.owner)
        self._agent = agent

    async def run(self, origin: str) -> float:
        """Run it once, in a warm container if that is wanted; return seconds."""
        if origin == "warm":
            await self._fill()
        seconds = await self._service.run(self._agent)
        await self._service.idle()
        if self._sandbox.origin != origin:
            raise SystemExit(f"a run that was to be {origin} was {self._sandbox.origin}")
        if origin == "warm":
            await self._fill()
        return seconds

    async def _fill(self) -> None:
        await self._pool.fill({self._sandbox.shape: 1})


@asynccontextmanager
async def _ours(bench: Bench, *, warm: int) -> AsyncIterator[_Ours]:
    async with bench.runtime(warm=warm) as runtime:
        sandbox = WatchedSandbox(runtime.sandbox)
        async with started(runtime.store, sandbox, runtime.settings) as service:
            agent = await service.create("nothing", "pass")
            ours = _Ours(service, sandbox, runtime, agent)
            await service.run(agent)  # says what shape to keep
            await service.idle()
            yield ours


async def measure(bench: Bench) -> Found:
    """Measure all contenders, each once per turn."""
    async with AsyncExitStack() as stack:
        contenders = {"cold": await stack.enter_async_context(_ours(bench, warm=0))}
        contenders["warm"] = await stack.enter_async_context(_ours(bench, warm=1))
        plain: list[float] = []
        ours: dict[str, list[float]] = {origin: [] for origin in contenders}
        for _ in range(bench.sizes.runs):
            plain.append((await bench.docker.run(is_locked=False))[1])
            for origin, contender in contenders.items():
                ours[origin].append(await contender.run(origin))
    found = Found("latency", "Task enqueued → final in the store, an agent that does nothing")
    base = milliseconds("docker run --rm, in all", plain)
    found.rows = [base, *(milliseconds(name, seconds, beside=base) for name, seconds in ours.items())]
    warm = next((row.ratio for row in found.rows if row.name == "warm"), None)
    found.goals = [Goal("enqueued → final, warm, p50 to all of docker run --rm", warm, WARM_GOAL)]
    return found
