"""`AgentExecutor`: one task through LOAD → EXECUTE → SUMMARIZE → RESET.

Everything a run writes carries the fence of its claim. When the lease is lost, the container is stopped and nothing
more is written; when the caller is cancelled, the run ends as `cancelled`, and that is written in any case.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from harness.aio import uninterrupted
from harness.clock import SystemClock
from harness.compression import Compressor
from harness.config import MIB, AgentConfig
from harness.errors import (
    AgentBusyError,
    HarnessError,
    InvalidInputError,
    LeaseLostError,
    SandboxError,
    StateRejectedError,
    StoreError,
)
from harness.handoff import HandoffManager
from harness.jsontext import encode_document
from harness.lease import LeaseKeeper
from harness.models import Agent, Claim, ExecutionResult, NewArtifact, NewTask, Outcome, Reason, Task, Usage
from harness.output import OutputRecorder
from harness.ports import (
    Clock,
    OutputSink,
    Sandbox,
    SandboxJob,
    SandboxLabels,
    SandboxLimits,
    SandboxResult,
    SandboxSpec,
    Store,
)
from harness.recovery import sweep
from harness.settings import Settings, get_settings

logger = logging.getLogger(__name__)

#: Largest context a caller may pass, in bytes of JSON.
MAX_CONTEXT_BYTES = 4 * MIB
#: Bound on deriving a state from the output, in seconds; a compressor may be the user's own.
COMPRESS_TIMEOUT_SECONDS = 60
#: Longest `Task.result`, in characters.
MAX_RESULT_CHARS = 1000
#: Pause between two tries of a final write while the store is away, in seconds.
RETRY_WRITE_SECONDS = 0.5

_ENTRYPOINT = "main.py"

OnTask = Callable[[Task], None]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an executor works with, once resolved."""

    store: Store
    sandbox: Sandbox
    clock: Clock
    settings: Settings


@dataclass(frozen=True, slots=True)
class _Run:
    """One claimed attempt and everything that belongs to it."""

    task: Task
    agent: Agent
    limits: SandboxLimits
    lease: LeaseKeeper
    output: OutputRecorder
    parts: _Parts


