from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import AgentConfig
from harness.firing import MAX_FIRES_AT_ONCE, overdue, plan_fires, plan_nothing, synced
from harness.models import FirePlan, NewTask, ScheduleSource, ScheduleState, SkipReason, WhenBusy
from harness.store.transitions import fired
from harness.triggers import make_trigger

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EVERY_MINUTE = {"type": "interval", "interval_minutes": 1}


def source(state: ScheduleState | None = None, *, version: int = 1, **schedule: Any) -> ScheduleSource:
    """An agent with a schedule; ``retry`` and ``priority`` go beside it."""
    config = {key: schedule.pop(key) for key in ("retry", "priority") if key in schedule}
    return ScheduleSource(
        agent_id=7,
        agent_version=version,
        agent_created_at=NOON,
        config=config | {"schedule": {**EVERY_MINUTE, **schedule}},
        state=state,
    )


def in_force(**schedule: Any) -> ScheduleSource:
    """The same, taken up at noon: its first fire is a minute later."""
    bare = source(**schedule)
    return bare.model_copy(update={"state": synced(bare, NOON).state})


def plan(of: ScheduleSource, now: datetime, retry_max_attempts: int = 3) -> FirePlan:
    made = plan_fires(of, now, retry_max_attempts=retry_max_attempts)
    assert made is not None
    return made


def after(minutes: float) -> datetime:
    return NOON + minutes * MINUTE


def runs(of: FirePlan) -> list[datetime]:
    return [task.fire_at for task in of.tasks if task.skip_reason is None and task.fire_at]


def skips(of: FirePlan) -> list[tuple[datetime | None, datetime | None, int]]:
    return [(task.fire_at, task.skipped_until, task.skipped_count) for task in of.tasks if task.skip_reason]


def test_a_schedule_that_is_new_fires_after_its_first_interval() -> None:
    state = synced(source(), NOON).state

    assert (state.anchor_at, state.next_fire_at, state.due_at) == (NOON, after(1), after(1))


def test_a_fire_on_time_becomes_one_run_and_the_next_fire_is_set() -> None:
    made = plan(in_force(), after(1))

    assert (runs(made), skips(made)) == ([after(1)], [])
    assert (made.next_fire_at, made.due_at) == (after(2), after(2))


@pytest.mark.parametrize(
    ("schedule", "minutes", "expected_runs", "expected_skip"),
    [
        # Late by no more than the grace: as if on time.
        ({}, 1.9, [1], None),
        ({"misfire_grace_seconds": 3600}, 4.5, [1, 2, 3, 4], None),
        # latest: the newest one, unless a newer one is on time.
        ({"misfire_grace_seconds": 10}, 1.5, [1], None),
        ({"misfire_grace_seconds": 10}, 10.5, [10], (1, 9, 9)),
        ({}, 10.5, [10], (1, 9, 9)),
        # none: only what is on time.
        ({"catch_up": "none"}, 10.5, [10], (1, 9, 9)),
        ({"catch_up": "none", "misfire_grace_seconds": 10}, 10.5, [], (1, 10, 10)),
        # all: the newest few beside what is on time.
        ({"catch_up": "all", "catch_up_limit": 3}, 10.5, [7, 8, 9, 10], (1, 6, 6)),
        ({"catch_up": "all", "misfire_grace_seconds": 10}, 4.5, [1, 2, 3, 4], None),
        # A moment is always granted: nobody looks at the very instant.
        ({"catch_up": "none", "misfire_grace_seconds": 0}, 1 + 0.9 / 60, [1], None),
        ({"catch_up": "none", "misfire_grace_seconds": 0}, 1 + 1.1 / 60, [], (1, 1, 1)),
    ],
)
def test_what_was_missed_is_caught_up_as_the_schedule_says(
    schedule: dict[str, Any],
    minutes: float,
    expected_runs: list[int],
    expected_skip: tuple[int, int, int] | None,
) -> None:
    made = plan(in_force(**schedule), after(minutes))

    assert runs(made) == [after(minute) for minute in expected_runs]
    assert skips(made) == (
        []
        if expected_skip is None
        else [(after(expected_skip[0]), after(expected_skip[1]), expected_skip[2])]
    )
    assert made.next_fire_at == after(int(minutes) + 1)


