"""Deleting what is not to be kept, agent by agent, in small steps: a store that never forgets ends as a full disk.

Any process may do it, also several at once: each step deletes what it finds, or finds that somebody else did.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from random import SystemRandom

from harness.config import RetentionConfig
from harness.errors import AgentNotFoundError, HarnessError, StoreUnavailableError
from harness.polling import Outage
from harness.ports import Clock, Store
from harness.retention import Expiry, Purged, Retention

logger = logging.getLogger(__name__)

#: Records that one step deletes at most.
BATCH = 500
#: Agents listed at a time.
PAGE = 1000
#: After a step that deleted something, and after looking for so many seconds, the store is left to others: for so many
#: times as long as the work took, with bounds in seconds.
LOOK_SECONDS = 0.01
REST_FACTOR, MIN_REST_SECONDS, MAX_REST_SECONDS = 4.0, 0.02, 0.2
#: Between two rounds over all agents, in seconds; each time by up to a tenth longer, so that processes that were started
#: together come apart.
ROUND_SECONDS = 3600.0
#: After a round that the store's absence ended, in seconds.
RETRY_SECONDS = 60.0


class _Pace:
    """Leaves the store to others most of the time: ten thousand agents that have nothing to delete take seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.monotonic()

    async def rest(self, *, has_written: bool) -> None:
        worked_seconds = self._clock.monotonic() - self._began
        if has_written or worked_seconds >= LOOK_SECONDS:
            await self._clock.sleep(
                min(max(REST_FACTOR * worked_seconds, MIN_REST_SECONDS), MAX_REST_SECONDS)
            )
            self._began = self._clock.monotonic()


class Purger:
    """Brings what a store keeps of its agents' histories to what is to be kept."""

    def __init__(self, store: Store, clock: Clock, retention: Retention) -> None:
        """Work on a store.

        Args:
            store: Open, owned by the caller.
            clock: For pauses; what is old is told by the store's.
            retention: For what agents do not say themselves.
        """
        self._store = store
        self._clock = clock
        self._retention = retention

    async def run(self) -> None:
        """Purge all agents, at once and then about every hour, until cancelled; it can be cut anywhere."""
        outage = Outage(self._clock, "purging", "purge")
        random = SystemRandom()
        while True:
            wait_seconds = ROUND_SECONDS * random.uniform(1.0, 1.1)
            try:
                await self.purge_all()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next round may do
                outage.failed(error)
                wait_seconds = RETRY_SECONDS
            else:
                outage.over()
            await self._clock.sleep(wait_seconds)

    async def purge_all(self) -> Purged:
        """Purge every agent, and log what was deleted, also when this is cut short.

        Raises:
            StoreUnavailableError: The store does not answer.
        """
        total = Purged()
        began = self._clock.monotonic()
        last = 0
        pace = _Pace(self._clock)
        try:
            while agent_ids := await self._store.agent_ids(after_id=last, limit=PAGE):
                for agent_id in agent_ids:
                    try:
                        async for purged in self._steps(agent_id, pace):
                            total += purged
                    except AgentNotFoundError:
                        continue
                    except StoreUnavailableError:
                        raise
                    except HarnessError as error:
                        # What is wrong with one agent must not fill the disk with the history of all others.
                        extra = {"action": "purge_skipped", "agent_id": agent_id}
                        logger.error("agent %d is not purged: %s", agent_id, error, extra=extra)
                last = agent_ids[-1]
        finally:
            if not total.is_empty:
                _log(total, self._clock.monotonic() - began)
        return total

    async def purge(self, agent_id: int) -> Purged:
        """Purge one agent.

        Raises:
            AgentNotFoundError: There is no such agent.
            InvalidInputError: Its config is not valid any more.
        """
        total = Purged()
        async for purged in self._steps(agent_id, _Pace(self._clock)):
            total += purged
        return total

    async def purgeable(self, agent_id: int) -> Purged:
        """Count what `purge` would delete; raises like it."""
        return await self._store.purgeable(agent_id, await self._expiry(agent_id))

    async def _steps(self, agent_id: int, pace: _Pace) -> AsyncIterator[Purged]:
        expiry = await self._expiry(agent_id)
        more = True
        while more:
            purged = await self._store.purge(agent_id, expiry, limit=BATCH)
            yield purged
            more = purged.more
            # A step that only deleted a part of one task's logs counts nothing, and has more.
            await pace.rest(has_written=more or not purged.is_empty)

    async def _expiry(self, agent_id: int) -> Expiry:
        # Without its code, which may be large.
        source = await self._store.get_schedule(agent_id)
        retention = self._retention.overridden(RetentionConfig.of(source.config))
        return retention.expiry(await self._store.now())


def _log(purged: Purged, seconds: float) -> None:
    extra = {
        "action": "purged",
        "tasks": purged.tasks,
        "logs": purged.logs,
        "artifacts": purged.artifacts,
        "seconds": round(seconds, 3),
    }
    logger.info(
        "deleted %d tasks, the logs of %d more, %d handoff artifacts",
        purged.tasks,
        purged.logs,
        purged.artifacts,
        extra=extra,
    )
