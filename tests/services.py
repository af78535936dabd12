"""Helpers for tests that run `harness serve` and `harness runner` as processes, on a store and an engine of the real kind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.sandboxes import used_store_ids, wait_until

from harness.clock import SystemClock
from harness.errors import TaskNotFoundError
from harness.models import Agent, AgentDraft, Task, TaskStatus
from harness.ports import SandboxLabels, Store
from harness.sandbox.docker import DockerSandbox
from harness.settings import Settings
from harness.wiring import make_sandbox, make_store

HARNESS = Path(sys.executable).with_name("harness")

#: Short, so that what a dead process leaves is found soon.
LEASE_SECONDS = 2.0


class Service:
    """A process that runs until it is told to stop, and what it logs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def events(self, action: str) -> list[dict[str, Any]]:
        """What it has logged under an action."""
        lines = self.log.read_text().split("\n")[:-1]
        return [event for line in lines if (event := json.loads(line)).get("action") == action]

    async def until(
        self, action: str, count: int = 1, *, timeout_seconds: float = 20
    ) -> list[dict[str, Any]]:
        async def enough() -> bool:
            assert self.process.poll() is None or len(self.events(action)) >= count, self.log.read_text()
            return len(self.events(action)) >= count

        await wait_until(enough, what=f"{count} x {action}", timeout_seconds=timeout_seconds)
        return self.events(action)

    async def url(self) -> str:
        return str((await self.until("started"))[0]["url"])

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, *, timeout_seconds: float = 20) -> int:
        """Wait for its end; return the exit code."""

        async def has_ended() -> bool:
            return self.process.poll() is not None

        await wait_until(has_ended, what="the end of a service", timeout_seconds=timeout_seconds)
        assert "Traceback" not in self.log.read_text()
        return int(self.process.returncode)

    async def stop(self) -> int:
        self.send(signal.SIGTERM)
        return await self.ended()


