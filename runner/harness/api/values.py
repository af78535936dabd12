"""Values of the API that are no nouns of the core: what requests carry and what answers wrap.

The nouns themselves (`Agent`, `Task`, `HandoffArtifact` …) are in `harness.models` and go over the wire as they are.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field

from harness.audit import AuditEntry
from harness.errors import InvalidInputError
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
    UsageSample,
)
from harness.secrets.info import SecretInfo
from harness.tokens import ApiToken

#: Longest list that one answer holds.
MAX_LIMIT = 1000
#: Longest wait for a run's end within one request, in seconds.
MAX_WAIT_SECONDS = 300.0
#: Most fire times in one answer.
MAX_FIRES = 1000

Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Offset = Annotated[int, Field(ge=0, le=2**53)]


def check_idempotency_key(key: str) -> None:
    """Refuse a key that an HTTP header can't carry as it is (RFC 9110, section 5.5).

    Raises:
        InvalidInputError: Naming the key.
    """
    if not (1 <= len(key) <= 200 and key.isascii() and key.isprintable() and key == key.strip()):
        raise InvalidInputError(
            f"the idempotency key {key[:40]!r} is not 1 to 200 printable ASCII characters without blanks at the ends"
        )


def check_wait(seconds: float) -> None:
    """Refuse a wait that is out of bounds.

    Raises:
        InvalidInputError: Naming it.
    """
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise InvalidInputError(f"a wait of {seconds:g} s is not between 0 and {MAX_WAIT_SECONDS:g} s")


class PageQuery(Model):
    """Which part of a list."""

    #: Most items in the answer.
    limit: Limit = 100
    #: Leave out this many, from the newest.
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
        return AgentDraft.model_construct(**self.draft_fields())


class TaskQuery(PageQuery):
    """Which tasks."""

    #: Only tasks that stand so.
    status: TaskStatus | None = None


class AnyTaskQuery(TaskQuery):
    """Which tasks, of all agents."""

    #: Only tasks of this agent.
    agent_id: Annotated[int, Field(ge=1)] | None = None


class _PartOfTask(Model):
    @classmethod
    def of(cls, task: Task) -> Self:
        """Take the fields from a task."""
        return cls.model_validate({name: getattr(task, name) for name in cls.model_fields})


class TaskSummary(_PartOfTask):
    """A task in an agent's history: the API description's seven fields."""

    id: int
    agent_id: int
    status: TaskStatus
    started_at: Instant | None
    completed_at: Instant | None
    result: str | None
    retry_count: int


class TaskDetail(_PartOfTask):
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

    #: For people.
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

    #: Only tasks of this agent.
    agent_id: Annotated[int, Field(ge=1)] | None = None
    #: Only tasks that stand so.
    status: Literal["pending", "running"] | None = None


class CancelAnswer(Model):
    """What was cancelled."""

    #: Pending tasks that are cancelled now, and running ones whose runners were asked to stop them.
    task_ids: tuple[int, ...]


class AttemptList(Model):
    """A task's attempts, the oldest first."""

    task_id: int
    #: One for each container that was launched.
    attempts: tuple[Attempt, ...]


class TaskUsage(Model):
    """What a task used, all attempts together."""

    task_id: int
    #: How many there were.
    attempts: int
    #: The highest of any attempt.
    peak_memory_bytes: int | None
    #: Sum over the attempts that were measured.
    cpu_seconds: float
    #: Sum over the attempts that were measured.
    wall_seconds: float
    #: All output written, kept or not.
    output_bytes: int
    #: The highest of any attempt, by samples.
    peak_processes: int | None
    #: The same, in per cent of one core.
    peak_cpu_percent: float | None

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
            peak_processes=max((usage.peak_processes or 0 for usage in usages), default=0) or None,
            peak_cpu_percent=max(
                (usage.peak_cpu_percent for usage in usages if usage.peak_cpu_percent is not None),
                default=None,
            ),
        )


class ScheduleQuery(Model):
    """How many fires to show."""

    #: So many of the next ones.
    fires: Annotated[int, Field(ge=0, le=MAX_FIRES)] = 5


class ScheduleView(Model):
    """An agent's schedule: what it says, where it stands, and when it fires next."""

    agent_id: int
    #: As in the agent's config; None: it has none.
    schedule: dict[str, Any] | None
    #: ``in_force``, or why it is not.
    status: Literal["in_force", "paused", "removed", "disabled", "none"]
    #: Where it stands; None: no scheduler has seen it yet.
    state: ScheduleState | None
    next_fires: tuple[Instant, ...]


