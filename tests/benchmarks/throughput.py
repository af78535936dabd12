"""Runs per second for a minute, beside ``docker run --rm`` under xargs at the same parallelism, in turns.

Ours goes the whole way: each run is a task that is enqueued, claimed, run, logged and stored by a real scheduler and
worker. What one run costs this process is counted on the way.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from tests.benchmarks.bench import Bench
from tests.benchmarks.contenders import PROGRAM
from tests.benchmarks.figures import Found, Goal, Row, row
from tests.benchmarks.service import Service, count_calls, started
from tests.benchmarks.warm import Pool, WatchedSandbox

from harness.models import Agent

#: Ours to ``docker run --rm`` with the same limits, at the same parallelism.
GOAL = 1.6
AT_A_TIME = (2, 4)
#: What ratios and goals are to.
BASE = "docker run --rm locked down"
#: Runs that say how many fill a turn, for each at a time.
_TRIAL = 3

#: Of the store's methods, those that write; the others read.
_WRITES = {"create_task", "claim_tasks", "append_logs", "append_samples", "extend_lease", "finish_task"}


@dataclass(slots=True)
class _Contender:
    """Somebody who can do a number of runs, so many at a time; and, by parallelism, his runs per second in each turn."""

    run_many: Callable[[int, int], Awaitable[float]]
    paces: dict[int, list[float]] = field(default_factory=dict)
    runs: Counter[int] = field(default_factory=Counter)

    async def turn(self, at_a_time: int, seconds: float) -> None:
        """Do as many as fill so many seconds, by the pace of the last turn."""
        paces = self.paces.setdefault(at_a_time, [])
        trial = _TRIAL * at_a_time
        pace = paces[-1] if paces else trial / await self.run_many(trial, at_a_time)
        count = max(2 * at_a_time, round(pace * seconds))
        paces.append(count / await self.run_many(count, at_a_time))
        self.runs[at_a_time] += count

    def row(self, name: str, at_a_time: int, base: _Contender) -> Row:
        """Return the median of the turns, and of the turns' ratios: what hit one turn hit both sides of its ratio."""
        paces = self.paces[at_a_time]
        found = row(f"{name}, {at_a_time} at a time", "runs/s", paces)
        # The high percentiles of a pace are its good ones.
        found = replace(found, p95=None, p99=None, count=self.runs[at_a_time])
        if base is self:
            return found
        ratios = [mine / theirs for mine, theirs in zip(paces, base.paces[at_a_time], strict=True)]
        beside = f"{BASE}, {at_a_time} at a time"
        return replace(found, ratio=round(statistics.median(ratios), 4), beside=beside)


@dataclass(slots=True)
class _Costs:
    """What runs cost this process."""

    runs: int = 0
    cpu_seconds: float = 0.0
    engine: Counter[str] = field(default_factory=Counter)
    store: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)

    @property
    def writes(self) -> int:
        return sum(count for name, count in self.store.items() if name in _WRITES)

    @property
    def reads(self) -> int:
        return self.store.total() - self.writes


@dataclass(slots=True)
class _Busy:
    """A service that can be kept busy, and the counts of what it does."""

    service: Service
    agents: list[Agent]
    counts: tuple[Counter[str], Counter[str], Counter[str]]


class _Ours:
    """A service for each parallelism, each kept busy by twice as many callers."""

    def __init__(self) -> None:
        self.services: dict[int, _Busy] = {}
        self.costs = _Costs()

    async def run_many(self, count: int, at_a_time: int) -> float:
        busy, costs = self.services[at_a_time], self.costs
        numbers = iter(range(count))

        async def call(agent: Agent) -> None:
            for _ in numbers:
                await busy.service.run(agent)

        # What it does between its turns is not these runs' cost.
        for counter in busy.counts:
            counter.clear()
        cpu_before = time.process_time()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for agent in busy.agents:
                group.create_task(call(agent))
        took = time.perf_counter() - began
        await busy.service.idle()
        costs.cpu_seconds += time.process_time() - cpu_before
        costs.runs += count
        for total, counter in zip((costs.engine, costs.store, costs.origins), busy.counts, strict=True):
            total.update(counter)
        return took


