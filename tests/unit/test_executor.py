from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.config import MIB
from harness.egress.decision import Decision, Verdict
from harness.errors import (
    AgentBusyError,
    AgentNotFoundError,
    EngineUnavailableError,
    InvalidInputError,
    StoreUnavailableError,
)
from harness.executor import AgentExecutor
from harness.models import (
    Agent,
    AgentDraft,
    Claim,
    ExecutionResult,
    LogChunk,
    NewArtifact,
    NewTask,
    Outcome,
    Reason,
    Task,
    TaskStatus,
)
from harness.ports import SandboxJob, SandboxLimits, SandboxResult, SandboxUsage
from harness.settings import Settings
from harness.testing import FakeClock, FakeRun, FakeSandbox, MemoryStore

SETTINGS = Settings(lease_seconds=30, cpus=0.5, max_processes=20, max_tmp_mb=8, grace_seconds=2)
USED = SandboxResult(Reason.COMPLETED, 0, peak_memory_bytes=7_000_000, cpu_seconds=0.25, wall_seconds=1.5)


class FlakyStore(MemoryStore):
    """A store in memory that can be made to fail, or to wait, method by method."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.away: set[str] = set()
        #: Methods that wait, before they do anything, until the event is set.
        self.gates: dict[str, asyncio.Event] = {}
        #: Methods that have arrived at their gate.
        self.arrived: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []
        #: How many calls of `finish_task` write, say nothing for two seconds, and fail.
        self.lost_answers = 0

    def gate(self, method: str) -> asyncio.Event:
        self.gates[method] = asyncio.Event()
        self.arrived[method] = asyncio.Event()
        return self.gates[method]

    async def _pass(self, method: str) -> None:
        self.calls.append(method)
        if method in self.gates:
            self.arrived[method].set()
            await self.gates[method].wait()
        if method in self.away:
            raise StoreUnavailableError(f"{method}: away")

    async def create_task(self, new: NewTask, *, claim: Claim | None = None) -> Task:
        await self._pass("create_task")
        return await super().create_task(new, claim=claim)

    async def extend_lease(self, task_id: int, fence: int, lease_seconds: float) -> Any:
        await self._pass("extend_lease")
        return await super().extend_lease(task_id, fence, lease_seconds)

    async def newest_artifact(self, agent_id: int) -> Any:
        await self._pass("newest_artifact")
        return await super().newest_artifact(agent_id)

    async def record_reason(self, task_id: int, fence: int, reason: Reason, error: str | None = None) -> None:
        await self._pass("record_reason")
        await super().record_reason(task_id, fence, reason, error)

    async def append_logs(self, task_id: int, fence: int, chunks: Any) -> None:
        await self._pass("append_logs")
        await super().append_logs(task_id, fence, chunks)

    async def finish_task(
        self, task_id: int, fence: int, outcome: Outcome, *, artifact: NewArtifact | None = None
    ) -> Task:
        await self._pass("finish_task")
        task = await super().finish_task(task_id, fence, outcome, artifact=artifact)
        if self.lost_answers:
            self.lost_answers -= 1
            await self._clock.sleep(2)
            raise StoreUnavailableError("finish_task: written, but the answer was lost")
        return task


class Bench:
    """An executor on fakes, with one agent."""

    def __init__(self, store: FlakyStore, clock: FakeClock, agent: Agent) -> None:
        self.store, self.clock, self.agent = store, clock, agent
        self.sandbox = FakeSandbox()
        self.executor = self.make_executor()

    def make_executor(self, **arguments: Any) -> AgentExecutor:
        return AgentExecutor(
            store=self.store, sandbox=self.sandbox, clock=self.clock, settings=SETTINGS, **arguments
        )

    async def run(self, context: dict[str, Any] | None = None, **arguments: Any) -> ExecutionResult:
        return await self.executor.execute_agent(self.agent.id, context, **arguments)

    async def tasks(self) -> list[Task]:
        """All tasks, oldest first."""
        return list(reversed((await self.store.list_tasks()).items))

    async def task(self) -> Task:
        """The newest task."""
        return (await self.tasks())[-1]

    async def log(self, task_id: int) -> list[LogChunk]:
        return list(await self.store.read_logs(task_id))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = FakeClock()
    store = FlakyStore(clock)
    await store.open()
    agent = await store.create_agent(AgentDraft(name="counter", code="print(1)"))
    yield Bench(store, clock, agent)
    await store.close()


def says(stdout: bytes, **changes: Any) -> Callable[[SandboxJob], FakeRun]:
    """A job that prints and ends as told."""
    return lambda _job: FakeRun((("stdout", stdout),), replace(USED, **changes))


def saves(state: dict[str, Any], summary: str = "") -> Callable[[SandboxJob], FakeRun]:
    return says(b"saved\n", state=state, summary=summary)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds; the store answers from a thread of its own."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event for "a thread has answered"
            await asyncio.sleep(0.001)


async def advance(bench: Bench, seconds: float) -> None:
    """Move the clock in small steps, leaving the store's thread time to answer in between."""
    for _ in range(round(seconds / 0.5)):
        await bench.clock.advance(0.5)
        await asyncio.sleep(0.002)


