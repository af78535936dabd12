"""``harness serve``. The command line loads this module for its help page, so everything else is imported inside."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from harness.cli.service import DrainOption, LogFormatOption, MaxConcurrentOption, StopRequest, run_service
from harness.cli.servicelog import LogFormat

logger = logging.getLogger(__name__)


def serve(
    *,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Listen here instead of at HARNESS_HOST or 127.0.0.1; where others reach it, it takes a token.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Listen here instead of at HARNESS_PORT or 8000; 0 takes a free one.",
        ),
    ] = None,
    max_concurrent: MaxConcurrentOption = 5,
    retry_max_attempts: Annotated[
        int,
        typer.Option(
            "--retry-max-attempts",
            metavar="N",
            min=0,
            max=100,
            help="Retries of a failed task, for agents whose config sets no retry.max_attempts.",
        ),
    ] = 3,
    drain_seconds: DrainOption = 30.0,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Tell each request in the log, not only slow ones.")
    ] = False,
) -> None:
    """Run agents by their schedules until stopped, and answer over HTTP.

    Any number of servers and of `harness runner` may work on one store. While the store or the Docker Engine is away,
    it goes on, and /readyz says so; a store that is away at the start ends it with exit code 4.

    A stop (SIGTERM, Ctrl+C) fires and claims no more and waits --drain-seconds for runs to end, then stops them and
    hands their tasks back; a second one is at once, and the exit code is then 143 or 130 instead of 0.

    \b
    Examples:
      harness serve
      harness serve --port 8080 --max-concurrent 20 --log-format json
      curl -i http://127.0.0.1:8000/readyz
      curl http://127.0.0.1:8000/metrics
    """

    async def work(request: StopRequest) -> None:
        from harness.announce import announce_schedules
        from harness.settings import get_settings
        from harness_server.app import SchedulerOptions, make_app, serving
        from harness_server.keys import RUNTIME, SCHEDULER

        settings = get_settings().listening_at(host, port)
        app = make_app(
            settings, SchedulerOptions(max_concurrent, retry_max_attempts), logs_requests=log_requests
        )
        async with serving(app) as url:
            extra = {"action": "started", "url": url, "max_concurrent": max_concurrent}
            logger.info("listening at %s; running tasks, %d at a time", url, max_concurrent, extra=extra)
            await announce_schedules(app[RUNTIME].store)
            await request.wait()
            await app[SCHEDULER].stop(drain_seconds=drain_seconds)

    run_service(work, log_format)
