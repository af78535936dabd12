"""The scheduler's blocks of the user's API description, each run as written in a process of its own, import line apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.sandboxes import used_store_ids, wait_until

from harness import AgentDraft, TaskStatus
from harness.clock import SystemClock
from harness.sandbox.docker import DockerSandbox
from harness.store.sqlite import SqliteStore

RUN_BLOCK = Path(__file__).with_name("run_block.py")

COMPLETE_EXAMPLE = """
import asyncio
from harness import AgentExecutor, HandoffManager, TaskScheduler

async def main():
    # Initialize components
    executor = AgentExecutor()
    manager = HandoffManager()
    scheduler = TaskScheduler()

    # Start scheduler
    await scheduler.start()

    # Add agent schedule (runs every hour)
    await scheduler.add_agent_schedule(agent_id=1)

    print("Agent system running 24/7...")
    print("Press Ctrl+C to stop")

    try:
        # Keep running
        while True:
            await asyncio.sleep(60)
    except KeyboardInterrupt:
        print("\\nStopping scheduler...")
        await scheduler.stop()

if __name__ == "__main__":
    asyncio.run(main())
"""

#: The description's own config: an interval of an hour.
HOURLY = {"type": "interval", "interval_minutes": 60, "enabled": True}
EVERY_SECOND = {"type": "interval", "interval_seconds": 1, "enabled": True}


@pytest.fixture
async def store(tmp_path: Path, sandbox: DockerSandbox) -> AsyncIterator[SqliteStore]:
    """The store that the processes use; no container of it is left in the end."""
    store = SqliteStore(tmp_path / "harness.db", clock=SystemClock())
    await store.open()
    used_store_ids.add(store.store_id)
    try:
        yield store
        await sandbox.settle()
        assert await sandbox.owned_containers(store.store_id) == []
    finally:
        await store.close()


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "HARNESS_DATA_DIR": str(folder), "HARNESS_MONGODB_URI": ""}


def run(block: str, folder: Path) -> str:
    process = subprocess.run(
        [sys.executable, "-W", "error", RUN_BLOCK],
        input=textwrap.dedent(block),
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


@pytest.fixture
def complete_example(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The complete example as a program, begun by a test's store being there."""
    program = tmp_path / "example.py"
    program.write_text(COMPLETE_EXAMPLE)
    with subprocess.Popen(
        [sys.executable, "-u", "-W", "error", program],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


async def test_methods_in_the_order_of_the_description(store: SqliteStore, tmp_path: Path) -> None:
    await store.create_agent(AgentDraft(name="example", code="pass", config={"schedule": HOURLY}))
    printed = run(
        """
        from harness import TaskScheduler

        scheduler = TaskScheduler(
            max_concurrent=5,       # Max concurrent executions
            retry_max_attempts=3    # Max retry attempts
        )
        await scheduler.start()
        await scheduler.add_agent_schedule(agent_id=1)
        print(len(await scheduler.next_fires(1)))
        await scheduler.remove_agent_schedule(agent_id=1)
        print(len(await scheduler.next_fires(1)))
        await scheduler.stop()
        """,
        tmp_path,
    )
    assert printed == "5\n0\n"


async def test_cron_config_of_the_description(store: SqliteStore, tmp_path: Path) -> None:
    schedule = {"type": "cron", "cron": "0 * * * *", "enabled": True}
    await store.create_agent(AgentDraft(name="example", code="pass", config={"schedule": schedule}))
    printed = run(
        """
        from harness import TaskScheduler

        scheduler = TaskScheduler()
        await scheduler.start()

        # Schedule runs every 30 minutes
        await scheduler.add_agent_schedule(agent_id=1)

        # Keep running...
        # (scheduler executes agents automatically in background)
        print([at.minute for at in await scheduler.next_fires(1, 3)])
        """,
        tmp_path,
    )
    assert printed == "[0, 0, 0]\n"


async def test_a_failed_task_is_retried_after_two_seconds_as_described(
    store: SqliteStore, tmp_path: Path
) -> None:
    await store.create_agent(AgentDraft(name="example", code="raise SystemExit(1)"))
    printed = run(
        """
        from harness import AgentExecutor, TaskScheduler

        task_id = (await AgentExecutor().execute_agent(agent_id=1)).task_id
        scheduler = TaskScheduler()
        task = await scheduler.retry_failed_task(task_id=task_id)
        print(task.status, task.retry_count)
        """,
        tmp_path,
    )
    assert printed == "pending 1\n"
    task = await store.get_task(1)
    assert task.due_at is not None
    assert task.attempt is not None
    assert task.attempt.ended_at is not None
    assert 2 <= (task.due_at - task.attempt.ended_at).total_seconds() < 4


async def test_complete_example_runs_agents_until_ctrl_c_stops_it(
    store: SqliteStore, sandbox: DockerSandbox, complete_example: subprocess.Popen[str]
) -> None:
    code = "import handoff, time\nhandoff.save({'n': 1})\nprint('run')\n"
    lasting = code + "time.sleep(context.get('n', 0) * 3600)"
    await store.create_agent(AgentDraft(name="example", code=lasting, config={"schedule": EVERY_SECOND}))

    # The first run saves its state; the second, which has it, lasts.
    async def second_runs() -> bool:
        assert complete_example.poll() is None, complete_example.communicate()
        tasks = (await store.list_tasks(status=TaskStatus.RUNNING)).items
        return any([task.id > 1 and await store.read_logs(task.id) for task in tasks])

    await wait_until(second_runs, what="the second run")
    running = (await store.list_tasks(status=TaskStatus.RUNNING)).items[0]
    complete_example.send_signal(signal.SIGINT)
    printed, complaints = complete_example.communicate(timeout=20)

    # From Python 3.11 on, asyncio.run turns Ctrl+C into a cancellation of main(), and raises KeyboardInterrupt itself.
    assert complete_example.returncode == -signal.SIGINT
    assert printed == "Agent system running 24/7...\nPress Ctrl+C to stop\n"
    assert complaints.splitlines()[-1] == "KeyboardInterrupt"
    for word in ("never retrieved", "destroyed", "Exception ignored", "Warning"):
        assert word not in complaints
    assert await sandbox.owned_containers(store.store_id) == []
    task = await store.get_task(running.id)
    assert task.status is TaskStatus.PENDING, "another scheduler takes it up at once"
    assert task.retry_count == 0
