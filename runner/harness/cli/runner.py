"""``harness runner``: a worker alone, beside a ``harness serve`` on the same store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.service import (
    DrainOption,
    LogFormatOption,
    MaxConcurrentOption,
    StopRequest,
    run_service,
)
from harness.cli.servicelog import LogFormat

logger = logging.getLogger(__name__)

#: How often the heartbeat file is written.
HEARTBEAT_SECONDS = 5.0


def runner(
    *,
    max_concurrent: MaxConcurrentOption = 5,
    drain_seconds: DrainOption = 30.0,
    log_format: LogFormatOption = LogFormat.TEXT,
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
        from harness.wiring import open_runtime
        from harness.worker import Worker

        async with open_runtime() as runtime:
            await announce_parts(runtime)
            executor = AgentExecutor(
                store=runtime.store, sandbox=runtime.sandbox, clock=runtime.clock, settings=runtime.settings
            )
            worker = Worker(executor, await executor.resolve(), max_concurrent=max_concurrent)
            worker.start()
            try:
                extra = {"action": "started", "owner": executor.owner, "max_concurrent": max_concurrent}
                logger.info("running tasks, %d at a time", max_concurrent, extra=extra)
                async with _heartbeat(heartbeat_file):
                    await request.wait()
                    await worker.stop(drain_seconds=drain_seconds)
            finally:
                await worker.kill()

    run_service(work, log_format)


@asynccontextmanager
async def _heartbeat(path: Path | None) -> AsyncIterator[None]:
    """Write a file again and again within the block, and take it away at its end."""
    if path is None:
        yield
        return
    _write(path)
    beating = asyncio.create_task(_beat(path))
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait([beating])
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one call, on a local disk


async def _beat(path: Path) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        try:
            _write(path)
        except OSError as error:
            # Whoever looks after the file notices that it gets old.
            logger.warning("the heartbeat is not written: %s", error, extra={"action": "heartbeat_failed"})


def _write(path: Path) -> None:
    path.write_text("alive\n")
