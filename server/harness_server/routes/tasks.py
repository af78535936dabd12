"""``/api/tasks``: what ran. The first three are the API description's, to the letter; the others have whole tasks."""

from __future__ import annotations

from aiohttp import web

from harness.api.values import (
    AnyTaskQuery,
    AttemptList,
    CancelAnswer,
    CancelRequest,
    RetryAnswer,
    RetryQuery,
    TaskDetail,
    TaskPage,
    TaskQuery,
    TaskSummary,
    TaskSummaryPage,
    TaskUsage,
)
from harness.errors import AgentBusyError, AgentNotFoundError, ConflictError, TaskNotFoundError
from harness.models import Task
from harness_server.endpoint import Answer, Call, Endpoint, NoQuery, Scope, json_answer


async def list_agent_tasks(call: Call[TaskQuery, None]) -> web.Response:
    """Get execution history for an agent, the newest first."""
    agent_id, query = call.id("agent_id"), call.query
    await call.api.get_agent(agent_id)
    page = await call.api.list_tasks(
        agent_id=agent_id, status=query.status, limit=query.limit, offset=query.offset
    )
    return json_answer(
        TaskSummaryPage(
            tasks=tuple(map(TaskSummary.of, page.items)),
            total_count=page.total_count,
            limit=page.limit,
            offset=page.offset,
        )
    )


async def show_task(call: Call[NoQuery, None]) -> web.Response:
    """Get details for a specific task."""
    return json_answer(TaskDetail.of(await call.api.get_task(call.id("task_id"))))


async def retry_task(call: Call[RetryQuery, None]) -> web.Response:
    """Retry a failed task: after 2 s, 4 s, 8 s, by its retry count."""
    task = await call.api.retry_task(call.id("task_id"), force=call.query.force)
    message = f"Task {task.id} scheduled for retry"
    return json_answer(
        RetryAnswer(message=message, retry_count=task.retry_count, max_retries=task.max_retries)
    )


async def list_tasks(call: Call[AnyTaskQuery, None]) -> web.Response:
    """List tasks of all agents with all that is known of each, the newest first."""
    query = call.query
    page = await call.api.list_tasks(
        agent_id=query.agent_id, status=query.status, limit=query.limit, offset=query.offset
    )
    return json_answer(TaskPage.of(page))


async def show_task_record(call: Call[NoQuery, None]) -> web.Response:
    """Get all that is known of a task: its attempts, why it ended or was skipped, its context and its lease."""
    return json_answer(await call.api.get_task(call.id("task_id")))


async def list_attempts(call: Call[NoQuery, None]) -> web.Response:
    """Get a task's attempts, the oldest first: one for each container that was launched for it."""
    task = await call.api.get_task(call.id("task_id"))
    return json_answer(AttemptList(task_id=task.id, attempts=task.attempts))


async def show_task_usage(call: Call[NoQuery, None]) -> web.Response:
    """Get what a task used, all attempts together."""
    return json_answer(TaskUsage.of(await call.api.get_task(call.id("task_id"))))


async def cancel_task(call: Call[NoQuery, None]) -> web.Response:
    """Cancel a task: a pending one at once; a running one is stopped within a second or two. A final one stays."""
    return json_answer(await call.api.cancel_task(call.id("task_id")))


async def cancel_tasks(call: Call[NoQuery, CancelRequest]) -> web.Response:
    """Cancel all active tasks that match; with an empty object, every one."""
    ids = await call.api.cancel_tasks(agent_id=call.body.agent_id, status=call.body.status)
    return json_answer(CancelAnswer(task_ids=tuple(ids)))


_TASK = {200: Answer("The task.", Task)}

routes = [
    Endpoint(
        method="GET",
        path="/api/tasks/agents/{agent_id}/tasks",
        handler=list_agent_tasks,
        scope=Scope.READ,
        query=TaskQuery,
        answers={200: Answer("One page of the agent's tasks.", TaskSummaryPage)},
        errors=(AgentNotFoundError,),
    ),
    Endpoint(
        method="GET",
        path="/api/tasks/{task_id}",
        handler=show_task,
        scope=Scope.READ,
        answers={200: Answer("The task.", TaskDetail)},
        errors=(TaskNotFoundError,),
    ),
    Endpoint(
        method="POST",
        path="/api/tasks/{task_id}/retry",
        handler=retry_task,
        scope=Scope.RUN,
        query=RetryQuery,
        answers={200: Answer("It will be tried again.", RetryAnswer)},
        errors=(TaskNotFoundError, ConflictError, AgentBusyError),
    ),
    Endpoint(
        method="GET",
        path="/api/tasks",
        handler=list_tasks,
        scope=Scope.READ,
        query=AnyTaskQuery,
        answers={200: Answer("One page of tasks.", TaskPage)},
    ),
    Endpoint(
        method="POST",
        path="/api/tasks/cancel",
        handler=cancel_tasks,
        scope=Scope.RUN,
        body=CancelRequest,
        example={"agent_id": 1, "status": "pending"},
        answers={200: Answer("The tasks that are cancelled, or about to be.", CancelAnswer)},
    ),
    Endpoint(
        method="GET",
        path="/api/tasks/{task_id}/record",
        handler=show_task_record,
        scope=Scope.READ,
        answers=_TASK,
        errors=(TaskNotFoundError,),
    ),
    Endpoint(
        method="GET",
        path="/api/tasks/{task_id}/attempts",
        handler=list_attempts,
        scope=Scope.READ,
        answers={200: Answer("Its attempts.", AttemptList)},
        errors=(TaskNotFoundError,),
    ),
    Endpoint(
        method="GET",
        path="/api/tasks/{task_id}/usage",
        handler=show_task_usage,
        scope=Scope.READ,
        answers={200: Answer("What it used.", TaskUsage)},
        errors=(TaskNotFoundError,),
    ),
    Endpoint(
        method="POST",
        path="/api/tasks/{task_id}/cancel",
        handler=cancel_task,
        scope=Scope.RUN,
        answers=_TASK,
        errors=(TaskNotFoundError,),
    ),
]
