from __future__ import annotations

import io
import itertools
import json
import os
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from cronsim import CronSim
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit import dst_table

from harness.config import MAX_INSTANT, AgentConfig, ScheduleConfig
from harness.cron import NAMED_SCHEDULES, parse_cron
from harness.errors import InvalidInputError
from harness.triggers import Fire, Trigger, _CronTimes, fires_between, make_trigger, next_fire, preview
from harness.zones import stretches_from

NOON = datetime(2026, 3, 3, 12, 17, 30, tzinfo=UTC)
TICK = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
ZONES = (
    "UTC",
    "Europe/Paris",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Africa/Casablanca",
)


def parse(**schedule: Any) -> ScheduleConfig:
    schedule.setdefault("type", "cron" if "cron" in schedule else "interval")
    parsed = AgentConfig.parse({"schedule": schedule}).schedule
    assert parsed is not None
    return parsed


def trigger_of(anchor: datetime = NOON, *, agent_id: int = 1, **schedule: Any) -> Trigger:
    return make_trigger(parse(**schedule), agent_id=agent_id, anchor=anchor)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def naive(year: int) -> datetime:
    return datetime(year, 1, 1)  # noqa: DTZ001


def walk(trigger: Trigger, after: datetime, until: datetime) -> list[datetime]:
    return list(itertools.takewhile(lambda time: time <= until, walk_on(trigger, after)))


def walk_on(trigger: Trigger, after: datetime) -> Any:
    instant: datetime | None = after
    while instant is not None and (instant := trigger.next_after(instant)) is not None:
        yield instant


# A cron expression as text, over all that is taken.


def terms(first: int, last: int, *, top_of_star: int | None = None) -> st.SearchStrategy[str]:
    number = st.integers(first, last)
    # The other library takes 5-5/2 for 5-59/2, so ranges have two ends.
    pairs = st.tuples(number, number).filter(lambda pair: pair[0] != pair[1]).map(sorted)
    ranges = pairs.map(lambda pair: f"{pair[0]}-{pair[1]}")
    steps = st.integers(1, (top_of_star or last) - first)
    return st.one_of(
        number.map(str), ranges, st.tuples(ranges, steps).map(lambda pair: f"{pair[0]}/{pair[1]}")
    )


def fields(first: int, last: int, *, top_of_star: int | None = None) -> st.SearchStrategy[str]:
    star_steps = st.integers(1, (top_of_star or last) - first).map(lambda step: f"*/{step}")
    lists = st.lists(terms(first, last, top_of_star=top_of_star), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), star_steps, lists)


def is_taken(text: str) -> bool:
    try:
        parse_cron(text)
    except InvalidInputError:
        return False
    return True


EXPRESSIONS = (
    st.tuples(fields(0, 59), fields(0, 23), fields(1, 31), fields(1, 12), fields(0, 7, top_of_star=6))
    .map(" ".join)
    .filter(is_taken)
)
#: Dense enough that a few days hold several fires.
DAILY_EXPRESSIONS = st.tuples(fields(0, 59), fields(0, 23)).map(lambda pair: f"{pair[0]} {pair[1]} * * *")
INSTANTS = st.datetimes(naive(2000), naive(2099), timezones=st.just(UTC))
#: Around changes of offset, where mistakes live.
CHANGES = (
    ("Europe/Paris", "2026-03-29T01:00:00+00:00"),
    ("Europe/Paris", "2026-10-25T01:00:00+00:00"),
    ("America/New_York", "2026-03-08T07:00:00+00:00"),
    ("America/New_York", "2026-11-01T06:00:00+00:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30:00+00:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00:00+00:00"),
    ("Europe/Dublin", "2026-10-25T01:00:00+00:00"),
    ("Africa/Casablanca", "2026-02-15T02:00:00+00:00"),
    ("Pacific/Apia", "2011-12-30T10:00:00+00:00"),
    # An offset that changed for good, without daylight saving.
    ("Asia/Pyongyang", "2018-05-04T15:00:00+00:00"),
    ("Europe/Istanbul", "2016-09-06T21:00:00+00:00"),
    ("Africa/Casablanca", "1985-12-31T23:00:00+00:00"),
    ("America/Lima", "1994-01-01T05:00:00+00:00"),
    ("America/Caracas", "2007-12-09T07:00:00+00:00"),
)


# The seed's two schedules