# The loop


async def test_a_first_run_begins_empty_and_its_state_is_the_next_ones_context(bench: Bench) -> None:
    bench.sandbox.behave = saves({"n": 1}, "counted one")
    first = await bench.run()
    bench.sandbox.behave = lambda job: FakeRun(
        result=replace(USED, state={"n": job.context["n"] + 1}, summary="counted two")
    )
    second = await bench.run()

    assert [job.context for job in bench.sandbox.jobs] == [{}, {"n": 1}]
    assert [job.task["run_count"] for job in bench.sandbox.jobs] == [0, 1]
    assert (first.success, first.state, second.state) == (True, {"n": 1}, {"n": 2})
    artifact = await bench.store.newest_artifact(bench.agent.id)
    assert artifact is not None
    assert (artifact.state, artifact.summary, artifact.run_count) == ({"n": 2}, "counted two", 2)
    assert artifact.task_id == second.task_id
    assert [(task.status, task.result) for task in await bench.tasks()] == [
        (TaskStatus.COMPLETED, "counted one"),
        (TaskStatus.COMPLETED, "counted two"),
    ]


async def test_the_result_and_the_record_say_what_happened(bench: Bench) -> None:
    bench.sandbox.behave = lambda _job: FakeRun(
        (("stdout", b"one\n"), ("stderr", b"uh\n"), ("stdout", b"two\n")), USED
    )

    result = await bench.run()
    task = await bench.task()
    attempt = task.attempt

    assert (result.stdout, result.stderr, result.exit_code) == ("one\ntwo\n", "uh\n", 0)
    assert (result.duration_seconds, result.error_message, result.task_id) == (1.5, None, task.id)
    assert task.result == "two"
    assert attempt is not None
    assert (attempt.number, attempt.reason, attempt.exit_code) == (1, Reason.COMPLETED, 0)
    assert attempt.ended_at is not None
    assert attempt.usage == result.usage
    assert (result.usage.peak_memory_bytes, result.usage.cpu_seconds) == (7_000_000, 0.25)
    assert (result.usage.wall_seconds, result.usage.output_bytes) == (1.5, 11)
    assert result.usage.container_start_seconds == 0.125
    assert [(chunk.stream, chunk.data) for chunk in await bench.log(task.id)] == [
        ("stdout", b"one\n"),
        ("stderr", b"uh\n"),
        ("stdout", b"two\n"),
    ]


async def test_a_passed_context_is_what_the_agent_sees_and_nothing_is_saved(bench: Bench) -> None:
    bench.sandbox.behave = saves({"n": 1})
    await bench.run()
    bench.sandbox.behave = saves({"n": 99})

    result = await bench.run({"key": "value"})

    assert bench.sandbox.jobs[-1].context == {"key": "value"}
    assert result.state == {"n": 99}
    artifact = await bench.store.newest_artifact(bench.agent.id)
    assert artifact is not None
    assert artifact.state == {"n": 1}
    task = await bench.task()
    assert (task.context, task.save_handoff) == ({"key": "value"}, False)


