"""`PlansAhead`: schedules that fall due within seconds are read and planned before, so that then only the write is left.

A plan made ahead decides nothing. Once its schedule is due by the store's clock, the store is asked as what the schedule
and its agent stand; a plan that was made of anything else is thrown away, as is one that comes too late for its fire to
be on time, and what is due is read and planned then. So all fires are the same as without this, only sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from harness.errors import StoreError
from harness.firing import MIN_GRACE_SECONDS, holds_at
from harness.models import FirePlan, ScheduleMark, ScheduleSource
from harness.ports import Store

#: How far ahead is read.
AHEAD = timedelta(seconds=2)
#: Pause between two readings, so that each schedule is read once, and early enough.
BETWEEN = timedelta(seconds=0.5)
#: Most plans kept, of a few kilobytes each. What falls due beside these is planned when it does.
MAX_PLANS = 1000

#: Plans what a schedule owes when it falls due; None: that can't be said before.
Planner = Callable[[ScheduleSource], FirePlan | None]


class PlansAhead:
    """Plans of one scheduler."""

    def __init__(self, store: Store, plan: Planner) -> None:
        """Be empty; does no I/O."""
        self._store = store
        self._plan = plan
        self._plans: dict[ScheduleMark, FirePlan] = {}
        #: What falls due up to here was read.
        self._read_until = datetime.min.replace(tzinfo=UTC)

    async def look(self) -> None:
        """Plan what falls due soon, unless that was done just before."""
        now = await self._store.now()
        until = now + AHEAD
        # Later than that only when the clock was set back: then what lies between is read once more.
        after = now if self._read_until > until else max(now, self._read_until)
        if until - after < BETWEEN:
            return
        self._forget(now, until)
        room = MAX_PLANS - len(self._plans)
        if room <= 0:
            return
        self._read_until = until
        try:
            sources = await self._store.upcoming_schedules(after=after, until=until, limit=room)
        except StoreError:
            # It is read once more when it is due, and what is wrong is said then. Until then others may fire.
            return
        for source in sources:
            plan = self._plan(source)
            if plan is not None:
                self._plans[source.mark] = plan

    def take(self, due: Sequence[ScheduleMark], now: datetime) -> list[FirePlan]:
        """Return the plans that hold, and forget them.

        Args:
            due: Schedules that are due, as they stand now.
            now: By the store's clock, not before they were read.
        """
        plans = [plan for mark in due if (plan := self._plans.pop(mark, None))]
        return [plan for plan in plans if holds_at(plan, now)]

    def _forget(self, now: datetime, until: datetime) -> None:
        """Forget plans whose schedule changed meanwhile, or whose time is far away after the clock was set."""
        earliest = now - timedelta(seconds=MIN_GRACE_SECONDS)
        self._plans = {
            mark: plan
            for mark, plan in self._plans.items()
            if plan.before.due_at is not None and earliest <= plan.before.due_at <= until
        }
