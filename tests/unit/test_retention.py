"""What is to go by a policy, without a store."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import MAX_DAYS, MAX_KEPT, RetentionConfig
from harness.errors import InvalidInputError
from harness.retention import MIN_AGE, Expiry, Purged, Retention
from harness.settings import Settings

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)

days = st.floats(0, MAX_DAYS)
counts = st.integers(0, MAX_KEPT)
policies = st.builds(Retention, days, counts, days, days, counts)
configs = st.builds(
    RetentionConfig,
    task_days=st.none() | days,
    max_tasks=st.none() | counts,
    log_days=st.none() | days,
    artifact_days=st.none() | days,
    max_artifacts=st.none() | counts,
)


def test_by_default_everything_has_a_bound() -> None:
    assert Retention.by_settings(Settings()) == Retention(
        task_days=90, max_tasks=10_000, log_days=30, artifact_days=0, max_artifacts=100
    )


def test_a_policy_becomes_instants_and_numbers() -> None:
    policy = Retention(task_days=90, max_tasks=10, log_days=0.5, artifact_days=7, max_artifacts=3)

    assert policy.expiry(NOW) == Expiry(
        before=NOW - MIN_AGE,
        tasks_before=NOW - timedelta(days=90),
        max_tasks=10,
        logs_before=NOW - timedelta(hours=12),
        artifacts_before=NOW - timedelta(days=7),
        max_artifacts=3,
    )


def test_zero_keeps_everything() -> None:
    assert Retention().expiry(NOW) == Expiry(before=NOW - MIN_AGE)


def test_an_agent_overrides_what_it_names_also_by_zero() -> None:
    policy = Retention(task_days=90, max_tasks=10, log_days=30, artifact_days=7, max_artifacts=3)

    changed = policy.overridden(RetentionConfig(task_days=1, max_tasks=0))

    assert changed == Retention(task_days=1, max_tasks=0, log_days=30, artifact_days=7, max_artifacts=3)
    assert policy.overridden(RetentionConfig()) == policy


@given(policies, configs)
def test_nothing_of_the_last_hour_ever_goes(policy: Retention, config: RetentionConfig) -> None:
    expiry = policy.overridden(config).expiry(NOW)

    assert expiry.before == NOW - MIN_AGE
    for instant in (expiry.tasks_before, expiry.logs_before, expiry.artifacts_before):
        assert instant is None or instant <= expiry.before
    # 0 would mean: keep none, not even the newest.
    assert expiry.max_tasks != 0
    assert expiry.max_artifacts != 0


@given(policies, configs)
def test_each_word_of_an_agent_counts_for_itself(policy: Retention, config: RetentionConfig) -> None:
    changed = policy.overridden(config)

    for field in fields(Retention):
        own = getattr(config, field.name)
        assert getattr(changed, field.name) == (getattr(policy, field.name) if own is None else own)


def test_an_agents_part_is_read_whatever_the_rest_of_its_config_says() -> None:
    config = {"retention": {"task_days": 2}, "schedule": {"type": "of an older release"}}

    assert RetentionConfig.of(config) == RetentionConfig(task_days=2)
    assert RetentionConfig.of({}) == RetentionConfig()
    with pytest.raises(InvalidInputError, match=r"config\.retention is not valid: task_days: .*\(got -2\)"):
        RetentionConfig.of({"retention": {"task_days": -2}})


def test_what_several_steps_deleted_is_their_sum() -> None:
    total = Purged(tasks=1, logs=2, artifacts=3, more=True) + Purged(tasks=10, logs=20, artifacts=30)

    assert total == Purged(tasks=11, logs=22, artifacts=33, more=False)
    assert Purged(more=True).is_empty
    assert not total.is_empty
