"""What the client library hides of HTTP: statuses, headers, problem documents, and requests that no client of ours sends."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from tests.integration.api.conftest import draft
from tests.services import Server

from harness.client import HarnessClient
from harness.models import Agent, TaskStatus
from harness_server.problems import PROBLEM_JSON

JSON = {"Content-Type": "application/json"}


class Http:
    """Sends requests as they are; every answer is looked at for what all answers have."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(self, method: str, path: str, *, status: int, **given: Any) -> Answered:
        async with self._session.request(method, path, allow_redirects=False, **given) as answer:
            body = await answer.read()
        assert answer.status == status, body
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        answered = Answered(answer, body)
        if status >= 400 and method != "HEAD":
            assert answer.content_type == PROBLEM_JSON
            problem = answered.json
            assert problem["status"] == status
            assert problem["type"] == f"urn:agent-harness:problem:{problem['code']}"
            assert problem["request_id"] == answer.headers["X-Request-ID"]
            assert problem["title"]
            assert problem["detail"]
            assert problem.keys() <= {"type", "title", "status", "detail", "code", "request_id", "errors"}
        return answered


class Answered:
    def __init__(self, answer: aiohttp.ClientResponse, body: bytes) -> None:
        self.headers = answer.headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def fields(self) -> list[str]:
        return [error["field"] for error in self.json["errors"]]


@pytest.fixture
async def http(server: Server) -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(server.url) as session:
        yield Http(session)


@pytest.fixture
async def agent(client: HarnessClient) -> Agent:
    return await client.create_agent(draft())


# Versions


async def test_a_new_agent_comes_with_where_it_is_and_its_version(http: Http) -> None:
    answered = await http("POST", "/api/agents", status=201, json=draft().model_dump())

    assert answered.headers["Location"] == f"/api/agents/{answered.json['id']}"
    shown = await http("GET", answered.headers["Location"], status=200)
    assert shown.json == answered.json
    assert shown.headers["ETag"] == answered.headers["ETag"] == '"1"'


async def test_an_etag_is_what_a_change_goes_by(http: Http, agent: Agent) -> None:
    path, body = f"/api/agents/{agent.id}", draft().model_dump()

    changed = await http("PUT", path, status=200, json=body, headers={"If-Match": '"1"'})
    refused = await http("PUT", path, status=412, json=body, headers={"If-Match": '"1"'})

    assert changed.headers["ETag"] == '"2"'
    assert refused.json["code"] == "version_conflict"
    assert (await http("GET", path, status=200)).json == changed.json
    await http("PUT", path, status=412, json={**body, "version": 1})
    await http("PUT", path, status=200, json={**body, "version": 2})
    await http("PUT", path, status=200, json={**body, "version": 3}, headers={"If-Match": '"3"'})
    await http("PUT", path, status=200, json=body, headers={"If-Match": "*"})
    await http("PUT", path, status=200, json=body)


@pytest.mark.parametrize("tag", ["1", 'W/"1"', '"1", "2"', '""', '"x"', '"-1"', '"' + "9" * 30 + '"', '"'])
async def test_an_if_match_that_is_no_version_is_refused(tag: str, http: Http, agent: Agent) -> None:
    refused = await http(
        "PUT", f"/api/agents/{agent.id}", status=422, json=draft().model_dump(), headers={"If-Match": tag}
    )

    assert "If-Match" in refused.json["detail"]


async def test_two_versions_that_differ_are_refused(http: Http, agent: Agent) -> None:
    body = {**draft().model_dump(), "version": 1}
    await http("PUT", f"/api/agents/{agent.id}", status=422, json=body, headers={"If-Match": '"2"'})


# Runs


@pytest.mark.parametrize(
    "given", [{}, {"json": {}}, {"data": b"", "headers": JSON}, {"json": {"context": None}}]
)
async def test_a_run_needs_no_body(given: dict[str, Any], http: Http, agent: Agent) -> None:
    answered = await http("POST", f"/api/agents/{agent.id}/runs", status=202, **given)

    assert answered.headers["Location"] == f"/api/tasks/{answered.json['id']}"
    assert answered.json["status"] in ("pending", "running")
    assert answered.json["save_handoff"] is True
    await http("GET", answered.headers["Location"], status=200)


async def test_a_run_that_ended_within_the_wait_is_200(http: Http, agent: Agent) -> None:
    answered = await http("POST", f"/api/agents/{agent.id}/runs?wait=30", status=200)

    assert answered.json["status"] == "completed"


