from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from harness.errors import EngineUnavailableError, StoreUnavailableError
from harness.models import QueueStats
from harness_server import scraping
from harness_server.metrics import Metrics
from harness_server.scraping import Scraper

Scrape = Callable[[], Awaitable[dict[str, float]]]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BUSY = QueueStats(
    at=NOW, ready=3, ready_since=NOW - timedelta(seconds=7), waiting=2, delayed=1, running=4, expired=1
)


class Parts:
    """A store and an engine that can be away."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = asyncio.Event()
        self.hangs.set()
        self.asked = 0

    async def stats(self) -> QueueStats:
        self.asked += 1
        await self.hangs.wait()
        if self.error is not None:
            raise self.error
        return BUSY

    async def ping(self) -> None:
        if isinstance(self.error, EngineUnavailableError):
            raise self.error


@pytest.fixture
async def parts() -> Parts:
    return Parts()


@pytest.fixture
async def scrape(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scrape]:
    monkeypatch.setattr(scraping, "ASK_TIMEOUT_SECONDS", 0.02)
    scraper = Scraper(Metrics(), {"engine": parts.ping, "store": parts.ping}, parts.stats, lambda: 2)

    async def samples() -> dict[str, float]:
        body, content_type = await scraper.scrape("text/plain")
        assert content_type.startswith("text/plain; version=0.0.4")
        return {
            "".join([sample.name, *sample.labels.values()]): sample.value
            for family in parse_text(body.decode())
            for sample in family.samples
        }

    yield samples
    await scraper.close()


async def test_a_scrape_has_the_queue_and_what_answered(scrape: Scrape) -> None:
    seen = await scrape()

    assert seen["harness_queue_depthready"] == 3
    assert seen["harness_queue_depthwaiting"] == 2
    assert seen["harness_queue_depthdelayed"] == 1
    assert seen["harness_queue_oldest_secondsready"] == 7
    assert seen["harness_queue_oldest_secondswaiting"] == 0
    assert seen["harness_store_running_tasks"] == 4
    assert seen["harness_expired_leases"] == 1
    assert seen["harness_running_tasks"] == 2
    assert (seen["harness_store_up"], seen["harness_engine_up"]) == (1, 1)


@pytest.mark.parametrize("hangs", [True, False])
async def test_without_a_store_its_numbers_are_left_out_and_the_rest_is_there(
    scrape: Scrape, parts: Parts, hangs: bool
) -> None:
    await scrape()
    parts.error = StoreUnavailableError("gone")
    if hangs:
        parts.hangs.clear()

    seen = await scrape()

    assert (seen["harness_store_up"], seen["harness_engine_up"]) == (0, 1)
    assert not [name for name in seen if name.startswith(("harness_queue", "harness_expired"))]
    parts.error = None
    parts.hangs.set()
    assert (await scrape())["harness_store_up"] == 1


async def test_an_engine_that_is_away_takes_nothing_else_with_it(scrape: Scrape, parts: Parts) -> None:
    parts.error = EngineUnavailableError("gone")
    parts.hangs.clear()

    assert (await scrape())["harness_engine_up"] == 0


async def test_scrapes_do_not_pile_up_behind_a_store_that_hangs(scrape: Scrape, parts: Parts) -> None:
    parts.hangs.clear()

    await asyncio.gather(*(scrape() for _ in range(5)))

    assert parts.asked == 1


async def test_concurrent_scrapes_see_the_same(scrape: Scrape) -> None:
    seen = await asyncio.gather(*(scrape() for _ in range(5)))

    assert [each["harness_store_up"] for each in seen] == [1] * 5


async def test_openmetrics_is_answered_to_those_who_accept_it(parts: Parts) -> None:
    scraper = Scraper(Metrics(), {}, parts.stats, lambda: 0)

    body, content_type = await scraper.scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")

    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]  # without types in its package
    assert "harness_tasks" in {family.name for family in families}
