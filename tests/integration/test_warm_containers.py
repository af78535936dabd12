"""Containers that wait for a task, on the real engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from docker import APIClient
from tests.sandboxes import Lab, wait_until

from harness.clock import SystemClock
from harness.errors import LeaseLostError
from harness.models import Reason
from harness.ports import SandboxShape, SandboxSpec, WarmLabels
from harness.sandbox.docker import DockerSandbox
from harness.sandbox.hostconfig import container_name
from harness.settings import Settings
from harness.wiring import make_sandbox

OWNER = "me"


@pytest.fixture
async def sandbox(sandbox_image: str, no_container_is_left: None) -> AsyncIterator[DockerSandbox]:
    """A sandbox that may keep four containers."""
    sandbox = make_sandbox(Settings.load().model_copy(update={"warm_containers": 4}), SystemClock())
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def lab(sandbox: DockerSandbox, sandbox_image: str) -> AsyncIterator[Lab]:
    """Its containers are gone once the pool is closed."""
    lab = Lab(sandbox, sandbox_image)
    yield lab
    await sandbox.pool.close()
    await sandbox.settle()
    assert await sandbox.owned_containers(lab.store_id) == []


async def keep(lab: Lab, wanted: dict[SandboxShape, int]) -> None:
    """Have exactly so many wait."""
    await lab.sandbox.keep_warm(lab.store_id, OWNER, wanted, now=datetime.now(UTC))

    async def are_there() -> bool:
        return all(lab.sandbox.pool.count(shape) == count for shape, count in wanted.items())

    await wait_until(are_there, what="the pool")


def spec(lab: Lab, **changes: Any) -> SandboxSpec:
    return replace(lab.spec(**changes), owner=OWNER)


async def waiting(lab: Lab) -> list[str]:
    """Ids of the containers that wait, by the engine's word."""
    return [
        owned.container_id
        for owned in await lab.sandbox.owned_containers(lab.store_id)
        if isinstance(owned.labels, WarmLabels)
    ]


async def test_a_run_takes_the_container_that_waits_and_leaves_nothing_of_it(lab: Lab) -> None:
    await keep(lab, {lab.spec().shape: 1})
    (container_id,) = await waiting(lab)
    await lab.sandbox.keep_warm(lab.store_id, OWNER, {}, now=datetime.now(UTC))

    ran = await lab.run("print('hello')", owner=OWNER, during=None)

    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"hello\n")
    await lab.sandbox.settle()
    assert container_id not in [
        owned.container_id for owned in await lab.sandbox.owned_containers(lab.store_id)
    ]


async def test_it_is_named_after_its_attempt_while_the_run_lives(lab: Lab) -> None:
    await keep(lab, {lab.spec().shape: 1})
    (container_id,) = await waiting(lab)
    mine = spec(lab)

    async with lab.sandbox.open(mine) as session:
        assert (session.origin, session.container_id) == ("warm", container_id)

        async def is_named() -> bool:
            return any(
                owned.labels == mine.labels for owned in await lab.sandbox.owned_containers(lab.store_id)
            )

        await wait_until(is_named, what="the name")
        assert (await lab.inspect(container_id))["Name"] == f"/{container_name(mine.labels)}"


async def test_two_runs_never_share_one(lab: Lab) -> None:
    await keep(lab, {lab.spec().shape: 2})
    script = "import os, pathlib; print(sorted(os.listdir('/tmp'))); pathlib.Path('/tmp/mine').touch()"
    ids = []
    for _ in range(2):
        async with lab.sandbox.open(spec(lab)) as session:
            ids.append(session.container_id)
    first = await lab.run(script, owner=OWNER)
    second = await lab.run(script, owner=OWNER)

    assert len(set(ids)) == 2
    assert first.stdout == second.stdout
    assert b"mine" not in second.stdout


async def test_one_of_a_shape_near_to_it_is_given_the_limits_that_were_asked_for(lab: Lab) -> None:
    await keep(lab, {lab.spec().shape: 1})
    (container_id,) = await waiting(lab)
    asked = spec(lab, memory_bytes=96 << 20, cpus=0.5, max_processes=33)

    async with lab.sandbox.open(asked) as session:
        host = (await lab.inspect(container_id))["HostConfig"]

    assert (session.origin, session.container_id) == ("adapted", container_id)
    assert (host["Memory"], host["MemorySwap"]) == (96 << 20, 96 << 20)
    assert (host["NanoCpus"], host["PidsLimit"]) == (500_000_000, 33)


@pytest.mark.parametrize("memory_mb", [32, 128])
async def test_the_adapted_limits_hold(lab: Lab, memory_mb: int) -> None:
    await keep(lab, {lab.spec().shape: 1})
    hog = "held = bytearray(80 << 20); print(len(held))"

    ran = await lab.run(hog, owner=OWNER, memory_bytes=memory_mb << 20)

    assert ran.reason is (Reason.OUT_OF_MEMORY if memory_mb < 80 else Reason.COMPLETED)


async def test_what_can_not_be_changed_is_made_anew(lab: Lab) -> None:
    await keep(lab, {lab.spec().shape: 1})

    async with lab.sandbox.open(spec(lab, tmp_bytes=8 << 20)) as session:
        assert session.origin == "cold"
    async with lab.sandbox.open(lab.spec()) as session:
        assert session.origin == "cold"


