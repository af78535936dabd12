"""`Bench`: what every group of benchmarks is given: how much to measure, the engine and image, and runtimes of its own."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.contenders import Docker
from tests.benchmarks.figures import Found
from tests.benchmarks.machine import describe_machine

from harness.config import MIB
from harness.ports import SandboxLimits
from harness.sandbox.engine import Engine
from harness.settings import Settings
from harness.wiring import Runtime, open_runtime

#: Memory of a run where its agent's config says nothing, in MiB: `AgentExecutor`'s own default.
MEMORY_MB = 256


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    #: Of each contender in `startup` and `latency`.
    runs: int = 100
    #: Of each contender in `throughput`, in so many turns.
    seconds: float = 60
    turns: int = 12
    #: Tasks due at once, and how often.
    bursts: tuple[int, ...] = (40, 100)
    burst_rounds: int = 5
    #: Containers that idle, and tasks that run, while memory is measured.
    idle: int = 10
    running: int = 16
    running_seconds: float = 20
    #: Runs over which nothing may grow, after so many that warm up.
    growth_runs: int = 2000
    growth_warm_up: int = 200
    history: tuple[int, ...] = (1_000, 10_000, 100_000)
    history_runs: int = 50


FULL = Sizes()
#: Proves in a minute that the benchmarks work; the figures say little.
QUICK = Sizes(
    runs=3,
    seconds=2,
    turns=1,
    bursts=(4,),
    burst_rounds=1,
    idle=2,
    running=2,
    running_seconds=4,
    growth_runs=20,
    growth_warm_up=8,
    history=(100, 1_000),
    history_runs=5,
)


class Bench:
    """One run of the benchmarks."""

    def __init__(
        self, sizes: Sizes, folder: Path, settings: Settings, docker: Docker, machine: dict[str, str]
    ) -> None:
        self.sizes = sizes
        self.docker = docker
        self.machine = machine
        self._folder = folder
        self._settings = settings
        self._numbers = itertools.count(1)

    def new_folder(self) -> Path:
        """Return an empty folder that goes with this run."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    @asynccontextmanager
    async def runtime(
        self, *, folder: Path | None = None, warm: int = 0, keeps_all: bool = False
    ) -> AsyncIterator[Runtime]:
        """Open a runtime; when it is left, no container of its store is.

        Args:
            folder: Of its store. None: an empty one.
            warm: Containers that may wait in its pool.
            keeps_all: Nothing of an agent's history is deleted.
        """
        changes: dict[str, object] = {
            "data_dir": folder or self.new_folder(),
            "warm_containers": warm,
            "warm_memory_mb": max(warm, 1) * MEMORY_MB,
        }
        if keeps_all:
            changes |= {"retention_task_days": 0, "retention_max_tasks": 0}
        async with open_runtime(self._settings.model_copy(update=changes)) as runtime:
            try:
                yield runtime
            finally:
                for container in await runtime.sandbox.owned_containers(runtime.store.store_id):
                    await runtime.sandbox.remove_container(container.container_id)


#: A group of benchmarks.
Measure = Callable[[Bench], Awaitable[Found]]


def default_limits(settings: Settings) -> SandboxLimits:
    """Return the limits of an agent whose config says nothing."""
    return SandboxLimits(
        memory_bytes=MEMORY_MB * MIB,
        cpus=settings.cpus,
        max_processes=settings.max_processes,
        tmp_bytes=settings.max_tmp_mb * MIB,
        timeout_seconds=300,
        grace_seconds=settings.grace_seconds,
        output_bytes=settings.max_output_bytes,
        state_bytes=settings.max_state_bytes,
    )


@asynccontextmanager
async def open_bench(sizes: Sizes) -> AsyncIterator[Bench]:
    """Find the engine and its image; at the end, remove all that was made."""
    here = Settings.load()
    engine_only = {"docker_host", "docker_cert_path", "docker_tls_verify", "docker_context", "runtime_dir"}
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as name:
        folder = Path(name)
        # Everything but the engine is the product's default: nothing of a user's own store or limits comes in.
        defaults = {
            field: info.get_default(call_default_factory=True)
            for field, info in Settings.model_fields.items()
            if field not in engine_only
        }
        settings = here.model_copy(update=defaults | {"data_dir": folder})
        async with open_runtime(settings) as runtime:
            image = await runtime.images.ensure_default()
            engine: Engine = runtime.sandbox.engine
            docker = Docker(engine, image, default_limits(settings), folder)
            try:
                yield Bench(sizes, folder, settings, docker, await describe_machine(engine))
            finally:
                await docker.remove_all()