def test_an_interval_fires_at_whole_multiples_of_its_step_from_the_anchor() -> None:
    trigger = trigger_of(at("2026-03-03T12:00:00Z"), interval_minutes=60, enabled=True)

    assert preview(trigger, at("2026-03-03T12:00:00Z"), 2) == [
        at("2026-03-03T13:00:00Z"),
        at("2026-03-03T14:00:00Z"),
    ]


def test_an_hourly_cron_fires_at_the_full_hour() -> None:
    trigger = trigger_of(cron="0 * * * *", enabled=True)

    assert preview(trigger, NOON, 2) == [at("2026-03-03T13:00:00Z"), at("2026-03-03T14:00:00Z")]


def test_a_disabled_schedule_never_fires() -> None:
    trigger = trigger_of(cron="* * * * *", enabled=False)
    later = NOON + timedelta(days=1)

    assert trigger.next_after(NOON) is None
    assert trigger.latest_at_or_before(later) is None
    assert trigger.count_between(NOON, later) == 0
    assert fires_between(trigger, NOON, later, 5) == []


# What cron expressions mean


@pytest.mark.parametrize(("name", "expression"), NAMED_SCHEDULES.items())
def test_a_named_schedule_is_its_expression(name: str, expression: str) -> None:
    assert preview(trigger_of(cron=name.upper()), NOON, 3) == preview(trigger_of(cron=expression), NOON, 3)


@pytest.mark.parametrize(
    ("expression", "fires"),
    [
        # Day and weekday: one is enough …
        ("0 0 13 * fri", ["2026-03-06", "2026-03-13", "2026-03-20"]),
        # … unless either starts with a star, as in Vixie cron.
        ("0 0 */2 * mon", ["2026-03-09", "2026-03-23", "2026-04-13"]),
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 31 * *", ["2026-03-31", "2026-05-31", "2026-07-31"]),
        ("0 0 30 2 1", ["2027-02-01", "2027-02-08", "2027-02-15"]),
        ("0 0 * * 7", ["2026-03-08", "2026-03-15", "2026-03-22"]),
        ("0 0 * * Sat-Sun", ["2026-03-07", "2026-03-08", "2026-03-14"]),
        ("0 0 * * sun-mon", ["2026-03-08", "2026-03-09", "2026-03-15"]),
        ("0 0 1 JAN,jul *", ["2026-07-01", "2027-01-01", "2027-07-01"]),
        # croniter alone takes 1-1 for the whole month.
        ("0 0 1-1 * *", ["2026-04-01", "2026-05-01", "2026-06-01"]),
        ("\t0  0 1-31/15 * * ", ["2026-03-16", "2026-03-31", "2026-04-01"]),
    ],
)
def test_cron_means_what_vixie_cron_means(expression: str, fires: list[str]) -> None:
    found = preview(trigger_of(cron=expression), NOON, 3)

    assert [time.isoformat() for time in found] == [f"{day}T00:00:00+00:00" for day in fires]


def test_the_leap_day_survives_a_century_without_one() -> None:
    trigger = trigger_of(cron="0 0 29 2 *")

    assert trigger.next_after(at("2096-03-01T00:00:00Z")) == at("2104-02-29T00:00:00Z")
    assert trigger.latest_at_or_before(at("2104-02-28T00:00:00Z")) == at("2096-02-29T00:00:00Z")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EXPRESSIONS, INSTANTS)
def test_cron_agrees_with_another_library_in_utc(expression: str, after: datetime) -> None:
    theirs = CronSim(expression, after)
    found = preview(trigger_of(after, cron=expression), after, 5)

    assert found == [next(theirs) for _ in found]
    assert found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DAILY_EXPRESSIONS, st.sampled_from(CHANGES), st.integers(-3000, 1000))
def test_cron_agrees_with_another_library_across_clock_changes(
    expression: str, change: tuple[str, str], minutes: int
) -> None:
    minute, hour, *_ = expression.split()
    # The other library follows Debian's cron, which also looks at the minute field.
    if minute.startswith("*") and not hour.startswith("*"):
        return
    # It looks for the next hour in steps of sixty minutes, past local times that a half-hour's change brings.
    if hour.startswith("*") and change[0] not in ("Europe/Paris", "America/New_York", "Europe/Dublin"):
        return
    zone, instant = ZoneInfo(change[0]), at(change[1])
    after = instant + minutes * MINUTE
    # It starts from a local time alone, so one that occurs twice is ambiguous.
    local = after.astimezone(zone)
    if local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset():
        return
    theirs = (time.astimezone(UTC) for time in CronSim(expression, local))
    until = after + timedelta(days=2)
    # It fires twice where two skipped times fall on the gap's end.
    expected = sorted(set(itertools.takewhile(lambda time: time <= until, theirs)))

    assert walk(trigger_of(after, cron=expression, timezone=change[0]), after, until) == expected


