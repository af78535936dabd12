"""The command `harness` with HARNESS_URL set: what it does on a store, it does at a server."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.services import HARNESS, Server

from harness.client import HarnessClient
from harness.models import TaskStatus

COUNTER = """\
import sys
import handoff
count = context.get("count", 0) + 1
print("run", count)
print("a warning", file=sys.stderr)
handoff.save({"count": count}, f"counted to {count}")
"""
LONG = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
#: And, by hand, only after longer than a test takes.
NEVER_RETRIED = ("--set", "retry.max_attempts=0", "--set", "retry.delay_seconds=600")


class Ended:
    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr
        assert "Traceback" not in self.err

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        assert self.out == ""
        return json.loads(self.err.splitlines()[-1])["error"]


class Shell:
    """Runs `harness` where there is no store and no engine, but a server."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.environment = {
            **server.environment,
            "HARNESS_DATA_DIR": str(folder / "none"),
            "DOCKER_HOST": "unix:///nonexistent",
            "HARNESS_URL": server.url,
        }
        self.name = f"agent-{secrets.token_hex(6)}"

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["env", "--default-signal=INT", HARNESS, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self.folder, env=self.environment | changes,
        )  # fmt: skip

    def __call__(self, *arguments: str, stdin: str = "", **changes: str) -> Ended:
        ended = Ended(
            subprocess.run(
                [HARNESS, *arguments],
                input=stdin, capture_output=True, text=True, check=False, timeout=50,
                cwd=self.folder, env=self.environment | changes,
            )
        )  # fmt: skip
        assert not (self.folder / "none").exists()
        return ended

    def create(self, code: str, *arguments: str) -> int:
        """Make an agent of this shell's name."""
        created = self("agents", "create", self.name, "--code", "-", "--json", *arguments, stdin=code)
        return int(created.json["id"])


@pytest.fixture
def harness(tmp_path: Path, server: Server) -> Shell:
    return Shell(tmp_path, server)


def test_an_agent_lives_from_creation_to_deletion_on_the_server(harness: Shell) -> None:
    agent = harness.create(COUNTER)
    name = harness.name

    first = harness("run", name)
    assert (first.code, first.out) == (0, "run 1\n")
    assert first.err.startswith("a warning\ntask ")
    assert first.err.endswith("): counted to 1\n")
    second = harness("run", str(agent), "--json").json
    assert (second["stdout"], second["stderr"], second["state"]) == ("run 2\n", "a warning\n", {"count": 2})
    assert (second["success"], second["exit_code"], second["summary"]) == (True, 0, "counted to 2")

    task = str(second["task_id"])
    logs = harness("logs", task)
    assert (logs.out, logs.err) == ("run 2\n", "a warning\n")
    assert harness("logs", task, "--stream", "stderr").out == "a warning\n"
    assert {(chunk["stream"], chunk["data"]) for chunk in harness("logs", task, "--json").json["chunks"]} == {
        ("stdout", "run 2\n"), ("stderr", "a warning\n"),
    }  # fmt: skip
    listed = harness("tasks", "list", "--agent", name, "--status", "completed", "--json").json
    assert [listed["total_count"], listed["items"][0]["id"]] == [2, second["task_id"]]
    assert name in harness("tasks", "list", "--limit", "5").out
    assert "counted to 2" in harness("tasks", "show", task).out

    assert harness("agents", "update", name, "--set", "limits.cpus=0.5", "--json").json["version"] == 2
    assert harness("agents", "update", name, "--set", "limits.cpus=1", "--if-version", "1").code == 3
    assert "COUNTER" not in harness("agents", "show", name).out
    assert f"{agent} " in harness("agents", "list", "--limit", "50").out

    assert harness("agents", "delete", name, "--yes").code == 0
    assert harness("agents", "show", name, "--json").error["code"] == "agent_not_found"
    assert harness("tasks", "show", task).code == 3


def test_a_given_context_is_seen_and_its_state_saved(harness: Shell) -> None:
    harness.create(COUNTER)

    assert harness("run", harness.name, "--context", '{"count": 7}').out == "run 8\n"
    assert harness("run", harness.name).out == "run 9\n"


def test_handoffs_are_changed_on_the_server(harness: Shell) -> None:
    harness.create(COUNTER)
    name = harness.name

    assert "first run" in harness("handoff", "show", name).err
    assert harness("handoff", "set", name, "-", stdin='{"n": 1, "å": "日本"}').code == 0
    assert harness("handoff", "show", name, "--state").json == {"n": 1, "å": "日本"}
    assert harness("handoff", "clear", name).code == 0
    assert harness("handoff", "show", name).code == 3
    assert len(harness("handoff", "history", name, "--json").json["items"]) == 2
    assert harness("handoff", "rollback", name, "1", "--json").json["version"] == 3
    assert harness("handoff", "rollback", name, "9").code == 3


