"""`DockerSandbox`: a throwaway container per job on a plain Docker Engine.

create → attach → start → (the session: job frame → stream → result) → remove, always in this order and always to its end.
Whatever happens inside ``open``, nothing of the agent runs any more when it is left. Where its supervisor proved that
already, the container is removed in the background; else it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from docker import APIClient

from harness.aio import uninterrupted
from harness.clock import SystemClock
from harness.errors import ImageMissingError, SandboxError
from harness.ports import BeforeStart, Clock, OwnedContainer, SandboxLabels, SandboxSpec
from harness.sandbox.engine import Engine, EngineRefusedError
from harness.sandbox.hostconfig import (
    LABEL_FENCE,
    LABEL_STORE,
    LABEL_TASK,
    container_arguments,
    container_name,
    host_config,
)
from harness.sandbox.images import SandboxImages
from harness.sandbox.reaper import Reaper
from harness.sandbox.session import DockerSession
from harness.sandbox.stats import sample_usage

logger = logging.getLogger(__name__)

#: Tries to remove a container, and the pause between two, in seconds.
REMOVE_TRIES = 20
REMOVE_PAUSE_SECONDS = 0.5


class DockerSandbox:
    """`harness.ports.Sandbox` on one Docker Engine."""

    def __init__(self, engine: Engine, images: SandboxImages, *, clock: Clock | None = None) -> None:
        self.engine = engine
        self.images = images
        self._clock = clock or SystemClock()
        #: Names of the containers that are open now.
        self._open: set[str] = set()
        self._reaper = Reaper(self._remove_or_report, self._clock)

    @asynccontextmanager
    async def open(
        self, spec: SandboxSpec, *, before_start: BeforeStart | None = None
    ) -> AsyncIterator[DockerSession]:
        """Create and start a container; see the port."""
        image = spec.image or await self.images.ensure_default()
        began = self._clock.monotonic()
        name = container_name(spec.labels)
        writer: asyncio.StreamWriter | None = None
        session: DockerSession | None = None
        self._open.add(name)
        try:
            with self._reaper.held_off():
                container_id = await uninterrupted(self._create(name, image, spec))
                reader, writer = await self.engine.open_attach(container_id)
                if before_start is not None:
                    before_start()
                await uninterrupted(self.engine.call(APIClient.start, container_id))
            start_seconds = self._clock.monotonic() - began
            session = DockerSession(
                self.engine, spec, container_id, start_seconds, (reader, writer), self._clock
            )
            yield session
        finally:
            await uninterrupted(self._discard(name, session, writer))

    async def _create(self, name: str, image: str, spec: SandboxSpec) -> str:
        def create(client: APIClient) -> str:
            created = client.create_container(
                name=name,
                host_config=client.create_host_config(**host_config(spec.limits, spec.network)),
                **container_arguments(image, spec),
            )
            return str(created["Id"])

        try:
            return await self.engine.call(create)
        except ImageMissingError as error:
            remedy = f"docker pull {image}" if spec.image else "harness images build"
            raise ImageMissingError(f"the engine does not have the image {image!r}; run: {remedy}") from error

    async def _discard(
        self, name: str, session: DockerSession | None = None, writer: asyncio.StreamWriter | None = None
    ) -> None:
        if name not in self._open:
            return  # `close` was faster
        self._open.discard(name)
        if session is not None and session.is_over and writer is not None:
            await self._reaper.take(name, writer)
            return
        if writer is not None:
            # A plain close would first wait to send what a program leaves unread.
            writer.transport.abort()
        await self._remove_or_report(name)

    async def _remove_or_report(self, name: str) -> None:
        try:
            await self.remove_container(name)
        except SandboxError as error:
            # Its labels stay, so every later sweep finds it and tries again.
            logger.error("container quarantined: %s", error, extra={"action": "container_quarantined"})

    async def owned_containers(self, store_id: str) -> Sequence[OwnedContainer]:
        """Return our containers of a store, in every state."""
        wanted = {"label": f"{LABEL_STORE}={store_id}"}
        found = []
        for entry in await self.engine.call(APIClient.containers, all=True, filters=wanted):
            labels = entry["Labels"]
            with contextlib.suppress(KeyError, ValueError):  # bears our label, yet was not made by us
                whose = SandboxLabels(store_id, int(labels[LABEL_TASK]), int(labels[LABEL_FENCE]))
                is_leaving = any(name.lstrip("/") in self._reaper for name in entry["Names"] or ())
                found.append(OwnedContainer(entry["Id"], whose, entry["State"], is_leaving))
        return found

    async def remove_container(self, container_id: str) -> None:
        """Kill and remove a container; see the port."""
        problem = ""
        for attempt in range(REMOVE_TRIES):
            if attempt:
                await self._clock.sleep(REMOVE_PAUSE_SECONDS)
            try:
                await self.engine.call(APIClient.remove_container, container_id, v=True, force=True)
            except EngineRefusedError as error:
                if error.status == 404:
                    return
                # 409 is "already in progress"; 500 can be a device that is busy for a moment.
                problem = error.message
            else:
                return
        raise SandboxError(f"container {container_id} can't be removed: {problem}")

    async def container_usage(self, container_id: str) -> dict[str, float]:
        """Measure a running container; see `harness.resources.ResourceManager.get_container_usage`."""

        async def fetch() -> Mapping[str, Any]:
            # One-shot: the default waits for two of the engine's own sampling cycles, about two seconds.
            stats: Mapping[str, Any] = await self.engine.call(
                APIClient.stats, container_id, stream=False, one_shot=True
            )
            return stats

        return (await sample_usage(fetch, clock=self._clock)).as_dict()

    async def settle(self) -> None:
        """Wait until every container whose `open` has been left is removed, or reported."""
        await self._reaper.settle()

    async def close(self) -> None:
        """Remove what is left, also of runs that were abandoned; then release connections and threads."""
        await asyncio.gather(self.settle(), *map(self._discard, tuple(self._open)))
        await self.engine.close()