class AgentExecutor:
    """Runs agents, each run in a fresh container. Safe for any number of concurrent calls.

    ``AgentExecutor()`` uses the store and the engine that this process's environment names.
    """

    def __init__(
        self,
        timeout_seconds: float = 300,
        max_memory_mb: int = 256,
        *,
        store: Store | None = None,
        sandbox: Sandbox | None = None,
        clock: Clock | None = None,
        settings: Settings | None = None,
        compressor: Compressor | None = None,
    ) -> None:
        """Take what it works with; does no I/O.

        Args:
            timeout_seconds: Wall time of a run, for agents whose config sets no ``limits.timeout_seconds``.
            max_memory_mb: Memory of a run in MiB, for agents whose config sets no ``limits.max_memory_mb``.
            store: An open store, owned by the caller. None: the one shared by this process.
            sandbox: Where containers are made, owned by the caller. None: the one shared by this process.
            clock: None: the system's.
            settings: Further limits and the lease time. None: the environment's.
            compressor: Makes the state of an agent that sets none. None: `DigestCompressor`.

        Raises:
            InvalidInputError: A limit is not positive.
        """
        if timeout_seconds <= 0:
            raise InvalidInputError(f"timeout_seconds is {timeout_seconds}; give a number of seconds above 0")
        if max_memory_mb < 16:
            raise InvalidInputError(f"max_memory_mb is {max_memory_mb}; a sandbox needs at least 16")
        self.timeout_seconds = timeout_seconds
        self.max_memory_mb = max_memory_mb
        self._store = store
        self._sandbox = sandbox
        self._clock = clock or SystemClock()
        self._settings = settings
        self._compressor = compressor
        #: Names this executor in leases.
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._parts: _Parts | None = None

    async def execute_agent(
        self,
        agent_id: int,
        context: dict[str, Any] | None = None,
        *,
        save_handoff: bool | None = None,
        on_output: OutputSink | None = None,
        on_task: OnTask | None = None,
    ) -> ExecutionResult:
        """Run an agent once, now, and record it as a task.

        Args:
            agent_id: The agent.
            context: What the agent sees as `context`. None: the state of its newest handoff artifact.
            save_handoff: Whether a successful run saves its new state. None: only when `context` is None, since a
                caller who brings the context also keeps the state, as in the API description's example.
            on_output: Told the output as it comes; must not block.
            on_task: Told the task before its container is made.

        Returns:
            How it went. That an agent fails is a result, not an exception.

        Raises:
            AgentNotFoundError: There is no such agent.
            AgentBusyError: It is running already.
            InvalidInputError: The context is no JSON object, or too large.
            StoreUnavailableError: The store does not answer.
        """
        parts = await self._resolve()
        if context is not None:
            encode_document(context, what="context", max_bytes=MAX_CONTEXT_BYTES)
        agent = await parts.store.get_agent(agent_id)
        new = NewTask(
            agent_id=agent_id,
            context=context,
            save_handoff=context is None if save_handoff is None else save_handoff,
            active_slot=str(agent_id),
        )
        claimed_at = self._clock.monotonic()
        task = await self._create_claimed(parts, new)
        return await self.run_task(task, agent, claimed_at=claimed_at, on_output=on_output, on_task=on_task)

    async def run_task(
        self,
        task: Task,
        agent: Agent,
        *,
        claimed_at: float,
        on_output: OutputSink | None = None,
        on_task: OnTask | None = None,
    ) -> ExecutionResult:
        """Run a task that this process has claimed, to its final write.

        Args:
            task: As the claim returned it.
            agent: Whose task it is.
            claimed_at: ``clock.monotonic`` from before the claim.
            on_output: Told the output as it comes; must not block.
            on_task: Told the task before its container is made.

        Raises:
            StoreUnavailableError: The store does not answer; the task ends as lost if it never does.
            Exception: What `on_output` or `on_task` raised; the task ends as a sandbox error.
        """
        parts = await self._resolve()
        limits = self._limits(agent.options, parts.settings)
        lease = LeaseKeeper(
            parts.store,
            self._clock,
            task_id=task.id,
            fence=task.fence,
            lease_seconds=parts.settings.lease_seconds,
            claimed_at=claimed_at,
        )
        output = OutputRecorder(
            parts.store,
            self._clock,
            task_id=task.id,
            fence=task.fence,
            max_bytes=limits.output_bytes,
            forward=on_output,
        )
        run = _Run(task, agent, limits, lease, output, parts)
        async with lease:
            try:
                if on_task is not None:
                    on_task(task)
                return await self._load_execute_save(run)
            except asyncio.CancelledError:
                await uninterrupted(self._give_up(run, Reason.CANCELLED, "cancelled by its caller"))
                raise
            except LeaseLostError as error:
                logger.error("%s", error, extra={"action": "run_lost", "task_id": task.id})
                return _as_result(run, SandboxResult(Reason.LOST, -1, error.message), None, None)
            except Exception as error:
                # A callback's mistake or ours: whoever called learns of it, and the task must not seem to run on.
                await uninterrupted(self._give_up(run, Reason.SANDBOX_ERROR, f"the runner failed: {error!r}"))
                raise

    async def _load_execute_save(self, run: _Run) -> ExecutionResult:
        task = run.task
        artifact = await run.parts.store.newest_artifact(task.agent_id)
        context = task.context
        if context is None:
            context = artifact.state if artifact else {}
        start_seconds, result = await self._execute(run, context, artifact.run_count if artifact else 0)
        run.lease.check()
        state = result.state
        if result.reason is Reason.COMPLETED and state is None and task.save_handoff:
            result, state = await self._summarize(run, result, context)
        saves = result.reason is Reason.COMPLETED and task.save_handoff and state is not None
        new_artifact = (
            NewArtifact(state=state, summary=result.summary) if saves and state is not None else None
        )
        await uninterrupted(self._finish(run, _as_outcome(run, result, start_seconds), new_artifact))
        return _as_result(run, result, state, start_seconds)

    async def _execute(
        self, run: _Run, context: dict[str, Any], run_count: int
    ) -> tuple[float | None, SandboxResult]:
        """Run the job in a container; return the time to start it and how the job ended."""
        flushing = asyncio.create_task(run.output.flush_periodically())
        start_seconds = None
        try:
            async with run.parts.sandbox.open(_spec(run)) as session:
                start_seconds = session.start_seconds
                # The start may have taken longer than the lease. Past this line the agent can have effects.
                run.lease.check()
                run.lease.when_lost(lambda: session.stop(Reason.LOST, "the lease was lost during the run"))
                try:
                    job = _job(run, context, run_count)
                    result = await session.run(job, sink=run.output, before_stop=self._recorder(run))
                except asyncio.CancelledError:
                    await uninterrupted(self._recorder(run)(Reason.CANCELLED, "cancelled by its caller"))
                    raise
        except SandboxError as error:
            result = SandboxResult(Reason.SANDBOX_ERROR, -1, error.message)
        finally:
            run.lease.when_lost(None)
            flushing.cancel()
            await asyncio.gather(flushing, return_exceptions=True)
        return start_seconds, result

    def _recorder(self, run: _Run) -> Callable[[Reason, str], Any]:
        async def record(reason: Reason, message: str) -> None:
            if reason is not Reason.LOST:
                try:
                    await run.parts.store.record_reason(run.task.id, run.task.fence, reason, message)
                except (LeaseLostError, StoreError) as error:
                    logger.warning("reason %s of task %d not recorded: %s", reason, run.task.id, error)

        return record

    async def _summarize(
        self, run: _Run, result: SandboxResult, context: dict[str, Any]
    ) -> tuple[SandboxResult, dict[str, Any] | None]:
        manager = HandoffManager(
            store=run.parts.store, compressor=self._compressor, max_state_bytes=run.limits.state_bytes
        )
        output = run.output.text("stdout")
        if run.output.truncated:
            # The cap may have cut a line in two, and half a line of state is none.
            output = output[: output.rfind("\n") + 1]
        try:
            async with asyncio.timeout(COMPRESS_TIMEOUT_SECONDS):
                state = await manager.compress_context(run.task.agent_id, output, context)
        except StateRejectedError as error:
            problem = error.message
        except TimeoutError:
            problem = f"the compressor took longer than {COMPRESS_TIMEOUT_SECONDS} s"
        else:
            return result, state
        return replace(result, reason=Reason.STATE_REJECTED, error=problem, summary=""), None

    async def _finish(self, run: _Run, outcome: Outcome, artifact: NewArtifact | None) -> None:
        """Store the rest of the output and the end of the task; as long as the lease holds, try again."""
        while True:
            was_live = run.lease.is_live
            try:
                await run.output.flush()
                await run.parts.store.finish_task(run.task.id, run.task.fence, outcome, artifact=artifact)
            except StoreError as error:
                logger.warning("end of task %d not stored yet: %s", run.task.id, error)
                # The task's end may be stored and only the answer lost. Then the lease seems lost as well, and one
                # more try tells the two apart: the store refuses what is not ours any more.
                if not was_live:
                    run.lease.check()
                await self._clock.sleep(RETRY_WRITE_SECONDS)
            else:
                return

    async def _give_up(self, run: _Run, reason: Reason, message: str) -> None:
        """End the task without a result, as long as the lease holds."""
        try:
            await self._finish(run, _as_outcome(run, SandboxResult(reason, -1, message), None), None)
        except HarnessError as error:
            # Finished already, or taken over, and so not ours to end; or the store is away, and the lease ends it.
            logger.info("end of a run given up not recorded: %s", error)

    async def _create_claimed(self, parts: _Parts, new: NewTask) -> Task:
        claim = Claim(owner=self.owner, lease_seconds=parts.settings.lease_seconds)
        creating = asyncio.ensure_future(self._create_or_sweep(parts, new, claim))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await uninterrupted(_withdraw(parts.store, creating))
            raise

    async def _create_or_sweep(self, parts: _Parts, new: NewTask, claim: Claim) -> Task:
        try:
            return await parts.store.create_task(new, claim=claim)
        except AgentBusyError:
            # Busy with a run whose runner died: then a sweep frees it.
            await sweep(parts.store, parts.sandbox)
        return await parts.store.create_task(new, claim=claim)

    async def _resolve(self) -> _Parts:
        if self._parts is None:
            store, sandbox, settings = self._store, self._sandbox, self._settings
            if store is None or sandbox is None:
                # Only here, so that importing the executor loads neither a driver nor Docker.
                from harness.wiring import shared_runtime

                runtime = await shared_runtime()
                store, sandbox = store or runtime.store, sandbox or runtime.sandbox
                settings = settings or runtime.settings
            parts = _Parts(store, sandbox, self._clock, settings or get_settings())
            await sweep(store, sandbox)
            self._parts = parts
        return self._parts

    def _limits(self, options: AgentConfig, settings: Settings) -> SandboxLimits:
        asked = options.limits
        return SandboxLimits(
            memory_bytes=(asked.max_memory_mb or self.max_memory_mb) * MIB,
            cpus=asked.cpus or settings.cpus,
            max_processes=asked.max_processes or settings.max_processes,
            tmp_bytes=(asked.max_tmp_mb or settings.max_tmp_mb) * MIB,
            timeout_seconds=asked.timeout_seconds or self.timeout_seconds,
            grace_seconds=settings.grace_seconds if asked.grace_seconds is None else asked.grace_seconds,
            output_bytes=asked.max_output_bytes or settings.max_output_bytes,
            state_bytes=asked.max_state_bytes or settings.max_state_bytes,
        )


