"""What a due schedule turns into: runs, skips and the next fire. Pure; `harness.scheduler` carries it out.

A fire that is late by no more than `misfire_grace_seconds` is on time. Older ones were missed, and `catch_up` says what
becomes of them: ``latest`` runs the newest one if nothing newer is on time, ``all`` the newest `catch_up_limit` of them,
``none`` none. What does not run is recorded as one skip that names the first and the last fire and their number, so a
scheduler that was down for a month writes one record, not forty thousand.

A fire is due by the rule that was in force at its time. When that changes, what is due by the old one is planned first;
when the schedule goes off, it is recorded as skipped, with the change itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from harness.config import AgentConfig, ScheduleConfig
from harness.errors import InvalidInputError
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


@dataclass(frozen=True, slots=True)
class Synced:
    """Where a schedule stands after a change, and the record of what it leaves undone by that; stored together."""

    state: ScheduleState
    skips: tuple[NewTask, ...] = ()


def synced(source: ScheduleSource, now: datetime, **changes: bool) -> Synced:
    """Return where an agent's schedule stands after its owner changed it, or somebody paused or resumed it.

    A fire whose time has come, also while its jitter puts it off, does not go without a record: where the schedule goes
    on, it stays and is fired before the new rule takes over; where the schedule goes off, it is skipped as disabled.

    Args:
        source: The agent; what its old rule owes is planned already, see `overdue`.
        now: By the store's clock.
        changes: `ScheduleState.paused` and `ScheduleState.removed`, as they are to be.
    """
    before = source.state or _new_state(source, now)
    state = before.model_copy(update=changes)
    schedule = _in_force(source, state)
    if schedule is None:
        return switched_off(source.model_copy(update={"state": state}), now)
    if state.next_fire_at is not None and state.due_at is not None and state.next_fire_at <= now:
        following: Fire | None = Fire(state.next_fire_at, state.due_at)
    else:
        following = next_fire(_trigger(source, schedule, state), max(now, state.last_fire_at or now))
    return Synced(
        state.model_copy(
            update={
                "agent_version": source.agent_version,
                "next_fire_at": following.fire_time if following else None,
                "due_at": following.due_at if following else None,
                "rule": source.config["schedule"],
            }
        )
    )


def switched_off(source: ScheduleSource, now: datetime) -> Synced:
    """Return where an agent's schedule stands when it is off, whatever its config says, with one skip for what is due."""
    state = source.state or _new_state(source, now)
    skips: tuple[NewTask, ...] = ()
    if state.next_fire_at is not None and state.next_fire_at <= now:
        skips = _disabled(source, state, state.next_fire_at, now)
    known = [at for at in (state.last_fire_at, *(skip.skipped_until for skip in skips)) if at is not None]
    off = {"agent_version": source.agent_version, "next_fire_at": None, "due_at": None, "rule": None}
    return Synced(state.model_copy(update={**off, "last_fire_at": max(known, default=None)}), skips)


def overdue(
    source: ScheduleSource, now: datetime, *, retry_max_attempts: int, **changes: bool
) -> FirePlan | None:
    """Plan what the rule that was in force until now still owes, where another takes its place; None: nothing.

    A fire that its jitter puts off becomes a task at once, which starts when it is due.

    Args:
        source: An agent that changed since its schedule was computed.
        now: By the store's clock.
        retry_max_attempts: As for `plan_fires`.
        changes: As for `synced`.
    """
    state = source.state
    if state is None or state.rule is None or state.next_fire_at is None or state.next_fire_at > now:
        return None
    if state.rule == source.config.get("schedule"):
        return None
    if _in_force(source, state.model_copy(update=changes)) is None or _rule_of(source, state) is None:
        return None
    before = source.model_copy(
        update={
            "agent_version": state.agent_version,
            "config": {**source.config, "schedule": state.rule},
        }
    )
    return plan_fires(before, now, retry_max_attempts=retry_max_attempts)


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


