"""A store and a sandbox that tell a `Telemetry` what is asked of them, so that nothing in the core has to.

Everything a process does to a task goes through its store, and what the store answers says what became of it. What the
store does by itself, on the way to another answer, is not told: a waiting task that a newer fire takes the place of.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

from harness.egress.decision import OnDecision
from harness.errors import LeaseLostError
from harness.models import Task, TaskStatus
from harness.ports import (
    BeforeStart,
    BeforeStop,
    OutputSink,
    Sandbox,
    SandboxJob,
    SandboxLabels,
    SandboxResult,
    SandboxSession,
    SandboxSpec,
    Store,
)
from harness.telemetry import Telemetry

#: Not measured: once in a process's life, or a look at a clock.
_NOT_MEASURED = {"open", "close", "now"}

#: Methods of the store that are measured: their number bounds what telemetry keeps by method.
MEASURED_METHODS = tuple(
    name
    for name, member in inspect.getmembers(Store, inspect.iscoroutinefunction)
    if name not in _NOT_MEASURED and not name.startswith("_")
)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of the store that went well."""

    args: tuple[Any, ...]
    named: Mapping[str, Any]
    answer: Any
    seconds: float

    def argument(self, index: int, name: str) -> Any:
        """Return an argument, whichever way it was given."""
        return self.args[index] if len(self.args) > index else self.named[name]


_Then = Callable[[_Call], None]


def observed_store(store: Store, telemetry: Telemetry) -> Store:
    """Return the store, each of its methods telling of its calls; it stays its owner's to close."""
    return cast("Store", _ObservedStore(store, telemetry))


def observed_sandbox(sandbox: Sandbox, telemetry: Telemetry) -> Sandbox:
    """Return the sandbox, telling of its containers; it stays its owner's to close."""
    return cast("Sandbox", _ObservedSandbox(sandbox, telemetry))


class _ObservedStore:
    def __init__(self, store: Store, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        then: dict[str, _Then] = {
            "create_task": self._created,
            "fire_schedules": self._fired,
            "put_schedules": self._put,
            "claim_tasks": self._claimed,
            "finish_task": self._attempt_ended,
            "retry_task": self._attempt_ended,
            "hand_back_task": self._attempt_ended,
            "expire_task": self._expired,
        }
        for name in MEASURED_METHODS:
            setattr(self, name, self._measured(name, getattr(store, name), then.get(name)))
        self._cancel_task: Callable[[int], Awaitable[Task]] = self.__dict__["cancel_task"]
        self.cancel_task = self._cancel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _measured(self, name: str, call: Callable[..., Awaitable[Any]], then: _Then | None) -> Any:
        telemetry = self._telemetry

        @functools.wraps(call)
        async def measured(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter()
            try:
                answer = await call(*args, **kwargs)
            except BaseException as error:
                telemetry.store_called(name, perf_counter() - began, error)
                # Writes of an attempt begin with its task and its fence.
                if isinstance(error, LeaseLostError) and len(args) > 1:
                    telemetry.attempt_lost(args[0], args[1])
                raise
            seconds = perf_counter() - began
            telemetry.store_called(name, seconds, None)
            if then is not None:
                then(_Call(args, kwargs, answer, seconds))
            return answer

        return measured

    def _created(self, call: _Call) -> None:
        if call.answer.status is TaskStatus.RUNNING:
            self._telemetry.claimed(call.answer)

    def _fired(self, call: _Call) -> None:
        for task in call.answer:
            self._telemetry.fired(task)

    def _put(self, call: _Call) -> None:
        skips = call.named.get("skips", ())
        accepted = {state.agent_id for state in call.answer} if skips else ()
        for skip in skips:
            if skip.agent_id in accepted:
                self._telemetry.skipped(skip)

    def _claimed(self, call: _Call) -> None:
        for task in call.answer:
            self._telemetry.claimed(task)

    def _expired(self, call: _Call) -> None:
        # None: its runner lives, or another sweep was faster.
        if call.answer is not None:
            self._tell_end(call.answer, call.argument(0, "task").fence, call.seconds)

    def _attempt_ended(self, call: _Call) -> None:
        self._tell_end(call.answer, call.argument(1, "fence"), call.seconds)

    def _tell_end(self, task: Task, fence: int, seconds: float) -> None:
        """Tell of the attempt of that fence: a call that is repeated may find a later one begun."""
        for attempt in task.attempts:
            if attempt.number == fence:
                self._telemetry.attempt_ended(task, attempt, seconds)
        if task.status.is_final:
            self._telemetry.task_ended(task)

    async def _cancel(self, task_id: int) -> Task:
        """Cancel a task; that it ends is told only if it was pending, since a running one is ended by its runner."""
        before = await self._store.get_task(task_id)
        task = await self._cancel_task(task_id)
        if before.status is TaskStatus.PENDING and task.status is TaskStatus.CANCELLED:
            self._telemetry.task_ended(task)
        return task


class _ObservedSandbox:
    def __init__(self, sandbox: Sandbox, telemetry: Telemetry) -> None:
        self._sandbox = sandbox
        self._telemetry = telemetry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)

    @asynccontextmanager
    async def open(
        self,
        spec: SandboxSpec,
        *,
        before_start: BeforeStart | None = None,
        on_egress: OnDecision | None = None,
    ) -> AsyncIterator[SandboxSession]:
        telemetry, has_started = self._telemetry, False
        try:
            async with self._sandbox.open(spec, before_start=before_start, on_egress=on_egress) as session:
                has_started = True
                telemetry.sandbox_started(spec.labels, session.origin, session.start_seconds)
                yield cast("SandboxSession", _ObservedSession(session, spec.labels, telemetry))
        except BaseException as error:
            if not has_started:
                telemetry.sandbox_failed(spec.labels, error)
            raise
        finally:
            if has_started:
                telemetry.sandbox_ended(spec.labels)


class _ObservedSession:
    def __init__(self, session: SandboxSession, labels: SandboxLabels, telemetry: Telemetry) -> None:
        self._session = session
        self._labels = labels
        self._telemetry = telemetry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def run(self, job: SandboxJob, *, sink: OutputSink, before_stop: BeforeStop) -> SandboxResult:
        began = perf_counter()
        result = await self._session.run(job, sink=sink, before_stop=before_stop)
        self._telemetry.agent_ended(self._labels, result, perf_counter() - began)
        return result
