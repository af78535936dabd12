"""``/metrics``: what the server counts and times, for Prometheus. Outside of ``/api``, where scrapers look for it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from harness.errors import AuthenticationError, PermissionDeniedError, StoreError, StoreUnavailableError
from harness.ports import Clock
from harness.tokens import Scope, hash_secret
from harness_server.auth import Gate
from harness_server.endpoint import Answer, Call, Endpoint, NoQuery
from harness_server.monitoring import SCRAPER, answer_scrape
from harness_server.scraping import ASK_TIMEOUT_SECONDS

#: How long a scraper that was let in is let in again while the store can't say whether it still may, in seconds.
TRUST_SECONDS = 3600.0
#: Scrapers that are remembered.
MAX_SCRAPERS = 100


class ScrapeGate:
    """Lets scrapers in as the gate does, and those it knows also while the store is away: that is what they watch for."""

    def __init__(self, gate: Gate, *, clock: Clock) -> None:
        self._gate = gate
        self._clock = clock
        #: When each was last let in, by its address and what it shows.
        self._admitted: dict[tuple[str, str], float] = {}

    async def admit(self, request: web.Request) -> None:
        """Return if the request may read.

        Raises:
            AuthenticationError: It has no valid token, and needs one.
            PermissionDeniedError: Its token does not reach that far.
            StoreUnavailableError: The store can't tell, and this scraper is not known.
        """
        key = (request.remote or "", hash_secret("\n".join(request.headers.getall("Authorization", []))))
        try:
            async with asyncio.timeout(ASK_TIMEOUT_SECONDS):
                (await self._gate.admit(request)).check(Scope.READ)
        except (AuthenticationError, PermissionDeniedError):
            self._admitted.pop(key, None)
            raise
        except (StoreError, TimeoutError):
            since = self._admitted.get(key)
            if since is None or self._clock.monotonic() - since > TRUST_SECONDS:
                raise StoreUnavailableError(
                    "the store does not answer, so nobody can tell whether you may see this; try again"
                ) from None
        else:
            self._admitted.pop(key, None)
            self._admitted[key] = self._clock.monotonic()
            if len(self._admitted) > MAX_SCRAPERS:
                del self._admitted[next(iter(self._admitted))]


SCRAPE_GATE = web.AppKey("scrape_gate", ScrapeGate)


async def metrics(call: Call[NoQuery, None]) -> web.Response:
    """Get the server's metrics."""
    await call.request.app[SCRAPE_GATE].admit(call.request)
    return await answer_scrape(call.request, call.request.app[SCRAPER])


#: Not in the API's own list: like the probes it is for programs that know it, and no part of the client library.
routes = [
    Endpoint(
        method="GET",
        path="/metrics",
        handler=metrics,
        # Its own gate asks for READ.
        scope=Scope.NONE,
        answers={200: Answer("In Prometheus' text format, or as OpenMetrics.", media_type="text/plain")},
    ),
]
