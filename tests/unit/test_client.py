"""The client against servers that fail in every way: what is repeated, what is not, and which error comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness.client import HarnessClient, transport
from harness.errors import (
    AgentBusyError,
    HarnessError,
    InvalidInputError,
    Problem,
    ServerUnavailableError,
    StoreUnavailableError,
)
from harness.models import AgentDraft

MACHINE = {
    "total_memory_mb": 2.0, "available_memory_mb": 1.0, "memory_percent": 50.0, "cpu_count": 1, "cpu_percent": 0.0,
}  # fmt: skip
BREAK = None


def problem(status: int, code: str, **fields: object) -> web.Response:
    body = {"status": status, "code": code, "detail": f"{code}, in words", **fields}
    return web.json_response(body, status=status, content_type="application/problem+json")


class Stub:
    """Answers requests one after the other with what it was told to; `BREAK` closes the connection."""

    def __init__(self) -> None:
        self.answers: list[web.Response | None] = []
        self.requests: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if answer is BREAK:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return answer


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    monkeypatch.setattr(transport, "BACK_OFF_SECONDS", (0.0, 0.0, 0.0))
    return Stub()


@pytest.fixture
async def url(stub: Stub) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", stub.handle)
    async with TestServer(app) as server:
        yield str(server.make_url("/behind/"))


@pytest.fixture
async def client(url: str) -> AsyncIterator[HarnessClient]:
    async with HarnessClient(url, token="t0ken") as client:
        yield client


async def test_a_request_carries_the_token_and_goes_below_the_url(stub: Stub, client: HarnessClient) -> None:
    stub.answers = [web.json_response(MACHINE)]

    assert (await client.system_resources()).cpu_count == 1

    (request,) = stub.requests
    assert request.path == "/behind/api/system/resources"
    assert request.headers["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("away", [BREAK, 429, 502, 503, 504])
async def test_a_read_is_repeated_until_there_is_an_answer(
    away: int | None, stub: Stub, client: HarnessClient
) -> None:
    def failed() -> web.Response | None:
        return BREAK if away is None else problem(away, "store_unavailable")

    stub.answers = [failed(), failed(), failed(), web.json_response(MACHINE)]

    await client.system_resources()

    assert len(stub.requests) == 4


async def test_a_read_is_given_up_after_some_tries(stub: Stub, client: HarnessClient) -> None:
    stub.answers = [problem(503, "store_unavailable") for _ in range(4)]
    with pytest.raises(StoreUnavailableError, match="in words"):
        await client.get_agent(1)
    assert len(stub.requests) == 4

    stub.answers = [BREAK] * 10
    with pytest.raises(ServerUnavailableError, match="can't be reached"):
        await client.get_agent(1)


async def test_what_a_repetition_could_do_twice_is_sent_once(stub: Stub, client: HarnessClient) -> None:
    draft = AgentDraft(name="a", code="1")
    for call in (
        lambda: client.run(1),
        lambda: client.create_agent(draft),
        lambda: client.update_agent(1, draft),
        lambda: client.delete_agent(1),
        lambda: client.put_handoff(1, {}),
        lambda: client.rollback_handoff(1, 1),
        lambda: client.retry_task(1),
        client.cancel_tasks,
    ):
        # Also on a connection that was good before.
        stub.answers, stub.requests = [web.json_response(MACHINE), BREAK], []
        await client.system_resources()
        with pytest.raises(ServerUnavailableError):
            await call()
        assert len(stub.requests) == 2


async def test_a_run_with_a_key_is_repeated_under_that_key(stub: Stub, client: HarnessClient) -> None:
    stub.answers = [BREAK, problem(409, "agent_busy")]

    with pytest.raises(AgentBusyError):
        await client.run(1, idempotency_key="k")

    assert [request.headers["Idempotency-Key"] for request in stub.requests] == ["k", "k"]


async def test_an_error_comes_back_as_its_class_with_its_fields(stub: Stub, client: HarnessClient) -> None:
    stub.answers = [problem(422, "invalid_input", errors=[{"field": "limit", "message": "is too large"}])]

    with pytest.raises(InvalidInputError, match="in words") as raised:
        await client.list_tasks()

    assert raised.value.problems == (Problem("limit", "is too large"),)


async def test_an_error_of_a_later_release_is_still_one_of_ours(stub: Stub, client: HarnessClient) -> None:
    stub.answers = [problem(418, "not_heard_of")]

    with pytest.raises(HarnessError, match="not_heard_of, in words"):
        await client.get_task(1)


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=404, text="<html>nothing here</html>", content_type="text/html"),
        web.Response(status=302, headers={"Location": "https://elsewhere.example/"}),
        web.json_response([], status=400),
        web.json_response({"code": "x"}, status=400),
        web.json_response({"status": "ok"}),
        web.json_response([]),
        web.Response(text="{"),
        web.Response(body=b"\xff"),
    ],
    ids=["page", "redirect", "list", "no detail", "other fields", "other list", "cut", "no text"],
)
async def test_what_is_no_server_of_ours_is_told(
    answer: web.Response, stub: Stub, client: HarnessClient
) -> None:
    stub.answers = [
        web.Response(status=answer.status, body=answer.body, headers=answer.headers) for _ in range(4)
    ]

    with pytest.raises(ServerUnavailableError, match="http://127"):
        await client.system_resources()


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://a", "http://", "http://a:b", "http://a?b=c", "http://a#b", "http://[::1"],
)
def test_a_url_is_checked_at_once(url: str) -> None:
    with pytest.raises(InvalidInputError, match="no URL of a server"):
        HarnessClient(url)


async def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(ServerUnavailableError, match="async with"):
        await HarnessClient("http://127.0.0.1:9").system_resources()
