"""Models to plain documents and back, shared by both stores.

A plain document is a dict of strings, integers, floats, bools, aware UTC datetimes in whole milliseconds, and lists and
dicts of these. JSON that users own (config, state, context) stands in it as canonical *text*, see `harness.jsontext`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from harness.config import MIB
from harness.errors import (
    AgentBusyError,
    AgentNameTakenError,
    AgentNotFoundError,
    DuplicateFireError,
    InvalidInputError,
    StateRejectedError,
    StoreError,
    VersionConflictError,
)
from harness.jsontext import encode_document
from harness.models import (
    Agent,
    AgentDraft,
    Attempt,
    HandoffArtifact,
    LoadedAgent,
    LogChunk,
    NewArtifact,
    NewTask,
    ScheduleSource,
    ScheduleState,
    Task,
    TaskStatus,
    UsageSample,
    log_attempt,
    render_instant,
)

#: Schema of what the stores write; a store that says more was written by a newer release.
SCHEMA_VERSION = 1

#: Bound on one config, context or state as JSON text, in bytes of UTF-8. A task in MongoDB holds its context and, for
#: a moment, its artifact; with this they stay below 16 MB together. The same in every store, so that data can move.
MAX_JSON_BYTES = 4 * MIB

#: Bound on a summary, in bytes of UTF-8.
MAX_SUMMARY_BYTES = MIB

#: Bound on the data of one log chunk.
MAX_CHUNK_BYTES = 8 * MIB

#: Longest result or error kept, in characters. What is longer comes from an agent's output, where it stands in full.
MAX_TEXT_LENGTH = 8192

#: The instants among a schedule's fields.
SCHEDULE_INSTANTS = ("next_fire_at", "due_at", "anchor_at", "last_fire_at")

#: The fields of a schedule that an accepted plan changes.
FIRED_FIELDS = ("next_fire_at", "due_at", "last_fire_at", "revision")

_INT64 = 2**63
_EPOCH, _MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)

_log = logging.getLogger(__name__)

T = TypeVar("T")


def whole_millis(value: datetime) -> datetime:
    """Cut an instant to whole milliseconds, which is what BSON holds, so that written and read back are equal."""
    value = value.astimezone(UTC)
    beyond = value.microsecond % 1000
    return value.replace(microsecond=value.microsecond - beyond) if beyond else value


def to_millis(value: datetime) -> int:
    """Return milliseconds since 1970."""
    return (value - _EPOCH) // _MILLISECOND


def from_millis(value: int) -> datetime:
    """Return the instant `to_millis` was made from."""
    return _EPOCH + timedelta(milliseconds=value)


def clean_text(text: str) -> str:
    """Replace lone surrogates, which UTF-8 has no bytes for: a final write must not fail for an agent's output."""
    return text.encode(errors="replace").decode()


def clip_text(text: str | None) -> str | None:
    """Clean a result or error and cut it to `MAX_TEXT_LENGTH`."""
    if text is None:
        return None
    return clean_text(text if len(text) <= MAX_TEXT_LENGTH else text[: MAX_TEXT_LENGTH - 1] + "…")


def int64(value: int) -> int:
    """Bring an id, version or sequence number into the databases' range, past whose ends nothing is ever stored."""
    return max(-_INT64, min(value, _INT64 - 1))


def check_page(limit: int, offset: int = 0) -> None:
    """Refuse a page that drivers would read as something else: to MongoDB a limit of 0 is no limit.

    Raises:
        InvalidInputError: Naming the number at fault.
    """
    if not 1 <= limit < _INT64:
        raise InvalidInputError(f"limit must be 1 or more, got {limit}")
    if not 0 <= offset < _INT64:
        raise InvalidInputError(f"offset must be 0 or more, got {offset}")


