"""Schedules, cancellations and retries from the command line, on a SQLite store, with nothing else running."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from harness.cli import app
from harness.cli.app import invoke

HOURLY = ("--set", "schedule.type=interval", "--set", "schedule.interval_minutes=60")


pytestmark = pytest.mark.usefixtures("cli_environment")


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys = capsys
        self.code = folder / "a.py"
        self.code.write_text("print('hello')\n")

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run a command that must end with `code`; return its output, or after an error its standard error."""
        self._capsys.readouterr()
        ended = invoke(list(arguments))
        out, err = self._capsys.readouterr()
        assert ended == code, out + err
        return str(err if code else out)

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def create(self, *arguments: str, name: str = "agent") -> str:
        return self("agents", "create", name, "--code", str(self.code), *arguments)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    return Cli(capsys, tmp_path)


def test_an_agent_with_a_schedule_is_created_with_its_next_fires(cli: Cli) -> None:
    said = cli.create(*HOURLY).splitlines()

    assert said[0] == "agent 1 (agent) created, version 1"
    announced = said[1].removeprefix("next fires: ").split(", ")
    assert len(announced) == 3
    # What was announced holds, although nothing runs yet.
    assert cli("schedule", "next", "agent", "-n", "3").splitlines() == announced
    assert cli("agents", "update", "agent", "--set", "priority=1").splitlines()[1] == said[1]


def test_an_agent_without_a_schedule_says_nothing_about_fires(cli: Cli) -> None:
    assert cli.create() == "agent 1 (agent) created, version 1\n"
    assert "no schedule" in cli("schedule", "show", "agent")
    assert "has no schedule" in cli("schedule", "pause", "agent", code=2)


def test_a_schedule_is_shown_paused_resumed_removed_and_added(cli: Cli) -> None:
    cli.create(*HOURLY)
    assert cli.json("schedule", "show", "agent")["status"] == "in force"
    assert len(cli.json("schedule", "show", "1")["next_fires"]) == 3

    assert cli("schedule", "pause", "agent") == "the schedule of agent 1 (agent) is paused\n"
    shown = cli.json("schedule", "show", "agent")
    assert (shown["status"], shown["next_fires"]) == ("paused (harness schedule resume)", [])
    assert cli.json("schedule", "next", "agent") == {"next_fires": []}
    assert cli("schedule", "resume", "agent").startswith(
        "the schedule of agent 1 (agent) is resumed; next fire 20"
    )

    assert cli("schedule", "remove", "agent") == "the schedule of agent 1 (agent) is out of force\n"
    assert cli.json("schedule", "show", "agent")["status"] == "removed (harness schedule add)"
    assert cli.json("schedule", "add", "agent")["removed"] is False
    cli("agents", "update", "agent", "--set", "schedule.enabled=false")
    assert "off (enabled is false" in cli("schedule", "show", "agent")


def test_a_cron_schedule_is_made_up_for(cli: Cli) -> None:
    cli.create("--set", "schedule.type=cron", "--set", "schedule.cron=0 * * * *")
    days = ("--from", "2026-01-01T00:00Z", "--to", "2026-01-01T03:30+01:00")

    assert cli("schedule", "backfill", "agent", *days) == "3 tasks made: 1 to 3\n"
    assert cli.json("schedule", "backfill", "agent", *days) == {"task_ids": []}
    fires = [task["fire_at"] for task in cli.json("tasks", "list")["items"]]
    assert fires == [f"2026-01-01T0{hour}:00:00Z" for hour in (2, 1, 0)]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--from", "yesterday"), "is no instant"),
        (("--from", "2026-01-01T00:00"), "says no offset"),
        (("--from", "1066-01-01T00:00Z"), "between 1970 and 3000"),
        (("--from", "2026-01-02T00:00Z", "--to", "2026-01-01T00:00Z"), "before it begins"),
        (("--from", "2026-01-01T00:00Z", "--to", "2999-01-01T00:00Z"), "in the future"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(cli: Cli, options: tuple[str, ...], complaint: str) -> None:
    cli.create(*HOURLY)
    assert complaint in cli("schedule", "backfill", "agent", *options, code=2)


def test_a_detached_run_is_a_pending_task_that_can_be_cancelled(cli: Cli) -> None:
    cli.create()
    task = cli.json("run", "agent", "--detach", "--context", '{"a": 1}')
    assert (task["id"], task["status"], task["context"]) == (1, "pending", {"a": 1})
    assert "has the active task 1" in cli("run", "agent", "--detach", code=3)

    assert cli("tasks", "cancel", "1") == "task 1 is cancelled\n"
    assert cli.json("tasks", "cancel", "1")["status"] == "cancelled"
    assert "only failed tasks can be retried" in cli("tasks", "retry", "1", code=3)
    assert cli("run", "agent", "--detach") == "task 2 is pending; follow it with: harness logs 2 --follow\n"
    assert "no task 99" in cli("tasks", "cancel", "99", code=3)


def test_a_server_that_would_listen_to_others_is_refused(cli: Cli) -> None:
    assert "make one first: harness tokens create" in cli("serve", "--host", "0.0.0.0", code=2)


def test_a_command_of_another_package_that_is_broken_leaves_the_others(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint("fly", "nowhere.at_all:fly", app.COMMANDS_GROUP)
    monkeypatch.setattr(app, "entry_points", lambda group: [broken] if group == app.COMMANDS_GROUP else [])

    assert invoke(["agents", "list"]) == 0
    assert "the command 'fly' (nowhere.at_all:fly) can't be loaded" in capsys.readouterr().err
