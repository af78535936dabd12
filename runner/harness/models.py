"""The nouns of the product as frozen pydantic models: agents, tasks, attempts, artifacts, results.

Field names and defaults that the user's API description fixes stay as it writes them. Instants are aware UTC and print
as RFC 3339 with ``Z``. No behaviour beyond checks of a single value lives here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from harness.config import AgentConfig

#: Bound on an agent's code and files together, in bytes of UTF-8; keeps a MongoDB document far from its 16 MB.
MAX_CODE_BYTES = 4 * 1024 * 1024

#: NAME_MAX of Linux file systems.
_MAX_NAME_BYTES = 255

#: Where counting a store's work ends: past it there is too much, and how much makes no difference.
MAX_COUNTED = 100_000

T = TypeVar("T")


def _as_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("an instant needs a time zone; use datetime.now(UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("an instant lies between the years 1 and 9999 in UTC") from None


def render_instant(value: datetime) -> str:
    """Render an instant as RFC 3339 with ``Z`` and no more digits than needed."""
    return value.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


#: Aware UTC on the way in, RFC 3339 with ``Z`` on the way out.
Instant = Annotated[
    datetime, AfterValidator(_as_utc), PlainSerializer(render_instant, return_type=str, when_used="json")
]


class Model(BaseModel):
    """Frozen, and closed to unknown fields."""

    # Configs hold secrets, and pydantic's own messages quote what they refuse.
    # Built when they are first used: a command uses a few of them, and should come at once.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


class TaskStatus(StrEnum):
    """Where a task stands. The last four are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @property
    def is_final(self) -> bool:
        """Whether a task in this status can change no more, short of an explicit retry."""
        return self not in (TaskStatus.PENDING, TaskStatus.RUNNING)


class Reason(StrEnum):
    """What ended a run; exactly one per attempt."""

    COMPLETED = "completed"
    EXIT_NONZERO = "exit_nonzero"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"
    #: The runner died or its lease ran out; what the agent did is unknown.
    LOST = "lost"
    #: The container ended without a valid result frame.
    RESULT_LOST = "result_lost"
    #: The engine failed: no container, or it went away under the run.
    SANDBOX_ERROR = "sandbox_error"
    #: The agent ended well, but what it wanted to hand over is not acceptable.
    STATE_REJECTED = "state_rejected"

    @property
    def status(self) -> TaskStatus:
        """The final status of a task whose last attempt ended like this."""
        if self is Reason.COMPLETED:
            return TaskStatus.COMPLETED
        return TaskStatus.CANCELLED if self is Reason.CANCELLED else TaskStatus.FAILED


class SkipReason(StrEnum):
    """Why a fire became no run."""

    #: The agent was busy, and its schedule says to skip then.
    OVERLAP = "overlap"
    #: A newer fire took its place in the queue.
    SUPERSEDED = "superseded"
    #: It came due while no scheduler ran, and its schedule's `catch_up` leaves it out.
    MISSED = "missed"
    #: Its time had come, and before it was fired its schedule was paused, removed, disabled or taken out of the config.
    DISABLED = "disabled"


class WhenBusy(StrEnum):
    """What happens to a new task that finds none of its slots free; those that others wait for are not."""

    #: `AgentBusyError`.
    REJECT = "reject"
    #: It is stored as skipped.
    SKIP = "skip"
    #: It is stored as pending and waits for a slot; when one waits already, it is stored as skipped.
    QUEUE = "queue"
    #: It is stored as pending and waits for a slot, however many wait already; for a bounded number of late fires.
    WAIT = "wait"
    #: The tasks that hold the slots are asked to end, it waits for one; one that waits already is skipped instead.
    REPLACE = "replace"