def readable(what: str, key: object, build: Callable[[], T]) -> T:
    """Build a model from a stored document.

    Raises:
        StoreError: The document does not have the form this release writes.
    """
    try:
        return build()
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the stored {what} {key} is not readable ({type(error).__name__}: {str(error)[:200]}); "
            "something else than Agent Harness changed it: restore it from a backup or delete it"
        ) from error


# Agents


def draft_document(draft: AgentDraft) -> dict[str, Any]:
    """Return the part of an agent that its owner wrote.

    Raises:
        InvalidInputError: Its config cannot be kept as JSON.
    """
    return {
        "name": draft.name,
        "code": draft.code,
        # Pairs and not a mapping: paths have dots, which MongoDB reads as nesting.
        "files": [[path, text] for path, text in draft.files.items()],
        "entrypoint": draft.entrypoint,
        "config": encode_document(draft.config, what="config", max_bytes=MAX_JSON_BYTES),
    }


def agent_from(document: Mapping[str, Any]) -> Agent:
    """Return the agent of a plain document."""
    return readable(
        "agent",
        document["id"],
        # Not validated: an agent accepted by an older release with laxer rules must stay visible and repairable.
        lambda: Agent.model_construct(
            id=document["id"],
            name=document["name"],
            code=document["code"],
            files={path: text for path, text in document["files"]},  # noqa: C416 - checks that these are pairs
            entrypoint=document["entrypoint"],
            config=json.loads(document["config"]),
            version=document["version"],
            created_at=document["created_at"],
            updated_at=document["updated_at"],
        ),
    )


def agent_is_being_deleted(agent_id: int) -> AgentNotFoundError:
    """Return the error for a write to an agent whose deletion began and was cut."""
    return AgentNotFoundError(
        f"agent {agent_id} is being deleted; if that was interrupted, delete it once more"
    )


def name_taken(agent_id: int, name: str) -> AgentNameTakenError:
    """Return the error for a name that agent `agent_id` has."""
    return AgentNameTakenError(f"agent {agent_id} has the name {name!r} already; choose another")


def version_conflict(agent_id: int, version: int, expected: int) -> VersionConflictError:
    """Return the error for a change made from another version than the stored one."""
    return VersionConflictError(
        f"agent {agent_id} has version {version}, not {expected}: somebody changed it in the meantime; read it again "
        "and repeat the change"
    )


def agent_is_active(agent_id: int, task_id: int) -> AgentBusyError:
    """Return the error for the deletion of an agent with an active task."""
    return AgentBusyError(
        f"agent {agent_id} cannot be deleted: its task {task_id} is active; cancel it first"
    )


# Tasks


def task_document(task: Task) -> dict[str, Any]:
    """Return a task as a plain document.

    Raises:
        InvalidInputError: Its context cannot be kept as JSON.
    """
    document = {name: getattr(task, name) for name in Task.model_fields}
    document["status"] = task.status.value
    document["reason"] = _plain(task.reason)
    document["skip_reason"] = _plain(task.skip_reason)
    document["attempts"] = [_attempt_document(attempt) for attempt in task.attempts]
    if task.context is not None:
        document["context"] = encode_document(task.context, what="context", max_bytes=MAX_JSON_BYTES)
    return document


def task_changes(before: Task, after: Task) -> dict[str, Any]:
    """Return the fields of a plain document in which two states of one task differ; the context never does."""
    old = vars(before)
    changes: dict[str, Any] = {
        name: value
        for name, value in vars(after).items()
        # A copy shares what it does not change, so most need no closer look.
        if value is not old[name] and value != old[name] and name != "context"
    }
    if "status" in changes:
        changes["status"] = after.status.value
    for name in ("reason", "skip_reason"):
        if name in changes:
            changes[name] = _plain(changes[name])
    if "attempts" in changes:
        changes["attempts"] = [_attempt_document(attempt) for attempt in after.attempts]
    return changes


