"""A runner that dies by SIGKILL at a named step of its second run. Started by test_killed_anywhere.py.

Nothing in the product knows of this: the store, the engine's connection and the stream to the container are wrapped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from harness.clock import SystemClock
from harness.executor import AgentExecutor
from harness.models import AgentDraft, Claim, LogChunk, NewArtifact, NewTask, Outcome, Task
from harness.ports import OutputStream
from harness.sandbox.docker import DockerSandbox
from harness.sandbox.engine import Engine
from harness.sandbox.frames import END_MAGIC
from harness.sandbox.images import SandboxImages
from harness.sandbox.pool import SPARE_BYTES
from harness.settings import Settings
from harness.store.sqlite import SqliteStore
from harness.wiring import make_sandbox

#: The agent's last line.
LAST_WORDS = b"ends\n"

CODE = """
import handoff, time
n = context.get("n", 0) + 1
print(f"run {n} begins")
time.sleep(0.5)
print(f"run {n} ends")
handoff.save({"n": n}, f"run {n}")
"""


#: Of the two ways in which a run's last steps may follow on each other, the one that a step to die at stands for.
REMOVAL_FIRST = "container removed, end not stored"
END_FIRST = "end stored, container not removed"


#: Before a step: the run takes a container that waited for it.
WARM = "warm: "


class Fate:
    """Knows where to die, once it is armed."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.armed = False

    def reached(self, step: str) -> None:
        if self.armed and step == self.step:
            die()

    async def hold_back_before(self, step: str) -> None:
        """Wait for ever, if death comes before that."""
        if self.armed and step == self.step:
            await asyncio.Event().wait()


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class MortalStore(SqliteStore):
    def __init__(self, path: Path, fate: Fate) -> None:
        super().__init__(path)
        self._fate = fate

    async def create_task(self, new: NewTask, *, claim: Claim | None = None) -> Task:
        task = await super().create_task(new, claim=claim)
        self._fate.reached("task claimed")
        return task

    async def append_logs(self, task_id: int, fence: int, chunks: Sequence[LogChunk]) -> None:
        await super().append_logs(task_id, fence, chunks)
        if any(LAST_WORDS in chunk.data for chunk in chunks):
            self._fate.reached("all output stored")

    async def finish_task(
        self, task_id: int, fence: int, outcome: Outcome, *, artifact: NewArtifact | None = None
    ) -> Task:
        self._fate.reached("about to finish")
        await self._fate.hold_back_before(REMOVAL_FIRST)
        task = await super().finish_task(task_id, fence, outcome, artifact=artifact)
        self._fate.reached("finish written")
        self._fate.reached(END_FIRST)
        return task


class MortalReader:
    """The stream from the container."""

    def __init__(self, reader: asyncio.StreamReader, fate: Fate) -> None:
        self._reader, self._fate = reader, fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def read(self, count: int) -> bytes:
        data = await self._reader.read(count)
        # A supervisor's last bytes.
        if END_MAGIC in data:
            self._fate.reached("agent ended")
        return data


class MortalWriter:
    """The stream to the container."""

    def __init__(self, writer: asyncio.StreamWriter, fate: Fate) -> None:
        self._writer, self._fate = writer, fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    async def drain(self) -> None:
        await self._writer.drain()
        self._fate.reached("job sent")


class MortalEngine(Engine):
    """Dies before or after a control call."""

    def __init__(self, engine: Engine, fate: Fate) -> None:
        super().__init__(engine.address)
        self._fate = fate

    async def create_container(self, *arguments: Any, **more: Any) -> str:
        creating = asyncio.ensure_future(super().create_container(*arguments, **more))
        if self._fate.armed and self._fate.step == "creation requested":
            # The engine may have the request or not: the two ways in which its answer never comes.
            await asyncio.sleep(0.01)
            die()
        container_id = await creating
        self._fate.reached("created")
        return container_id

    async def start_container(self, container_id: str) -> None:
        await super().start_container(container_id)
        self._fate.reached("started")

    async def rename_container(self, container_id: str, name: str) -> None:
        self._fate.reached("about to be named")
        await super().rename_container(container_id, name)
        self._fate.reached("named")

    async def remove_container(self, container: str) -> None:
        self._fate.reached("about to remove")
        await self._fate.hold_back_before(END_FIRST)
        await super().remove_container(container)
        self._fate.reached("removed")
        self._fate.reached(REMOVAL_FIRST)

    async def open_attach(self, container_id: str) -> Any:
        reader, writer = await super().open_attach(container_id)
        self._fate.reached("attached")
        return cast("Any", MortalReader(reader, self._fate)), cast("Any", MortalWriter(writer, self._fate))


async def main(folder: Path, step: str) -> None:
    is_warm = step.startswith(WARM)
    fate = Fate(step.removeprefix(WARM))
    settings = Settings(lease_seconds=2)
    usual = make_sandbox(settings, SystemClock())
    engine = MortalEngine(usual.engine, fate)
    await usual.close()
    sandbox = DockerSandbox(
        engine, SandboxImages(engine), warm_containers=int(is_warm), warm_bytes=SPARE_BYTES
    )
    store = MortalStore(folder / "harness.db", fate)
    await store.open()
    agent = await store.create_agent(AgentDraft(name="counter", code=CODE))
    executor = AgentExecutor(store=store, sandbox=sandbox, settings=settings)

    def on_output(_stream: OutputStream, _data: bytes) -> None:
        fate.reached("first output")

    first = await executor.execute_agent(agent.id)
    assert first.success, first
    await sandbox.settle()
    if is_warm:
        shape = executor.shape_of(agent)
        assert shape is not None
        await sandbox.keep_warm(store.store_id, executor.owner, {shape: 1}, now=await store.now())
        while sandbox.pool.count() < 1:  # noqa: ASYNC110 - the pool tells nobody
            await asyncio.sleep(0.02)
    fate.armed = True
    second = await executor.execute_agent(agent.id, on_output=on_output)
    await sandbox.settle()
    sys.exit(f"lived through {step!r}: {second}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
