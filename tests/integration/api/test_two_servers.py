"""Two servers on one store, as behind a load balancer: what one was asked for, the other knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack

import pytest
from pydantic import SecretStr
from tests.integration.api.conftest import draft
from tests.mongo import MongoServer
from tests.services import running_server

from harness.client import HarnessClient
from harness.settings import Settings

REQUESTS = 20


@pytest.fixture(scope="module", params=["sqlite", "mongodb"])
def urls(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, no_container_is_left: None
) -> Iterator[list[str]]:
    """Where two servers listen."""
    folder = tmp_path_factory.mktemp("two")
    with ExitStack() as stack:
        settings = Settings(data_dir=folder / "data")
        if request.param == "mongodb":
            database = MongoServer(folder / "mongodb")
            stack.callback(database.stop)
            database.start()
            settings = Settings(data_dir=folder / "data", mongodb_uri=SecretStr(database.uri))
        servers = []
        for number in range(2):
            (folder / str(number)).mkdir()
            servers.append(stack.enter_context(running_server(folder / str(number), settings=settings)))
        yield [server.url for server in servers]


@pytest.fixture
async def clients(urls: list[str]) -> AsyncIterator[list[HarnessClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(HarnessClient(url)) for url in urls]


@pytest.mark.parametrize("overlap", ["skip", "allow"])
async def test_many_requests_with_one_key_at_once_make_one_run(
    overlap: str, clients: list[HarnessClient]
) -> None:
    schedule = {"type": "interval", "interval_minutes": 60, "overlap": overlap}
    agent = await clients[0].create_agent(draft(schedule=schedule))

    for number in range(3):
        tasks = await asyncio.gather(
            *(
                clients[index % 2].run(agent.id, {"n": number}, idempotency_key=f"k{number}", wait_seconds=30)
                for index in range(REQUESTS)
            )
        )
        assert len({task.id for task in tasks}) == 1
        assert {task.status for task in tasks} == {"completed"}

    assert (await clients[1].list_tasks(agent_id=agent.id)).total_count == 3


async def test_of_many_changes_of_one_version_one_is_made(clients: list[HarnessClient]) -> None:
    agent = await clients[0].create_agent(draft())

    answers = await asyncio.gather(
        *(
            clients[index % 2].update_agent(agent.id, draft(f"print({index})"), expected_version=1)
            for index in range(REQUESTS)
        ),
        return_exceptions=True,
    )

    made = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert {type(answer).__name__ for answer in answers} == {"Agent", "VersionConflictError"}
    assert [made[0]] == made == [await clients[1].get_agent(agent.id)]
