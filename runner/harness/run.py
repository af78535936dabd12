"""`TaskRun`: one claimed attempt of a task, LOAD → EXECUTE → SUMMARIZE → RESET, to its final write.

Everything it writes carries the fence of its claim. When the lease is lost, the container is stopped and nothing more
is written; when its caller is cancelled, the run ends as `cancelled`, and that is written in any case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from harness.aio import uninterrupted
from harness.compression import Compressor
from harness.config import AgentConfig
from harness.egress.log import DecisionLog
from harness.errors import (
    EngineUnavailableError,
    HarnessError,
    LeaseLostError,
    SandboxError,
    StateRejectedError,
    StoreError,
)
from harness.handoff import HandoffManager
from harness.lease import LeaseKeeper
from harness.models import (
    Agent,
    ExecutionResult,
    LoadedAgent,
    NewArtifact,
    Outcome,
    Reason,
    Task,
    Usage,
    log_seq,
    render_instant,
)
from harness.output import OutputRecorder
from harness.ports import (
    Clock,
    OutputSink,
    Sandbox,
    SandboxJob,
    SandboxLabels,
    SandboxLimits,
    SandboxResult,
    SandboxSession,
    SandboxSpec,
    Store,
)
from harness.retry import retry_delay
from harness.runsecrets import NO_SECRETS, SECRETS_UNUSABLE, RunSecrets
from harness.sampling import UsageSampler
from harness.settings import Settings

logger = logging.getLogger(__name__)

#: Bound on deriving a state from the output, in seconds; a compressor may be the user's own.
COMPRESS_TIMEOUT_SECONDS = 60
#: Longest `Task.result`, in characters.
MAX_RESULT_CHARS = 1000
#: Of each stream of a run that nobody waits for, this much of the end stays in memory, and up to twice as much.
KEEP_BYTES = 256 * 1024
#: Chunks that are read back at once, at most 1 MiB.
_PAGE_CHUNKS = 16
#: Pause between two tries of a final write while the store is away, in seconds.
RETRY_WRITE_SECONDS = 0.5

_ENTRYPOINT = "main.py"
_CANCELLED_BY_CALLER = "cancelled by its caller"

OnTask = Callable[[Task], None]


@dataclass(frozen=True, slots=True)
class RunParts:
    """What runs work with."""

    store: Store
    sandbox: Sandbox
    clock: Clock
    settings: Settings
    compressor: Compressor | None = None


class TaskRun:
    """One attempt; `run` it once."""

    def __init__(
        self,
        parts: RunParts,
        task: Task,
        agent: Agent,
        limits: Callable[[AgentConfig], SandboxLimits],
        *,
        claimed_at: float,
        loaded: LoadedAgent | None = None,
        on_output: OutputSink | None = None,
        can_hand_back: bool = False,
    ) -> None:
        """Take a task as its claim returned it.

        Args:
            parts: What it works with.
            task: The claimed task.
            agent: Whose task it is.
            limits: Gives those of its container, by what the agent asks for.
            claimed_at: ``clock.monotonic`` from before the claim.
            loaded: What was read for this run since the claim. None: it reads the newest artifact itself.
            on_output: Told the output as it comes; must not block.
            can_hand_back: Another runner may begin the task anew. So it is handed back, and not ended, when `run` is
                cancelled, which then means that this process ends, and when the engine does not answer before the
                agent has begun. Nobody waits for its output then, so of a long one the result has only the end.
        """
        self.task = task
        self._agent = agent
        #: Parsed once: it takes as long as all else that is done here.
        self._options = agent.options
        self._loaded = loaded
        self._parts = parts
        self._limits = limits(self._options)
        self._lease = LeaseKeeper(
            parts.store,
            parts.clock,
            task_id=task.id,
            fence=task.fence,
            lease_seconds=parts.settings.lease_seconds,
            claimed_at=claimed_at,
        )
        self._output = OutputRecorder(
            parts.store,
            parts.clock,
            task_id=task.id,
            fence=task.fence,
            max_bytes=self._limits.output_bytes,
            keep_bytes=KEEP_BYTES if can_hand_back else None,
            forward=on_output,
        )
        self._secrets = NO_SECRETS
        self._sampler = UsageSampler(parts.store, parts.clock, task_id=task.id, fence=task.fence)
        self._session: SandboxSession | None = None
        self._start_seconds: float | None = None
        self._stopped: tuple[Reason, str] | None = None
        #: What is said when the task is given back; None: it is not to be.
        self._handed_back: str | None = None
        self._was_handed_back = False
        #: Why it was handed back, where that is since the engine did not answer.
        self.engine_was_away: EngineUnavailableError | None = None
        self._can_hand_back = can_hand_back

    @property
    def has_lease(self) -> bool:
        """Whether the task is certainly still ours."""
        return self._lease.is_live

    async def run(self, on_task: OnTask | None = None) -> ExecutionResult:
        """Run it. That the agent, the engine or the lease fails is a result, not an exception.

        Args:
            on_task: Told the task before its container is made.

        Raises:
            StoreUnavailableError: The store does not answer; the task ends as lost if it never does.
            Exception: What `on_output` or `on_task` raised; the attempt ends as a sandbox error.
        """
        async with self._lease:
            try:
                if on_task is not None:
                    on_task(self.task)
                return await self._load_execute_save()
            except asyncio.CancelledError:
                await uninterrupted(self._finish_cancelled())
                raise
            except LeaseLostError as error:
                logger.error("%s", error, extra={"action": "run_lost", "task_id": self.task.id})
                return self._as_result(SandboxResult(Reason.LOST, -1, error.message), None)
            except Exception as error:
                # A callback's mistake or ours: whoever called learns of it, and the task must not seem to run on.
                problem = self._secrets.text(f"the runner failed: {error!r}")
                await uninterrupted(self._give_up(Reason.SANDBOX_ERROR, problem))
                raise

    async def stop(self, reason: Reason, message: str) -> None:
        """Ask the agent to end: SIGTERM, after its grace SIGKILL; the run then ends with `reason`.

        Before the container is there, the agent is not started at all. The first call decides.
        """
        if self._stopped is None:
            self._stopped = (reason, message)
            if self._session is not None:
                await self._session.stop(reason, message)

    async def hand_back(self, message: str) -> None:
        """Stop the agent and give the task back, so that another runner begins it anew at once."""
        if self._stopped is None:
            self._handed_back = message
        await self.stop(Reason.LOST, message)

    @property
    def was_handed_back(self) -> bool:
        """Whether it ended by giving its task back; known once `run` has returned."""
        return self._was_handed_back

    async def _load_execute_save(self) -> ExecutionResult:
        task = self.task
        if self._loaded is None:
            artifact = await self._parts.store.newest_artifact(task.agent_id)
        else:
            artifact = self._loaded.artifact
        context = task.context
        if context is None:
            context = artifact.state if artifact else {}
        result = await self._execute(context, artifact.run_count if artifact else 0)
        self._lease.check()
        state = result.state
        if result.reason is Reason.COMPLETED and state is None and task.save_handoff:
            result, state = await self._summarize(result, context)
        artifact_to_save = None
        if result.reason is Reason.COMPLETED and task.save_handoff and state is not None:
            artifact_to_save = NewArtifact(state=state, summary=result.summary)
        await uninterrupted(self._finish(self._as_outcome(result), artifact_to_save))
        return self._as_result(result, state)

    async def _execute(self, context: dict[str, Any], run_count: int) -> SandboxResult:
        """Run the job in a container of its own."""
        if early := self._stopped_early():
            return early
        try:
            self._secrets = await RunSecrets.load(
                self._parts.store, self._parts.settings, self._options.secrets
            )
        except SECRETS_UNUSABLE as error:
            return SandboxResult(Reason.SANDBOX_ERROR, -1, error.message)
        sink = self._secrets.sink(self._output)
        decisions = DecisionLog(self.task.id, self.task.agent_id, self._note)
        background = [asyncio.create_task(self._output.flush_periodically())]
        try:
            async with self._parts.sandbox.open(
                self._spec(), before_start=self._lease.check, on_egress=decisions
            ) as session:
                self._start_seconds = session.start_seconds
                # The start may have taken longer than the lease. Past this line the agent can have effects.
                self._lease.check()
                if early := self._stopped_early():
                    return early
                self._session = session
                self._lease.when_lost(lambda: session.stop(Reason.LOST, "the lease was lost during the run"))
                background.append(asyncio.create_task(self._sampler.sample_periodically(session)))
                try:
                    job = self._job(context, run_count)
                    result = await session.run(job, sink=sink, before_stop=self._record)
                    return self._secrets.result(result)
                except asyncio.CancelledError:
                    if not self._can_hand_back:
                        await uninterrupted(self._record(Reason.CANCELLED, _CANCELLED_BY_CALLER))
                    raise
        except EngineUnavailableError as error:
            if not self._can_hand_back or self._start_seconds is not None:
                return SandboxResult(Reason.SANDBOX_ERROR, -1, error.message)
            # No failure of the agent's, and nothing for its retries to be spent on.
            self.engine_was_away = error
            self._handed_back = error.message
            return SandboxResult(Reason.LOST, -1, error.message)
        except SandboxError as error:
            return SandboxResult(Reason.SANDBOX_ERROR, -1, error.message)
        finally:
            self._session = None
            self._lease.when_lost(None)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            sink.finish()
            decisions.finish()

    def _note(self, line: str) -> None:
        """Put a line of the runner's own among the output, for whoever looks at the task."""
        self._output("stderr", f"{self._secrets.text(line)}\n".encode())

    def _stopped_early(self) -> SandboxResult | None:
        """Return the result of a run that was stopped before its agent began."""
        return SandboxResult(self._stopped[0], -1, self._stopped[1]) if self._stopped else None

    async def _record(self, reason: Reason, message: str) -> None:
        """Write down why the agent is about to be stopped; after a lost lease, or for a hand-back, nothing is."""
        if reason is Reason.LOST:
            return
        try:
            await self._parts.store.record_reason(self.task.id, self.task.fence, reason, message)
        except (LeaseLostError, StoreError) as error:
            logger.warning("reason %s of task %d not recorded: %s", reason, self.task.id, error)

    async def _summarize(
        self, result: SandboxResult, context: dict[str, Any]
    ) -> tuple[SandboxResult, dict[str, Any] | None]:
        manager = HandoffManager(
            store=self._parts.store,
            compressor=self._parts.compressor,
            max_state_bytes=self._limits.state_bytes,
        )
        state: dict[str, Any] = {}

        async def compress() -> None:
            nonlocal state
            state = await manager.compress_pieces(
                self.task.agent_id, self._stdout(), context, is_cut=self._output.truncated
            )

        try:
            async with asyncio.timeout(COMPRESS_TIMEOUT_SECONDS):
                if self._output.is_whole("stdout"):
                    await compress()
                else:
                    # It is read back from the store, so it has to be there, and the store as well.
                    await self._persist(compress)
        except StateRejectedError as error:
            problem = self._secrets.text(error.message)
        except TimeoutError:
            problem = f"the compressor took longer than {COMPRESS_TIMEOUT_SECONDS} s"
        else:
            # The state before it may be from a time when a value in it was no secret yet.
            return result, self._secrets.state(state)
        return replace(result, reason=Reason.STATE_REJECTED, error=problem, summary=""), None

    async def _stdout(self) -> AsyncIterator[str]:
        """Yield all that was kept of stdout, in pieces, from memory or from the store."""
        if self._output.is_whole("stdout"):
            yield self._output.text("stdout")
            return
        seq = log_seq(self.task.fence, 0) - 1
        while chunks := await self._parts.store.read_logs(self.task.id, after_seq=seq, limit=_PAGE_CHUNKS):
            for chunk in chunks:
                if chunk.stream == "stdout":
                    yield chunk.data.decode(errors="replace")
            seq = chunks[-1].seq

    async def _finish(self, outcome: Outcome, artifact: NewArtifact | None) -> None:
        """Store the rest of the output and the end of the attempt; as long as the lease holds, try again."""
        await self._persist(lambda: self._close(outcome, artifact))

    async def _close(self, outcome: Outcome, artifact: NewArtifact | None) -> None:
        store, task = self._parts.store, self.task
        if self._handed_back is not None and outcome.reason is Reason.LOST:
            await store.hand_back_task(task.id, task.fence, self._handed_back)
            self._was_handed_back = True
            self._log("task_handed_back", f"handed back: {self._handed_back}")
            return
        delay = retry_delay(self._options.retry, task, outcome.reason)
        if delay is None:
            await store.finish_task(task.id, task.fence, outcome, artifact=artifact)
        else:
            due_at = await store.now() + delay
            await store.retry_task(task.id, task.fence, outcome, due_at=due_at)
            again = f"{outcome.reason}; tried again in {delay.total_seconds():g} s"
            self._log("task_retried", again, retry_count=task.retry_count + 1, due_at=render_instant(due_at))

    def _log(self, action: str, message: str, **details: object) -> None:
        extra = {"action": action, "task_id": self.task.id, "agent_id": self.task.agent_id, **details}
        logger.info("task %d %s", self.task.id, message, extra=extra)

    async def _persist(self, write: Callable[[], Awaitable[object]]) -> None:
        while True:
            was_live = self._lease.is_live
            try:
                await self._output.flush(is_last=True)
                await self._sampler.flush()
                await write()
            except StoreError as error:
                logger.warning("end of task %d not stored yet: %s", self.task.id, error)
                # The task's end may be stored and only the answer lost. Then the lease seems lost as well, and one
                # more try tells the two apart: the store refuses what is not ours any more.
                if not was_live:
                    self._lease.check()
                await self._parts.clock.sleep(RETRY_WRITE_SECONDS)
            else:
                return

    async def _finish_cancelled(self) -> None:
        if self._can_hand_back:
            self._handed_back = self._handed_back or "its runner ended"
            await self._give_up(Reason.LOST, self._handed_back)
        else:
            await self._give_up(Reason.CANCELLED, _CANCELLED_BY_CALLER)

    async def _give_up(self, reason: Reason, message: str) -> None:
        """End the attempt without a result, as long as the lease holds."""
        try:
            await self._finish(self._as_outcome(SandboxResult(reason, -1, message)), None)
        except HarnessError as error:
            # Finished already, or taken over, and so not ours to end; or the store is away, and the lease ends it.
            logger.info("end of a run given up not recorded: %s", error)

    def _spec(self) -> SandboxSpec:
        options = self._options
        return SandboxSpec(
            limits=self._limits,
            labels=SandboxLabels(self._parts.store.store_id, self.task.id, self.task.fence),
            image=options.image,
            command=None if options.command is None else tuple(options.command),
            environment={} if options.command is None else options.environment,
            network=options.network,
            egress=tuple(options.egress),
            owner=self.task.lease_owner,
        )

    def _job(self, context: dict[str, Any], run_count: int) -> SandboxJob:
        agent, task = self._agent, self.task
        return SandboxJob(
            context=context,
            task={
                "agent_id": agent.id,
                "task_id": task.id,
                "attempt": len(task.attempts),
                "run_count": run_count,
                "previous_outcome": _previous_outcome(task),
            },
            files=agent.files or {_ENTRYPOINT: agent.code},
            entrypoint=agent.entrypoint or _ENTRYPOINT,
            env={**self._options.environment, **self._secrets.environment},
        )

    def _as_outcome(self, result: SandboxResult) -> Outcome:
        summary = None
        if result.reason is Reason.COMPLETED:
            summary = (result.summary or _last_line(self._output.text("stdout")))[:MAX_RESULT_CHARS]
        return Outcome(
            reason=result.reason,
            exit_code=result.exit_code,
            result=summary,
            error=result.error,
            output_truncated=self._output.truncated,
            usage=self._usage(result),
        )

    def _as_result(self, result: SandboxResult, state: dict[str, Any] | None) -> ExecutionResult:
        return ExecutionResult(
            success=result.reason is Reason.COMPLETED,
            stdout=self._output.text("stdout"),
            stderr=self._output.text("stderr"),
            exit_code=result.exit_code,
            duration_seconds=result.wall_seconds or 0.0,
            error_message=result.error,
            task_id=self.task.id,
            reason=result.reason,
            state=state,
            summary=result.summary,
            output_truncated=self._output.truncated,
            usage=self._usage(result),
        )

    def _usage(self, result: SandboxResult) -> Usage:
        sampled = self._sampler
        # What the kernel counted is exact; samples stand in where there is no such report.
        peak_memory_bytes, cpu_seconds = result.peak_memory_bytes, result.cpu_seconds
        return Usage(
            peak_memory_bytes=sampled.peak_memory_bytes if peak_memory_bytes is None else peak_memory_bytes,
            cpu_seconds=sampled.cpu_seconds if cpu_seconds is None else cpu_seconds,
            peak_processes=sampled.peak_processes,
            peak_cpu_percent=sampled.peak_cpu_percent,
            wall_seconds=result.wall_seconds,
            container_start_seconds=self._start_seconds,
            output_bytes=self._output.total_bytes,
        )


def _previous_outcome(task: Task) -> str | None:
    """Return how the attempt before this one ended; what a lost one did nobody knows."""
    if len(task.attempts) < 2:
        return None
    reason = task.attempts[-2].reason
    return "unknown" if reason in (None, Reason.LOST) else str(reason)


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].strip()
