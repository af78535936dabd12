"""The service as both of its implementations: on a store at hand, and over HTTP from a server on that same store."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.services import Server, running_server

from harness.api import HarnessApi, LocalApi
from harness.client import HarnessClient
from harness.clock import SystemClock
from harness.models import Agent, AgentDraft
from harness.wiring import make_store


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, no_container_is_left: None) -> Iterator[Server]:
    """One server for all these tests: a real process, a SQLite store, the real engine."""
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[HarnessClient]:
    async with HarnessClient(server.url) as client:
        yield client


@asynccontextmanager
async def local_api(server: Server) -> AsyncIterator[HarnessApi]:
    store = make_store(server.settings, SystemClock())
    try:
        await store.open()
        yield LocalApi(store, clock=SystemClock(), settings=server.settings)
    finally:
        await store.close()


@pytest.fixture(params=["store", "server"])
async def api(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[HarnessApi]:
    """The service, by each way to it. What is run, the server runs, by either way."""
    if request.param == "server":
        async with HarnessClient(server.url) as client:
            yield client
    else:
        async with local_api(server) as local:
            yield local


class Maker:
    """Makes agents that no other test has."""

    def __init__(self, api: HarnessApi) -> None:
        self._api = api

    async def __call__(self, code: str = "print('hej')", **config: Any) -> Agent:
        return await self._api.create_agent(draft(code, **config))


@pytest.fixture
def make(api: HarnessApi) -> Maker:
    return Maker(api)


def draft(code: str = "print('hej')", **config: Any) -> AgentDraft:
    return AgentDraft(name=f"agent-{secrets.token_hex(6)}", code=code, config=config)
