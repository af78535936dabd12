"""Cron expressions: what is taken, what is refused with which remedy, and which local times match.

The language is that of Vixie cron's crontab(5): five fields of numbers, names, ranges, lists and steps, or one name
such as ``@daily``. Extensions of other schedulers are refused, not guessed at: several of them mean different things in
different places, and croniter, which does the search for the next match, takes more than the others do.

Nothing here knows time zones: times are naive local times, and `harness.triggers` turns them into instants.
"""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from harness.errors import InvalidInputError

if TYPE_CHECKING:
    from croniter import croniter

#: Longest expression taken, in characters; naming every value of every field takes fewer than 400.
MAX_CRON_CHARS = 500

#: An expression that can stay silent for longer is refused. The leap day's longest pause is eight years.
MAX_PAUSE_YEARS = 10

NAMED_SCHEDULES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_FIELDS_TAKEN = "five are taken: minute hour day month weekday"
_MINUTE = timedelta(minutes=1)
_DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_TERM = re.compile(r"(?P<low>\*|[0-9a-z]+)(?:-(?P<high>[0-9a-z]+))?(?:/(?P<step>[0-9]+))?")
_FOREIGN = (
    (re.compile(r"\?"), "'?' is written '*' here"),
    (re.compile(r"h(?:[(/].*)?"), "hashed values ('H') are not taken: write a number; jitter_seconds spreads agents"),
    (re.compile(r"r(?:[(/].*)?"), "random values ('R') are not taken: write a number; jitter_seconds spreads fires"),
    (re.compile(r".*#.*"), "the nth weekday ('#') is not taken: fire on each such weekday and let the agent look at the date"),
    (re.compile(r".*(?:l|w|l-[0-9]+)"), "'L' and 'W' are not taken: fire on each day in question and let the agent look at the date"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()

    @property
    def is_weekday(self) -> bool:
        return self.last == 7


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    # Sunday is 0 and 7.
    _Field("weekday", 0, 7, _WEEKDAYS),
)


@dataclass(frozen=True, eq=False)
class CronExpression:
    """A checked expression. Immutable for its users; may be shared between threads."""

    text: str
    #: The values of minute, hour, day, month and weekday (0 is Sunday), rising.
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    #: Whether day and weekday must both match, as they must when either field starts with ``*``; otherwise one of
    #: them is enough (crontab(5)).
    both_days: bool
    #: Whether the hour field starts with ``*``: cron's own test for a job that follows the clock across DST changes.
    any_hour: bool
    #: A croniter keeps its position between the steps of a search.
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def at_or_after(self, local: datetime) -> datetime:
        """Return the first match at or after a naive local time."""
        start = local.replace(second=0, microsecond=0)
        if start == local:
            start -= _MINUTE
        with self._lock:
            found: datetime = self._matcher.get_next(datetime, start_time=start)
        return found

    def at_or_before(self, local: datetime) -> datetime:
        """Return the last match at or before a naive local time."""
        start = local.replace(second=0, microsecond=0) + _MINUTE
        with self._lock:
            found: datetime = self._matcher.get_prev(datetime, start_time=start)
        return found

    def count(self, low: datetime, high: datetime) -> int:
        """Return the number of matches from `low` up to, not including, `high`, at the cost of one step per day."""
        if low >= high:
            return 0
        per_day = len(self.hours) * len(self.minutes)
        days = (date.fromordinal(number) for number in range(low.toordinal(), high.toordinal()))
        total = sum(per_day for day in days if self.matches_day(day))
        if self.matches_day(low):
            total -= self._count_before(low)
        if self.matches_day(high):
            total += self._count_before(high)
        return total

    def matches_day(self, day: date) -> bool:
        """Return whether there are matches on that day."""
        if day.month not in self.months:
            return False
        by_date = day.day in self.days
        by_weekday = day.isoweekday() % 7 in self.weekdays
        return (by_date and by_weekday) if self.both_days else (by_date or by_weekday)

    def _count_before(self, local: datetime) -> int:
        # Of matches earlier on the same day, given that the day has any.
        minute_is_over = local.second > 0 or local.microsecond > 0
        total = len(self.minutes) * sum(hour < local.hour for hour in self.hours)
        if local.hour in self.hours:
            total += sum(minute < local.minute + minute_is_over for minute in self.minutes)
        return total

    @functools.cached_property
    def _matcher(self) -> croniter:
        # Importing croniter takes longer than importing the rest of the library.
        from croniter import croniter

        values = (self.minutes, self.hours, self.days, self.months, self.weekdays)
        # Spelt out, since croniter has readings of its own: it takes 9-9 for every hour.
        spelt = (",".join(map(str, numbers)) for numbers in values)
        whole = (part in ("*", "*/1") for part in self.text.split())
        return croniter(
            " ".join("*" if is_whole else numbers for numbers, is_whole in zip(spelt, whole, strict=True)),
            datetime(2000, 1, 1),  # noqa: DTZ001 - a naive local time
            day_or=not self.both_days,
            max_years_between_matches=MAX_PAUSE_YEARS + 1,
        )


# Read at every look at an agent's config, and for thousands of agents at a start.
@functools.lru_cache(maxsize=16384)
def parse_cron(text: str) -> CronExpression:
    """Check an expression.

    Raises:
        InvalidInputError: It is no cron expression, uses an extension, or can stay silent for more than ten years. The
            message names the part at fault and what to write instead.
    """
    if len(text) > MAX_CRON_CHARS:
        raise InvalidInputError(f"cron has {len(text):,} characters; at most {MAX_CRON_CHARS} are taken")
    plain = _resolve_name(text.strip(" \t").lower())
    parts = [part for part in re.split(r"[ \t]+", plain) if part]
    if len(parts) != len(_FIELDS):
        count = f"cron has {len(parts)} field{'' if len(parts) == 1 else 's'}"
        hint = "; for seconds use interval_seconds" if len(parts) > len(_FIELDS) else ""
        raise InvalidInputError(f"{count}; {_FIELDS_TAKEN}{hint}")
    minutes, hours, days, months, weekdays = (
        _parse_field(part, kind) for part, kind in zip(parts, _FIELDS, strict=True)
    )
    expression = CronExpression(
        text=" ".join(parts),
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=weekdays,
        both_days=parts[2].startswith("*") or parts[4].startswith("*"),
        any_hour=parts[1].startswith("*"),
    )
    _check_pauses(expression)
    return expression


def _resolve_name(text: str) -> str:
    if not text.startswith("@"):
        return text
    if text in NAMED_SCHEDULES:
        return NAMED_SCHEDULES[text]
    hint = "; for a fixed pace use type interval" if text.startswith("@every") else ""
    raise InvalidInputError(f"{_quote(text)} is no known name; known are {', '.join(NAMED_SCHEDULES)}{hint}")


def _parse_field(part: str, kind: _Field) -> tuple[int, ...]:
    values: set[int] = set()
    for term in part.split(","):
        values.update(_parse_term(term, kind))
    return tuple(sorted({value % 7 for value in values} if kind.is_weekday else values))


def _parse_term(term: str, kind: _Field) -> range:
    match = _TERM.fullmatch(term)
    if match is None:
        _refuse(term, kind)
    low_text, high_text, step_text = match["low"], match["high"], match["step"]
    if low_text == "*":
        if high_text is not None:
            _refuse(term, kind, f"'*' starts no range: write '*' or {kind.first}-{high_text}")
        low, high = kind.first, 6 if kind.is_weekday else kind.last
    else:
        low = _parse_value(low_text, term, kind)
        high = low if high_text is None else _parse_value(high_text, term, kind)
        if kind.is_weekday:
            low, high = _order_sundays(low, high)
        if high_text is None and step_text is not None:
            _refuse(term, kind, f"a step needs a range: write {low}-{kind.last}/{step_text}")
    if low > high:
        parts = f"{low}-{6 if kind.is_weekday else kind.last},{kind.first}-{high}"
        _refuse(term, kind, f"the range runs backwards; split it: {parts}")
    return range(low, high + 1, _parse_step(step_text, term, kind))


def _order_sundays(low: int, high: int) -> tuple[int, int]:
    # sun-tue starts with a 0, fri-sun ends with a 7, whichever of the two was written.
    if low == 7 and high < 7:
        low = 0
    return low, 7 if high == 0 and low > 0 else high


def _parse_value(text: str, term: str, kind: _Field) -> int:
    if text in kind.names:
        return kind.names.index(text) + (0 if kind.is_weekday else 1)
    if not text.isdigit():
        _refuse(term, kind)
    value = int(text)
    if not kind.first <= value <= kind.last:
        _refuse(term, kind, f"{value} is not within {kind.first}-{kind.last}")
    return value


def _parse_step(text: str | None, term: str, kind: _Field) -> int:
    if text is None:
        return 1
    step = int(text)
    if step == 0:
        _refuse(term, kind, "a step is at least 1")
    # Cron would fire at the first value alone; whoever writes */90 means every 90 minutes.
    if step > kind.last - kind.first:
        hint = "for a pace that crosses the field's end use type interval"
        _refuse(
            term, kind, f"a step of {step} never reaches a second value of {kind.first}-{kind.last}; {hint}"
        )
    return step


def _refuse(term: str, kind: _Field, why: str | None = None) -> NoReturn:
    if why is None:
        why = next((hint for pattern, hint in _FOREIGN if pattern.fullmatch(term)), None)
    if why is None:
        names = f" and names {kind.names[0]}-{kind.names[-1]}" if kind.names else ""
        why = f"numbers {kind.first}-{kind.last}{names} are taken, as '*', a, a-b, a-b/step, */step or a list of these"
    raise InvalidInputError(f"{_quote(term)} in the {kind.name} field of cron: {why}")


def _quote(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}…"


def _check_pauses(expression: CronExpression) -> None:
    if not expression.both_days:
        # Either of the two is enough, and every month has every weekday.
        return
    dates = [(m, d) for m in expression.months for d in expression.days if d <= _DAYS_IN_MONTH[m - 1]]
    if not dates:
        months = ", ".join(_MONTHS[month - 1] for month in expression.months)
        raise InvalidInputError(
            f"cron never fires: there is no day {expression.days[0]} in {months}; take an earlier day"
        )
    if len(expression.weekdays) == 7 or len(expression.days) == 31:
        return
    last_hit = first_year = 2000
    # The calendar repeats after 400 years.
    for year in range(first_year, first_year + 400 + MAX_PAUSE_YEARS + 1):
        if any(_is_on(expression.weekdays, year, month, day) for month, day in dates):
            last_hit = year
        if year - last_hit > MAX_PAUSE_YEARS:
            raise InvalidInputError(
                f"cron would be silent for more than {MAX_PAUSE_YEARS} years (from {last_hit} on): day and weekday "
                "must both match where either starts with '*'; write the values out, or drop one of the two"
            )


def _is_on(weekdays: tuple[int, ...], year: int, month: int, day: int) -> bool:
    if (month, day) == (2, 29) and (year % 4 or (year % 100 == 0 and year % 400)):
        return False
    return date(year, month, day).isoweekday() % 7 in weekdays
