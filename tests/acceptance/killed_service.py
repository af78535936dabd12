"""A server's scheduler that is killed, or frozen, at a named step. Started by test_killed_between_writes.py.

Nothing in the product knows of this: the store, its transactions and the engine's connection are wrapped.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from harness.clock import SystemClock
from harness.models import FirePlan, NewTask, Task
from harness.run import TaskRun
from harness.sandbox.docker import DockerSandbox
from harness.sandbox.engine import Engine
from harness.sandbox.session import DockerSession
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.store.sqlite import SqliteStore, schedules
from harness.wiring import make_sandbox, make_store

_ENGINE_ID = re.compile("[0-9a-f]{64}")

P = ParamSpec("P")
R = TypeVar("R")


class Fate:
    """Sends its own process a signal when its step is reached for the `times`-th time."""

    def __init__(self, step: str, times: int, number: signal.Signals) -> None:
        self._step = step
        self._left = times
        self._signal = number
        #: Called before a freeze.
        self.calm: Callable[[], None] = lambda: None

    def reached(self, step: str) -> None:
        """Die or freeze here, if it is the place."""
        if step == self._step:
            self._left -= 1
            if not self._left:
                if self._signal == signal.SIGSTOP:
                    self.calm()
                os.kill(os.getpid(), self._signal)
                assert self._signal != signal.SIGKILL, "still alive"


def mortal(
    fate: Fate, function: Callable[P, Awaitable[R]], before: str, after: str, *, only_if_any: bool = False
) -> Callable[P, Awaitable[R]]:
    """Wrap a coroutine function in two steps."""

    @wraps(function)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        fate.reached(before)
        result = await function(*args, **kwargs)
        if result or not only_if_any:
            fate.reached(after)
        return result

    return wrapper


def mortal_call(fate: Fate, function: Callable[P, R], before: str, after: str) -> Callable[P, R]:
    """Wrap a plain function in two steps."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        fate.reached(before)
        result = function(*args, **kwargs)
        fate.reached(after)
        return result

    return wrapper


#: Methods of every store, the steps before and after them, and whether one that did nothing is no step.
STORE_METHODS = (
    ("fire_schedules", "about to fire", "fired", True),
    ("claim_tasks", "about to claim", "claimed", True),
    ("retry_task", "about to retry", "retried", False),
    ("finish_task", "about to save", "saved", False),
    ("expired_tasks", "about to look for the dead", "dead runner found", True),
    ("expire_task", "about to expire", "expired", True),
)
#: Between the writes that one method of the MongoDB store makes; SQLite has one transaction in their place.
MONGO_METHODS = (
    ("_accept", "about to advance", "schedule advanced", True),
    ("_store_task", "about to insert a fire", "fire inserted", True),
    ("_deliver", "about to deliver", "outbox removed", True),
    ("_claim", "about to claim one", "one claimed", True),
    ("_place_artifact", "artifact inside its task", "artifact placed", False),
    ("_insert_artifact", "about to insert an artifact", "artifact inserted", True),
)


def condemn(store: Any, methods: Sequence[tuple[str, str, str, bool]], fate: Fate) -> None:
    """Put steps around methods."""
    for name, before, after, only_if_any in methods:
        method = getattr(store, name)
        setattr(store, name, mortal(fate, method, before, after, only_if_any=only_if_any))


def condemn_sqlite(fate: Fate) -> None:
    """Put steps inside of the transaction that fires schedules."""
    accept: Callable[[sqlite3.Connection, Sequence[FirePlan]], list[FirePlan]] = schedules._accept
    insert: Callable[[sqlite3.Connection, Sequence[NewTask], datetime], list[Task]] = schedules._store_fires
    module: Any = schedules
    module._accept = mortal_call(fate, accept, "about to advance", "schedule advanced")
    module._store_fires = mortal_call(fate, insert, "about to insert fires", "fires inserted")


def calm_down(store: SqliteStore) -> None:
    """Wait until the store's thread has done all that it was given: frozen in a transaction, it would lock everybody out."""
    connection, done = store._file._connection, threading.Event()
    assert connection is not None
    connection.post(lambda _db: done.set())
    done.wait()


def condemn_engine(fate: Fate) -> None:
    """Put steps around what is asked of the engine, and around runs."""
    engine: Any = Engine
    engine.create_container = mortal(fate, Engine.create_container, "about to create", "created")
    engine.start_container = mortal(fate, Engine.start_container, "about to start", "started")
    engine.rename_container = mortal(fate, Engine.rename_container, "about to name", "named")
    engine.remove_container = mortal(fate, Engine.remove_container, "about to remove", "removed")
    session: Any = DockerSession
    session.run = mortal(fate, DockerSession.run, "about to send the job", "agent ended")
    run: Any = TaskRun
    run.run = mortal(fate, TaskRun.run, "run begins", "released")


def condemn_sweeps(sandbox: DockerSandbox, fate: Fate) -> None:
    """Put steps around the removal of containers that another process left."""
    remove = sandbox.remove_container

    async def remove_container(container_id: str) -> None:
        # Those of own runs are removed by the names that they were given.
        is_orphan = _ENGINE_ID.fullmatch(container_id) is not None
        if is_orphan:
            fate.reached("about to remove an orphan")
        await remove(container_id)
        if is_orphan:
            fate.reached("orphan removed")

    set_on: Any = sandbox
    set_on.remove_container = remove_container


async def main(step: str, times: int, number: signal.Signals) -> None:
    """Serve until the step is reached so many times, and on if that does not kill."""
    settings, clock, fate = Settings.load(), SystemClock(), Fate(step, times, number)
    store = make_store(settings, clock)
    condemn(store, STORE_METHODS, fate)
    if isinstance(store, SqliteStore):
        condemn_sqlite(fate)
        fate.calm = partial(calm_down, store)
    else:
        condemn(store, MONGO_METHODS, fate)
    condemn_engine(fate)
    await store.open()
    sandbox = make_sandbox(settings, clock)
    condemn_sweeps(sandbox, fate)
    scheduler = TaskScheduler(store=store, sandbox=sandbox, clock=clock, settings=settings)
    await scheduler.start()
    await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), signal.Signals[sys.argv[3]]))
