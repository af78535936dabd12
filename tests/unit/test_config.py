from __future__ import annotations

import math
import traceback
from typing import Any

import pytest

from harness.config import AgentConfig
from harness.errors import InvalidInputError


def test_an_empty_config_has_no_schedule_and_no_network() -> None:
    config = AgentConfig.parse({})

    assert config.schedule is None
    assert config.limits.max_memory_mb is None
    assert config.network == "none"


@pytest.mark.parametrize(
    "schedule",
    [
        {"type": "interval", "interval_minutes": 60, "enabled": True},
        {"type": "cron", "cron": "0 * * * *", "enabled": True},
    ],
)
def test_the_documented_schedules_are_accepted(schedule: dict[str, Any]) -> None:
    parsed = AgentConfig.parse({"schedule": schedule}).schedule

    assert parsed is not None
    assert parsed.enabled
    assert parsed.type == schedule["type"]


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"limts": {}}, r"limts: Extra inputs are not permitted"),
        ({"limits": {"max_memory": 64}}, r"limits\.max_memory: Extra inputs"),
        ({"limits": {"cpus": -1}}, r"limits\.cpus: .*\(got -1\)"),
        ({"limits": {"max_memory_mb": "64"}}, r"limits\.max_memory_mb: .*\(got '64'\)"),
        ({"limits": {"max_memory_mb": 1}}, "greater than or equal to 16"),
        ({"limits": {"timeout_seconds": 0}}, r"limits\.timeout_seconds"),
        ({"limits": {"timeout_seconds": math.nan}}, r"limits\.timeout_seconds: .*finite"),
        ({"limits": {"timeout_seconds": math.inf}}, r"limits\.timeout_seconds: .*finite"),
        ({"limits": {"max_processes": True}}, r"limits\.max_processes"),
        ({"limits": []}, r"limits: Input should be .*dictionary"),
        ({"schedule": {"type": "interval"}}, r"schedule: an interval schedule needs interval_minutes"),
        ({"schedule": {"type": "cron"}}, "a cron schedule needs cron"),
        ({"schedule": {"type": "interval", "interval_minutes": 0}}, r"schedule\.interval_minutes"),
        ({"schedule": {"type": "interval", "interval_minutes": 10**30}}, r"schedule\.interval_minutes"),
        ({"schedule": {"type": "daily"}}, r"schedule\.type: .*\(got 'daily'\)"),
        ({"retention": {"task_days": -1}}, r"retention\.task_days: .*\(got -1\)"),
        ({"retention": {"log_days": "30"}}, r"retention\.log_days: .*\(got '30'\)"),
        ({"retention": {"max_tasks": 1.5}}, r"retention\.max_tasks: .*\(got 1\.5\)"),
        ({"retention": {"max_artifacts": 10**30}}, r"retention\.max_artifacts: "),
        ({"retention": {"days": 3}}, r"retention\.days: Extra inputs"),
        ({"egress": ["example.com"]}, r"egress: 'example\.com' is no rule of egress: a place needs a port"),
        ({"egress": ["https://example.com:443"]}, r"egress: 'https.* with no scheme"),
        ({"egress": ["*:443"]}, r"egress: '\*:443' is no rule"),
        ({"egress": ["2130706433:80"]}, "four decimal numbers"),
        ({"egress": "example.com:443"}, r"egress: Input should be a valid list"),
        ({"egress": [f"{n}.example.com:443" for n in range(65)]}, r"egress: .*at most 64"),
        ({"egress": ["example.com:443"], "network": "open"}, "leave one of them out"),
        ({"env": {"A-B": "1"}}, "'A-B' is no name for an environment variable"),
        ({"env": {"1A": "1"}}, "'1A' is no name"),
        ({"env": {"A": "x\0"}}, "the value of A holds a NUL byte"),
        ({"secrets": {"A-B": "key"}}, "'A-B' is no name for an environment variable"),
        ({"secrets": {"A": "../key"}}, r"secrets\.A: .*pattern"),
        ({"secrets": ["A"]}, r"secrets: .*dictionary"),
        ({"secrets": {f"A{n}": "key" for n in range(101)}}, r"secrets: .*at most 100"),
        ({"secrets": {"A": "key"}, "env": {"A": "x"}}, "A is in env and in secrets"),
        (
            {"secrets": {"A": "key"}, "command": ["sh"]},
            "secrets can't be handed to an agent with its own command",
        ),
        ({"command": []}, "command: "),
        ({"command": ["sh", "a\0b"]}, "command: an argument holds a NUL byte"),
        ({"network": "host"}, r"network: .*\(got 'host'\)"),
        ({"image": ""}, "image: "),
    ],
)
def test_a_problem_is_named_by_its_path_and_value(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        AgentConfig.parse(config)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidInputError, match=r"limits\.cpus.*; network"):
        AgentConfig.parse({"limits": {"cpus": 0}, "network": "bridge"})


@pytest.mark.parametrize(
    "config",
    [
        {"env": {"TOKEN": 5551234}},
        {"env": {"BAD-NAME": "5551234"}},
        {"env": "TOKEN=5551234"},
        {"secrets": {"TOKEN": "it is 5551234"}},
        {"secrets": {"TOKEN": 5551234}},
        {"secrets": "5551234"},
        {"api_key": "5551234"},
        {"limits": {"password": "5551234"}},
        {"schedule": {"type": "cron", "cron": None, "enabled": True}, "env": {"TOKEN": "5551234"}},
    ],
)
def test_no_message_and_no_traceback_holds_a_secret(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        AgentConfig.parse(config)

    assert "5551234" not in "".join(traceback.format_exception(caught.value))


def test_a_long_value_is_quoted_in_part() -> None:
    with pytest.raises(InvalidInputError) as caught:
        AgentConfig.parse({"network": "x" * 100_000})

    assert len(caught.value.message) < 300


def test_an_integer_too_long_to_be_written_out_is_told_of_by_its_size() -> None:
    with pytest.raises(InvalidInputError, match=r"priority: .* \(got an integer of 16,610 bits\)"):
        AgentConfig.parse({"priority": 10**5000})


def test_with_egress_the_environment_says_where_the_proxy_is_and_the_users_own_words_come_first() -> None:
    config = AgentConfig.parse(
        {"egress": ["*.Example.com:443"], "env": {"A": "b", "HTTP_PROXY": "http://mine:1"}}
    )

    assert config.network == "none"
    assert config.environment == {
        "A": "b",
        "HTTP_PROXY": "http://mine:1",
        "HTTPS_PROXY": "http://127.0.0.1:3128",
        "https_proxy": "http://127.0.0.1:3128",
        "ALL_PROXY": "http://127.0.0.1:3128",
        "all_proxy": "http://127.0.0.1:3128",
        "NO_PROXY": "localhost,127.0.0.1,::1",
        "no_proxy": "localhost,127.0.0.1,::1",
    }
    assert AgentConfig.parse({"env": {"A": "b"}}).environment == {"A": "b"}
