"""From the request for a run to the first byte its program prints: ours beside the docker command and the SDK, in turns."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from tests.benchmarks.bench import Bench
from tests.benchmarks.contenders import PROGRAM
from tests.benchmarks.figures import Found, Goal, milliseconds
from tests.benchmarks.warm import Pool, WatchedSandbox

from harness.executor import AgentExecutor
from harness.models import Agent, AgentDraft
from harness.ports import SandboxShape
from harness.wiring import Runtime

#: Each ours to all of ``docker run --rm``, as a user types it.
COLD_GOAL = 0.5
WARM_P50_GOAL = 1 / 50
WARM_P99_GOAL = 1 / 10

#: Memory of an agent that no warm container fits, and that one of `bench.MEMORY_MB` can be adapted to, in MiB.
_OTHER_MEMORY_MB = 192


class _Ours:
    """Runs agents by themselves, without a worker."""

    def __init__(self, runtime: Runtime) -> None:
        self._store = runtime.store
        self._sandbox = WatchedSandbox(runtime.sandbox)
        self._executor = AgentExecutor(store=runtime.store, sandbox=self._sandbox, settings=runtime.settings)
        self._pool = Pool(runtime.sandbox, runtime.store, self._executor.owner)

    async def create(self, name: str, **limits: object) -> Agent:
        return await self._store.create_agent(AgentDraft(name=name, code=PROGRAM, config={"limits": limits}))

    async def run(self, agent: Agent, origin: str = "cold") -> float:
        """Run an agent; return seconds from before the claim to its first byte."""
        first = 0.0
        began = time.perf_counter()

        def on_output(_stream: str, _data: bytes) -> None:
            nonlocal first
            first = first or time.perf_counter() - began

        result = await self._executor.execute_agent(agent.id, on_output=on_output)
        if not result.success:
            raise SystemExit(f"the agent failed: {result.error_message}")
        if self._sandbox.origin != origin:
            raise SystemExit(f"a run that was to be {origin} was {self._sandbox.origin}")
        return first

    @property
    def shape(self) -> SandboxShape:
        """The shape of the last run."""
        return self._sandbox.shape

    async def fill(self, shape: SandboxShape) -> None:
        """Have a warm container of a shape."""
        await self._pool.fill({shape: 1})


async def measure(bench: Bench) -> Found:
    """Measure all contenders, each once per turn."""
    docker = bench.docker
    async with AsyncExitStack() as stack:
        cold = _Ours(await stack.enter_async_context(bench.runtime()))
        cold_agent = await cold.create("cold")
        contenders: dict[str, Callable[[], Awaitable[float]]] = {
            "SDK: create, attach, start": docker.run_by_sdk,
            "cold": lambda: cold.run(cold_agent),
        }
        warm = _Ours(await stack.enter_async_context(bench.runtime(warm=1)))
        warm_agent = await warm.create("warm")
        adapted_agent = await warm.create("adapted", max_memory_mb=_OTHER_MEMORY_MB)
        await warm.run(warm_agent)
        fill = partial(warm.fill, warm.shape)

        async def run_filled(agent: Agent, origin: str) -> float:
            await fill()
            seconds = await warm.run(agent, origin)
            # Before anybody else's turn: a refill would be at their cost.
            await fill()
            return seconds

        contenders["adapted"] = lambda: run_filled(adapted_agent, "adapted")
        contenders["warm"] = lambda: run_filled(warm_agent, "warm")

        plain: list[tuple[float, float]] = []
        locked: list[tuple[float, float]] = []
        firsts: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(-1, bench.sizes.runs):  # the first turn warms up
            one, other = await docker.run(is_locked=False), await docker.run(is_locked=True)
            times = {name: await run() for name, run in contenders.items()}
            if turn >= 0:
                plain.append(one)
                locked.append(other)
                for name, seconds in times.items():
                    firsts[name].append(seconds)
    return _found(plain, locked, firsts)


def _found(
    plain: list[tuple[float, float]], locked: list[tuple[float, float]], firsts: dict[str, list[float]]
) -> Found:
    base = milliseconds("docker run --rm, in all", [whole for _, whole in plain])
    found = Found("startup", "Request for a run → first byte of its output")
    found.rows = [
        base,
        milliseconds("docker run --rm, to the first byte", [first for first, _ in plain], beside=base),
        milliseconds("docker run --rm locked down, in all", [whole for _, whole in locked], beside=base),
        milliseconds(
            "docker run --rm locked down, to the first byte", [first for first, _ in locked], beside=base
        ),
        *(milliseconds(name, seconds, beside=base) for name, seconds in firsts.items()),
    ]
    rows = {row.name: row for row in found.rows}
    cold, warm = rows["cold"], rows.get("warm")
    found.goals = [
        Goal("cold, p50 to all of docker run --rm", cold.ratio, COLD_GOAL),
        Goal("warm, p50 to all of docker run --rm", None if warm is None else warm.ratio, WARM_P50_GOAL),
        Goal(
            "warm, p99 to the p50 of docker run --rm",
            None if warm is None else (warm.p99 or warm.p50) / base.p50,
            WARM_P99_GOAL,
        ),
    ]
    found.notes = [
        "ours is timed from before its claim is stored to the first byte in this process, in one call of execute_agent"
    ]
    return found
