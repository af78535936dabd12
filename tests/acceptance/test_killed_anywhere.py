"""A runner killed between any two steps of a run leaves nothing that does not heal by itself."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.sandboxes import used_store_ids, wait_until

from harness.executor import AgentExecutor
from harness.models import Reason, TaskStatus, log_attempt
from harness.recovery import sweep
from harness.sandbox.docker import DockerSandbox
from harness.settings import Settings
from harness.store.sqlite import SqliteStore

RUNNER = Path(__file__).with_name("killed_runner.py")

#: Runners at a time.
AT_ONCE = 5


@dataclass(frozen=True)
class Step:
    """A place to die, and what is there at that moment."""

    name: str
    #: How many containers the runner leaves; None where it depends on who was faster.
    containers: int | None
    #: Whether all of the agent's output was stored; None where it depends.
    all_output: bool | None = False
    #: Whether the run's end was stored; None where it depends.
    finished: bool | None = False


STEPS = [
    Step("task claimed", 0),
    Step("creation requested", None),
    Step("created", 1),
    Step("attached", 1),
    Step("started", 1),
    Step("job sent", 1),
    Step("first output", 1),
    Step("agent ended", 1, all_output=None),
    Step("all output stored", None, all_output=True),
    Step("about to finish", None, all_output=True),
    Step("finish written", None, all_output=True, finished=True),
    Step("about to remove", 1, all_output=None, finished=None),
    Step("removed", 0, all_output=None, finished=None),
    # The container is removed beside the last write, so either may be the first.
    Step("container removed, end not stored", 0, all_output=True),
    Step("end stored, container not removed", 1, all_output=True, finished=True),
    # In a container that waited; its successor may just be in the making.
    Step("warm: task claimed", None),
    Step("warm: job sent", None),
    Step("warm: first output", None),
    Step("warm: about to be named", None, all_output=None, finished=None),
    Step("warm: named", None, all_output=None, finished=None),
    Step("warm: agent ended", None, all_output=None),
    Step("warm: finish written", None, all_output=True, finished=True),
]


class Runners:
    """A runner for each step. A few of those that come next run at once, since most of what they do is waiting."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._make_folder = make_folder
        self._started: dict[str, tuple[Path, subprocess.Popen[bytes]]] = {}

    def get(self, step: Step) -> tuple[Path, subprocess.Popen[bytes]]:
        """Return a step's runner, and the folder of its store."""
        begin = STEPS.index(step)
        for one in STEPS[begin : begin + AT_ONCE]:
            if one.name not in self._started:
                folder = self._make_folder()
                command = [sys.executable, str(RUNNER), str(folder), one.name]
                self._started[one.name] = folder, subprocess.Popen(command, stderr=subprocess.PIPE)
        return self._started[step.name]

    def end(self) -> None:
        for _, runner in self._started.values():
            runner.kill()
            runner.communicate()


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> Iterator[Runners]:
    runners = Runners(lambda: tmp_path_factory.mktemp("killed"))
    yield runners
    runners.end()


@asynccontextmanager
async def open_store(folder: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(folder / "harness.db")
    await store.open()
    used_store_ids.add(store.store_id)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
async def test_a_runner_killed_at_any_step_leaves_what_heals(
    runners: Runners, sandbox: DockerSandbox, step: Step
) -> None:
    folder, runner = runners.get(step)
    _, errors = await asyncio.to_thread(runner.communicate, timeout=60)
    assert runner.returncode == -signal.SIGKILL, errors.decode()

    async with open_store(folder) as store:
        agent = await store.find_agent("counter")

        # What a dead runner leaves.
        task = (await store.list_tasks(agent_id=agent.id, limit=1)).items[0]
        assert task.id == 2
        finished = task.status is TaskStatus.COMPLETED
        assert finished or task.status is TaskStatus.RUNNING
        assert step.finished in (None, finished)
        if step.containers is not None:
            assert len(await sandbox.owned_containers(store.store_id)) == step.containers

        # It heals when the lease has run out.
        async def is_healed() -> bool:
            await sweep(store, sandbox)
            return (await store.get_task(task.id)).status.is_final

        await wait_until(is_healed, what="the end of the dead runner's task")
        assert await sandbox.owned_containers(store.store_id) == []
        report = await sweep(store, sandbox)
        assert (report.removed_containers, report.lost_tasks) == (0, ())

        ended = await store.get_task(task.id)
        assert ended.reason is (Reason.COMPLETED if finished else Reason.LOST)
        assert ended.completed_at is not None
        assert ended.lease_owner is None
        assert [(attempt.number, attempt.reason) for attempt in ended.attempts] == [(1, ended.reason)]
        assert ended.attempts[0].ended_at is not None

        chunks = await store.read_logs(task.id)
        written = b"".join(chunk.data for chunk in chunks)
        whole = b"run 2 begins\nrun 2 ends\n"
        assert whole.startswith(written)
        assert {log_attempt(chunk.seq) for chunk in chunks} <= {1}
        if step.all_output is not None:
            assert (written == whole) == step.all_output

        # The earlier state is intact, and the next run goes on from it.
        before = await store.newest_artifact(agent.id)
        runs = 2 if finished else 1
        assert before is not None
        assert (before.state, before.run_count, before.task_id) == ({"n": runs}, runs, runs)

        executor = AgentExecutor(store=store, sandbox=sandbox, settings=Settings(lease_seconds=30))
        result = await executor.execute_agent(agent.id)

        assert result.success, result
        after = await store.newest_artifact(agent.id)
        assert after is not None
        assert (after.state, after.run_count, after.version) == ({"n": runs + 1}, runs + 1, runs + 1)
