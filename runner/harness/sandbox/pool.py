"""`WarmPool`: containers that were made before a task needs them, each used at most once. Knows no engine.

What is wanted is decided elsewhere (`harness.warming`) and renewed every few seconds; here it is kept up: made while no
run waits for a container, within bounds of number and memory, and thrown away when old, ended, not wanted any more while
others are, or when the machine runs short of memory. A runner that dies takes its spares along, since they end when
their connection does; what is left of them goes with the next sweep of any process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import psutil

from harness.aio import uninterrupted
from harness.config import MIB
from harness.errors import SandboxError
from harness.ports import Clock, SandboxOrigin, SandboxShape, WarmLabels
from harness.sandbox.containers import Started
from harness.sandbox.dispatch import Dispatch

logger = logging.getLogger(__name__)

#: What one that waits takes, shim and all; measured by the benchmark's memory group.
SPARE_BYTES = 24 * MIB
#: Made at a time.
REFILL_AT_ONCE = 2
#: One older than this is replaced.
MAX_AGE_SECONDS = 600.0
#: How long the labels of a new one say that somebody needs it. Longer than it may get old, as its owner replaces it.
LEASE_SECONDS = 900.0
#: What was wanted, and was not asked for again for so long, is wanted no more.
ORDER_SECONDS = 60.0
#: Between two looks for those that are old or have ended.
LOOK_SECONDS = 5.0
#: An engine that needs this long for one is busy, and is left alone for `REST_FACTOR` times as long.
SLOW_SECONDS = 2.0
REST_FACTOR = 4
#: After a failure: at first, twice as long each time, at most.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 1.0, 60.0
#: With less of the machine's memory left than this share of it, nothing is kept warm.
MIN_AVAILABLE = 0.1


#: Whose: store id and owner.
_Owner = tuple[str, str]


@dataclass(frozen=True, eq=False, slots=True)
class Spare:
    """A container that waits for a job."""

    started: Started
    shape: SandboxShape
    labels: WarmLabels
    #: The name of its image, and what that stood for; None where a name stands for one image for ever.
    image: str
    image_id: str | None
    #: By `Clock.monotonic`.
    made_at: float

    @property
    def whose(self) -> _Owner:
        """Who may use it."""
        return self.labels.store_id, self.labels.owner


class SpareMaker(Protocol):
    """Makes them; `harness.sandbox.docker` does."""

    async def make_spare(self, shape: SandboxShape, labels: WarmLabels) -> Spare:
        """Start a container that takes one job.

        Raises:
            SandboxError: It can't be made; nothing is left of it.
        """

    async def discard_spare(self, spare: Spare) -> None:
        """Remove it."""


@dataclass(frozen=True, slots=True)
class _Order:
    wanted: Mapping[SandboxShape, int]
    #: The store's time and ours, when it was given.
    store_now: datetime
    given_at: float


def available_share() -> float:
    """Return how much of the machine's memory is left, from 0 to 1."""
    memory = psutil.virtual_memory()
    return float(memory.available / memory.total)