# Clock changes


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]} {change[1][:10]}")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(expression=DAILY_EXPRESSIONS)
def test_fires_around_a_clock_change_are_those_of_a_clock_watched_minute_by_minute(
    expression: str, change: tuple[str, str]
) -> None:
    zone, instant = ZoneInfo(change[0]), at(change[1])
    after, until = instant - timedelta(days=1, hours=1), instant + timedelta(days=1, hours=1)

    trigger = trigger_of(after, cron=expression, timezone=change[0])
    expected = watch(expression, zone, after, until)

    assert walk(trigger, after, until) == expected
    for minutes in range(-150, 151, 10):
        moment = instant + minutes * MINUTE
        past = [time for time in expected if time <= moment]
        assert trigger.latest_at_or_before(moment) == (past[-1] if past else None)
        assert trigger.count_between(after, moment) == len(past)
        assert trigger.count_between(moment, until) == len(expected) - len(past)


def watch(expression: str, zone: ZoneInfo, after: datetime, until: datetime) -> list[datetime]:
    """Say the rule again, as a daemon that wakes up each minute would: no arithmetic, only a clock."""
    minutes, hours = parse_cron(expression).minutes, parse_cron(expression).hours
    follows_clock = expression.split()[1].startswith("*")
    fires = []
    furthest = after.astimezone(zone).replace(tzinfo=None)
    instant = after
    while (instant := instant + MINUTE) <= until:
        local = instant.astimezone(zone).replace(tzinfo=None, fold=0)
        if follows_clock:
            shown = [local]
        else:
            # All minutes that the clock has reached or passed for the first time.
            shown = [furthest + number * MINUTE for number in range(1, (local - furthest) // MINUTE + 1)]
        if any(time.minute in minutes and time.hour in hours for time in shown):
            fires.append(instant)
        furthest = max(furthest, local)
    return fires


@pytest.mark.parametrize("expression", ["45 23 * * *", "15,45 0,23 * * *", "0 0 * * *", "*/20 * * * *"])
def test_a_repeated_hour_may_lie_across_the_turn_of_the_year(expression: str) -> None:
    turned_back = at("2025-12-31T23:30:00Z")
    # RFC 9636: the header's counts, an hour ahead of UTC from 1970 on and not ahead any more from the change on.
    header = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 2, 2, 4)
    changes = struct.pack(">2l2B", 0, int(turned_back.timestamp()), 0, 1)
    offsets = struct.pack(">lBBlBB", 3600, 1, 0, 0, 0, 0)
    zone = ZoneInfo.from_file(io.BytesIO(header + changes + offsets + b"ABC\0"))
    times = _CronTimes(parse_cron(expression), zone)
    after, until = at("2025-12-31T00:00:00Z"), at("2026-01-02T00:00:00Z")

    expected = watch(expression, zone, after, until)

    found = [times.next_after(after)]
    while (following := times.next_after(found[-1])) <= until:
        found.append(following)
    assert found == expected
    assert times.count_between(after, until) == len(expected)
    assert [times.latest_at_or_before(time) for time in expected] == expected


def test_the_table_in_the_documentation_is_what_happens() -> None:
    assert dst_table.DOCUMENT.read_text() == dst_table.rewrite(dst_table.DOCUMENT.read_text()), (
        "docs/schedules.md differs; rewrite its table: python -m tests.unit.dst_table --write"
    )


@pytest.mark.parametrize(
    "zone", sorted({zone for zone, _ in CHANGES} | {"Asia/Gaza", "Africa/El_Aaiun", "UTC"})
)
def test_every_change_of_offset_is_found(zone: str) -> None:
    info = ZoneInfo(zone)
    begin, end = naive(2005), naive(2028)
    stretches = list(itertools.takewhile(lambda item: item.begins < end, stretches_from(info, begin)))

    for stretch in stretches:
        moment = stretch.begins
        while moment < stretch.ends:
            assert moment.replace(tzinfo=UTC).astimezone(info).utcoffset() == stretch.offset
            moment += timedelta(hours=5)
        last = (stretch.ends - timedelta(seconds=1)).replace(tzinfo=UTC)
        assert last.astimezone(info).utcoffset() == stretch.offset
    assert [stretch.ends for stretch in stretches[:-1]] == [stretch.begins for stretch in stretches[1:]]


def test_every_iana_zone_can_be_named() -> None:
    for zone in available_timezones() - {"localtime", "Factory"}:
        assert parse(cron="@daily", timezone=zone).timezone == zone


def test_time_zones_are_there_without_a_database_on_the_machine() -> None:
    program = "from harness.zones import load_zone; print(load_zone('Europe/Paris'))"

    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONTZPATH": ""},
    )

    assert answer.stdout == "Europe/Paris\n"


