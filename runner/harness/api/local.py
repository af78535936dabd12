"""`LocalApi`: the service on a store at hand. What takes more than a call of the core is in the modules beside it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from harness.api import handoffs, runs, schedules, stats, tokens
from harness.api.logs import LogReader, lines_of
from harness.api.values import HandoffDiff, LogEvent, LogLine, ScheduleView, SystemResources, check_wait
from harness.audit import AuditEntry
from harness.models import Agent, AgentDraft, HandoffArtifact, Page, Task, TaskStatus, UsageSample
from harness.ports import Clock, Store
from harness.secrets.info import SecretInfo
from harness.settings import Settings
from harness.tokens import ApiToken, CreatedToken, TokenDraft

if TYPE_CHECKING:
    from harness.handoff import HandoffManager
    from harness.resources import ResourceManager
    from harness.scheduler import TaskScheduler
    from harness.vault import SecretVault


class LocalApi:
    """`harness.api.HarnessApi` on one store."""

    def __init__(
        self, store: Store, *, clock: Clock, settings: Settings, scheduler: TaskScheduler | None = None
    ) -> None:
        """Use an open store, which stays the caller's.

        Args:
            store: Where everything is.
            clock: Measures waits.
            settings: Bound states of agents that set no bound, and hold the keys of secrets.
            scheduler: One that may be started, and then acts on changes at once; None: one of its own that is not.
        """
        self._store = store
        self._clock = clock
        self._settings = settings
        self._given_scheduler = scheduler
        self._logs = LogReader(store, clock)

    # Made, and imported, for who asks for them: a command that lists tasks needs none of it, and should come at once.

    @cached_property
    def _scheduler(self) -> TaskScheduler:
        from harness.scheduler import TaskScheduler

        return self._given_scheduler or TaskScheduler(store=self._store)

    @cached_property
    def _handoff(self) -> HandoffManager:
        from harness.handoff import HandoffManager

        return HandoffManager(store=self._store, settings=self._settings)

    @cached_property
    def _vault(self) -> SecretVault:
        from harness.vault import SecretVault

        return SecretVault(self._store, self._settings)

    @cached_property
    def _resources(self) -> ResourceManager:
        from harness.resources import ResourceManager

        return ResourceManager()

    # Agents

    async def create_agent(self, draft: AgentDraft) -> Agent:
        """Store a new agent."""
        agent = await self._store.create_agent(draft)
        await self._scheduler.sync_agent_schedule(agent.id)
        return agent

    async def get_agent(self, agent_id: int) -> Agent:
        """Return an agent."""
        return await self._store.get_agent(agent_id)

    async def find_agent(self, name: str) -> Agent:
        """Return the agent of that name."""
        return await self._store.find_agent(name)

    async def list_agents(self, *, limit: int = 100, offset: int = 0) -> Page[Agent]:
        """Return agents by falling id."""
        return await self._store.list_agents(limit=limit, offset=offset)

    async def update_agent(
        self, agent_id: int, draft: AgentDraft, *, expected_version: int | None = None
    ) -> Agent:
        """Replace what the owner wrote."""
        agent = await self._store.update_agent(agent_id, draft, expected_version=expected_version)
        await self._scheduler.sync_agent_schedule(agent_id)
        return agent

    async def delete_agent(self, agent_id: int) -> None:
        """Delete an agent with all that is its own."""
        await self._store.delete_agent(agent_id)

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
        """Have an agent run now."""
        check_wait(wait_seconds)
        task = await runs.begin(
            self._store,
            self._scheduler,
            agent_id,
            context=context,
            save_handoff=context is None if save_handoff is None else save_handoff,
            idempotency_key=idempotency_key,
        )
        return await runs.wait(self._store, self._clock, task, wait_seconds)

    async def list_tasks(
        self,
        *,
        agent_id: int | None = None,
        status: TaskStatus | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Page[Task]:
        """Return tasks by falling id."""
        return await self._store.list_tasks(agent_id=agent_id, status=status, limit=limit, offset=offset)

    async def get_task(self, task_id: int) -> Task:
        """Return a task."""
        return await self._store.get_task(task_id)

    async def cancel_task(self, task_id: int) -> Task:
        """Cancel a task."""
        return await self._scheduler.cancel_task(task_id)

    async def cancel_tasks(
        self, *, agent_id: int | None = None, status: Literal["pending", "running"] | None = None
    ) -> Sequence[int]:
        """Cancel all active tasks that match."""
        return await runs.cancel_all(self._store, agent_id, status)

    async def retry_task(self, task_id: int, *, force: bool = False) -> Task:
        """Have a failed task tried again."""
        return await self._scheduler.retry_failed_task(task_id, force=force)

    def logs(self, task_id: int, *, follow: bool = True) -> AsyncIterator[LogLine]:
        """Yield a task's output line by line."""
        return lines_of(self.log_events(task_id, follow=follow))

    def log_events(
        self, task_id: int, *, follow: bool = True, after: int = -1
    ) -> AsyncGenerator[LogEvent, None]:
        """Yield a task's output in order."""
        return self._logs.events(task_id, follow=follow, after=after)

    def stats(self, task_id: int, *, follow: bool = True, after: int = -1) -> AsyncIterator[UsageSample]:
        """Yield samples of what a task uses."""
        return stats.follow(self._store, self._clock, task_id, follow=follow, after=after)

    # Schedules

    async def get_schedule(self, agent_id: int, *, fires: int = 5) -> ScheduleView:
        """Return an agent's schedule with its next fires."""
        return await schedules.view(self._store, self._scheduler, agent_id, fires)

    async def put_schedule(self, agent_id: int, schedule: dict[str, Any]) -> ScheduleView:
        """Write a schedule into an agent's config and take it into force."""
        await schedules.write(self._store, agent_id, schedule)
        await self._scheduler.add_agent_schedule(agent_id)
        return await self.get_schedule(agent_id)

    async def delete_schedule(self, agent_id: int) -> None:
        """Take the schedule out of an agent's config."""
        await schedules.write(self._store, agent_id, None)
        await self._scheduler.sync_agent_schedule(agent_id)

    async def remove_schedule(self, agent_id: int) -> ScheduleView:
        """Take a schedule out of force; the config keeps it."""
        await self._scheduler.remove_agent_schedule(agent_id)
        return await self.get_schedule(agent_id)

    async def pause_schedule(self, agent_id: int) -> ScheduleView:
        """Fire an agent no more until it is resumed."""
        await self._scheduler.pause(agent_id)
        return await self.get_schedule(agent_id)

    async def resume_schedule(self, agent_id: int) -> ScheduleView:
        """Fire a paused or removed schedule again."""
        await self._scheduler.add_agent_schedule(agent_id)
        return await self.get_schedule(agent_id)

    async def preview_schedule(self, schedule: dict[str, Any], *, fires: int = 5) -> Sequence[datetime]:
        """Return when a schedule that is not stored would fire."""
        return schedules.preview(schedule, await self._store.now(), fires)

    async def backfill(self, agent_id: int, start: datetime, end: datetime | None = None) -> Sequence[int]:
        """Make tasks of past fires that have none."""
        return await schedules.backfill(self._store, self._scheduler, agent_id, start, end)

    # Handoffs

    async def get_handoff(self, agent_id: int) -> HandoffArtifact:
        """Return an agent's newest artifact."""
        return await handoffs.newest(self._store, agent_id)

    async def put_handoff(self, agent_id: int, state: dict[str, Any], summary: str = "") -> HandoffArtifact:
        """Save a state as an agent's newest artifact."""
        return await self._handoff.save_artifact(agent_id, state, summary)

    async def clear_handoff(self, agent_id: int) -> None:
        """Make an agent's next run a first run."""
        await self._store.get_agent(agent_id)
        await self._handoff.clear_artifact(agent_id)

    async def handoff_history(
        self, agent_id: int, *, limit: int = 100, before_version: int | None = None
    ) -> Sequence[HandoffArtifact]:
        """Return an agent's artifacts by falling version."""
        await self._store.get_agent(agent_id)
        return await self._handoff.history(agent_id, limit, before_version)

    async def rollback_handoff(self, agent_id: int, version: int) -> HandoffArtifact:
        """Save an old version's state as the newest artifact."""
        return await self._handoff.rollback(agent_id, version)

    async def diff_handoff(self, agent_id: int, before: int, after: int | None = None) -> HandoffDiff:
        """Compare the states of two versions."""
        return await handoffs.diff(self._store, agent_id, before, after)

    # Secrets

    async def put_secret(self, name: str, value: str) -> SecretInfo:
        """Store a secret."""
        return await self._vault.put(name, value)

    async def list_secrets(self, *, limit: int = 100, offset: int = 0) -> Page[SecretInfo]:
        """Return what is known of the secrets."""
        return await self._vault.list(limit=limit, offset=offset)

    async def delete_secret(self, name: str) -> None:
        """Delete a secret."""
        await self._vault.delete(name)

    # The machine

    async def system_resources(self) -> SystemResources:
        """Return what this machine has."""
        return SystemResources.model_validate(self._resources.get_system_resources())

    # Access

    async def create_token(self, draft: TokenDraft) -> CreatedToken:
        """Make a token."""
        return await tokens.create(self._store, draft)

    async def list_tokens(self, *, limit: int = 100, offset: int = 0) -> Page[ApiToken]:
        """Return tokens by falling id."""
        return await self._store.list_tokens(limit=limit, offset=offset)

    async def revoke_token(self, token_id: int) -> ApiToken:
        """Make a token invalid from now on."""
        return await self._store.revoke_token(token_id)

    async def list_audit(self, *, limit: int = 100, before_id: int | None = None) -> Sequence[AuditEntry]:
        """Return who changed what by falling id."""
        return await self._store.list_audit(limit=limit, before_id=before_id)
