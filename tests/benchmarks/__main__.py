"""Measure what a run in a fresh container costs beside ``docker run --rm`` of the same program on the same engine.

The two are measured in turns, so that whatever else the machine does hits both. A table goes to stdout, the figures as
JSON to the file named by ``--json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.benchmarks import logs, scheduling, store

from harness.executor import AgentExecutor
from harness.models import AgentDraft
from harness.settings import Settings
from harness.wiring import Runtime, open_runtime

PROGRAM = "print('hello')"
#: Goal of the first release: our time from claim to the agent's first byte, beside all of ``docker run --rm``.
COLD_GOAL = 0.6


@dataclass(frozen=True)
class Figure:
    """Milliseconds of one measured thing."""

    name: str
    p50: float
    p95: float
    p99: float
    runs: int


def figure(name: str, seconds: list[float]) -> Figure:
    """Summarise a series; with few runs the high percentiles are the highest values seen."""
    ordered = sorted(value * 1000 for value in seconds)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)

    return Figure(name, round(statistics.median(ordered), 1), at(0.95), at(0.99), len(ordered))


async def docker_run(environment: dict[str, str], image: str) -> tuple[float, float]:
    """Run the program as a user would; return seconds to its first byte, and in all."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *("docker", "run", "--rm", "--entrypoint", "python3", image, "-c", PROGRAM),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    await process.stdout.readexactly(1)
    first = time.perf_counter() - began
    await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"docker run ended with code {process.returncode}")
    return first, time.perf_counter() - began


async def our_run(executor: AgentExecutor, agent_id: int) -> tuple[float, float]:
    """Run the program as an agent; return seconds from before the claim to its first byte, and to the stored end."""
    first = 0.0
    began = time.perf_counter()

    def on_output(_stream: str, _data: bytes) -> None:
        nonlocal first
        first = first or time.perf_counter() - began

    result = await executor.execute_agent(agent_id, on_output=on_output)
    if not result.success:
        raise SystemExit(f"the agent failed: {result.error_message}")
    return first, time.perf_counter() - began


async def measure_cold(runtime: Runtime, runs: int) -> list[Figure]:
    """Measure both in turns."""
    image = await runtime.images.ensure_default()
    agent = await runtime.store.create_agent(AgentDraft(name="bench", code=PROGRAM))
    executor = AgentExecutor(store=runtime.store, sandbox=runtime.sandbox, settings=runtime.settings)
    environment = {**os.environ, "DOCKER_HOST": runtime.sandbox.engine.address.url}
    for _ in range(2):
        await docker_run(environment, image)
        await our_run(executor, agent.id)
    pairs = [(await docker_run(environment, image), await our_run(executor, agent.id)) for _ in range(runs)]
    return [
        figure("docker run --rm, to the first byte", [theirs[0] for theirs, _ in pairs]),
        figure("docker run --rm, in all", [theirs[1] for theirs, _ in pairs]),
        figure("cold: claim to the agent's first byte", [ours[0] for _, ours in pairs]),
        figure("cold: claim to the stored end of the task", [ours[1] for _, ours in pairs]),
    ]


async def main(runs: int, json_path: Path | None) -> None:
    """Run all benchmarks and print the table."""
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as folder:
        async with open_runtime(Settings.load().model_copy(update={"data_dir": Path(folder)})) as runtime:
            figures = await measure_cold(runtime, runs)
    base = figures[1].p50
    table = Table(
        title=f"{runs} runs each, in turns; milliseconds",
        caption=f"{platform.platform()}, {os.cpu_count()} cores",
    )
    for column in ("", "p50", "p95", "p99", "ratio of p50 to docker run --rm"):
        table.add_column(column, justify="left" if not column else "right")
    for row in figures:
        table.add_row(row.name, f"{row.p50}", f"{row.p95}", f"{row.p99}", f"{row.p50 / base:.2f}")
    Console(width=110).print(table)
    ratio = figures[2].p50 / base
    print(f"cold start: {ratio:.2f} of docker run --rm; the goal is at most {COLD_GOAL}")
    if json_path is not None:
        report = {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "figures": [asdict(row) for row in figures],
        }
        json_path.write_text(json.dumps(report, indent=2) + "\n")  # noqa: ASYNC240 - nothing else runs by now


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="how often each thing is measured (default: 30)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--scheduling", action="store_true", help="compare schedulers instead; takes minutes")
    parser.add_argument("--store", action="store_true", help="measure the embedded store instead")
    parser.add_argument(
        "--logs", action="store_true", help="follow a million lines instead, beside docker logs -f"
    )
    parser.add_argument(
        "--lines", type=int, default=1_000_000, help="how many, with --logs (default: 1000000)"
    )
    arguments = parser.parse_args()
    if arguments.scheduling:
        scheduling.compare()
    elif arguments.store:
        asyncio.run(store.main())
    elif arguments.logs:
        logs.compare(arguments.lines, arguments.json)
    else:
        asyncio.run(main(arguments.runs, arguments.json))
