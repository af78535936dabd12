"""How a task changes, as pure functions from one `Task` to the next; both stores write down what these return."""

from __future__ import annotations

from datetime import datetime, timedelta

from harness.errors import LeaseLostError
from harness.models import Attempt, Claim, NewTask, Outcome, Reason, Task, TaskStatus
from harness.store.documents import clip_text, whole_millis


def new_task(task_id: int, new: NewTask, now: datetime, claim: Claim | None) -> Task:
    """Return a task as it is first stored: pending, or running when there is a claim."""
    scheduled_at = whole_millis(new.scheduled_at or now)
    task = Task(
        id=task_id,
        agent_id=new.agent_id,
        status=TaskStatus.PENDING,
        trigger=new.trigger,
        scheduled_at=scheduled_at,
        created_at=now,
        context=new.context,
        save_handoff=new.save_handoff,
        due_at=scheduled_at,
    )
    return task if claim is None else claimed(task, claim, now)


def is_claimable(stored: Task, read: Task, now: datetime) -> bool:
    """Whether a claim decided on from `read` may take the task: it is due, and nobody took or ended it since."""
    is_due = stored.due_at is not None and stored.due_at <= now
    return is_due and (stored.status, stored.fence) == (read.status, read.fence)


def is_expired(stored: Task, read: Task, now: datetime) -> bool:
    """Whether the lease seen in `read` has run out, and nobody extended it, took the task over or ended it since."""
    return stored.status is TaskStatus.RUNNING and is_claimable(stored, read, now)


def lease_end(now: datetime, lease_seconds: float) -> datetime:
    """Return when a lease taken now ends."""
    return whole_millis(now + timedelta(seconds=lease_seconds))


def claimed(task: Task, claim: Claim, now: datetime) -> Task:
    """Begin the next attempt; one that its runner left open is closed."""
    attempts = list(task.attempts)
    reason = task.reason
    if attempts and attempts[-1].ended_at is None:
        reason = attempts[-1].reason or Reason.LOST
        attempts[-1] = attempts[-1].model_copy(update={"ended_at": now, "reason": reason})
    fence = task.fence + 1
    attempts.append(Attempt(number=fence, started_at=now))
    return task.model_copy(
        update={
            "status": TaskStatus.RUNNING,
            "started_at": task.started_at or now,
            "reason": reason,
            "attempts": tuple(attempts),
            "due_at": lease_end(now, claim.lease_seconds),
            "lease_owner": claim.owner,
            "fence": fence,
        }
    )


def held(task: Task | None, task_id: int, fence: int) -> Task:
    """Return the task if it runs under `fence`.

    Raises:
        LeaseLostError: It does not; the message says what became of it.
    """
    if task is None:
        raise LeaseLostError(f"task {task_id} does not exist any more; nothing was written")
    if task.status is not TaskStatus.RUNNING:
        raise LeaseLostError(
            f"task {task_id} is {task.status}, not running under fence {fence}; nothing was written"
        )
    if task.fence != fence:
        raise LeaseLostError(
            f"task {task_id} was taken over: it runs under fence {task.fence}, not {fence}; nothing was written"
        )
    return task


def with_reason(task: Task, reason: Reason, error: str | None) -> Task:
    """Record why the current attempt is about to be stopped, unless a reason stands there already."""
    attempt = task.attempts[-1]
    if attempt.reason is not None:
        return task
    attempt = attempt.model_copy(update={"reason": reason, "error": clip_text(error)})
    return task.model_copy(update={"attempts": (*task.attempts[:-1], attempt)})


def finished(task: Task, outcome: Outcome, now: datetime) -> Task:
    """Close the current attempt and the task; the outcome decides, also over a reason recorded before."""
    attempt = task.attempts[-1].model_copy(
        update={
            "ended_at": now,
            "reason": outcome.reason,
            "exit_code": outcome.exit_code,
            "error": clip_text(outcome.error),
            "output_truncated": outcome.output_truncated,
            "usage": outcome.usage,
        }
    )
    return task.model_copy(
        update={
            "status": outcome.reason.status,
            "completed_at": now,
            "result": clip_text(outcome.result),
            "error": clip_text(outcome.error),
            "reason": outcome.reason,
            "attempts": (*task.attempts[:-1], attempt),
            "due_at": None,
            "lease_owner": None,
        }
    )


def expired(task: Task, now: datetime) -> Task:
    """End a task whose runner died, under a fence that its runner never had."""
    reason = task.attempts[-1].reason or Reason.LOST
    error = task.attempts[-1].error or "its runner died or was cut off, and its lease ran out"
    ended = finished(task, Outcome(reason=reason, error=error), now)
    return ended.model_copy(update={"fence": task.fence + 1})
