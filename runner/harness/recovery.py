"""Cleaning up after runners that died: containers without a live lease go, tasks without a live runner are ended.

Any process may do this at any time, also several at once: every step is a removal that may find nothing, or a
compare-and-set. A container is removed *before* its task is given up, so that nothing runs that nobody owns.

A container that was waiting for a task gets its attempt's name a moment after its job, so the attempt of a runner that
was frozen in that moment may run in one that still seems to wait. Hence, where a lease has run out, those of its owner
that have no name after `WARM_NAMING_SECONDS` go as well. Should the owner be alive after all, it makes new ones, under
another name, so that this does not meet them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from harness.clock import SystemClock
from harness.errors import AgentNotFoundError, SandboxError, TaskNotFoundError
from harness.models import Reason, Task, TaskStatus
from harness.ports import (
    WARM_NAMING_SECONDS,
    Clock,
    OwnedContainer,
    Sandbox,
    SandboxLabels,
    Store,
    WarmLabels,
)
from harness.retry import retry_delay

logger = logging.getLogger(__name__)

#: Expired tasks looked at per sweep; the next sweep takes the rest.
BATCH = 100
#: A container that is to wait for a task, and was not started for so long, won't be.
CREATED_SECONDS = 15.0


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


async def sweep(
    store: Store, sandbox: Sandbox, *, clock: Clock | None = None, believe: Believe = _always
) -> SweepReport:
    """Remove our orphaned containers, whatever their state; end tasks whose lease has run out, or have them retried.

    Only containers labelled with this store's id are looked at.

    Raises:
        StoreUnavailableError: The store does not answer.
        EngineUnavailableError: The engine does not answer; no task was touched then.
    """
    removed, kept = await _remove_orphans(store, sandbox, believe)
    expired = [task for task in await store.expired_tasks(limit=BATCH) if task.id not in kept]
    if expired and await believe():
        count, kept = await _remove_unnamed(store, sandbox, clock or SystemClock(), expired)
        removed += count
    lost = []
    for task in expired:
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
    orphans, kept = [], set()
    for container in await sandbox.owned_containers(store.store_id):
        if container.is_leaving:
            continue
        labels = container.labels
        if isinstance(labels, WarmLabels):
            if _may_wait(container, labels, await store.now()):
                continue
        elif (due_at := await _lease_end(store, labels)) is not None:
            if due_at > await store.now():
                continue
            if not await believe():
                kept.add(labels.task_id)
                continue
        orphans.append(container)
    stay = await _remove(sandbox, orphans)
    kept |= {labels.task_id for labels in stay if isinstance(labels, SandboxLabels)}
    return len(orphans) - len(stay), kept


async def _remove_unnamed(
    store: Store, sandbox: Sandbox, clock: Clock, expired: Sequence[Task]
) -> tuple[int, set[int]]:
    """Remove what the attempts of ended leases may run in without its name saying so; return as above."""
    owners = {task.lease_owner for task in expired}
    attempts = {(task.id, task.fence) for task in expired}

    def is_suspect(labels: SandboxLabels | WarmLabels) -> bool:
        if isinstance(labels, WarmLabels):
            return labels.owner in owners
        return (labels.task_id, labels.fence) in attempts

    async def suspects() -> list[OwnedContainer]:
        found = await sandbox.owned_containers(store.store_id)
        return [container for container in found if is_suspect(container.labels) and not container.is_leaving]

    if not await suspects():
        return 0, set()
    await clock.sleep(WARM_NAMING_SECONDS)
    found = await suspects()
    stay = await _remove(sandbox, found)
    kept = {
        task.id
        for task in expired
        for labels in stay
        # One that has no name may run any attempt of its owner.
        if (labels.owner == task.lease_owner if isinstance(labels, WarmLabels) else labels.task_id == task.id)
    }
    return len(found) - len(stay), kept


async def _remove(sandbox: Sandbox, containers: Sequence[OwnedContainer]) -> list[SandboxLabels | WarmLabels]:
    """Remove containers; return the labels of those that stay."""
    stay = []
    for container in containers:
        labels = container.labels
        about: dict[str, object] = (
            {"owner": labels.owner} if isinstance(labels, WarmLabels) else {"task_id": labels.task_id}
        )
        try:
            await sandbox.remove_container(container.container_id)
        except SandboxError as error:
            logger.error("orphan stays: %s", error, extra={"action": "orphan_stays", **about})
            stay.append(labels)
        else:
            action = {"action": "orphan_removed", **about}
            logger.warning("removed an orphaned container (%s)", container.state, extra=action)
    return stay


def _may_wait(container: OwnedContainer, labels: WarmLabels, now: datetime) -> bool:
    """Return whether a container that waits for a task may do so for a living runner.

    It ends by itself when its runner does, as that closes its connection.
    """
    if container.state == "created":
        return now - container.made_at < timedelta(seconds=CREATED_SECONDS)
    return container.state == "running" and now < labels.until


async def _lease_end(store: Store, labels: SandboxLabels) -> datetime | None:
    """Return when the lease that a container belongs to ends; None: it belongs to none."""
    try:
        task = await store.get_task(labels.task_id)
    except TaskNotFoundError:
        return None
    is_held = task.status is TaskStatus.RUNNING and task.fence == labels.fence
    return task.due_at if is_held else None
