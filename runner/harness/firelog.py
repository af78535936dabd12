"""What is said of fires: one line for each that became a task, and one for each record of what was skipped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from harness.models import NewTask, ScheduleState, SkipReason, Task, TaskStatus, render_instant

logger = logging.getLogger(__name__)


def log_fire(task: Task) -> None:
    """Say that a plan's task was stored, or its skip."""
    if task.status is TaskStatus.SKIPPED:
        _log_skip(task.agent_id, task.fire_at, task.skip_reason, task.skipped_count, task_id=task.id)
        return
    if not logger.isEnabledFor(logging.INFO):
        return
    about: dict[str, object] = {"task_id": task.id, "agent_id": task.agent_id}
    if task.fire_at is not None:
        about["fire_at"] = render_instant(task.fire_at)
    logger.info("agent %d fires", task.agent_id, extra={"action": "fired", **about})


def log_skips(stored: Sequence[ScheduleState], skips: Sequence[NewTask]) -> None:
    """Say what was skipped with the schedules that were stored."""
    agent_ids = {state.agent_id for state in stored}
    for skip in skips:
        if skip.agent_id in agent_ids:
            _log_skip(skip.agent_id, skip.fire_at, skip.skip_reason, skip.skipped_count)


def _log_skip(
    agent_id: int, fire_at: datetime | None, reason: SkipReason | None, number: int, **about: object
) -> None:
    count = max(1, number)
    about |= {"agent_id": agent_id, "reason": reason, "count": count}
    if fire_at is not None:
        about["fire_at"] = render_instant(fire_at)
    skipped = "a fire is" if count == 1 else f"{count:,} fires are"
    # That an agent is still busy is how it was set up; that nobody was there to fire it is not.
    level = logging.WARNING if reason is SkipReason.MISSED else logging.INFO
    extra = {"action": "fire_skipped", **about}
    logger.log(level, "agent %d: %s skipped (%s)", agent_id, skipped, reason, extra=extra)
