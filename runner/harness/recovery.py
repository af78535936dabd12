"""Cleaning up after runners that died: containers without a live lease go, tasks without a live runner are ended.

Any process may do this at any time, also several at once: every step is a removal that may find nothing, or a
compare-and-set. A container is removed *before* its task is given up, so that nothing runs that nobody owns.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from harness.errors import AgentNotFoundError, SandboxError, TaskNotFoundError
from harness.models import Reason, Task, TaskStatus
from harness.ports import OwnedContainer, Sandbox, Store
from harness.retry import retry_delay

logger = logging.getLogger(__name__)

#: Expired tasks looked at per sweep; the next sweep takes the rest.
BATCH = 100


#: Asked after a lease was found to have ended and before anything is done about it: whether to believe that.
Believe = Callable[[], Awaitable[bool]]


async def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did."""

    removed_containers: int
    #: Tasks whose runner was gone, whether they ended or are to be tried again.
    lost_tasks: tuple[int, ...]


async def sweep(store: Store, sandbox: Sandbox, *, believe: Believe = _always) -> SweepReport:
    """Remove our orphaned containers, whatever their state; end tasks whose lease has run out, or have them retried.

    Only containers labelled with this store's id are looked at.

    Raises:
        StoreUnavailableError: The store does not answer.
        EngineUnavailableError: The engine does not answer; no task was touched then.
    """
    removed, kept = await _remove_orphans(store, sandbox, believe)
    lost = []
    for task in await store.expired_tasks(limit=BATCH):
        if task.id in kept or not await believe():
            continue
        ended = await store.expire_task(task, retry_at=await _retry_at(store, task))
        if ended is not None:
            action = {"action": "task_lost", "task_id": task.id, "agent_id": task.agent_id}
            logger.warning("task %d lost its runner; it is %s now", task.id, ended.status, extra=action)
            lost.append(task.id)
    if lost:
        # A runner that was frozen may have started its container after the first look.
        removed += (await _remove_orphans(store, sandbox, believe))[0]
    return SweepReport(removed, tuple(lost))


async def _retry_at(store: Store, task: Task) -> datetime | None:
    try:
        agent = await store.get_agent(task.agent_id)
    except AgentNotFoundError:
        return None
    attempt = task.attempt
    reason = attempt.reason if attempt is not None and attempt.reason is not None else Reason.LOST
    delay = retry_delay(agent.options.retry, task, reason)
    return None if delay is None else await store.now() + delay


async def _remove_orphans(store: Store, sandbox: Sandbox, believe: Believe) -> tuple[int, set[int]]:
    """Remove what has no live lease; return how many went, and the tasks whose containers stay though they should go."""
    removed, kept = 0, set()
    for container in await sandbox.owned_containers(store.store_id):
        if container.is_leaving:
            continue
        due_at = await _lease_end(store, container)
        if due_at is not None:
            if due_at > await store.now():
                continue
            if not await believe():
                kept.add(container.labels.task_id)
                continue
        try:
            await sandbox.remove_container(container.container_id)
        except SandboxError as error:
            logger.error("orphan stays: %s", error, extra={"action": "orphan_stays"})
            kept.add(container.labels.task_id)
        else:
            action = {"action": "orphan_removed", "task_id": container.labels.task_id}
            logger.warning("removed an orphaned container (%s)", container.state, extra=action)
            removed += 1
    return removed, kept


async def _lease_end(store: Store, container: OwnedContainer) -> datetime | None:
    """Return when the lease that a container belongs to ends; None: it belongs to none."""
    try:
        task = await store.get_task(container.labels.task_id)
    except TaskNotFoundError:
        return None
    is_held = task.status is TaskStatus.RUNNING and task.fence == container.labels.fence
    return task.due_at if is_held else None