async def _withdraw(store: Store, creating: asyncio.Future[Task]) -> None:
    """End a task whose caller was cancelled before it could run."""
    outcome = Outcome(reason=Reason.CANCELLED, error="cancelled by its caller")
    try:
        task = await creating
        await store.finish_task(task.id, task.fence, outcome)
    except HarnessError as error:
        # There is no task, or the store is away and the lease will end it. Either way its caller is to be cancelled.
        logger.info("task of a cancelled caller not withdrawn: %s", error)


def _spec(run: _Run) -> SandboxSpec:
    options = run.agent.options
    return SandboxSpec(
        limits=run.limits,
        labels=SandboxLabels(run.parts.store.store_id, run.task.id, run.task.fence),
        image=options.image,
        command=None if options.command is None else tuple(options.command),
        environment={} if options.command is None else options.env,
        network=options.network,
    )


def _job(run: _Run, context: dict[str, Any], run_count: int) -> SandboxJob:
    agent, task = run.agent, run.task
    return SandboxJob(
        context=context,
        task={
            "agent_id": agent.id,
            "task_id": task.id,
            "attempt": task.fence,
            "run_count": run_count,
            "previous_outcome": _previous_outcome(task),
        },
        files=agent.files or {_ENTRYPOINT: agent.code},
        entrypoint=agent.entrypoint or _ENTRYPOINT,
        env=agent.options.env,
    )