async def test_an_empty_context_is_a_context(bench: Bench) -> None:
    bench.sandbox.behave = saves({"n": 1})
    await bench.run()

    await bench.run({})

    assert bench.sandbox.jobs[-1].context == {}


async def test_saving_can_be_asked_for_with_a_context_and_refused_without(bench: Bench) -> None:
    bench.sandbox.behave = saves({"n": 1})
    await bench.run({"n": 0}, save_handoff=True)
    bench.sandbox.behave = saves({"n": 2})
    await bench.run(save_handoff=False)

    artifact = await bench.store.newest_artifact(bench.agent.id)
    assert artifact is not None
    assert (artifact.state, artifact.run_count) == ({"n": 1}, 1)


async def test_a_run_that_saves_nothing_leaves_a_state_derived_from_its_output(bench: Bench) -> None:
    bench.sandbox.behave = says(b'checked\nHANDOFF_STATE {"cursor": 17}\n')

    result = await bench.run()

    assert result.state is not None
    assert result.state["cursor"] == 17
    artifact = await bench.store.newest_artifact(bench.agent.id)
    assert artifact is not None
    assert artifact.state == result.state


async def test_an_agents_own_state_is_taken_instead_of_a_derived_one(bench: Bench) -> None:
    bench.sandbox.behave = says(b'HANDOFF_STATE {"cursor": 17}\n', state={"own": 1})

    assert (await bench.run()).state == {"own": 1}


@pytest.mark.parametrize(
    "reason",
    [
        Reason.EXIT_NONZERO,
        Reason.TIMEOUT,
        Reason.OUT_OF_MEMORY,
        Reason.RESULT_LOST,
        Reason.SANDBOX_ERROR,
        Reason.STATE_REJECTED,
    ],
)
async def test_a_failed_run_saves_nothing_and_keeps_its_output(bench: Bench, reason: Reason) -> None:
    bench.sandbox.behave = saves({"n": 1})
    await bench.run()
    bench.sandbox.behave = says(b"HANDOFF_STATE {}\n", reason=reason, exit_code=3, error="it broke")

    result = await bench.run()

    assert (result.success, result.reason, result.state) == (False, reason, None)
    assert (result.error_message, result.exit_code) == ("it broke", 3)
    task = await bench.task()
    assert (task.status, task.reason, task.error, task.result) == (
        TaskStatus.FAILED,
        reason,
        "it broke",
        None,
    )
    assert [chunk.data for chunk in await bench.log(task.id)] == [b"HANDOFF_STATE {}\n"]
    artifact = await bench.store.newest_artifact(bench.agent.id)
    assert artifact is not None
    assert (artifact.state, artifact.run_count) == ({"n": 1}, 1)


async def test_a_malformed_state_line_rejects_the_state_and_the_usage_stays(bench: Bench) -> None:
    bench.sandbox.behave = says(b"HANDOFF_STATE {oops\n")

    result = await bench.run()

    assert result.reason is Reason.STATE_REJECTED
    assert result.usage.peak_memory_bytes == 7_000_000
    assert await bench.store.newest_artifact(bench.agent.id) is None


