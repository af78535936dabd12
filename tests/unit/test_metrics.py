"""The metrics, what `docs/metrics.md` says of them, and what the example alerts and the dashboard ask of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from harness.errors import ImageMissingError, LeaseLostError, NotFoundError, StoreUnavailableError
from harness.models import Attempt, QueueStats, Reason, SkipReason, Task, TaskStatus
from harness.ports import SandboxLabels
from harness_server.metrics import Metrics
from harness_server.scraping import Scraper

DOCS = Path(__file__).parent.parent.parent / "docs"
LABELS = SandboxLabels("store", 1, 1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)

#: Of histograms, and what Prometheus adds by itself.
_SUFFIXES = ("_bucket", "_count", "_sum")
_ADDED_LABELS = {"job", "instance", "le"}


async def stats() -> QueueStats:
    return QueueStats(at=NOW)


async def answer() -> None:
    """Be there."""


def a_task(**fields: Any) -> Task:
    values: dict[str, Any] = {
        "id": 1, "agent_id": 1, "status": TaskStatus.PENDING, "scheduled_at": NOW, "created_at": NOW
    }  # fmt: skip
    return Task(**(values | fields))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def families() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric, each of which was told something, by the name that queries use."""
    metrics = Metrics()
    scraper = Scraper(metrics, {"engine": answer, "scheduler": answer}, stats, lambda: 1)
    metrics.sandbox_failed(LABELS, ImageMissingError("gone"))
    metrics.request_ended("list_tasks", "200", 0.1)
    metrics.store_called("get_task", 0.1, None)
    ran = Attempt(number=1, started_at=NOW, ended_at=NOW, reason=Reason.COMPLETED)
    metrics.attempt_ended(a_task(attempts=(ran,)), ran, 0.1)
    text, _ = await scraper.scrape("")
    return {name_of(family): (family.type, labels_of(family)) for family in parse(text)}


def parse(text: bytes) -> Iterator[Metric]:
    yield from text_string_to_metric_families(text.decode())


