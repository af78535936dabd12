"""The ports: what the core asks of a store, a sandbox and a clock. Each docstring is the contract.

Implementations live in `harness.store` and `harness.sandbox`; `harness.testing` has fakes. The contract suites under
``tests/contract`` run on every implementation. Nothing here knows MongoDB, SQLite or Docker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from harness.audit import AuditDraft, AuditEntry
from harness.egress.decision import OnDecision
from harness.models import (
    Agent,
    AgentDraft,
    Claim,
    FirePlan,
    HandoffArtifact,
    LoadedAgent,
    LogChunk,
    NewArtifact,
    NewTask,
    Outcome,
    Page,
    QueueStats,
    Reason,
    ScheduleMark,
    ScheduleSource,
    ScheduleState,
    Task,
    TaskStatus,
    UsageSample,
)
from harness.retention import Expiry, Purged
from harness.secrets.info import SecretInfo
from harness.tokens import ApiToken, TokenDraft


class Clock(Protocol):
    """Time. Durations are measured with `monotonic`, instants recorded with `now`."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, UTC."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary origin; never steps back."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of monotonic time."""


class Store(Protocol):
    """Agents, tasks, logs, handoff artifacts, tokens and the audit log, durable before a call returns.

    Every method may raise `StoreUnavailableError`, and `StoreError` for what cannot be done or read. Every write is
    atomic; a cancelled call may still take effect, whole or not at all, and so may one whose answer was lost. What a
    repetition does then stands with each write; where nothing stands, it changes nothing more. A limit
    below 1, an offset below 0, and a value that JSON cannot hold exactly or that is over its bound, are an
    `InvalidInputError`, and nothing is written. Ids are integers counted up from 1 and never used twice; numbers may be
    left out. All times a store writes or compares come from its own clock (`now`), so that hosts with skewed clocks agree
    on who holds a lease.
    """

    @property
    def store_id(self) -> str:
        """Random id made with the store, kept for ever; containers are labelled with it. Needs `open`."""

    async def open(self) -> None:
        """Connect, create what is missing (idempotent, also from several processes at once), check the schema.

        Raises:
            SchemaTooNewError: The store was written by a newer release; nothing was changed.
            StoreUnavailableError: It does not answer; the message says where it was looked for.
        """

    async def close(self) -> None:
        """Release connections. Idempotent; also fine when `open` failed or was never called."""

    async def now(self) -> datetime:
        """Return the store's time, aware UTC, in whole milliseconds."""

    # Agents

    async def create_agent(self, draft: AgentDraft) -> Agent:
        """Store a new agent. Repeated, it finds the name taken.

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
        """Replace what the owner wrote; raises the version by one, also when repeated.

        With `expected_version` a repetition is a `VersionConflictError`: whether the first call took effect shows in the
        agent.

        Raises:
            AgentNotFoundError: There is no such agent.
            VersionConflictError: Its version is not `expected_version`.
            AgentNameTakenError: Another agent has the new name.
        """

    async def delete_agent(self, agent_id: int) -> None:
        """Delete an agent with its tasks, logs and artifacts. Interrupted, it can be repeated.

        The agent goes last, so it is found until everything is gone; new tasks and artifacts, and changes, are refused
        with `AgentNotFoundError` from the beginning.

        Raises:
            AgentNotFoundError: There is no such agent.
            AgentBusyError: It has an active task.
        """

    # Tasks

    async def create_task(self, new: NewTask, *, claim: Claim | None = None) -> Task:
        """Store a task: pending, or with a `claim` already running under fence 1 with its first attempt begun.

        A task holds one of its agent's `max_active` slots from here to its final write, also while it waits for a
        retry; `when_busy` says what happens when none is free. A slot is not free for a new task while another one
        waits for it: nobody is overtaken between the end of a run and the next claim. A claim needs `WhenBusy.REJECT`.

        Repeated, a fire is a `DuplicateFireError`, and any other task a second one, for which there may be no slot. A
        task that was claimed here and that nobody heard of is lost when its lease runs out.

        Raises:
            AgentNotFoundError: There is no such agent.
            DuplicateFireError: A task of this agent with this `fire_at`, or this `request_key`, exists, whatever became
                of it; the error has its id. This counts more than a slot that is not free.
            AgentBusyError: No slot is free, and `when_busy` is `REJECT`; the message names a task that holds one.
        """

    async def get_task(self, task_id: int) -> Task:
        """Return a task, or raise `TaskNotFoundError`."""

    async def list_tasks(
        self,
        *,
        agent_id: int | None = None,
        status: TaskStatus | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Page[Task]:
        """Return tasks by falling id."""

    async def expired_tasks(self, *, limit: int = 100) -> Sequence[Task]:
        """Return running tasks whose lease has run out, earliest first."""

    async def claim_tasks(self, claim: Claim, *, limit: int) -> Sequence[Task]:
        """Take up to `limit` pending tasks whose `due_at` has passed, each by compare-and-set on id, status and fence.

        A win sets the owner and the lease, raises the fence by one and begins an attempt of that number. A task that
        waits for a slot is taken only if it gets one by this.

        Order: higher priority first; among equals the agents take turns, those with fewer running tasks first, so that
        one agent's backlog starves nobody; an agent's own tasks by `due_at`.

        Repeated, it takes others: what was claimed and never came back is lost when its lease runs out.

        Returns:
            The tasks as claimed, in that order; fewer than `limit` when there are no more, or others were faster.
        """

    async def next_due_at(self) -> datetime | None:
        """Return the earliest `due_at`, not yet passed, of all pending tasks and schedules; None: there is none."""

    async def queue_stats(self) -> QueueStats:
        """Count the work there is. Takes as long as there is work, however long the history; asked every few seconds."""

    async def extend_lease(self, task_id: int, fence: int, lease_seconds: float) -> datetime:
        """Prolong a live or expired-but-not-taken-over lease to now + `lease_seconds`; return its new end.

        Raises:
            LeaseLostError: The task is no longer running under `fence`.
        """

    async def record_reason(self, task_id: int, fence: int, reason: Reason, error: str | None = None) -> None:
        """Write down why the current attempt is about to be stopped. The first reason recorded stays.

        Raises:
            LeaseLostError: The task is no longer running under `fence`.
        """

    async def finish_task(
        self, task_id: int, fence: int, outcome: Outcome, *, artifact: NewArtifact | None = None
    ) -> Task:
        """Write a task's final status, its attempt's end and its artifact: all of them or none, however it is cut.

        Frees the task's `active_slot`. The artifact is the agent's newest for every later `newest_artifact`, and is
        saved exactly once per task. Repeated with the same outcome, as after an answer that was lost, it writes nothing
        and returns the task as stored.

        Raises:
            LeaseLostError: The task is no longer running under `fence`; nothing was written.
            StateRejectedError: The artifact is not acceptable; nothing was written.
        """

    async def retry_task(self, task_id: int, fence: int, outcome: Outcome, *, due_at: datetime) -> Task:
        """End an attempt and make the task pending again, due at `due_at`; raises `retry_count`, keeps its slot.

        A task whose cancellation was requested is not retried: it ends as cancelled. Repeated with the same outcome, as
        after an answer that was lost, it writes nothing and returns the task as stored: it may run again by then, under
        another fence.

        Raises:
            LeaseLostError: The task is no longer running under `fence`; nothing was written.
        """

    async def hand_back_task(self, task_id: int, fence: int, error: str) -> Task:
        """End an attempt that its runner can't go on with, as `Reason.LOST`, and make the task pending, due now.

        Not counted as a retry: it was no failure of the agent. A requested cancellation ends the task as cancelled.
        Repeated with the same sentence, it does what a repeated `retry_task` does.

        Raises:
            LeaseLostError: The task is no longer running under `fence`; nothing was written.
        """

    async def reopen_task(self, task_id: int, *, due_at: datetime, max_retries: int) -> Task:
        """Make a failed task pending again, due at `due_at`; raises `retry_count`, takes a slot of its agent.

        Its `max_retries` becomes `max_retries`, which may be more than it was made with. Repeated with the same numbers
        while the task waits, as after an answer that was lost, it writes nothing and returns the task as stored.

        Raises:
            TaskNotFoundError: There is no such task.
            ConflictError: It did not fail, or its `retry_count` has reached `max_retries`; the message says which.
            AgentBusyError: No slot of its agent is free, or others wait for those that are.
        """

    async def cancel_task(self, task_id: int) -> Task:
        """Cancel a pending task at once; note the wish on a running one, whose runner then stops it. Idempotent.

        Returns:
            The task; one that is final already comes back unchanged.

        Raises:
            TaskNotFoundError: There is no such task.
        """

    async def cancel_requests(self, owner: str) -> Sequence[int]:
        """Return the ids of running tasks leased by `owner` whose cancellation was requested."""

    async def expire_task(self, task: Task, *, retry_at: datetime | None = None) -> Task | None:
        """End a running task whose lease has run out, by compare-and-set on its id and fence, as `Reason.LOST`.

        Frees its slot. Its old runner can write nothing more: the task does not run, and once it does again, it does
        under a higher fence. A reason that was recorded before the runner died stays the attempt's reason. With
        `retry_at` the task becomes pending instead, due then, with its slot kept and `retry_count` raised; unless its
        cancellation was requested, which ends it as cancelled.

        Returns:
            The task as ended, or None when its lease was extended, or it was ended or taken over already: by somebody
            else, or by this call, of which this is a repetition.
        """

    # Schedules

    async def unsynced_schedules(self, *, limit: int = 1000) -> Sequence[ScheduleSource]:
        """Return agents whose schedule was not computed since they last changed, by rising id.

        These are agents with a ``schedule`` in their config and no state of their version, and agents whose config has
        none any more while a state is left. Costs nothing for agents that are in step, however many there are.
        """

    async def get_schedule(self, agent_id: int) -> ScheduleSource:
        """Return what an agent's owner wrote and where its schedule stands.

        Raises:
            AgentNotFoundError: There is no such agent.
        """

    async def put_schedules(
        self, states: Sequence[ScheduleState], *, skips: Sequence[NewTask] = ()
    ) -> Sequence[ScheduleState]:
        """Store schedules, each only if the stored revision is still its `revision` (0: none is stored yet).

        Args:
            states: Where the schedules stand now.
            skips: Fires that these schedules skip by the change. Accepted with their agent's state by the same
                compare-and-set, and carried out like a plan's, see `fire_schedules`; not at all without that.

        Returns:
            Those that were stored, with their new revision; the others were changed by somebody else meanwhile. So a
            repetition, as after an answer that was lost, stores nothing.

        Raises:
            InvalidInputError: A skip is of another agent, is none, or has no `fire_at`; nothing was written.
        """

    async def due_schedules(self, *, limit: int = 1000) -> Sequence[ScheduleSource]:
        """Return schedules whose `due_at` has passed, earliest first, with their agents' config and version."""

    async def due_marks(self, *, limit: int = 1000) -> Sequence[ScheduleMark]:
        """Return what `due_schedules` would, as marks alone: for whoever has read those schedules already.

        Costs little: no config is read.
        """

    async def upcoming_schedules(
        self, *, after: datetime, until: datetime, limit: int = 1000
    ) -> Sequence[ScheduleSource]:
        """Return schedules with ``after < due_at <= until``, due already or not, otherwise as `due_schedules` does."""

    async def next_schedules(self, *, limit: int = 100) -> Page[ScheduleState]:
        """Return the schedules in force, those that are due next first; the count is of all of them."""

    async def fire_schedules(self, plans: Sequence[FirePlan]) -> Sequence[Task]:
        """Carry plans out, each to its end once it is begun, however it is cut.

        A plan is accepted by one compare-and-set on the revision of `before`, which also stores the next fire; from
        then on its tasks come to be, by this call or, if it is cut, by any later one of this method, `due_schedules`
        or `unsynced_schedules`. A plan that is not accepted (somebody else was faster, or the agent is gone) does
        nothing. A fire that has a task already is passed over.

        Returns:
            The tasks that were stored by this call, skipped ones included.
        """

    # Logs

    async def append_logs(self, task_id: int, fence: int, chunks: Sequence[LogChunk]) -> None:
        """Add output of the attempt with number `fence`. A chunk that is already stored is left as it is.

        Raises:
            InvalidInputError: A chunk's `seq` is another attempt's, or its data is larger than 8 MiB.
            LeaseLostError: The task is no longer running under `fence`; nothing was written.
        """

    async def read_logs(self, task_id: int, *, after_seq: int = -1, limit: int = 1000) -> Sequence[LogChunk]:
        """Return chunks with a higher `seq`, in order."""

    # Samples of what runs use

    async def append_samples(self, task_id: int, fence: int, samples: Sequence[UsageSample]) -> None:
        """Add samples of the attempt with number `fence`. One that is already stored is left as it is.

        Raises:
            InvalidInputError: A sample's `seq` is another attempt's.
            LeaseLostError: The task is no longer running under `fence`; nothing was written.
        """

    async def read_samples(
        self, task_id: int, *, after_seq: int = -1, limit: int = 1000
    ) -> Sequence[UsageSample]:
        """Return samples with a higher `seq`, in order."""

    # Handoff artifacts

    async def save_artifact(self, agent_id: int, artifact: NewArtifact) -> HandoffArtifact:
        """Save an artifact outside of any run; its run count is the newest's plus one. Repeated, it saves another.

        Raises:
            StateRejectedError: The state or the summary is not acceptable.
            AgentNotFoundError: There is no such agent.
        """

    async def newest_artifact(self, agent_id: int) -> HandoffArtifact | None:
        """Return the newest artifact; None when there is none or it was cleared."""

    async def load_agents(self, agent_ids: Collection[int]) -> Mapping[int, LoadedAgent]:
        """Return agents by id, each with what `newest_artifact` returns: what runs begin with, for all that begin at once.

        One that is gone is left out; so is one whose record can't be read, which is logged, since it must not keep the
        others waiting.
        """

    async def clear_artifact(self, agent_id: int) -> None:
        """Make the next run a first run, by an artifact marked `cleared`; the history stays. Without one: nothing."""

    async def artifact_history(
        self, agent_id: int, *, limit: int = 100, before_version: int | None = None
    ) -> Sequence[HandoffArtifact]:
        """Return artifacts by falling version, clears included."""

    # Secrets

    async def put_secret(self, name: str, ciphertext: bytes) -> SecretInfo:
        """Store a secret's ciphertext, in place of another one if it has one.

        Raises:
            InvalidInputError: The name is none of a secret, or this is no ciphertext of `SecretCipher`, or too large.
        """

    async def replace_secret(self, name: str, before: bytes, after: bytes) -> bool:
        """Encrypt a secret anew: put `after` in the place of `before`; no time changes, since its value does not.

        Returns:
            Whether `before` was still there.

        Raises:
            InvalidInputError: `after` is no ciphertext.
        """

    async def get_secrets(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Return the ciphertexts of those secrets that there are, by name."""

    async def list_secrets(self, *, limit: int = 100, offset: int = 0) -> Page[SecretInfo]:
        """Return what is known of the secrets, by rising name."""

    async def delete_secret(self, name: str) -> None:
        """Delete a secret.

        Raises:
            SecretNotFoundError: There is none of that name.
        """

    # Retention

    async def agent_ids(self, *, after_id: int = 0, limit: int = 1000) -> Sequence[int]:
        """Return the ids of agents with a higher id, by rising id, without reading what they are made of."""

    async def purge(self, agent_id: int, expiry: Expiry, *, limit: int) -> Purged:
        """Delete what of an agent's history is to go: tasks with their logs, other tasks' logs, handoff artifacts.

        Never deleted: a task that is pending or running, or that something which was accepted and not carried out yet
        (a fire, an artifact on the way to its place) still refers to; and an agent's newest artifact, a clear included,
        so that versions and run counts go on. An artifact outlives its task, and a task may outlive its logs. No log
        outlives its task, so whatever cuts this call, a later one goes on. The fire of a deleted task is not fired
        again by `fire_schedules`; `create_task` would take it.

        One call deletes about `limit` records (a task, a chunk of its log, an artifact) and holds no lock for longer
        than some tens of milliseconds; where there is nothing to do it writes nothing. Others may call it at the same
        time. Nothing is deleted for an agent that is not there.

        Returns:
            What this call deleted, and whether there may be more.
        """

    async def purgeable(self, agent_id: int, expiry: Expiry) -> Purged:
        """Count what calls of `purge` would delete. Takes time in proportion to the agent's history."""

    # Access

    async def create_token(self, draft: TokenDraft, secret_hash: str) -> ApiToken:
        """Store a new token. Never the secret itself: `secret_hash` is what `harness.tokens.hash_secret` returns."""

    async def find_token(self, token_id: int) -> tuple[ApiToken, str] | None:
        """Return a token, also one that is no longer valid, and the hash of its secret; None: there is none."""

    async def has_tokens(self) -> bool:
        """Whether a token was ever made, valid or not: it costs little, and once true it stays true."""

    async def list_tokens(self, *, limit: int = 100, offset: int = 0) -> Page[ApiToken]:
        """Return tokens by falling id, those included that are no longer valid."""

    async def revoke_token(self, token_id: int) -> ApiToken:
        """Make a token invalid for good. Idempotent: the first time stays.

        Raises:
            TokenNotFoundError: There is no such token.
        """

    async def touch_token(self, token_id: int) -> None:
        """Note that a token was used now, unless that was noted in the last `TOUCH_SECONDS`, or it is gone."""

    async def append_audit(self, draft: AuditDraft, *, max_entries: int) -> AuditEntry:
        """Add a line to the audit log, and now and then delete the oldest beyond `max_entries`.

        Never more than a hundred lines beyond that are kept. Repeated under a driver's retry it may leave out an id.
        """

    async def list_audit(self, *, limit: int = 100, before_id: int | None = None) -> Sequence[AuditEntry]:
        """Return lines of the audit log by falling id; with `before_id`, only those with a lower one."""


OutputStream = Literal["stdout", "stderr"]

#: Called with each piece of output as it comes, in order, from the event loop. It must not block: it decides for
#: itself what to keep, since the stream is always read to its end so that the agent never stalls on a full pipe.
OutputSink = Callable[[OutputStream, bytes], None]

#: Called when a container is there and about to start; raises when it must not.
BeforeStart = Callable[[], None]

#: Awaited before a sandbox is stopped, with the reason and a sentence; bounded in time by the caller.
BeforeStop = Callable[[Reason, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Limits of one sandbox, resolved: all of them, always."""

    memory_bytes: int
    cpus: float
    max_processes: int
    tmp_bytes: int
    timeout_seconds: float
    grace_seconds: float
    output_bytes: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class SandboxLabels:
    """Whose container it is; found again after a crash by these labels alone."""

    store_id: str
    task_id: int
    fence: int


@dataclass(frozen=True, slots=True)
class WarmLabels:
    """Who keeps a container that waits for a task; found again after a crash by these labels alone."""

    store_id: str
    #: The `Task.lease_owner` of the tasks that it may be given.
    owner: str
    #: Nobody needs it any more from then on, by the store's clock.
    until: datetime


@dataclass(frozen=True, slots=True)
class SandboxShape:
    """What of a container is settled before its job is known; containers of one shape are interchangeable."""

    #: None: the product's own Python image.
    image: str | None
    memory_bytes: int
    cpus: float
    max_processes: int
    tmp_bytes: int
    network: Literal["none", "open"] = "none"


def sandbox_shape(
    limits: SandboxLimits, *, image: str | None, network: Literal["none", "open"]
) -> SandboxShape:
    """Return the shape of containers with these limits."""
    return SandboxShape(
        image=image,
        memory_bytes=limits.memory_bytes,
        cpus=limits.cpus,
        max_processes=limits.max_processes,
        tmp_bytes=limits.tmp_bytes,
        network=network,
    )


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a container is made from. Holds nothing that must not show in ``docker inspect``."""

    limits: SandboxLimits
    labels: SandboxLabels
    #: None: the product's own Python image.
    image: str | None = None
    #: None: the image's supervisor takes jobs. Otherwise any program: context as JSON on stdin, judged by exit code.
    command: tuple[str, ...] | None = None
    #: Container environment; only for a `command`.
    environment: Mapping[str, str] = field(default_factory=dict)
    network: Literal["none", "open"] = "none"
    #: Places that it may reach, as ``host:port`` (`harness.egress.policy.parse_rule`), through a relay that its programs
    #: find by the variables of `harness.egress.PROXY_ENVIRONMENT`. None: nothing, and no relay.
    egress: tuple[str, ...] = ()
    #: Whose warm containers may be used: the task's `Task.lease_owner`. None: nobody's.
    owner: str | None = None

    @property
    def shape(self) -> SandboxShape:
        """What a warm container must be like to be used for this; of no use for a `command`."""
        return sandbox_shape(self.limits, image=self.image, network=self.network)


@dataclass(frozen=True, slots=True)
class SandboxJob:
    """What is sent into a container over stdin."""

    context: Mapping[str, Any]
    #: What the agent sees as `handoff.task`: agent_id, task_id, attempt, run_count, previous_outcome.
    task: Mapping[str, Any]
    #: Text files by relative path, and the one to run; a one-file agent is ``{"main.py": code}``.
    files: Mapping[str, str] = field(default_factory=dict)
    entrypoint: str = "main.py"
    #: Holds secrets, so it stands in no log by accident.
    env: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How one job ended."""

    reason: Reason
    #: 128 + n after signal n; -1 when there is none.
    exit_code: int
    #: A sentence for people; None after success.
    error: str | None = None
    #: What the agent gave to `handoff.save`, checked against all bounds; None when it saved nothing.
    state: dict[str, Any] | None = None
    summary: str = ""
    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None
    wall_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SandboxUsage:
    """What a container uses now; see `harness.models.UsageSample` for the fields."""

    memory_bytes: int | None
    cpu_percent: float | None
    cpu_seconds: float | None
    processes: int | None


#: ``warm``: it waited for a task of its shape; ``adapted``: for one of a shape near to it; ``cold``: it was made anew.
SandboxOrigin = Literal["warm", "adapted", "cold"]


class SandboxSession(Protocol):
    """One started container, good for one job."""

    @property
    def container_id(self) -> str:
        """The engine's id."""

    @property
    def start_seconds(self) -> float:
        """Time from the request to a started container."""

    @property
    def origin(self) -> SandboxOrigin:
        """Where the container came from."""

    async def run(self, job: SandboxJob, *, sink: OutputSink, before_stop: BeforeStop) -> SandboxResult:
        """Hand the job over, stream its output, enforce the wall time, and return how it ended.

        All output reaches `sink` before this returns. Never raises for what the agent or the engine does: that is the
        result's reason. Cancelling it stops the container.
        """

    async def stop(self, reason: Reason, message: str) -> None:
        """Ask the running job to end: SIGTERM, after the grace SIGKILL. `run` returns with `reason`.

        Returns when `before_stop` has run and the signal is on its way. The first call decides; later ones do nothing.
        """

    async def usage(self) -> SandboxUsage | None:
        """Measure the container; None when it runs no more, or the engine does not say so in time. Never raises.

        May take as long as the engine needs, seconds on some; may be cancelled at any time.
        """


@dataclass(frozen=True, slots=True)
class OwnedContainer:
    """A container that carries the product's label."""

    container_id: str
    #: `WarmLabels` as long as its name does not say which attempt it was given to; see `WARM_NAMING_SECONDS`.
    labels: SandboxLabels | WarmLabels
    #: The engine's word: created, running, paused, restarting, removing, exited, dead.
    state: str
    #: By the engine's clock.
    made_at: datetime
    #: Whether this very sandbox is about to remove it, and nothing of an agent runs in it any more.
    is_leaving: bool = False


#: A warm container that was given to an attempt says so from this long after on, if its owner is alive and the engine
#: answers. The attempt's job may begin before that.
WARM_NAMING_SECONDS = 1.0


class Sandbox(Protocol):
    """Makes throwaway containers."""

    def open(
        self,
        spec: SandboxSpec,
        *,
        before_start: BeforeStart | None = None,
        on_egress: OnDecision | None = None,
    ) -> AbstractAsyncContextManager[SandboxSession]:
        """Create and start a container; on exit nothing of the agent runs any more.

        Then the container is gone, or quarantined and reported when the engine won't. Only after a job whose end the
        container's own supervisor has proved, every other process in it being dead, it is removed a moment later, in
        the background; `close` sees it gone. Not so after a stop for `Reason.LOST`: the task's next runner may begin.

        `before_start` is called between the two. Whoever holds a lease checks it there: if it still holds, a sweep
        that is to end it later will find this container and remove it, so that it can't start any more, however late
        the start is. Checked before the creation, or after the start, a frozen process could start a container
        beside its successor's.

        With `SandboxSpec.egress` the way out is open before a job can be sent, and ends with the container. `on_egress` is
        told each decision about a connection; it must not block. That the way out breaks is one of them, and no end of
        the run.

        Raises:
            EngineUnavailableError: The engine does not answer.
            ImageMissingError: The image is not there; the message says how to get it.
            SandboxError: The engine refused; the message has its words.
        """

    async def keep_warm(
        self, store_id: str, owner: str, wanted: Mapping[SandboxShape, int], *, now: datetime
    ) -> None:
        """Have containers wait for tasks, so many of each shape, the first ones first; called again every few seconds.

        They are made in the background, when nothing better is to be done, within this sandbox's own bounds of number
        and memory. Each is used at most once, by `open` with that owner, and holds nothing of any agent before.

        Args:
            store_id: For their labels.
            owner: Who may use them.
            wanted: What there should be; what is not among it goes when the room is needed, or it gets old.
            now: By the store's clock.
        """

    async def owned_containers(self, store_id: str) -> Sequence[OwnedContainer]:
        """Return our containers of that store, in every state (also merely created ones)."""

    async def remove_container(self, container_id: str) -> None:
        """Kill and remove a container; one that is gone already counts as success.

        Raises:
            SandboxError: It is still there after all bounded tries.
        """

    async def close(self) -> None:
        """Finish removals, then release connections and threads. Idempotent."""
