"""Values of the API that are no nouns of the core: what requests carry and what answers wrap.

The nouns themselves (`Agent`, `Task`, `HandoffArtifact` …) are in `harness.models` and go over the wire as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from harness.models import (
    Agent,
    AgentDraft,
    Attempt,
    HandoffArtifact,
    Instant,
    Model,
    Page,
    ScheduleState,
    Task,
    TaskStatus,
)
from harness.secrets.info import SecretInfo

#: Longest list that one answer holds.
MAX_LIMIT = 1000
#: Longest wait for a run's end within one request, in seconds.
MAX_WAIT_SECONDS = 300.0
#: Most fire times in one answer.
MAX_FIRES = 1000

Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Field(ge=0, le=2**53)]


class PageQuery(Model):
    """Which part of a list."""

    limit: Limit = 100
    offset: Offset = 0


class AgentQuery(PageQuery):
    """Which agents."""

    #: Only the agent of exactly this name.
    name: str | None = None


class AgentPage(Model):
    """Agents by falling id."""

    agents: tuple[Agent, ...]
    total_count: int
    limit: int
    offset: int

    @classmethod
    def of(cls, page: Page[Agent]) -> Self:
        """Wrap a page."""
        return cls(agents=page.items, total_count=page.total_count, limit=page.limit, offset=page.offset)


class AgentUpdate(AgentDraft):
    """What an owner writes about an agent, and the version it was written for."""

    #: Change it only if it is still at this version; None: whatever it is at.
    version: Annotated[int, Field(ge=1)] | None = None

    def draft(self) -> AgentDraft:
        """Return the draft alone."""
        return AgentDraft.model_construct(**{name: getattr(self, name) for name in AgentDraft.model_fields})


class TaskQuery(PageQuery):
    """Which tasks."""

    status: TaskStatus | None = None


class AnyTaskQuery(TaskQuery):
    """Which tasks, of all agents."""

    agent_id: Annotated[int, Field(ge=1)] | None = None


class TaskSummary(Model):
    """A task in an agent's history: the API description's seven fields."""

    id: int
    agent_id: int
    status: TaskStatus
    started_at: Instant | None
    completed_at: Instant | None
    result: str | None
    retry_count: int

    @classmethod
    def of(cls, task: Task) -> Self:
        """Take the fields from a task."""
        return cls.model_validate({name: getattr(task, name) for name in cls.model_fields})


class TaskDetail(Model):
    """A task by itself: the API description's ten fields."""

    id: int
    agent_id: int
    status: TaskStatus
    scheduled_at: Instant
    started_at: Instant | None
    completed_at: Instant | None
    result: str | None
    error: str | None
    retry_count: int
    created_at: Instant

    @classmethod
    def of(cls, task: Task) -> Self:
        """Take the fields from a task."""
        return cls.model_validate({name: getattr(task, name) for name in cls.model_fields})


class TaskSummaryPage(Model):
    """An agent's tasks by falling id, as the API description has them."""

    tasks: tuple[TaskSummary, ...]
    total_count: int
    limit: int
    offset: int


class TaskPage(Model):
    """Tasks by falling id."""

    tasks: tuple[Task, ...]
    total_count: int
    limit: int
    offset: int

    @classmethod
    def of(cls, page: Page[Task]) -> Self:
        """Wrap a page."""
        return cls(tasks=page.items, total_count=page.total_count, limit=page.limit, offset=page.offset)


class RetryQuery(Model):
    """How to retry."""

    #: Once more also when its retries are used up.
    force: bool = False


class RetryAnswer(Model):
    """What the API description answers to a retry."""

    message: str
    retry_count: int
    max_retries: int


class RunRequest(Model):
    """A run that somebody asks for."""

    #: What the agent sees as ``context``; None: the state that its last run left.
    context: dict[str, Any] | None = None
    #: Whether a completed run saves its state; None: it does unless it was given a context.
    save_handoff: bool | None = None


class RunQuery(Model):
    """How long to wait for a run's end."""

    #: In seconds; the answer comes at the run's end or after this, whichever is first.
    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)] = 0


class CancelRequest(Model):
    """Which tasks to cancel: all active ones that match."""

    agent_id: Annotated[int, Field(ge=1)] | None = None
    status: Literal["pending", "running"] | None = None


class CancelAnswer(Model):
    """What was cancelled."""

    #: Pending tasks that are cancelled now, and running ones whose runners were asked to stop them.
    task_ids: tuple[int, ...]


class AttemptList(Model):
    """A task's attempts, the oldest first."""

    task_id: int
    attempts: tuple[Attempt, ...]