def task_from(document: Mapping[str, Any]) -> Task:
    """Return the task of a plain document; fields that only stores know are left out."""

    def build() -> Task:
        fields = {name: document[name] for name in Task.model_fields}
        fields["status"] = TaskStatus(fields["status"])
        if fields["context"] is not None:
            fields["context"] = json.loads(fields["context"])
        return Task.model_validate(fields)

    return readable("task", document["id"], build)


def new_task_document(new: NewTask) -> dict[str, Any]:
    """Return a task that is to be stored as a plain document.

    Raises:
        InvalidInputError: Its context cannot be kept as JSON.
    """
    document = {name: getattr(new, name) for name in NewTask.model_fields}
    document |= {"when_busy": new.when_busy.value, "skip_reason": _plain(new.skip_reason)}
    if new.context is not None:
        document["context"] = encode_document(new.context, what="context", max_bytes=MAX_JSON_BYTES)
    return document


def new_task_from(document: Mapping[str, Any]) -> NewTask:
    """Return the task that `new_task_document` was given."""

    def build() -> NewTask:
        context = document["context"]
        fields = {**document, "context": None if context is None else json.loads(context)}
        return NewTask.model_validate(fields)

    return readable("fire of agent", document["agent_id"], build)


def fire_key(new: NewTask) -> str | None:
    """Return what is unique to a fire, or to a request that has a key; None for any other task."""
    if new.fire_at is not None:
        return f"{new.agent_id}:{render_instant(whole_millis(new.fire_at))}"
    return None if new.request_key is None else f"{new.agent_id}:key:{new.request_key}"


def duplicate_fire(task_id: int, key: str) -> DuplicateFireError:
    """Return the error for a fire, or a request's key, that has a task."""
    return DuplicateFireError(f"task {task_id} exists already for {key}", task_id=task_id)


def slot_taken(agent_id: int, task_id: int) -> AgentBusyError:
    """Return the error for an active slot that a task holds."""
    return AgentBusyError(f"agent {agent_id} has the active task {task_id}; wait for its end or cancel it")


def _attempt_document(attempt: Attempt) -> dict[str, Any]:
    return attempt.model_dump() | {"reason": _plain(attempt.reason)}


def _plain(word: StrEnum | None) -> str | None:
    return None if word is None else word.value


# Schedules


def has_schedule(config: Mapping[str, Any]) -> bool:
    """Whether an agent's config says when it runs."""
    return config.get("schedule") is not None


def schedule_document(state: ScheduleState) -> dict[str, Any]:
    """Return where a schedule stands as a plain document."""
    document = _schedule_fields(state, ScheduleState.model_fields)
    if state.rule is not None:
        document["rule"] = encode_document(state.rule, what="schedule", max_bytes=MAX_JSON_BYTES)
    return document


def fired_document(state: ScheduleState) -> dict[str, Any]:
    """Return what a plan changes of where a schedule stands: the `FIRED_FIELDS`, in that order."""
    return _schedule_fields(state, FIRED_FIELDS)


def _schedule_fields(state: ScheduleState, names: Iterable[str]) -> dict[str, Any]:
    document = {name: getattr(state, name) for name in names}
    for name in SCHEDULE_INSTANTS:
        if document.get(name) is not None:
            document[name] = whole_millis(document[name])
    return document


def schedule_from(document: Mapping[str, Any]) -> ScheduleState:
    """Return where a schedule stands."""

    def build() -> ScheduleState:
        fields = {name: document[name] for name in ScheduleState.model_fields if name != "rule"}
        # Not there in a document written before schedules kept their rule.
        rule = document.get("rule")
        return ScheduleState.model_validate(fields | {"rule": None if rule is None else json.loads(rule)})

    return readable("schedule of agent", document["agent_id"], build)


def schedule_source(agent: Mapping[str, Any], state: ScheduleState | None) -> ScheduleSource:
    """Return what an agent's owner wrote and where its schedule stands."""
    return readable(
        "agent",
        agent["id"],
        # Not validated, as in `agent_from`.
        lambda: ScheduleSource.model_construct(
            agent_id=agent["id"],
            agent_version=agent["version"],
            agent_created_at=agent["created_at"],
            config=json.loads(agent["config"]),
            state=state,
        ),
    )


