"""A server's scheduler that dies by SIGKILL at a named step. Started by test_killed_between_writes.py.

Nothing in the product knows of this: the store, its transactions and the engine's connection are wrapped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from docker import APIClient

from harness.clock import SystemClock
from harness.models import FirePlan, NewTask, Task
from harness.run import TaskRun
from harness.sandbox.session import DockerSession
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.store.sqlite import SqliteStore, schedules
from harness.wiring import make_sandbox

P = ParamSpec("P")
R = TypeVar("R")


class Fate:
    """Dies at the second time that its step is reached, so that some of the work has been done before."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._reached = 0

    def reached(self, step: str) -> None:
        """Die here, if it is the place."""
        if step == self._step:
            self._reached += 1
            if self._reached == 2:
                die()


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


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


def condemn(store: SqliteStore, fate: Fate) -> None:
    """Put all steps in place."""
    set_on: Any = store
    methods = (
        ("fire_schedules", "about to fire", "fired", True),
        ("claim_tasks", "about to claim", "claimed", True),
        ("retry_task", "about to retry", "retried", False),
        ("finish_task", "about to save", "saved", False),
    )
    for name, before, after, only_if_any in methods:
        method = getattr(store, name)
        setattr(set_on, name, mortal(fate, method, before, after, only_if_any=only_if_any))
    accept: Callable[[sqlite3.Connection, FirePlan], bool] = schedules._accept
    insert: Callable[[sqlite3.Connection, Sequence[NewTask], datetime], list[Task]] = schedules._store_fires
    module: Any = schedules
    module._accept = mortal_call(fate, accept, "about to advance", "schedule advanced")
    module._store_fires = mortal_call(fate, insert, "about to insert fires", "fires inserted")
    client: Any = APIClient
    client.create_container = mortal_call(fate, APIClient.create_container, "about to create", "created")
    client.start = mortal_call(fate, APIClient.start, "about to start", "started")
    client.remove_container = mortal_call(fate, APIClient.remove_container, "about to remove", "removed")
    session: Any = DockerSession
    session.run = mortal(fate, DockerSession.run, "about to send the job", "agent ended")
    run: Any = TaskRun
    run.run = mortal(fate, TaskRun.run, "run begins", "released")


async def main(step: str) -> None:
    """Serve until the step is reached."""
    settings, clock = Settings.load(), SystemClock()
    store = SqliteStore(settings.data_dir / "harness.db", clock=clock)
    condemn(store, Fate(step))
    await store.open()
    sandbox = make_sandbox(settings, clock)
    scheduler = TaskScheduler(store=store, sandbox=sandbox, clock=clock, settings=settings)
    await scheduler.start()
    await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