async def test_a_compressor_that_fails_rejects_the_state(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        async def compress(self, **_: Any) -> dict[str, Any]:
            raise ConnectionError("the model is down")

    bench.executor = bench.make_executor(compressor=Broken())
    bench.sandbox.behave = says(b"text\n")

    with caplog.at_level(logging.CRITICAL, "harness"):
        result = await bench.run()

    assert result.reason is Reason.STATE_REJECTED
    assert "the model is down" in (result.error_message or "")
    assert (await bench.task()).status is TaskStatus.FAILED


# What is asked of the sandbox


async def test_the_container_is_labelled_and_gets_nothing_secret(bench: Bench) -> None:
    await bench.run()
    spec, job = bench.sandbox.specs[0], bench.sandbox.jobs[0]

    assert (spec.labels.store_id, spec.labels.task_id, spec.labels.fence) == (bench.store.store_id, 1, 1)
    assert (spec.image, spec.command, spec.environment, spec.network) == (None, None, {}, "none")
    assert (job.files, job.entrypoint) == ({"main.py": "print(1)"}, "main.py")
    assert job.task == {
        "agent_id": 1,
        "task_id": 1,
        "attempt": 1,
        "run_count": 0,
        "previous_outcome": None,
    }


async def test_the_sandbox_is_told_the_egress_list_and_the_agent_where_the_proxy_is(bench: Bench) -> None:
    config = {"egress": ["example.com:443"], "env": {"A": "b"}}
    await bench.store.update_agent(1, AgentDraft(name="reader", code="print(1)", config=config))
    await bench.run()
    await bench.store.update_agent(
        1, AgentDraft(name="reader", code="", config=config | {"image": "any", "command": ["true"]})
    )
    await bench.run()

    python, program = bench.sandbox.specs
    assert python.egress == program.egress == ("example.com:443",)
    assert python.shape == replace(python, egress=()).shape
    assert python.environment == {}
    for environment in (bench.sandbox.jobs[0].env, program.environment):
        assert environment["A"] == "b"
        assert environment["HTTPS_PROXY"] == environment["http_proxy"] == "http://127.0.0.1:3128"


async def test_decisions_are_written_down_with_the_task_and_in_the_log_as_far_as_a_bound(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"egress": ["example.com:443"]}
    await bench.store.update_agent(1, AgentDraft(name="reader", code="print(1)", config=config))
    refused = Decision(Verdict.REFUSED, "evil.example:443", why="it is not listed")
    allowed = Decision(Verdict.ALLOWED, "example.com:443", "1.1.1.1")
    bench.sandbox.egress_decisions = [refused] * 1000 + [allowed] * 101

    with caplog.at_level("INFO", logger="harness.egress"):
        result = await bench.run()

    lines = result.stderr.splitlines()
    assert lines[0] == "[harness] egress refused: evil.example:443: it is not listed"
    assert lines[100:200] == ["[harness] egress allowed: example.com:443 at 1.1.1.1"] * 100
    assert lines[200:] == ["[harness] egress, not written down one by one: 1 allowed, 900 refused"]
    records = [record for record in caplog.records if record.name == "harness.egress.log"]
    assert len(records) == 201
    assert {record.__dict__["action"] for record in records} == {
        "egress_allowed",
        "egress_refused",
        "egress_counted",
    }
    assert (
        records[0].__dict__ | {"place": "evil.example:443", "task_id": 1, "agent_id": 1}
        == records[0].__dict__
    )


@pytest.mark.parametrize(
    ("draft", "environment", "job_env"),
    [
        (AgentDraft(name="a", code="x = 1", config={"env": {"KEY": "v"}}), {}, {"KEY": "v"}),
        (
            AgentDraft(
                name="a", config={"env": {"KEY": "v"}, "image": "alpine", "command": ["sh", "-c", "ls"]}
            ),
            {"KEY": "v"},
            {"KEY": "v"},
        ),
    ],
)
async def test_the_environment_goes_by_the_job_unless_it_is_a_command(
    bench: Bench, draft: AgentDraft, environment: dict[str, str], job_env: dict[str, str]
) -> None:
    agent = await bench.store.create_agent(draft)

    await bench.executor.execute_agent(agent.id)

    spec = bench.sandbox.specs[0]
    assert spec.environment == environment
    assert bench.sandbox.jobs[0].env == job_env
    assert (spec.image, spec.command) == (agent.options.image, tuple(agent.options.command or ()) or None)


async def test_an_agent_of_several_files_is_sent_whole(bench: Bench) -> None:
    files = {"app/run.py": "import app.tools", "app/tools.py": "x = 1"}
    agent = await bench.store.create_agent(AgentDraft(name="a", files=files, entrypoint="app/run.py"))

    await bench.executor.execute_agent(agent.id)

    assert (bench.sandbox.jobs[0].files, bench.sandbox.jobs[0].entrypoint) == (files, "app/run.py")


async def test_limits_are_the_agents_else_the_executors_else_the_settings(bench: Bench) -> None:
    limits = {"max_memory_mb": 64, "cpus": 2.0, "grace_seconds": 0.0, "max_output_bytes": 2048}
    agent = await bench.store.create_agent(AgentDraft(name="a", code="x = 1", config={"limits": limits}))
    executor = bench.make_executor(timeout_seconds=60, max_memory_mb=128)

    await executor.execute_agent(bench.agent.id)
    await executor.execute_agent(agent.id)

    general, own = (spec.limits for spec in bench.sandbox.specs)
    assert general == SandboxLimits(
        memory_bytes=128 * MIB,
        cpus=0.5,
        max_processes=20,
        tmp_bytes=8 * MIB,
        timeout_seconds=60,
        grace_seconds=2,
        output_bytes=MIB,
        state_bytes=64 * 1024,
    )
    assert own == replace(general, memory_bytes=64 * MIB, cpus=2.0, grace_seconds=0.0, output_bytes=2048)


async def test_output_past_the_agents_limit_is_cut_and_marked(bench: Bench) -> None:
    config = {"limits": {"max_output_bytes": 1024}}
    agent = await bench.store.create_agent(AgentDraft(name="a", code="x = 1", config=config))
    bench.sandbox.behave = says(b"x" * 5000)

    result = await bench.executor.execute_agent(agent.id)

    assert (len(result.stdout), result.output_truncated) == (1024, True)
    assert result.usage.output_bytes == 5000
    attempt = (await bench.task()).attempt
    assert attempt is not None
    assert attempt.output_truncated


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (Reason.TIMEOUT, "timeout"),
        (Reason.EXIT_NONZERO, "exit_nonzero"),
        (Reason.LOST, "unknown"),
        (None, "unknown"),
    ],
)
async def test_a_second_attempt_is_told_how_the_first_ended(
    bench: Bench, before: Reason | None, told: str
) -> None:
    claim = Claim(owner="a runner that died", lease_seconds=30)
    task = await bench.store.create_task(NewTask(agent_id=bench.agent.id, max_retries=3), claim=claim)
    if before is not None:
        await bench.store.record_reason(task.id, task.fence, before)
    await bench.clock.advance(31)
    await bench.store.expire_task(task, retry_at=await bench.store.now())
    claimed_at = bench.clock.monotonic()
    (again,) = await bench.store.claim_tasks(Claim(owner="me", lease_seconds=30), limit=1)

    parts = await bench.executor.resolve()
    await bench.executor.begin(parts, again, bench.agent, claimed_at=claimed_at).run()

    assert bench.sandbox.jobs[0].task["attempt"] == 2
    assert bench.sandbox.jobs[0].task["previous_outcome"] == told
    assert (await bench.task()).status is TaskStatus.COMPLETED