class AgentDraft(Model):
    """What an owner writes about an agent: everything but what the store adds."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    #: Python source of a one-file agent; empty when `files` is used.
    code: str = ""
    #: Text files by relative POSIX path; `entrypoint` names the one that is run.
    files: dict[str, str] = Field(default_factory=dict)
    entrypoint: str | None = None
    #: See `harness.config.AgentConfig` for what may stand here.
    config: dict[str, Any] = Field(default_factory=dict)

    def draft_fields(self) -> dict[str, Any]:
        """Return what an owner writes, by name; of an agent, which is a draft with more, that part alone."""
        return {name: getattr(self, name) for name in AgentDraft.model_fields}

    @field_validator("name")
    @classmethod
    def _name_is_printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise ValueError("a name has no control characters and no blanks at its ends")
        if name.isdigit():
            raise ValueError("a name of digits only would be taken for an id; add a letter")
        return name

    @field_validator("config")
    @classmethod
    def _config_is_valid(cls, config: dict[str, Any]) -> dict[str, Any]:
        AgentConfig.parse(config)
        return config

    @model_validator(mode="after")
    def _has_one_program(self) -> Self:
        ways = [bool(self.code), bool(self.files), self.config.get("command") is not None]
        if sum(ways) != 1:
            raise ValueError(
                "an agent needs exactly one of code, files with an entrypoint, or config.command"
            )
        if self.files and self.entrypoint is None:
            raise ValueError("files need an entrypoint: the path of the file to run")
        if self.entrypoint is not None and self.entrypoint not in self.files:
            raise ValueError(f"the entrypoint {self.entrypoint!r} is none of the files")
        for path in self.files:
            _check_path(path)
            folder = next(
                (str(parent) for parent in PurePosixPath(path).parents if str(parent) in self.files), None
            )
            if folder is not None:
                raise ValueError(f"{folder!r} is a file, so there can be no {path!r} in it")
        size = _utf8_size("code", self.code)
        size += sum(len(path) + _utf8_size(path, text) for path, text in self.files.items())
        if size > MAX_CODE_BYTES:
            raise ValueError(f"code and files are {size:,} bytes, more than the limit of {MAX_CODE_BYTES:,}")
        return self


def _utf8_size(what: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds a lone surrogate at position {error.start}, which is no valid text"
        ) from error


def _check_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    clean = "/".join(parts)
    if not parts or path.startswith("/") or ".." in parts or clean != path or not path.isprintable():
        raise ValueError(f"the file path {path!r} must be relative, normal (a/b.py) and without '..'")
    if len(path) > 400:
        raise ValueError(f"the file path {path[:40]!r}… is longer than 400 characters")
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise ValueError(f"the file path {path[:40]!r}… has a name of more than {_MAX_NAME_BYTES} bytes")


class Agent(AgentDraft):
    """A stored agent."""

    id: int
    #: Raised by every change; a change may name the version it was made from.
    version: int = 1
    created_at: Instant
    updated_at: Instant

    @property
    def options(self) -> AgentConfig:
        """The typed view of `config`."""
        return AgentConfig.parse(self.config)


class Usage(Model):
    """What one attempt used, measured inside the sandbox and by the runner."""

    #: Peak of the container's memory, page cache included, as the kernel's cgroup counts it; None when not known.
    peak_memory_bytes: int | None = None
    #: CPU time of the agent and all its descendants, user and system.
    cpu_seconds: float | None = None
    #: From the job being handed over to the end of the agent.
    wall_seconds: float | None = None
    #: From the request for a container to one that takes jobs.
    container_start_seconds: float | None = None
    #: All output written, kept or not.
    output_bytes: int = 0
    #: Highest of the samples taken while it ran, processes and threads counted alike; None for a run too short for one.
    peak_processes: int | None = None
    #: The same, in per cent of one core.
    peak_cpu_percent: float | None = None


class Attempt(Model):
    """One container launch of a task."""

    #: The fence of the claim under which it ran: counts up from 1.
    number: int
    #: When it could have begun; from then to `started_at` it waited for a slot or for a runner.
    due_at: Instant | None = None
    started_at: Instant
    ended_at: Instant | None = None
    #: Set before the kill that causes the end, so it may stand here while the attempt still runs.
    reason: Reason | None = None
    exit_code: int | None = None
    error: str | None = None
    #: Whether output beyond the cap was dropped.
    output_truncated: bool = False
    usage: Usage = Usage()


class Task(Model):
    """The record of one run."""

    id: int
    agent_id: int
    status: TaskStatus
    #: What started it: a person, a schedule or a retry by hand.
    trigger: Literal["manual", "schedule"] = "manual"
    scheduled_at: Instant
    created_at: Instant
    started_at: Instant | None = None
    completed_at: Instant | None = None
    #: The run's summary, or the last line of its output.
    result: str | None = None
    error: str | None = None
    retry_count: int = 0
    #: How often a failed attempt may be followed by another one.
    max_retries: int = 0
    #: Higher runs first.
    priority: int = 0
    #: What ended the last attempt.
    reason: Reason | None = None
    #: Set on skipped tasks only.
    skip_reason: SkipReason | None = None
    #: The schedule's nominal instant that this task answers for; None when no schedule asked for it.
    fire_at: Instant | None = None
    #: A skipped task can stand for a run of fires, `fire_at` to this one, both included; None: for one.
    skipped_until: Instant | None = None
    #: How many fires it stands for; 0 for a task that was not skipped.
    skipped_count: int = 0
    #: When somebody asked for the running task to be cancelled.
    cancel_requested_at: Instant | None = None
    #: One for each container that was launched, the oldest first.
    attempts: tuple[Attempt, ...] = ()
    #: Context the caller passed instead of the stored handoff; None when the newest artifact is loaded.
    context: dict[str, Any] | None = None
    #: Whether a successful run saves a handoff artifact.
    save_handoff: bool = True
    #: When a pending task may start; when a running task's lease ends; None once final.
    due_at: Instant | None = None
    #: The runner that runs it.
    lease_owner: str | None = None
    #: Raised by every claim. Writes of a run carry the fence of their claim; an older one matches nothing.
    fence: int = 0

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None


class QueueStats(Model):
    """How much work there is at one moment. Each number stops at `MAX_COUNTED`."""

    #: The store's time.
    at: Instant
    #: Due pending tasks that hold a slot of their agent: all they wait for is a runner.
    ready: int = 0
    #: Since when the oldest of those is due.
    ready_since: Instant | None = None
    #: Due pending tasks that wait for a slot of their own agent.
    waiting: int = 0
    waiting_since: Instant | None = None
    #: Pending tasks that are not due yet: retries, and fires with jitter.
    delayed: int = 0
    #: Running tasks, wherever they run.
    running: int = 0
    #: Of those, the ones whose lease has run out: their runner died, or lost its store.
    expired: int = 0


class NewTask(Model):
    """A task to be stored."""

    agent_id: int
    trigger: Literal["manual", "schedule"] = "manual"
    #: None: now, by the store's clock.
    scheduled_at: Instant | None = None
    context: dict[str, Any] | None = None
    save_handoff: bool = True
    #: When the task may start; None: at `scheduled_at`. Later than that by a schedule's jitter.
    due_at: Instant | None = None
    #: The schedule's nominal instant. With the agent's id it is unique in the store: a fire becomes one task, or one
    #: skip. None for runs that no schedule asked for.
    fire_at: Instant | None = None
    #: Unique among the agent's requests: a run that is asked for twice by one key becomes one task.
    request_key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    #: How many tasks of the agent may hold a slot at once: all pending and running ones but those that wait for one.
    max_active: Annotated[int, Field(ge=1, le=1000)] = 1
    when_busy: WhenBusy = WhenBusy.REJECT
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    max_retries: Annotated[int, Field(ge=0, le=100)] = 0
    #: Store it as skipped straight away; `skipped_until` and `skipped_count` make it stand for several fires.
    skip_reason: SkipReason | None = None
    skipped_until: Instant | None = None
    skipped_count: Annotated[int, Field(ge=0)] = 0


class Claim(Model):
    """Who takes a task, and for how long."""

    #: Unique per runner process.
    owner: str
    lease_seconds: Annotated[float, Field(gt=0)]


class Outcome(Model):
    """How one attempt ended: what is written in a task's final write."""

    reason: Reason
    exit_code: int | None = None
    result: str | None = None
    error: str | None = None
    output_truncated: bool = False
    usage: Usage = Usage()


