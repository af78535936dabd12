"""Handoffs, by both implementations of `HarnessApi`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.integration.api.conftest import Maker

from harness.api import HarnessApi
from harness.api.values import Change
from harness.errors import ArtifactNotFoundError, InvalidInputError, StateRejectedError

STATE = {"count": 3, "å": "日本", "$set": {"a.b": [1, None]}, "big": 2**70}


async def test_a_new_agent_has_no_handoff(api: HarnessApi, make: Maker) -> None:
    agent = await make()

    with pytest.raises(ArtifactNotFoundError, match=f"agent {agent.id}.*first run"):
        await api.get_handoff(agent.id)
    assert list(await api.handoff_history(agent.id)) == []
    await api.clear_handoff(agent.id)


async def test_a_saved_state_is_the_newest(api: HarnessApi, make: Maker) -> None:
    agent = await make()

    saved = await api.put_handoff(agent.id, STATE, "by hand")

    assert saved == await api.get_handoff(agent.id)
    assert (saved.state, saved.summary, saved.version, saved.task_id) == (STATE, "by hand", 1, None)


@pytest.mark.parametrize(
    "state", [{"n": math.nan}, {"x": "y" * 300}, {"s": "\ud800"}], ids=["nan", "too large", "no text"]
)
async def test_a_state_that_cannot_be_kept_is_refused(
    state: dict[str, Any], api: HarnessApi, make: Maker
) -> None:
    agent = await make(limits={"max_state_bytes": 256})

    with pytest.raises(InvalidInputError):
        await api.put_handoff(agent.id, state)

    assert list(await api.handoff_history(agent.id)) == []


async def test_a_state_over_its_bound_says_so(api: HarnessApi, make: Maker) -> None:
    agent = await make(limits={"max_state_bytes": 256})

    with pytest.raises(StateRejectedError, match="256"):
        await api.put_handoff(agent.id, {"x": "y" * 300})


async def test_history_comes_page_by_page_with_clears(api: HarnessApi, make: Maker) -> None:
    agent = await make()
    for number in range(3):
        await api.put_handoff(agent.id, {"n": number})
    await api.clear_handoff(agent.id)

    first = list(await api.handoff_history(agent.id, limit=2))
    rest = list(await api.handoff_history(agent.id, before_version=first[-1].version))

    assert [(item.version, item.cleared) for item in first] == [(4, True), (3, False)]
    assert [item.state for item in rest] == [{"n": 1}, {"n": 0}]
    with pytest.raises(ArtifactNotFoundError):
        await api.get_handoff(agent.id)


async def test_an_old_version_comes_back_as_the_newest(api: HarnessApi, make: Maker) -> None:
    agent = await make()
    for number in range(2):
        await api.put_handoff(agent.id, {"n": number}, f"number {number}")
    await api.clear_handoff(agent.id)

    restored = await api.rollback_handoff(agent.id, 1)

    assert (restored.version, restored.state) == (4, {"n": 0})
    assert await api.get_handoff(agent.id) == restored
    for version in (3, 9, 2**62):
        with pytest.raises(ArtifactNotFoundError, match=str(version)):
            await api.rollback_handoff(agent.id, version)


async def test_two_versions_are_compared(api: HarnessApi, make: Maker) -> None:
    agent = await make()
    await api.put_handoff(agent.id, {"keep": 1, "gone": [1], "a/b~c": {"x": 1}, "type": 1})
    await api.put_handoff(agent.id, {"keep": 1, "new": None, "a/b~c": {"x": 2}, "type": True})

    diff = await api.diff_handoff(agent.id, 1)

    assert (diff.before, diff.after) == (1, 2)
    assert diff == await api.diff_handoff(agent.id, 1, 2)
    assert diff.changes == (
        Change(path="/a~1b~0c/x", op="replace", before=1, after=2),
        Change(path="/gone", op="remove", before=[1]),
        Change(path="/new", op="add", after=None),
        Change(path="/type", op="replace", before=1, after=True),
    )
    assert (await api.diff_handoff(agent.id, 2, 2)).changes == ()
    with pytest.raises(ArtifactNotFoundError, match="version 7"):
        await api.diff_handoff(agent.id, 1, 7)
