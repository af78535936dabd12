"""Commands in this process, on a SQLite store, without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli.app import invoke
from harness.cli.session import exit_code
from harness.errors import (
    AgentBusyError,
    AuthenticationError,
    EngineUnavailableError,
    HarnessError,
    LeaseLostError,
    PermissionDeniedError,
    RateLimitedError,
    ServerUnavailableError,
    SettingsError,
    StateRejectedError,
    StoreUnavailableError,
    TaskNotFoundError,
)
from harness.settings import get_settings

pytestmark = pytest.mark.usefixtures("cli_environment")


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run a command that must end with `code`; return its standard output, or after an error its standard error."""
        self._capsys.readouterr()
        ended = invoke(list(arguments))
        out, err = self._capsys.readouterr()
        assert ended == code, out + err
        assert "Traceback" not in err
        if code:
            assert out == ""
        return str(err if code else out)

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "a.py").write_text("print('hello')\n")
    return str(tmp_path / "a.py")


def test_version_is_printed(cli: Cli) -> None:
    assert cli("--version").startswith("harness ")


@pytest.mark.parametrize(
    "command",
    [
        [],
        *(["tokens", verb] for verb in ("create", "list", "revoke")),
        ["audit"],
        *(["agents", verb] for verb in ("create", "list", "show", "update", "delete")),
        *(["handoff", verb] for verb in ("show", "set", "clear", "history", "rollback")),
        *(["images", verb] for verb in ("build", "list")),
        *(["secrets", verb] for verb in ("set", "list", "delete", "keygen", "rotate")),
        *(["tasks", verb] for verb in ("list", "show", "cancel", "retry")),
        *(["schedule", verb] for verb in ("show", "next", "pause", "resume", "add", "remove", "backfill")),
        *([verb] for verb in ("run", "logs", "purge", "doctor", "serve", "runner", "socket-proxy")),
    ],
)
def test_every_command_has_a_help_page_with_examples_that_fits_80_columns(
    command: list[str], cli: Cli
) -> None:
    page = cli(*command, "--help")
    assert page.startswith("Usage: harness")
    assert max(map(len, page.splitlines())) <= 80
    assert "\x08" not in page
    assert "  Example" in page
    assert f"    {' '.join(['harness', *command])}" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["agents", "list", "--nonsense"], "No such option: --nonsense"),
        (["agents", "show"], "Missing argument 'AGENT'"),
        (["tasks", "show", "0"], "greater than or equal to 1"),
        (["tasks", "show", "x"], "valid integer"),
        (["tasks", "show", str(2**63)], "less than or equal"),
        (["tasks", "list", "--status", "gone"], "--status 'gone' is none of: pending, running"),
        (["tasks", "list", "--limit", "0"], "greater than or equal to 1"),
        (["logs", "1", "--stream", "x"], "--stream"),
        (["agents", "create", "a"], "an agent needs exactly one of code"),
        (["agents", "create", "a", "--entrypoint", "x.py"], "--entrypoint names a file of --folder"),
        (["agents", "create", "a", "--code", "x", "--folder", "y"], "give --code or --folder, not both"),
        (["agents", "create", "a", "--code", "-", "--config", "-"], "standard input can be read once"),
        (["agents", "update", "a", "--code", "-", "--config", "-"], "standard input can be read once"),
        (["agents", "update", "a"], "nothing to change"),
        (["agents", "delete", "a"], "give --yes"),
        (["handoff", "set", "a", "{"], "state is not valid JSON"),
        (["run", "a", "--context", "[]"], "context must be a JSON object"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments: list[str], message: str, cli: Cli) -> None:
    errors = cli(*arguments, code=2)
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_usage_errors_are_json_when_json_is_asked_for(cli: Cli) -> None:
    error = json.loads(cli("agents", "list", "--nonsense", "--json", code=2))["error"]
    assert error["code"] == "usage"
    assert "--nonsense" in error["message"]


def test_a_group_without_a_command_shows_its_help(cli: Cli) -> None:
    assert "Commands:" in cli("agents", code=2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (HarnessError, 1),
        (LeaseLostError, 1),
        (StateRejectedError, 2),
        (SettingsError, 2),
        (TaskNotFoundError, 3),
        (AgentBusyError, 3),
        (AuthenticationError, 2),
        (PermissionDeniedError, 2),
        (StoreUnavailableError, 4),
        (ServerUnavailableError, 4),
        (RateLimitedError, 4),
        (EngineUnavailableError, 4),
    ],
)
def test_every_kind_of_error_has_its_exit_code(kind: type[HarnessError], expected: int) -> None:
    assert exit_code(kind("x")) == expected


