"""What the benchmarks make of their measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from docker.types import LogConfig
from tests.benchmarks.bench import default_limits
from tests.benchmarks.contenders import lock_down
from tests.benchmarks.figures import Found, Goal, milliseconds, percentile
from tests.benchmarks.report import as_json, as_markdown

from harness.ports import sandbox_shape
from harness.sandbox.hostconfig import host_config
from harness.settings import Settings

LIMITS = default_limits(Settings())


def test_a_percentile_is_the_highest_value_where_there_are_too_few_to_tell() -> None:
    assert percentile([3, 1, 2], 0.99) == 3
    assert percentile(range(1000), 0.99) == 990


def test_a_ratio_is_of_medians() -> None:
    base = milliseconds("theirs", [0.1, 0.2, 0.9])

    row = milliseconds("ours", [0.05, 0.1, 5.0], beside=base)

    assert (row.p50, row.ratio, row.beside, row.count) == (100.0, 0.5, "theirs", 3)


@pytest.mark.parametrize(
    ("measured", "at_most", "verdict"),
    [
        (1.2, True, "met"),
        (1.21, True, "not met"),
        (1.2, False, "met"),
        (1.19, False, "not met"),
        (None, True, "not measured"),
    ],
)
def test_a_goal_is_met_at_its_bound_and_not_beyond(
    measured: float | None, at_most: bool, verdict: str
) -> None:
    assert Goal("it", measured, 1.2, at_most=at_most).verdict == verdict


def test_documents_say_each_goal_with_its_verdict_and_what_a_ratio_is_to() -> None:
    base = milliseconds("theirs", [0.2])
    found = Found("group", "A group", [base, milliseconds("ours", [0.1], beside=base)])
    found.goals.append(Goal("ours to theirs", 0.5, 0.4))
    found.notes.append("measured on a Sunday")

    text, data = as_markdown({"CPU": "one"}, [found]), json.loads(as_json({"CPU": "one"}, [found]))

    assert "| ours to theirs | ≤ 0.4 | 0.5 | not met |" in text
    assert "| theirs | ms | 200 |  |  | 1 | 1 |" in text
    assert "| ours | ms | 100 |  |  | 1 | 0.5 |" in text
    assert "- measured on a Sunday" in text
    assert data["groups"][0]["goals"][0]["verdict"] == "not met"
    assert data["groups"][0]["rows"][1]["beside"] == "theirs"


def test_docker_run_is_locked_down_by_everything_that_our_containers_are(tmp_path: Path) -> None:
    options = " ".join(lock_down(LIMITS, tmp_path))

    for option in (
        f"--memory {LIMITS.memory_bytes}b",
        f"--memory-swap {LIMITS.memory_bytes}b",
        "--cpus 1.0",
        "--pids-limit 64",
        "--network none",
        "--read-only",
        "--tmpfs /tmp:rw,noexec",
        "--cap-drop ALL",
        "--security-opt no-new-privileges:true",
        f"--security-opt seccomp={tmp_path}/seccomp.json",
        f"--log-driver {LogConfig.types.NONE}",
        "--ulimit nofile=1024:1024",
        "--user 10001:10001",
    ):
        assert option in options
    # None of them stands twice, and each of ours has one.
    assert len(host_config(sandbox_shape(LIMITS, image=None, network="none"))) == 15