# Refusals


async def test_an_unknown_agent_is_refused(bench: Bench) -> None:
    with pytest.raises(AgentNotFoundError):
        await bench.executor.execute_agent(99)
    assert await bench.tasks() == []


@pytest.mark.parametrize("context", [{"x": float("nan")}, {"x": {1}}, {1: 2}, {"x": "y" * 5 * MIB}])
async def test_a_context_that_is_no_json_is_refused_before_there_is_a_task(
    bench: Bench, context: Any
) -> None:
    with pytest.raises(InvalidInputError, match="context"):
        await bench.run(context)
    assert await bench.tasks() == []


@pytest.mark.parametrize(
    "arguments", [{"timeout_seconds": 0}, {"timeout_seconds": -1}, {"max_memory_mb": 15}]
)
def test_impossible_limits_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        AgentExecutor(**arguments)


async def test_an_agent_that_runs_already_is_busy(bench: Bench) -> None:
    bench.sandbox.hold()
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()

    with pytest.raises(AgentBusyError):
        await bench.run()

    bench.sandbox.release()
    assert (await running).success
    assert len(await bench.tasks()) == 1
    assert (await bench.run()).success


async def test_an_agent_whose_runner_died_is_not_busy(bench: Bench) -> None:
    await bench.run()
    dead = NewTask(agent_id=bench.agent.id)
    task = await bench.store.create_task(dead, claim=Claim(owner="dead", lease_seconds=30))
    labels = replace(bench.sandbox.specs[0].labels, task_id=task.id, fence=task.fence)
    bench.sandbox.add_container(labels, "exited")
    await bench.clock.advance(31)

    result = await bench.run()

    assert result.success
    assert (await bench.store.get_task(task.id)).reason is Reason.LOST
    assert await bench.sandbox.owned_containers(bench.store.store_id) == []


