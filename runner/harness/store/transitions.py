"""How a task changes, as pure functions from one `Task` to the next; both stores write down what these return."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from harness.errors import ConflictError, LeaseLostError
from harness.models import (
    Attempt,
    Claim,
    FirePlan,
    NewTask,
    Outcome,
    Reason,
    ScheduleState,
    SkipReason,
    Task,
    TaskStatus,
)
from harness.store.documents import clip_text, whole_millis
from harness.store.slots import Place

_LOST = "its runner died or was cut off, and its lease ran out"


def new_task(task_id: int, new: NewTask, place: Place, now: datetime, claim: Claim | None = None) -> Task:
    """Return a task as it is first stored: pending, skipped, or running when there is a claim."""
    scheduled_at = whole_millis(new.scheduled_at or now)
    task = Task(
        id=task_id,
        agent_id=new.agent_id,
        status=TaskStatus.PENDING,
        trigger=new.trigger,
        scheduled_at=scheduled_at,
        created_at=now,
        max_retries=new.max_retries,
        priority=new.priority,
        fire_at=_cut(new.fire_at),
        context=new.context,
        save_handoff=new.save_handoff,
        due_at=_cut(new.due_at) or scheduled_at,
    )
    if place.skip_reason is not None:
        update = {"skipped_until": _cut(new.skipped_until), "skipped_count": max(new.skipped_count, 1)}
        return _skipped(task, place.skip_reason, now).model_copy(update=update)
    return task if claim is None else _claimed(task, claim, now)


def lease_end(now: datetime, lease_seconds: float) -> datetime:
    """Return when a lease taken now ends."""
    return whole_millis(now + timedelta(seconds=lease_seconds))


def claim(stored: Task | None, claim: Claim, now: datetime) -> Task | None:
    """Begin the next attempt; None when the task is not due, or somebody took or ended it."""
    if stored is None or stored.status is not TaskStatus.PENDING or not _is_due(stored, now):
        return None
    return _claimed(stored, claim, now)


def expire(stored: Task | None, read: Task, now: datetime, *, retry_at: datetime | None) -> Task | None:
    """End the attempt of a runner that died, and the task, or let another attempt follow.

    None when its lease was extended, or somebody took or ended it since it was read.
    """
    if stored is None or stored.status is not TaskStatus.RUNNING or not _is_due(stored, now):
        return None
    if stored.fence != read.fence:
        return None
    attempt = stored.attempts[-1]
    outcome = Outcome(reason=attempt.reason or Reason.LOST, error=attempt.error or _LOST)
    if retry_at is None and stored.cancel_requested_at is None:
        ended = _finished(stored, outcome, now)
    else:
        ended = _pending_again(_attempt_ended(stored, outcome, now), now, retry_at or now, retries=1)
    # The fence stays: it runs no more, so its old runner is refused by `held`, and the next claim takes a higher one.
    return ended


def held(stored: Task | None, task_id: int, fence: int) -> Task:
    """Return the task if it runs under `fence`.

    Raises:
        LeaseLostError: It does not; the message says what became of it.
    """
    if stored is None:
        raise LeaseLostError(f"task {task_id} does not exist any more; nothing was written")
    if stored.status is not TaskStatus.RUNNING:
        raise LeaseLostError(
            f"task {task_id} is {stored.status}, not running under fence {fence}; nothing was written"
        )
    if stored.fence != fence:
        raise LeaseLostError(
            f"task {task_id} was taken over: it runs under fence {stored.fence}, not {fence}; nothing was written"
        )
    return stored


def extend(stored: Task | None, task_id: int, fence: int, lease_until: datetime) -> Task:
    """Move the end of a lease; raises like `held`."""
    return held(stored, task_id, fence).model_copy(update={"due_at": lease_until})


def record_reason(stored: Task | None, task_id: int, fence: int, reason: Reason, error: str | None) -> Task:
    """Record why the current attempt is about to be stopped, unless a reason stands there; raises like `held`."""
    task = held(stored, task_id, fence)
    attempt = task.attempts[-1]
    if attempt.reason is not None:
        return task
    attempt = attempt.model_copy(update={"reason": reason, "error": clip_text(error)})
    return task.model_copy(update={"attempts": (*task.attempts[:-1], attempt)})


def finish(stored: Task | None, task_id: int, fence: int, outcome: Outcome, now: datetime) -> Task:
    """Close the current attempt and the task; raises like `held`.

    The outcome decides, also over a reason that was recorded before. A task that ended just so already is returned
    itself: the call is a repetition.
    """
    if stored is not None and _was_finished(stored, fence, outcome):
        return stored
    return _finished(held(stored, task_id, fence), outcome, now)


def retry(
    stored: Task | None, task_id: int, fence: int, outcome: Outcome, now: datetime, *, due_at: datetime
) -> Task:
    """Close the current attempt and let another one follow, unless the task is to be cancelled; raises like `held`.

    A task whose attempt was put back just so already is returned itself, whatever became of it since: the call is a
    repetition.
    """
    if stored is not None and _was_put_back(stored, fence, outcome):
        return stored
    ended = _attempt_ended(held(stored, task_id, fence), outcome, now)
    return _pending_again(ended, now, due_at, retries=1)


def hand_back(stored: Task | None, task_id: int, fence: int, error: str, now: datetime) -> Task:
    """Close the current attempt as lost and let another one follow at once, as `retry` does; raises like `held`."""
    outcome = Outcome(reason=Reason.LOST, error=error)
    if stored is not None and _was_put_back(stored, fence, outcome):
        return stored
    return _pending_again(_attempt_ended(held(stored, task_id, fence), outcome, now), now, now, retries=0)


def reopen(stored: Task, due_at: datetime, max_retries: int) -> Task:
    """Let another attempt follow on a failed task; one that waits for just that already is returned itself.

    Raises:
        ConflictError: It did not fail, or its retries are used up.
    """
    if _was_reopened(stored, due_at, max_retries):
        return stored
    if stored.status is not TaskStatus.FAILED:
        raise ConflictError(
            f"task {stored.id} is {stored.status}, and only a failed task can be retried; run the agent again instead"
        )
    if stored.retry_count >= max_retries:
        raise ConflictError(
            f"task {stored.id} was retried {stored.retry_count} times already, and its max_retries is {max_retries}; "
            "run the agent again instead"
        )
    return stored.model_copy(
        update={
            "status": TaskStatus.PENDING,
            "completed_at": None,
            "result": None,
            "retry_count": stored.retry_count + 1,
            "max_retries": max_retries,
            # A wish that the last attempt's own end forestalled is not one about the next attempt.
            "cancel_requested_at": None,
            "due_at": whole_millis(due_at),
        }
    )


def cancel(stored: Task, now: datetime) -> Task:
    """Cancel a pending task, note the wish on a running one, and return any other itself."""
    if stored.status is TaskStatus.PENDING:
        return _cancelled(stored, now)
    if stored.status is TaskStatus.RUNNING and stored.cancel_requested_at is None:
        return stored.model_copy(update={"cancel_requested_at": now})
    return stored


def supersede(stored: Task | None, now: datetime) -> Task | None:
    """Skip a task that waits in the queue for the sake of a newer one; None when it does not wait any more."""
    if stored is None or stored.status is not TaskStatus.PENDING or stored.attempts:
        return None
    return _skipped(stored, SkipReason.SUPERSEDED, now)


def fired(plan: FirePlan) -> ScheduleState:
    """Return where a schedule stands once its plan is accepted."""
    fires = [new.skipped_until or new.fire_at for new in plan.tasks]
    known = [at for at in (plan.before.last_fire_at, *fires) if at is not None]
    update: dict[str, Any] = {
        "next_fire_at": plan.next_fire_at,
        "due_at": plan.due_at,
        "last_fire_at": max(known, default=None),
        "revision": plan.before.revision + 1,
    }
    return plan.before.model_copy(update=update)


def _is_due(task: Task, now: datetime) -> bool:
    return task.due_at is not None and task.due_at <= now


def _claimed(task: Task, claim: Claim, now: datetime) -> Task:
    fence = task.fence + 1
    return task.model_copy(
        update={
            "status": TaskStatus.RUNNING,
            "started_at": task.started_at or now,
            "attempts": (*task.attempts, Attempt(number=fence, due_at=task.due_at, started_at=now)),
            "due_at": lease_end(now, claim.lease_seconds),
            "lease_owner": claim.owner,
            "fence": fence,
        }
    )


def _attempt_ended(task: Task, outcome: Outcome, now: datetime) -> Task:
    attempt = _ended(task.attempts[-1], outcome, now)
    return task.model_copy(
        update={
            "error": clip_text(outcome.error),
            "reason": outcome.reason,
            "attempts": (*task.attempts[:-1], attempt),
            "lease_owner": None,
        }
    )


def _ended(attempt: Attempt, outcome: Outcome, now: datetime) -> Attempt:
    return attempt.model_copy(
        update={
            "ended_at": now,
            "reason": outcome.reason,
            "exit_code": outcome.exit_code,
            "error": clip_text(outcome.error),
            "output_truncated": outcome.output_truncated,
            "usage": outcome.usage,
        }
    )


def _finished(task: Task, outcome: Outcome, now: datetime) -> Task:
    update = {
        "status": outcome.reason.status,
        "completed_at": now,
        "result": clip_text(outcome.result),
        "due_at": None,
    }
    return _attempt_ended(task, outcome, now).model_copy(update=update)


def _was_finished(task: Task, fence: int, outcome: Outcome) -> bool:
    # Only the holder of a fence ends a task under it, so an equal end is its own.
    if not task.attempts or task.completed_at is None or task.fence != fence:
        return False
    return _finished(task, outcome, task.completed_at) == task


def _was_put_back(task: Task, fence: int, outcome: Outcome) -> bool:
    # As in `_was_finished`. Others may have claimed the task since, so the attempt tells, and not the task's own fence.
    attempts = [attempt for attempt in task.attempts if attempt.number == fence]
    if (
        not attempts
        or attempts[0].ended_at is None
        or attempts[0] != _ended(attempts[0], outcome, attempts[0].ended_at)
    ):
        return False
    if task.status is TaskStatus.PENDING or task.attempts[-1].number != fence:
        return True
    # It was to be cancelled; or else it was finished, which is another end.
    return task.completed_at is not None and _cancelled(task, task.completed_at) == task


def _was_reopened(task: Task, due_at: datetime, max_retries: int) -> bool:
    if task.status is not TaskStatus.PENDING or task.retry_count == 0:
        return False
    return (task.due_at, task.max_retries) == (whole_millis(due_at), max_retries)


def _pending_again(task: Task, now: datetime, due_at: datetime, *, retries: int) -> Task:
    if task.cancel_requested_at is not None:
        return _cancelled(task, now)
    update = {
        "status": TaskStatus.PENDING,
        "due_at": whole_millis(due_at),
        "retry_count": task.retry_count + retries,
    }
    return task.model_copy(update=update)


def _cancelled(task: Task, now: datetime) -> Task:
    update = {
        "status": TaskStatus.CANCELLED,
        "completed_at": now,
        # What ended its last attempt stands in the attempt.
        "error": "cancelled; not tried again" if task.attempts else "cancelled before it ran",
        "reason": Reason.CANCELLED,
        "due_at": None,
    }
    return task.model_copy(update=update)


def _skipped(task: Task, reason: SkipReason, now: datetime) -> Task:
    update = {
        "status": TaskStatus.SKIPPED,
        "completed_at": now,
        "skip_reason": reason,
        "skipped_count": 1,
        "due_at": None,
    }
    return task.model_copy(update=update)


def _cut(value: datetime | None) -> datetime | None:
    return None if value is None else whole_millis(value)