async def test_one_key_is_one_task_and_no_other_request(http: Http, agent: Agent) -> None:
    path, key = f"/api/agents/{agent.id}/runs", {"Idempotency-Key": "order 7"}

    first = await http("POST", f"{path}?wait=30", status=200, json={"context": {"a": 1}}, headers=key)
    again = await http("POST", path, status=200, json={"context": {"a": 1}}, headers=key)
    other = await http("POST", path, status=409, json={"context": {"a": 2}}, headers=key)

    assert first.json == again.json
    assert other.json["code"] == "idempotency_key_reused"
    await http("POST", path, status=422, headers={"Idempotency-Key": "å"})
    listed = await http("GET", f"/api/tasks?agent_id={agent.id}", status=200)
    assert listed.json["total_count"] == 1


async def test_a_busy_agent_is_a_conflict(http: Http, client: HarnessClient) -> None:
    agent = await client.create_agent(draft("import time; time.sleep(60)"))
    task = await client.run(agent.id)

    refused = await http("POST", f"/api/agents/{agent.id}/runs", status=409)

    assert refused.json["code"] == "agent_busy"
    assert f"task {task.id}" in refused.json["detail"]
    await client.cancel_task(task.id)


# What is no request


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=1.5", "limit"),
        ("limit=99999999999999999999999999", "limit"),
        ("offset=-1", "offset"),
        ("offset=9007199254740993", "offset"),
        ("status=gone", "status"),
        ("status=", "status"),
        ("agent_id=0", "agent_id"),
        ("agent_id=x", "agent_id"),
        ("limits=5", "limits"),
        ("$where=1", "$where"),
        ("limit[$gt]=1", "limit[$gt]"),
    ],
)
async def test_a_query_parameter_is_refused_by_its_name(query: str, field: str, http: Http) -> None:
    refused = await http("GET", f"/api/tasks?{query}", status=422)

    assert refused.json["code"] == "invalid_input"
    assert refused.fields == [field]


async def test_every_value_at_fault_is_named(http: Http) -> None:
    refused = await http("GET", "/api/tasks?limit=0&offset=-1&nonsense=1", status=422)

    assert sorted(refused.fields) == ["limit", "nonsense", "offset"]


@pytest.mark.parametrize("query", ["limit=1&limit=2", "limit=1&limit=1", "status=failed&status=pending"])
async def test_a_doubled_parameter_is_refused(query: str, http: Http) -> None:
    assert "twice" in (await http("GET", f"/api/tasks?{query}", status=422)).json["detail"]


@pytest.mark.parametrize(
    ("segment", "status"),
    [
        ("0", 422), ("-1", 422), ("1.0", 422), ("1e3", 422), ("x", 422), ("%20", 422), ("+1", 422),
        ("$where", 422), ("007", 422), ("%00", 422), ("1%0A", 422), ("%D9%A3", 422), ("%ff", 422),
        ("..%2f1", 422), ("1%2Frecord", 422),
        ("9223372036854775808", 404), ("9999999999999999999999", 404), ("9" * 5000, 404),
    ],
)  # fmt: skip
async def test_an_id_is_a_positive_integer(segment: str, status: int, server: Server) -> None:
    answer = await raw(server, f"GET /api/tasks/{segment} HTTP/1.1".encode())

    assert answer.status == status
    assert answer.json["code"] == ("invalid_input" if status == 422 else "task_not_found")
    assert len(answer.json["detail"]) < 200


@pytest.mark.parametrize(
    "path", ["/api/tasks/../1", "/api/tasks/1/../../agents", "/../etc/passwd", "//api/tasks"]
)
async def test_a_path_is_taken_as_it_is(path: str, server: Server) -> None:
    answer = await raw(server, f"GET {path} HTTP/1.1".encode())

    assert answer.status in (404, 422)
    assert answer.json["code"] in ("no_such_path", "invalid_input")


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/", "/api/tasks/", "/api/nothing", "/api/tasks/1/nothing"]
)
async def test_an_unknown_path_is_not_found(path: str, http: Http) -> None:
    assert (await http("GET", path, status=404)).json["code"] == "no_such_path"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/tasks", "GET, HEAD"),
        ("PATCH", "/api/agents/1", "DELETE, GET, HEAD, PUT"),
        ("OPTIONS", "/api/agents", "GET, HEAD, POST"),
        ("OPTIONS", "/api/agents/1", "DELETE, GET, HEAD, PUT"),
        ("GET", "/api/agents/1/runs", "POST"),
        ("HEAD", "/api/agents/1/runs", "POST"),
        ("TRACE", "/api/tasks", "GET, HEAD"),
        ("PURGE", "/api/tasks", "GET, HEAD"),
        ("POST", "/api/openapi.json", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_there_names_those_that_are(
    method: str, path: str, allowed: str, http: Http
) -> None:
    refused = await http(method, path, status=405)

    assert refused.headers["Allow"] == allowed
    if method != "HEAD":
        assert refused.json["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/api/tasks", "/api/agents", "/api/openapi.json", "/healthz", "/readyz"])
