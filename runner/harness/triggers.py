"""When a schedule fires: from a `ScheduleConfig` to instants. Pure and clock-free.

A fire has two instants. Its *fire time* comes from the schedule alone and is its identity (what `fire_key` is made
from); its *due time* is the fire time plus the agent's jitter. Everything here takes and gives fire times, except
`Fire.due_at`.

The rule for local times that a zone skips or repeats (daylight saving and any other change of offset) stands in
`_CronTimes._local_span` and nowhere else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from harness.config import MAX_INSTANT
from harness.cron import parse_cron
from harness.zones import load_zone, stretches_back_from, stretches_from

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from harness.config import ScheduleConfig
    from harness.cron import CronExpression
    from harness.zones import Stretch

_TICK = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, order=True)
class Fire:
    """One fire of a schedule."""

    #: The instant the schedule names: whole seconds, unique per agent.
    fire_time: datetime
    #: When its task may start: `fire_time` plus jitter, in whole milliseconds.
    due_at: datetime


class Trigger(Protocol):
    """The fires of one agent's schedule. Instants are aware, in any zone on the way in, UTC on the way out.

    The same schedule, agent and anchor give the same fires in every process, wherever a walk through them starts:
    walking by `next_after` finds each fire exactly once, in rising order.
    """

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the first fire time strictly after an instant; None when there is none any more."""

    def latest_at_or_before(self, instant: datetime) -> datetime | None:
        """Return the last fire time not after an instant; None when there is none yet. Costs what `next_after` costs."""

    def count_between(self, after: datetime, until: datetime) -> int:
        """Return how many fire times are after `after` and not after `until`, without visiting each of them."""

    def fire(self, fire_time: datetime) -> Fire:
        """Add the due time to a fire time that this trigger returned."""


def make_trigger(schedule: ScheduleConfig, *, agent_id: int, anchor: datetime) -> Trigger:
    """Return the trigger of an agent's schedule.

    Args:
        schedule: A checked schedule.
        agent_id: Decides the jitter.
        anchor: When the schedule came into force; the caller stores it, so that it is the same after a restart. It is
            cut to the second. Nothing fires at or before it, and intervals without a `start_at` are counted from it.
    """
    anchor = _to_utc(anchor).replace(microsecond=0)
    end_at = schedule.end_at or MAX_INSTANT
    return _BoundedTrigger(
        times=_make_times(schedule, anchor),
        # Strict on this side, as the anchor itself is no fire, but start_at may be one.
        after=max(anchor, schedule.start_at - _TICK) if schedule.start_at else anchor,
        until=end_at if schedule.enabled else anchor,
        agent_id=agent_id,
        max_jitter=timedelta(seconds=schedule.jitter_seconds),
    )


def next_fire(trigger: Trigger, after: datetime) -> Fire | None:
    """Return the first fire whose fire time is after an instant."""
    fire_time = trigger.next_after(after)
    return None if fire_time is None else trigger.fire(fire_time)


def preview(trigger: Trigger, after: datetime, n: int) -> list[datetime]:
    """Return the next `n` fire times after an instant; fewer when the schedule ends."""
    times: list[datetime] = []
    while len(times) < n:
        following = trigger.next_after(times[-1] if times else after)
        if following is None:
            break
        times.append(following)
    return times


def fires_between(trigger: Trigger, after: datetime, until: datetime, limit: int) -> list[Fire]:
    """Return the *newest* `limit` fires with ``after < fire_time <= until``, oldest first.

    For catching up: the cost depends on `limit`, not on how long the gap was. `Trigger.count_between` tells how many
    there were in all.
    """
    fires: list[Fire] = []
    instant = until
    while len(fires) < limit:
        fire_time = trigger.latest_at_or_before(instant)
        if fire_time is None or fire_time <= after:
            break
        fires.append(trigger.fire(fire_time))
        instant = fire_time - _TICK
    fires.reverse()
    return fires


class _Times(Protocol):
    """A rule without beginning or end. Aware UTC in and out."""

    def next_after(self, instant: datetime) -> datetime: ...

    def latest_at_or_before(self, instant: datetime) -> datetime: ...

    def count_between(self, after: datetime, until: datetime) -> int: ...