def plan_fires(source: ScheduleSource, now: datetime, *, retry_max_attempts: int) -> FirePlan | None:
    """Plan everything that a schedule owes up to `now`; None when its agent changed, and it has to be synced first.

    Args:
        source: With a state whose `due_at` has passed.
        now: By the store's clock.
        retry_max_attempts: For agents that set no ``retry.max_attempts``.
    """
    state = source.state
    assert state is not None
    if state.agent_version != source.agent_version:
        return None
    options = AgentConfig.parse(source.config)
    schedule, first, due_at = options.schedule, state.next_fire_at, state.due_at
    if schedule is None or not schedule.enabled or first is None or due_at is None:
        return plan_nothing(source, now)
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


def plan_ahead(source: ScheduleSource, *, retry_max_attempts: int) -> FirePlan | None:
    """Plan what a schedule will owe when it falls due; None where that is anything else than its one next fire.

    Args:
        source: With a state that has a `due_at`.
        retry_max_attempts: As for `plan_fires`.

    Returns:
        What `plan_fires` gives at any moment at which `holds_at` is true of it, from the same source.
    """
    state = source.state
    assert state is not None
    assert state.due_at is not None
    plan = plan_fires(source, state.due_at, retry_max_attempts=retry_max_attempts)
    if plan is None or [(new.fire_at, new.skip_reason) for new in plan.tasks] != [(state.next_fire_at, None)]:
        return None
    return plan


def holds_at(ahead: FirePlan, now: datetime) -> bool:
    """Whether a plan of `plan_ahead` is what is to be done now: its fire is due, on time, and the only one."""
    due_at = ahead.before.due_at
    assert due_at is not None
    # The shortest grace there is: which one the schedule has makes no difference then.
    is_on_time = due_at <= now <= due_at + timedelta(seconds=MIN_GRACE_SECONDS)
    return is_on_time and (ahead.due_at is None or now < ahead.due_at)


def plan_nothing(source: ScheduleSource, now: datetime) -> FirePlan:
    """Plan that a schedule fires no more, and that what it owes is skipped as disabled."""
    assert source.state is not None
    return FirePlan(
        before=source.state, tasks=switched_off(source, now).skips, next_fire_at=None, due_at=None
    )


def _new_state(source: ScheduleSource, now: datetime) -> ScheduleState:
    return ScheduleState(agent_id=source.agent_id, agent_version=source.agent_version, anchor_at=now)


def _in_force(source: ScheduleSource, state: ScheduleState) -> ScheduleConfig | None:
    """Return the schedule of an agent's config if it is to fire."""
    schedule = AgentConfig.parse(source.config).schedule
    is_off = schedule is None or not schedule.enabled or state.paused or state.removed
    return None if is_off else schedule


def _rule_of(source: ScheduleSource, state: ScheduleState) -> ScheduleConfig | None:
    """Return the rule by which a schedule was computed; None when it is not known, or this release takes it no more."""
    rule = source.config.get("schedule") if state.rule is None else state.rule
    try:
        return AgentConfig.parse({"schedule": rule}).schedule
    except InvalidInputError:
        return None


def _disabled(
    source: ScheduleSource, state: ScheduleState, first: datetime, now: datetime
) -> tuple[NewTask, ...]:
    """Return the record of the fires from `first` on whose time has come."""
    rule = _rule_of(source, state)
    last, count = first, 1
    if rule is not None:
        trigger = _trigger(source, rule, state)
        last = max(first, trigger.latest_at_or_before(now) or first)
        count += trigger.count_between(first, last)
    return (_skip_of(source.agent_id, SkipReason.DISABLED, first, last, count),)


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
    return (_skip_of(agent_id, SkipReason.MISSED, first, max(first, last), count),)


def _skip_of(agent_id: int, reason: SkipReason, first: datetime, last: datetime, count: int) -> NewTask:
    return NewTask(
        agent_id=agent_id,
        trigger="schedule",
        scheduled_at=first,
        fire_at=first,
        skip_reason=reason,
        skipped_until=last,
        skipped_count=count,
    )