def test_a_month_of_downtime_is_one_record() -> None:
    made = plan(in_force(), NOON + timedelta(days=30, seconds=90))

    assert len(made.tasks) == 2
    assert made.tasks[0].skip_reason is SkipReason.MISSED
    assert made.tasks[0].skipped_count == 30 * 24 * 60


def test_only_so_many_are_on_time_at_once_whatever_the_grace() -> None:
    made = plan(in_force(misfire_grace_seconds=7 * 86400, catch_up="none"), after(1000))

    assert runs(made) == [after(minute) for minute in range(1001 - MAX_FIRES_AT_ONCE, 1001)]
    assert skips(made) == [(after(1), after(1000 - MAX_FIRES_AT_ONCE), 1000 - MAX_FIRES_AT_ONCE)]


def test_as_many_are_caught_up_as_the_limit_says() -> None:
    made = plan(in_force(catch_up="all", catch_up_limit=400, misfire_grace_seconds=1), after(600.5))

    assert runs(made) == [after(minute) for minute in range(201, 601)]
    assert skips(made) == [(after(1), after(200), 200)]


@pytest.mark.parametrize(
    ("schedule", "when_busy", "max_active"),
    [
        ({}, WhenBusy.SKIP, 1),
        ({"overlap": "queue_one"}, WhenBusy.QUEUE, 1),
        ({"overlap": "allow", "max_overlap": 4}, WhenBusy.SKIP, 4),
        ({"overlap": "cancel_running"}, WhenBusy.REPLACE, 1),
    ],
)
def test_overlap_decides_what_a_busy_agent_makes_of_a_fire(
    schedule: dict[str, Any], when_busy: WhenBusy, max_active: int
) -> None:
    (task,) = plan(in_force(**schedule), after(1)).tasks

    assert (task.when_busy, task.max_active) == (when_busy, max_active)


def test_fires_that_are_caught_up_wait_for_one_another_and_the_one_on_time_does_not() -> None:
    tasks = plan(in_force(catch_up="all", misfire_grace_seconds=40), after(3.5)).tasks

    assert [task.when_busy for task in tasks] == [WhenBusy.WAIT, WhenBusy.WAIT, WhenBusy.SKIP]


def test_priority_and_retries_come_from_the_agent_or_else_from_the_scheduler() -> None:
    (own,) = plan(in_force(priority=5, retry={"max_attempts": 0}), after(1)).tasks
    (default,) = plan(in_force(), after(1), retry_max_attempts=2).tasks

    assert (own.priority, own.max_retries) == (5, 0)
    assert (default.priority, default.max_retries) == (0, 2)


def test_jitter_puts_off_the_task_and_not_the_fire() -> None:
    of = in_force(jitter_seconds=30)
    assert of.state is not None
    assert of.state.due_at is not None

    assert of.state.next_fire_at == after(1)
    assert after(1) < of.state.due_at <= after(1.5)
    (task,) = plan(of, of.state.due_at).tasks
    assert (task.fire_at, task.due_at) == (after(1), of.state.due_at)


@pytest.mark.parametrize("change", [{"interval_minutes": 5}, {"overlap": "allow"}, {}])
def test_a_change_of_the_agent_keeps_a_fire_whose_time_has_come(change: dict[str, Any]) -> None:
    before = in_force()

    state = synced(source(before.state, version=2, **change), after(1.5)).state

    assert (state.agent_version, state.next_fire_at, state.due_at) == (2, after(1), after(1))


def test_a_change_of_the_agent_keeps_a_fire_that_its_jitter_puts_off() -> None:
    before = in_force(jitter_seconds=30).state
    assert before is not None
    assert before.due_at is not None

    just_before = before.due_at - timedelta(milliseconds=1)
    state = synced(source(before, version=2, jitter_seconds=30), just_before).state

    assert (state.next_fire_at, state.due_at) == (before.next_fire_at, before.due_at)


def test_a_change_of_the_agent_puts_a_new_rule_in_the_place_of_what_is_to_come() -> None:
    state = synced(source(in_force().state, version=2, interval_minutes=5), after(0.5)).state

    assert state.next_fire_at == after(5)


@pytest.mark.parametrize("change", [{"paused": True}, {"removed": True}])
def test_a_schedule_that_is_paused_or_removed_has_no_next_fire(change: dict[str, bool]) -> None:
    after_it = synced(in_force(), after(0.5), **change)

    assert (after_it.state.next_fire_at, after_it.state.due_at, after_it.skips) == (None, None, ())
    again = synced(source(after_it.state), after(7.5), paused=False, removed=False)
    # On the same grid, and what would have fired meanwhile is none.
    assert (again.state.next_fire_at, again.skips) == (after(8), ())


