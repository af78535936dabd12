"""`Warming`: which containers a worker should have waiting, from its schedules and from what it ran lately.

A schedule that fires within `AHEAD_SECONDS` wants one of its agent's shape. Recent use wants as many as began in one
look at most, halved every `HALF_LIFE_SECONDS`: a burst is expected to come again, and forgotten when it does not. What
is kept in the end, and when it is made, is the sandbox's affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from harness.models import Agent
from harness.ports import Sandbox, SandboxShape, Store

#: Between two looks.
LOOK_SECONDS = 2.0
#: How far schedules are looked ahead.
AHEAD_SECONDS = 30.0
HALF_LIFE_SECONDS = 300.0

#: The shape that an agent's runs have; None: it can't be kept warm.
ShapeOf = Callable[[Agent], SandboxShape | None]


class Warming:
    """What one worker wants to be warm."""

    def __init__(self, store: Store, sandbox: Sandbox, shape_of: ShapeOf, *, max_containers: int) -> None:
        """Ask `sandbox` for at most `max_containers`."""
        self._store = store
        self._sandbox = sandbox
        self._shape_of = shape_of
        self._owner: str | None = None
        self._max_containers = max_containers
        self._began: Counter[SandboxShape] = Counter()
        self._recent: dict[SandboxShape, float] = {}

    def began(self, agent: Agent) -> None:
        """Note that a run of an agent begins."""
        shape = self._shape_of(agent)
        if shape is not None:
            self._began[shape] += 1

    async def look(self, owner: str) -> None:
        """Tell the sandbox what is wanted now; call it every `LOOK_SECONDS`.

        Args:
            owner: Who is to use them. For another one that was named before, nothing more is wanted.

        Raises:
            StoreUnavailableError: The store does not answer.
        """
        now = await self._store.now()
        wanted = merge(await self._upcoming(now), self._remembered(), limit=self._max_containers)
        if self._owner is not None and self._owner != owner:
            await self._sandbox.keep_warm(self._store.store_id, self._owner, {}, now=now)
        self._owner = owner
        await self._sandbox.keep_warm(self._store.store_id, owner, wanted, now=now)

    async def _upcoming(self, now: datetime) -> Counter[SandboxShape]:
        """Return the shapes of the next fires, the earliest first."""
        page = await self._store.next_schedules(limit=self._max_containers)
        horizon = now + timedelta(seconds=AHEAD_SECONDS)
        due = [state.agent_id for state in page.items if state.due_at is not None and state.due_at <= horizon]
        loaded = await self._store.load_agents(set(due)) if due else {}
        return Counter(
            shape
            for agent_id in due
            if agent_id in loaded and (shape := self._shape_of(loaded[agent_id].agent)) is not None
        )

    def _remembered(self) -> dict[SandboxShape, int]:
        """Return the shapes of recent runs, the most used first."""
        began, self._began = self._began, Counter()
        fading = 0.5 ** (LOOK_SECONDS / HALF_LIFE_SECONDS)
        self._recent = {
            shape: level
            for shape in {*began, *self._recent}
            if (level := max(float(began[shape]), self._recent.get(shape, 0.0) * fading)) >= 0.5
        }
        levels = sorted(self._recent.items(), key=lambda item: -item[1])
        return {shape: round(level) for shape, level in levels}


def merge(
    first: Mapping[SandboxShape, int], second: Mapping[SandboxShape, int], *, limit: int
) -> dict[SandboxShape, int]:
    """Return the larger number of each shape, those of `first` before the others, together at most `limit`."""
    merged: dict[SandboxShape, int] = {}
    for shape, count in _in_order(first, second):
        room = limit - sum(merged.values()) + merged.get(shape, 0)
        merged[shape] = max(merged.get(shape, 0), min(count, room))
    return {shape: count for shape, count in merged.items() if count}


def _in_order(*counts: Mapping[SandboxShape, int]) -> Iterable[tuple[SandboxShape, int]]:
    for one in counts:
        yield from one.items()
