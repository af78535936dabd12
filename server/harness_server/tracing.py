"""Traces of runs and requests, by OpenTelemetry; the only file that imports it, and only when it is asked for.

One trace per attempt of a task, from when it was due: `attempt` over `queue`, `container start`, `agent` and `save`. All
spans are made when what they tell of is over, from its duration, so a process that dies leaves no half of one. A fire, and a
request, is a trace of its own: whoever fires need not be who runs, and nothing but the store is between them. They share
the attributes `harness.task_id` and `harness.agent_id`.

Where spans go, and how many, is OpenTelemetry's own to read from ``OTEL_*``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from threading import Thread
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from harness.errors import HarnessError
from harness.models import Attempt, Reason, Task
from harness.ports import SandboxLabels, SandboxOrigin, SandboxResult
from harness.telemetry import Telemetry

#: Attempts whose end is awaited at most. One whose lease was lost may never be told to end.
MAX_OPEN = 10_000
#: Bound on sending the last spans, in seconds.
CLOSE_TIMEOUT_SECONDS = 2.0

_NANOS = 1_000_000_000


@dataclass(slots=True)
class _Open:
    span: Span
    context: Context


class Tracing(Telemetry):
    """Sends spans to an exporter, in batches, from a thread of its own."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """Begin to trace.

        Args:
            exporter: Where spans go. None: over OTLP to where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says.
        """
        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        own = Resource({"service.name": "agent-harness", "service.version": version("agent-harness")})
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        about = own.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=about, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("harness", version("agent-harness"))
        self._attempts: OrderedDict[tuple[int, int], _Open] = OrderedDict()

    def close(self) -> None:
        """Send what is left; blocks, for two seconds at most: a collector that is away must not hold a stop up."""
        ending = Thread(target=self._provider.shutdown, name="spans", daemon=True)
        ending.start()
        ending.join(CLOSE_TIMEOUT_SECONDS)

    def fired(self, task: Task) -> None:
        """Trace a fire, from when it was due to its stored task."""
        span = self._tracer.start_span(
            "fire",
            context=Context(),
            start_time=_nanos(min(task.due_at or task.scheduled_at, task.created_at)),
            attributes=_about(task) | ({"harness.skip_reason": task.skip_reason} if task.skip_reason else {}),
        )
        span.end(_nanos(task.created_at))

    def claimed(self, task: Task) -> None:
        """Begin the trace of an attempt."""
        attempt = task.attempt
        if attempt is None:
            return
        due_at = min(attempt.due_at or attempt.started_at, attempt.started_at)
        span = self._tracer.start_span(
            "attempt",
            context=Context(),
            kind=SpanKind.CONSUMER,
            start_time=_nanos(due_at),
            attributes=_about(task) | {"harness.attempt": len(task.attempts), "harness.fence": task.fence},
        )
        context = set_span_in_context(span, Context())
        queue = self._tracer.start_span("queue", context=context, start_time=_nanos(due_at))
        queue.end(_nanos(attempt.started_at))
        self._attempts[task.id, task.fence] = _Open(span, context)
        if len(self._attempts) > MAX_OPEN:
            _, oldest = self._attempts.popitem(last=False)
            oldest.span.end()

    def sandbox_started(self, labels: SandboxLabels, origin: SandboxOrigin, seconds: float) -> None:
        """Trace a container's start."""
        self._step(labels, "container start", seconds, {"harness.container_origin": origin})

    def sandbox_failed(self, labels: SandboxLabels, error: BaseException) -> None:
        """Take note of a container that did not start."""
        if opened := self._attempts.get((labels.task_id, labels.fence)):
            code = error.code if isinstance(error, HarnessError) else type(error).__name__
            opened.span.add_event("container failed", {"harness.code": code})

    def agent_ended(self, labels: SandboxLabels, result: SandboxResult, seconds: float) -> None:
        """Trace the agent's own time."""
        self._step(
            labels, "agent", seconds, {"harness.reason": result.reason, "harness.exit_code": result.exit_code}
        )

    def attempt_ended(self, task: Task, attempt: Attempt, save_seconds: float) -> None:
        """End the trace of an attempt, unless another process began it."""
        opened = self._attempts.pop((task.id, attempt.number), None)
        if opened is None:
            return
        now = time.time_ns()
        save = self._tracer.start_span("save", context=opened.context, start_time=_before(now, save_seconds))
        save.end(now)
        opened.span.set_attributes({"harness.reason": attempt.reason or "", "harness.status": task.status})
        if attempt.reason is not Reason.COMPLETED:
            opened.span.set_status(Status(StatusCode.ERROR, attempt.reason))
        opened.span.end(now)

    def attempt_lost(self, task_id: int, fence: int) -> None:
        """End the trace of an attempt whose task is another's by now."""
        if opened := self._attempts.pop((task_id, fence), None):
            opened.span.set_attribute("harness.reason", Reason.LOST)
            opened.span.set_status(Status(StatusCode.ERROR, "lease lost"))
            opened.span.end()

    def request_ended(self, endpoint: str, method: str, status: int, seconds: float, request_id: str) -> None:
        """Trace a request, under its endpoint's name; its path has ids, and its query may have anything."""
        now = time.time_ns()
        span = self._tracer.start_span(
            endpoint,
            context=Context(),
            kind=SpanKind.SERVER,
            start_time=_before(now, seconds),
            attributes={
                "http.request.method": method,
                "http.response.status_code": status,
                "harness.request_id": request_id,
            },
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)

    def _step(
        self, labels: SandboxLabels, name: str, seconds: float, attributes: dict[str, Any] | None = None
    ) -> None:
        if opened := self._attempts.get((labels.task_id, labels.fence)):
            now = time.time_ns()
            start = _before(now, seconds)
            step = self._tracer.start_span(
                name, context=opened.context, start_time=start, attributes=attributes
            )
            step.end(now)


def _about(task: Task) -> dict[str, Any]:
    about: dict[str, Any] = {
        "harness.task_id": task.id,
        "harness.agent_id": task.agent_id,
        "harness.trigger": task.trigger,
    }
    if task.fire_at is not None:
        about["harness.fire_at"] = task.fire_at.isoformat()
    return about


def _nanos(at: datetime) -> int:
    return int(at.timestamp() * 1000) * (_NANOS // 1000)


def _before(now: int, seconds: float) -> int:
    return now - int(seconds * _NANOS)