# Walking


WALKS = st.one_of(
    st.tuples(DAILY_EXPRESSIONS, st.sampled_from(ZONES)).map(
        lambda pair: {"cron": pair[0], "timezone": pair[1]}
    ),
    st.tuples(EXPRESSIONS, st.sampled_from(ZONES)).map(lambda pair: {"cron": pair[0], "timezone": pair[1]}),
    st.integers(1, 200_000).map(lambda seconds: {"interval_seconds": seconds}),
    st.integers(1, 5_000).map(lambda minutes: {"interval_minutes": minutes}),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WALKS, INSTANTS, st.lists(st.integers(0, 10**12), max_size=5), st.integers(0, 3600))
def test_a_walk_finds_the_same_fires_from_wherever_it_starts_and_however_often_it_restarts(
    schedule: dict[str, Any], anchor: datetime, offsets: list[int], jitter: int
) -> None:
    trigger = trigger_of(anchor, jitter_seconds=jitter, **schedule)
    fires = preview(trigger, anchor, 12)
    assert fires
    assert all(earlier < later for earlier, later in itertools.pairwise([anchor, *fires]))
    assert all(time.utcoffset() == timedelta() and time.microsecond == 0 for time in fires)

    span = fires[-1] - anchor
    for offset in offsets:
        start = anchor + timedelta(microseconds=offset % (span // TICK))
        restarted = trigger_of(anchor, jitter_seconds=jitter, **schedule)
        rest = [time for time in fires if time > start]
        assert preview(restarted, start, len(rest)) == rest
        past = [time for time in fires if time <= start]
        assert restarted.latest_at_or_before(start) == (past[-1] if past else None)
        assert restarted.count_between(start, fires[-1]) == len(rest)
        assert [fire.fire_time for fire in fires_between(restarted, start, fires[-1], 4)] == rest[-4:]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DAILY_EXPRESSIONS, st.sampled_from(CHANGES), st.integers(-2000, 2000), st.integers(0, 4000))
def test_the_latest_fire_and_the_count_are_those_of_a_walk_also_across_clock_changes(
    expression: str, change: tuple[str, str], minutes: int, length: int
) -> None:
    after = at(change[1]) + minutes * MINUTE
    until = after + length * MINUTE
    trigger = trigger_of(after - timedelta(days=9), cron=expression, timezone=change[0])

    fires = walk(trigger, after, until)

    latest = trigger.latest_at_or_before(until)
    assert latest is not None
    assert (latest == fires[-1]) if fires else (latest <= after)
    assert trigger.count_between(after, until) == len(fires)


def test_a_year_of_minutely_fires_is_counted_and_its_end_found_without_a_walk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expression = parse_cron("* * * * *")
    searches = []
    for name in ("at_or_after", "at_or_before"):
        search = getattr(type(expression), name)

        def counted(self: Any, local: datetime, search: Any = search) -> datetime:
            searches.append(local)
            found: datetime = search(self, local)
            return found

        monkeypatch.setattr(type(expression), name, counted)
    trigger = trigger_of(cron="* * * * *", timezone="Europe/Paris")
    until = NOON + timedelta(days=365)

    assert trigger.count_between(NOON, until) == 365 * 24 * 60
    assert len(fires_between(trigger, NOON, until, 10)) == 10
    assert len(searches) < 50


# Intervals


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(INSTANTS, st.integers(1, 10**6), st.integers(0, 10**4))
def test_an_interval_does_not_drift_over_any_number_of_fires(
    anchor: datetime, step: int, number: int
) -> None:
    trigger = trigger_of(anchor, interval_seconds=step)
    base = anchor.replace(microsecond=0)

    assert trigger.next_after(base + timedelta(seconds=step * number)) == base + timedelta(
        seconds=step * (number + 1)
    )


def test_an_interval_is_elapsed_time_and_does_not_see_clock_changes() -> None:
    trigger = trigger_of(at("2026-03-28T12:00:00Z"), interval_minutes=24 * 60)

    assert preview(trigger, at("2026-03-28T12:00:00Z"), 1) == [at("2026-03-29T12:00:00Z")]


def test_an_interval_counts_from_start_at_also_when_that_lies_before_the_anchor() -> None:
    early = trigger_of(NOON, interval_minutes=60, start_at="2026-03-03T09:05:00Z")
    late = trigger_of(NOON, interval_minutes=60, start_at="2026-03-04T09:05:00+01:00")

    assert early.next_after(at("2026-03-01T00:00:00Z")) == at("2026-03-03T13:05:00Z")
    assert preview(late, NOON, 2) == [at("2026-03-04T08:05:00Z"), at("2026-03-04T09:05:00Z")]


# Bounds


def test_nothing_fires_at_or_before_the_anchor() -> None:
    trigger = trigger_of(at("2026-03-03T12:00:00Z"), cron="0 * * * *")

    assert trigger.next_after(at("2020-01-01T00:00:00Z")) == at("2026-03-03T13:00:00Z")
    assert trigger.latest_at_or_before(at("2026-03-03T12:59:00Z")) is None
    assert trigger.count_between(at("2020-01-01T00:00:00Z"), at("2026-03-03T13:00:00Z")) == 1


def test_start_at_and_end_at_are_included() -> None:
    trigger = trigger_of(
        cron="0 * * * *", start_at="2026-03-04T08:00:00.5Z", end_at="2026-03-04T10:00:00Z", jitter_seconds=60
    )
    hours = [at(f"2026-03-04T{hour:02}:00:00Z") for hour in (8, 9, 10)]

    assert preview(trigger, NOON, 5) == hours
    assert trigger.next_after(hours[-1]) is None
    assert trigger.latest_at_or_before(MAX_INSTANT) == hours[-1]
    assert trigger.latest_at_or_before(hours[0] - TICK) is None
    assert trigger.count_between(NOON, MAX_INSTANT) == 3


def test_the_far_end_of_the_calendar_ends_a_walk() -> None:
    for trigger in (trigger_of(cron="0 0 29 2 *"), trigger_of(interval_minutes=10 * 365 * 24 * 60)):
        assert trigger.next_after(datetime.max.replace(tzinfo=UTC)) is None
        last = trigger.latest_at_or_before(datetime.max.replace(tzinfo=UTC))
        assert last is not None
        assert last <= MAX_INSTANT


def test_instants_come_in_any_zone_and_never_without_one() -> None:
    trigger = trigger_of(cron="0 * * * *")

    assert trigger.next_after(NOON.astimezone(ZoneInfo("Asia/Kolkata"))) == at("2026-03-03T13:00:00Z")
    for call in (trigger.next_after, trigger.latest_at_or_before):
        with pytest.raises(ValueError, match="needs a time zone"):
            call(naive(2026))
    with pytest.raises(ValueError, match="needs a time zone"):
        trigger_of(naive(2026), cron="0 * * * *")


# Jitter


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WALKS, INSTANTS, st.integers(1, 10**6), st.floats(0, 86400))
def test_jitter_keeps_every_fire_its_order_and_its_share_of_the_gap(
    schedule: dict[str, Any], anchor: datetime, agent_id: int, jitter: float
) -> None:
    trigger = trigger_of(anchor, agent_id=agent_id, jitter_seconds=jitter, **schedule)
    plain = trigger_of(anchor, agent_id=agent_id, **schedule)
    times = preview(trigger, anchor, 6)
    fires = [trigger.fire(time) for time in times]

    assert times == preview(plain, anchor, 6)
    assert next_fire(trigger, anchor) == fires[0]
    for fire, later in itertools.pairwise(fires):
        assert fire.fire_time <= fire.due_at < later.fire_time
        assert fire.due_at < later.due_at
    for fire in fires:
        assert fire.due_at - fire.fire_time <= timedelta(seconds=jitter)
        assert fire.due_at.microsecond % 1000 == 0


