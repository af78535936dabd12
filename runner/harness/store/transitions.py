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
    return task if claim is None else _claimed(task, claim, now)


def lease_end(now: datetime, lease_seconds: float) -> datetime:
    """Return when a lease taken now ends."""
    return whole_millis(now + timedelta(seconds=lease_seconds))


def claim(stored: Task | None, read: Task, claim: Claim, now: datetime) -> Task | None:
    """Begin the next attempt; None when the task is not due, or somebody took or ended it since it was read."""
    return _claimed(stored, claim, now) if stored is not None and _is_claimable(stored, read, now) else None


def expire(stored: Task | None, read: Task, now: datetime) -> Task | None:
    """End a task whose runner died; None when its lease was extended, or somebody took or ended it since."""
    if stored is None or stored.status is not TaskStatus.RUNNING or not _is_claimable(stored, read, now):
        return None
    reason = stored.attempts[-1].reason or Reason.LOST
    error = stored.attempts[-1].error or "its runner died or was cut off, and its lease ran out"
    ended = _finished(stored, Outcome(reason=reason, error=error), now)
    # A fence that its runner never had, should that still live.
    return ended.model_copy(update={"fence": stored.fence + 1})


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


def _is_claimable(stored: Task, read: Task, now: datetime) -> bool:
    is_due = stored.due_at is not None and stored.due_at <= now
    return is_due and (stored.status, stored.fence) == (read.status, read.fence)


def _claimed(task: Task, claim: Claim, now: datetime) -> Task:
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


def _was_finished(task: Task, fence: int, outcome: Outcome) -> bool:
    # Only the holder of a fence ends a task under it, so an equal end is its own.
    if not task.attempts or task.completed_at is None or task.fence != fence:
        return False
    return _finished(task, outcome, task.completed_at) == task


def _finished(task: Task, outcome: Outcome, now: datetime) -> Task:
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
