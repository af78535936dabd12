"""``/api/tasks/{task_id}/stats``: what a task uses while it runs, and what it used."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from harness.api.logs import end_seq
from harness.api.values import LogEvent, SampleList, StatsQuery
from harness.errors import TaskNotFoundError
from harness.models import UsageSample, log_attempt
from harness_server.endpoint import Answer, Call, Endpoint, Scope, empty_answer, json_answer
from harness_server.keys import STREAMS
from harness_server.streams import Frame, accepts_events, last_event_id


async def read_stats(call: Call[StatsQuery, None]) -> web.StreamResponse:
    """Read samples of a task's memory, CPU and processes; with `follow`, as server-sent events until its end.

    Samples are about a second apart at first, and further apart in a long run. Events are named `sample`, and go on
    after `Last-Event-ID` as those of the logs do; after `end` the answer to that is 204.
    """
    query, task_id = call.query, call.id("task_id")
    task = await call.api.get_task(task_id)
    after = last_event_id(call.request, query.after)
    samples = call.api.stats(task_id, follow=query.follow, after=after)
    if not (query.follow or accepts_events(call.request)):
        return json_answer(SampleList(task_id=task_id, samples=tuple([sample async for sample in samples])))
    if task.status.is_final and after >= end_seq(task):
        return empty_answer()
    return await call.request.app[STREAMS].send_events(
        call.request,
        _with_end(call, samples, after),
        frame=_frame,
        dropped=lambda seq: _frame(LogEvent(seq=seq, kind="dropped", attempt=log_attempt(max(seq, 0)))),
        last_id=after,
    )


async def _with_end(
    call: Call[StatsQuery, None], samples: AsyncIterator[UsageSample], after: int
) -> AsyncIterator[UsageSample | LogEvent]:
    seq = after
    async for sample in samples:
        seq = sample.seq
        yield sample
    try:
        task = await call.api.get_task(call.id("task_id"))
    except TaskNotFoundError:
        yield LogEvent(seq=seq, kind="end", attempt=log_attempt(max(seq, 0)), text="deleted")
        return
    attempt = task.attempts[-1].number if task.attempts else 0
    seq = end_seq(task) if task.status.is_final else seq
    yield LogEvent(seq=seq, kind="end", attempt=attempt, text=str(task.status), at=task.completed_at)


def _frame(event: UsageSample | LogEvent) -> Frame:
    name = "sample" if isinstance(event, UsageSample) else event.kind
    return Frame(event.seq, name, event.model_dump_json())


routes = [
    Endpoint(
        method="GET",
        path="/api/tasks/{task_id}/stats",
        handler=read_stats,
        scope=Scope.READ,
        query=StatsQuery,
        headers={"Last-Event-ID": "The id of the last event seen; counts before `after`."},
        answers={
            200: Answer("Samples, or events.", SampleList, events=(UsageSample, LogEvent)),
            204: Answer("The task has ended, and the reader has seen its end."),
        },
        errors=(TaskNotFoundError,),
    ),
]
