"""`harness purge`, and what other commands say of what it deleted, on a SQLite store."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tests.unit.test_cli_schedule import Cli, cli

from harness.clock import SystemClock
from harness.models import Claim, LogChunk, NewArtifact, NewTask, Outcome, Reason, Usage, log_seq
from harness.settings import Settings, get_settings
from harness.wiring import make_store

__all__ = ["cli"]

pytestmark = pytest.mark.usefixtures("cli_environment")

DAY_MILLIS = 86_400_000


async def run(agent_id: int, count: int) -> None:
    """Store runs as an executor does."""
    store = make_store(Settings.load(), SystemClock())
    await store.open()
    for number in range(count):
        claim = Claim(owner="me", lease_seconds=30)
        task = await store.create_task(NewTask(agent_id=agent_id), claim=claim)
        now = await store.now()
        await store.append_logs(
            task.id, 1, [LogChunk(seq=log_seq(1, 0), stream="stdout", data=b"hi\n", at=now)]
        )
        outcome = Outcome(reason=Reason.COMPLETED, usage=Usage(output_bytes=3))
        await store.finish_task(task.id, 1, outcome, artifact=NewArtifact(state={"n": number}))
    await store.close()


def days_pass(days: float) -> None:
    path = Path(Settings.load().data_dir) / "harness.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table, column in (("tasks", "completed_at"), ("artifacts", "created_at")):
            db.execute(f"UPDATE {table} SET {column} = {column} - {int(days * DAY_MILLIS)}")


@pytest.fixture
def history(cli: Cli) -> Cli:
    """Three runs of agent 1 and one of agent 2, forty days ago."""
    cli.create("--set", "retention.task_days=20", name="short")
    cli.create(name="plain")
    asyncio.run(run(1, 3))
    asyncio.run(run(2, 1))
    days_pass(40)
    return cli


def test_a_dry_run_counts_and_deletes_nothing(history: Cli) -> None:
    counted = {
        "dry_run": True,
        "agents": [
            {"agent_id": 1, "name": "short", "tasks": 3, "logs": 0, "artifacts": 0},
            {"agent_id": 2, "name": "plain", "tasks": 0, "logs": 1, "artifacts": 0},
        ],
    }
    assert history.json("purge", "--dry-run") == counted
    assert history.json("purge", "--dry-run") == counted
    assert history("purge", "--dry-run").splitlines() == [
        "AGENT  TASKS  LOGS OF OTHER TASKS  ARTIFACTS",
        "short  3      0                    0",
        "plain  0      1                    0",
    ]
    assert history.json("purge") == counted | {"dry_run": False}
    assert history.json("purge") == {"dry_run": False, "agents": []}
    assert history("purge") == "nothing to delete\n"
    assert history.json("tasks", "list")["total_count"] == 1


def test_settings_say_how_much_is_kept(history: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_RETENTION_MAX_ARTIFACTS", "1")
    monkeypatch.setenv("HARNESS_RETENTION_LOG_DAYS", "0")
    get_settings.cache_clear()

    (short,) = history.json("purge")["agents"]

    assert (short["tasks"], short["logs"], short["artifacts"]) == (3, 0, 2)
    assert history.json("handoff", "show", "short")["run_count"] == 3


def test_one_agent_alone_is_purged(history: Cli) -> None:
    (plain,) = history.json("purge", "--agent", "plain")["agents"]

    assert plain == {"agent_id": 2, "name": "plain", "tasks": 0, "logs": 1, "artifacts": 0}
    assert history.json("tasks", "list", "--agent", "short")["total_count"] == 3
    assert "there is no agent named 'none'" in history("purge", "--agent", "none", code=3)


def test_output_that_was_deleted_is_told_from_output_that_never_was(history: Cli) -> None:
    assert [piece["data"] for piece in history.json("logs", "4")["chunks"]] == ["hi\n"]
    history("purge")

    assert history.json("logs", "4") == {"task_id": 4, "chunks": []}
    command = [str(Path(sys.executable).with_name("harness")), "logs", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (
        "",
        "the output of task 4 was deleted; how long it is kept: harness purge --help\n",
    )
    for command_line in (["logs", "1"], ["logs", "1", "--follow"], ["tasks", "retry", "1"]):
        assert "there is no task 1" in history(*command_line, "--json", code=3)


def test_an_agent_that_cannot_be_read_is_left_as_it_is(history: Cli) -> None:
    path = Path(Settings.load().data_dir) / "harness.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("""UPDATE agents SET config = '{"retention": 5}' WHERE id = 1""")

    assert "agent 1 is left as it is: config.retention is not valid" in history("purge", code=1)
    assert history.json("tasks", "list", "--agent", "short")["total_count"] == 3
    assert history.json("logs", "4")["chunks"] == []
