"""A talkative run keeps the pace of the engine's own logs, and the server its size: the benchmark, in small."""

from __future__ import annotations

import pytest
from tests.benchmarks.logs import GOAL, GROWTH_GOAL_MB, measure


@pytest.mark.timeout(180)
async def test_a_log_comes_at_half_the_pace_of_docker_logs_at_least_and_takes_no_memory(
    sandbox_image: str,
) -> None:
    figures = await measure(200_000)

    assert figures.ratio >= GOAL, figures
    assert figures.peak_memory_mb - figures.early_memory_mb < GROWTH_GOAL_MB, figures
    # How long others wait is measured by the benchmark, on a machine that does nothing else.
    assert figures.requests > 5