def name_of(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


def documented() -> dict[str, tuple[str, set[str]]]:
    """Metrics of the table, with type and labels."""
    found = {}
    for line in (DOCS / "metrics.md").read_text().splitlines():
        if match := re.fullmatch(r"\| (`(?:harness|process)_.*?) \| (\w+) \| (.*?) ?\| .*", line + " "):
            names, kind, labels = match.groups()
            for name in re.findall(r"`(\w+)`", names):
                found[name] = (kind, set(re.findall(r"`(\w+)`", labels)))
    return found


def test_the_documentation_has_every_metric_with_its_type_and_labels(
    families: dict[str, tuple[str, set[str]]],
) -> None:
    assert documented() == families
    # The values that people will look for.
    text = (DOCS / "metrics.md").read_text()
    assert [reason for reason in SkipReason if f"`{reason}`" not in text] == []


def alerts() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((DOCS / "monitoring" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
            assert rule["annotations"].keys() == {"summary", "description"}
            assert rule["labels"]["severity"] in ("warning", "critical")
            yield rule["alert"], rule["expr"]


def panels() -> Iterator[tuple[str, str]]:
    for panel in json.loads((DOCS / "monitoring" / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


QUERIES = [*alerts(), *panels()]


def test_alerts_and_panels_have_names_of_their_own() -> None:
    for source in (alerts, panels):
        names = [name for name, _ in dict.fromkeys(source())]
        assert len(names) >= 15
    assert len({name for name, _ in alerts()}) == len(list(alerts()))


@pytest.mark.parametrize(
    ("name", "query"), QUERIES, ids=[f"{name}-{n}" for n, (name, _) in enumerate(QUERIES)]
)
def test_a_query_is_one_that_prometheus_reads_and_that_has_an_answer(
    name: str, query: str, families: dict[str, tuple[str, set[str]]]
) -> None:
    promql_parser.parse(query)
    selectors = re.findall(r"\b((?:harness|process)_\w+|up)(\{[^}]*\})?", query)

    assert selectors
    known = families | {"up": ("gauge", set())}
    for metric, matchers in selectors:
        kind, labels = known[base_name(metric)]
        assert kind == "histogram" or not metric.endswith(_SUFFIXES)
        selector = promql_parser.parse(metric + matchers)
        assert isinstance(selector, promql_parser.VectorSelector)
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels | _ADDED_LABELS
            assert is_known(matcher.name, matcher.value), matcher
    by = {label for labels in re.findall(r"\bby \(([^)]*)\)", query) for label in re.split(r", *", labels)}
    assert by <= _ADDED_LABELS.union(*(known[base_name(metric)][1] for metric, _ in selectors))


def base_name(metric: str) -> str:
    return re.sub(r"(?<=_seconds)_(bucket|count|sum)$", "", metric)


def is_known(label: str, wanted: str) -> bool:
    known = {
        "reason": set(Reason),
        "outcome": {"task", *SkipReason},
        "state": {"ready", "waiting", "delayed"},
        "job": {"agent-harness"},
        "status": {"5.."},
    }
    return set(wanted.split("|")) <= {str(value) for value in known[label]}


def test_what_alerts_look_at_begins_at_zero(metrics: Metrics) -> None:
    for reason in Reason:
        assert value(metrics, "harness_tasks_total", reason=reason) == 0
    for outcome in ("task", *SkipReason):
        assert value(metrics, "harness_fires_total", outcome=outcome) == 0
    assert value(metrics, "harness_store_errors_total", method="claim_tasks") == 0


def test_a_skip_counts_for_all_fires_it_stands_for(metrics: Metrics) -> None:
    metrics.fired(a_task(status=TaskStatus.SKIPPED, skip_reason=SkipReason.MISSED, skipped_count=12))
    metrics.fired(a_task(status=TaskStatus.SKIPPED, skip_reason=SkipReason.OVERLAP))
    metrics.fired(a_task(due_at=NOW - timedelta(seconds=2)))

    assert value(metrics, "harness_fires_total", outcome="missed") == 12
    assert value(metrics, "harness_fires_total", outcome="overlap") == 1
    assert value(metrics, "harness_fires_total", outcome="task") == 1
    assert value(metrics, "harness_fire_lateness_seconds_sum") == 2


def test_the_wait_for_a_claim_begins_when_the_attempt_was_due(metrics: Metrics) -> None:
    waited = Attempt(number=2, due_at=NOW, started_at=NOW + timedelta(seconds=0.5))

    metrics.claimed(a_task(scheduled_at=NOW - timedelta(hours=1), attempts=(waited,)))

    assert value(metrics, "harness_dispatch_latency_seconds_sum") == 0.5


def test_only_the_stores_own_failures_are_errors(metrics: Metrics) -> None:
    metrics.store_called("get_task", 0.1, NotFoundError("no"))
    metrics.store_called("get_task", 0.1, StoreUnavailableError("gone"))

    assert value(metrics, "harness_store_errors_total", method="get_task") == 1
    assert value(metrics, "harness_store_call_seconds_count", method="get_task") == 2


def test_containers_are_counted_up_and_down(metrics: Metrics) -> None:
    metrics.sandbox_started(LABELS, "warm", 0.1)
    metrics.sandbox_started(LABELS, "cold", 0.1)
    metrics.sandbox_ended(LABELS)
    metrics.sandbox_failed(LABELS, ImageMissingError("no image"))
    metrics.sandbox_failed(LABELS, LeaseLostError("not ours any more"))
    metrics.sandbox_failed(LABELS, RuntimeError("a bug"))

    assert value(metrics, "harness_running_containers") == 1
    assert value(metrics, "harness_sandbox_start_seconds_count", origin="warm") == 1
    assert value(metrics, "harness_sandbox_failures_total", code="image_missing") == 1
    assert value(metrics, "harness_sandbox_failures_total", code="other") == 1
    assert value(metrics, "harness_sandbox_failures_total", code="lease_lost") is None
