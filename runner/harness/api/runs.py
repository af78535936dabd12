"""Runs that somebody asks for: begun at most once per key, waited for, cancelled many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.api.values import check_idempotency_key
from harness.errors import DuplicateFireError, IdempotencyKeyReusedError, TaskNotFoundError
from harness.jsontext import check_json
from harness.models import Task, TaskStatus
from harness.ports import Clock, Store

if TYPE_CHECKING:
    from harness.scheduler import TaskScheduler

#: Pauses between two looks at a task that is waited for, in seconds: short runs are seen soon, long ones cost little.
FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 0.02, 0.5

_PAGE = 1000


async def begin(
    store: Store,
    scheduler: TaskScheduler,
    agent_id: int,
    *,
    context: dict[str, Any] | None,
    save_handoff: bool,
    idempotency_key: str | None,
) -> Task:
    """Make a task, or return the one that was made under the same key."""
    if idempotency_key is not None:
        check_idempotency_key(idempotency_key)
    if context is not None:
        check_json(context, what="context")
    try:
        return await scheduler.trigger_now(
            agent_id, context, save_handoff=save_handoff, request_key=idempotency_key
        )
    except DuplicateFireError as error:
        task = await store.get_task(error.task_id)
    if (task.context, task.save_handoff) != (context, save_handoff):
        raise IdempotencyKeyReusedError(
            f"the idempotency key {idempotency_key!r} belongs to task {task.id}, which was asked for with another "
            "context or save_handoff; use a new key for a new run"
        )
    return task


async def wait(store: Store, clock: Clock, task: Task, seconds: float) -> Task:
    """Return the task at its end, or as it stands after `seconds`."""
    deadline = clock.monotonic() + seconds
    pause = FIRST_LOOK_SECONDS
    while not task.status.is_final and (left := deadline - clock.monotonic()) > 0:
        await clock.sleep(min(pause, left))
        pause = min(pause * 1.5, LAST_LOOK_SECONDS)
        task = await store.get_task(task.id)
    return task


async def cancel_all(
    store: Store, agent_id: int | None, status: Literal["pending", "running"] | None
) -> Sequence[int]:
    """Cancel all active tasks that match; return their ids in order."""
    statuses = [TaskStatus.PENDING, TaskStatus.RUNNING] if status is None else [TaskStatus(status)]
    cancelled: set[int] = set()
    for wanted in statuses:
        # Lists move while they are read page by page, so they are read until they hold nothing new.
        while found := await _active(store, agent_id, wanted) - cancelled:
            for task_id in sorted(found):
                try:
                    await store.cancel_task(task_id)
                except TaskNotFoundError:  # deleted meanwhile
                    continue
            cancelled |= found
    return sorted(cancelled)


async def _active(store: Store, agent_id: int | None, status: TaskStatus) -> set[int]:
    ids: set[int] = set()
    offset = 0
    while True:
        page = await store.list_tasks(agent_id=agent_id, status=status, limit=_PAGE, offset=offset)
        ids.update(task.id for task in page.items)
        offset += _PAGE
        if offset >= page.total_count:
            return ids
