"""`/healthz` and `/readyz` over HTTP, with parts that answer, fail and hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from harness.errors import EngineUnavailableError
from harness_server.keys import PROBES, Probe
from harness_server.routes import health


async def answer() -> None:
    """Be there."""


async def fail() -> None:
    raise EngineUnavailableError("the Docker Engine does not answer; start it")


async def hang() -> None:
    await asyncio.Event().wait()


Client = TestClient[web.Request, web.Application]


@pytest.fixture
def probes() -> dict[str, Probe]:
    return {"store": answer, "engine": answer}


@pytest.fixture
async def client(probes: dict[str, Probe]) -> AsyncIterator[Client]:
    app = web.Application()
    app[PROBES] = probes
    app.add_routes(health.routes)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_a_process_that_is_up_says_so_whatever_its_parts_do(
    client: Client, probes: dict[str, Probe]
) -> None:
    probes["store"] = fail
    answered = await client.get("/healthz")
    assert (answered.status, await answered.json()) == (200, {"status": "ok"})


async def test_it_is_ready_when_all_parts_answer(client: Client) -> None:
    answered = await client.get("/readyz")
    assert answered.status == 200
    assert await answered.json() == {
        "status": "ready",
        "missing": [],
        "checks": {"store": "ok", "engine": "ok"},
    }
    assert answered.headers["Cache-Control"] == "no-store"


async def test_it_names_what_fails_and_why(client: Client, probes: dict[str, Probe]) -> None:
    probes["engine"] = fail
    answered = await client.get("/readyz")
    assert answered.status == 503
    assert await answered.json() == {
        "status": "unavailable",
        "missing": ["engine"],
        "checks": {"store": "ok", "engine": "the Docker Engine does not answer; start it"},
    }


async def test_a_part_that_hangs_is_missing_after_a_moment(
    client: Client, probes: dict[str, Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT_SECONDS", 0.05)
    probes["store"] = probes["engine"] = hang
    answered = await client.get("/readyz")
    assert answered.status == 503
    assert (await answered.json())["checks"] == dict.fromkeys(("store", "engine"), "no answer within 0.05 s")
