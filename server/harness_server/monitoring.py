"""What measures one process: metrics always, traces where they are asked for; of `harness serve` and `harness runner`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from harness.errors import AddressUnavailableError
from harness.sandbox.inspection import ping
from harness.settings import Settings
from harness.telemetry import Telemetries, Telemetry
from harness.wiring import Runtime
from harness_server.metrics import Metrics
from harness_server.scraping import Scraper

if TYPE_CHECKING:
    from harness_server.tracing import Tracing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Monitor:
    """Metrics and traces of one process."""

    metrics: Metrics
    tracing: Tracing | None = None
    #: Whether each request is told in the log.
    logs_requests: bool = False

    @property
    def telemetry(self) -> Telemetry:
        """What tells both."""
        return self.metrics if self.tracing is None else Telemetries(self.metrics, self.tracing)

    async def close(self) -> None:
        """Send the spans that are left."""
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)


#: What measures this process.
MONITOR = web.AppKey("monitor", Monitor)
SCRAPER = web.AppKey("scraper", Scraper)


def make_monitor(settings: Settings, *, logs_requests: bool = False) -> Monitor:
    """Return a process's monitor; it traces if OpenTelemetry is told where to send its spans."""
    return Monitor(Metrics(), _make_tracing(settings), logs_requests)


def _make_tracing(settings: Settings) -> Tracing | None:
    if settings.otlp_endpoint is None:
        return None
    try:
        from harness_server.tracing import Tracing
    except ImportError as error:
        logger.warning(
            "no traces, though OTEL_EXPORTER_OTLP_ENDPOINT is set: %s is not installed; run: "
            "pip install 'agent-harness[otel]'",
            error.name,
            extra={"action": "tracing_missing"},
        )
        return None
    return Tracing()


async def answer_scrape(request: web.Request, scraper: Scraper) -> web.Response:
    """Answer with a process's metrics, as OpenMetrics if the request asks for it."""
    body, content_type = await scraper.scrape(request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": content_type})


@asynccontextmanager
async def watch_runner(
    runtime: Runtime, *, port: int | None, running: Callable[[], int]
) -> AsyncIterator[Telemetry]:
    """Measure a process that serves nothing else, until the block is left.

    Args:
        runtime: What it works with; asked at each scrape.
        port: Where ``/metrics`` is answered, at 127.0.0.1; 0 takes a free one, None answers nowhere.
        running: How many tasks it runs.

    Yields:
        What is to be told.

    Raises:
        AddressUnavailableError: The port is taken.
    """
    monitor = make_monitor(runtime.settings)
    try:
        if port is None:
            yield monitor.telemetry
            return
        engine = runtime.sandbox.engine
        scraper = Scraper(
            monitor.metrics, {"engine": lambda: ping(engine)}, runtime.store.queue_stats, running
        )
        try:
            async with _answering(scraper, port) as url:
                logger.info("metrics at %s", url, extra={"action": "metrics_started", "url": url})
                yield monitor.telemetry
        finally:
            await scraper.close()
    finally:
        await monitor.close()


@asynccontextmanager
async def _answering(scraper: Scraper, port: int) -> AsyncIterator[str]:
    async def metrics(request: web.Request) -> web.Response:
        return await answer_scrape(request, scraper)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
        except OSError as error:
            raise AddressUnavailableError(
                f"can't answer metrics on 127.0.0.1 port {port}: {os.strerror(error.errno or 0)}; take another port by "
                "--metrics-port, or 0 for any"
            ) from error
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    finally:
        await runner.cleanup()