class PreviewRequest(Model):
    """A schedule that is not stored."""

    #: As in an agent's config.
    schedule: dict[str, Any]
    #: So many of the next ones.
    fires: Annotated[int, Field(ge=1, le=MAX_FIRES)] = 5


class PreviewAnswer(Model):
    """When it would fire."""

    next_fires: tuple[Instant, ...]


class BackfillRequest(Model):
    """A range of past fires, both ends included."""

    #: The first instant.
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

    #: Most items in the answer.
    limit: Limit = 100
    #: Only lower versions; the last one of a page gives the next page.
    before_version: Annotated[int, Field(ge=1)] | None = None


class HandoffHistory(Model):
    """Artifacts by falling version, clears included."""

    agent_id: int
    artifacts: tuple[HandoffArtifact, ...]


class RollbackRequest(Model):
    """Which version's state to save anew."""

    #: One of the agent's history.
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
    #: As in JSON Patch (RFC 6902).
    op: Literal["add", "remove", "replace"]
    #: The old value; None for ``add``.
    before: Any = None
    #: The new value; None for ``remove``.
    after: Any = None


class HandoffDiff(Model):
    """How a state changed from one version to another."""

    agent_id: int
    #: The older version.
    before: int
    #: The newer version.
    after: int
    #: By rising path.
    changes: tuple[Change, ...]


class SystemResources(Model):
    """What the machine of the server has."""

    #: Of the whole machine.
    total_memory_mb: float
    #: What programs can get without swapping.
    available_memory_mb: float
    #: How much of the memory is not available.
    memory_percent: float
    #: Logical cores.
    cpu_count: int
    #: Of all cores together, since the last look.
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


class TokenPage(Model):
    """Tokens by falling id."""

    #: The tokens of this page.
    tokens: tuple[ApiToken, ...]
    total_count: int
    limit: int
    offset: int

    @classmethod
    def of(cls, page: Page[ApiToken]) -> Self:
        """Wrap a page."""
        return cls(tokens=page.items, total_count=page.total_count, limit=page.limit, offset=page.offset)


class AuditQuery(Model):
    """Which part of the audit log."""

    limit: Limit = 100
    #: Only lower ids; the last one of a page gives the next page.
    before_id: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None


class AuditPage(Model):
    """Who changed what, by falling id."""

    #: The lines of this page.
    entries: tuple[AuditEntry, ...]


class StatsQuery(Model):
    """Which samples, and in what form."""

    #: Go on until the task has ended, as server-sent events.
    follow: bool = False
    #: Only what comes after the sample with this sequence number; the header ``Last-Event-ID`` counts before it.
    after: Annotated[int, Field(ge=-1, le=2**53)] = -1


class SampleList(Model):
    """Samples of what a task used, the oldest first."""

    task_id: int
    #: About one a second at first, further apart in a long run.
    samples: tuple[UsageSample, ...]


class LogQuery(Model):
    """Which part of a task's output, and in what form."""

    #: Go on until the task has ended, as server-sent events. False: what is there, as plain text; as events too for
    #: who accepts ``text/event-stream``.
    follow: bool = True
    #: Only one of the two streams.
    stream: Literal["stdout", "stderr"] | None = None
    #: Only one of the attempts, by its number.
    attempt: Annotated[int, Field(ge=1, lt=2**21)] | None = None
    #: Only what comes after the event with this sequence number; the header ``Last-Event-ID`` counts before it.
    after: Annotated[int, Field(ge=-1, le=2**53)] = -1
    #: Have a browser save what is there as a file.
    download: bool = False


class LogEvent(Model):
    """A piece of a task's output, or a mark in it."""

    #: Rises over the whole task; the last one seen is where a reader goes on.
    seq: int
    #: ``stdout`` and ``stderr`` carry text. ``attempt`` marks the begin of an attempt: what follows is by that one.
    #: ``dropped`` says that this reader was too slow, and where it may go on. ``end`` is the last one.
    kind: Literal["stdout", "stderr", "attempt", "dropped", "end"]
    attempt: int
    #: Output: whole characters, not whole lines; bytes that are no UTF-8 are U+FFFD. With ``end``: the task's status, or
    #: ``deleted``.
    text: str = ""
    at: Instant | None = None


class LogLine(NamedTuple):
    """One line of a task's output, or a mark between two attempts; as text it is the line."""

    #: Without its line end.
    text: str
    #: None: a mark; the lines from here on are by another attempt, since the one before failed or lost its runner.
    stream: Literal["stdout", "stderr"] | None
    attempt: int
    #: When the piece of output that ended it was recorded.
    at: datetime | None
    #: Of the event that ended it. A line may be only a part of an event.
    seq: int

    def __str__(self) -> str:
        return self.text
