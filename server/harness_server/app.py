"""The server's composition root: from settings to an application whose parts live as long as it does."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from aiohttp import web

from harness.aio import uninterrupted
from harness.announce import announce_parts
from harness.api import LocalApi
from harness.errors import AddressUnavailableError, HarnessError, InvalidInputError, StoreError
from harness.observed import observed_sandbox, observed_store
from harness.polling import Outage
from harness.ports import Clock
from harness.sandbox.inspection import ping
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.wiring import open_runtime
from harness_server.accesslog import watch_requests
from harness_server.auditing import AUDITOR, Auditor
from harness_server.auth import GATE, Gate
from harness_server.bodies import BODIES, LINGER_SECONDS, Bodies
from harness_server.connections import CONNECTIONS, IDLE_SECONDS, Connections, http_logger, track_connections
from harness_server.endpoint import API, MAX_BODY_BYTES
from harness_server.hosts import HOST_RULES, HostRules, check_host
from harness_server.keys import PROBES, RUNTIME, SCHEDULER, SETTINGS, STREAMS
from harness_server.middleware import add_headers, check_version, problems, request_ids
from harness_server.monitoring import MONITOR, SCRAPER, make_monitor
from harness_server.routes import ENDPOINTS, docs, health, metrics
from harness_server.scraping import Scraper
from harness_server.streams import Streams

logger = logging.getLogger(__name__)

#: Time for open connections to end, in seconds.
SHUTDOWN_SECONDS = 2.0
#: Between two looks whether the tokens of requests under way are still valid, in seconds.
TOKEN_WATCH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """How many runs at a time, and how often a failed one is tried again where its agent does not say."""

    max_concurrent: int = 5
    retry_max_attempts: int = 3


OPTIONS = web.AppKey("options", SchedulerOptions)
#: Whether each request is told in the log.
LOGS_REQUESTS = web.AppKey("logs_requests", bool)


def make_app(
    settings: Settings, options: SchedulerOptions, *, logs_requests: bool = False
) -> web.Application:
    """Return an application, not yet started; its start opens the store and starts the scheduler."""
    app = web.Application(
        middlewares=(track_connections, request_ids, watch_requests, problems, check_version, check_host),
        client_max_size=MAX_BODY_BYTES,
    )
    app[SETTINGS] = settings
    app[OPTIONS] = options
    app[LOGS_REQUESTS] = logs_requests
    app[CONNECTIONS] = Connections(max_connections=settings.max_connections)
    app[BODIES] = Bodies(timeout_seconds=settings.request_timeout_seconds)
    app[HOST_RULES] = HostRules.of(settings)
    app[STREAMS] = Streams()
    app.cleanup_ctx.extend((_monitor, _runtime, _access, _scheduler))
    app.on_shutdown.append(_stop_streams)
    app.on_response_prepare.append(add_headers)
    app.add_routes([*health.routes, *docs.routes])
    for endpoints in (*ENDPOINTS.values(), metrics.routes):
        app.add_routes(endpoint.route() for endpoint in endpoints)
    return app


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Start an application and listen where its settings say, until the block is left.

    Yields:
        Its URL.

    Raises:
        AddressUnavailableError: It can't listen there; nothing was started then.
        StoreUnavailableError: The store does not answer.
    """
    settings = app[SETTINGS]
    # First of all: a second server on one address is a mistake, and must neither fire nor run anything.
    with _listen(settings.host, settings.port) as listener:
        # Bodies stay as they are sent: one that unfolds to a gigabyte is refused, not unfolded.
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=http_logger(),
            shutdown_timeout=SHUTDOWN_SECONDS,
            auto_decompress=False,
            lingering_time=LINGER_SECONDS,
            keepalive_timeout=IDLE_SECONDS,
        )
        try:
            await runner.setup()
            server, connections = runner.server, app[CONNECTIONS]
            assert server is not None
            accepting = await asyncio.get_running_loop().create_server(
                lambda: connections.wrap(server()), sock=listener, backlog=128
            )
            try:
                yield _url(listener)
            finally:
                accepting.close()
        finally:
            # A second signal that comes now has nothing left to hurry; cut in two, this would leave the store open.
            await uninterrupted(runner.cleanup())


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise AddressUnavailableError(
            f"can't listen on {host} port {port}: {os.strerror(error.errno or 0)}; end what is there, perhaps another "
            "harness serve, or take another port by --port or HARNESS_PORT"
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _monitor(app: web.Application) -> AsyncIterator[None]:
    app[MONITOR] = make_monitor(app[SETTINGS], logs_requests=app[LOGS_REQUESTS])
    yield
    await app[MONITOR].close()


async def _runtime(app: web.Application) -> AsyncIterator[None]:
    async with open_runtime(app[SETTINGS]) as opened:
        app[RUNTIME] = runtime = replace(opened, store=observed_store(opened.store, app[MONITOR].telemetry))
        await announce_parts(runtime)
        yield


async def _access(app: web.Application) -> AsyncIterator[None]:
    runtime, settings = app[RUNTIME], app[SETTINGS]
    if not settings.is_loopback and not await runtime.store.has_tokens():
        raise InvalidInputError(
            f"listening on {settings.host} lets others reach the API, and there is no token to ask them for; make one "
            "first: harness tokens create NAME --scope admin"
        )
    if settings.allowed_hosts and not await runtime.store.has_tokens():
        logger.warning(
            "HARNESS_ALLOWED_HOSTS is set and there is no token: whoever a proxy lets through may do everything",
            extra={"action": "open_behind_proxy"},
        )
    app[GATE] = gate = Gate(runtime.store, clock=runtime.clock, settings=settings)
    app[metrics.SCRAPE_GATE] = metrics.ScrapeGate(gate, clock=runtime.clock)
    app[AUDITOR] = Auditor(runtime.store, clock=runtime.clock, max_entries=settings.audit_max_entries)
    watching = asyncio.create_task(_watch_tokens(gate, runtime.clock))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


async def _watch_tokens(gate: Gate, clock: Clock) -> None:
    outage = Outage(clock, "looking for tokens that end", "token_watch")
    while True:
        try:
            await gate.cut_off()
        except StoreError as error:
            outage.failed(error)
        else:
            outage.over()
        await clock.sleep(TOKEN_WATCH_SECONDS)


async def _stop_streams(app: web.Application) -> None:
    app[STREAMS].stop()


async def _scheduler(app: web.Application) -> AsyncIterator[None]:
    runtime, options = app[RUNTIME], app[OPTIONS]
    scheduler = TaskScheduler(
        options.max_concurrent,
        options.retry_max_attempts,
        store=runtime.store,
        sandbox=observed_sandbox(runtime.sandbox, app[MONITOR].telemetry),
        clock=runtime.clock,
        settings=runtime.settings,
    )

    async def ask_scheduler() -> None:
        if not scheduler.is_started:
            raise HarnessError("it is being stopped")

    app[SCHEDULER] = scheduler
    app[API] = LocalApi(runtime.store, clock=runtime.clock, settings=runtime.settings, scheduler=scheduler)
    app[PROBES] = {
        "store": runtime.store.next_due_at,
        "engine": lambda: ping(runtime.sandbox.engine),
        "scheduler": ask_scheduler,
    }
    app[SCRAPER] = scraper = Scraper(
        app[MONITOR].metrics, app[PROBES], runtime.store.queue_stats, lambda: scheduler.running
    )
    await scheduler.start()
    try:
        yield
    finally:
        await scheduler.stop(drain_seconds=0)
        await scraper.close()