async def test_head_is_get_without_the_body(path: str, http: Http) -> None:
    got, head = await http("GET", path, status=200), await http("HEAD", path, status=200)

    assert head.body == b""
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert int(head.headers["Content-Length"]) == len(got.body)


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /api/tasks/\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: \x00\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"x" * 9000,
    ],
)
async def test_what_is_no_http_gets_a_400_and_no_line_in_the_log(request_text: bytes, server: Server) -> None:
    before = server.service.log.read_text()

    assert (await exchange(server, request_text)).startswith(b"HTTP/1.0 400 ")

    # Runs of other tests may end meanwhile.
    told = [json.loads(line) for line in server.service.log.read_text().removeprefix(before).splitlines()]
    assert [line for line in told if "task_id" not in line] == []


# Bodies


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonx", 415),
        ("", 415),
        ("application/json; charset=utf-8", 201),
        ("Application/JSON", 201),
    ],
)
async def test_a_body_is_json_and_says_so(content_type: str, status: int, http: Http) -> None:
    body = json.dumps(draft().model_dump()).encode()
    answered = await http(
        "POST", "/api/agents", status=status, data=body, headers={"Content-Type": content_type}
    )

    if status == 415:
        assert answered.json["code"] == "unsupported_media_type"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity, gzip", "x"])
async def test_a_compressed_body_is_refused_unread(encoding: str, http: Http) -> None:
    headers = {**JSON, "Content-Encoding": encoding}
    refused = await http("POST", "/api/agents", status=415, data=b"\x1f\x8b\x08", headers=headers)

    assert refused.json["code"] == "unsupported_media_type"


