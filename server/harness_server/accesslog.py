"""The outermost middleware: what each request was, how it ended and how long it took."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter

from aiohttp import web
from aiohttp.typedefs import Handler

from harness_server.endpoint import Endpoint
from harness_server.middleware import REQUEST_ID
from harness_server.monitoring import MONITOR

logger = logging.getLogger(__name__)

#: From here on a request is slow, in seconds; all that take longer by design are streams or say `wait` in their query.
SLOW_SECONDS = 1.0

#: What is counted in place of an endpoint where there is none: unknown paths and wrong methods.
NO_ENDPOINT = "none"


@web.middleware
async def watch_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count, time and log a request: by its endpoint's name, never by its path, which can be anything."""
    began = perf_counter()
    try:
        answer = await handler(request)
    except asyncio.CancelledError:
        # The connection broke, or the server stops.
        request.app[MONITOR].metrics.request_ended(endpoint_name(request), "cancelled", None)
        raise
    _take_note(request, answer, perf_counter() - began)
    return answer


def endpoint_name(request: web.Request) -> str:
    """Return the declared name of what a request asks for."""
    if request.match_info.http_exception is not None:
        return NO_ENDPOINT
    handler = request.match_info.handler
    owner = getattr(handler, "__self__", None)
    return owner.name if isinstance(owner, Endpoint) else str(getattr(handler, "__name__", NO_ENDPOINT))


def _take_note(request: web.Request, answer: web.StreamResponse, seconds: float) -> None:
    name, monitor = endpoint_name(request), request.app[MONITOR]
    is_stream = not isinstance(answer, web.Response)
    monitor.metrics.request_ended(name, str(answer.status), None if is_stream else seconds)
    if monitor.tracing is not None and not is_stream:
        monitor.tracing.request_ended(name, request.method, answer.status, seconds, request[REQUEST_ID])
    is_slow = seconds >= SLOW_SECONDS and not is_stream and "wait" not in request.query
    level = logging.WARNING if is_slow else logging.INFO if monitor.logs_requests else logging.DEBUG
    if not logger.isEnabledFor(level):
        return
    extra = {
        "action": "request_slow" if is_slow else "request",
        "method": request.method[:20],
        "endpoint": name,
        "status": answer.status,
        "seconds": round(seconds, 6),
        "request_id": request[REQUEST_ID],
        "peer": request.remote or "",
    }
    logger.log(level, "%s %s: %d", extra["method"], name, answer.status, extra=extra)