def _previous_outcome(task: Task) -> str | None:
    """Return how the attempt before this one ended; what a lost one did nobody knows."""
    if len(task.attempts) < 2:
        return None
    reason = task.attempts[-2].reason
    return "unknown" if reason in (None, Reason.LOST) else str(reason)


def _as_outcome(run: _Run, result: SandboxResult, start_seconds: float | None) -> Outcome:
    succeeded = result.reason is Reason.COMPLETED
    return Outcome(
        reason=result.reason,
        exit_code=result.exit_code,
        result=(result.summary or _last_line(run.output.text("stdout")))[:MAX_RESULT_CHARS]
        if succeeded
        else None,
        error=result.error,
        output_truncated=run.output.truncated,
        usage=_usage(run, result, start_seconds),
    )


def _usage(run: _Run, result: SandboxResult, start_seconds: float | None) -> Usage:
    return Usage(
        peak_memory_bytes=result.peak_memory_bytes,
        cpu_seconds=result.cpu_seconds,
        wall_seconds=result.wall_seconds,
        container_start_seconds=start_seconds,
        output_bytes=run.output.total_bytes,
    )


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].strip()


def _as_result(
    run: _Run, result: SandboxResult, state: dict[str, Any] | None, start_seconds: float | None
) -> ExecutionResult:
    return ExecutionResult(
        success=result.reason is Reason.COMPLETED,
        stdout=run.output.text("stdout"),
        stderr=run.output.text("stderr"),
        exit_code=result.exit_code,
        duration_seconds=result.wall_seconds or 0.0,
        error_message=result.error,
        task_id=run.task.id,
        reason=result.reason,
        state=state,
        summary=result.summary,
        output_truncated=run.output.truncated,
        usage=_usage(run, result, start_seconds),
    )