class Site:
    """A store, the processes that work on it, and the containers they make."""

    def __init__(self, folder: Path, settings: Settings, store: Store, sandbox: DockerSandbox) -> None:
        self.folder = folder
        self.store = store
        self.sandbox = sandbox
        self.services: list[Service] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HARNESS_")},
            "HARNESS_LEASE_SECONDS": str(LEASE_SECONDS),
            "HARNESS_PORT": "0",
        } | _store_environment(settings)

    def start(self, *arguments: str, **changes: str) -> Service:
        log = self.folder / f"log-{len(self.services)}"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                # Whoever runs the tests in the background has SIGINT ignored.
                ["env", "--default-signal=INT", HARNESS, *arguments, "--log-format", "json"],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=self.folder,
                env=self.environment | changes,
            )
        self.services.append(Service(process, log))
        return self.services[-1]

    async def command(self, *arguments: str, code: int = 0) -> str:
        """Run a command of `harness` that ends by itself; return its output."""
        process = await asyncio.create_subprocess_exec(
            HARNESS, *arguments,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.folder, env=self.environment,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == code, (out + err).decode()
        return (err if code else out).decode()

    async def create(self, code: str, name: str = "agent", **config: Any) -> Agent:
        return await self.store.create_agent(AgentDraft(name=name, code=code, config=config))

    async def tasks(self, status: TaskStatus | None = None) -> list[Task]:
        """All tasks, the oldest first."""
        return list(reversed((await self.store.list_tasks(status=status, limit=1000)).items))

    async def until_task(
        self, task_id: int, condition: Callable[[Task], bool], timeout_seconds: float = 20
    ) -> Task:
        async def holds() -> bool:
            try:
                return condition(await self.store.get_task(task_id))
            except TaskNotFoundError:
                return False

        await wait_until(holds, what=f"what is wanted of task {task_id}", timeout_seconds=timeout_seconds)
        return await self.store.get_task(task_id)

    async def until_status(self, task_id: int, status: TaskStatus, timeout_seconds: float = 20) -> Task:
        return await self.until_task(task_id, lambda task: task.status is status, timeout_seconds)

    async def until_output(self, task_id: int, text: bytes) -> None:
        """Wait until a task has printed something: its agent runs."""

        async def has_printed() -> bool:
            return text in b"".join(chunk.data for chunk in await self.store.read_logs(task_id))

        await wait_until(has_printed, what=f"{text!r} of task {task_id}")

    async def containers(self) -> int:
        """Return how many containers have a task; of a service that runs, others may wait for one."""
        owned = await self.sandbox.owned_containers(self.store.store_id)
        return sum(isinstance(container.labels, SandboxLabels) for container in owned)

    async def until_no_container(self) -> None:
        """Wait until what ended runs left is removed: where nothing runs any more, that is a moment after the end."""

        async def is_none() -> bool:
            return await self.containers() == 0

        await wait_until(is_none, what="the removal of all containers")

    async def close(self) -> None:
        try:
            for service in self.services:
                if service.process.poll() is None:
                    service.send(signal.SIGTERM)
                    # Two signals at once would count as one.
                    await service.until("stopping")
                    service.send(signal.SIGTERM)
            for service in self.services:
                await service.ended()
        finally:
            for service in self.services:
                service.process.kill()
                service.process.wait()


def _store_environment(settings: Settings) -> dict[str, str]:
    if settings.mongodb_uri is None:
        return {"HARNESS_DATA_DIR": str(settings.data_dir)}
    return {"HARNESS_MONGODB_URI": settings.mongodb_uri.get_secret_value()}


async def get(url: str) -> tuple[int, Any]:
    """Ask a server; return the status and the body."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.json()


async def until_answer(url: str, status: int, *, timeout_seconds: float = 20) -> Any:
    """Ask a server until it answers with a status; return the body."""
    body = None

    async def answers() -> bool:
        nonlocal body
        seen, body = await get(url)
        return seen == status

    await wait_until(answers, what=f"{url} answering {status}", timeout_seconds=timeout_seconds)
    return body


@asynccontextmanager
async def _site(folder: Path, settings: Settings) -> AsyncIterator[Site]:
    store, sandbox = make_store(settings, SystemClock()), make_sandbox(settings, SystemClock())
    try:
        await store.open()
        used_store_ids.add(store.store_id)
        yield Site(folder, settings, store, sandbox)
    finally:
        await store.close()
        await sandbox.close()


@pytest.fixture
async def site(tmp_path: Path, sandbox_image: str, no_container_is_left: None) -> AsyncIterator[Site]:
    """A store of the test's own; at the end its processes are stopped, and no container of it is left."""
    async with _site(tmp_path, Settings(data_dir=tmp_path / "data")) as site:
        try:
            yield site
        finally:
            await site.close()
        left = await site.sandbox.owned_containers(site.store.store_id)
        assert left == [], left


@dataclass(frozen=True, slots=True)
class Server:
    """A `harness serve` that many tests talk to; each makes agents of its own there."""

    url: str
    service: Service
    #: Of its process; commands that run in it use the same store.
    environment: Mapping[str, str]
    settings: Settings


@contextmanager
def running_server(folder: Path, *, settings: Settings | None = None, **changes: str) -> Iterator[Server]:
    """Run a server until the block is left; for fixtures that outlive an event loop.

    Args:
        folder: For its log, and for its store if there are no settings.
        settings: Where its store is.
        **changes: Of its environment.
    """
    stored = settings or Settings(data_dir=folder / "data")

    async def begin() -> Server:
        async with _site(folder, stored) as site:
            site.environment |= changes
            service = site.start("serve", "--max-concurrent", "8", "--drain-seconds", "1")
            try:
                return Server(await service.url(), service, site.environment, stored)
            except BaseException:
                service.process.kill()
                service.process.wait()
                raise

    server = asyncio.run(begin())
    try:
        yield server
    finally:
        try:
            asyncio.run(server.service.stop())
        finally:
            server.service.process.kill()
            server.service.process.wait()


def stopwatch() -> Callable[[], float]:
    """Return a function that tells the seconds since now."""
    began = time.monotonic()
    return lambda: time.monotonic() - began
