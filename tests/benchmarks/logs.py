"""A million lines through the product, to a client that reads them as they come, beside ``docker logs -f`` of the same.

The program is the same, and so is the image. Theirs is timed from ``docker run -d`` to the last line out of ``docker logs
-f``, ours from the request for the run to the last line out of ``HarnessClient.logs``; the two in turns. While ours goes
on, another client asks for the task again and again, as a dashboard does, and the server's memory is sampled.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.server import serving

from harness.client import HarnessClient
from harness.models import AgentDraft
from harness.settings import Settings
from harness.wiring import open_runtime

#: Ours beside theirs, in lines per second.
GOAL = 0.5
#: Bound on the 99th percentile of other requests meanwhile, in milliseconds.
REQUEST_GOAL_MS = 50.0
#: How much larger a server may be at the end than when the first tenth was through, in MiB.
GROWTH_GOAL_MB = 48.0
LINE = "line {n:07d} of a program that has a lot to say"

_PROGRAM = """
import sys
sys.stdout.reconfigure(line_buffering=True)
for n in range({lines}):
    print(f"line {{n:07d}} of a program that has a lot to say")
"""
#: Between two requests of the other client, in seconds.
_ASK_SECONDS = 0.02


@dataclass(frozen=True)
class LogFigures:
    """What was measured."""

    lines: int
    #: To the last line, in seconds.
    docker_seconds: float
    our_seconds: float
    #: Lines per second, ours to theirs.
    ratio: float
    requests: int
    request_p50_ms: float
    request_p99_ms: float
    #: The same while it was docker's turn and the server had nothing else to do: what the machine's load alone costs.
    beside_docker_p99_ms: float
    #: Resident memory of the server when a tenth was through, and the highest later.
    early_memory_mb: float
    peak_memory_mb: float


#: ``docker logs -f`` now and then ends in the midst of a log on a busy machine; then it is asked anew.
DOCKER_TRIES = 3


async def docker_logs(environment: dict[str, str], image: str, lines: int) -> float:
    """Follow the program's log as a user would; return seconds to the last line."""
    seen = 0
    for _ in range(DOCKER_TRIES):
        seconds, seen = await _follow_once(environment, image, lines)
        if seen >= lines:
            return seconds
    raise SystemExit(f"docker logs -f gave {seen} of {lines} lines, and no more in {DOCKER_TRIES} tries")


