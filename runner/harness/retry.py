"""When a failed attempt is followed by another, and how long after. Pure."""

from __future__ import annotations

from datetime import timedelta

from harness.config import RetryConfig
from harness.models import Reason, Task


def retry_delay(config: RetryConfig, task: Task, reason: Reason) -> timedelta | None:
    """Return how long to wait before the next attempt; None: there is none.

    The first wait is `delay_seconds`, each further one twice as long: 2 s, 4 s, 8 s by default.

    Args:
        config: The agent's policy.
        task: With the `retry_count` from before this retry.
        reason: What ended the attempt.
    """
    if reason.value not in config.on or task.retry_count >= task.max_retries:
        return None
    return _backoff(config, task.retry_count)


def retry_delay_by_hand(config: RetryConfig, task: Task) -> timedelta:
    """Return how long to wait before a retry that a person asked for: the same series, whatever the reason."""
    return _backoff(config, task.retry_count)


def _backoff(config: RetryConfig, retry_count: int) -> timedelta:
    # An exponent past 30 is over any maximum; the number must not grow without bound.
    return timedelta(seconds=min(config.delay_seconds * 2 ** min(retry_count, 30), config.max_delay_seconds))
