"""What a due schedule turns into: runs, skips and the next fire. Pure; `harness.scheduler` carries it out.

A fire that is late by no more than `misfire_grace_seconds` is on time. Older ones were missed, and `catch_up` says what
becomes of them: ``latest`` runs the newest one if nothing newer is on time, ``all`` the newest `catch_up_limit` of them,
``none`` none. What does not run is recorded as one skip that names the first and the last fire and their number, so a
scheduler that was down for a month writes one record, not forty thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from harness.config import AgentConfig, ScheduleConfig
from harness.models import FirePlan, NewTask, ScheduleSource, ScheduleState, SkipReason, WhenBusy
from harness.triggers import Fire, Trigger, fires_between, make_trigger, next_fire

#: Most fires of one schedule that are on time at once; older ones count as missed, whatever the grace.
MAX_FIRES_AT_ONCE = 100
#: Lateness that is no schedule's fault: a due task starts within this (promise P4).
MIN_GRACE_SECONDS = 1.0

_WHEN_BUSY = {
    "skip": WhenBusy.SKIP,
    "queue_one": WhenBusy.QUEUE,
    "allow": WhenBusy.SKIP,
    "cancel_running": WhenBusy.REPLACE,
}


def synced(source: ScheduleSource, now: datetime) -> ScheduleState:
    """Return where an agent's schedule stands after its owner changed it, or somebody paused or resumed it.

    A fire whose time has come stays, also while its jitter puts it off: it is fired, or skipped with a record, before
    the new rule takes over.
    """
    state = source.state or ScheduleState(
        agent_id=source.agent_id, agent_version=source.agent_version, anchor_at=now
    )
    schedule = AgentConfig.parse(source.config).schedule
    following: Fire | None = None
    if schedule is not None and schedule.enabled and not state.paused and not state.removed:
        if state.next_fire_at is not None and state.due_at is not None and state.next_fire_at <= now:
            following = Fire(state.next_fire_at, state.due_at)
        else:
            following = next_fire(_trigger(source, schedule, state), max(now, state.last_fire_at or now))
    return state.model_copy(
        update={
            "agent_version": source.agent_version,
            "next_fire_at": following.fire_time if following else None,
            "due_at": following.due_at if following else None,
        }
    )


def past_trigger(source: ScheduleSource, start: datetime) -> Trigger:
    """Return an agent's trigger as if its schedule had been in force before `start` already, on the grid it has.

    Args:
        source: With a schedule and a state.
        start: Aware.
    """
    schedule, state = AgentConfig.parse(source.config).schedule, source.state
    assert schedule is not None
    assert state is not None
    anchor = min(state.anchor_at, start - timedelta(seconds=1))
    if schedule.type == "interval":
        step = timedelta(minutes=schedule.interval_minutes or 0, seconds=schedule.interval_seconds or 0)
        anchor = state.anchor_at + (anchor - state.anchor_at) // step * step
    return make_trigger(schedule, agent_id=source.agent_id, anchor=anchor)


def plan_fires(source: ScheduleSource, now: datetime, *, retry_max_attempts: int) -> FirePlan:
    """Plan everything that a schedule owes up to `now`.

    Args:
        source: With a state whose `due_at` has passed.
        now: By the store's clock.
        retry_max_attempts: For agents that set no ``retry.max_attempts``.
    """
    state = source.state
    assert state is not None
    options = AgentConfig.parse(source.config)
    schedule, first, due_at = options.schedule, state.next_fire_at, state.due_at
    if schedule is None or not schedule.enabled or first is None or due_at is None:
        return FirePlan(before=state, tasks=(), next_fire_at=None, due_at=None)
    trigger = _trigger(source, schedule, state)
    newest = _newest_due(trigger, first, now)
    total = 1 + trigger.count_between(first, newest)
    grace = max(schedule.misfire_grace_seconds, MIN_GRACE_SECONDS)
    fires = _newest(trigger, Fire(first, due_at), newest, max(MAX_FIRES_AT_ONCE, schedule.catch_up_limit))
    late, on_time = _split(fires, now - timedelta(seconds=grace))
    caught_up = _caught_up(schedule, late, on_time)
    runs = [
        *(_run(source, options, fire, retry_max_attempts, is_late=True) for fire in caught_up),
        *(_run(source, options, fire, retry_max_attempts, is_late=False) for fire in on_time),
    ]
    skipped = _skip(source.agent_id, first, trigger, runs, newest, total - len(runs))
    following = next_fire(trigger, newest)
    return FirePlan(
        before=state,
        tasks=(*skipped, *runs),
        next_fire_at=following.fire_time if following else None,
        due_at=following.due_at if following else None,
    )


def _trigger(source: ScheduleSource, schedule: ScheduleConfig, state: ScheduleState) -> Trigger:
    return make_trigger(schedule, agent_id=source.agent_id, anchor=state.anchor_at)


def _newest_due(trigger: Trigger, first: datetime, now: datetime) -> datetime:
    """Return the newest fire time whose due time has passed; `first` is due in any case."""
    newest = trigger.latest_at_or_before(now)
    if newest is not None and trigger.fire(newest).due_at > now:
        # Due times rise strictly and lie below the next fire time, so the one before is due.
        newest = trigger.latest_at_or_before(newest - timedelta(microseconds=1))
    return first if newest is None else max(first, newest)


def _newest(trigger: Trigger, first: Fire, newest: datetime, limit: int) -> list[Fire]:
    """Return the newest `limit` of all fires from `first`, which may not be of this trigger, to `newest`."""
    fires = fires_between(trigger, first.fire_time, newest, limit)
    # Short of the limit, these are all there are after the first.
    return fires if len(fires) == limit else [first, *fires]


def _split(fires: Sequence[Fire], oldest: datetime) -> tuple[Sequence[Fire], Sequence[Fire]]:
    """Split into those that are late and those, from some fire on and at most `MAX_FIRES_AT_ONCE`, that are on time."""
    begin = len(fires)
    while begin > max(0, len(fires) - MAX_FIRES_AT_ONCE) and fires[begin - 1].due_at >= oldest:
        begin -= 1
    return fires[:begin], fires[begin:]


def _caught_up(schedule: ScheduleConfig, late: Sequence[Fire], on_time: Sequence[Fire]) -> Sequence[Fire]:
    if schedule.catch_up == "all":
        return late[-schedule.catch_up_limit :]
    if schedule.catch_up == "latest" and not on_time:
        return late[-1:]
    return ()


def _run(
    source: ScheduleSource, options: AgentConfig, fire: Fire, retry_max_attempts: int, *, is_late: bool
) -> NewTask:
    schedule = options.schedule
    assert schedule is not None
    catching_up = is_late and schedule.catch_up == "all"
    return NewTask(
        agent_id=source.agent_id,
        trigger="schedule",
        scheduled_at=fire.fire_time,
        due_at=fire.due_at,
        fire_at=fire.fire_time,
        max_active=options.max_active,
        # Fires that are caught up come in one moment; as overlaps they would skip one another.
        when_busy=WhenBusy.WAIT if catching_up else _WHEN_BUSY[schedule.overlap],
        priority=options.priority,
        max_retries=options.retry.max_retries(retry_max_attempts),
    )


def _skip(
    agent_id: int, first: datetime, trigger: Trigger, runs: Sequence[NewTask], newest: datetime, count: int
) -> tuple[NewTask, ...]:
    """Return the record of the fires before the first run, if there are any."""
    if count <= 0:
        return ()
    last = newest
    if runs:
        assert runs[0].fire_at is not None
        last = trigger.latest_at_or_before(runs[0].fire_at - timedelta(microseconds=1)) or first
    return (
        NewTask(
            agent_id=agent_id,
            trigger="schedule",
            scheduled_at=first,
            fire_at=first,
            skip_reason=SkipReason.MISSED,
            skipped_until=max(first, last),
            skipped_count=count,
        ),
    )
