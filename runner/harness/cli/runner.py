"""``harness runner``: a worker alone, beside a ``harness serve`` on the same store."""

from __future__ import annotations

import logging

from harness.cli.service import (
    DrainOption,
    LogFormatOption,
    MaxConcurrentOption,
    StopRequest,
    run_service,
)
from harness.cli.servicelog import LogFormat

logger = logging.getLogger(__name__)


def runner(
    *,
    max_concurrent: MaxConcurrentOption = 5,
    drain_seconds: DrainOption = 30.0,
    log_format: LogFormatOption = LogFormat.TEXT,
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
                await request.wait()
                await worker.stop(drain_seconds=drain_seconds)
            finally:
                await worker.kill()

    run_service(work, log_format)
