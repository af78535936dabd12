"""Handoff artifacts as the API shows them: the newest, one of a version, and what changed between two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.api.values import Change, HandoffDiff
from harness.errors import ArtifactNotFoundError
from harness.models import HandoffArtifact
from harness.ports import Store


async def newest(store: Store, agent_id: int) -> HandoffArtifact:
    """Return an agent's newest artifact."""
    artifact = await store.newest_artifact(agent_id)
    if artifact is None:
        await store.get_agent(agent_id)
        raise ArtifactNotFoundError(f"agent {agent_id} has no handoff artifact: its next run is a first run")
    return artifact


async def diff(store: Store, agent_id: int, before: int, after: int | None) -> HandoffDiff:
    """Compare the states of two versions; a clear counts as ``{}``."""
    await store.get_agent(agent_id)
    older = await _version(store, agent_id, before)
    newer = await (newest(store, agent_id) if after is None else _version(store, agent_id, after))
    return HandoffDiff(
        agent_id=agent_id,
        before=older.version,
        after=newer.version,
        changes=tuple(_changes("", older.state, newer.state)),
    )


async def _version(store: Store, agent_id: int, version: int) -> HandoffArtifact:
    found = await store.artifact_history(agent_id, limit=1, before_version=version + 1)
    if not found or found[0].version != version:
        raise ArtifactNotFoundError(f"agent {agent_id} has no handoff artifact of version {version}")
    return found[0]


def _changes(path: str, before: Any, after: Any) -> Iterator[Change]:
    """Yield what differs; lists are compared as a whole, since their items have no names."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            # RFC 6901, section 3
            inner = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in after:
                yield Change(path=inner, op="remove", before=before[key])
            elif key not in before:
                yield Change(path=inner, op="add", after=after[key])
            else:
                yield from _changes(inner, before[key], after[key])
    elif type(before) is not type(after) or before != after:
        yield Change(path=path, op="replace", before=before, after=after)