# Logs


def check_chunks(fence: int, chunks: Sequence[LogChunk]) -> None:
    """Refuse chunks that would not belong to the attempt that writes them.

    Raises:
        InvalidInputError: Naming the first chunk at fault.
    """
    for chunk in chunks:
        if log_attempt(chunk.seq) != fence:
            raise InvalidInputError(
                f"log chunk {chunk.seq} belongs to attempt {log_attempt(chunk.seq)}, and attempt {fence} writes it; "
                "number chunks with log_seq(attempt, index)"
            )
        if len(chunk.data) > MAX_CHUNK_BYTES:
            raise InvalidInputError(
                f"log chunk {chunk.seq} is {len(chunk.data):,} bytes, more than the limit of {MAX_CHUNK_BYTES:,}"
            )


def check_samples(fence: int, samples: Sequence[UsageSample]) -> None:
    """Refuse samples that would not belong to the attempt that writes them.

    Raises:
        InvalidInputError: Naming the first sample at fault.
    """
    for sample in samples:
        if log_attempt(sample.seq) != fence:
            raise InvalidInputError(
                f"sample {sample.seq} belongs to attempt {log_attempt(sample.seq)}, and attempt {fence} writes it; "
                "number samples with log_seq(attempt, index)"
            )


# Handoff artifacts


def artifact_content(artifact: NewArtifact) -> dict[str, Any]:
    """Return the part of an artifact that does not depend on the ones before it.

    Raises:
        StateRejectedError: The state cannot be kept as JSON, or it or the summary is too large.
    """
    try:
        state = encode_document(artifact.state, what="state", max_bytes=MAX_JSON_BYTES)
    except InvalidInputError as error:
        raise StateRejectedError(error.message) from error
    summary = clean_text(artifact.summary)
    if len(summary.encode()) > MAX_SUMMARY_BYTES:
        raise StateRejectedError(f"the summary is larger than the limit of {MAX_SUMMARY_BYTES:,} bytes")
    return {"state": state, "summary": summary}


def artifact_after(newest: HandoffArtifact | None) -> dict[str, Any]:
    """Return version and run count of the artifact that follows `newest`."""
    if newest is None:
        return {"version": 1, "run_count": 1}
    # A clear has run count 0.
    return {"version": newest.version + 1, "run_count": newest.run_count + 1}


def clear_content() -> dict[str, Any]:
    """Return what a clear holds in place of a state."""
    return {"state": "{}", "summary": "", "run_count": 0, "cleared": True}


def artifact_from(document: Mapping[str, Any]) -> HandoffArtifact:
    """Return the artifact of a plain document."""

    def build() -> HandoffArtifact:
        fields = {name: document[name] for name in HandoffArtifact.model_fields}
        fields["state"] = json.loads(fields["state"])
        return HandoffArtifact.model_validate(fields)

    return readable("handoff artifact of agent", document["agent_id"], build)


def loaded_agents(
    agents: Iterable[Mapping[str, Any]], artifacts: Iterable[Mapping[str, Any]]
) -> dict[int, LoadedAgent]:
    """Return agents by id, each with the one artifact there is of it; what can't be read is logged and left out.

    Args:
        agents: Plain documents.
        artifacts: Plain documents of the agents' newest artifacts.
    """
    newest = {document["agent_id"]: document for document in artifacts}
    loaded = {}
    for document in agents:
        agent_id = document["id"]
        try:
            artifact = artifact_from(newest[agent_id]) if agent_id in newest else None
            loaded[agent_id] = LoadedAgent(
                agent_from(document), None if artifact is None or artifact.cleared else artifact
            )
        except StoreError as error:
            _log.error("not loaded: %s", error, extra={"action": "agent_unreadable"})
    return loaded
