from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

import harness.errors
from harness.errors import HarnessError
from harness.models import (
    Agent,
    AgentDraft,
    Attempt,
    Claim,
    ExecutionResult,
    HandoffArtifact,
    Reason,
    ResourceLimits,
    Task,
    TaskStatus,
    log_attempt,
    log_seq,
    render_instant,
)

AT = datetime(2026, 1, 11, 10, 0, tzinfo=UTC)


def test_instants_print_as_rfc_3339_in_utc() -> None:
    paris = timezone(timedelta(hours=1))

    assert render_instant(datetime(2026, 1, 11, 11, 0, tzinfo=paris)) == "2026-01-11T10:00:00Z"
    assert render_instant(AT + timedelta(milliseconds=250)) == "2026-01-11T10:00:00.250000Z"


def test_a_task_prints_the_fields_of_the_api_description() -> None:
    task = Task(
        id=123,
        agent_id=1,
        status=TaskStatus.COMPLETED,
        scheduled_at=AT,
        created_at=AT,
        result="Success output",
    )

    printed = json.loads(task.model_dump_json())

    wanted = {
        "id": 123,
        "agent_id": 1,
        "status": "completed",
        "scheduled_at": "2026-01-11T10:00:00Z",
        "started_at": None,
        "completed_at": None,
        "result": "Success output",
        "error": None,
        "retry_count": 0,
        "created_at": "2026-01-11T10:00:00Z",
    }
    assert {name: printed[name] for name in wanted} == wanted


def test_an_instant_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="an instant needs a time zone"):
        Attempt(number=1, started_at=datetime(2026, 1, 11))  # noqa: DTZ001 - the point of the test


def test_instants_are_kept_in_utc() -> None:
    paris = timezone(timedelta(hours=1))

    started_at = Attempt(number=1, started_at=datetime(2026, 1, 11, 11, tzinfo=paris)).started_at

    assert started_at == AT
    assert started_at.utcoffset() == timedelta(0)


def test_the_documented_defaults_hold() -> None:
    limits = ResourceLimits()
    assert (limits.max_memory_mb, limits.max_cpu_percent, limits.max_processes) == (256, 80.0, 5)
    assert set(HandoffArtifact.model_fields) >= {"agent_id", "state", "summary", "created_at", "run_count"}
    assert set(ExecutionResult.model_fields) >= {
        "success",
        "stdout",
        "stderr",
        "exit_code",
        "duration_seconds",
        "error_message",
    }


@pytest.mark.parametrize("limits", [{"max_memory_mb": 0}, {"max_cpu_percent": -1}, {"max_processes": 0}])
def test_limits_that_limit_nothing_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ResourceLimits(**limits)


def test_models_are_frozen_and_closed() -> None:
    claim = Claim(owner="a", lease_seconds=30)
    with pytest.raises(ValidationError, match="frozen"):
        claim.owner = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Claim.model_validate({"owner": "a", "lease_seconds": 30, "fence": 1})


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_leads_to_a_final_status(reason: Reason) -> None:
    assert reason.status.is_final
    assert (reason.status is TaskStatus.COMPLETED) == (reason is Reason.COMPLETED)
    assert (reason.status is TaskStatus.CANCELLED) == (reason is Reason.CANCELLED)


def test_pending_and_running_are_not_final() -> None:
    assert {status for status in TaskStatus if not status.is_final} == {
        TaskStatus.PENDING,
        TaskStatus.RUNNING,
    }


@pytest.mark.parametrize(
    "draft",
    [
        {"code": "print(1)"},
        {"files": {"main.py": "", "lib/a.py": "", "lib/b/c.txt": "é"}, "entrypoint": "main.py"},
        {"config": {"command": ["sh", "-c", "cat"], "image": "busybox"}},
    ],
)
def test_an_agent_has_one_program(draft: dict[str, Any]) -> None:
    assert AgentDraft(name="collector", **draft).name == "collector"


@pytest.mark.parametrize(
    ("draft", "complaint"),
    [
        ({}, "exactly one of code, files with an entrypoint, or config.command"),
        ({"code": "1", "config": {"command": ["sh"]}}, "exactly one"),
        ({"code": "1", "files": {"a.py": ""}, "entrypoint": "a.py"}, "exactly one"),
        ({"files": {"a.py": ""}}, "files need an entrypoint"),
        ({"files": {"a.py": ""}, "entrypoint": "b.py"}, "'b.py' is none of the files"),
        ({"code": "1", "entrypoint": "b.py"}, "'b.py' is none of the files"),
        ({"code": "\ud800"}, "code holds a lone surrogate at position 0"),
        ({"code": "x" * (4 * 1024 * 1024 + 1)}, "4,194,305 bytes, more than the limit of 4,194,304"),
        ({"code": "1", "config": {"limits": {"cpus": 0}}}, "limits.cpus"),
        ({"code": "1", "config": {"nonsense": 1}}, "nonsense"),
        ({"code": "1", "version": 3}, "version"),
    ],
)
def test_an_agent_that_could_not_run_is_refused(draft: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        AgentDraft(name="collector", **draft)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "/etc/passwd",
        "../a.py",
        "a/../b.py",
        "./a.py",
        "a//b.py",
        "a/",
        "a\nb.py",
        "a\0.py",
        "\ud800.py",
        "x" * 256,
        "é" * 128,
        "/".join(["x"] * 201),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="file path"):
        AgentDraft(name="collector", files={path: "", "main.py": ""}, entrypoint="main.py")


def test_a_file_cannot_be_a_folder_too() -> None:
    with pytest.raises(ValidationError, match=r"'a' is a file, so there can be no 'a/b/c\.py' in it"):
        AgentDraft(name="collector", files={"a/b/c.py": "", "a": ""}, entrypoint="a")


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\x1b[31m", "42", "x" * 101])
def test_a_name_that_people_could_misread_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        AgentDraft(name=name, code="1")


def test_pydantics_own_message_holds_no_secret() -> None:
    with pytest.raises(ValidationError) as caught:
        AgentDraft(name="collector", config={"env": {"TOKEN": "5551234"}})

    assert "5551234" not in str(caught.value)


def test_an_agents_options_are_the_typed_view_of_its_config() -> None:
    agent = Agent(id=1, name="a", code="1", config={"limits": {"cpus": 0.5}}, created_at=AT, updated_at=AT)

    assert agent.options.limits.cpus == 0.5


def test_log_numbers_order_chunks_across_attempts() -> None:
    numbers = [log_seq(attempt, index) for attempt in (1, 2, 3) for index in (0, 1, 2**32 - 1)]

    assert numbers == sorted(numbers)
    assert [log_attempt(seq) for seq in numbers] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert log_seq(2**21 - 1, 2**32 - 1) < 2**53


def test_every_error_has_a_code_and_a_docstring_of_its_own() -> None:
    classes = [
        value
        for value in vars(harness.errors).values()
        if isinstance(value, type) and issubclass(value, HarnessError)
    ]

    assert len({cls.code for cls in classes}) == len(classes)
    assert all(cls.__doc__ for cls in classes)
    assert all(cls.__name__.endswith("Error") for cls in classes)
    assert all(cls("sentence").message == str(cls("sentence")) == "sentence" for cls in classes)