@dataclass(frozen=True, slots=True)
class _BoundedTrigger:
    """A rule, from and to which it fires, and the jitter. Fires lie in ``after < fire_time <= until``."""

    times: _Times
    after: datetime
    until: datetime
    agent_id: int
    max_jitter: timedelta

    def next_after(self, instant: datetime) -> datetime | None:
        instant = max(_to_utc(instant), self.after)
        if instant >= self.until:
            return None
        found = self.times.next_after(instant)
        return found if found <= self.until else None

    def latest_at_or_before(self, instant: datetime) -> datetime | None:
        instant = min(_to_utc(instant), self.until)
        if instant <= self.after:
            return None
        found = self.times.latest_at_or_before(instant)
        return found if found > self.after else None

    def count_between(self, after: datetime, until: datetime) -> int:
        after, until = max(_to_utc(after), self.after), min(_to_utc(until), self.until)
        return self.times.count_between(after, until) if after < until else 0

    def fire(self, fire_time: datetime) -> Fire:
        return Fire(fire_time, fire_time + self._jitter(fire_time))

    def _jitter(self, fire_time: datetime) -> timedelta:
        if not self.max_jitter:
            return self.max_jitter
        # Below the gap to the next fire, so that due times rise strictly, as fire times do. The rule's own gap, not
        # the bounded one: a new end_at must not move a fire that was announced.
        room = min(self.max_jitter, self.times.next_after(fire_time) - fire_time)
        key = f"{self.agent_id}:{fire_time.isoformat()}".encode()
        share = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        return (room // _MILLISECOND * share >> 64) * _MILLISECOND


@dataclass(frozen=True, slots=True)
class _IntervalTimes:
    """Whole multiples of a step from an origin, in elapsed time; no zone and no restart moves them."""

    origin: datetime
    step: timedelta

    def next_after(self, instant: datetime) -> datetime:
        return self.origin + ((instant - self.origin) // self.step + 1) * self.step

    def latest_at_or_before(self, instant: datetime) -> datetime:
        return self.origin + (instant - self.origin) // self.step * self.step

    def count_between(self, after: datetime, until: datetime) -> int:
        return (until - self.origin) // self.step - (after - self.origin) // self.step


@dataclass(frozen=True, slots=True)
class _CronTimes:
    """A cron expression in a time zone."""

    expression: CronExpression
    zone: ZoneInfo

    def _local_span(self, stretch: Stretch) -> tuple[datetime, datetime]:
        """Return the local times that fire within a stretch, from the first up to, not including, the second.

        This is the rule for clock changes. An expression whose hour field starts with ``*`` fires whenever the local
        clock shows a match: a skipped time never is shown, a repeated one is shown twice. For any other, a match fires
        at the first instant at which the clock shows that time *or a later one*: what was skipped fires as the gap
        ends (`_to_instant`), what is repeated has fired already. This is what Vixie cron does (cron(8), notes on
        daylight saving), except that it looks at the minute field too, and at changes of less than three hours only.
        """
        clock_now = stretch.begins + stretch.offset
        low = clock_now if self.expression.any_hour else stretch.shown_before
        return low, stretch.ends + stretch.offset

    @staticmethod
    def _to_instant(local: datetime, stretch: Stretch) -> datetime:
        return max(local - stretch.offset, stretch.begins).replace(tzinfo=UTC)

    def next_after(self, instant: datetime) -> datetime:
        moment = instant.replace(tzinfo=None)
        searched_from = local = datetime.min  # noqa: DTZ901 - naive, as all local times here
        for stretch in stretches_from(self.zone, moment):
            low, high = self._local_span(stretch)
            if stretch.begins <= moment:
                low = max(low, moment + stretch.offset + _TICK)
            # A match that was found for an earlier stretch is still the first one, unless this one starts before it.
            if not searched_from <= low <= local:
                searched_from, local = low, self.expression.at_or_after(low)
            if local < high:
                return self._to_instant(local, stretch)
        raise AssertionError("a checked expression matches within ten years")

    def latest_at_or_before(self, instant: datetime) -> datetime:
        moment = instant.replace(tzinfo=None)
        searched_from = local = datetime.max  # noqa: DTZ901 - the same
        for stretch in stretches_back_from(self.zone, moment):
            low, high = self._local_span(stretch)
            top = min(high - _TICK, moment + stretch.offset) if moment < stretch.ends else high - _TICK
            if not local <= top <= searched_from:
                searched_from, local = top, self.expression.at_or_before(top)
            if low <= local:
                return self._to_instant(local, stretch)
        raise AssertionError("a checked expression matches within ten years")

    def count_between(self, after: datetime, until: datetime) -> int:
        first, last = after.replace(tzinfo=None), until.replace(tzinfo=None)
        total = 0
        for stretch in stretches_from(self.zone, first):
            if stretch.begins > last:
                break
            low, high = self._local_span(stretch)
            clock_now = stretch.begins + stretch.offset
            # Matches in a gap fire as one, together with a match at its very end.
            fires_at_start = stretch.begins > first and low < clock_now and self._any(low, clock_now + _TICK)
            low = max(low, clock_now + _TICK if fires_at_start else clock_now, first + stretch.offset + _TICK)
            total += fires_at_start + self.expression.count(low, min(high, last + stretch.offset + _TICK))
        return total

    def _any(self, low: datetime, high: datetime) -> bool:
        return self.expression.at_or_after(low) < high


def _make_times(schedule: ScheduleConfig, anchor: datetime) -> _Times:
    if schedule.cron is not None:
        return _CronTimes(parse_cron(schedule.cron), load_zone(schedule.timezone))
    step = timedelta(minutes=schedule.interval_minutes or 0, seconds=schedule.interval_seconds or 0)
    return _IntervalTimes(schedule.start_at or anchor, step)


def _to_utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError("an instant needs a time zone; use datetime.now(UTC)")
    return instant.astimezone(UTC)