OFF: dict[str, ScheduleSource] = {
    "disabled": source(version=2, enabled=False),
    "disabled, and another rule": source(version=2, enabled=False, interval_minutes=5),
    "taken out": source().model_copy(update={"agent_version": 2, "config": {}}),
    "taken out by null": source().model_copy(update={"agent_version": 2, "config": {"schedule": None}}),
}


@pytest.mark.parametrize("changed", OFF.values(), ids=OFF.keys())
@pytest.mark.parametrize(("minutes", "count"), [(0.9, 0), (1, 1), (1.5, 1), (3.5, 3)])
def test_what_is_due_when_a_schedule_goes_off_is_one_skip_by_the_rule_it_had(
    changed: ScheduleSource, minutes: float, count: int
) -> None:
    changed = changed.model_copy(update={"state": in_force().state})

    off = synced(changed, after(minutes))

    assert (off.state.next_fire_at, off.state.due_at, off.state.rule) == (None, None, None)
    assert [
        (skip.skip_reason, skip.fire_at, skip.skipped_until, skip.skipped_count) for skip in off.skips
    ] == [(SkipReason.DISABLED, after(1), after(count), count)] * (count > 0)
    assert off.state.last_fire_at == (after(count) if count else None)
    assert overdue(changed, after(minutes), retry_max_attempts=3) is None


@pytest.mark.parametrize("change", [{"paused": True}, {"removed": True}])
def test_what_is_due_at_a_pause_is_one_skip_and_nothing_of_it_is_due_at_the_resume(
    change: dict[str, bool],
) -> None:
    off = synced(in_force(), after(3.5), **change)

    (skip,) = off.skips
    assert (skip.skip_reason, skip.fire_at, skip.skipped_until, skip.skipped_count) == (
        SkipReason.DISABLED, after(1), after(3), 3,
    )  # fmt: skip
    assert synced(source(off.state), after(3.6), **change).skips == ()
    on = synced(source(off.state), after(3.7), paused=False, removed=False)
    assert (on.state.next_fire_at, on.skips) == (after(4), ())


def test_a_fire_that_its_jitter_puts_off_is_skipped_by_a_pause() -> None:
    of = in_force(jitter_seconds=30)
    assert of.state is not None
    assert of.state.due_at is not None

    (skip,) = synced(of, of.state.due_at - timedelta(milliseconds=1), paused=True).skips

    assert (skip.fire_at, skip.skipped_until, skip.skipped_count) == (after(1), after(1), 1)


def test_a_schedule_that_was_computed_before_rules_were_kept_loses_no_fire() -> None:
    state = in_force().state
    assert state is not None
    gone = source(state.model_copy(update={"rule": None})).model_copy(update={"config": {}})

    (skip,) = synced(gone, after(3.5)).skips

    assert (skip.fire_at, skip.skipped_count) == (after(1), 1)


@pytest.mark.parametrize(
    "change",
    [
        {"interval_minutes": 5},
        {"end_at": "2026-01-01T12:02:30Z"},
        {"catch_up": "none"},
        {"type": "cron", "cron": "0 * * * *", "interval_minutes": None},
    ],
)
def test_what_is_due_at_a_change_of_the_rule_is_due_by_the_old_one(change: dict[str, Any]) -> None:
    changed = source(in_force(catch_up="all", catch_up_limit=2).state, version=2, **change)

    # Not by the new one, as long as the old one owes something.
    assert plan_fires(changed, after(5.5), retry_max_attempts=3) is None
    owed = overdue(changed, after(5.5), retry_max_attempts=3)

    assert owed is not None
    assert runs(owed) == [after(3), after(4), after(5)]
    assert skips(owed) == [(after(1), after(2), 2)]
    settled = changed.model_copy(update={"state": fired(owed)})
    assert overdue(settled, after(5.5), retry_max_attempts=3) is None
    state = synced(settled, after(5.5)).state
    assert state.rule == changed.config["schedule"]
    assert state.next_fire_at is None or state.next_fire_at > after(5.5)


