"""One run of an agent on the server that HARNESS_URL names, seen from here as if it ran here."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from harness.cli.render import note
from harness.cli.session import find_agent, open_api
from harness.errors import ArtifactNotFoundError, HarnessError

if TYPE_CHECKING:
    from harness.api import HarnessApi
    from harness.cli.output import LiveOutput
    from harness.models import ExecutionResult, HandoffArtifact, Task

#: How long a run that is to be cancelled may take to end, in seconds; the server goes on with that by itself.
CANCEL_SECONDS = 15.0


class RunThere:
    """One run on a server, and the task it has become as soon as there is one."""

    def __init__(self) -> None:
        self.task: Task | None = None
        self._printed: dict[str, list[str]] = {"stdout": [], "stderr": []}

    async def execute(
        self, reference: str, context: dict[str, Any] | None, output: LiveOutput | None
    ) -> ExecutionResult:
        """Have an agent run, follow what it prints, and return how its last attempt ended."""
        async with open_api() as api:
            agent = await find_agent(api, reference)
            # With a key the request may be sent again when its answer is lost, and still makes one task.
            key = secrets.token_hex(16)
            self.task = await api.run(agent.id, context, save_handoff=True, idempotency_key=key)
            try:
                await self._follow(api, self.task, output)
                self.task = await api.get_task(self.task.id)
                return self._result(self.task, await _artifact_of(api, self.task))
            except asyncio.CancelledError:
                await self._cancel(api, self.task)
                raise

    async def _follow(self, api: HarnessApi, task: Task, output: LiveOutput | None) -> None:
        async with aclosing(api.log_events(task.id)) as events:
            async for event in events:
                if event.kind == "attempt":
                    # What is returned is about the last one.
                    self._printed = {"stdout": [], "stderr": []}
                    if output is not None and event.attempt > 1:
                        note(f"attempt {event.attempt}")
                elif event.kind in ("stdout", "stderr"):
                    self._printed[event.kind].append(event.text)
                    if output is not None:
                        output(event.kind, event.text.encode())

    def _result(self, task: Task, artifact: HandoffArtifact | None) -> ExecutionResult:
        from harness.models import ExecutionResult, Reason, TaskStatus, Usage

        attempt = task.attempt
        began, ended = task.started_at, task.completed_at
        return ExecutionResult(
            success=task.status is TaskStatus.COMPLETED,
            stdout="".join(self._printed["stdout"]),
            stderr="".join(self._printed["stderr"]),
            exit_code=-1 if attempt is None or attempt.exit_code is None else attempt.exit_code,
            duration_seconds=(ended - began).total_seconds() if began and ended else 0.0,
            error_message=task.error,
            task_id=task.id,
            reason=task.reason or Reason.CANCELLED,
            state=None if artifact is None else artifact.state,
            summary=(task.result or "") if artifact is None else artifact.summary,
            output_truncated=attempt is not None and attempt.output_truncated,
            usage=Usage() if attempt is None else attempt.usage,
        )

    async def _cancel(self, api: HarnessApi, task: Task) -> None:
        """Have the run stopped, and wait for that, so that what is said about it is true."""
        try:
            self.task = await api.cancel_task(task.id)
            async with asyncio.timeout(CANCEL_SECONDS), aclosing(api.log_events(task.id)) as events:
                async for _ in events:
                    pass
            self.task = await api.get_task(task.id)
        except (HarnessError, TimeoutError) as error:
            note(f"task {task.id} may still run there: {error}", label="warning:")


async def _artifact_of(api: HarnessApi, task: Task) -> HandoffArtifact | None:
    """Return what a task saved; None when it saved nothing, or another one has saved something since."""
    try:
        artifact = await api.get_handoff(task.agent_id)
    except ArtifactNotFoundError:
        return None
    return artifact if artifact.task_id == task.id else None
