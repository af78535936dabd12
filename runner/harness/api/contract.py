"""`HarnessApi`: everything that can be asked of the service. Each docstring is the contract, for every implementation.

Any call may raise `StoreUnavailableError` and `InvalidInputError`; over HTTP also `AuthenticationError`,
`PermissionDeniedError`, `RateLimitedError` and `ServerUnavailableError`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from harness.api.values import HandoffDiff, LogEvent, LogLine, ScheduleView, SystemResources
from harness.audit import AuditEntry
from harness.models import Agent, AgentDraft, HandoffArtifact, Page, Task, TaskStatus, UsageSample
from harness.secrets.info import SecretInfo
from harness.tokens import ApiToken, CreatedToken, TokenDraft


class HarnessApi(Protocol):
    """The service."""

    # Agents

    async def create_agent(self, draft: AgentDraft) -> Agent:
        """Store a new agent; its schedule, if it has one, is in force from now on.

        Raises:
            AgentNameTakenError: Another agent has the name.
        """

    async def get_agent(self, agent_id: int) -> Agent:
        """Return an agent, or raise `AgentNotFoundError`."""

    async def find_agent(self, name: str) -> Agent:
        """Return the agent of that name, or raise `AgentNotFoundError`."""

    async def list_agents(self, *, limit: int = 100, offset: int = 0) -> Page[Agent]:
        """Return agents by falling id."""

    async def update_agent(
        self, agent_id: int, draft: AgentDraft, *, expected_version: int | None = None
    ) -> Agent:
        """Replace what the owner wrote.

        Args:
            agent_id: The agent.
            draft: All of it; what is left out falls back to its default.
            expected_version: Change it only if it is still at this version.

        Raises:
            AgentNotFoundError: There is no such agent.
            VersionConflictError: It is at another version.
            AgentNameTakenError: Another agent has the new name.
        """

    async def delete_agent(self, agent_id: int) -> None:
        """Delete an agent with its tasks, logs and artifacts.

        Raises:
            AgentNotFoundError: There is no such agent.
            AgentBusyError: It has an active task; cancel that first.
        """

    # Runs and tasks

    async def run(
        self,
        agent_id: int,
        context: dict[str, Any] | None = None,
        *,
        save_handoff: bool | None = None,
        wait_seconds: float = 0,
        idempotency_key: str | None = None,
    ) -> Task:
        """Have an agent run now, by whichever runner is free.

        Args:
            agent_id: The agent.
            context: What it sees as ``context``; None: the state that its last run left.
            save_handoff: Whether a completed run saves its state; None: it does unless it was given a context.
            wait_seconds: Return at the run's end or after this, whichever is first; up to 300.
            idempotency_key: 1 to 200 printable ASCII characters without blanks at the ends. A repetition with the same
                key returns the first call's task and makes no second one, for as long as that task is kept.

        Returns:
            The task; final only if the run ended within the wait.

        Raises:
            AgentNotFoundError: There is no such agent.
            AgentBusyError: It has as many active tasks as it may.
            IdempotencyKeyReusedError: The key belongs to a run that was asked for otherwise.
        """

    async def list_tasks(
        self,
        *,
        agent_id: int | None = None,
        status: TaskStatus | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Page[Task]:
        """Return tasks by falling id."""

    async def get_task(self, task_id: int) -> Task:
        """Return a task, or raise `TaskNotFoundError`."""

    async def cancel_task(self, task_id: int) -> Task:
        """Cancel a pending task at once; have a running one stopped, within a second or two. A final one stays.

        Raises:
            TaskNotFoundError: There is no such task.
        """

    async def cancel_tasks(
        self, *, agent_id: int | None = None, status: Literal["pending", "running"] | None = None
    ) -> Sequence[int]:
        """Cancel all active tasks that match; return their ids. Tasks that come to be meanwhile may be left out."""

    async def retry_task(self, task_id: int, *, force: bool = False) -> Task:
        """Have a failed task tried again after its retry delay.

        Args:
            task_id: The task.
            force: Once more also when its retries are used up.

        Raises:
            TaskNotFoundError: There is no such task.
            ConflictError: It did not fail, or was retried as often as it may be.
            AgentBusyError: Its agent runs.
        """

    def logs(self, task_id: int, *, follow: bool = True) -> AsyncIterator[LogLine]:
        """Yield a task's output line by line, over all its attempts, each line once and in order.

        A line comes when its end does; one that is never ended, with the end of its attempt; one of more than 1,048,576
        characters in pieces. Lines of stdout are in order, and those of stderr; between the two, it is the order in
        which they were ended, as far as the agent's writes were told apart. Where another attempt follows, after a
        failure or because its runner was lost, a line whose `stream` is None stands between the two.

        Args:
            task_id: The task.
            follow: Go on until the task has ended.

        Raises:
            TaskNotFoundError: There is no such task; raised by the first step. One that is deleted meanwhile ends it.
        """

    def log_events(
        self, task_id: int, *, follow: bool = True, after: int = -1
    ) -> AsyncGenerator[LogEvent, None]:
        """Yield a task's output in order, each piece once, over all its attempts, and where each attempt begins.

        A store, or a server, that goes away meanwhile is waited for.

        Args:
            task_id: The task.
            follow: Go on until the task has ended. The last event is ``end`` in any case, unless `after` is the ``end``
                of a task that has ended: then there is none.
            after: Only what comes after the event with this sequence number.

        Raises:
            TaskNotFoundError: There is no such task; raised by the first step. One that is deleted meanwhile ends it.
        """

    def stats(self, task_id: int, *, follow: bool = True, after: int = -1) -> AsyncIterator[UsageSample]:
        """Yield samples of what a task uses, over all its attempts, each once and in order.

        The first comes a second after an attempt's begin, so short runs have none; later ones are further apart.

        Args:
            task_id: The task.
            follow: Go on until the task has ended, or is deleted.
            after: Only what comes after the sample with this sequence number.

        Raises:
            TaskNotFoundError: There is no such task; raised by the first step.
        """

    # Schedules

    async def get_schedule(self, agent_id: int, *, fires: int = 5) -> ScheduleView:
        """Return an agent's schedule with its next fires; raises `AgentNotFoundError`."""

    async def put_schedule(self, agent_id: int, schedule: dict[str, Any]) -> ScheduleView:
        """Write a schedule into an agent's config and take it into force, also after a pause or a removal.

        Raises:
            AgentNotFoundError: There is no such agent.
        """

    async def delete_schedule(self, agent_id: int) -> None:
        """Take the schedule out of an agent's config. Idempotent; raises `AgentNotFoundError`."""

    async def remove_schedule(self, agent_id: int) -> ScheduleView:
        """Take a schedule out of force until it is resumed or put anew; the config keeps it.

        Raises:
            AgentNotFoundError: There is no such agent.
        """

    async def pause_schedule(self, agent_id: int) -> ScheduleView:
        """Fire an agent no more until it is resumed; raises `AgentNotFoundError`."""

    async def resume_schedule(self, agent_id: int) -> ScheduleView:
        """Fire a paused or removed schedule again, from now on; raises `AgentNotFoundError`."""

    async def preview_schedule(self, schedule: dict[str, Any], *, fires: int = 5) -> Sequence[datetime]:
        """Return when a schedule that is not stored would fire, counted from now."""

    async def backfill(self, agent_id: int, start: datetime, end: datetime | None = None) -> Sequence[int]:
        """Make tasks of past fires that have none, from `start` to `end` (None: now); return their ids.

        Raises:
            AgentNotFoundError: There is no such agent.
            InvalidInputError: It has no schedule, or the range is none that has passed.
        """

    # Handoffs

    async def get_handoff(self, agent_id: int) -> HandoffArtifact:
        """Return an agent's newest artifact.

        Raises:
            AgentNotFoundError: There is no such agent.
            ArtifactNotFoundError: It has none, or was cleared.
        """

    async def put_handoff(self, agent_id: int, state: dict[str, Any], summary: str = "") -> HandoffArtifact:
        """Save a state as an agent's newest artifact.

        Raises:
            AgentNotFoundError: There is no such agent.
            StateRejectedError: The state is not acceptable.
        """

    async def clear_handoff(self, agent_id: int) -> None:
        """Make an agent's next run a first run; the history stays. Idempotent; raises `AgentNotFoundError`."""

    async def handoff_history(
        self, agent_id: int, *, limit: int = 100, before_version: int | None = None
    ) -> Sequence[HandoffArtifact]:
        """Return an agent's artifacts by falling version, clears included; raises `AgentNotFoundError`."""

    async def rollback_handoff(self, agent_id: int, version: int) -> HandoffArtifact:
        """Save an old version's state as the newest artifact.

        Raises:
            AgentNotFoundError: There is no such agent.
            ArtifactNotFoundError: It has no artifact of that version, or that version is a clear.
        """

    async def diff_handoff(self, agent_id: int, before: int, after: int | None = None) -> HandoffDiff:
        """Compare the states of two versions; `after` None: the newest.

        Raises:
            AgentNotFoundError: There is no such agent.
            ArtifactNotFoundError: It has no artifact of such a version.
        """

    # Secrets

    async def put_secret(self, name: str, value: str) -> SecretInfo:
        """Store a secret, or give it another value; runs that have begun keep the old one. Nothing answers a value.

        Raises:
            InvalidInputError: The name or the value is not acceptable.
            SecretKeyError: The service has no key to encrypt it with.
        """

    async def list_secrets(self, *, limit: int = 100, offset: int = 0) -> Page[SecretInfo]:
        """Return what is known of the secrets, by rising name."""

    async def delete_secret(self, name: str) -> None:
        """Delete a secret; runs of agents that name it fail from now on.

        Raises:
            SecretNotFoundError: There is none of that name.
        """

    # The machine

    async def system_resources(self) -> SystemResources:
        """Return what the machine of the server has."""

    # Access

    async def create_token(self, draft: TokenDraft) -> CreatedToken:
        """Make a token; its text is in the answer, and can't be had again.

        With the first one the service begins to ask for tokens, from everybody, and never stops again.

        Raises:
            InvalidInputError: It would have expired already.
        """

    async def list_tokens(self, *, limit: int = 100, offset: int = 0) -> Page[ApiToken]:
        """Return tokens by falling id, those included that are no longer valid."""

    async def revoke_token(self, token_id: int) -> ApiToken:
        """Make a token invalid from now on. Idempotent.

        Raises:
            TokenNotFoundError: There is no such token.
        """

    async def list_audit(self, *, limit: int = 100, before_id: int | None = None) -> Sequence[AuditEntry]:
        """Return who changed what by falling id; with `before_id`, only lines with a lower one."""
