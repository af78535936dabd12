"""The server's composition root: from settings to an application whose parts live as long as it does."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from harness.announce import announce_parts
from harness.api import LocalApi
from harness.errors import AddressUnavailableError, HarnessError
from harness.sandbox.inspection import ping
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.wiring import open_runtime
from harness_server.endpoint import API, MAX_BODY_BYTES
from harness_server.keys import PROBES, RUNTIME, SCHEDULER, SETTINGS, STREAMS
from harness_server.middleware import add_headers, problems, request_ids
from harness_server.routes import ENDPOINTS, docs, health
from harness_server.streams import Streams

#: Time for open connections to end, in seconds.
SHUTDOWN_SECONDS = 2.0


def _is_ours_to_mend(record: logging.LogRecord) -> bool:
    """Whether a record of aiohttp's is about the server: whoever sends what is no HTTP must not fill its log."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_http_log = logging.getLogger("harness_server.http")
_http_log.addFilter(_is_ours_to_mend)


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """How many runs at a time, and how often a failed one is tried again where its agent does not say."""

    max_concurrent: int = 5
    retry_max_attempts: int = 3


OPTIONS = web.AppKey("options", SchedulerOptions)


def make_app(settings: Settings, options: SchedulerOptions) -> web.Application:
    """Return an application, not yet started; its start opens the store and starts the scheduler."""
    app = web.Application(middlewares=(request_ids, problems), client_max_size=MAX_BODY_BYTES)
    app[SETTINGS] = settings
    app[OPTIONS] = options
    app[STREAMS] = Streams()
    app.cleanup_ctx.extend((_runtime, _scheduler))
    app.on_shutdown.append(_stop_streams)
    app.on_response_prepare.append(add_headers)
    app.add_routes([*health.routes, *docs.routes])
    for endpoints in ENDPOINTS.values():
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
            app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, auto_decompress=False, logger=_http_log
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            yield _url(listener)
        finally:
            await runner.cleanup()


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


async def _runtime(app: web.Application) -> AsyncIterator[None]:
    async with open_runtime(app[SETTINGS]) as runtime:
        app[RUNTIME] = runtime
        await announce_parts(runtime)
        yield


async def _stop_streams(app: web.Application) -> None:
    app[STREAMS].stop()


async def _scheduler(app: web.Application) -> AsyncIterator[None]:
    runtime, options = app[RUNTIME], app[OPTIONS]
    scheduler = TaskScheduler(
        options.max_concurrent,
        options.retry_max_attempts,
        store=runtime.store,
        sandbox=runtime.sandbox,
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
    await scheduler.start()
    try:
        yield
    finally:
        await scheduler.stop(drain_seconds=0)