class TaskUsage(Model):
    """What a task used, all attempts together."""

    task_id: int
    attempts: int
    #: The highest of any attempt.
    peak_memory_bytes: int | None
    #: Sums over the attempts that were measured.
    cpu_seconds: float
    wall_seconds: float
    output_bytes: int

    @classmethod
    def of(cls, task: Task) -> Self:
        """Add up a task's attempts."""
        usages = [attempt.usage for attempt in task.attempts]
        peaks = [usage.peak_memory_bytes for usage in usages if usage.peak_memory_bytes is not None]
        return cls(
            task_id=task.id,
            attempts=len(usages),
            peak_memory_bytes=max(peaks, default=None),
            cpu_seconds=sum(usage.cpu_seconds or 0.0 for usage in usages),
            wall_seconds=sum(usage.wall_seconds or 0.0 for usage in usages),
            output_bytes=sum(usage.output_bytes for usage in usages),
        )


class ScheduleQuery(Model):
    """How many fires to show."""

    fires: Annotated[int, Field(ge=0, le=MAX_FIRES)] = 5


class ScheduleView(Model):
    """An agent's schedule: what it says, where it stands, and when it fires next."""

    agent_id: int
    #: As in the agent's config; None: it has none.
    schedule: dict[str, Any] | None
    #: ``in_force``, or why it is not.
    status: Literal["in_force", "paused", "removed", "disabled", "none"]
    state: ScheduleState | None
    next_fires: tuple[Instant, ...]


class PreviewRequest(Model):
    """A schedule that is not stored."""

    schedule: dict[str, Any]
    fires: Annotated[int, Field(ge=1, le=MAX_FIRES)] = 5


class PreviewAnswer(Model):
    """When it would fire."""

    next_fires: tuple[Instant, ...]


class BackfillRequest(Model):
    """A range of past fires, both ends included."""

    start: Instant
    #: None: now.
    end: Instant | None = None


class TaskIds(Model):
    """Tasks by id."""

    task_ids: tuple[int, ...]


class HandoffRequest(Model):
    """A state to save as an agent's newest artifact."""

    state: dict[str, Any]
    summary: str = ""


class HistoryQuery(Model):
    """Which part of a handoff's history."""

    limit: Limit = 100
    #: Only lower versions; the last one of a page gives the next page.
    before_version: Annotated[int, Field(ge=1)] | None = None


class HandoffHistory(Model):
    """Artifacts by falling version, clears included."""

    agent_id: int
    artifacts: tuple[HandoffArtifact, ...]


class RollbackRequest(Model):
    """Which version's state to save anew."""

    version: Annotated[int, Field(ge=1)]


class DiffQuery(Model):
    """Which two versions to compare."""

    #: The older one.
    before: Annotated[int, Field(ge=1)]
    #: The newer one; None: the newest.
    after: Annotated[int, Field(ge=1)] | None = None


class Change(Model):
    """One difference between two states."""

    #: JSON Pointer (RFC 6901) to the value.
    path: str
    op: Literal["add", "remove", "replace"]
    before: Any = None
    after: Any = None


class HandoffDiff(Model):
    """How a state changed from one version to another."""

    agent_id: int
    before: int
    after: int
    changes: tuple[Change, ...]


class SystemResources(Model):
    """What the machine of the server has."""

    total_memory_mb: float
    available_memory_mb: float
    memory_percent: float
    cpu_count: int
    cpu_percent: float


class SecretRequest(Model):
    """The value of a secret."""

    #: At least 8 characters, 4 of them different; at most 16 KiB of UTF-8. It is never answered.
    value: Annotated[str, Field(json_schema_extra={"format": "password", "writeOnly": True})]


class SecretPage(Model):
    """What is known of secrets, by name; never their values."""

    #: The secrets of this page.
    secrets: tuple[SecretInfo, ...]
    total_count: int
    limit: int
    offset: int

    @classmethod
    def of(cls, page: Page[SecretInfo]) -> Self:
        """Wrap a page."""
        return cls(secrets=page.items, total_count=page.total_count, limit=page.limit, offset=page.offset)


class LogQuery(Model):
    """Which part of a task's output, and in what form."""

    #: Go on until the task has ended, as server-sent events; otherwise what is there, as text.
    follow: bool = True
    #: Only one of the two streams.
    stream: Literal["stdout", "stderr"] | None = None
    #: Only what came after the chunk with this sequence number; the header ``Last-Event-ID`` counts before it.
    after: Annotated[int, Field(ge=-1, le=2**53)] = -1
    #: Have a browser save it as a file.
    download: bool = False


class LogEvent(Model):
    """A piece of a task's output, or a mark in it."""

    #: Rises over the whole task; the last one seen is where a reader goes on.
    seq: int
    #: ``stdout`` and ``stderr`` carry text. ``attempt`` marks the begin of an attempt: what follows is by that one.
    #: ``dropped`` says that this reader was too slow, and where it may go on. ``end`` is the last one.
    kind: Literal["stdout", "stderr", "attempt", "dropped", "end"]
    attempt: int
    text: str = ""
    at: Instant | None = None
