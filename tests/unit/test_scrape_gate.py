"""Who may scrape, with a store that answers, fails and hangs."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from harness.errors import AuthenticationError, HarnessError, PermissionDeniedError, StoreUnavailableError
from harness.testing import FakeClock
from harness_server.auth import Gate, Principal
from harness_server.routes import metrics
from harness_server.routes.metrics import TRUST_SECONDS, ScrapeGate


class FakeGate:
    """Lets everybody in, unless told otherwise."""

    def __init__(self) -> None:
        self.error: HarnessError | None = None
        self.hangs = False

    async def admit(self, request: web.Request) -> Principal:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return Principal("127.0.0.1", None)


@pytest.fixture
def inner(monkeypatch: pytest.MonkeyPatch) -> FakeGate:
    monkeypatch.setattr(metrics, "ASK_TIMEOUT_SECONDS", 0.01)
    return FakeGate()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gate(inner: FakeGate, clock: FakeClock) -> ScrapeGate:
    return ScrapeGate(cast("Gate", inner), clock=clock)


def scrape(token: str = "a") -> Any:
    return make_mocked_request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_known_scraper_is_let_in_while_the_store_is_away_and_no_other(
    gate: ScrapeGate, inner: FakeGate, clock: FakeClock, hangs: bool
) -> None:
    await gate.admit(scrape())
    inner.hangs, inner.error = hangs, StoreUnavailableError("gone")

    await gate.admit(scrape())
    with pytest.raises(StoreUnavailableError):
        await gate.admit(scrape("b"))
    await clock.advance(TRUST_SECONDS + 1)
    with pytest.raises(StoreUnavailableError):
        await gate.admit(scrape())


@pytest.mark.parametrize("error", [AuthenticationError("revoked"), PermissionDeniedError("too little")])
async def test_one_that_was_turned_away_is_forgotten(
    gate: ScrapeGate, inner: FakeGate, error: HarnessError
) -> None:
    await gate.admit(scrape())
    inner.error = error
    with pytest.raises(type(error)):
        await gate.admit(scrape())

    inner.error = StoreUnavailableError("gone")
    with pytest.raises(StoreUnavailableError):
        await gate.admit(scrape())
