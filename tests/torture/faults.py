"""What goes wrong, and when: a plan that depends on the seed alone, and the hand that carries it out."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.engines import OwnEngine
from tests.torture.fleet import Member
from tests.torture.switches import Switchboard

#: Weights of what happens next. Outages of the store and the engine last, so they are rarer.
WEIGHTS = {
    "kill": 8,
    "freeze": 6,
    "hiccup": 3,
    "stop": 2,
    "kill_all": 1,
    "store_outage": 1.5,
    "engine_stop": 0.6,
    "engine_kill": 0.6,
    "engine_freeze": 0.6,
    "pause": 4,
    "remove": 2,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    #: Since the beginning of the run.
    at_seconds: float
    kind: str
    #: Which of the members, where it hits one.
    member: int
    #: How long it lasts, where it lasts.
    lasts_seconds: float
    #: Which of the agents, where it is about one; counted round and round.
    agent: int = 0

    def __str__(self) -> str:
        return f"{self.at_seconds:7.1f} s  {self.kind} (member {self.member}, {self.lasts_seconds:.1f} s)"


def make_plan(
    rng: random.Random, *, seconds: float, lease_seconds: float, members: int, without: Sequence[str] = ()
) -> list[Fault]:
    """Return the faults of a run of that length, by rising time; one every 2.5 s on average."""
    kinds = {kind: weight for kind, weight in WEIGHTS.items() if kind not in without}
    plan = []
    # The first ones come while the processes still start.
    at = rng.uniform(0.5, 3)
    while at < seconds:
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        lasts = {
            "freeze": rng.uniform(1.1, 2.5) * lease_seconds,
            "hiccup": rng.uniform(0.1, 0.9) * lease_seconds,
            "store_outage": rng.uniform(6, 9),
            "engine_stop": rng.uniform(0, 3),
            "engine_kill": rng.uniform(0, 3),
            "engine_freeze": rng.uniform(1, 8),
            "pause": rng.uniform(0.2, 8),
            "remove": rng.uniform(0.2, 8),
        }
        plan.append(
            Fault(at, kind, rng.randrange(members), lasts.get(kind, 0.0), agent=rng.randrange(1_000_000))
        )
        at += rng.expovariate(1 / 2.5)
    return plan


#: Has a store not answer for that long, and then answer again.
StoreOutage = Callable[[float], Awaitable[None]]

_LOCK = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
time.sleep(float(sys.argv[2]))
"""


def lock_sqlite(path: Path) -> StoreOutage:
    """Return an outage of an SQLite store: another process holds its write lock."""

    async def outage(seconds: float) -> None:
        process = subprocess.Popen(  # noqa: ASYNC220 - a fork takes milliseconds
            [sys.executable, "-c", _LOCK, path, str(seconds)]
        )
        try:
            await asyncio.to_thread(process.wait)
        finally:
            process.kill()
            process.wait()

    return outage


def freeze_process(process: subprocess.Popen[bytes]) -> StoreOutage:
    """Return an outage of a store's server: it is stopped for a while, and answers late."""

    async def outage(seconds: float) -> None:
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            process.send_signal(signal.SIGCONT)

    return outage


class Hand:
    """Carries faults out; what lasts goes on beside the next ones, but no two outages of one part at a time."""

    def __init__(
        self,
        members: Sequence[Member],
        engine: OwnEngine | None,
        store_outage: StoreOutage,
        switchboard: Switchboard,
    ) -> None:
        self._members = members
        self._switchboard = switchboard
        self._engine = engine
        self._outage = store_outage
        self._engine_lock = asyncio.Lock()
        self._store_lock = asyncio.Lock()
        self._lasting: set[asyncio.Task[None]] = set()
        self.done: dict[str, int] = {}
        #: From when to when the engine was stopped or frozen.
        self.engine_away: list[tuple[datetime, datetime]] = []

    def begin(self, fault: Fault) -> None:
        """Begin a fault."""
        kinds: Mapping[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "stop": self._stop,
            "kill_all": self._kill_all,
            "freeze": self._freeze,
            "hiccup": self._freeze,
            "store_outage": self._store_outage,
            "engine_stop": self._engine_ends,
            "engine_kill": self._engine_ends,
            "engine_freeze": self._engine_freezes,
            "pause": self._turn_off_and_on,
            "remove": self._turn_off_and_on,
        }
        self.done[fault.kind] = self.done.get(fault.kind, 0) + 1

        async def carry_out() -> None:
            await kinds[fault.kind](fault)

        self._lasting.add(asyncio.create_task(carry_out()))

    async def settle(self) -> None:
        """Wait until all that lasts is over."""
        await asyncio.gather(*self._lasting)
        self._lasting.clear()

    async def _kill(self, fault: Fault) -> None:
        self._members[fault.member].send(signal.SIGKILL)

    async def _stop(self, fault: Fault) -> None:
        member = self._members[fault.member]
        if not member.is_frozen:
            member.send(signal.SIGTERM)

    async def _kill_all(self, fault: Fault) -> None:
        for member in self._members:
            member.send(signal.SIGKILL)

    async def _freeze(self, fault: Fault) -> None:
        member = self._members[fault.member]
        if not member.is_frozen and member.send(signal.SIGSTOP):
            await asyncio.sleep(fault.lasts_seconds)
            member.send(signal.SIGCONT)

    async def _store_outage(self, fault: Fault) -> None:
        async with self._store_lock:
            await self._outage(fault.lasts_seconds)

    async def _turn_off_and_on(self, fault: Fault) -> None:
        await self._switchboard.turn_off_and_on(fault.agent, fault.kind, fault.lasts_seconds)

    async def _engine_ends(self, fault: Fault) -> None:
        async with self._without_engine() as engine:
            engine.signal(signal.SIGTERM if fault.kind == "engine_stop" else signal.SIGKILL)
            await asyncio.sleep(fault.lasts_seconds)
            await engine.start()

    async def _engine_freezes(self, fault: Fault) -> None:
        async with self._without_engine() as engine:
            engine.signal(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_seconds)
            engine.signal(signal.SIGCONT)

    @asynccontextmanager
    async def _without_engine(self) -> AsyncIterator[OwnEngine]:
        assert self._engine is not None
        async with self._engine_lock:
            began_at = datetime.now(UTC)
            try:
                yield self._engine
            finally:
                self.engine_away.append((began_at, datetime.now(UTC)))
