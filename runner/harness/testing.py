"""Fakes for tests of code that uses Agent Harness: a clock that a test moves, a store in memory, a scripted sandbox."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from harness.egress.decision import Decision, OnDecision
from harness.errors import SandboxError
from harness.models import Reason
from harness.ports import (
    BeforeStart,
    BeforeStop,
    Clock,
    OutputSink,
    OutputStream,
    OwnedContainer,
    SandboxJob,
    SandboxLabels,
    SandboxOrigin,
    SandboxResult,
    SandboxShape,
    SandboxSpec,
    SandboxUsage,
    WarmLabels,
)
from harness.store.sqlite import SqliteStore

__all__ = ["FakeClock", "FakeRun", "FakeSandbox", "FakeSession", "MemoryStore"]


class FakeClock:
    """A `harness.ports.Clock` that stands still until a test moves it."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        """Start at `now`, which is aware."""
        self._now = now.astimezone(UTC)
        self._monotonic = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """Return the fake wall-clock time."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds advanced since the start."""
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), woken))
        await woken

    @property
    def sleepers(self) -> int:
        """How many calls of `sleep` are waiting; a test waits for this to rise before it advances."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move on, stopping at each instant somebody sleeps towards, so that periodic sleepers wake every time."""
        end = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self._move_to(at)
            woken.set_result(None)
            # Lets the woken task run up to its next sleep, if that is all it does.
            for _ in range(10):
                await asyncio.sleep(0)
        self._move_to(end)

    def set_wall_clock(self, now: datetime) -> None:
        """Step the wall clock only, as NTP or an administrator does; sleepers do not notice."""
        self._now = now.astimezone(UTC)

    def _move_to(self, monotonic: float) -> None:
        self._now += timedelta(seconds=monotonic - self._monotonic)
        self._monotonic = monotonic


