"""What waits and what runs holds of the machine, and whether thousands of runs leave anything behind.

An idle container is measured as it waits for its job, which is what a warm one does. The server is a ``harness serve``
process with its default settings but for what runs at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from docker import APIClient
from tests.benchmarks.bench import Bench, default_limits
from tests.benchmarks.figures import Found, Goal, Row, row
from tests.benchmarks.server import Server, serving

from harness.client import HarnessClient
from harness.models import Agent, AgentDraft, Task, TaskStatus
from harness.ports import SandboxLabels, SandboxSpec
from harness.sandbox.stats import usage_from_stats
from harness.wiring import Runtime

#: Of a server's resident memory, in MiB, after it is warm.
GROWTH_GOAL_MB = 10.0
#: Runs at a time while growth is measured.
GROWTH_AT_A_TIME = 4
#: How long a server is watched for the lowest of its counts: connections and threads of the last run go first.
SETTLE_SECONDS = 5.0
#: Part of their time after which all tasks whose cost is measured have long begun.
_WELL_BEGUN = 0.6
#: Bound on one run.
_RUN_SECONDS = 120


@dataclass(frozen=True, slots=True)
class _Held:
    """What a process holds."""

    rss_mb: float
    fds: int
    threads: int
    sockets: int


def _held(process: psutil.Process) -> _Held:
    with process.oneshot():
        return _Held(
            process.memory_info().rss / 2**20,
            process.num_fds(),
            process.num_threads(),
            len(process.net_connections(kind="all")),
        )


async def _settled(process: psutil.Process) -> _Held:
    """Return the lowest of each that it comes down to by itself."""
    looks = []
    for _ in range(10):
        looks.append(_held(process))
        await asyncio.sleep(SETTLE_SECONDS / 10)
    return _Held(
        min(look.rss_mb for look in looks),
        min(look.fds for look in looks),
        min(look.threads for look in looks),
        min(look.sockets for look in looks),
    )


async def measure(bench: Bench) -> Found:
    """Measure containers that idle, a server that runs tasks, and one that has run many."""
    found = Found("memory", "Memory, threads, and growth")
    async with bench.runtime() as runtime:
        found.rows += await _idle_containers(bench, runtime)
        host = runtime.sandbox.engine.address.url
    found.rows += await _running_tasks(bench, host)
    await _growth(bench, host, found)
    return found


# Idle containers


async def _idle_containers(bench: Bench, runtime: Runtime) -> list[Row]:
    engine = runtime.sandbox.engine
    image = await runtime.images.ensure_default()
    limits = default_limits(runtime.settings)
    inside: list[float] = []
    shims: list[float] = []
    async with AsyncExitStack() as stack:
        for number in range(1, bench.sizes.idle + 1):
            labels = SandboxLabels(runtime.store.store_id, number, 1)
            session = await stack.enter_async_context(
                runtime.sandbox.open(SandboxSpec(limits=limits, labels=labels, image=image))
            )
            # Its interpreter is up when it takes no more processor time; a second is ten times what that needs.
            await asyncio.sleep(1)
            memory_mb = usage_from_stats(await engine.stats(session.container_id)).memory_mb
            if memory_mb is not None:
                inside.append(memory_mb)
            state = (await engine.call(APIClient.inspect_container, session.container_id))["State"]
            with contextlib.suppress(psutil.Error):  # the engine may be another machine's
                shims.append(_proportional_mb(psutil.Process(state["Pid"]).parent()))
    rows = [row("idle container, by its cgroup", "MiB", inside)]
    if shims:
        rows.append(row("idle container, its shim on the host (PSS)", "MiB", shims))
    return rows


def _proportional_mb(process: psutil.Process | None) -> float:
    """Return what a process has in memory, what it shares divided by those that share it: proc(5), smaps_rollup."""
    if process is None:
        raise psutil.NoSuchProcess(0)
    return float(process.memory_full_info().pss) / 2**20


# A server that runs tasks


async def _running_tasks(bench: Bench, host: str) -> list[Row]:
    count, seconds = bench.sizes.running, bench.sizes.running_seconds
    async with (
        serving(bench.new_folder(), host, "--max-concurrent", str(count)) as server,
        HarnessClient(server.url) as client,
    ):
        process = psutil.Process(server.pid)
        # What is loaded once, and the pools that grow to the number at a time, are there after these.
        short = [await _create(client, f"short {number}", "pass") for number in range(count)]
        await asyncio.gather(*(_run(client, agent) for agent in short))
        before = await _settled(process)
        code = f"import time; time.sleep({seconds})"
        long = [await _create(client, f"long {number}", code) for number in range(count)]
        running = [asyncio.create_task(_run(client, agent)) for agent in long]
        try:
            await asyncio.sleep(seconds * _WELL_BEGUN)
            active = await client.list_tasks(status=TaskStatus.RUNNING)
            if active.total_count != count:
                raise SystemExit(f"{active.total_count} of {count} tasks run after {seconds * _WELL_BEGUN} s")
            during = _held(process)
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return [
        Row("server, idle", "MiB", round(before.rss_mb, 1)),
        Row(
            "server, per running task", "MiB", round((during.rss_mb - before.rss_mb) / count, 3), count=count
        ),
        Row("server, threads, idle", "threads", before.threads),
        Row(
            "server, threads per running task",
            "threads",
            (during.threads - before.threads) / count,
            count=count,
        ),
    ]


async def _create(client: HarnessClient, name: str, code: str) -> Agent:
    return await client.create_agent(AgentDraft(name=name, code=code))


async def _run(client: HarnessClient, agent: Agent) -> Task:
    task = await client.run(agent.id, {}, save_handoff=False, wait_seconds=_RUN_SECONDS)
    if task.status is not TaskStatus.COMPLETED:
        raise SystemExit(f"task {task.id} is {task.status}: {task.error}")
    return task


# Growth


async def _growth(bench: Bench, host: str, found: Found) -> None:
    sizes, folder = bench.sizes, bench.new_folder()
    async with serving(folder, host, "--max-concurrent", str(GROWTH_AT_A_TIME)) as server:
        process = psutil.Process(server.pid)
        await _run_many(server, sizes.growth_warm_up)
        before = await _settled(process)
        await _run_many(server, sizes.growth_runs)
        after = await _settled(process)
    left = await _containers_of(bench, folder)
    after_runs = f"after {sizes.growth_runs:,} runs"
    growth = {
        "file descriptors": after.fds - before.fds,
        "threads": after.threads - before.threads,
        "sockets": after.sockets - before.sockets,
        "containers, once it has stopped": left,
    }
    grown_mb = round(after.rss_mb - before.rss_mb, 2)
    found.rows.append(Row(f"growth {after_runs}: memory", "MiB", grown_mb, count=sizes.growth_runs))
    found.goals.append(Goal(f"{after_runs}, growth of memory", grown_mb, GROWTH_GOAL_MB, " MiB"))
    for what, count in growth.items():
        found.rows.append(Row(f"growth {after_runs}: {what}", "", count, count=sizes.growth_runs))
        found.goals.append(Goal(f"{after_runs}, growth of {what}", count, 0))
    found.notes.append(f"growth is counted from the state after {sizes.growth_warm_up:,} runs that warm up")


async def _run_many(server: Server, count: int) -> None:
    numbers = iter(range(count))

    async def lane(client: HarnessClient, agent: Agent) -> None:
        for _ in numbers:
            await _run(client, agent)

    # With the block its connections end: they are no growth of the server's.
    async with HarnessClient(server.url) as client:
        agents = {agent.name: agent for agent in (await client.list_agents()).items}
        async with asyncio.TaskGroup() as group:
            for number in range(GROWTH_AT_A_TIME):
                name = f"hello {number}"
                agent = agents.get(name) or await _create(client, name, "print('hello')")
                group.create_task(lane(client, agent))


async def _containers_of(bench: Bench, folder: Path) -> int:
    """Return how many containers are left of a store whose server has ended; remove them."""
    async with bench.runtime(folder=folder) as runtime:
        return len(await runtime.sandbox.owned_containers(runtime.store.store_id))