class ScheduleState(Model):
    """Where an agent's schedule stands; what it says is in the agent's config."""

    agent_id: int
    #: The agent's version this was computed from; an agent of another version is due for a new computation.
    agent_version: int
    #: The next nominal fire; None: no more, or the schedule is off (`enabled` false, paused, or removed).
    next_fire_at: Instant | None = None
    #: When that fire is to become a task: `next_fire_at` plus jitter.
    due_at: Instant | None = None
    #: Origin of an interval's grid: kept over restarts and pauses, so that it does not drift.
    anchor_at: Instant
    #: The last nominal fire that became a task or a skip.
    last_fire_at: Instant | None = None
    #: Fires no more until it is resumed.
    paused: bool = False
    #: Taken out by `TaskScheduler.remove_agent_schedule`; comes back with `add_agent_schedule` only.
    removed: bool = False
    #: The agent's ``schedule`` as it was when this was computed: what is due was due by it, whatever the config says
    #: now. None while the schedule is off.
    rule: dict[str, Any] | None = None
    #: Raised by every change; a change names the revision it was made from.
    revision: int = 0


class ScheduleMark(NamedTuple):
    """By what a schedule is told from one that changed since: see `ScheduleSource.mark`."""

    agent_id: int
    #: The agent's own version, whatever its schedule was computed from.
    agent_version: int
    revision: int