def test_an_agent_is_created_shown_listed_and_deleted(code: str, cli: Cli) -> None:
    assert cli("agents", "create", "greeter", "--code", code) == "agent 1 (greeter) created, version 1\n"
    assert cli.json("agents", "show", "1") == cli.json("agents", "show", "greeter")
    assert "print('hello')" in cli("agents", "show", "greeter")
    assert "greeter" in cli("agents", "list")
    page = cli.json("agents", "list")
    assert [page["total_count"], page["items"][0]["name"]] == [1, "greeter"]
    assert cli.json("agents", "delete", "greeter", "--yes") == {"id": 1, "name": "greeter", "deleted": True}
    assert "no agent" in cli("agents", "show", "1", code=3).lower()


def test_a_created_agent_is_printed_by_its_field_names(code: str, cli: Cli) -> None:
    agent = cli.json("agents", "create", "a", "--code", code, "--set", "limits.cpus=0.5", "--set", "env.N=1")
    assert agent["config"] == {"limits": {"cpus": 0.5}, "env": {"N": "1"}}
    assert set(agent) == {
        "id", "name", "code", "files", "entrypoint", "config", "version", "created_at", "updated_at",
    }  # fmt: skip


def test_secrets_are_hidden_from_the_page_and_from_errors(code: str, cli: Cli) -> None:
    cli("agents", "create", "a", "--code", code, "--set", "env.TOKEN=s3cret")
    page = cli("agents", "show", "a")
    assert "TOKEN" in page
    assert "s3cret" not in page
    assert "s3cret" in cli("agents", "show", "a", "--json")
    assert "s3cret" not in cli("agents", "update", "a", "--set", "env.TO KEN=s3cret", code=2)


def test_a_folder_without_entrypoint_runs_main_py(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "main.py").write_text("import util")
    (folder / "util.py").write_text("x = 1")
    agent = cli.json("agents", "create", "a", "--folder", str(folder))
    assert (agent["entrypoint"], sorted(agent["files"])) == ("main.py", ["main.py", "util.py"])
    assert cli.json("agents", "update", "a", "--entrypoint", "util.py")["entrypoint"] == "util.py"
    # A new version of the folder keeps the entrypoint that was chosen.
    assert cli.json("agents", "update", "a", "--folder", str(folder))["entrypoint"] == "util.py"
    assert "none of the files" in cli("agents", "update", "a", "--entrypoint", "no.py", code=2)


def test_update_keeps_what_is_not_given(code: str, tmp_path: Path, cli: Cli) -> None:
    before = cli.json("agents", "create", "a", "--code", code, "--set", "limits.cpus=0.5")
    after = cli.json("agents", "update", "a", "--name", "b", "--set", "limits.max_memory_mb=64")
    assert (after["code"], after["name"], after["version"]) == (before["code"], "b", 2)
    assert after["config"] == {"limits": {"cpus": 0.5, "max_memory_mb": 64}}
    (tmp_path / "c.yaml").write_text("network: open\n")
    assert cli.json("agents", "update", "b", "--config", str(tmp_path / "c.yaml"))["config"] == {
        "network": "open"
    }


def test_update_of_an_older_version_is_a_conflict(code: str, cli: Cli) -> None:
    cli("agents", "create", "a", "--code", code)
    cli("agents", "update", "a", "--name", "b", "--if-version", "1")
    assert "version" in cli("agents", "update", "b", "--name", "c", "--if-version", "1", code=3)


def test_the_next_fires_of_a_cron_schedule_are_shown(code: str, cli: Cli) -> None:
    cron = ("--set", "schedule.type=cron", "--set", "schedule.cron=0 3 * * *")
    created = cli("agents", "create", "a", "--code", code, *cron).splitlines()
    assert created[1].startswith("next fires: ")
    assert created[1].count(" 03:00:00Z") == 3
    assert "next fires: " in cli("agents", "show", "a")
    assert "next fires" not in cli("agents", "update", "a", "--set", "schedule.enabled=false")


def test_a_config_problem_names_the_path(code: str, cli: Cli) -> None:
    errors = cli("agents", "create", "a", "--code", code, "--set", "limits.cpu=1", code=2)
    assert errors.startswith("error: config.limits.cpu: ")


