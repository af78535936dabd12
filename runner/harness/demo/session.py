"""The demo's course: one agent through run after run until its state says that it is done, then what the store holds.

Everything shown at the end is read back from the store, and the engine is asked what is left of the containers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from harness.aio import uninterrupted
from harness.errors import AgentNotFoundError
from harness.executor import AgentExecutor
from harness.jsontext import encode_document
from harness.models import Agent, AgentDraft, Attempt, ExecutionResult, HandoffArtifact, Task
from harness.sandbox.inspection import ping
from harness.wiring import Runtime, open_runtime

if TYPE_CHECKING:
    from harness.demo.display import Display
    from harness.ports import Store
    from harness.settings import Settings

AGENT_NAME = "demo-stdlib-audit"
AGENT_CONFIG: dict[str, Any] = {
    "limits": {"max_memory_mb": 256, "cpus": 1.0, "max_processes": 16},
}
#: The agent is through after ten; when it is not after these, something is wrong.
MAX_RUNS = 12


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """One run, as stored."""

    number: int
    task: Task
    #: What it saved; None after a failure.
    artifact: HandoffArtifact | None

    @property
    def succeeded(self) -> bool:
        """Whether it completed and saved its state."""
        return self.task.status == "completed" and self.artifact is not None

    @property
    def attempt(self) -> Attempt:
        """Its last container."""
        return self.task.attempts[-1]

    @property
    def state_bytes(self) -> int | None:
        """Size of the state it handed over."""
        return None if self.artifact is None else size_of(self.artifact.state)

    @property
    def modules(self) -> int | None:
        """How many modules were audited when it ended."""
        return None if self.artifact is None else int(self.artifact.state["cursor"])


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was looked at once more at the end."""

    as_expected: bool
    text: str


async def run_demo(settings: Settings, display: Display) -> bool:
    """Run the demo on the store and the engine that `settings` name.

    Returns:
        Whether everything was as it should be.

    Raises:
        EngineUnavailableError: No engine answers; nothing was printed when that is so from the start.
        HarnessError: The store or an image fails.
    """
    async with open_runtime(settings) as runtime:
        await ping(runtime.sandbox.engine)
        display.title("An agent audits the standard library of its own Python, a tenth of it per run.")
        image = await runtime.images.ensure_default(display.say)
        display.say(f"Each run is a new container of {image} on {runtime.sandbox.engine.address.url}.")
        agent = await _make_agent(runtime.store)
        task_ids: list[int] = []
        try:
            with display.live():
                await _run_until_done(runtime, agent, display, task_ids)
        except BaseException:
            if task_ids:
                # Whoever interrupts it wants to know as well.
                display.verdict([await uninterrupted(_containers_left(runtime))])
            raise
        runs = await _finished_runs(runtime.store, agent, task_ids)
        display.runs(runs)
        newest = await runtime.store.newest_artifact(agent.id)
        if newest is not None:
            size = size_of(newest.state)
            display.findings(newest.state, f"artifact {newest.version} of agent {agent.id} ({size:,} bytes)")
        checks = [*_check(runs, newest), await _containers_left(runtime)]
        display.verdict(checks)
        return all(check.as_expected for check in checks)


def agent_source() -> str:
    """Return the agent's source: it is data here, and runs inside the sandbox only."""
    return resources.files("harness.demo").joinpath("stdlib_audit.py").read_text(encoding="utf-8")


def size_of(state: dict[str, Any]) -> int:
    """Return the size of a state as it is stored, in bytes."""
    return len(encode_document(state, what="state").encode())


async def _make_agent(store: Store) -> Agent:
    """Create the agent; in a store that is kept it may be there from the last time, and goes on from its state."""
    draft = AgentDraft(name=AGENT_NAME, code=agent_source(), config=AGENT_CONFIG)
    try:
        agent = await store.find_agent(AGENT_NAME)
    except AgentNotFoundError:
        return await store.create_agent(draft)
    return await store.update_agent(agent.id, draft, expected_version=agent.version)


async def _run_until_done(runtime: Runtime, agent: Agent, display: Display, task_ids: list[int]) -> None:
    executor = AgentExecutor(
        store=runtime.store, sandbox=runtime.sandbox, clock=runtime.clock, settings=runtime.settings
    )
    for number in range(1, MAX_RUNS + 1):
        display.run_begins(number)
        if number == 1:
            _explain_before(await runtime.store.newest_artifact(agent.id), agent, display)
        result = await executor.execute_agent(
            agent.id, on_output=display, on_task=lambda task: task_ids.append(task.id)
        )
        await display.run_ended(result, size_of(result.state or {}))
        if not result.success or result.state is None:
            return
        if number == 1:
            _explain_after(result, display)
        if result.state["done"]:
            return


def _explain_before(artifact: HandoffArtifact | None, agent: Agent, display: Display) -> None:
    display.step(
        "LOAD",
        "There is no handoff artifact yet, so the agent's context is empty."
        if artifact is None
        else f"The state of handoff artifact {artifact.version} becomes the agent's context.",
    )
    limits = agent.options.limits
    display.step(
        "EXECUTE",
        f"The agent runs in a fresh container: {limits.max_memory_mb} MiB, {limits.cpus:g} CPU, at most "
        f"{limits.max_processes} processes, no network, a read-only file system. This is its output:",
    )


def _explain_after(result: ExecutionResult, display: Display) -> None:
    display.step("SUMMARIZE", f"Its call of handoff.save(state, summary) says: {result.summary}.")
    display.step(
        "RESET",
        "The state is saved as a handoff artifact, and the container is thrown away. Every run takes these four steps.",
    )


async def _finished_runs(store: Store, agent: Agent, task_ids: Sequence[int]) -> list[FinishedRun]:
    history = await store.artifact_history(agent.id, limit=MAX_RUNS)
    artifacts = {artifact.task_id: artifact for artifact in history}
    return [
        FinishedRun(number, await store.get_task(task_id), artifacts.get(task_id))
        for number, task_id in enumerate(task_ids, start=1)
    ]


def _check(runs: Sequence[FinishedRun], newest: HandoffArtifact | None) -> list[Check]:
    succeeded = sum(run.succeeded for run in runs)
    state = {} if newest is None else newest.state
    audited, total = state.get("cursor", 0), state.get("total", 0)
    attempts = [attempt for run in runs for attempt in run.task.attempts]
    containers = sum(attempt.usage.container_start_seconds is not None for attempt in attempts)
    return [
        Check(succeeded == len(runs) > 0, f"runs completed: {succeeded} of {len(runs)}"),
        Check(bool(state.get("done")) and audited == total, f"modules audited: {audited} of {total}"),
        Check(containers == len(runs), f"containers used: {containers} for {len(runs)} runs"),
    ]


async def _containers_left(runtime: Runtime) -> Check:
    await runtime.sandbox.settle()
    left = await runtime.sandbox.owned_containers(runtime.store.store_id)
    return Check(not left, f"containers left: {len(left)}")
