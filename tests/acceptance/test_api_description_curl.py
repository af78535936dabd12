"""The curl examples of the user's API description, to the letter, as a POSIX shell runs them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.sandboxes import wait_until
from tests.services import Server, running_server

from harness.clock import SystemClock
from harness.models import AgentDraft, Claim, NewTask, Outcome, Reason
from harness.settings import Settings
from harness.wiring import make_store

#: The port of the examples; another one is taken while somebody else has it.
PORT = 8000

HISTORY = "curl http://localhost:8000/api/tasks/agents/1/tasks?status=completed&limit=10"
HISTORY_QUOTED = "curl 'http://localhost:8000/api/tasks/agents/1/tasks?status=completed&limit=10'"
DETAILS = "curl http://localhost:8000/api/tasks/123"
RETRY = "curl -X POST http://localhost:8000/api/tasks/123/retry"

#: The description's answers.
HISTORY_ANSWER = """
{
  "tasks": [
    {
      "id": 1,
      "agent_id": 1,
      "status": "completed",
      "started_at": "2026-01-11T10:00:00Z",
      "completed_at": "2026-01-11T10:00:15Z",
      "result": "Processed 10 items",
      "retry_count": 0
    }
  ],
  "total_count": 42,
  "limit": 100,
  "offset": 0
}
"""
DETAILS_ANSWER = """
{
  "id": 123,
  "agent_id": 1,
  "status": "completed",
  "scheduled_at": "2026-01-11T10:00:00Z",
  "started_at": "2026-01-11T10:00:01Z",
  "completed_at": "2026-01-11T10:00:15Z",
  "result": "Success output",
  "error": null,
  "retry_count": 0,
  "created_at": "2026-01-11T09:59:55Z"
}
"""
RETRY_ANSWER = """
{
  "message": "Task 123 scheduled for retry",
  "retry_count": 2,
  "max_retries": 3
}
"""


@pytest.fixture
def server(tmp_path: Path, no_container_is_left: None) -> Iterator[Server]:
    """A server that has agent 1 and its tasks 1 to 123: 42 that completed, others that failed, the last one twice."""
    settings = Settings(data_dir=tmp_path / "data")
    asyncio.run(fill(settings))
    with socket.socket() as probe:
        is_free = probe.connect_ex(("127.0.0.1", PORT)) != 0
    with running_server(tmp_path, settings=settings, HARNESS_PORT=str(PORT if is_free else 0)) as server:
        yield server


async def fill(settings: Settings) -> None:
    store = make_store(settings, SystemClock())
    claim = Claim(owner="test", lease_seconds=60)
    failed = Outcome(reason=Reason.EXIT_NONZERO, exit_code=1, error="exit code 1")
    try:
        await store.open()
        await store.create_agent(AgentDraft(name="agent", code="print('Success output')"))
        for number in range(1, 124):
            outcome = failed
            if number <= 42:
                outcome = Outcome(reason=Reason.COMPLETED, exit_code=0, result="Processed 10 items")
            task = await store.create_task(NewTask(agent_id=1, max_retries=3), claim=claim)
            if number == 123:
                await store.retry_task(task.id, task.fence, failed, due_at=await store.now())
                (task,) = await store.claim_tasks(claim, limit=1)
            await store.finish_task(task.id, task.fence, outcome)
    finally:
        await store.close()


async def shell(server: Server, command: str) -> Any:
    """Run a command as it stands in the description; return what it prints, as JSON."""
    port = urlsplit(server.url).port
    process = await asyncio.create_subprocess_exec(
        # The unquoted example runs in the background.
        "sh", "-c", f"{command}\nwait".replace(f":{PORT}/", f":{port}/"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, err
    return json.loads(out)


def shape(value: Any) -> Any:
    """Return field names in their order, with what kind of value each has."""
    if isinstance(value, dict):
        return [(name, shape(inner)) for name, inner in value.items()]
    if isinstance(value, list):
        return [shape(value[0])]
    is_instant = isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value)
    return "instant" if is_instant else type(value).__name__


async def test_the_history_of_an_agent(server: Server) -> None:
    page = await shell(server, HISTORY_QUOTED)

    assert shape(page) == shape(json.loads(HISTORY_ANSWER))
    assert [task["id"] for task in page["tasks"]] == list(range(42, 32, -1))
    assert {task["result"] for task in page["tasks"]} == {"Processed 10 items"}
    assert (page["total_count"], page["limit"], page["offset"]) == (42, 10, 0)


async def test_the_history_of_an_agent_without_quotes_has_the_default_limit(server: Server) -> None:
    """To a shell the ampersand ends the command, so the server is not asked for ten."""
    page = await shell(server, HISTORY)

    assert shape(page) == shape(json.loads(HISTORY_ANSWER))
    assert (len(page["tasks"]), page["total_count"], page["limit"], page["offset"]) == (42, 42, 100, 0)


async def test_a_failed_task_is_retried_and_then_shown_as_completed(server: Server) -> None:
    retried = await shell(server, RETRY)

    assert retried == json.loads(RETRY_ANSWER)

    async def has_ended() -> bool:
        return bool((await shell(server, DETAILS))["status"] not in ("pending", "running"))

    await wait_until(has_ended, what="the end of task 123", timeout_seconds=30)
    details = await shell(server, DETAILS)
    example = json.loads(DETAILS_ANSWER)
    assert shape(details) == shape(example)
    same = ("id", "agent_id", "status", "result", "error")
    assert [details[name] for name in same] == [example[name] for name in same]
    assert details["retry_count"] == 2
