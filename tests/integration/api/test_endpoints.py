"""Every endpoint that OpenAPI describes, through the client library, against a real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.integration.api.conftest import draft
from tests.services import Server, running_server

from harness.client import HarnessClient
from harness.client.transport import Transport
from harness.models import Agent, Task
from harness.secrets.cipher import generate_key
from harness.tokens import TokenDraft
from harness_server.endpoint import Endpoint
from harness_server.routes import ENDPOINTS

JUST_NOW = datetime.now(UTC) - timedelta(seconds=1)
SCHEDULE = {"type": "cron", "cron": "0 3 * * *"}

ALL = {endpoint.name: endpoint for endpoints in ENDPOINTS.values() for endpoint in endpoints}


async def read(client: HarnessClient, task: Task) -> None:
    assert [event.kind async for event in client.log_events(task.id)][-1] == "end"


async def sample(client: HarnessClient, task: Task) -> None:
    async for sampled in client.stats(task.id):
        assert sampled.seq > 0


async def make_and_revoke(client: HarnessClient) -> None:
    made = await client.create_token(TokenDraft(name="short-lived", scope="read"))
    assert (await client.revoke_token(made.token.id)).revoked_at is not None


async def put_and_delete_secret(client: HarnessClient) -> None:
    await client.put_secret("short-lived", "a value that nobody knows")
    await client.delete_secret("short-lived")


#: Called with a client, an agent that has a schedule and two handoff artifacts, and a task of it that failed.
Ask = Callable[[HarnessClient, Agent, Task], Awaitable[object]]

ASK: dict[str, Ask] = {
    "list_agent_tasks": lambda client, agent, task: client.agent_tasks(agent.id),
    "show_task": lambda client, agent, task: client.task_detail(task.id),
    "retry_task": lambda client, agent, task: client.retry_task(task.id, force=True),
    "list_tasks": lambda client, agent, task: client.list_tasks(agent_id=agent.id),
    "cancel_tasks": lambda client, agent, task: client.cancel_tasks(agent_id=agent.id),
    "show_task_record": lambda client, agent, task: client.get_task(task.id),
    "list_attempts": lambda client, agent, task: client.task_attempts(task.id),
    "show_task_usage": lambda client, agent, task: client.task_usage(task.id),
    "read_logs": lambda client, agent, task: read(client, task),
    "read_stats": lambda client, agent, task: sample(client, task),
    "cancel_task": lambda client, agent, task: client.cancel_task(task.id),
    "create_agent": lambda client, agent, task: client.create_agent(draft()),
    "list_agents": lambda client, agent, task: client.list_agents(limit=1),
    "show_agent": lambda client, agent, task: client.get_agent(agent.id),
    "update_agent": lambda client, agent, task: client.update_agent(agent.id, agent, expected_version=1),
    "delete_agent": lambda client, agent, task: client.delete_agent(agent.id),
    "run_agent": lambda client, agent, task: client.run(agent.id, idempotency_key="k"),
    "show_schedule": lambda client, agent, task: client.get_schedule(agent.id),
    "put_schedule": lambda client, agent, task: client.put_schedule(agent.id, SCHEDULE),
    "delete_schedule": lambda client, agent, task: client.delete_schedule(agent.id),
    "remove_schedule": lambda client, agent, task: client.remove_schedule(agent.id),
    "pause_schedule": lambda client, agent, task: client.pause_schedule(agent.id),
    "resume_schedule": lambda client, agent, task: client.resume_schedule(agent.id),
    "backfill_schedule": lambda client, agent, task: client.backfill(agent.id, JUST_NOW),
    "preview_schedule": lambda client, agent, task: client.preview_schedule(SCHEDULE),
    "show_handoff": lambda client, agent, task: client.get_handoff(agent.id),
    "put_handoff": lambda client, agent, task: client.put_handoff(agent.id, {"n": 3}),
    "clear_handoff": lambda client, agent, task: client.clear_handoff(agent.id),
    "show_handoff_history": lambda client, agent, task: client.handoff_history(agent.id, limit=1),
    "rollback_handoff": lambda client, agent, task: client.rollback_handoff(agent.id, 1),
    "diff_handoff": lambda client, agent, task: client.diff_handoff(agent.id, 1),
    "show_resources": lambda client, agent, task: client.system_resources(),
    "list_secrets": lambda client, agent, task: client.list_secrets(limit=1),
    "put_secret": lambda client, agent, task: client.put_secret("token", "a value that nobody knows"),
    "delete_secret": lambda client, agent, task: put_and_delete_secret(client),
    "create_token": lambda client, agent, task: make_and_revoke(client),
    "list_tokens": lambda client, agent, task: client.list_tokens(limit=1),
    "revoke_token": lambda client, agent, task: make_and_revoke(client),
    "list_audit": lambda client, agent, task: client.list_audit(limit=1),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, no_container_is_left: None) -> Iterator[Server]:
    """A server of these tests' own: with its first token it begins to ask everybody for one."""
    with running_server(tmp_path_factory.mktemp("closed"), HARNESS_SECRETS_KEY=generate_key()) as server:
        yield server


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    async def make() -> str:
        async with HarnessClient(server.url) as client:
            return (await client.create_token(TokenDraft(name="tests", scope="admin"))).text

    return asyncio.run(make())


@pytest.fixture
async def client(server: Server, token: str) -> AsyncIterator[HarnessClient]:
    async with HarnessClient(server.url, token=token) as client:
        yield client


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Method and path of each request that clients send."""
    seen: list[tuple[str, str]] = []
    stream = Transport.stream

    def recording(self: Transport, method: str, path: str, **given: Any) -> Any:
        seen.append((method, path))
        return stream(self, method, path, **given)

    monkeypatch.setattr(Transport, "stream", recording)
    return seen


def test_every_endpoint_is_asked_for_something_here() -> None:
    assert ASK.keys() == ALL.keys()


@pytest.mark.parametrize("name", ALL)
async def test_an_endpoint_is_reached_through_the_client(
    name: str, client: HarnessClient, asked: list[tuple[str, str]]
) -> None:
    agent = await client.create_agent(
        draft("raise SystemExit(3)", schedule=SCHEDULE, retry={"max_attempts": 0})
    )
    for number in range(2):
        await client.put_handoff(agent.id, {"n": number})
    task = await client.run(agent.id, wait_seconds=30)
    asked.clear()

    await ASK[name](client, agent, task)

    assert any(is_at(ALL[name], method, path) for method, path in asked), asked
    await client.cancel_tasks(agent_id=agent.id)


def is_at(endpoint: Endpoint, method: str, path: str) -> bool:
    pattern = re.sub(r"\\{\w+\\}", r"[\\w-]+", re.escape(endpoint.path))
    return method == endpoint.method and re.fullmatch(pattern, path) is not None