class WarmPool:
    """The spares of one engine. Works in the background from the first `want` to `close`."""

    def __init__(
        self,
        maker: SpareMaker,
        dispatch: Dispatch,
        clock: Clock,
        *,
        max_containers: int,
        max_bytes: int,
        available: Callable[[], float] = available_share,
    ) -> None:
        """Keep at most `max_containers`, and no more than fit in `max_bytes` at `SPARE_BYTES` each."""
        self.max_containers = min(max_containers, max_bytes // SPARE_BYTES)
        self._maker = maker
        self._dispatch = dispatch
        self._clock = clock
        self._available = available
        self._orders: dict[_Owner, _Order] = {}
        #: The oldest first.
        self._spares: list[Spare] = []
        self._making: Counter[tuple[_Owner, SandboxShape]] = Counter()
        #: Set when a loop may have something to do.
        self._changed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._under_way: set[asyncio.Future[Spare]] = set()
        self._pause_seconds = 0.0
        self._closed = False

    def count(self, shape: SandboxShape | None = None) -> int:
        """Return how many wait, of one shape or in all."""
        return sum(shape in (None, spare.shape) and spare.started.seems_alive for spare in self._spares)

    def want(self, store_id: str, owner: str, wanted: Mapping[SandboxShape, int], *, now: datetime) -> None:
        """See `harness.ports.Sandbox.keep_warm`."""
        if self._closed or self.max_containers <= 0:
            return
        self._orders[store_id, owner] = _Order(dict(wanted), now, self._clock.monotonic())
        if not self._loops:
            loops = (*(self._refill,) * REFILL_AT_ONCE, self._look_after)
            self._loops = [asyncio.create_task(loop()) for loop in loops]
        self._changed.set()

    def take(self, store_id: str, owner: str, shape: SandboxShape) -> tuple[Spare, SandboxOrigin] | None:
        """Return a spare, which is the caller's from then on, or None.

        ``warm``: It has the shape. ``adapted``: All but its limits of memory, processor and processes, which the caller
        has to change.
        """
        spares = [
            spare for spare in self._spares if spare.whose == (store_id, owner) and spare.started.seems_alive
        ]
        origin: SandboxOrigin = "warm"
        found = next((spare for spare in spares if spare.shape == shape), None)
        if found is None:
            origin = "adapted"
            near = [spare for spare in spares if _adapted(spare.shape, shape) == shape]
            # One that nobody waits for, if there is one.
            found = min(near, key=lambda spare: self._surplus(spare) <= 0, default=None)
        if found is None:
            return None
        self._spares.remove(found)
        self._changed.set()
        return found, origin

    async def close(self) -> None:
        """Make no more, and remove all."""
        self._closed = True
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops = []
        ended = await asyncio.gather(*self._under_way, return_exceptions=True)
        spares = [*self._spares, *(made for made in ended if isinstance(made, Spare))]
        self._spares = []
        await asyncio.gather(*map(self._maker.discard_spare, spares))

    # What there should be

    def _surplus(self, spare: Spare) -> int:
        """Return how many there are of a spare's kind beyond what is wanted of it."""
        order = self._orders.get(spare.whose)
        wanted = order.wanted.get(spare.shape, 0) if order else 0
        return self._have(spare.whose, spare.shape) - wanted

    def _have(self, owner: _Owner, shape: SandboxShape) -> int:
        there = sum(spare.shape == shape and spare.whose == owner for spare in self._spares)
        return there + self._making[owner, shape]

    def _missing(self) -> tuple[_Owner, SandboxShape] | None:
        """Return what is to be made next."""
        room = self.max_containers
        for owner, order in self._orders.items():
            for shape, count in order.wanted.items():
                if self._have(owner, shape) < min(count, room):
                    return owner, shape
                room -= min(count, room)
        return None

    # The loops

    async def _refill(self) -> None:
        while True:
            while self._missing() is None:
                self._changed.clear()
                await self._changed.wait()
            await self._dispatch.quiet()
            missing = self._missing()
            if missing is None:
                continue
            if self._available() < MIN_AVAILABLE:
                await self._clock.sleep(LOOK_SECONDS)
                continue
            self._making[missing] += 1
            try:
                await self._make_room()
                await self._make(*missing)
            finally:
                self._making[missing] -= 1
            if self._pause_seconds:
                await self._clock.sleep(self._pause_seconds)

    async def _make_room(self) -> None:
        """Throw away what is wanted least, if one more would be too many."""
        if len(self._spares) + self._making.total() > self.max_containers:
            surplus = next((spare for spare in self._spares if self._surplus(spare) > 0), None)
            # None: what is too much is just being made, and goes with the next look.
            if surplus is not None:
                await self._discard(surplus)

    async def _make(self, owner: _Owner, shape: SandboxShape) -> None:
        began = self._clock.monotonic()
        order = self._orders[owner]
        made_at = order.store_now + timedelta(seconds=began - order.given_at)
        labels = WarmLabels(*owner, until=made_at + timedelta(seconds=LEASE_SECONDS))
        making = asyncio.ensure_future(self._maker.make_spare(shape, labels))
        self._under_way.add(making)
        try:
            # Shielded, as one that is being made when the pool closes is to be found and removed.
            spare = await asyncio.shield(making)
        except SandboxError as error:
            self._pause_seconds = min(max(FIRST_PAUSE_SECONDS, self._pause_seconds * 2), LAST_PAUSE_SECONDS)
            logger.warning("no container can be kept warm: %s", error, extra={"action": "warming_failed"})
        else:
            self._spares.append(spare)
            took = self._clock.monotonic() - began
            self._pause_seconds = took * REST_FACTOR if took > SLOW_SECONDS else 0.0
        self._under_way.discard(making)

    async def _look_after(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            now = self._clock.monotonic()
            self._orders = {
                owner: order for owner, order in self._orders.items() if now - order.given_at < ORDER_SECONDS
            }
            is_short = self._available() < MIN_AVAILABLE
            for spare in tuple(self._spares):
                is_old = now - spare.made_at >= MAX_AGE_SECONDS or spare.whose not in self._orders
                if is_short or is_old or not spare.started.seems_alive:
                    await self._dispatch.quiet()
                    await self._discard(spare)
            await self._make_room()
            # What is missing may be so because of the time.
            self._changed.set()

    async def _discard(self, spare: Spare) -> None:
        if spare not in self._spares:
            return  # a run was faster
        self._spares.remove(spare)
        await uninterrupted(self._maker.discard_spare(spare))


def _adapted(from_shape: SandboxShape, to_shape: SandboxShape) -> SandboxShape:
    """Return what becomes of a shape by the one call that changes limits."""
    return replace(
        from_shape,
        memory_bytes=to_shape.memory_bytes,
        cpus=to_shape.cpus,
        max_processes=to_shape.max_processes,
    )
