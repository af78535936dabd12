"""Time zones: found by name, and cut into stretches in which the offset from UTC stays the same."""

from __future__ import annotations

import difflib
import functools
import itertools
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from harness.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)

#: Names that a tz database on disk has beside the IANA zones: other things on other machines, or with leap seconds.
_NOT_PORTABLE = ("localtime", "posixrules", "posix/", "right/", "Factory")


@functools.lru_cache(maxsize=1024)
def load_zone(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name.

    Raises:
        InvalidInputError: There is none; the message proposes similar names.
    """
    if not name.startswith(_NOT_PORTABLE):
        try:
            return ZoneInfo(name)
        # By name: unknown, no normal path, a folder such as "Europe", longer than a file name can be.
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise InvalidInputError(f"{name[:80]!r} is no time zone; {_propose(name[:80])}")


@functools.cache
def _known_zones() -> dict[str, str]:
    return {zone.lower(): zone for zone in available_timezones() if not zone.startswith(_NOT_PORTABLE)}


def _propose(name: str) -> str:
    known = _known_zones()
    similar = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.75)
    if similar:
        return f"did you mean {' or '.join(known[key] for key in similar)}?"
    return "IANA names are taken, such as UTC or Europe/Paris"


class Stretch(NamedTuple):
    """A stretch of time in which a zone's offset from UTC stays the same. Instants are naive UTC."""

    begins: datetime
    ends: datetime
    offset: timedelta
    #: The furthest local time that clocks had shown, or were about to show, by `begins`: behind the local time of
    #: `begins` after a gap, ahead of it when the clocks were turned back.
    shown_before: datetime


def stretches_from(zone: ZoneInfo, moment: datetime) -> Iterator[Stretch]:
    """Yield the stretch that holds `moment` and all later ones."""
    for year in range(moment.year, MAXYEAR):
        yield from (stretch for stretch in _stretches(zone, year) if stretch.ends > moment)


def stretches_back_from(zone: ZoneInfo, moment: datetime) -> Iterator[Stretch]:
    """Yield the stretch that holds `moment` and all earlier ones, newest first."""
    for year in range(moment.year, 1, -1):
        yield from (stretch for stretch in reversed(_stretches(zone, year)) if stretch.begins <= moment)


@functools.lru_cache(maxsize=4096)
def _stretches(zone: ZoneInfo, year: int) -> tuple[Stretch, ...]:
    """Return the stretches of one year; the turn of the year, in UTC, ends a stretch though the offset stays.

    The standard library tells a zone's offset at an instant, but not when it changes; so this looks once a day. In the
    tz database no zone has had two changes within six days since 1970.
    """
    new_year, end = datetime(year, 1, 1), datetime(year + 1, 1, 1)  # noqa: DTZ001 - naive UTC
    # From a day before, since what the clock showed then counts when it was turned back.
    probes = [new_year + number * _DAY for number in range(-1, (end - new_year).days)]
    changes = {
        _find_change(zone, low, high)
        for low, high in itertools.pairwise([*probes, end - _SECOND])
        if _offset_at(zone, low) != _offset_at(zone, high)
    }
    begins = sorted({probes[0], new_year} | changes)
    shown_before = begins[0] + _offset_at(zone, begins[0])
    stretches = []
    for start, stop in itertools.pairwise([*begins, end]):
        offset = _offset_at(zone, start)
        stretches.append(Stretch(start, stop, offset, shown_before))
        shown_before = max(shown_before, stop + offset)
    return tuple(stretch for stretch in stretches if stretch.begins >= new_year)


def _find_change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    offset = _offset_at(zone, low)
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if _offset_at(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high


def _offset_at(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.replace(tzinfo=UTC).astimezone(zone).utcoffset() or timedelta()
