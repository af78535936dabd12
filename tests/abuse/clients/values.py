"""Clients that put into paths, queries, fields and headers what does not belong there."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

from tests.abuse.clients.access import ALL, path_of
from tests.abuse.clients.bodies import READERS
from tests.abuse.clients.target import ClientCase, Target, count_answers, counted, require, status_of
from tests.attacks import OPERATORS, SEGMENTS

from harness.models import Agent, AgentDraft, HandoffArtifact, ScheduleState, Task
from harness.tokens import ApiToken

_GROUP = "clients: paths, queries and fields"

#: In place of what a query parameter takes; none is valid for a number, a truth value or a word out of a list.
_VALUES = (
    "-7", "0x1", "1e9", "1.5", str(2**63), "9" * 400, "\u0661", "NaN", "null", "[]", "{}", "true;", "1 OR 1=1",
    "' OR '1'='1", "1; DROP TABLE agents;--", "' UNION SELECT secret_hash FROM tokens--", "%00", "\0", "\ud800".encode(
        "utf-8", "surrogatepass").decode("latin-1"), "../../etc/passwd", "{{7*7}}", "${jndi:ldap://x}", "a" * 5000,
)  # fmt: skip
_OPERATOR_QUERIES = (
    "$where=1", "agent_id[$gt]=0", "agent_id=%7b%22$gt%22:0%7d", "status[$ne]=x", "limit[$gt]=1", "__proto__=1",
    "limit=1&limit=1000", "limit=1&LIMIT=2&limit=3", "unknown=1", "sort=id;drop", "fields=secret_hash",
)  # fmt: skip

#: Names of fields that the server alone writes: of what it shows, of what its stores keep.
_INTERNAL = ("deleting", "fire_key", "active_slot", "queue_slot", "next_fire_at", "anchor_at", "secret_hash", "store_id", "_id",
             "max_active", "rule", "$set", "__class__", "__proto__")  # fmt: skip
_READ_ONLY: tuple[str, ...] = tuple(
    sorted(
        {*Agent.model_fields, *Task.model_fields, *ScheduleState.model_fields, *HandoffArtifact.model_fields}
        | {*ApiToken.model_fields, *_INTERNAL}
    )
)
_EVENT_IDS = (
    "-2", "-", "--1", "+1", "0x10", "1e9", "1.0", str(2**53 + 1), str(2**63), "9" * 400, "-" + "9" * 400, "NaN", "null", "\u0661",
    "1 2", "1,2", "1;", "' OR 1=1", "[object Object]", "%31", "\xa01", "a" * 5000,
)  # fmt: skip
_KEYS = ("a" * 201, "a" * 7000, "caf\xe9", "a\tb", "\u0661", "a\x7fb")


async def _paths(target: Target) -> str:
    room = asyncio.Semaphore(16)

    async def send(method: str, path: str) -> int:
        head = target.head(f"{method} {path} HTTP/1.1", "Content-Type: application/json", "Content-Length: 2",
                           "Connection: close")  # fmt: skip
        async with room:
            answer = await target.exchange(head + b"\r\n{}")
        status = status_of(answer)
        require(400 <= status < 500, f"{method} {path} was answered {status}")
        require(count_answers(answer) == 1, f"{method} {path} was answered {count_answers(answer)} times")
        return status

    sending = [
        send(
            endpoint.method,
            "".join(segment if part.startswith("{") else part for part in _parts(endpoint.path)),
        )
        for endpoint in ALL
        if "_id}" in endpoint.path
        for segment in SEGMENTS
    ]
    return counted(await asyncio.gather(*sending))


def _parts(path: str) -> list[str]:
    """Return a path in pieces, each parameter one of them."""
    return path.replace("{", "\0{").replace("}", "}\0").split("\0")


async def _queries(target: Target) -> str:
    seen = []
    async with target.session() as session:
        for endpoint in ALL:
            if endpoint.method != "GET":
                continue
            path = path_of(endpoint, target)
            queries = [
                f"{name}={quote(value)}"
                for name in endpoint.query.model_fields
                for value in _VALUES
                if name != "name"
            ]
            for query in [*queries, *_OPERATOR_QUERIES]:
                reply = await session.ask("GET", f"{path}?{query}")
                # A task that is not there may be told before; and a number may be larger than any there is.
                is_valid = reply.status == 200 and query.endswith((f"={2**63}", "9" * 400))
                require(
                    reply.status in (404, 422) or is_valid,
                    f"{path}?{query[:100]} was answered {reply.status}",
                )
                seen.append(reply.status)
        for value in _VALUES:
            reply = await session.ask("GET", "/api/agents", params={"name": value})
            require(reply.status in (200, 422), f"the name {value!r} was answered {reply.status}")
            require(
                reply.status == 422 or reply.json()["total_count"] == 0, f"the name {value!r} found something"
            )
            seen.append(reply.status)
    return f"{counted(seen)}; names that hold SQL find nothing"


async def _operators(target: Target) -> str:
    seen = []
    async with target.session() as session:
        for endpoint in READERS:
            for document in OPERATORS:
                reply = await session.ask(endpoint.method, path_of(endpoint, target), json=document)
                require(reply.status == 422, f"{endpoint.name} answered {reply.status} to {document}")
                seen.append(reply.status)
    return counted(seen)


async def _assign(target: Target) -> str:
    """Add to bodies that are valid, one by one, each name that is not theirs to give."""
    seen, made = [], 0
    async with target.session() as session:
        for endpoint in READERS:
            assert endpoint.body is not None
            taken = endpoint.body.model_fields.keys()
            valid = dict(endpoint.example or {})
            for name in _READ_ONLY:
                if name in taken:
                    continue
                for value in (1, "x", None, True):
                    document = {**valid, name: value}
                    reply = await session.ask(endpoint.method, path_of(endpoint, target), json=document)
                    require(
                        reply.status == 422, f"{endpoint.name} answered {reply.status} to a {name} of its own"
                    )
                    seen.append(reply.status)
        # The same, inside a config, and the fields that a draft has, where an update would have them.
        for name in (*_READ_ONLY, "priority_boost"):
            if name in ("priority", "code", "name"):
                continue
            for config in (
                {name: 1},
                {"schedule": {"type": "interval", "interval_minutes": 5, name: 1}},
                {"limits": {name: 1}},
            ):
                document = {"name": "assigned", "code": "1", "config": config}
                reply = await session.ask("POST", "/api/agents", json=document)
                require(reply.status == 422, f"a config with {name} was answered {reply.status}")
                made += 1
    assert not {"id", "version", "created_at"} & set(AgentDraft.model_fields)
    return f"{counted(seen)}; {made} configs: 422"


async def _event_ids(target: Target) -> str:
    async with target.client("run") as client, target.client("admin") as admin:
        agent = await admin.create_agent(AgentDraft(name="followed", code="print('one')"))
        try:
            task = await client.run(agent.id, wait_seconds=30)
            seen = []
            for text in (*_EVENT_IDS, "", " ", "\x0c"):
                for path in (f"/api/tasks/{task.id}/logs", f"/api/tasks/{task.id}/stats"):
                    head = target.head(
                        f"GET {path} HTTP/1.1",
                        "Accept: text/event-stream",
                        f"Last-Event-ID: {text}",
                        "Connection: close",
                    )
                    answer = await target.exchange(head + b"\r\n")
                    allowed = (200, 204, 400, 422) if not text.strip() else (400, 422)
                    require(status_of(answer) in allowed, f"{text[:40]!r} was answered {answer[:30]!r}")
                    seen.append(status_of(answer))
        finally:
            await admin.delete_agent(agent.id)
    return counted(seen)


async def _keys(target: Target) -> str:
    async with target.client("admin") as admin:
        agent = await admin.create_agent(AgentDraft(name="keyed", code="print('one')"))
        try:
            seen = []
            path = f"/api/agents/{agent.id}/runs"
            for text in _KEYS:
                head = target.head(
                    f"POST {path} HTTP/1.1",
                    "Content-Length: 0",
                    f"Idempotency-Key: {text}",
                    "Connection: close",
                )
                answer = await target.exchange(head + b"\r\n")
                require(status_of(answer) in (400, 422), f"{text[:40]!r} was answered {answer[:30]!r}")
                seen.append(status_of(answer))
            async with target.session("run") as session:
                headers = {"Idempotency-Key": "once"}
                bodies: list[Any] = [{"context": {"n": n % 3}} for n in range(30)]
                asked = (session.ask("POST", path, json=body, headers=headers) for body in bodies)
                replies = await asyncio.gather(*asked)
            ids = {reply.json()["id"] for reply in replies if reply.status < 300}
            other = [reply for reply in replies if reply.status >= 300]
            require(len(ids) == 1, f"one key made the tasks {ids}")
            require({reply.status for reply in other} <= {409, 422}, counted(reply.status for reply in other))
            tasks = await admin.list_tasks(agent_id=agent.id)
            require(tasks.total_count == 1, f"there are {tasks.total_count} tasks")
            await admin.cancel_task(ids.pop())
            while not (await admin.list_tasks(agent_id=agent.id)).items[0].status.is_final:  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.1)
        finally:
            await admin.delete_agent(agent.id)
    return f"{counted(seen)}; 30 at once with three bodies: one task, {counted(json.loads(one.body)['code'] for one in other)}"


CASES = (
    ClientCase(
        _GROUP,
        "ids such as ../1, %2e%2e, %00, 2**63, -1, 1e9, $where, other scripts' digits, at every endpoint with one",
        "4xx, one answer each",
        _paths,
    ),
    ClientCase(
        _GROUP,
        "SQL, operators, huge numbers, parameters twice, in every query",
        "4xx, or nothing found",
        _queries,
    ),
    ClientCase(_GROUP, "a database's operators in every body", "422", _operators),
    ClientCase(
        _GROUP,
        "fields that only the server writes (id, version, status, fence, lease_owner …) in every body",
        "422, nothing written",
        _assign,
    ),
    ClientCase(_GROUP, "garbage as Last-Event-ID", "4xx", _event_ids),
    ClientCase(
        _GROUP,
        "garbage as Idempotency-Key; one key at once with different bodies",
        "4xx; one task, and 409 or 422 for others",
        _keys,
    ),
)