def test_a_fire_that_its_jitter_puts_off_is_due_by_the_old_rule_too() -> None:
    before = in_force(interval_minutes=60, jitter_seconds=1800).state
    assert before is not None
    assert before.due_at is not None
    just_before = before.due_at - timedelta(milliseconds=1)

    owed = overdue(source(before, version=2), just_before, retry_max_attempts=3)

    assert owed is not None
    (task,) = owed.tasks
    assert (task.fire_at, task.due_at, task.skip_reason) == (after(60), before.due_at, None)


@pytest.mark.parametrize("minutes", [0.9, 1.5])
def test_a_change_beside_the_rule_leaves_what_is_due_to_the_scheduler(minutes: float) -> None:
    changed = source(in_force().state, version=2, priority=3)

    assert overdue(changed, after(minutes), retry_max_attempts=3) is None


def test_a_schedule_that_can_fire_no_more_owes_one_skip() -> None:
    made = plan_nothing(in_force(), after(2.5))

    assert (runs(made), skips(made), made.next_fire_at) == ([], [(after(1), after(2), 2)], None)


@pytest.mark.parametrize("schedule", [{"enabled": False}, {"end_at": "2026-01-01T12:00:00Z"}])
def test_a_schedule_that_is_off_or_over_has_no_next_fire(schedule: dict[str, Any]) -> None:
    assert synced(source(**schedule), NOON).state.next_fire_at is None


def test_the_last_fire_of_a_schedule_leaves_no_next_one() -> None:
    made = plan(in_force(end_at="2026-01-01T12:01:30Z"), after(1))

    assert runs(made) == [after(1)]
    assert (made.next_fire_at, made.due_at) == (None, None)


schedules = st.fixed_dictionaries(
    {
        "catch_up": st.sampled_from(["latest", "all", "none"]),
        "catch_up_limit": st.integers(1, 300),
        "misfire_grace_seconds": st.sampled_from([0, 1, 30, 90, 600, 7 * 86400]),
        "jitter_seconds": st.sampled_from([0, 0.5, 20, 300]),
        "overlap": st.sampled_from(["skip", "queue_one", "allow", "cancel_running"]),
    }
)
rules = st.one_of(
    st.integers(1, 600).map(lambda seconds: {"type": "interval", "interval_seconds": seconds}),
    st.sampled_from(["* * * * *", "*/7 * * * *", "30 2 * * *", "0 * * * 1-5"]).map(
        lambda cron: {"type": "cron", "cron": cron, "timezone": "Europe/Paris"}
    ),
)
looks = st.lists(st.integers(1, 5 * 86400 * 1000), min_size=1, max_size=8)


@settings(deadline=None)
@given(rules, schedules, looks)
def test_every_fire_is_a_run_or_in_one_skip_and_nothing_is_twice(
    rule: dict[str, Any], schedule: dict[str, Any], gaps_milliseconds: list[int]
) -> None:
    of = ScheduleSource(
        agent_id=7,
        agent_version=1,
        agent_created_at=NOON,
        config={"schedule": rule | schedule},
        state=None,
    )
    config = AgentConfig.parse(of.config).schedule
    assert config is not None
    trigger = make_trigger(config, agent_id=7, anchor=NOON)
    of = of.model_copy(update={"state": synced(of, NOON).state})
    now, covered_until = NOON, NOON
    for gap in gaps_milliseconds:
        now += timedelta(milliseconds=gap)
        assert of.state is not None
        assert of.state.due_at is not None
        if of.state.due_at > now:
            continue
        made = plan(of, now)
        for task in made.tasks:
            covered_until = _check_covered(task, trigger.next_after(covered_until), trigger, covered_until)
        assert made.next_fire_at == trigger.next_after(covered_until)
        assert made.due_at is not None
        assert made.due_at > now
        of = of.model_copy(update={"state": fired(made)})
        assert of.state is not None
        assert of.state.last_fire_at == covered_until


def _check_covered(task: NewTask, expected: datetime | None, trigger: Any, after: datetime) -> datetime:
    """Check that a task answers for the fires right after `after`; return the last of them."""
    assert task.fire_at == expected
    if task.skip_reason is None:
        assert task.due_at == trigger.fire(task.fire_at).due_at
        assert task.fire_at is not None
        return task.fire_at
    assert task.skipped_until is not None
    assert task.skipped_count == trigger.count_between(after, task.skipped_until)
    assert trigger.latest_at_or_before(task.skipped_until) == task.skipped_until
    return task.skipped_until