async def test_a_command_of_the_users_own_never_gets_one(lab: Lab) -> None:
    await keep(lab, {replace(lab.spec().shape, image=lab.image): 1})

    async with lab.sandbox.open(spec(lab, command=("true",))) as session:
        assert session.origin == "cold"


async def test_one_that_was_removed_from_outside_is_passed_over(lab: Lab) -> None:
    await keep(lab, {lab.spec().shape: 2})
    dead, alive = await waiting(lab)
    await lab.sandbox.remove_container(dead)

    async def is_noticed() -> bool:
        return lab.sandbox.pool.count() == 1

    await wait_until(is_noticed, what="the removal")
    async with lab.sandbox.open(spec(lab)) as session:
        assert (session.origin, session.container_id) == ("warm", alive)


async def test_a_lease_that_is_over_when_the_container_is_handed_over_ends_it(lab: Lab) -> None:
    await keep(lab, {lab.spec().shape: 1})
    (container_id,) = await waiting(lab)

    def refuse() -> None:
        raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError):
        async with lab.sandbox.open(spec(lab), before_start=refuse):
            pytest.fail("it was handed over")

    assert container_id not in [
        owned.container_id for owned in await lab.sandbox.owned_containers(lab.store_id)
    ]


async def test_an_image_that_was_given_another_content_is_not_run_from_the_pool(lab: Lab) -> None:
    mutable = f"harness-test/{lab.store_id}:latest"

    def tag(client: APIClient, source: str) -> None:
        client.tag(source, f"harness-test/{lab.store_id}", "latest")

    def commit(client: APIClient) -> str:
        made = client.create_container(lab.image)["Id"]
        try:
            return str(client.commit(made)["Id"])
        finally:
            client.remove_container(made)

    await lab.engine.call(tag, lab.image)
    newer = await lab.engine.call(commit)
    try:
        shape = replace(lab.spec().shape, image=mutable)
        await keep(lab, {shape: 1})
        (old,) = await waiting(lab)
        await lab.sandbox.keep_warm(lab.store_id, OWNER, {}, now=datetime.now(UTC))
        await lab.engine.call(tag, newer)

        async with lab.sandbox.open(spec(lab, image=mutable)) as session:
            assert session.origin == "cold"
            assert (await lab.inspect(session.container_id))["Image"] == newer
        assert old not in await waiting(lab)
    finally:
        await lab.engine.call(APIClient.remove_image, mutable, force=True)


async def test_before_its_job_it_holds_nothing_of_any_agent(lab: Lab) -> None:
    await keep(lab, {lab.spec().shape: 1})
    (container_id,) = await waiting(lab)
    inspected = await lab.inspect(container_id)

    environment = {pair.split("=")[0] for pair in inspected["Config"]["Env"]}
    assert environment <= {"PATH", "LANG", "HOME"}
    assert set(inspected["Config"]["Labels"]) >= {"io.agent-harness.store", "io.agent-harness.owner"}
    assert not any("task" in name or "fence" in name for name in inspected["Config"]["Labels"])
    assert inspected["Mounts"] == []


@pytest.mark.parametrize("is_cut", [False, True], ids=["in peace", "cut short"])
async def test_closing_the_sandbox_leaves_none(lab: Lab, sandbox: DockerSandbox, *, is_cut: bool) -> None:
    other = make_sandbox(Settings.load().model_copy(update={"warm_containers": 4}), SystemClock())
    await other.keep_warm(lab.store_id, OWNER, {lab.spec().shape: 3}, now=datetime.now(UTC))

    async def has_some() -> bool:
        return other.pool.count() > 0

    await wait_until(has_some, what="the pool")
    closing = asyncio.create_task(other.close())
    if is_cut:
        # In the midst of it, as by a second Ctrl+C.
        await asyncio.sleep(0.01)
        closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)

    assert closing.cancelled() == is_cut
    assert await sandbox.owned_containers(lab.store_id) == []


KEEPER = """
import asyncio, sys
from datetime import UTC, datetime
from harness.clock import SystemClock
from harness.ports import SandboxShape
from harness.settings import Settings
from harness.wiring import make_sandbox

async def main():
    sandbox = make_sandbox(Settings.load().model_copy(update={"warm_containers": 2}), SystemClock())
    shape = SandboxShape(None, 64 << 20, 1.0, 64, 16 << 20)
    await sandbox.keep_warm(sys.argv[1], "dies", {shape: 2}, now=datetime.now(UTC))
    while sandbox.pool.count() < 2:
        await asyncio.sleep(0.02)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_those_of_a_runner_that_was_killed_end_by_themselves(lab: Lab) -> None:
    keeper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KEEPER, lab.store_id), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert keeper.stdout is not None
        assert (await keeper.stdout.readline()) == b"ready\n"
        assert len(await waiting(lab)) == 2
    finally:
        keeper.kill()
        await keeper.communicate()

    async def have_ended() -> bool:
        owned = await lab.sandbox.owned_containers(lab.store_id)
        return all(container.state == "exited" for container in owned)

    await wait_until(have_ended, what="the end of the containers")
    for owned in await lab.sandbox.owned_containers(lab.store_id):
        assert isinstance(owned.labels, WarmLabels)
        await lab.sandbox.remove_container(owned.container_id)
