"""`Telemetry`: the port through which a process tells what it does to whoever measures or traces it.

It is told by `harness.observed`, which stands between the core and its store and sandbox; the core itself knows nothing of
it. Prometheus and OpenTelemetry are behind it, in the server's package.
"""

from __future__ import annotations

from harness.models import Attempt, NewTask, Task
from harness.ports import SandboxLabels, SandboxOrigin, SandboxResult


class Telemetry:
    """Takes note of nothing; a subclass overrides what it wants to know.

    Every method is called on the event loop, as the last step of what it tells of. It must neither block nor raise, and
    takes microseconds: it is called for each call of the store.
    """

    def store_called(self, method: str, seconds: float, error: BaseException | None) -> None:
        """A method of the store has returned, or raised."""

    def fired(self, task: Task) -> None:
        """A fire became a task, or a skip that stands for one or more fires, stored by this process."""

    def skipped(self, skip: NewTask) -> None:
        """A change of a schedule, or of the agent, made its fires skipped; the record is stored, or will be."""

    def claimed(self, task: Task) -> None:
        """This process took a task; its newest attempt says when, and since when it was due."""

    def attempt_ended(self, task: Task, attempt: Attempt, save_seconds: float) -> None:
        """The end of an attempt is stored, which took `save_seconds`.

        The task as stored: final, pending again, or running again by now. Attempts of a runner that died are ended by
        another's sweep.
        """

    def attempt_lost(self, task_id: int, fence: int) -> None:
        """The store refused a write of an attempt: its task is another's by now. May be told more than once."""

    def task_ended(self, task: Task) -> None:
        """A task is final; told after the end of its attempt, if it had one. A retry by hand lets it end once more."""

    def sandbox_started(self, labels: SandboxLabels, origin: SandboxOrigin, seconds: float) -> None:
        """A container is there, `seconds` after it was asked for: one that waited, or one just started."""

    def sandbox_failed(self, labels: SandboxLabels, error: BaseException) -> None:
        """A container that was asked for did not start, or must not any more."""

    def sandbox_ended(self, labels: SandboxLabels) -> None:
        """A container that had started is gone, or nothing of the agent runs in it any more."""

    def agent_ended(self, labels: SandboxLabels, result: SandboxResult, seconds: float) -> None:
        """The job in a container is over, `seconds` after it was handed over."""


class Telemetries(Telemetry):
    """Tells several."""

    def __init__(self, *parts: Telemetry) -> None:
        self._parts = parts

    def store_called(self, method: str, seconds: float, error: BaseException | None) -> None:
        """Tell all."""
        for part in self._parts:
            part.store_called(method, seconds, error)

    def fired(self, task: Task) -> None:
        """Tell all."""
        for part in self._parts:
            part.fired(task)

    def skipped(self, skip: NewTask) -> None:
        """Tell all."""
        for part in self._parts:
            part.skipped(skip)

    def claimed(self, task: Task) -> None:
        """Tell all."""
        for part in self._parts:
            part.claimed(task)

    def attempt_ended(self, task: Task, attempt: Attempt, save_seconds: float) -> None:
        """Tell all."""
        for part in self._parts:
            part.attempt_ended(task, attempt, save_seconds)

    def attempt_lost(self, task_id: int, fence: int) -> None:
        """Tell all."""
        for part in self._parts:
            part.attempt_lost(task_id, fence)

    def task_ended(self, task: Task) -> None:
        """Tell all."""
        for part in self._parts:
            part.task_ended(task)

    def sandbox_started(self, labels: SandboxLabels, origin: SandboxOrigin, seconds: float) -> None:
        """Tell all."""
        for part in self._parts:
            part.sandbox_started(labels, origin, seconds)

    def sandbox_failed(self, labels: SandboxLabels, error: BaseException) -> None:
        """Tell all."""
        for part in self._parts:
            part.sandbox_failed(labels, error)

    def sandbox_ended(self, labels: SandboxLabels) -> None:
        """Tell all."""
        for part in self._parts:
            part.sandbox_ended(labels)

    def agent_ended(self, labels: SandboxLabels, result: SandboxResult, seconds: float) -> None:
        """Tell all."""
        for part in self._parts:
            part.agent_ended(labels, result, seconds)
