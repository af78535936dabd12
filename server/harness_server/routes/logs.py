"""``/api/tasks/{task_id}/logs``: what a task prints, live and afterwards, by whichever server runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from harness.api.logs import end_seq
from harness.api.values import LogEvent, LogQuery
from harness.errors import TaskNotFoundError
from harness.models import log_attempt, log_seq
from harness_server.endpoint import Answer, Call, Endpoint, Scope, empty_answer
from harness_server.keys import STREAMS
from harness_server.streams import Frame, accepts_events, last_event_id


async def read_logs(call: Call[LogQuery, None]) -> web.StreamResponse:
    """Follow a task's output as server-sent events, or read what is there as plain text.

    Each event has the name of its `kind` and a `LogEvent` as its data. Its id is where to go on, on any server of the
    store: an event source sends it as `Last-Event-ID`. After `end` the answer to that is 204, which ends the source.
    A reader that is too slow gets `dropped`, and goes on in the same way.
    """
    query, task_id = call.query, call.id("task_id")
    task = await call.api.get_task(task_id)
    after = last_event_id(call.request, query.after)
    if query.attempt is not None:
        after = max(after, log_seq(query.attempt, 0) - 2)
    is_text = query.download or not (query.follow or accepts_events(call.request))
    if is_text:
        headers = (
            {"Content-Disposition": f'attachment; filename="task-{task_id}.log"'} if query.download else {}
        )
        events = call.api.log_events(task_id, follow=False, after=after)
        return await call.request.app[STREAMS].send_text(
            call.request, _text(_wanted(events, query)), headers=headers
        )
    if task.status.is_final and after >= end_seq(task):
        return empty_answer()
    return await call.request.app[STREAMS].send_events(
        call.request,
        _wanted(call.api.log_events(task_id, follow=query.follow, after=after), query),
        frame=_frame,
        dropped=lambda seq: _frame(LogEvent(seq=seq, kind="dropped", attempt=log_attempt(max(seq, 0)))),
        last_id=after,
    )


async def _wanted(events: AsyncIterator[LogEvent], query: LogQuery) -> AsyncIterator[LogEvent]:
    async for event in events:
        is_other_stream = event.kind in ("stdout", "stderr") and query.stream not in (None, event.kind)
        is_other_attempt = event.kind != "end" and query.attempt not in (None, event.attempt)
        if not (is_other_stream or is_other_attempt):
            yield event


async def _text(events: AsyncIterator[LogEvent]) -> AsyncIterator[str]:
    """Yield the output alone; each attempt's begins on a line of its own."""
    last = "\n"
    async for event in events:
        if event.kind == "attempt" and not last.endswith("\n"):
            yield "\n"
        elif event.text and event.kind in ("stdout", "stderr"):
            last = event.text
            yield last


def _frame(event: LogEvent) -> Frame:
    return Frame(event.seq, event.kind, event.model_dump_json())


routes = [
    Endpoint(
        method="GET",
        path="/api/tasks/{task_id}/logs",
        handler=read_logs,
        scope=Scope.READ,
        query=LogQuery,
        headers={"Last-Event-ID": "The id of the last event seen; counts before `after`."},
        answers={
            200: Answer("Events, or text.", events=(LogEvent,), also_text=("text/plain",)),
            204: Answer("The task has ended, and the reader has seen its end."),
        },
        errors=(TaskNotFoundError,),
    ),
]
