"""Metrics and traces of `harness serve` and `harness runner` as processes, with real runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import aiohttp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from tests.sandboxes import wait_until
from tests.services import Site, site, stopwatch

from harness.models import Reason, TaskStatus
from harness.scheduler import TaskScheduler

__all__ = ["site"]

SLEEPS = "import time\ntime.sleep(60)\n"
FAILS = "raise SystemExit(3)\n"
ONCE = {"retry": {"max_attempts": 0}}


async def scrape(url: str, path: str = "/metrics") -> Mapping[str, float]:
    """Every sample, by its name and the values of its labels."""
    async with aiohttp.ClientSession() as session, session.get(url + path) as answer:
        assert answer.status == 200
        text = await answer.text()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def run(site: Site, code: str, name: str, status: TaskStatus, **config: object) -> None:
    agent = await site.create(code, name, **(ONCE | config))
    task = await TaskScheduler(store=site.store).trigger_now(agent.id)
    await site.until_status(task.id, status)


async def test_counters_move_with_what_becomes_of_tasks(site: Site) -> None:
    service = site.start("serve")
    url = await service.url()
    before = await scrape(url)

    await run(site, "print('hej')", "good", TaskStatus.COMPLETED)
    await run(site, FAILS, "bad", TaskStatus.FAILED)
    await run(site, SLEEPS, "slow", TaskStatus.FAILED, limits={"timeout_seconds": 0.3, "grace_seconds": 0})
    await run(site, FAILS, "again", TaskStatus.FAILED, retry={"max_attempts": 1, "delay_seconds": 0.05})
    after = await scrape(url)

    moved = {name: after[name] - before.get(name, 0) for name in after}
    assert {reason: moved[f"harness_tasks_total {reason}"] for reason in Reason} == {
        **dict.fromkeys(Reason, 0),
        Reason.COMPLETED: 1,
        Reason.EXIT_NONZERO: 2,
        Reason.TIMEOUT: 1,
    }
    assert moved["harness_attempts_total exit_nonzero"] == 3
    assert moved["harness_dispatch_latency_seconds_count"] == 5
    assert (
        sum(moved.get(f"harness_sandbox_start_seconds_count {origin}", 0) for origin in ("cold", "warm")) == 5
    )
    assert moved["harness_run_seconds_count timeout"] == 1
    assert after["harness_run_seconds_sum timeout"] >= 0.3
    assert moved["harness_store_call_seconds_count finish_task"] == 4
    assert (after["harness_running_containers"], after["harness_running_tasks"]) == (0, 0)
    assert (after["harness_store_up"], after["harness_engine_up"], after["harness_scheduler_up"]) == (1, 1, 1)
    assert after["harness_http_requests_total metrics 200"] == 1
    assert after["process_resident_memory_bytes"] > 1_000_000


async def test_fires_skips_and_what_runs_are_seen(site: Site) -> None:
    await site.create(SLEEPS, schedule={"type": "interval", "interval_seconds": 1})
    service = site.start("serve", "--drain-seconds", "0")
    url = await service.url()
    seen: Mapping[str, float] = {}

    async def has_skipped() -> bool:
        nonlocal seen
        seen = await scrape(url)
        return seen["harness_fires_total overlap"] >= 2 and seen["harness_running_containers"] == 1

    await wait_until(has_skipped, what="two skips and a container")

    assert seen["harness_fires_total task"] == seen["harness_fire_lateness_seconds_count"] == 1
    assert seen["harness_fire_lateness_seconds_sum"] < 1
    assert seen["harness_running_tasks"] == seen["harness_store_running_tasks"] == 1
    assert seen["harness_queue_depth ready"] == 0
    await TaskScheduler(store=site.store).pause(1)
    assert await service.stop() == 0


async def test_a_store_that_fails_fails_no_scrape(site: Site) -> None:
    service = site.start("serve")
    url = await service.url()
    assert (await scrape(url))["harness_store_up"] == 1
    file = sqlite3.connect(site.folder / "data" / "harness.db", isolation_level=None)
    # A lock would stop writers only.
    file.execute("ALTER TABLE tasks RENAME TO gone")
    try:
        seconds = stopwatch()
        seen = await scrape(url)
        assert seconds() < 2
        assert seen["harness_store_up"] == 0
        assert not [name for name in seen if name.startswith("harness_queue")]
        assert seen["harness_store_errors_total queue_stats"] == 1
        assert "harness_running_tasks" in seen
    finally:
        file.execute("ALTER TABLE gone RENAME TO tasks")
        file.close()

    assert (await scrape(url))["harness_store_up"] == 1


async def test_where_tokens_are_asked_for_a_scrape_takes_one(site: Site) -> None:
    service = site.start("serve")
    url = await service.url()
    token = (await site.command("tokens", "create", "prometheus", "--scope", "read")).strip()

    assert await status(url, None) == await status(url, token[:-1]) == 401
    assert await status(url, token) == 200

    await site.command("tokens", "revoke", "1")
    assert await status(url, token) == 401


async def status(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{url}/metrics") as answer:
        return answer.status


async def test_a_runner_answers_on_a_port_of_its_own(site: Site) -> None:
    service = site.start("runner", "--metrics-port", "0")
    url = (await service.until("metrics_started"))[0]["url"]
    await service.until("started")

    await run(site, "print('hej')", "good", TaskStatus.COMPLETED)

    async def is_told() -> bool:
        return (await scrape(url, ""))["harness_tasks_total completed"] == 1

    await wait_until(is_told, what="a task that is counted")
    seen = await scrape(url, "")
    assert (seen["harness_store_up"], seen["harness_engine_up"]) == (1, 1)
    assert "harness_scheduler_up" not in seen
    taken = site.start("runner", "--metrics-port", url.rpartition(":")[2].removesuffix("/metrics"))
    assert await taken.ended() == 1
    assert [event["code"] for event in taken.events("failed")] == ["address_unavailable"]
    assert await service.stop() == 0


class Collector(ThreadingHTTPServer):
    """Takes spans over OTLP."""

    def __init__(self) -> None:
        self.names: list[str] = []
        super().__init__(("127.0.0.1", 0), _Receiver)


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest.FromString(body)
        self.server.names += [
            span.name
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


async def test_spans_reach_a_collector(site: Site) -> None:
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{collector.server_port}"
            service = site.start("serve", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, NO_PROXY="127.0.0.1")
            url = await service.url()
            await run(site, "print('hej')", "good", TaskStatus.COMPLETED)
            await scrape(url)
            # The end sends what is left.
            assert await service.stop() == 0
        finally:
            collector.shutdown()
            thread.join()

    assert {"attempt", "queue", "container start", "agent", "save", "metrics"} <= set(collector.names)


async def test_a_collector_that_is_away_costs_spans_and_nothing_else(site: Site) -> None:
    service = site.start("serve", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", NO_PROXY="127.0.0.1")
    await service.url()

    await run(site, "print('hej')", "good", TaskStatus.COMPLETED)

    seconds = stopwatch()
    assert await service.stop() == 0
    assert seconds() < 6  # the exporter alone would try for ten
