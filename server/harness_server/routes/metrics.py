"""``/metrics``: what the server counts and times, for Prometheus. Outside of ``/api``, where scrapers look for it."""

from __future__ import annotations

from aiohttp import web

from harness_server.endpoint import Answer, Call, Endpoint, NoQuery, Scope
from harness_server.monitoring import SCRAPER, answer_scrape


async def metrics(call: Call[NoQuery, None]) -> web.Response:
    """Get the server's metrics."""
    return await answer_scrape(call.request, call.request.app[SCRAPER])


#: Not in the API's own list: like the probes it is for programs that know it, and no part of the client library.
routes = [
    Endpoint(
        method="GET",
        path="/metrics",
        handler=metrics,
        scope=Scope.READ,
        answers={200: Answer("In Prometheus' text format, or as OpenMetrics.", media_type="text/plain")},
    ),
]
