"""Secrets in a run: where they go in, and where nothing of them comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from tests.unit.shop import Shop

from harness.executor import AgentExecutor
from harness.models import Agent, ExecutionResult, NewArtifact, Reason
from harness.ports import OutputStream, SandboxResult
from harness.secrets.cipher import generate_key
from harness.settings import Settings
from harness.testing import FakeRun
from harness.vault import SecretVault

TOKEN = "sk-live-4f9aK2m8QzX0"
NAMES = {"TOKEN": "github-token"}


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    shop.settings = shop.settings.model_copy(update={"secrets_key": SecretStr(generate_key())})
    await shop.store.open()
    await SecretVault(shop.store, shop.settings).put("github-token", TOKEN)
    yield shop
    await shop.store.close()


async def run(shop: Shop, agent: Agent, *, settings: Settings | None = None, **given: Any) -> ExecutionResult:
    executor = AgentExecutor(
        store=shop.store, sandbox=shop.sandbox, clock=shop.clock, settings=settings or shop.settings
    )
    return await executor.execute_agent(agent.id, **given)


def says(*output: tuple[OutputStream, bytes], **result: Any) -> FakeRun:
    fields: dict[str, Any] = {"reason": Reason.COMPLETED, "exit_code": 0} | result
    return FakeRun(output, SandboxResult(**fields))


async def everything_stored(shop: Shop, agent: Agent) -> str:
    """All that the store gives about an agent and its tasks."""
    tasks = (await shop.store.list_tasks()).items
    chunks = [await shop.store.read_logs(task.id) for task in tasks]
    return repr(
        (await shop.store.get_agent(agent.id), tasks, chunks, await shop.store.artifact_history(agent.id))
    )


async def test_a_secret_reaches_the_agent_inside_the_job_and_nowhere_else(shop: Shop) -> None:
    agent = await shop.agent(secrets=NAMES, env={"LANGUAGE": "en"})

    assert (await run(shop, agent)).success

    (job,), (spec,) = shop.sandbox.jobs, shop.sandbox.specs
    assert job.env == {"LANGUAGE": "en", "TOKEN": TOKEN}
    assert TOKEN not in repr(job)
    assert TOKEN not in repr(dataclasses.replace(job, env={}))
    assert TOKEN not in repr(spec)


async def test_nothing_that_a_run_shows_holds_a_secret(shop: Shop) -> None:
    agent = await shop.agent(secrets=NAMES)
    half = len(TOKEN) // 2
    shop.sandbox.behave = lambda _job: says(
        ("stdout", f"whole {TOKEN}, half {TOKEN[:half]}".encode()),
        ("stderr", f"between {TOKEN[:3]}".encode()),
        ("stdout", f"{TOKEN[half:]}\n".encode()),
        ("stderr", f"{TOKEN[3:]}\nlast {TOKEN[:-1]}".encode()),
        state={"token": [TOKEN], TOKEN: 1},
        summary=f"used {TOKEN}",
    )
    seen: list[tuple[str, bytes]] = []

    result = await run(shop, agent, on_output=lambda stream, data: seen.append((stream, data)))

    assert result.stdout == "whole ***, half ***\n"
    assert result.stderr == "between ***\nlast ***"
    assert (result.state, result.summary) == ({"token": ["***"], "***": 1}, "used ***")
    assert b"".join(data for stream, data in seen if stream == "stdout").decode() == result.stdout
    assert b"".join(data for stream, data in seen if stream == "stderr").decode() == result.stderr
    assert TOKEN[:half] not in await everything_stored(shop, agent)
    artifact = await shop.store.newest_artifact(agent.id)
    assert artifact is not None
    assert (artifact.state, artifact.summary) == (result.state, "used ***")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_stream_that_ends_in_what_could_begin_a_secret_keeps_its_end(
    shop: Shop, stream: OutputStream
) -> None:
    agent = await shop.agent(secrets=NAMES)
    shop.sandbox.behave = lambda _job: says((stream, b"the task"), (stream, b"s"))

    result = await run(shop, agent)

    assert getattr(result, stream) == "the tasks"


async def test_a_failure_names_no_secret(shop: Shop) -> None:
    agent = await shop.agent(secrets=NAMES)
    error = f"exited with code 1: KeyError: {TOKEN!r}"
    shop.sandbox.behave = lambda _job: says(reason=Reason.EXIT_NONZERO, exit_code=1, error=error)

    result = await run(shop, agent)

    assert result.error_message == "exited with code 1: KeyError: '***'"
    assert TOKEN not in await everything_stored(shop, agent)


async def test_a_derived_state_holds_no_secret_not_even_an_old_one(shop: Shop) -> None:
    agent = await shop.agent(secrets=NAMES)
    await shop.store.save_artifact(agent.id, NewArtifact(state={"from before": TOKEN}))
    line = f'HANDOFF_STATE {{"token": "{TOKEN}"}}\n'
    shop.sandbox.behave = lambda _job: says(
        ("stdout", line[:25].encode()), ("stdout", f"{line[25:]}done with {TOKEN}".encode())
    )

    result = await run(shop, agent)

    assert result.success
    assert result.state is not None
    assert (result.state["token"], result.state["from before"]) == ("***", "***")
    task = await shop.store.get_task(result.task_id)
    assert task.result == "done with ***"
    artifact = await shop.store.newest_artifact(agent.id)
    assert artifact is not None
    assert TOKEN not in repr(artifact)


class Quoting:
    """A compressor whose complaint quotes all it was given."""

    async def compress(self, **given: Any) -> dict[str, Any]:
        raise ValueError(f"nothing to be made of {given}")


async def test_a_refused_state_names_no_secret(shop: Shop) -> None:
    agent = await shop.agent(secrets=NAMES)
    await shop.store.save_artifact(agent.id, NewArtifact(state={"from before": TOKEN}))
    executor = AgentExecutor(
        store=shop.store, sandbox=shop.sandbox, clock=shop.clock, settings=shop.settings, compressor=Quoting()
    )

    result = await executor.execute_agent(agent.id)

    assert result.reason is Reason.STATE_REJECTED
    assert "{'from before': '***'}" in (result.error_message or "")
    assert TOKEN not in repr(await shop.store.get_task(result.task_id))


async def test_the_cap_on_output_cuts_after_the_masking(shop: Shop) -> None:
    agent = await shop.agent(secrets=NAMES, limits={"max_output_bytes": 1024})
    shop.sandbox.behave = lambda _job: says(("stdout", b"x" * 1014 + TOKEN.encode() + b" and more"))

    result = await run(shop, agent)

    assert result.output_truncated
    assert result.stdout == "x" * 1014 + "*** and mo"


async def test_another_value_counts_from_the_next_run_on(shop: Shop) -> None:
    agent = await shop.agent(secrets=NAMES)
    await run(shop, agent)
    await SecretVault(shop.store, shop.settings).put("github-token", "another value")

    await run(shop, agent)

    assert [job.env["TOKEN"] for job in shop.sandbox.jobs] == [TOKEN, "another value"]


async def test_a_secret_that_is_missing_ends_the_run_before_a_container(shop: Shop) -> None:
    agent = await shop.agent(secrets={**NAMES, "OTHER": "nobody-stored-this"})

    result = await run(shop, agent)

    assert result.reason is Reason.SANDBOX_ERROR
    assert result.error_message == (
        "there is no secret 'nobody-stored-this'; store it with: harness secrets set nobody-stored-this"
    )
    assert shop.sandbox.specs == []


async def test_a_key_that_is_missing_ends_the_run_before_a_container(shop: Shop) -> None:
    agent = await shop.agent(secrets=NAMES)

    without = await run(shop, agent, settings=Settings())
    wrong = await run(shop, agent, settings=Settings(secrets_key=SecretStr(generate_key())))

    assert "harness secrets keygen" in (without.error_message or "")
    assert "none of those in HARNESS_SECRETS_KEY" in (wrong.error_message or "")
    assert {without.reason, wrong.reason} == {Reason.SANDBOX_ERROR}
    assert shop.sandbox.specs == []


async def test_an_agent_without_secrets_needs_no_key(shop: Shop) -> None:
    agent = await shop.agent()
    shop.sandbox.behave = lambda _job: says(("stdout", f"not mine: {TOKEN}".encode()))

    assert (await run(shop, agent, settings=Settings())).stdout == f"not mine: {TOKEN}"