class MemoryStore(SqliteStore):
    """A `harness.ports.Store` in memory, for one process; everything in it ends with `close`."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        """Make an empty store.

        Args:
            clock: Usually a `FakeClock`. None for the machine's.
        """
        super().__init__(None, clock=clock)


_SUCCESS = SandboxResult(Reason.COMPLETED, 0)


@dataclass(frozen=True, slots=True)
class FakeRun:
    """What a `FakeSandbox` does with a job: the output comes first, then the end. By default a silent success."""

    output: Sequence[tuple[OutputStream, bytes]] = ()
    result: SandboxResult = _SUCCESS


class FakeSandbox:
    """A `harness.ports.Sandbox` without containers: jobs do what a test's function says, at once or when released.

    It keeps no wall time: script a result with `Reason.TIMEOUT`, or call `FakeSession.stop`.
    """

    def __init__(self, behave: Callable[[SandboxJob], FakeRun] | None = None) -> None:
        """Run jobs by `behave`, called once per job; None: every job is a silent success."""
        #: What jobs do; may be changed between jobs.
        self.behave = behave or (lambda _job: FakeRun())
        #: Jobs end while this is set.
        self.released = asyncio.Event()
        self.released.set()
        #: Notified whenever a job has sent its output.
        self.job_began = asyncio.Condition()
        self._ids = itertools.count(1)
        self._containers: dict[str, tuple[OwnedContainer, FakeSession | None]] = {}
        #: Raised by the next calls of `open`, until it is set to None again.
        self.open_error: SandboxError | None = None
        #: Raised by `remove_container`, until it is set to None again.
        self.remove_error: SandboxError | None = None
        #: What every session with egress has decided at once.
        self.egress_decisions: list[Decision] = []
        #: What every session says it uses.
        self.usage: SandboxUsage | None = None
        #: What `keep_warm` was told, in order.
        self.warm_orders: list[tuple[str, str, dict[SandboxShape, int], datetime]] = []
        #: Everything that was asked for, in order.
        self.specs: list[SandboxSpec] = []
        self.jobs: list[SandboxJob] = []
        #: Reasons and sentences of all stops.
        self.stops: list[tuple[Reason, str]] = []

    @property
    def sessions(self) -> list[FakeSession]:
        """The sessions that are open."""
        return [session for _, session in self._containers.values() if session is not None]

    @property
    def running(self) -> int:
        """How many jobs have sent their output and not ended."""
        return sum(session.is_running for session in self.sessions)

    def hold(self) -> None:
        """Keep jobs running, after their output, until `release`."""
        self.released.clear()

    def release(self) -> None:
        """Let jobs end."""
        self.released.set()

    async def until_running(self, count: int = 1) -> None:
        """Wait until at least `count` held jobs have sent their output."""
        async with self.job_began:
            await self.job_began.wait_for(lambda: self.running >= count)

    def add_container(
        self,
        labels: SandboxLabels | WarmLabels,
        state: str = "running",
        made_at: datetime = datetime(2026, 1, 1, tzinfo=UTC),
    ) -> str:
        """Add a container that nobody holds, such as a runner leaves when it dies; return its id."""
        container_id = f"fake-{next(self._ids)}"
        self._containers[container_id] = (OwnedContainer(container_id, labels, state, made_at), None)
        return container_id

    def give(self, container_id: str, labels: SandboxLabels) -> None:
        """Have a container that waits for a task be given to an attempt, as its name then says."""
        owned, session = self._containers[container_id]
        self._containers[container_id] = (replace(owned, labels=labels), session)

    @asynccontextmanager
    async def open(
        self,
        spec: SandboxSpec,
        *,
        before_start: BeforeStart | None = None,
        on_egress: OnDecision | None = None,
    ) -> AsyncIterator[FakeSession]:
        """Open a session; see the port."""
        # A real one asks an engine, and so lets others go first.
        await asyncio.sleep(0)
        self.specs.append(spec)
        if self.open_error is not None:
            raise self.open_error
        container_id = self.add_container(spec.labels)
        session = FakeSession(self, container_id)
        self._containers[container_id] = (self._containers[container_id][0], session)
        try:
            if before_start is not None:
                before_start()
            if spec.egress and on_egress is not None:
                for decision in self.egress_decisions:
                    on_egress(decision)
            yield session
        finally:
            self._containers.pop(container_id, None)

    async def keep_warm(
        self, store_id: str, owner: str, wanted: Mapping[SandboxShape, int], *, now: datetime
    ) -> None:
        """Note what is wanted; nothing is made."""
        self.warm_orders.append((store_id, owner, dict(wanted), now))

    async def owned_containers(self, store_id: str) -> Sequence[OwnedContainer]:
        """Return the containers of a store."""
        return [owned for owned, _ in self._containers.values() if owned.labels.store_id == store_id]

    async def remove_container(self, container_id: str) -> None:
        """Remove a container; a job in it ends as `Reason.RESULT_LOST`."""
        if self.remove_error is not None:
            raise self.remove_error
        _, session = self._containers.pop(container_id, (None, None))
        if session is not None:
            session.end(SandboxResult(Reason.RESULT_LOST, 137, "the container was removed from outside"))

    async def close(self) -> None:
        """Do nothing."""


class FakeSession:
    """A `harness.ports.SandboxSession` of a `FakeSandbox`."""

    def __init__(self, sandbox: FakeSandbox, container_id: str) -> None:
        """Made by `FakeSandbox.open`."""
        self.container_id = container_id
        self.start_seconds = 0.125
        self.origin: SandboxOrigin = "cold"
        #: Whether its job has sent its output and not ended.
        self.is_running = False
        self._sandbox = sandbox
        self._before_stop: BeforeStop | None = None
        self._stopped: tuple[Reason, str] | None = None
        self._end: SandboxResult | None = None
        self._ended = asyncio.Event()

    async def run(self, job: SandboxJob, *, sink: OutputSink, before_stop: BeforeStop) -> SandboxResult:
        """Do what the script says; see the port."""
        self._before_stop = before_stop
        self._sandbox.jobs.append(job)
        script = self._sandbox.behave(job)
        for stream, data in script.output:
            sink(stream, data)
        self.is_running = True
        async with self._sandbox.job_began:
            self._sandbox.job_began.notify_all()
        releasing = asyncio.create_task(self._sandbox.released.wait())
        ending = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait((releasing, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.is_running = False
            releasing.cancel()
            ending.cancel()
        return self._end or script.result

    async def stop(self, reason: Reason, message: str) -> None:
        """End the job with `reason`; see the port."""
        if self._stopped is not None:
            return
        self._stopped = (reason, message)
        self._sandbox.stops.append(self._stopped)
        if self._before_stop is not None:
            await self._before_stop(reason, message)
        self.end(SandboxResult(reason, 143, message))

    async def usage(self) -> SandboxUsage | None:
        """Return what the sandbox says; see the port."""
        return self._sandbox.usage if self.is_running else None

    def end(self, result: SandboxResult) -> None:
        """End the job with `result` now."""
        self._end = self._end or result
        self._ended.set()
