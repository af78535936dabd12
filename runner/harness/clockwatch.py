"""Says that the clock by which schedules fire was set: otherwise nobody could tell why they are silent, or late."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from harness.models import render_instant
from harness.ports import Clock

logger = logging.getLogger(__name__)

#: What the store's clock may gain or lose between two looks, against the monotonic one. Clocks that are slewed stay far
#: below it, and a look at a store that is slow to answer does, too.
MAX_STEP_SECONDS = 5.0


class ClockWatch:
    """Compares the store's clock with the monotonic one."""

    def __init__(self, clock: Clock) -> None:
        """Know the monotonic clock."""
        self._clock = clock
        self._before: tuple[datetime, float] | None = None

    def look(self, now: datetime) -> None:
        """Take the store's time, as just read; say when it was set since the last look."""
        reading = self._clock.monotonic()
        before, self._before = self._before, (now, reading)
        if before is None:
            return
        expected = before[0] + timedelta(seconds=reading - before[1])
        seconds = (now - expected).total_seconds()
        if abs(seconds) <= MAX_STEP_SECONDS:
            return
        extra = {"action": "clock_stepped", "seconds": round(seconds, 3)}
        if seconds < 0:
            text = "the store's clock was set back by %.1f s: nothing fires until it shows %s again"
            logger.warning(text, -seconds, render_instant(expected.replace(microsecond=0)), extra=extra)
        else:
            text = "the store's clock went forward by %.1f s, set or after a sleep: fires in between are late or missed"
            logger.warning(text, seconds, extra=extra)
