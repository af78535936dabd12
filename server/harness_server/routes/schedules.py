"""``/api/agents/{agent_id}/schedule``: when an agent runs."""

from __future__ import annotations

from aiohttp import web

from harness.api.values import (
    BackfillRequest,
    PreviewAnswer,
    PreviewRequest,
    ScheduleQuery,
    ScheduleView,
    TaskIds,
)
from harness.config import ScheduleConfig
from harness.errors import AgentNotFoundError, ConflictError
from harness_server.endpoint import Answer, Call, Endpoint, NoQuery, Scope, empty_answer, json_answer


async def show_schedule(call: Call[ScheduleQuery, None]) -> web.Response:
    """Get an agent's schedule, where it stands, and its next fire times."""
    return json_answer(await call.api.get_schedule(call.id("agent_id"), fires=call.query.fires))


async def put_schedule(call: Call[NoQuery, ScheduleConfig]) -> web.Response:
    """Give an agent a schedule and take it into force, also after a pause or a removal."""
    given = call.body.model_dump(mode="json", exclude_unset=True)
    return json_answer(await call.api.put_schedule(call.id("agent_id"), given))


async def delete_schedule(call: Call[NoQuery, None]) -> web.Response:
    """Take an agent's schedule away. Its tasks stay."""
    await call.api.delete_schedule(call.id("agent_id"))
    return empty_answer()


async def remove_schedule(call: Call[NoQuery, None]) -> web.Response:
    """Take an agent's schedule out of force until it is resumed or put anew. The config keeps it; its tasks stay."""
    return json_answer(await call.api.remove_schedule(call.id("agent_id")))


async def pause_schedule(call: Call[NoQuery, None]) -> web.Response:
    """Fire an agent no more until it is resumed, over restarts too. What runs goes on."""
    return json_answer(await call.api.pause_schedule(call.id("agent_id")))


async def resume_schedule(call: Call[NoQuery, None]) -> web.Response:
    """Fire a paused agent again, from now on; what would have fired meanwhile is not made up for."""
    return json_answer(await call.api.resume_schedule(call.id("agent_id")))


async def preview_schedule(call: Call[NoQuery, PreviewRequest]) -> web.Response:
    """Check a schedule and get its next fire times, counted from now; nothing is stored."""
    fires = await call.api.preview_schedule(call.body.schedule, fires=call.body.fires)
    return json_answer(PreviewAnswer(next_fires=tuple(fires)))


async def backfill_schedule(call: Call[NoQuery, BackfillRequest]) -> web.Response:
    """Make tasks of past fires that have none; they run one after the other."""
    ids = await call.api.backfill(call.id("agent_id"), call.body.start, call.body.end)
    return json_answer(TaskIds(task_ids=tuple(ids)))


_PATH = "/api/agents/{agent_id}/schedule"
_VIEW = {200: Answer("The schedule.", ScheduleView)}

_EXAMPLE = {"type": "cron", "cron": "0 3 * * *", "timezone": "Europe/Oslo"}

routes = [
    Endpoint(
        method="GET",
        path=_PATH,
        handler=show_schedule,
        scope=Scope.READ,
        query=ScheduleQuery,
        answers=_VIEW,
        errors=(AgentNotFoundError,),
    ),
    Endpoint(
        method="PUT",
        path=_PATH,
        handler=put_schedule,
        scope=Scope.ADMIN,
        body=ScheduleConfig,
        example=_EXAMPLE,
        answers=_VIEW,
        errors=(AgentNotFoundError, ConflictError),
    ),
    Endpoint(
        method="DELETE",
        path=_PATH,
        handler=delete_schedule,
        scope=Scope.ADMIN,
        answers={204: Answer("It has none.")},
        errors=(AgentNotFoundError, ConflictError),
    ),
    Endpoint(
        method="POST",
        path=f"{_PATH}/remove",
        handler=remove_schedule,
        scope=Scope.ADMIN,
        answers=_VIEW,
        errors=(AgentNotFoundError, ConflictError),
    ),
    Endpoint(
        method="POST",
        path=f"{_PATH}/pause",
        handler=pause_schedule,
        scope=Scope.RUN,
        answers=_VIEW,
        errors=(AgentNotFoundError, ConflictError),
    ),
    Endpoint(
        method="POST",
        path=f"{_PATH}/resume",
        handler=resume_schedule,
        scope=Scope.RUN,
        answers=_VIEW,
        errors=(AgentNotFoundError, ConflictError),
    ),
    Endpoint(
        method="POST",
        path=f"{_PATH}/backfill",
        handler=backfill_schedule,
        scope=Scope.RUN,
        body=BackfillRequest,
        example={"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"},
        answers={200: Answer("The new tasks.", TaskIds)},
        errors=(AgentNotFoundError, ConflictError),
    ),
    Endpoint(
        method="POST",
        path="/api/schedules/preview",
        handler=preview_schedule,
        scope=Scope.READ,
        body=PreviewRequest,
        example={"schedule": _EXAMPLE, "fires": 3},
        answers={200: Answer("When it would fire.", PreviewAnswer)},
    ),
]
