"""Many tasks of 10 ms due at once, each in a container of its own: from the due instant to the last final status.

They are fired by schedules, so the way from the due instant to stored tasks is in it. Hatchet's published figure for 40
tasks on one worker, without containers, is 1.22 s; that of a dedicated worker of Windmill 2.09 s.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from tests.benchmarks.bench import Bench
from tests.benchmarks.figures import Found, Goal, Row, milliseconds
from tests.benchmarks.service import Service, started
from tests.benchmarks.warm import Pool, WatchedSandbox

from harness.wiring import Runtime

PROGRAM = "import time; time.sleep(0.01)"
#: Tasks, and seconds until all are final, with a pool of as many containers.
GOAL_TASKS = 40
GOAL_SECONDS = 1.2
#: Where containers have to be made, more at a time gain nothing on a few cores.
COLD_AT_A_TIME = 8
#: From storing the schedules to their due instant.
LEAD_SECONDS = 3
#: Bound on one burst.
BURST_SECONDS = 300


async def _burst(service: Service, name: str, count: int) -> tuple[float, float]:
    """Have so many agents due at one instant; return the seconds until the first and the last task is final."""
    due = (await service.store.now()).replace(microsecond=0) + timedelta(seconds=LEAD_SECONDS)
    schedule = {"type": "interval", "interval_minutes": 60 * 24 * 7, "start_at": due.isoformat()}
    before = len(service.ends.at)
    for number in range(count):
        await service.create(f"{name} {number}", PROGRAM, schedule=schedule)
    left = (due - await service.store.now()).total_seconds()
    if left <= 0:
        raise SystemExit(f"storing {count} agents took longer than {LEAD_SECONDS} s; the machine is too busy")
    due_at = time.perf_counter() + left
    async with asyncio.timeout(BURST_SECONDS):
        while len(service.ends.at) < before + count:  # noqa: ASYNC110 - looks at a count, which costs nothing
            await asyncio.sleep(0.002)
    service.ends.check()
    ended = sorted(at for at in service.ends.at.values() if at > due_at)
    await service.idle()
    return ended[0] - due_at, ended[-1] - due_at


class _Ours:
    """A service that takes bursts of one size."""

    def __init__(
        self, service: Service, sandbox: WatchedSandbox, runtime: Runtime, count: int, warm: int
    ) -> None:
        self._service = service
        self._sandbox = sandbox
        self._pool = Pool(runtime.sandbox, runtime.store, service.executor.owner)
        self._count = count
        self._warm = warm
        self._turns = itertools.count(1)

    async def burst(self) -> tuple[float, float]:
        await self._fill()
        self._sandbox.origins.clear()
        times = await _burst(self._service, f"due {next(self._turns)}", self._count)
        if self._warm and self._sandbox.origins["warm"] != self._count:
            raise SystemExit(f"of {self._warm} warm containers {dict(self._sandbox.origins)} were used")
        # Before anybody else's turn: a refill would be at their cost.
        await self._fill()
        return times

    async def _fill(self) -> None:
        if self._warm:
            await self._pool.fill({self._sandbox.shape: self._warm})


@asynccontextmanager
async def _ours(bench: Bench, count: int, *, is_warm: bool) -> AsyncIterator[_Ours]:
    warm = count if is_warm else 0
    async with bench.runtime(warm=warm) as runtime:
        sandbox = WatchedSandbox(runtime.sandbox)
        async with started(
            runtime.store, sandbox, runtime.settings, max_concurrent=warm or COLD_AT_A_TIME
        ) as service:
            await service.run(await service.create("first", PROGRAM))  # says what shape to keep
            await service.idle()
            yield _Ours(service, sandbox, runtime, count, warm)


async def _measure(bench: Bench, count: int) -> list[Row]:
    async with AsyncExitStack() as stack:
        contenders = {
            f"cold, {COLD_AT_A_TIME} at a time": await stack.enter_async_context(
                _ours(bench, count, is_warm=False)
            )
        }
        contenders[f"warm, pool of {count}"] = await stack.enter_async_context(
            _ours(bench, count, is_warm=True)
        )
        theirs: list[float] = []
        ours: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(bench.sizes.burst_rounds):
            theirs.append(
                await bench.docker.run_many(count, COLD_AT_A_TIME, is_locked=False, program=PROGRAM)
            )
            for name, contender in contenders.items():
                ours[name].append(await contender.burst())
    base = milliseconds(f"{count} x docker run --rm, {COLD_AT_A_TIME} at a time", theirs)
    rows = [base]
    for name, times in ours.items():
        rows += [
            milliseconds(f"{count} x {name}: the first", [first for first, _ in times]),
            milliseconds(f"{count} x {name}: all", [last for _, last in times], beside=base),
        ]
    return rows


async def measure(bench: Bench) -> Found:
    """Measure each size of a burst by all contenders, in turns."""
    found = Found("burst", "Tasks of 10 ms due at one instant → all of them final in the store")
    for count in bench.sizes.bursts:
        found.rows += await _measure(bench, count)
    wanted = f"{GOAL_TASKS} x warm, pool of {GOAL_TASKS}: all"
    all_warm = next((row.p50 / 1000 for row in found.rows if row.name == wanted), None)
    found.goals.append(Goal(f"{GOAL_TASKS} tasks of 10 ms, all final", all_warm, GOAL_SECONDS, " s"))
    return found