async def test_different_agents_run_at_the_same_time(bench: Bench) -> None:
    other = await bench.store.create_agent(AgentDraft(name="other", code="print(2)"))
    bench.sandbox.hold()
    runs = [asyncio.create_task(bench.executor.execute_agent(agent.id)) for agent in (bench.agent, other)]
    await bench.sandbox.until_running(2)
    bench.sandbox.release()

    assert all(result.success for result in await asyncio.gather(*runs))


# Failures around the run


async def test_a_sandbox_that_cannot_be_made_is_a_result_with_its_reason(bench: Bench) -> None:
    await bench.run()
    bench.sandbox.open_error = EngineUnavailableError("the engine does not answer; start it")

    result = await bench.run()

    assert (result.reason, result.exit_code) == (Reason.SANDBOX_ERROR, -1)
    assert result.error_message == "the engine does not answer; start it"
    assert (await bench.task()).status is TaskStatus.FAILED


@pytest.mark.parametrize("callback", ["on_output", "on_task"])
async def test_a_callback_that_raises_is_heard_and_leaves_no_running_task(
    bench: Bench, callback: str
) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError("nobody listens")

    arguments: dict[str, Any] = {callback: broken}
    bench.sandbox.behave = says(b"text\n")
    with pytest.raises(BrokenPipeError):
        await bench.run(**arguments)

    task = await bench.task()
    assert (task.status, task.reason) == (TaskStatus.FAILED, Reason.SANDBOX_ERROR)
    assert "nobody listens" in (task.error or "")
    assert await bench.sandbox.owned_containers(bench.store.store_id) == []
    assert (await bench.run()).success


async def test_callbacks_see_the_task_first_and_then_the_output(bench: Bench) -> None:
    seen: list[object] = []
    bench.sandbox.behave = says(b"text\n")

    result = await bench.run(
        on_task=lambda task: seen.append(task.status),
        on_output=lambda stream, data: seen.append((stream, data)),
    )

    assert result.success
    assert seen == [TaskStatus.RUNNING, ("stdout", b"text\n")]


async def test_a_store_away_at_the_end_is_waited_for(bench: Bench) -> None:
    bench.sandbox.hold()
    bench.sandbox.behave = saves({"n": 1})
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()
    bench.store.away = {"finish_task", "append_logs"}
    bench.sandbox.release()
    await until(lambda: "append_logs" in bench.store.calls)
    await advance(bench, 5)
    assert not running.done()

    bench.store.away = set()
    await advance(bench, 2)

    result = await asyncio.wait_for(running, 20)
    assert result.success
    assert (await bench.task()).status is TaskStatus.COMPLETED
    assert [chunk.data for chunk in await bench.log(1)] == [b"saved\n"]


async def test_an_end_that_was_stored_while_its_answer_was_lost_is_no_lost_run(bench: Bench) -> None:
    bench.sandbox.hold()
    bench.sandbox.behave = saves({"n": 1})
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()
    # A beat comes while the answer is waited for, and is told that the task runs no more.
    await advance(bench, 7)
    bench.store.lost_answers = 1
    bench.sandbox.release()
    await until(lambda: not bench.store.lost_answers)
    await advance(bench, 5)

    assert (await asyncio.wait_for(running, 20)).success
    artifact = await bench.store.newest_artifact(bench.agent.id)
    assert artifact is not None
    assert artifact.run_count == 1


