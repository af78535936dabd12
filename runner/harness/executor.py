"""`AgentExecutor`: runs an agent once, now, and records it as a task. What a run is, is in `harness.run`."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from typing import Any

from harness.aio import uninterrupted
from harness.clock import SystemClock
from harness.compression import Compressor
from harness.config import MIB, AgentConfig
from harness.errors import AgentBusyError, HarnessError, InvalidInputError
from harness.jsontext import encode_document
from harness.models import Agent, Claim, ExecutionResult, LoadedAgent, NewTask, Outcome, Reason, Task
from harness.ports import Clock, OutputSink, Sandbox, SandboxLimits, SandboxShape, Store, sandbox_shape
from harness.recovery import sweep
from harness.run import OnTask, RunParts, TaskRun
from harness.settings import Settings, get_settings

logger = logging.getLogger(__name__)

#: Largest context a caller may pass, in bytes of JSON.
MAX_CONTEXT_BYTES = 4 * MIB


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
        #: Names this executor in leases, and in the labels of what waits for its tasks.
        self.owner = ""
        self.change_owner()
        self._parts: RunParts | None = None
        self._swept = False

    def change_owner(self) -> None:
        """Take a name for leases that nobody had before; leases that are held keep theirs."""
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    async def execute_agent(
        self,
        agent_id: int,
        context: dict[str, Any] | None = None,
        *,
        save_handoff: bool | None = None,
        on_output: OutputSink | None = None,
        on_task: OnTask | None = None,
    ) -> ExecutionResult:
        """Run an agent once, now, and record it as a task. It is not retried: the caller sees how it went.

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
            AgentBusyError: It is running already, as often as its schedule's `overlap` allows.
            InvalidInputError: The context is no JSON object, or too large.
            StoreUnavailableError: The store does not answer.
            EngineUnavailableError: The engine does not answer at the first call; later that is a result.
        """
        parts = await self.resolve()
        if not self._swept:
            await sweep(parts.store, parts.sandbox, clock=parts.clock)
            self._swept = True
        if context is not None:
            encode_document(context, what="context", max_bytes=MAX_CONTEXT_BYTES)
        agent = await parts.store.get_agent(agent_id)
        new = NewTask(
            agent_id=agent_id,
            context=context,
            save_handoff=context is None if save_handoff is None else save_handoff,
            max_active=agent.options.max_active,
        )
        claimed_at = self._clock.monotonic()
        task = await self._create_claimed(parts, new)
        run = self.begin(parts, task, agent, claimed_at=claimed_at, on_output=on_output)
        return await run.run(on_task)

    def begin(
        self,
        parts: RunParts,
        task: Task,
        agent: Agent,
        *,
        claimed_at: float,
        loaded: LoadedAgent | None = None,
        on_output: OutputSink | None = None,
        can_hand_back: bool = False,
    ) -> TaskRun:
        """Return the run of a claimed task under this executor's limits; see `TaskRun`."""
        return TaskRun(
            parts,
            task,
            agent,
            lambda options: self._limits(options, parts.settings),
            claimed_at=claimed_at,
            loaded=loaded,
            on_output=on_output,
            can_hand_back=can_hand_back,
        )

    def shape_of(self, agent: Agent) -> SandboxShape | None:
        """Return what the containers of an agent's runs are like; None where each has to be made for its run."""
        # Parsed once: each access does it anew.
        options = agent.options
        if self._parts is None or options.command is not None:
            return None
        limits = self._limits(options, self._parts.settings)
        return sandbox_shape(limits, image=options.image, network=options.network)

    async def _create_claimed(self, parts: RunParts, new: NewTask) -> Task:
        claim = Claim(owner=self.owner, lease_seconds=parts.settings.lease_seconds)
        creating = asyncio.ensure_future(self._create_or_sweep(parts, new, claim))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await uninterrupted(_withdraw(parts.store, creating))
            raise

    async def _create_or_sweep(self, parts: RunParts, new: NewTask, claim: Claim) -> Task:
        try:
            return await parts.store.create_task(new, claim=claim)
        except AgentBusyError:
            # Busy with a run whose runner died: then a sweep frees it.
            await sweep(parts.store, parts.sandbox, clock=parts.clock)
        return await parts.store.create_task(new, claim=claim)

    async def resolve(self) -> RunParts:
        """Return what it works with; schedulers and workers share it. Asks nothing of the engine."""
        if self._parts is None:
            store, sandbox, settings = self._store, self._sandbox, self._settings
            if store is None or sandbox is None:
                # Only here, so that importing the executor loads neither a driver nor Docker.
                from harness.wiring import shared_runtime

                runtime = await shared_runtime()
                store, sandbox = store or runtime.store, sandbox or runtime.sandbox
                settings = settings or runtime.settings
            self._parts = RunParts(store, sandbox, self._clock, settings or get_settings(), self._compressor)
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
