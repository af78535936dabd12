"""What is counted and logged of requests, with the endpoints of the real server and no parts behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tests.unit.shop import eventually

from harness.settings import Settings
from harness_server import accesslog
from harness_server.accesslog import watch_requests
from harness_server.endpoint import Answer, Call, Endpoint, NoQuery, Scope
from harness_server.keys import SETTINGS
from harness_server.metrics import Metrics
from harness_server.middleware import REQUEST_ID_HEADER, add_headers, problems, request_ids
from harness_server.monitoring import MONITOR, Monitor
from harness_server.routes import health

Client = TestClient[web.Request, web.Application]


async def echo(call: Call[NoQuery, None]) -> web.Response:
    """Answer."""
    return web.Response(text=call.request.match_info["word"])


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    return response


async def fail(_request: web.Request) -> web.Response:
    raise RuntimeError("a bug")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def make_app(metrics: Metrics, *, logs_requests: bool = True) -> web.Application:
    endpoint = Endpoint(
        method="GET", path="/echo/{word}", handler=echo, scope=Scope.NONE, answers={200: Answer("It.")}
    )
    app = web.Application(middlewares=(request_ids, watch_requests, problems))
    app[SETTINGS] = Settings(data_dir=Path("unused"))
    app[MONITOR] = Monitor(metrics, logs_requests=logs_requests)
    app.on_response_prepare.append(add_headers)
    app.add_routes([endpoint.route(), web.get("/stream", stream), web.get("/fail", fail), *health.routes])
    return app


@pytest.fixture
async def client(metrics: Metrics) -> AsyncIterator[Client]:
    async with TestClient(TestServer(make_app(metrics))) as client:
        yield client


def counted(metrics: Metrics, endpoint: str, status: str) -> float | None:
    return metrics.registry.get_sample_value(
        "harness_http_requests_total", {"endpoint": endpoint, "status": status}
    )


def timed(metrics: Metrics, endpoint: str) -> float | None:
    return metrics.registry.get_sample_value("harness_http_request_seconds_count", {"endpoint": endpoint})


def logged(caplog: pytest.LogCaptureFixture, action: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if getattr(record, "action", None) == action]


async def test_requests_are_counted_by_the_names_of_their_endpoints(client: Client, metrics: Metrics) -> None:
    for word in ("a", "b", "c"):
        await client.get(f"/echo/{word}")
    await client.get("/healthz")

    assert counted(metrics, "echo", "200") == timed(metrics, "echo") == 3
    assert counted(metrics, "healthz", "200") == 1


async def test_a_thousand_odd_paths_make_no_series_of_their_own(client: Client, metrics: Metrics) -> None:
    await client.get("/echo/a")
    await client.get("/none")
    await client.post("/echo/a")
    before = {str(sample.labels) for family in metrics.registry.collect() for sample in family.samples}

    for number in range(500):
        await client.get(f"/odd/{number}/%00%ff?{number}=x")
        await client.get(f"/echo/{number}%2e%2e")

    after = {str(sample.labels) for family in metrics.registry.collect() for sample in family.samples}
    assert after == before
    assert counted(metrics, "none", "404") == 501
    assert counted(metrics, "none", "405") == 1


async def test_a_bug_is_counted_as_what_the_client_saw(client: Client, metrics: Metrics) -> None:
    assert (await client.get("/fail")).status == 500

    assert counted(metrics, "fail", "500") == 1


async def test_a_stream_is_counted_and_not_timed(client: Client, metrics: Metrics) -> None:
    await (await client.get("/stream")).read()

    assert counted(metrics, "stream", "200") == 1
    assert timed(metrics, "stream") is None


async def test_a_request_is_one_line_without_what_it_carries(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "harness_server")

    answer = await client.get(
        "/echo/private", params={"token": "private"}, headers={"Authorization": "Bearer private"}
    )

    (line,) = logged(caplog, "request")
    assert {name: line[name] for name in ("method", "endpoint", "status", "peer", "request_id")} == {
        "method": "GET",
        "endpoint": "echo",
        "status": 422,
        "peer": "127.0.0.1",
        "request_id": answer.headers[REQUEST_ID_HEADER],
    }
    assert 0 < line["seconds"] < 60
    assert "private" not in str(line)


async def test_requests_are_not_told_unless_asked_for(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "harness_server")
    async with TestClient(TestServer(make_app(metrics, logs_requests=False))) as client:
        await client.get("/healthz")
        caplog.set_level(logging.DEBUG, "harness_server")
        await client.get("/healthz")

    assert [line["levelname"] for line in logged(caplog, "request")] == ["DEBUG"]


async def test_slow_requests_are_warnings_unless_they_wait_by_design(
    metrics: Metrics, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accesslog, "SLOW_SECONDS", 0.0)
    async with TestClient(TestServer(make_app(metrics, logs_requests=False))) as client:
        await client.get("/echo/a")
        await client.get("/echo/a?wait=5")
        await (await client.get("/stream")).read()

    (line,) = logged(caplog, "request_slow")
    assert (line["levelname"], line["endpoint"]) == ("WARNING", "echo")


async def test_a_client_that_goes_away_is_counted_apart(metrics: Metrics) -> None:
    app = make_app(metrics)
    waiting = asyncio.Event()

    async def wait(_request: web.Request) -> web.Response:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    app.add_routes([web.get("/wait", wait)])
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        asking = asyncio.ensure_future(client.get("/wait"))
        await waiting.wait()
        asking.cancel()
        await eventually(lambda: counted(metrics, "wait", "cancelled") == 1)

    assert timed(metrics, "wait") is None