BODIES = {
    "empty": b"",
    "nothing": b"null",
    "list": b"[]",
    "text": b'"x"',
    "cut": b'{"context": {',
    "two": b"{} {}",
    "nan": b'{"context": {"n": NaN}}',
    "infinity": b'{"context": {"n": -Infinity}}',
    "too large a float": b'{"context": {"n": 1e999}}',
    "lone surrogate": b'{"context": {"s": "\\ud800"}}',
    "not UTF-8": b'{"context": {"s": "\xff"}}',
    "UTF-16": '{"context": {}}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"context": {}}',
    "deep": b'{"context": ' + b'{"a":' * 100 + b"1" + b"}" * 100 + b"}",
    "very deep": b'{"context": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "too large an integer": b'{"context": {"n": ' + b"9" * 5000 + b"}}",
    "duplicate": b'{"context": {"a": 1}, "context": {"a": 2}}',
    "inner duplicate": b'{"context": {"a": 1, "a": 2}}',
    "unknown field": b'{"contexts": {}}',
    "wrong type": b'{"context": []}',
    "words for booleans": b'{"save_handoff": "yes"}',
    "numbers for booleans": b'{"save_handoff": 1}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_body_that_is_no_request_is_refused_and_does_nothing(
    body: bytes, http: Http, agent: Agent, client: HarnessClient
) -> None:
    path = f"/api/agents/{agent.id}/handoff" if body == b"" else f"/api/agents/{agent.id}/runs"
    method = "PUT" if body == b"" else "POST"
    refused = await http(method, path, status=422, data=body, headers=JSON)

    assert refused.json["code"] == "invalid_input"
    assert len(refused.body) < 2000
    assert (await client.list_tasks(agent_id=agent.id)).total_count == 0


@pytest.mark.parametrize(
    "start", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01", "1e99", ""]
)
async def test_an_instant_that_is_none_is_refused(start: str, http: Http, agent: Agent) -> None:
    path = f"/api/agents/{agent.id}/schedule/backfill"
    refused = await http("POST", path, status=422, json={"start": start})

    assert refused.fields == ["start"]


async def test_numbers_and_text_come_back_as_they_were_sent(http: Http, agent: Agent) -> None:
    state = '{"big": 123456789012345678901234567890, "float": 0.1, "zero": -0.0, "text": "\\u0000 \\ud83d\\ude00"}'
    path = f"/api/agents/{agent.id}/handoff"
    await http("PUT", path, status=200, data=f'{{"state": {state}}}', headers=JSON)

    answered = await http("GET", path, status=200)

    assert answered.json["state"] == json.loads(state)
    assert b"123456789012345678901234567890" in answered.body


async def test_a_body_beyond_the_bound_is_refused(http: Http) -> None:
    body = b'{"name": "' + b"x" * (33 * 1024 * 1024) + b'"}'
    refused = await http("POST", "/api/agents", status=413, data=io.BytesIO(body), headers=JSON)

    assert refused.json["code"] == "body_too_large"


async def test_what_is_wrong_with_a_body_is_told_value_by_value(http: Http) -> None:
    bad = {"name": "a\n", "code": 1, "config": {"limits": {"cpus": -1}}}
    refused = await http("POST", "/api/agents", status=422, json=bad)

    assert sorted(refused.fields) == ["code", "config.limits.cpus", "name"]


async def test_what_was_refused_is_not_quoted_when_it_may_be_secret(http: Http) -> None:
    config = {"env": {"TO KEN": "s3cret-value", "N": ["s3cret-value"]}}
    refused = await http("POST", "/api/agents", status=422, json={"name": "a", "code": "1", "config": config})

    assert b"s3cret" not in refused.body


# The API description's three


async def test_the_fields_are_the_api_descriptions(http: Http, agent: Agent) -> None:
    await http("POST", f"/api/agents/{agent.id}/runs?wait=30", status=200)

    page = (await http("GET", f"/api/tasks/agents/{agent.id}/tasks", status=200)).json
    task = (await http("GET", f"/api/tasks/{page['tasks'][0]['id']}", status=200)).json

    assert list(page) == ["tasks", "total_count", "limit", "offset"]
    assert (page["total_count"], page["limit"], page["offset"]) == (1, 100, 0)
    assert list(page["tasks"][0]) == [
        "id", "agent_id", "status", "started_at", "completed_at", "result", "retry_count",
    ]  # fmt: skip
    assert list(task) == [
        "id", "agent_id", "status", "scheduled_at", "started_at", "completed_at", "result", "error",
        "retry_count", "created_at",
    ]  # fmt: skip
    assert task["completed_at"].endswith("Z")
    assert (task["result"], task["error"], task["retry_count"]) == ("hej", None, 0)


async def test_an_agents_tasks_are_filtered_and_paged(
    http: Http, agent: Agent, client: HarnessClient
) -> None:
    ids = [(await client.run(agent.id, wait_seconds=30)).id for _ in range(2)]
    path = f"/api/tasks/agents/{agent.id}/tasks"

    page = (await http("GET", f"{path}?status=completed&limit=1&offset=1", status=200)).json
    none = (await http("GET", f"{path}?status=failed", status=200)).json

    assert ([task["id"] for task in page["tasks"]], page["total_count"]) == ([ids[0]], 2)
    assert (none["tasks"], none["total_count"]) == ([], 0)
    missing = await http("GET", "/api/tasks/agents/999999999/tasks", status=404)
    assert missing.json["code"] == "agent_not_found"


async def test_a_retry_is_answered_as_the_api_description_has_it(http: Http, client: HarnessClient) -> None:
    agent = await client.create_agent(draft("raise SystemExit(3)", retry={"max_attempts": 0}))
    task = await client.run(agent.id, wait_seconds=30)
    assert task.status is TaskStatus.FAILED
    path = f"/api/tasks/{task.id}/retry"

    refused = await http("POST", path, status=409)
    answered = await http("POST", f"{path}?force=true", status=200)

    assert refused.json["code"] == "conflict"
    assert answered.json == {
        "message": f"Task {task.id} scheduled for retry", "retry_count": 1, "max_retries": 1,
    }  # fmt: skip
    await client.cancel_task(task.id)


@pytest.mark.parametrize("line", [b"GET /api/agents", b"GET /healthz HTTP/0.9", b"DELETE /api/agents/1"])
async def test_a_request_line_of_http_0_9_is_refused(server: Server, agent: Agent, line: bytes) -> None:
    refused = await raw(server, line)

    assert (refused.status, refused.json["code"]) == (400, "http_error")


class Raw:
    def __init__(self, answer: bytes) -> None:
        head, _, self.body = answer.partition(b"\r\n\r\n")
        self.status = int(head.split()[1])
        self.json = json.loads(self.body)


async def raw(server: Server, request_line: bytes) -> Raw:
    """Send a request line that clients would tidy up."""
    host = urlsplit(server.url).netloc
    return Raw(
        await exchange(server, request_line + f"\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    )


async def exchange(server: Server, sent: bytes) -> bytes:
    """Send bytes; return what comes until the connection is closed."""
    where = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()
