from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InvalidInputError, StoreError
from harness.models import (
    Agent,
    AgentDraft,
    Attempt,
    HandoffArtifact,
    LogChunk,
    NewArtifact,
    Reason,
    Task,
    TaskStatus,
    Usage,
    log_seq,
)
from harness.store import documents

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
json_objects = st.dictionaries(text, json_values, max_size=5)
#: Naive, as hypothesis wants its bounds.
FIRST, LAST = datetime.min + timedelta(days=1), datetime.max - timedelta(days=1)  # noqa: DTZ901
instants = st.datetimes(FIRST, LAST, timezones=st.just(UTC)).map(documents.whole_millis)
maybe_instants = st.none() | instants
reasons = st.none() | st.sampled_from(Reason)
attempts = st.builds(
    Attempt,
    number=st.integers(1, 2**20),
    started_at=instants,
    ended_at=maybe_instants,
    reason=reasons,
    error=st.none() | text,
    usage=st.builds(Usage, cpu_seconds=st.none() | st.floats(0, 1e9)),
)
tasks = st.builds(
    Task,
    id=st.integers(1, 2**53),
    agent_id=st.integers(1, 2**53),
    status=st.sampled_from(TaskStatus),
    scheduled_at=instants,
    created_at=instants,
    started_at=maybe_instants,
    completed_at=maybe_instants,
    due_at=maybe_instants,
    result=st.none() | text,
    reason=reasons,
    attempts=st.lists(attempts, max_size=3).map(tuple),
    context=st.none() | json_objects,
)


@given(tasks)
def test_a_task_survives_being_a_document(task: Task) -> None:
    document = documents.task_document(task)

    assert documents.task_from(document) == task
    assert_plain(document)


@given(tasks, tasks)
def test_changes_turn_one_tasks_document_into_the_others(before: Task, after: Task) -> None:
    after = after.model_copy(update={"context": before.context})

    changed = documents.task_document(before) | documents.task_changes(before, after)

    assert changed == documents.task_document(after)
    assert documents.task_changes(after, after) == {}


@given(json_objects, st.text())
def test_an_artifact_survives_being_a_document(state: dict[str, Any], summary: str) -> None:
    content = documents.artifact_content(NewArtifact(state=state, summary=summary))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    document = content | {
        "agent_id": 1, "created_at": now, "run_count": 1, "version": 1, "task_id": None, "cleared": False,
    }  # fmt: skip

    artifact = documents.artifact_from(document)

    assert artifact == HandoffArtifact(
        agent_id=1, state=state, summary=documents.clean_text(summary), created_at=now, run_count=1, version=1
    )
    assert list(artifact.state) == list(state)
    assert_plain(document)


@given(st.text(), st.dictionaries(st.from_regex(r"[a-z$.]{1,9}\.py", fullmatch=True), text, min_size=1))
def test_an_agent_survives_being_a_document(entry: str, files: dict[str, str]) -> None:
    draft = AgentDraft(name="a", files=files, entrypoint=next(iter(files)), config={"env": {"A": "$x.y"}})
    now = datetime(2026, 1, 1, tzinfo=UTC)
    document = documents.draft_document(draft) | {"id": 1, "version": 1, "created_at": now, "updated_at": now}

    agent = documents.agent_from(document)

    assert agent == Agent(**dict(draft), id=1, version=1, created_at=now, updated_at=now)
    assert list(agent.files) == list(files)
    assert_plain(document)


def assert_plain(value: object) -> None:
    """Every driver takes it: exactly these types, strings with UTF-8, no `$` or dots in keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            assert str(key).isidentifier()
            assert_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            assert_plain(inner)
    else:
        assert type(value) in {str, int, float, bool, datetime, type(None)}
        if isinstance(value, str):
            value.encode()


@given(st.datetimes(timezones=st.timezones()))
def test_whole_milliseconds_never_round_up(value: datetime) -> None:
    if not datetime(2, 1, 1, tzinfo=UTC) < value < datetime(9999, 12, 30, tzinfo=UTC):
        return
    cut = documents.whole_millis(value)

    assert timedelta(0) <= value - cut < timedelta(milliseconds=1)
    assert cut.tzinfo is UTC
    assert documents.from_millis(documents.to_millis(cut)) == cut


@pytest.mark.parametrize(
    "spoilt", [{"status": "dreaming"}, {"context": "{"}, {"attempts": [1]}, {"scheduled_at": 1.5j}]
)
def test_a_document_of_another_form_is_an_error_that_names_it(spoilt: dict[str, object]) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    task = Task(id=7, agent_id=1, status=TaskStatus.PENDING, scheduled_at=now, created_at=now)

    with pytest.raises(StoreError, match="stored task 7 is not readable"):
        documents.task_from(documents.task_document(task) | spoilt)
    document = documents.task_document(task)
    del document["fence"]
    with pytest.raises(StoreError, match="KeyError"):
        documents.task_from(document)


def test_an_agent_that_newer_rules_would_refuse_stays_readable() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    document = documents.draft_document(AgentDraft(name="a", code="1")) | {
        "id": 1, "version": 1, "created_at": now, "updated_at": now, "config": '{"dropped_option":1}',
    }  # fmt: skip

    assert documents.agent_from(document).config == {"dropped_option": 1}


@pytest.mark.parametrize("fence", [0, 2])
def test_chunks_belong_to_the_attempt_that_writes_them(fence: int) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    chunk = LogChunk(seq=log_seq(1, 5), stream="stdout", data=b"", at=at)
    documents.check_chunks(1, [chunk])

    with pytest.raises(InvalidInputError, match=f"belongs to attempt 1, and attempt {fence} writes it"):
        documents.check_chunks(fence, [chunk])
