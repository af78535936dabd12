"""Who gets in, and what they leave behind: against a real server, through the client and over raw sockets."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.services import Service, Site, site

from harness.api import tokens
from harness.client import HarnessClient
from harness.errors import (
    AuthenticationError,
    InvalidInputError,
    PermissionDeniedError,
    RateLimitedError,
    TokenNotFoundError,
)
from harness.models import AgentDraft
from harness.tokens import Scope, ScopeName, TokenDraft, TokenText, new_secret
from harness_server.endpoint import Endpoint
from harness_server.routes import ENDPOINTS

__all__ = ["site"]

ALL = [endpoint for endpoints in ENDPOINTS.values() for endpoint in endpoints]
BELOW: dict[Scope, ScopeName] = {Scope.RUN: "read", Scope.ADMIN: "run"}
SCOPES: tuple[ScopeName, ...] = ("read", "run", "admin")


@dataclass
class Server:
    """A server with an agent, and with a token of each scope if it has any."""

    site: Site
    url: str
    service: Service
    tokens: dict[ScopeName, str] = field(default_factory=dict)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **given: Any,
    ) -> tuple[int, Any, Mapping[str, str]]:
        shown = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, headers={**shown, **(headers or {})}, **given) as answer,
        ):
            is_json = "json" in answer.content_type
            return answer.status, await (answer.json() if is_json else answer.text()), answer.headers

    async def ask_endpoint(self, endpoint: Endpoint, **given: Any) -> tuple[int, Any, Mapping[str, str]]:
        path = re.sub(r"\{\w+\}", "1", endpoint.path)
        if endpoint.body is not None:
            given["json"] = {}
        return await self.ask(endpoint.method, path, **given)

    def content(self) -> list[str]:
        """All that the store holds but the traces that requests leave by design: the audit log, and last uses."""
        path: Path = self.site.folder / "data" / "harness.db"
        with closing(sqlite3.connect(path)) as connection:
            lines = list(connection.iterdump())
        return [line for line in lines if not re.match(r'INSERT INTO "?(audit|tokens|sqlite_sequence)', line)]

    def log(self) -> str:
        return self.service.log.read_text()


async def make_server(site: Site, *, closed: bool, **environment: str) -> Server:
    texts: dict[ScopeName, str] = {}
    if closed:
        for scope in SCOPES:
            texts[scope] = (
                await tokens.create(site.store, TokenDraft(name=f"the {scope} one", scope=scope))
            ).text
    await site.store.create_agent(AgentDraft(name="greeter", code="print('hello')"))
    service = site.start("serve", **environment)
    return Server(site, await service.url(), service, texts)


@pytest.fixture
async def closed(site: Site) -> AsyncIterator[Server]:
    server = await make_server(site, closed=True)
    yield server
    for text in server.tokens.values():
        parsed = TokenText.parse(text)
        assert parsed
        assert parsed.secret not in server.log()


@pytest.fixture
async def opened(site: Site) -> Server:
    return await make_server(site, closed=False)


async def test_no_endpoint_tells_or_does_anything_without_a_token_that_reaches(closed: Server) -> None:
    before = closed.content()
    wrong = TokenText(3, new_secret()).render()
    assert len(ALL) > 30
    for endpoint in ALL:
        status, body, headers = await closed.ask_endpoint(endpoint)
        assert (status, body["code"]) == (401, "unauthenticated"), endpoint.name
        assert headers["WWW-Authenticate"] == 'Bearer realm="agent-harness"'
        status, body, headers = await closed.ask_endpoint(endpoint, token=wrong)
        assert (status, body["code"]) in ((401, "unauthenticated"), (429, "rate_limited")), endpoint.name
        if status == 429:
            assert int(headers["Retry-After"]) >= 1
        if endpoint.scope in BELOW:
            below = BELOW[endpoint.scope]
            status, body, _ = await closed.ask_endpoint(endpoint, token=closed.tokens[below])
            assert (status, body["code"]) == (403, "permission_denied"), endpoint.name
            assert f"the scope {endpoint.scope.name.lower()}," in body["detail"]
            assert f"has {below};" in body["detail"]

    assert closed.content() == before
    assert {entry.status for entry in await closed.site.store.list_audit()} == {403}


async def test_no_endpoint_answers_under_a_foreign_host_or_to_a_foreign_page(opened: Server) -> None:
    before = opened.content()
    for endpoint in ALL:
        for headers in (
            {"Host": "evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
        ):
            status, body, _ = await opened.ask_endpoint(endpoint, headers=headers)
            assert (status, body["code"]) == (403, "permission_denied"), (endpoint.name, headers)

    assert opened.content() == before
    assert await opened.site.store.list_audit() == []
    assert (await opened.ask("GET", "/healthz", headers={"Host": "evil.example"}))[0] == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_what_a_form_of_a_page_could_send_does_nothing(opened: Server, content_type: str) -> None:
    before = opened.content()
    body = b'{"name":"x","code":"y"}'

    status, answer, _ = await opened.ask(
        "POST", "/api/agents", data=body, headers={"Content-Type": content_type}
    )

    assert (status, answer["code"]) == (415, "unsupported_media_type")
    assert opened.content() == before


async def test_each_scope_does_what_it_is_for(closed: Server) -> None:
    async with HarnessClient(closed.url, token=closed.tokens["read"]) as reader:
        assert (await reader.get_agent(1)).name == "greeter"
        with pytest.raises(PermissionDeniedError, match="a token with the scope run"):
            await reader.run(1)
    async with HarnessClient(closed.url, token=closed.tokens["run"]) as runner:
        task = await runner.run(1, wait_seconds=30)
        assert task.result
        with pytest.raises(PermissionDeniedError, match="a token with the scope admin"):
            await runner.delete_agent(1)
    async with HarnessClient(closed.url, token=closed.tokens["admin"]) as admin:
        await admin.delete_agent(1)
    async with HarnessClient(closed.url) as nobody:
        with pytest.raises(AuthenticationError):
            await nobody.list_agents()


async def test_only_an_admin_opens_the_network_for_an_agent(closed: Server) -> None:
    draft = AgentDraft(name="open", code="pass", config={"network": "open"})
    for scope in ("read", "run"):
        async with HarnessClient(closed.url, token=closed.tokens[scope]) as client:
            with pytest.raises(PermissionDeniedError, match="a token with the scope admin"):
                await client.create_agent(draft)
            with pytest.raises(PermissionDeniedError, match="a token with the scope admin"):
                await client.update_agent(1, draft)
    # Nor can who may run an agent have this run be another one.
    for changes in ({"config": {"network": "open"}}, {"network": "open"}, {"egress": ["a.example:1"]}):
        status, answer, _ = await closed.ask(
            "POST", "/api/agents/1/runs", token=closed.tokens["run"], json=changes
        )
        assert (status, answer["code"]) == (422, "invalid_input")
    async with HarnessClient(closed.url, token=closed.tokens["admin"]) as admin:
        assert (await admin.get_agent(1)).options.network == "none"
        assert (await admin.create_agent(draft)).options.network == "open"


async def test_tokens_are_made_listed_and_revoked_through_the_client(closed: Server) -> None:
    async with HarnessClient(closed.url, token=closed.tokens["admin"]) as admin:
        made = await admin.create_token(TokenDraft(name="new", scope="read"))
        async with HarnessClient(closed.url, token=made.text) as reader:
            await reader.list_agents()
            listed = await admin.list_tokens(limit=2)
            assert listed.total_count == 4
            assert (listed.items[0].name, listed.items[0].id) == ("new", made.token.id)
            assert listed.items[0].last_used_at is not None
            secret = TokenText.parse(made.text)
            assert secret
            assert secret.secret not in str([token.model_dump_json() for token in listed.items])

            revoked = await admin.revoke_token(made.token.id)

            assert revoked.revoked_at is not None
            assert await admin.revoke_token(made.token.id) == revoked
            with pytest.raises(AuthenticationError):
                await reader.list_agents()
        with pytest.raises(TokenNotFoundError, match="no token 99"):
            await admin.revoke_token(99)
        with pytest.raises(InvalidInputError, match="has passed already"):
            await admin.create_token(TokenDraft(name="late", scope="read", expires_at=made.token.created_at))
    assert secret.secret not in "".join(closed.content()) + closed.log()


async def test_whoever_follows_a_log_is_cut_off_when_their_token_is_revoked(closed: Server) -> None:
    code = "import time; print('it runs'); time.sleep(3600)"
    async with HarnessClient(closed.url, token=closed.tokens["admin"]) as admin:
        agent = await admin.create_agent(AgentDraft(name="long", code=code))
        task = await admin.run(agent.id)
        made = await admin.create_token(TokenDraft(name="new", scope="read"))
        async with HarnessClient(closed.url, token=made.text) as reader:

            async def follow() -> None:
                async for _ in reader.logs(task.id):
                    await admin.revoke_token(made.token.id)

            with pytest.raises(AuthenticationError):
                await asyncio.wait_for(follow(), 30)
        await admin.cancel_task(task.id)


async def test_who_changed_what_is_written_down_in_the_store_and_in_the_log(closed: Server) -> None:
    async with (
        HarnessClient(closed.url, token=closed.tokens["admin"]) as admin,
        HarnessClient(closed.url, token=closed.tokens["run"]) as runner,
    ):
        agent = await admin.create_agent(AgentDraft(name="second", code="1"))
        task = await runner.run(agent.id, wait_seconds=30)
        with pytest.raises(PermissionDeniedError):
            await runner.delete_agent(agent.id)
        with pytest.raises(InvalidInputError):
            await admin.put_schedule(agent.id, {"type": "never"})
        await admin.list_agents()
        await admin.preview_schedule({"type": "cron", "cron": "0 3 * * *"})
        entries = await admin.list_audit()

    assert [(e.actor, e.action, e.target, e.made, e.status) for e in entries] == [
        ("the run one", "delete_agent", f"/api/agents/{agent.id}", None, 403),
        ("the run one", "run_agent", f"/api/agents/{agent.id}/runs", f"/api/tasks/{task.id}", 200),
        ("the admin one", "create_agent", "/api/agents", f"/api/agents/{agent.id}", 201),
    ]
    assert {entry.peer for entry in entries} == {"127.0.0.1"}
    logged = closed.service.events("audit")
    assert [event["request_id"] for event in logged] == [entry.request_id for entry in reversed(entries)]
    assert logged[0]["change"] == "create_agent"
    table = await closed.site.command("audit", "--limit", "1")
    assert f"delete_agent  /api/agents/{agent.id}  403" in table


async def test_the_first_token_shuts_the_door_of_a_server_that_runs(opened: Server) -> None:
    async with HarnessClient(opened.url) as client:
        await client.list_agents()

        text = (await opened.site.command("tokens", "create", "first", "--scope", "read")).strip()

        with pytest.raises(AuthenticationError, match="this takes a token"):
            await client.list_agents()
    async with HarnessClient(opened.url, token=text) as client:
        await client.list_agents()
        await opened.site.command("tokens", "revoke", "1")
        with pytest.raises(AuthenticationError, match="not valid"):
            await client.list_agents()
    async with HarnessClient(opened.url) as client:
        with pytest.raises(AuthenticationError):
            await client.list_agents()


async def test_where_others_reach_it_a_server_starts_only_with_a_token(site: Site) -> None:
    refused = site.start("serve", "--host", "0.0.0.0")
    assert await refused.ended() == 2
    assert "make one first: harness tokens create NAME --scope admin" in refused.log.read_text()
    assert not refused.events("started")

    text = (await site.command("tokens", "create", "ops", "--scope", "admin")).strip()
    service = site.start("serve", "--host", "0.0.0.0")
    url = (await service.url()).replace("0.0.0.0", "127.0.0.1")

    async with HarnessClient(url) as client:
        with pytest.raises(AuthenticationError):
            await client.list_agents()
    async with HarnessClient(url, token=text) as client:
        assert (await client.list_agents()).total_count == 0


async def test_a_client_that_asks_too_often_is_told_when_to_come_back(site: Site) -> None:
    server = await make_server(
        site, closed=True, HARNESS_RATE_LIMIT_PER_SECOND="2", HARNESS_RATE_LIMIT_BURST="5"
    )
    answers = [await server.ask("GET", "/api/agents", token=server.tokens["read"]) for _ in range(8)]

    statuses = [status for status, _, _ in answers]
    assert statuses[:5] == [200] * 5
    assert set(statuses[5:]) == {429}
    assert answers[0][2]["RateLimit-Policy"] == '"requests";q=5;w=3'
    assert [headers["RateLimit"].split(";")[1] for _, _, headers in answers[:3]] == ["r=4", "r=3", "r=2"]
    assert answers[7][2]["Retry-After"] == "1"
    assert (await server.ask("GET", "/api/agents", token=server.tokens["run"]))[0] == 200
    # The client waits and goes on with what may be repeated, and tells of what may not.
    async with HarnessClient(server.url, token=server.tokens["read"]) as client:
        assert (await client.list_agents()).total_count == 1
    async with HarnessClient(server.url, token=server.tokens["admin"]) as client:
        calls = (client.create_agent(AgentDraft(name=f"agent {number}", code="1")) for number in range(8))
        with pytest.raises(RateLimitedError, match="more than 2 requests a second"):
            await asyncio.gather(*calls)


@pytest.mark.parametrize("slow", ["begin", "body"])
async def test_a_request_has_its_time(site: Site, slow: str) -> None:
    server = await make_server(site, closed=False, HARNESS_REQUEST_TIMEOUT_SECONDS="1")
    if slow == "begin":
        # Another process holds the store's lock for longer.
        with closing(sqlite3.connect(site.folder / "data" / "harness.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            status, body, _ = await server.ask("POST", "/api/agents", json={"name": "a", "code": "1"})
            other.execute("ROLLBACK")
        assert (status, body["code"]) == (504, "deadline_exceeded")
        return

    async def dribble() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.1)

    status, body, _ = await server.ask(
        "POST", "/api/agents", data=dribble(), headers={"Content-Type": "application/json"}
    )
    assert (status, body["code"]) == (408, "request_timeout")
    # A wait for a run's end has its own bound.
    async with HarnessClient(server.url) as client:
        agent = await client.create_agent(AgentDraft(name="sleeper", code="import time; time.sleep(2)"))
        assert (await client.run(agent.id, wait_seconds=30)).status.is_final