def test_jitter_is_the_same_in_every_process_and_spreads_agents() -> None:
    fires = [trigger_of(agent_id=agent_id, cron="0 0 * * *", jitter_seconds=600) for agent_id in range(1000)]
    due = [fire.due_at for trigger in fires if (fire := next_fire(trigger, NOON))]
    delays = [(instant - at("2026-03-04T00:00:00Z")).total_seconds() for instant in due]

    # Written down, not computed: another release must not move it either.
    assert delays[7] == JITTER_OF_AGENT_7
    assert len(set(delays)) > 990
    assert max(delays) < 600
    assert 270 < sum(delays) / len(delays) < 330


JITTER_OF_AGENT_7 = 408.395


def test_a_new_end_does_not_move_an_announced_fire() -> None:
    long = trigger_of(cron="0 * * * *", jitter_seconds=7200)
    short = trigger_of(cron="0 * * * *", jitter_seconds=7200, end_at="2026-03-03T13:00:00Z")

    assert next_fire(long, NOON) == next_fire(short, NOON)


def test_without_jitter_a_fire_is_due_at_its_fire_time() -> None:
    fire = next_fire(trigger_of(cron="0 * * * *"), NOON)

    assert fire == Fire(at("2026-03-03T13:00:00Z"), at("2026-03-03T13:00:00Z"))