class ScheduleSource(Model):
    """An agent whose schedule has to be computed: what its owner wrote, and where the schedule stood."""

    agent_id: int
    agent_version: int
    agent_created_at: Instant
    config: dict[str, Any]
    state: ScheduleState | None = None

    @property
    def mark(self) -> ScheduleMark:
        """Changes with the agent and with where its schedule stands; a revision of 0 is of no stored schedule."""
        revision = 0 if self.state is None else self.state.revision
        return ScheduleMark(self.agent_id, self.agent_version, revision)


class FirePlan(Model):
    """What one due schedule turns into: tasks and skips, and then its next fire."""

    #: The schedule as read; the plan holds only if its revision is still the stored one.
    before: ScheduleState
    tasks: tuple[NewTask, ...]
    next_fire_at: Instant | None
    due_at: Instant | None


class NewArtifact(Model):
    """State and summary to be saved; the store adds version, run count and time."""

    state: dict[str, Any]
    summary: str = ""


class HandoffArtifact(Model):
    """What one run left for the next."""

    agent_id: int
    state: dict[str, Any]
    summary: str = ""
    created_at: Instant
    #: Runs since the state was last cleared, this one included.
    run_count: int
    #: Counts up per agent and is never used twice, also across a clear.
    version: int
    #: The task that saved it; None when a person did.
    task_id: int | None = None
    #: Marks a clear: kept in the history, never loaded.
    cleared: bool = False


@dataclass(frozen=True, slots=True)
class LoadedAgent:
    """What a run begins with: an agent, and its newest artifact, None when there is none or it was cleared."""

    agent: Agent
    artifact: HandoffArtifact | None


class ExecutionResult(Model):
    """What `AgentExecutor.execute_agent` returns."""

    success: bool
    stdout: str
    stderr: str
    #: Exit code of the agent; 128 + n after signal n; -1 when there is none (the engine or the runner failed).
    exit_code: int
    duration_seconds: float
    error_message: str | None = None
    task_id: int
    reason: Reason
    #: State the agent handed over by `handoff.save`, or the one derived from its output; None after a failure.
    state: dict[str, Any] | None = None
    summary: str = ""
    output_truncated: bool = False
    usage: Usage = Usage()


class ResourceLimits(Model):
    """Thresholds for `ResourceManager.exceeds_limits`."""

    max_memory_mb: Annotated[float, Field(gt=0)] = 256
    #: Per cent of one core, so 200.0 is two full cores.
    max_cpu_percent: Annotated[float, Field(gt=0)] = 80.0
    #: The process itself and its descendants.
    max_processes: Annotated[int, Field(ge=1)] = 5


class LogChunk(Model):
    """A piece of an agent's output, as stored."""

    #: Orders the chunks of a task across attempts; made by `log_seq`.
    seq: int
    stream: Literal["stdout", "stderr"]
    data: bytes
    at: Instant


class UsageSample(Model):
    """What a running container used at one moment, by the rules of ``docker stats``. None: the engine does not say."""

    #: Orders the samples of a task across attempts; made by `log_seq`.
    seq: int
    at: Instant
    #: Without the page cache that the kernel can drop at once.
    memory_bytes: int | None = None
    #: Since the sample before, in per cent of one core, so 200.0 is two full cores.
    cpu_percent: float | None = None
    #: Since the container's start.
    cpu_seconds: float | None = None
    #: Processes and threads.
    processes: int | None = None


def log_seq(attempt: int, index: int) -> int:
    """Return the sequence number of an attempt's `index`-th chunk: one number that orders a whole task.

    Attempts below 2**21 keep it below 2**53, so that JavaScript readers hold it exactly.
    """
    return (attempt << 32) | index


def log_attempt(seq: int) -> int:
    """Return the attempt a chunk belongs to."""
    return seq >> 32


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a longer list, newest first."""

    items: tuple[T, ...]
    total_count: int
    limit: int
    offset: int