def test_schedules_are_changed_on_the_server(harness: Shell) -> None:
    cron = ("--set", "schedule.type=cron", "--set", "schedule.cron=0 3 * * *")
    harness.create(COUNTER, *cron)
    name = harness.name

    assert "next fires: " in harness("agents", "show", name).out.replace("fires  ", "fires: ")
    assert harness("schedule", "show", name, "--json").json["status"] == "in force"
    assert len(harness("schedule", "next", name, "-n", "7").out.splitlines()) == 7
    assert "is paused" in harness("schedule", "pause", name).out
    assert "paused" in harness("schedule", "show", name).out
    assert "next fire" in harness("schedule", "resume", name).out
    assert harness("schedule", "remove", name).code == 0
    assert "removed" in harness("schedule", "show", name).out
    assert harness("schedule", "add", name, "--json").json["removed"] is False
    backfill = harness(
        "schedule", "backfill", name, "--from", "2026-01-01T00:00Z", "--to", "2026-01-02T12:00Z"
    )
    assert backfill.out.startswith("2 tasks made: ")
    assert (
        harness("schedule", "backfill", name, "--from", "2026-01-02T00:00Z", "--to", "2026-01-01T00:00Z").code
        == 2
    )


def test_a_failed_run_exits_1_and_can_be_retried_and_cancelled(harness: Shell) -> None:
    harness.create("print('oh no'); raise SystemExit(3)", *NEVER_RETRIED)

    failed = harness("run", harness.name)
    assert (failed.code, failed.out) == (1, "oh no\n")
    assert ": exit_nonzero: " in failed.err
    result = json.loads(harness("run", harness.name, "--json").out)
    assert (result["success"], result["exit_code"], result["state"]) == (False, 3, None)
    task = str(result["task_id"])
    assert harness("tasks", "retry", task, "--json").error["code"] == "conflict"
    assert "is pending" in harness("tasks", "retry", task, "--force").out
    assert "is cancelled" in harness("tasks", "cancel", task).out


def test_a_run_that_is_retried_is_followed_through_all_its_attempts(harness: Shell) -> None:
    code = (
        "import handoff\nprint('attempt', handoff.task.attempt)\nraise SystemExit(handoff.task.attempt != 2)"
    )
    harness.create(code, "--set", "retry.delay_seconds=0")

    ended = harness("run", harness.name)

    assert (ended.code, ended.out) == (0, "attempt 1\nattempt 2\n")
    assert "attempt 2\n" in ended.err


async def test_a_detached_run_is_followed_by_its_log(harness: Shell) -> None:
    harness.create("import time\nprint('begun', flush=True)\ntime.sleep(1)\nprint('ended')")
    task = harness("run", harness.name, "--detach", "--json").json

    followed = harness("logs", str(task["id"]), "--follow")

    assert (followed.code, followed.out) == (0, "begun\nended\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_cancels_the_run_on_the_server(
    number: signal.Signals, code: int, harness: Shell, client: HarnessClient
) -> None:
    agent = harness.create(LONG)
    process = harness.start("run", harness.name)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"

    process.send_signal(number)

    _, errors = process.communicate(timeout=30)
    (task,) = (await client.list_tasks(agent_id=agent)).items
    assert (process.returncode, errors) == (
        code,
        f"error: stopped by {number.name}; task {task.id} cancelled\n",
    )
    assert task.status is TaskStatus.CANCELLED


def test_a_busy_agent_is_a_conflict(harness: Shell) -> None:
    harness.create(LONG)
    task = harness("run", harness.name, "--detach", "--json").json

    busy = harness("run", harness.name, "--json")

    assert (busy.code, busy.error["code"]) == (3, "agent_busy")
    assert harness("tasks", "cancel", str(task["id"])).code == 0


@pytest.mark.parametrize(
    ("url", "code", "name", "text"),
    [
        ("http://127.0.0.1:9", 4, "server_unavailable", "http://127.0.0.1:9"),
        ("127.0.0.1:8000", 2, "invalid_settings", "HARNESS_URL"),
        ("ftp://127.0.0.1", 2, "invalid_settings", "HARNESS_URL"),
    ],
)
def test_a_server_that_is_not_there_has_an_exit_code(
    url: str, code: int, name: str, text: str, harness: Shell
) -> None:
    for command in (["tasks", "list"], ["run", "a"]):
        ended = harness(*command, "--json", HARNESS_URL=url)
        assert (ended.code, ended.error["code"]) == (code, name)
        assert text in ended.error["message"]


def test_commands_about_this_machine_say_that_they_are(harness: Shell, tmp_path: Path) -> None:
    for command in (["images", "list"], ["doctor", "--no-run"]):
        process = harness.start(*command, HARNESS_DATA_DIR=str(tmp_path / "here"))
        assert "HARNESS_URL is set" in process.communicate(timeout=30)[1]


@pytest.mark.parametrize("command", ["serve", "runner"])
def test_services_work_on_their_own_store_and_say_so(command: str, harness: Shell, tmp_path: Path) -> None:
    process = harness.start(command, HARNESS_DATA_DIR=str(tmp_path / "here"), HARNESS_PORT="0")
    assert process.stderr is not None
    assert "HARNESS_URL is set" in process.stderr.readline()

    process.send_signal(signal.SIGTERM)

    process.communicate(timeout=30)
