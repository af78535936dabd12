"""`HarnessClient`: one method per endpoint."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ValidationError

from harness.api.logs import lines_of
from harness.api.values import (
    AgentPage,
    AttemptList,
    AuditPage,
    CancelAnswer,
    HandoffDiff,
    HandoffHistory,
    LogEvent,
    LogLine,
    PreviewAnswer,
    ScheduleView,
    SecretPage,
    SystemResources,
    TaskDetail,
    TaskIds,
    TaskPage,
    TaskSummaryPage,
    TaskUsage,
    TokenPage,
    check_idempotency_key,
    check_wait,
)
from harness.audit import AuditEntry
from harness.client.events import read_events
from harness.client.transport import Transport
from harness.errors import AgentNotFoundError, ServerUnavailableError
from harness.models import (
    Agent,
    AgentDraft,
    Attempt,
    HandoffArtifact,
    Page,
    Task,
    TaskStatus,
    UsageSample,
    render_instant,
)
from harness.secrets.info import SecretInfo
from harness.secrets.rules import check_secret_name
from harness.tokens import ApiToken, CreatedToken, TokenDraft

ModelT = TypeVar("ModelT", bound=BaseModel)


class HarnessClient:
    """`harness.api.HarnessApi` over HTTP.

    Use it as an async context manager. Requests that may be repeated are, when a connection breaks or the server says
    "not now". The server's errors are raised as the classes that the core raises.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, token: str | None = None, timeout_seconds: float = 30.0
    ) -> None:
        """Remember where the server is; does no I/O.

        Args:
            url: The server's.
            token: Made by ``harness tokens create``; None for a server on this machine that has none.
            timeout_seconds: Bound on one exchange, beyond what the server was asked to wait.

        Raises:
            InvalidInputError: The URL is none of HTTP.
        """
        self._transport = Transport(url, token=token, timeout_seconds=timeout_seconds)

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.close()

    # Agents

    async def create_agent(self, draft: AgentDraft) -> Agent:
        """Store a new agent."""
        return await self._ask(Agent, "POST", "/api/agents", body=draft.draft_fields())

    async def get_agent(self, agent_id: int) -> Agent:
        """Return an agent."""
        return await self._ask(Agent, "GET", f"/api/agents/{agent_id}")

    async def find_agent(self, name: str) -> Agent:
        """Return the agent of that name."""
        page = await self._ask(AgentPage, "GET", "/api/agents", query={"name": name})
        if not page.agents:
            raise AgentNotFoundError(f"there is no agent named {name!r}")
        return page.agents[0]

    async def list_agents(self, *, limit: int = 100, offset: int = 0) -> Page[Agent]:
        """Return agents by falling id."""
        page = await self._ask(AgentPage, "GET", "/api/agents", query={"limit": limit, "offset": offset})
        return Page(page.agents, page.total_count, page.limit, page.offset)

    async def update_agent(
        self, agent_id: int, draft: AgentDraft, *, expected_version: int | None = None
    ) -> Agent:
        """Replace what the owner wrote."""
        headers = None if expected_version is None else {"If-Match": f'"{expected_version}"'}
        # Without the version, a repetition after a lost answer could undo what somebody else wrote meanwhile.
        return await self._ask(
            Agent,
            "PUT",
            f"/api/agents/{agent_id}",
            body=draft.draft_fields(),
            headers=headers,
            is_repeatable=False,
        )

    async def delete_agent(self, agent_id: int) -> None:
        """Delete an agent with all that is its own."""
        await self._transport.send("DELETE", f"/api/agents/{agent_id}", is_repeatable=False)

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
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        return await self._ask(
            Task,
            "POST",
            f"/api/agents/{agent_id}/runs",
            query={"wait": wait_seconds},
            body={"context": context, "save_handoff": save_handoff},
            headers=None if idempotency_key is None else {"Idempotency-Key": idempotency_key},
            extra_seconds=wait_seconds,
            is_repeatable=idempotency_key is not None,
        )

    async def list_tasks(
        self,
        *,
        agent_id: int | None = None,
        status: TaskStatus | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Page[Task]:
        """Return tasks by falling id."""
        query = {"agent_id": agent_id, "status": status, "limit": limit, "offset": offset}
        page = await self._ask(TaskPage, "GET", "/api/tasks", query=query)
        return Page(page.tasks, page.total_count, page.limit, page.offset)

    async def get_task(self, task_id: int) -> Task:
        """Return a task."""
        return await self._ask(Task, "GET", f"/api/tasks/{task_id}/record")

    async def cancel_task(self, task_id: int) -> Task:
        """Cancel a task."""
        return await self._ask(Task, "POST", f"/api/tasks/{task_id}/cancel", is_repeatable=True)

    async def cancel_tasks(
        self, *, agent_id: int | None = None, status: Literal["pending", "running"] | None = None
    ) -> Sequence[int]:
        """Cancel all active tasks that match."""
        body = {"agent_id": agent_id, "status": status}
        return (await self._ask(CancelAnswer, "POST", "/api/tasks/cancel", body=body)).task_ids

    async def retry_task(self, task_id: int, *, force: bool = False) -> Task:
        """Have a failed task tried again."""
        await self._transport.send("POST", f"/api/tasks/{task_id}/retry", query={"force": force})
        return await self.get_task(task_id)

    async def agent_tasks(
        self, agent_id: int, *, status: TaskStatus | None = None, limit: int = 100, offset: int = 0
    ) -> TaskSummaryPage:
        """Return an agent's tasks by falling id, each in a few fields; raises `AgentNotFoundError`."""
        query = {"status": status, "limit": limit, "offset": offset}
        return await self._ask(TaskSummaryPage, "GET", f"/api/tasks/agents/{agent_id}/tasks", query=query)

    async def task_detail(self, task_id: int) -> TaskDetail:
        """Return a task without its attempts and its context, or raise `TaskNotFoundError`."""
        return await self._ask(TaskDetail, "GET", f"/api/tasks/{task_id}")

    async def task_attempts(self, task_id: int) -> Sequence[Attempt]:
        """Return a task's attempts, the oldest first, or raise `TaskNotFoundError`."""
        return (await self._ask(AttemptList, "GET", f"/api/tasks/{task_id}/attempts")).attempts

    async def task_usage(self, task_id: int) -> TaskUsage:
        """Return what a task used, or raise `TaskNotFoundError`."""
        return await self._ask(TaskUsage, "GET", f"/api/tasks/{task_id}/usage")

    def logs(self, task_id: int, *, follow: bool = True) -> AsyncIterator[LogLine]:
        """Yield a task's output line by line; connections that break are made anew."""
        return lines_of(self.log_events(task_id, follow=follow))

    async def log_events(
        self, task_id: int, *, follow: bool = True, after: int = -1
    ) -> AsyncGenerator[LogEvent, None]:
        """Yield a task's output in order."""
        path, query = f"/api/tasks/{task_id}/logs", {"follow": follow}
        async with aclosing(read_events(self._transport, path, query, after=after)) as events:
            async for _, data in events:
                yield self._read(LogEvent, data)

    async def stats(
        self, task_id: int, *, follow: bool = True, after: int = -1
    ) -> AsyncIterator[UsageSample]:
        """Yield samples of what a task uses."""
        path, query = f"/api/tasks/{task_id}/stats", {"follow": follow}
        async with aclosing(read_events(self._transport, path, query, after=after)) as events:
            async for name, data in events:
                if name == "sample":
                    yield self._read(UsageSample, data)

    # Schedules

    async def get_schedule(self, agent_id: int, *, fires: int = 5) -> ScheduleView:
        """Return an agent's schedule with its next fires."""
        return await self._ask(
            ScheduleView, "GET", f"/api/agents/{agent_id}/schedule", query={"fires": fires}
        )

    async def put_schedule(self, agent_id: int, schedule: dict[str, Any]) -> ScheduleView:
        """Write a schedule into an agent's config and take it into force."""
        return await self._ask(ScheduleView, "PUT", f"/api/agents/{agent_id}/schedule", body=schedule)

    async def delete_schedule(self, agent_id: int) -> None:
        """Take the schedule out of an agent's config."""
        await self._transport.send("DELETE", f"/api/agents/{agent_id}/schedule")

    async def remove_schedule(self, agent_id: int) -> ScheduleView:
        """Take a schedule out of force; the config keeps it."""
        return await self._ask(
            ScheduleView, "POST", f"/api/agents/{agent_id}/schedule/remove", is_repeatable=True
        )

    async def pause_schedule(self, agent_id: int) -> ScheduleView:
        """Fire an agent no more until it is resumed."""
        return await self._ask(
            ScheduleView, "POST", f"/api/agents/{agent_id}/schedule/pause", is_repeatable=True
        )

    async def resume_schedule(self, agent_id: int) -> ScheduleView:
        """Fire a paused or removed schedule again."""
        return await self._ask(
            ScheduleView, "POST", f"/api/agents/{agent_id}/schedule/resume", is_repeatable=True
        )

    async def preview_schedule(self, schedule: dict[str, Any], *, fires: int = 5) -> Sequence[datetime]:
        """Return when a schedule that is not stored would fire."""
        body = {"schedule": schedule, "fires": fires}
        answer = await self._ask(
            PreviewAnswer, "POST", "/api/schedules/preview", body=body, is_repeatable=True
        )
        return answer.next_fires

    async def backfill(self, agent_id: int, start: datetime, end: datetime | None = None) -> Sequence[int]:
        """Make tasks of past fires that have none."""
        body = {"start": render_instant(start), "end": None if end is None else render_instant(end)}
        return (
            await self._ask(TaskIds, "POST", f"/api/agents/{agent_id}/schedule/backfill", body=body)
        ).task_ids

    # Handoffs

    async def get_handoff(self, agent_id: int) -> HandoffArtifact:
        """Return an agent's newest artifact."""
        return await self._ask(HandoffArtifact, "GET", f"/api/agents/{agent_id}/handoff")

    async def put_handoff(self, agent_id: int, state: dict[str, Any], summary: str = "") -> HandoffArtifact:
        """Save a state as an agent's newest artifact."""
        body = {"state": state, "summary": summary}
        # A repetition would count one more run.
        return await self._ask(
            HandoffArtifact, "PUT", f"/api/agents/{agent_id}/handoff", body=body, is_repeatable=False
        )

    async def clear_handoff(self, agent_id: int) -> None:
        """Make an agent's next run a first run."""
        await self._transport.send("DELETE", f"/api/agents/{agent_id}/handoff")

    async def handoff_history(
        self, agent_id: int, *, limit: int = 100, before_version: int | None = None
    ) -> Sequence[HandoffArtifact]:
        """Return an agent's artifacts by falling version."""
        query = {"limit": limit, "before_version": before_version}
        return (
            await self._ask(HandoffHistory, "GET", f"/api/agents/{agent_id}/handoff/history", query=query)
        ).artifacts

    async def rollback_handoff(self, agent_id: int, version: int) -> HandoffArtifact:
        """Save an old version's state as the newest artifact."""
        return await self._ask(
            HandoffArtifact, "POST", f"/api/agents/{agent_id}/handoff/rollback", body={"version": version}
        )

    async def diff_handoff(self, agent_id: int, before: int, after: int | None = None) -> HandoffDiff:
        """Compare the states of two versions."""
        query = {"before": before, "after": after}
        return await self._ask(HandoffDiff, "GET", f"/api/agents/{agent_id}/handoff/diff", query=query)

    # Secrets

    async def put_secret(self, name: str, value: str) -> SecretInfo:
        """Store a secret."""
        return await self._ask(SecretInfo, "PUT", _secret_path(name), body={"value": value})

    async def list_secrets(self, *, limit: int = 100, offset: int = 0) -> Page[SecretInfo]:
        """Return what is known of the secrets."""
        answer = await self._ask(SecretPage, "GET", "/api/secrets", query={"limit": limit, "offset": offset})
        return Page(answer.secrets, answer.total_count, answer.limit, answer.offset)

    async def delete_secret(self, name: str) -> None:
        """Delete a secret."""
        # Repeated after an answer that was lost, it could only fail.
        await self._transport.send("DELETE", _secret_path(name), is_repeatable=False)

    # The machine

    async def system_resources(self) -> SystemResources:
        """Return what the server's machine has."""
        return await self._ask(SystemResources, "GET", "/api/system/resources")

    # Access

    async def create_token(self, draft: TokenDraft) -> CreatedToken:
        """Make a token."""
        return await self._ask(CreatedToken, "POST", "/api/tokens", body=draft.model_dump(mode="json"))

    async def list_tokens(self, *, limit: int = 100, offset: int = 0) -> Page[ApiToken]:
        """Return tokens by falling id."""
        page = await self._ask(TokenPage, "GET", "/api/tokens", query={"limit": limit, "offset": offset})
        return Page(page.tokens, page.total_count, page.limit, page.offset)

    async def revoke_token(self, token_id: int) -> ApiToken:
        """Make a token invalid from now on."""
        return await self._ask(ApiToken, "DELETE", f"/api/tokens/{token_id}")

    async def list_audit(self, *, limit: int = 100, before_id: int | None = None) -> Sequence[AuditEntry]:
        """Return who changed what by falling id."""
        query = {"limit": limit, "before_id": before_id}
        return (await self._ask(AuditPage, "GET", "/api/audit", query=query)).entries

    async def _ask(self, model: type[ModelT], method: str, path: str, **given: Any) -> ModelT:
        """Exchange a request for a model."""
        return self._read(model, await self._transport.send(method, path, **given))

    def _read(self, model: type[ModelT], data: bytes) -> ModelT:
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            raise ServerUnavailableError(
                f"the server at {self._transport.url} answered what this client can't read; is it of another release?"
            ) from error


def _secret_path(name: str) -> str:
    # Checked here, since another name could lead to another path.
    return f"/api/secrets/{check_secret_name(name)}"
