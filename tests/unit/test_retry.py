from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from harness.config import RetryConfig
from harness.models import Reason, Task, TaskStatus
from harness.retry import retry_delay, retry_delay_by_hand

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def task(retry_count: int, max_retries: int = 3) -> Task:
    return Task(
        id=1,
        agent_id=1,
        status=TaskStatus.RUNNING,
        scheduled_at=NOON,
        created_at=NOON,
        retry_count=retry_count,
        max_retries=max_retries,
    )


def seconds(config: RetryConfig, retry_count: int, **changes: int) -> float | None:
    delay = retry_delay(config, task(retry_count, **changes), Reason.EXIT_NONZERO)
    return None if delay is None else delay / timedelta(seconds=1)


def test_each_wait_is_twice_as_long_as_the_one_before_until_retries_are_used_up() -> None:
    assert [seconds(RetryConfig(), count) for count in range(4)] == [2, 4, 8, None]


def test_no_wait_is_longer_than_the_longest() -> None:
    config = RetryConfig(delay_seconds=1.5, max_delay_seconds=5)

    assert [seconds(config, count, max_retries=100) for count in (0, 1, 2, 99)] == [1.5, 3, 5, 5]


@pytest.mark.parametrize("reason", Reason)
def test_only_the_ends_that_are_listed_are_retried(reason: Reason) -> None:
    never = {Reason.COMPLETED, Reason.CANCELLED, Reason.RESULT_LOST, Reason.STATE_REJECTED}

    assert (retry_delay(RetryConfig(), task(0), reason) is None) == (reason in never)
    assert retry_delay(RetryConfig(on=()), task(0), reason) is None


def test_a_retry_by_hand_waits_the_same_whatever_the_reason_and_the_number() -> None:
    assert retry_delay_by_hand(RetryConfig(on=()), task(3)) == timedelta(seconds=16)