@asynccontextmanager
async def _ours(bench: Bench, *, is_warm: bool) -> AsyncIterator[_Ours]:
    ours = _Ours()
    async with AsyncExitStack() as stack:
        for at_a_time in AT_A_TIME:
            spare = 2 * at_a_time if is_warm else 0
            runtime = await stack.enter_async_context(bench.runtime(warm=spare))
            sandbox = WatchedSandbox(runtime.sandbox)
            service = await stack.enter_async_context(
                started(runtime.store, sandbox, runtime.settings, max_concurrent=at_a_time)
            )
            # No agent runs twice at a time.
            agents = [await service.create(f"hello {number}", PROGRAM) for number in range(2 * at_a_time)]
            await service.run(agents[0])
            if is_warm:
                # From here on the worker fills it up by itself.
                pool = Pool(runtime.sandbox, runtime.store, service.executor.owner)
                await pool.fill({sandbox.shape: spare})
            counts = (count_calls(runtime.sandbox.engine), service.ends.store_calls, sandbox.origins)
            ours.services[at_a_time] = _Busy(service, agents, counts)
        yield ours


async def measure(bench: Bench) -> Found:
    """Measure all contenders at each parallelism, in turns."""
    sizes, docker = bench.sizes, bench.docker
    async with AsyncExitStack() as stack:
        ours = {"cold": await stack.enter_async_context(_ours(bench, is_warm=False))}
        ours["warm"] = await stack.enter_async_context(_ours(bench, is_warm=True))
        contenders = {
            "docker run --rm": _Contender(partial(docker.run_many, is_locked=False)),
            BASE: _Contender(partial(docker.run_many, is_locked=True)),
            **{name: _Contender(each.run_many) for name, each in ours.items()},
        }
        for _ in range(sizes.turns):
            for at_a_time in AT_A_TIME:
                for contender in contenders.values():
                    await contender.turn(at_a_time, sizes.seconds / sizes.turns)
    return _found(contenders, {name: each.costs for name, each in ours.items()}, sizes.turns)


def _found(contenders: dict[str, _Contender], costs: dict[str, _Costs], turns: int) -> Found:
    found = Found("throughput", "Sustained runs per second, with the store and the logs in the path")
    found.notes.append(f"medians of {turns} turns, and of their ratios; values: runs")
    for at_a_time in AT_A_TIME:
        base = contenders[BASE]
        for name, contender in {BASE: base, **contenders}.items():
            measured = contender.row(name, at_a_time, base)
            found.rows.append(measured)
            if name in costs:
                what = f"{name}, {at_a_time} at a time, to docker run --rm with the same limits"
                found.goals.append(Goal(what, measured.ratio, GOAL, at_most=False))
    for name, cost in costs.items():
        found.rows += [
            _cost(f"{name}: CPU of our process per run", "ms", cost.cpu_seconds * 1000, cost.runs),
            _cost(f"{name}: engine calls per run", "calls", cost.engine.total(), cost.runs),
            _cost(f"{name}: store writes per run", "calls", cost.writes, cost.runs),
            _cost(f"{name}: store reads per run", "calls", cost.reads, cost.runs),
        ]
        found.notes += [
            f"{name}, engine calls: {_per_run(cost.engine, cost.runs)}",
            f"{name}, store calls: {_per_run(cost.store, cost.runs)}",
            f"{name}, containers: {_per_run(cost.origins, cost.runs)}",
        ]
    return found


def _cost(name: str, unit: str, total: float, runs: int) -> Row:
    return Row(name, unit, round(total / runs, 3), count=runs)


def _per_run(counts: Counter[str], runs: int) -> str:
    return ", ".join(f"{name} {count / runs:.2f}" for name, count in counts.most_common())
