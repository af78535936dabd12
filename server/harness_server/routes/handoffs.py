"""``/api/agents/{agent_id}/handoff``: what an agent remembers from run to run."""

from __future__ import annotations

from aiohttp import web

from harness.api.values import (
    DiffQuery,
    HandoffDiff,
    HandoffHistory,
    HandoffRequest,
    HistoryQuery,
    RollbackRequest,
)
from harness.errors import AgentNotFoundError, ArtifactNotFoundError, StateRejectedError
from harness.models import HandoffArtifact
from harness_server.endpoint import (
    DOCUMENT_BODY_BYTES,
    Answer,
    Call,
    Endpoint,
    NoQuery,
    Scope,
    empty_answer,
    json_answer,
)


async def show_handoff(call: Call[NoQuery, None]) -> web.Response:
    """Get an agent's newest handoff artifact: what its next run will see as context."""
    return json_answer(await call.api.get_handoff(call.id("agent_id")))


async def put_handoff(call: Call[NoQuery, HandoffRequest]) -> web.Response:
    """Save a state as an agent's newest artifact."""
    saved = await call.api.put_handoff(call.id("agent_id"), call.body.state, call.body.summary)
    return json_answer(saved)


async def clear_handoff(call: Call[NoQuery, None]) -> web.Response:
    """Make an agent's next run a first run. The history stays."""
    await call.api.clear_handoff(call.id("agent_id"))
    return empty_answer()


async def show_handoff_history(call: Call[HistoryQuery, None]) -> web.Response:
    """Get an agent's artifacts by falling version, clears included."""
    agent_id, query = call.id("agent_id"), call.query
    artifacts = await call.api.handoff_history(
        agent_id, limit=query.limit, before_version=query.before_version
    )
    return json_answer(HandoffHistory(agent_id=agent_id, artifacts=tuple(artifacts)))


async def rollback_handoff(call: Call[NoQuery, RollbackRequest]) -> web.Response:
    """Save an old version's state as the newest artifact; the history stays."""
    return json_answer(await call.api.rollback_handoff(call.id("agent_id"), call.body.version))


async def diff_handoff(call: Call[DiffQuery, None]) -> web.Response:
    """Compare the states of two versions; without `after`, with the newest."""
    query = call.query
    return json_answer(await call.api.diff_handoff(call.id("agent_id"), query.before, query.after))


_PATH = "/api/agents/{agent_id}/handoff"
_ARTIFACT = {200: Answer("The artifact.", HandoffArtifact)}

routes = [
    Endpoint(
        method="GET",
        path=_PATH,
        handler=show_handoff,
        scope=Scope.READ,
        answers=_ARTIFACT,
        errors=(AgentNotFoundError, ArtifactNotFoundError),
    ),
    Endpoint(
        method="PUT",
        path=_PATH,
        handler=put_handoff,
        scope=Scope.ADMIN,
        body=HandoffRequest,
        max_body_bytes=DOCUMENT_BODY_BYTES,
        example={"state": {"count": 3}, "summary": "set by hand"},
        answers=_ARTIFACT,
        errors=(AgentNotFoundError, StateRejectedError),
    ),
    Endpoint(
        method="DELETE",
        path=_PATH,
        handler=clear_handoff,
        scope=Scope.ADMIN,
        answers={204: Answer("The next run is a first run.")},
        errors=(AgentNotFoundError,),
    ),
    Endpoint(
        method="GET",
        path=f"{_PATH}/history",
        handler=show_handoff_history,
        scope=Scope.READ,
        query=HistoryQuery,
        answers={200: Answer("One page of the history.", HandoffHistory)},
        errors=(AgentNotFoundError,),
    ),
    Endpoint(
        method="POST",
        path=f"{_PATH}/rollback",
        handler=rollback_handoff,
        scope=Scope.ADMIN,
        body=RollbackRequest,
        example={"version": 1},
        answers=_ARTIFACT,
        errors=(AgentNotFoundError, ArtifactNotFoundError, StateRejectedError),
    ),
    Endpoint(
        method="GET",
        path=f"{_PATH}/diff",
        handler=diff_handoff,
        scope=Scope.READ,
        query=DiffQuery,
        answers={200: Answer("What changed.", HandoffDiff)},
        errors=(AgentNotFoundError, ArtifactNotFoundError),
    ),
]