async def test_a_store_away_for_longer_than_the_lease_ends_the_run_as_lost(bench: Bench) -> None:
    bench.sandbox.hold()
    bench.sandbox.behave = saves({"n": 1})
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()
    bench.store.away = {"finish_task", "append_logs", "extend_lease", "record_reason"}
    await advance(bench, 35)

    result = await asyncio.wait_for(running, 20)

    assert result.reason is Reason.LOST
    assert bench.sandbox.stops == [(Reason.LOST, "the lease was lost during the run")]
    assert await bench.sandbox.owned_containers(bench.store.store_id) == []
    bench.store.away = set()
    assert (await bench.task()).status is TaskStatus.RUNNING
    assert await bench.store.newest_artifact(bench.agent.id) is None
    # The next run sweeps it.
    bench.sandbox.release()
    assert (await bench.run()).success
    assert [task.reason for task in await bench.tasks()] == [Reason.LOST, Reason.COMPLETED]


async def test_a_store_away_at_the_beginning_is_raised_and_leaves_no_running_task(bench: Bench) -> None:
    bench.store.away = {"newest_artifact"}

    with pytest.raises(StoreUnavailableError):
        await bench.run()

    task = await bench.task()
    assert (task.status, task.reason) == (TaskStatus.FAILED, Reason.SANDBOX_ERROR)
    assert bench.sandbox.specs == []


async def test_after_the_lease_was_lost_nothing_is_written(bench: Bench) -> None:
    bench.sandbox.hold()
    bench.sandbox.behave = saves({"late": True})
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()
    gate = bench.store.gate("append_logs")
    # Somebody else took the task over: its lease ended, as seen from there, while this runner was frozen.
    bench.store._clock = ahead = FakeClock(bench.clock.now())
    await ahead.advance(31)
    await MemoryStore.expire_task(bench.store, await bench.task(), retry_at=ahead.now())
    await MemoryStore.claim_tasks(bench.store, Claim(owner="other", lease_seconds=300), limit=1)
    gate.set()
    await advance(bench, 10)

    result = await asyncio.wait_for(running, 20)

    assert (result.success, result.reason, result.state) == (False, Reason.LOST, None)
    task = await bench.task()
    assert (task.status, task.lease_owner, task.fence) == (TaskStatus.RUNNING, "other", 2)
    assert [attempt.reason for attempt in task.attempts] == [Reason.LOST, None]
    assert await bench.log(task.id) == []
    assert await bench.store.newest_artifact(bench.agent.id) is None


async def test_a_lease_that_ended_during_the_start_keeps_the_agent_from_running(bench: Bench) -> None:
    claim = Claim(owner="me", lease_seconds=30)
    task = await bench.store.create_task(NewTask(agent_id=bench.agent.id), claim=claim)
    claimed_at = bench.clock.monotonic()
    await bench.clock.advance(30)

    parts = await bench.executor.resolve()
    result = await bench.executor.begin(parts, task, bench.agent, claimed_at=claimed_at).run()

    assert result.reason is Reason.LOST
    assert bench.sandbox.jobs == []


# Cancellation


async def test_a_cancelled_run_is_recorded_as_cancelled(bench: Bench) -> None:
    bench.sandbox.hold()
    bench.sandbox.behave = says(b"so far\n")
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    task = await bench.task()
    assert (task.status, task.reason) == (TaskStatus.CANCELLED, Reason.CANCELLED)
    assert [chunk.data for chunk in await bench.log(task.id)] == [b"so far\n"]
    assert await bench.sandbox.owned_containers(bench.store.store_id) == []
    bench.sandbox.release()
    assert (await bench.run()).success


