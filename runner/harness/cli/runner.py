"""``harness runner``: a worker alone, beside a ``harness serve`` on the same store."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.heartbeat import heartbeat
from harness.cli.service import (
    DrainOption,
    LogFormatOption,
    MaxConcurrentOption,
    StopRequest,
    run_service,
)
from harness.cli.servicelog import LogFormat

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.telemetry import Telemetry
    from harness.wiring import Runtime

logger = logging.getLogger(__name__)


def runner(
    *,
    max_concurrent: MaxConcurrentOption = 5,
    drain_seconds: DrainOption = 30.0,
    log_format: LogFormatOption = LogFormat.TEXT,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            min=0,
            max=65535,
            help="Answer Prometheus at 127.0.0.1:PORT/metrics; 0 takes a free one.",
        ),
    ] = None,
    heartbeat_file: Annotated[
        Path | None,
        typer.Option(
            "--heartbeat-file",
            metavar="PATH",
            help="Written anew every 5 seconds while the process works; for health checks.",
        ),
    ] = None,
) -> None:
    """Run due tasks until stopped, without a scheduler or a server.

    Any number of them may work on one store, beside at least one `harness serve`, which turns schedules into tasks. A
    stop (SIGTERM, Ctrl+C) waits --drain-seconds for runs to end, then stops them and hands their tasks back; a second
    one is at once, and the exit code is then 143 or 130 instead of 0.

    \b
    Examples:
      harness runner
      harness runner --max-concurrent 20 --log-format json
    """

    async def work(request: StopRequest) -> None:
        from harness.announce import announce_parts
        from harness.executor import AgentExecutor
        from harness.observed import observed_sandbox, observed_store
        from harness.telemetry import Telemetry
        from harness.wiring import open_runtime
        from harness.worker import Worker

        async with open_runtime() as runtime, AsyncExitStack() as stack:
            await announce_parts(runtime)
            telemetry, workers = Telemetry(), list[Worker]()
            if metrics_port is not None or runtime.settings.otlp_endpoint is not None:
                watch = _watch(runtime, metrics_port, lambda: sum(worker.running for worker in workers))
                telemetry = await stack.enter_async_context(watch)
            executor = AgentExecutor(
                store=observed_store(runtime.store, telemetry),
                sandbox=observed_sandbox(runtime.sandbox, telemetry),
                clock=runtime.clock,
                settings=runtime.settings,
            )
            worker = Worker(executor, await executor.resolve(), max_concurrent=max_concurrent)
            workers.append(worker)
            worker.start()
            try:
                extra = {"action": "started", "owner": executor.owner, "max_concurrent": max_concurrent}
                logger.info("running tasks, %d at a time", max_concurrent, extra=extra)
                async with heartbeat(heartbeat_file):
                    await request.wait()
                    await worker.stop(drain_seconds=drain_seconds)
            finally:
                await worker.kill()

    run_service(work, log_format)


def _watch(
    runtime: Runtime, port: int | None, running: Callable[[], int]
) -> AbstractAsyncContextManager[Telemetry]:
    """Have the process measured by the server's package, which the library knows by its entry point only."""
    (entry,) = entry_points(group="harness.telemetry", name="runner")
    watch: Callable[..., AbstractAsyncContextManager[Telemetry]] = entry.load()
    return watch(runtime, port=port, running=running)
