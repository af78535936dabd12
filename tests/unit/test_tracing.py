from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.unit.shop import COMPLETED, FAILED, LEASE_SECONDS, Shop, eventually

from harness.errors import LeaseLostError
from harness.models import Claim, Reason
from harness.observed import observed_sandbox, observed_store
from harness.ports import SandboxResult
from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.testing import FakeRun
from harness_server import monitoring, tracing
from harness_server.tracing import Tracing


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    traced = Tracing(exporter)
    yield traced
    traced.close()


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    await shop.store.open()
    yield shop
    await shop.store.close()


@pytest.fixture
async def scheduler(shop: Shop, traced: Tracing) -> AsyncIterator[TaskScheduler]:
    scheduler = TaskScheduler(
        store=observed_store(shop.store, traced),
        sandbox=observed_sandbox(shop.sandbox, traced),
        clock=shop.clock,
        settings=shop.settings,
    )
    await scheduler.start()
    yield scheduler
    await scheduler.stop(drain_seconds=0)


def spans(traced: Tracing, exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """What was sent so far, by name."""
    traced._provider.force_flush()
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_an_attempt_is_one_trace_of_its_parts(
    shop: Shop, scheduler: TaskScheduler, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    agent = await shop.agent()
    task = await scheduler.trigger_now(agent.id)
    await shop.until_status(task, COMPLETED)

    found = spans(traced, exporter)

    assert found.keys() == {"attempt", "queue", "container start", "agent", "save"}
    root = found["attempt"]
    assert root.parent is None
    assert root.context is not None
    for name in found.keys() - {"attempt"}:
        parent = found[name].parent
        assert parent is not None
        assert (parent.span_id, parent.trace_id) == (root.context.span_id, root.context.trace_id)
    assert dict(root.attributes or {}) == {
        "harness.task_id": 1,
        "harness.agent_id": 1,
        "harness.trigger": "manual",
        "harness.attempt": 1,
        "harness.fence": 1,
        "harness.reason": "completed",
        "harness.status": "completed",
    }
    start = found["container start"]
    assert start.start_time is not None
    assert start.end_time is not None
    assert (start.end_time - start.start_time) / 1e9 == pytest.approx(0.125, abs=1e-6)
    assert root.resource.attributes["service.name"] == "agent-harness"


async def test_each_attempt_is_a_trace_of_its_own_and_a_failed_one_an_error(
    shop: Shop, scheduler: TaskScheduler, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    agent = await shop.agent(retry={"max_attempts": 1, "delay_seconds": 0.1})
    shop.sandbox.behave = lambda _job: FakeRun(result=SandboxResult(Reason.TIMEOUT, 137, "too long"))
    task = await scheduler.trigger_now(agent.id)
    await shop.until_status(task, FAILED)

    spans(traced, exporter)
    attempts = [span for span in exporter.get_finished_spans() if span.name == "attempt"]

    assert [span.attributes["harness.attempt"] for span in attempts if span.attributes] == [1, 2]
    assert len({span.context.trace_id for span in attempts if span.context}) == 2
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR] * 2
    assert [span.status.description for span in attempts] == ["timeout"] * 2


async def test_a_fire_is_a_trace_that_leads_to_its_task(
    shop: Shop, scheduler: TaskScheduler, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    await shop.agent(schedule={"type": "interval", "interval_seconds": 60})

    async def has_run() -> bool:
        await shop.advance(1)
        return COMPLETED in await shop.statuses()

    await eventually(has_run)

    fire = spans(traced, exporter)["fire"]
    task = await shop.store.get_task(1)
    assert task.fire_at is not None
    assert fire.parent is None
    assert fire.attributes is not None
    assert fire.attributes["harness.task_id"] == 1
    assert fire.attributes["harness.fire_at"] == task.fire_at.isoformat()


async def test_a_lost_attempt_ends_its_trace_once(
    shop: Shop, traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    store = observed_store(shop.store, traced)
    await shop.pending(await shop.agent())
    (task,) = await store.claim_tasks(Claim(owner="me", lease_seconds=LEASE_SECONDS), limit=1)
    await shop.store.hand_back_task(task.id, task.fence, "by somebody else")

    for _ in range(2):
        with pytest.raises(LeaseLostError):
            await store.extend_lease(task.id, task.fence, 5)

    spans(traced, exporter)
    (attempt,) = [span for span in exporter.get_finished_spans() if span.name == "attempt"]
    assert attempt.attributes is not None
    assert attempt.attributes["harness.reason"] == "lost"


async def test_attempts_that_never_end_are_kept_up_to_a_bound(
    shop: Shop, traced: Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_OPEN", 2)
    store = observed_store(shop.store, traced)
    await shop.agents_with_tasks(5)

    await store.claim_tasks(Claim(owner="me", lease_seconds=LEASE_SECONDS), limit=5)

    assert len(traced._attempts) == 2


def test_a_request_is_traced_under_its_endpoints_name(
    traced: Tracing, exporter: InMemorySpanExporter
) -> None:
    traced.request_ended("list_tasks", "GET", 503, 0.25, "abc")

    request = spans(traced, exporter)["list_tasks"]

    assert (request.kind, request.status.status_code) == (SpanKind.SERVER, StatusCode.ERROR)
    assert dict(request.attributes or {}) == {
        "http.request.method": "GET",
        "http.response.status_code": 503,
        "harness.request_id": "abc",
    }


def test_the_environments_service_name_wins(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    traced = Tracing(exporter)
    try:
        traced.request_ended("list_tasks", "GET", 200, 0.25, "abc")
        resource = spans(traced, exporter)["list_tasks"].resource
    finally:
        traced.close()

    assert resource.attributes["service.name"] == "ours"


async def test_without_an_endpoint_nothing_is_traced(tmp_path: Path) -> None:
    monitor = monitoring.make_monitor(Settings(data_dir=tmp_path))

    assert monitor.tracing is None
    assert monitor.telemetry is monitor.metrics
    await monitor.close()


async def test_a_missing_extra_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "harness_server.tracing", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")

    monitor = monitoring.make_monitor(Settings(data_dir=tmp_path))

    assert monitor.tracing is None
    assert "agent-harness[otel]" in caplog.text