# Refusals


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("0 0 30 2 *", "cron never fires: there is no day 30 in feb; take an earlier day"),
        ("0 0 31 4,jun *", "there is no day 31 in apr, jun"),
        ("0 0 29 2 */6", "silent for more than 10 years"),
        ("* * * * * *", "cron has 6 fields; five are taken: minute hour day month weekday; for seconds use interval_seconds"),
        ("0 0 * * * * 2026", "cron has 7 fields; five are taken"),
        ("0 0", "cron has 2 fields; five are taken"),
        ("", "cron has 0 fields"),
        ("* * *\n* *", "cron has 4 fields"),
        ("@reboot", "'@reboot' is no known name; known are @hourly, @daily"),
        ("@every 5m", "for a fixed pace use type interval"),
        ("R * * * *", "'r' in the minute field of cron: random values"),
        ("0 R(0-5) * * *", r"'r\(0-5\)' in the hour field of cron: random values"),
        ("H * * * *", "'h' in the minute field of cron: hashed values"),
        ("H/15 * * * *", "'h/15' in the minute field of cron: hashed values"),
        ("0 0 ? * mon", r"'\?' in the day field of cron: '\?' is written '\*' here"),
        ("0 0 L * *", "'l' in the day field of cron: 'L' and 'W' are not taken"),
        ("0 0 LW * *", "'lw' in the day field of cron: 'L' and 'W' are not taken"),
        ("0 0 15W * *", "'15w' in the day field of cron"),
        ("0 0 * * 5L", "'5l' in the weekday field of cron"),
        ("0 0 * * fri#2", "'fri#2' in the weekday field of cron: the nth weekday"),
        ("60 * * * *", "'60' in the minute field of cron: 60 is not within 0-59"),
        ("0 24 * * *", "24 is not within 0-23"),
        ("0 0 0 * *", "0 is not within 1-31"),
        ("0 0 * 13 *", "13 is not within 1-12"),
        ("0 0 * * 8", "8 is not within 0-7"),
        ("*/0 * * * *", "a step is at least 1"),
        ("*/90 * * * *", r"a step of 90 never reaches a second value of 0-59; .* use type interval"),
        ("0/5 * * * *", "'0/5' in the minute field of cron: a step needs a range: write 0-59/5"),
        ("0 22-2 * * *", "'22-2' in the hour field of cron: the range runs backwards; split it: 22-23,0-2"),
        ("0 0 * * fri-mon", "split it: 5-6,0-1"),
        ("*-5 * * * *", r"'\*' starts no range"),
        ("-1 * * * *", "'-1' in the minute field of cron: numbers 0-59 are taken"),
        ("1,,2 * * * *", "'' in the minute field"),
        ("0 0 * * monday", "'monday' in the weekday field of cron: numbers 0-7 and names sun-sat are taken"),
        ("0 0 * mon *", "'mon' in the month field"),
        ("٣ * * * *", "'٣' in the minute field"),
        ("0,1," * 200 + "2 * * * *", "at most 500 are taken"),
    ],
)  # fmt: skip
def test_a_refused_expression_is_told_which_part_and_what_instead(expression: str, complaint: str) -> None:
    with pytest.raises(
        InvalidInputError, match=rf"config is not valid: schedule\.cron: .*{complaint}"
    ) as caught:
        AgentConfig.parse({"schedule": {"type": "cron", "cron": expression}})

    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [
        ({"interval_seconds": 0}, r"schedule\.interval_seconds: .*greater than or equal to 1"),
        ({"interval_seconds": 0.5}, r"schedule\.interval_seconds: .*\(got 0\.5\)"),
        ({"interval_minutes": 1, "interval_seconds": 60}, "exclude each other"),
        ({"interval_minutes": 1, "cron": "@daily", "type": "interval"}, "takes no cron"),
        ({"interval_minutes": 1, "cron": "@daily", "type": "cron"}, "takes no interval"),
        ({"interval_minutes": 1, "timezone": "Europe/Paris"}, "an interval is elapsed time and has no timezone"),
        ({"cron": "@daily", "timezone": "Europe/Pariss"}, r"schedule\.timezone: .*did you mean Europe/Paris"),
        ({"cron": "@daily", "timezone": "europe/paris"}, "did you mean Europe/Paris"),
        ({"cron": "@daily", "timezone": "Europe"}, "'Europe' is no time zone; IANA names"),
        ({"cron": "@daily", "timezone": "../../etc/passwd"}, "is no time zone"),
        ({"cron": "@daily", "timezone": "x" * 5000}, "is no time zone"),
        ({"cron": "@daily", "timezone": "right/UTC"}, "is no time zone"),
        ({"cron": "@daily", "timezone": ""}, "'' is no time zone"),
        ({"cron": "@daily", "timezone": "a\0b"}, "is no time zone"),
        ({"cron": "@daily", "start_at": "2026-01-01T00:00:00"}, r"schedule\.start_at: an instant needs an offset"),
        ({"cron": "@daily", "start_at": "tomorrow"}, "is no instant; write it like"),
        ({"cron": "@daily", "start_at": 1767225600}, r"schedule\.start_at: "),
        ({"cron": "@daily", "end_at": "9999-12-31T23:59:59-12:00"}, "between the years 1970 and 3000"),
        ({"cron": "@daily", "start_at": "2026-01-02T00:00:00Z", "end_at": "2026-01-01T00:00:00Z"}, "end_at is before"),
        ({"cron": "@daily", "jitter_seconds": -1}, r"schedule\.jitter_seconds"),
        ({"cron": "@daily", "overlap": "queue"}, r"schedule\.overlap"),
        ({"cron": "@daily", "max_overlap": 1}, r"schedule\.max_overlap"),
        ({"cron": "@daily", "catch_up": True}, r"schedule\.catch_up"),
        ({"cron": "@daily", "catch_up_limit": 0}, r"schedule\.catch_up_limit"),
        ({"cron": "@daily", "misfire_grace_seconds": -1}, r"schedule\.misfire_grace_seconds"),
        ({"cron": 5}, r"schedule\.cron"),
    ],
)  # fmt: skip
def test_a_refused_schedule_is_told_why(schedule: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        parse(**schedule)


def test_policies_have_the_documented_defaults() -> None:
    schedule = parse(cron="@daily")

    assert (schedule.overlap, schedule.catch_up, schedule.catch_up_limit) == ("skip", "latest", 10)
    assert (schedule.timezone, schedule.jitter_seconds, schedule.misfire_grace_seconds) == ("UTC", 0, 60)


def test_a_schedule_survives_json() -> None:
    schedule = parse(
        cron="@daily", timezone="Europe/Paris", start_at="2026-01-01T00:00:00.25+02:00", catch_up="all"
    )

    assert parse(**json.loads(schedule.model_dump_json())) == schedule


def test_a_config_is_read_without_loading_croniter() -> None:
    program = """if True:
        import sys
        from harness.config import AgentConfig
        AgentConfig.parse({"schedule": {"type": "cron", "cron": "0 * * * *"}})
        print("croniter" in sys.modules)
    """

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout == "False\n"