async def _follow_once(environment: dict[str, str], image: str, lines: int) -> tuple[float, int]:
    """Return the seconds to the last line that came, and how many did."""

    async def docker(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "docker", *arguments, stdout=asyncio.subprocess.PIPE, env=environment
        )
        out, _ = await process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"docker {arguments[0]} ended with code {process.returncode}")
        return out.decode().strip()

    began = time.perf_counter()
    program = _PROGRAM.format(lines=lines)
    container = await docker(
        "run", "-d", "--network", "none", "--entrypoint", "python3", image, "-c", program
    )
    try:
        following = await asyncio.create_subprocess_exec(
            "docker", "logs", "-f", container, stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert following.stdout is not None
        seen = 0
        # Lines are counted and no more: what is measured is how fast they come.
        while seen < lines and (data := await following.stdout.read(1 << 20)):
            seen += data.count(b"\n")
        seconds = time.perf_counter() - began
        await following.communicate()
        return seconds, seen
    finally:
        await docker("rm", "-f", container)


@dataclass(frozen=True)
class _Ours:
    """One run of ours."""

    task_id: int
    seconds: float
    early_memory_mb: float


async def our_logs(url: str, pid: int, lines: int) -> _Ours:
    """Run the agent and follow its log to the last line."""
    async with HarnessClient(url) as client:
        limits = {"max_output_bytes": 256 * 1024 * 1024, "max_memory_mb": 128}
        draft = AgentDraft(
            name=f"bench-{lines}", code=_PROGRAM.format(lines=lines), config={"limits": limits}
        )
        agent = await client.create_agent(draft)
        began = time.perf_counter()
        task = await client.run(agent.id, {}, save_handoff=False)
        seen, early = 0, 0.0
        async for line in client.logs(task.id):
            if line.text != LINE.format(n=seen):
                raise SystemExit(f"line {seen} came as {line.text!r}")
            seen += 1
            if seen == lines // 10:
                early = resident_mb(pid)
        if seen != lines:
            raise SystemExit(f"{seen} of {lines} lines came")
        return _Ours(task.id, time.perf_counter() - began, early)


@asynccontextmanager
async def _asking(url: str, task_id: int, pid: int) -> AsyncIterator[list[tuple[list[float], float]]]:
    """Have a process of its own ask for a task meanwhile, so that what it measures is the server; yield its findings."""
    asker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.benchmarks.logs", url, str(task_id), str(pid),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert asker.stdout is not None
    await asker.stdout.readline()
    found: list[tuple[list[float], float]] = []
    try:
        yield found
    finally:
        out, _ = await asker.communicate(b"")
        found.append(tuple(json.loads(out)))


async def ask(url: str, task_id: int, pid: int) -> None:
    """Ask for a task again and again until stdin ends; print the seconds of each, and the server's highest memory."""
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    asked: list[float] = []
    peak = 0.0
    async with HarnessClient(url) as client:
        await client.get_task(task_id)
        print("ready", flush=True)
        while not ended.done():
            sent = time.perf_counter()
            await client.get_task(task_id)
            asked.append(time.perf_counter() - sent)
            peak = max(peak, resident_mb(pid))
            await asyncio.sleep(_ASK_SECONDS)
    print(json.dumps([asked, peak]))


def resident_mb(pid: int) -> float:
    """Return how much memory a process holds (proc(5), statm)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


async def measure(lines: int) -> LogFigures:
    """Measure both, after a short run of each."""
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as folder:
        async with open_runtime(Settings.load().model_copy(update={"data_dir": Path(folder)})) as runtime:
            image = await runtime.images.ensure_default()
            docker_host = runtime.sandbox.engine.address.url
        environment = {**os.environ, "DOCKER_HOST": docker_host}
        async with serving(Path(folder), docker_host) as server:
            await docker_logs(environment, image, 1000)
            warm = await our_logs(server.url, server.pid, 1000)
            async with _asking(server.url, warm.task_id, server.pid) as beside:
                theirs = await docker_logs(environment, image, lines)
            async with _asking(server.url, warm.task_id, server.pid) as found:
                ours = await our_logs(server.url, server.pid, lines)
            floor, (asked, peak) = sorted(beside[0][0]), found[0]
    asked.sort()
    return LogFigures(
        lines=lines,
        docker_seconds=round(theirs, 2),
        our_seconds=round(ours.seconds, 2),
        ratio=round(theirs / ours.seconds, 2),
        requests=len(asked),
        request_p50_ms=round(asked[len(asked) // 2] * 1000, 1),
        request_p99_ms=round(asked[int(len(asked) * 0.99)] * 1000, 1),
        beside_docker_p99_ms=round(floor[int(len(floor) * 0.99)] * 1000, 1),
        early_memory_mb=round(ours.early_memory_mb, 1),
        peak_memory_mb=round(max(peak, ours.early_memory_mb), 1),
    )


def compare(lines: int, json_path: Path | None) -> None:
    """Measure, print the figures, and write them as JSON where that is wanted."""
    figures = asyncio.run(measure(lines))
    for name, value in asdict(figures).items():
        print(f"{name:>20}: {value:,}")
    print(
        f"the goals: a ratio of at least {GOAL}, a p99 of at most {REQUEST_GOAL_MS:g} ms, growth by at most "
        f"{GROWTH_GOAL_MB:g} MiB"
    )
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(figures), indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(ask(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