def test_a_taken_name_is_a_conflict(code: str, cli: Cli) -> None:
    cli("agents", "create", "a", "--code", code)
    assert (
        json.loads(cli("agents", "create", "a", "--code", code, "--json", code=3))["error"]["code"]
        == "agent_name_taken"
    )


@pytest.mark.parametrize("reference", ["7", "no-such", "9" * 30, "²"])
def test_an_unknown_agent_is_not_found(reference: str, cli: Cli) -> None:
    error = json.loads(cli("agents", "show", reference, "--json", code=3))["error"]
    assert error["code"] == "agent_not_found"


def test_an_agent_name_that_is_no_text_is_an_input_error(cli: Cli) -> None:
    assert "not valid UTF-8" in cli("agents", "show", "a\udcff", code=2)


def test_handoff_state_is_set_shown_cleared_and_rolled_back(code: str, tmp_path: Path, cli: Cli) -> None:
    cli("agents", "create", "a", "--code", code)
    assert "first run" in cli("handoff", "show", "a", code=3)
    (tmp_path / "s.json").write_text('{"n": 1, "å": "日本"}')
    assert "version 1" in cli("handoff", "set", "a", f"@{tmp_path / 's.json'}", "--summary", "by hand")
    assert json.loads(cli("handoff", "show", "a", "--state")) == {"n": 1, "å": "日本"}
    assert "by hand" in cli("handoff", "show", "a")
    assert cli.json("handoff", "clear", "a") == {"agent_id": 1, "cleared": True}
    cli("handoff", "show", "a", "--state", code=3)
    assert [item["cleared"] for item in cli.json("handoff", "history", "a")["items"]] == [True, False]
    assert cli.json("handoff", "rollback", "a", "1")["state"] == {"n": 1, "å": "日本"}
    assert "by hand" in cli("handoff", "history", "a")
    cli("handoff", "rollback", "a", "9", code=3)


def test_an_agents_own_bound_on_its_state_holds(code: str, cli: Cli) -> None:
    cli("agents", "create", "a", "--code", code, "--set", "limits.max_state_bytes=256")
    error = json.loads(cli("handoff", "set", "a", json.dumps({"x": "y" * 300}), "--json", code=2))["error"]
    assert error["code"] == "state_rejected"


def test_lists_say_where_the_rest_is(code: str, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        cli("agents", "create", name, "--code", code)
    invoke(["agents", "list", "--limit", "2"])
    assert "2 of 3 shown; go on with --offset 2" in capsys.readouterr().err
    assert cli("agents", "list", "--limit", "2", "--offset", "2").count("\n") == 2


def test_an_empty_list_is_still_a_document(cli: Cli) -> None:
    assert cli.json("tasks", "list") == {"items": [], "total_count": 0, "limit": 20, "offset": 0}


def test_an_absent_engine_is_told_apart_from_a_failed_run(code: str, cli: Cli) -> None:
    cli("agents", "create", "a", "--code", code)
    for command in (["run", "a"], ["images", "build"], ["images", "list"]):
        error = json.loads(cli(*command, "--json", code=4))["error"]
        assert error["code"] == "engine_unavailable"
    assert cli.json("tasks", "list")["total_count"] == 0


def test_a_bad_setting_is_an_error_of_its_own(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CPUS", "many")
    get_settings.cache_clear()
    assert "HARNESS_CPUS" in cli("agents", "list", code=2)


def test_an_unusable_docker_host_does_not_keep_the_store_from_being_read(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://somewhere")
    get_settings.cache_clear()
    cli("agents", "list")


def test_doctor_names_the_problem_and_leaves_out_what_depends_on_it(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    found = {check["name"]: check for check in report["checks"]}
    assert not report["ok"]
    assert {name: check["status"] for name, check in found.items()} == {
        "settings": "ok",
        "data directory": "ok",
        "store": "ok",
        "engine": "problem",
        "versions": "skipped",
        "runtime": "skipped",
        "limits": "skipped",
        "cgroups": "skipped",
        "security": "skipped",
        "image": "skipped",
        "sandbox run": "skipped",
        "leftovers": "skipped",
    }
    assert "DOCKER_HOST" in found["engine"]["remedy"]
    assert found["limits"]["detail"] == "needs the engine"


def test_doctor_without_valid_settings_checks_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARNESS_CPUS", "many")
    get_settings.cache_clear()
    assert invoke(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PROBLEM settings")
    assert "HARNESS_CPUS" in lines[0]
    assert lines[1].strip().startswith("remedy: ")
    assert all(line.startswith("SKIPPED") for line in lines[2:])
