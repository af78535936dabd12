"""``/api/agents``: what runs, and running it."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from harness.api.values import MAX_WAIT_SECONDS, AgentPage, AgentQuery, AgentUpdate, RunQuery, RunRequest
from harness.errors import (
    AgentBusyError,
    AgentNameTakenError,
    AgentNotFoundError,
    IdempotencyKeyReusedError,
    InvalidInputError,
    VersionConflictError,
)
from harness.models import Agent, AgentDraft, Page, Task
from harness_server.endpoint import (
    DOCUMENT_BODY_BYTES,
    MAX_BODY_BYTES,
    Answer,
    Call,
    Endpoint,
    NoQuery,
    Scope,
    empty_answer,
    json_answer,
)

_ETAG = {"ETag": "The agent's version, for `If-Match`."}


async def create_agent(call: Call[NoQuery, AgentDraft]) -> web.Response:
    """Create an agent. A schedule in its config is in force at once."""
    agent = await call.api.create_agent(call.body)
    return json_answer(agent, status=201, headers={"Location": f"/api/agents/{agent.id}", **_etag(agent)})


async def list_agents(call: Call[AgentQuery, None]) -> web.Response:
    """List agents, the newest first."""
    query = call.query
    if query.name is None:
        return json_answer(AgentPage.of(await call.api.list_agents(limit=query.limit, offset=query.offset)))
    found: tuple[Agent, ...] = ()
    with suppress(AgentNotFoundError):
        found = (await call.api.find_agent(query.name),)
    return json_answer(AgentPage.of(Page(found[query.offset :], len(found), query.limit, query.offset)))


async def show_agent(call: Call[NoQuery, None]) -> web.Response:
    """Get an agent with its code and config."""
    agent = await call.api.get_agent(call.id("agent_id"))
    return json_answer(agent, headers=_etag(agent))


async def update_agent(call: Call[NoQuery, AgentUpdate]) -> web.Response:
    """Replace an agent. With `If-Match`, or a `version` in the body, only if it is still at that version."""
    expected = _expected_version(call.request, call.body.version)
    agent = await call.api.update_agent(call.id("agent_id"), call.body.draft(), expected_version=expected)
    return json_answer(agent, headers=_etag(agent))


async def delete_agent(call: Call[NoQuery, None]) -> web.Response:
    """Delete an agent with its tasks, logs and handoff artifacts."""
    await call.api.delete_agent(call.id("agent_id"))
    return empty_answer()


async def run_agent(call: Call[RunQuery, RunRequest]) -> web.Response:
    """Have an agent run now. The answer is 200 if the run ended within `wait` seconds, else 202."""
    task = await call.api.run(
        call.id("agent_id"),
        call.body.context,
        save_handoff=call.body.save_handoff,
        wait_seconds=call.query.wait,
        idempotency_key=call.request.headers.get("Idempotency-Key"),
    )
    status = 200 if task.status.is_final else 202
    return json_answer(task, status=status, headers={"Location": f"/api/tasks/{task.id}"})


def _etag(agent: Agent) -> dict[str, str]:
    return {"ETag": f'"{agent.version}"'}


def _expected_version(request: web.Request, version: int | None) -> int | None:
    """Return the version a change was made from, from header or body; None when it does not matter."""
    header = request.headers.get("If-Match", "*").strip()
    if header == "*":
        return version
    # RFC 9110, section 13.1.1: weak tags never match, and ours are numbers.
    digits = header.removeprefix('"').removesuffix('"')
    if header != f'"{digits}"' or not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise InvalidInputError(f'If-Match is {header[:40]!r}; give the ETag of one answer, such as "3"')
    if version is not None and version != int(digits):
        raise InvalidInputError(f"If-Match says version {digits} and the body {version}; leave one out")
    return int(digits)


_EXAMPLE = {
    "name": "greeter",
    "code": 'import handoff\nn = context.get("n", 0) + 1\nprint("hello", n)\nhandoff.save({"n": n})\n',
    "config": {"limits": {"timeout_seconds": 60}, "schedule": {"type": "cron", "cron": "0 * * * *"}},
}

routes = [
    Endpoint(
        method="POST",
        path="/api/agents",
        handler=create_agent,
        scope=Scope.ADMIN,
        body=AgentDraft,
        max_body_bytes=MAX_BODY_BYTES,
        example=_EXAMPLE,
        answers={201: Answer("The agent.", Agent, headers={"Location": "Where it is.", **_ETAG})},
        errors=(AgentNameTakenError,),
    ),
    Endpoint(
        method="GET",
        path="/api/agents",
        handler=list_agents,
        scope=Scope.READ,
        query=AgentQuery,
        answers={200: Answer("One page of agents.", AgentPage)},
    ),
    Endpoint(
        method="GET",
        path="/api/agents/{agent_id}",
        handler=show_agent,
        scope=Scope.READ,
        answers={200: Answer("The agent.", Agent, headers=_ETAG)},
        errors=(AgentNotFoundError,),
    ),
    Endpoint(
        method="PUT",
        path="/api/agents/{agent_id}",
        handler=update_agent,
        scope=Scope.ADMIN,
        body=AgentUpdate,
        max_body_bytes=MAX_BODY_BYTES,
        example={**_EXAMPLE, "version": 1},
        headers={"If-Match": 'The ETag of the version that is changed, such as "3".'},
        answers={200: Answer("The agent as changed.", Agent, headers=_ETAG)},
        errors=(AgentNotFoundError, VersionConflictError, AgentNameTakenError),
    ),
    Endpoint(
        method="DELETE",
        path="/api/agents/{agent_id}",
        handler=delete_agent,
        scope=Scope.ADMIN,
        answers={204: Answer("It is gone.")},
        errors=(AgentNotFoundError, AgentBusyError),
    ),
    Endpoint(
        method="POST",
        path="/api/agents/{agent_id}/runs",
        handler=run_agent,
        scope=Scope.RUN,
        query=RunQuery,
        body=RunRequest,
        max_body_bytes=DOCUMENT_BODY_BYTES,
        extra_seconds=MAX_WAIT_SECONDS,
        example={"context": {"city": "Oslo"}},
        is_body_optional=True,
        headers={
            "Idempotency-Key": "1 to 200 printable ASCII characters; a repetition with it makes no second run."
        },
        answers={
            200: Answer("The task, at its end.", Task, headers={"Location": "Where it is."}),
            202: Answer("The task, not ended yet.", Task, headers={"Location": "Where it is."}),
        },
        errors=(AgentNotFoundError, AgentBusyError, IdempotencyKeyReusedError),
    ),
]
