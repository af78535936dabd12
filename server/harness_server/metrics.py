"""Every metric of the product, for Prometheus; `docs/metrics.md` says what each is for.

Labels have few values, known beforehand. Agents and tasks are none of them: each value would be a time series that lives
on in Prometheus for as long as it keeps any, and people make agents by the thousand. The log and traces have their ids.
"""

from __future__ import annotations

import asyncio
import platform
from importlib.metadata import version
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from harness.errors import HarnessError, LeaseLostError, StoreError
from harness.models import Attempt, NewTask, Reason, SkipReason, Task, TaskStatus
from harness.observed import MEASURED_METHODS
from harness.ports import SandboxLabels, SandboxOrigin
from harness.telemetry import Telemetry

#: Upper bounds of histograms, in seconds. A call of the store takes a fraction of a millisecond at best, and gives up
#: after 20 s.
_STORE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
#: Promise P4 is about one second.
_DELAY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 300, 1800, 3600)
_START_BUCKETS = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 30)
#: Agents run from a blink to a day.
_RUN_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)
_HTTP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

#: Why a container did not start, other than by an error of the product's own.
_OTHER_FAILURE = "other"


# A second series for each, with the time it was made; the process's own start says as much.
disable_created_metrics()  # type: ignore[no-untyped-call]  # without types in its package


class Metrics(Telemetry):
    """What one process counts and times, in a registry of its own.

    Counters begin at zero with the process, as Prometheus expects; the store has the history.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("harness_build", "Version of the product and of Python.", registry=registry).info(
            {"version": version("agent-harness"), "python": platform.python_version()}
        )
        self._tasks = Counter(
            "harness_tasks", "Tasks that ended here, by what ended them.", ["reason"], registry=registry
        )
        self._attempts = Counter(
            "harness_attempts",
            "Attempts that ended here, those included that are followed by another.",
            ["reason"],
            registry=registry,
        )
        self._fires = Counter(
            "harness_fires", "Fires of schedules, by what became of them.", ["outcome"], registry=registry
        )
        self._fire_lateness = Histogram(
            "harness_fire_lateness_seconds",
            "From when a fire was due, jitter included, to its stored task.",
            buckets=_DELAY_BUCKETS,
            registry=registry,
        )
        self._dispatch = Histogram(
            "harness_dispatch_latency_seconds",
            "From when an attempt was due to its claim, waits for a slot of its agent included.",
            buckets=_DELAY_BUCKETS,
            registry=registry,
        )
        self._runs = Histogram(
            "harness_run_seconds",
            "From claim to stored end of an attempt.",
            ["reason"],
            buckets=_RUN_BUCKETS,
            registry=registry,
        )
        self._leases_lost = Counter(
            "harness_leases_lost", "Writes refused since the task is another's by now.", registry=registry
        )
        self._sandbox_starts = Histogram(
            "harness_sandbox_start_seconds",
            "From the request for a container to one that can take the job, by where it came from.",
            ["origin"],
            buckets=_START_BUCKETS,
            registry=registry,
        )
        for origin in get_args(SandboxOrigin):
            self._sandbox_starts.labels(origin)
        self._sandbox_failures = Counter(
            "harness_sandbox_failures", "Containers that did not start.", ["code"], registry=registry
        )
        self._containers = Gauge(
            "harness_running_containers", "Containers of this process.", registry=registry
        )
        self._store_calls = Histogram(
            "harness_store_call_seconds",
            "Calls of the store, failed ones included.",
            ["method"],
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self._store_errors = Counter(
            "harness_store_errors",
            "Calls that the store failed; refusals such as 'not found' are none.",
            ["method"],
            registry=registry,
        )
        self._requests = Counter(
            "harness_http_requests",
            "Requests, by endpoint and status.",
            ["endpoint", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "harness_http_request_seconds",
            "Time to answer a request; streams are left out.",
            ["endpoint"],
            buckets=_HTTP_BUCKETS,
            registry=registry,
        )
        self._calls_by_method: dict[str, Histogram] = {}
        self._make_series()

    def _make_series(self) -> None:
        """Begin at zero what alerts look at: Prometheus sees no increase in a series that begins at one."""
        for reason in Reason:
            self._tasks.labels(reason)
            self._attempts.labels(reason)
        for outcome in ("task", *SkipReason):
            self._fires.labels(outcome)
        for method in MEASURED_METHODS:
            self._store_errors.labels(method)

    def store_called(self, method: str, seconds: float, error: BaseException | None) -> None:
        """Time a call."""
        # Looked up once: it is called the most.
        calls = self._calls_by_method.get(method)
        if calls is None:
            calls = self._calls_by_method[method] = self._store_calls.labels(method)
        calls.observe(seconds)
        if isinstance(error, StoreError):
            self._store_errors.labels(method).inc()

    def fired(self, task: Task) -> None:
        """Count a fire, or those that a skip stands for."""
        if task.status is TaskStatus.SKIPPED:
            self._skip(task)
            return
        self._fires.labels("task").inc()
        due_at = task.due_at or task.scheduled_at
        self._fire_lateness.observe(max(0.0, (task.created_at - due_at).total_seconds()))

    def skipped(self, skip: NewTask) -> None:
        """Count the fires that a skip stands for."""
        self._skip(skip)

    def _skip(self, skip: Task | NewTask) -> None:
        if skip.skip_reason is not None:
            self._fires.labels(skip.skip_reason).inc(max(1, skip.skipped_count))

    def claimed(self, task: Task) -> None:
        """Time how long it waited."""
        attempt = task.attempt
        if attempt is not None and attempt.due_at is not None:
            self._dispatch.observe(max(0.0, (attempt.started_at - attempt.due_at).total_seconds()))

    def attempt_ended(self, task: Task, attempt: Attempt, save_seconds: float) -> None:
        """Count and time an attempt."""
        if attempt.reason is None:
            return
        self._attempts.labels(attempt.reason).inc()
        if attempt.ended_at is not None:
            seconds = (attempt.ended_at - attempt.started_at).total_seconds()
            self._runs.labels(attempt.reason).observe(max(0.0, seconds))

    def attempt_lost(self, task_id: int, fence: int) -> None:
        """Count a refusal."""
        self._leases_lost.inc()

    def task_ended(self, task: Task) -> None:
        """Count a task."""
        self._tasks.labels(task.reason or Reason.CANCELLED).inc()

    def sandbox_started(self, labels: SandboxLabels, origin: SandboxOrigin, seconds: float) -> None:
        """Time a start."""
        self._sandbox_starts.labels(origin).observe(seconds)
        self._containers.inc()

    def sandbox_failed(self, labels: SandboxLabels, error: BaseException) -> None:
        """Count a container that did not start, unless it was not wanted any more."""
        if isinstance(error, asyncio.CancelledError | LeaseLostError):
            return
        self._sandbox_failures.labels(error.code if isinstance(error, HarnessError) else _OTHER_FAILURE).inc()

    def sandbox_ended(self, labels: SandboxLabels) -> None:
        """Count down."""
        self._containers.dec()

    def request_ended(self, endpoint: str, status: str, seconds: float | None) -> None:
        """Count a request.

        Args:
            endpoint: Its declared name, never its path.
            status: Of the answer.
            seconds: None for a stream, which takes as long as its reader wants.
        """
        self._requests.labels(endpoint, status).inc()
        if seconds is not None:
            self._request_seconds.labels(endpoint).observe(seconds)