@pytest.mark.parametrize("method", ["create_task", "newest_artifact", "finish_task", "append_logs"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancellation_during_any_write_leaves_no_running_task(
    bench: Bench, method: str, times: int
) -> None:
    bench.sandbox.behave = saves({"n": 1})
    gate = bench.store.gate(method)
    running = asyncio.create_task(bench.run())
    await bench.store.arrived[method].wait()
    for _ in range(times):
        running.cancel()
        await asyncio.sleep(0.005)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running

    task = await bench.task()
    # Cancelled in the middle of its last write, a run may well have been completed.
    finished_first = method in ("finish_task", "append_logs")
    assert task.status is (TaskStatus.COMPLETED if finished_first else TaskStatus.CANCELLED)
    assert (await bench.store.newest_artifact(bench.agent.id) is not None) == finished_first
    del bench.store.gates[method]
    assert (await bench.run()).success


async def test_a_cancellation_is_not_swallowed_by_a_store_that_is_away(bench: Bench) -> None:
    gate = bench.store.gate("create_task")
    running = asyncio.create_task(bench.run())
    await bench.store.arrived["create_task"].wait()
    running.cancel()
    await asyncio.sleep(0.005)
    bench.store.away = {"finish_task"}
    gate.set()

    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_cancellation_with_the_store_away_ends_with_the_lease(bench: Bench) -> None:
    bench.sandbox.hold()
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()
    bench.store.away = {"finish_task", "record_reason", "extend_lease", "append_logs"}
    running.cancel()
    await advance(bench, 35)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 20)
    assert await bench.sandbox.owned_containers(bench.store.store_id) == []


async def test_the_reason_of_a_cancellation_is_recorded_before_the_container_goes(bench: Bench) -> None:
    bench.sandbox.hold()
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()
    gate = bench.store.gate("record_reason")
    running.cancel()
    await bench.store.arrived["record_reason"].wait()

    assert len(await bench.sandbox.owned_containers(bench.store.store_id)) == 1

    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_long_output_of_a_run_that_nobody_waits_for_leaves_the_same_state(bench: Bench) -> None:
    output = b"".join(b"line %d of a long output \xc3\xa9\n" % n for n in range(40_000))
    output = output + b'HANDOFF_STATE {"n": 7}\n' + output + b"the last line\n"
    bench.sandbox.behave = says(output)
    agent = await bench.store.create_agent(
        AgentDraft(name="wordy", code="x", config={"limits": {"max_output_bytes": 8 * MIB}})
    )
    expected = await bench.executor.execute_agent(agent.id, save_handoff=True)
    await bench.store.clear_artifact(agent.id)

    parts = await bench.executor.resolve()
    task = await bench.store.create_task(
        NewTask(agent_id=agent.id, context={}), claim=Claim(owner="me", lease_seconds=30)
    )
    claimed_at = bench.clock.monotonic()
    result = await bench.executor.begin(parts, task, agent, claimed_at=claimed_at, can_hand_back=True).run()

    assert result.state == expected.state
    assert (expected.state or {})["n"] == 7
    assert expected.stdout == output.decode()
    assert len(result.stdout) < 1024 * 1024
    assert (await bench.task()).result == "the last line"


async def test_what_samples_say_stands_in_for_what_no_report_says(bench: Bench) -> None:
    bench.sandbox.behave = lambda _job: FakeRun(
        result=SandboxResult(Reason.COMPLETED, 0, peak_memory_bytes=5)
    )
    bench.sandbox.usage = SandboxUsage(memory_bytes=3, cpu_percent=150.0, cpu_seconds=2.5, processes=4)
    bench.sandbox.hold()
    running = asyncio.create_task(bench.run())
    await bench.sandbox.until_running()
    await advance(bench, 2)
    bench.sandbox.release()
    usage = (await running).usage

    assert usage.peak_memory_bytes == 5
    assert (usage.cpu_seconds, usage.peak_processes, usage.peak_cpu_percent) == (2.5, 4, 150.0)
    stored = await bench.store.read_samples((await bench.task()).id)
    assert [(sample.memory_bytes, sample.processes) for sample in stored][:1] == [(3, 4)]
