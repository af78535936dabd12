"""What is asked when Prometheus asks: the store's queue and whether the parts answer, each bounded in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from harness.errors import HarnessError
from harness.models import QueueStats
from harness_server.keys import Probe
from harness_server.metrics import Metrics

#: Bound on the questions of one scrape, in seconds; Prometheus gives up after ten by default.
ASK_TIMEOUT_SECONDS = 1.0

_NOTHING = QueueStats(at=datetime.fromtimestamp(0, UTC))


class Scraper(Collector):
    """Renders a process's metrics.

    A part that does not answer in time is reported as down, its numbers are left out, and it is not asked again before it
    has answered or failed: scrapes must not pile up behind a store that hangs.
    """

    def __init__(
        self,
        metrics: Metrics,
        probes: Mapping[str, Probe],
        queue_stats: Callable[[], Awaitable[QueueStats]],
        running: Callable[[], int],
    ) -> None:
        """Take what is asked.

        Args:
            metrics: Whose registry is rendered, with what is asked beside it.
            probes: By the name of the part; `store` is asked by `queue_stats` instead.
            queue_stats: `Store.queue_stats`.
            running: How many tasks this process runs.
        """
        self._metrics = metrics
        self._asks: dict[str, Probe] = {**probes, "store": queue_stats}
        self._running = running
        self._asked: dict[str, asyncio.Future[Any]] = {}
        self._asking = asyncio.Lock()
        #: Whether each part answered at the last scrape.
        self._up: dict[str, bool] = {}
        self._queue: QueueStats | None = None
        metrics.registry.register(self)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Ask the parts, and return what Prometheus reads, with its media type: the best that `accept` names."""
        async with self._asking:
            await self._ask()
            encode, content_type = choose_encoder(accept)
            return encode(self._metrics.registry), content_type

    async def close(self) -> None:
        """Give up questions that are under way."""
        for asked in self._asked.values():
            asked.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        self._asked.clear()

    async def _ask(self) -> None:
        for name, ask in self._asks.items():
            if name not in self._asked:
                self._asked[name] = asyncio.ensure_future(ask())
        await asyncio.wait(self._asked.values(), timeout=ASK_TIMEOUT_SECONDS)
        self._queue = None
        for name in self._asks:
            asked = self._asked.get(name)
            self._up[name] = asked is not None and asked.done() and self._answered(name)

    def _answered(self, name: str) -> bool:
        try:
            answer = self._asked.pop(name).result()
        except (HarnessError, asyncio.CancelledError):
            return False
        if name == "store":
            self._queue = answer
        return True

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Name what `collect` may yield; registering asks for it, and nothing was asked yet."""
        yield from self._families(_NOTHING)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield what was answered."""
        yield from self._families(self._queue)

    def _families(self, queue: QueueStats | None) -> Iterator[GaugeMetricFamily]:
        for name in self._asks:
            up = GaugeMetricFamily(f"harness_{name}_up", f"Whether the {name} answered just now.")
            up.add_metric([], float(self._up.get(name, False)))
            yield up
        yield GaugeMetricFamily(
            "harness_running_tasks", "Tasks that this process runs.", value=self._running()
        )
        if queue is None:
            return
        depth = GaugeMetricFamily(
            "harness_queue_depth", "Pending tasks in the store, by what they wait for.", labels=["state"]
        )
        for state in ("ready", "waiting", "delayed"):
            depth.add_metric([state], getattr(queue, state))
        yield depth
        oldest = GaugeMetricFamily(
            "harness_queue_oldest_seconds", "How long the oldest of them has been due.", labels=["state"]
        )
        for state, since in (("ready", queue.ready_since), ("waiting", queue.waiting_since)):
            oldest.add_metric([state], 0.0 if since is None else (queue.at - since).total_seconds())
        yield oldest
        yield GaugeMetricFamily(
            "harness_store_running_tasks",
            "Running tasks in the store, wherever they run.",
            value=queue.running,
        )
        yield GaugeMetricFamily(
            "harness_expired_leases", "Of those, the ones whose lease has run out.", value=queue.expired
        )
