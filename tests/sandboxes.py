"""Fixtures and helpers for tests that use the real Docker Engine.

They never skip: a machine that can't run them can't run the product either. Every store id that a test uses is
noted, and at the end no container of any of them may be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from docker import APIClient

from harness.clock import SystemClock
from harness.config import MIB
from harness.egress.decision import OnDecision
from harness.models import Reason
from harness.ports import (
    OutputStream,
    OwnedContainer,
    SandboxJob,
    SandboxLabels,
    SandboxLimits,
    SandboxResult,
    SandboxSpec,
    WarmLabels,
)
from harness.sandbox.docker import DockerSandbox
from harness.sandbox.inspection import ping
from harness.sandbox.session import DockerSession
from harness.settings import Settings
from harness.wiring import make_sandbox

LIMITS = SandboxLimits(
    memory_bytes=64 * MIB,
    cpus=1.0,
    max_processes=64,
    tmp_bytes=16 * MIB,
    timeout_seconds=30.0,
    grace_seconds=1.0,
    output_bytes=MIB,
    state_bytes=64 * 1024,
)

#: Within this time the containers that waited in a process have ended after it was killed, in seconds.
SPARE_END_SECONDS = 10.0

#: Every store id that tests made containers under.
used_store_ids: set[str] = set()

During = Callable[[DockerSession], Awaitable[None]]


@dataclass
class Ran:
    """What became of one job."""

    result: SandboxResult
    stdout: bytes = b""
    stderr: bytes = b""
    #: What `before_stop` was told.
    stops: list[tuple[Reason, str]] = field(default_factory=list)

    @property
    def reason(self) -> Reason:
        return self.result.reason

    @property
    def error(self) -> str:
        return self.result.error or ""


class Lab:
    """Runs jobs in real sandboxes, each under a task id of its own."""

    def __init__(self, sandbox: DockerSandbox, image: str) -> None:
        self.sandbox = sandbox
        self.engine = sandbox.engine
        #: The product's image, for plain commands as well: it has a shell and Python.
        self.image = image
        self.store_id = secrets.token_hex(16)
        self._task_ids = itertools.count(1)
        used_store_ids.add(self.store_id)

    def spec(self, command: tuple[str, ...] | None = None, **changes: Any) -> SandboxSpec:
        """A spec with `LIMITS`, changed by the keywords that name limits; the others go to the spec."""
        limits = {key: changes.pop(key) for key in list(changes) if hasattr(LIMITS, key)}
        if command is not None:
            changes.setdefault("image", self.image)
        return SandboxSpec(
            limits=replace(LIMITS, **limits),
            labels=SandboxLabels(self.store_id, next(self._task_ids), 1),
            command=command,
            **changes,
        )

    async def run(
        self,
        code: str = "",
        *,
        files: Mapping[str, str] | None = None,
        entrypoint: str = "main.py",
        context: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        during: During | None = None,
        on_egress: OnDecision | None = None,
        **changes: Any,
    ) -> Ran:
        """Run one job; `during` runs beside it, from the first byte of output on."""
        job = SandboxJob(
            context=context or {},
            task={"agent_id": 1, "task_id": 1, "attempt": 1, "run_count": 0, "previous_outcome": None},
            files=files or {"main.py": code},
            entrypoint=entrypoint,
            env=env or {},
        )
        output: dict[OutputStream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        spoke = asyncio.Event()
        stops: list[tuple[Reason, str]] = []

        def sink(stream: OutputStream, data: bytes) -> None:
            output[stream] += data
            spoke.set()

        async def before_stop(reason: Reason, message: str) -> None:
            stops.append((reason, message))

        async def beside(session: DockerSession, action: During) -> None:
            await spoke.wait()
            await action(session)

        async with (
            self.sandbox.open(self.spec(**changes), on_egress=on_egress) as session,
            asyncio.TaskGroup() as group,
        ):
            helper = group.create_task(beside(session, during)) if during is not None else None
            result = await session.run(job, sink=sink, before_stop=before_stop)
            if helper is not None and not spoke.is_set():
                helper.cancel()
        return Ran(result, bytes(output["stdout"]), bytes(output["stderr"]), stops)

    async def inspect_image(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self.engine.call(APIClient.inspect_image, self.image)
        return answer

    async def inspect(self, container_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self.engine.call(APIClient.inspect_container, container_id)
        return answer


async def wait_until(
    condition: Callable[[], Awaitable[bool]], *, timeout_seconds: float = 20, what: str = "it"
) -> None:
    """Poll until `condition` holds."""
    try:
        async with asyncio.timeout(timeout_seconds):
            while not await condition():  # noqa: ASYNC110 - what it waits for is outside this process
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"{what} did not come true within {timeout_seconds} s")


@pytest.fixture(scope="session")
def sandbox_image() -> str:
    """The sandbox image's name, on an engine that answers; builds the image where it is missing."""

    async def prepare() -> str:
        sandbox = make_sandbox(Settings.load(), SystemClock())
        try:
            await ping(sandbox.engine)
            return await sandbox.images.ensure_default()
        finally:
            await sandbox.close()

    return asyncio.run(prepare())


def _waits(container: OwnedContainer) -> bool:
    return isinstance(container.labels, WarmLabels) and container.state != "exited"


@pytest.fixture(scope="session")
def no_container_is_left(sandbox_image: str) -> Iterator[None]:
    """Looks at the very end, whatever the tests did, and cleans up what it complains of.

    A process that is killed leaves the containers that waited in it to end by themselves, and to a sweep that a store
    with no process left never gets: those that have ended are no complaint.
    """
    yield

    async def remove_all() -> list[OwnedContainer]:
        sandbox = make_sandbox(Settings.load(), SystemClock())

        async def owned() -> list[OwnedContainer]:
            return [
                container
                for store_id in sorted(used_store_ids)
                for container in await sandbox.owned_containers(store_id)
            ]

        async def have_ended() -> bool:
            return not any(_waits(container) for container in await owned())

        try:
            with contextlib.suppress(pytest.fail.Exception):
                await wait_until(have_ended, timeout_seconds=SPARE_END_SECONDS)
            found = await owned()
            for container in found:
                await sandbox.remove_container(container.container_id)
            return [one for one in found if _waits(one) or isinstance(one.labels, SandboxLabels)]
        finally:
            await sandbox.close()

    left = asyncio.run(remove_all())
    assert left == [], left


@pytest.fixture
async def sandbox(sandbox_image: str, no_container_is_left: None) -> AsyncIterator[DockerSandbox]:
    """A sandbox of the test's own, on the engine that the product would use."""
    sandbox = make_sandbox(Settings.load(), SystemClock())
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def lab(sandbox: DockerSandbox, sandbox_image: str) -> AsyncIterator[Lab]:
    """Runs jobs; none of its containers outlives the test."""
    lab = Lab(sandbox, sandbox_image)
    yield lab
    await sandbox.settle()
    assert await sandbox.owned_containers(lab.store_id) == []
