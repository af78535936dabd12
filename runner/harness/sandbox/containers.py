"""`Containers`: what is done with single containers of one engine, from creation to removal. The only maker of them.

Whatever begins here is ended here: a container whose start fails, or is cancelled, is gone when `start` raises, and
`close` removes what nobody discarded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from docker import APIClient

from harness.aio import uninterrupted
from harness.errors import EngineUnavailableError, ImageMissingError, SandboxError
from harness.ports import BeforeStart, Clock, OwnedContainer, SandboxLabels, SandboxShape, WarmLabels
from harness.sandbox.dispatch import Dispatch
from harness.sandbox.engine import Engine, EngineRefusedError
from harness.sandbox.hostconfig import LABEL_STORE, read_labels, relay_name
from harness.sandbox.images import is_image_id
from harness.sandbox.reaper import Reaper

logger = logging.getLogger(__name__)

#: Tries to remove a container, and the pause between two, in seconds.
REMOVE_TRIES = 20
REMOVE_PAUSE_SECONDS = 0.5
#: Between two tries to name a container, in seconds.
NAME_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, eq=False, slots=True)
class Started:
    """A started container, and the streams attached to it before the start."""

    container_id: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def seems_alive(self) -> bool:
        """Whether its connection is."""
        return not self.reader.at_eof() and not self.writer.transport.is_closing()


class Containers:
    """The containers of one engine."""

    def __init__(self, engine: Engine, dispatch: Dispatch, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        #: Those that are not discarded yet, by the name or id to remove them by.
        self._open: set[str] = set()
        self._reaper = Reaper(self._remove_or_report, dispatch, clock)

    async def start(
        self,
        name: str,
        image: str,
        shape: SandboxShape,
        labels: SandboxLabels | WarmLabels,
        *,
        command: tuple[str, ...] | None = None,
        environment: Mapping[str, str] | None = None,
        before_start: BeforeStart | None = None,
    ) -> Started:
        """Create, attach, start; `before_start` is called just before the last.

        Raises:
            SandboxError: The engine refused, or does not answer.
        """
        creating = self._engine.create_container(
            name, image, shape, labels, command=command, environment=environment
        )
        remedy = f"docker pull {image}" if shape.image else "harness images build"
        if is_image_id(image):
            remedy = "docker load, for an id is in no registry"
        return await self._start(name, creating, image, remedy, before_start)

    async def start_relay(
        self, image: str, labels: SandboxLabels, container_id: str, before_start: BeforeStart | None
    ) -> Started:
        """Do the same for the relay of a container that runs; see `harness.egress`."""
        creating = self._engine.create_relay(image, labels, container_id)
        return await self._start(relay_name(labels), creating, image, "harness images build", before_start)

    async def _start(
        self,
        name: str,
        creating: Coroutine[Any, Any, str],
        image: str,
        remedy: str,
        before_start: BeforeStart | None,
    ) -> Started:
        # Until its id is known, which it keeps when it is renamed.
        removable, writer = name, None
        self._open.add(name)
        try:
            try:
                container_id = await uninterrupted(creating)
            except ImageMissingError as error:
                raise ImageMissingError(
                    f"the engine does not have the image {image!r}; run: {remedy}"
                ) from error
            self._open.remove(name)
            self._open.add(removable := container_id)
            reader, writer = await self._engine.open_attach(container_id)
            if before_start is not None:
                before_start()
            await uninterrupted(self._engine.start_container(container_id))
        except BaseException:
            if writer is not None:
                writer.transport.abort()
            await uninterrupted(self._discard(removable))
            raise
        return Started(container_id, reader, writer)

    async def rename(self, container_id: str, name: str) -> None:
        """Rename a container; try again while the engine does not answer, for as long as the container is there."""
        while True:
            try:
                await self._engine.rename_container(container_id, name)
            except EngineRefusedError as error:
                logger.warning("container %s keeps its name: %s", container_id, error)
                return
            except EngineUnavailableError as error:
                logger.warning("container %s not named yet: %s", container_id, error)
                await self._clock.sleep(NAME_PAUSE_SECONDS)
            else:
                return

    async def discard(self, started: Started, *, is_over: bool = False) -> None:
        """Remove a container in any case; one that the engine can't remove is left to the sweeps, and reported.

        Args:
            started: The container.
            is_over: Nothing of an agent runs in it any more: it is removed in the background.
        """
        if not is_over:
            # A plain close would first wait to send what a program leaves unread.
            started.writer.transport.abort()
            await uninterrupted(self._discard(started.container_id))
        elif started.container_id in self._open:
            self._open.discard(started.container_id)
            await uninterrupted(self._reaper.take(started.container_id, started.writer))

    async def _discard(self, name_or_id: str) -> None:
        if name_or_id in self._open:  # else `close` was faster
            self._open.discard(name_or_id)
            await self._remove_or_report(name_or_id)

    async def _remove_or_report(self, name_or_id: str) -> None:
        try:
            await self.remove(name_or_id)
        except SandboxError as error:
            # Its labels stay, so every later sweep finds it and tries again.
            logger.error("container quarantined: %s", error, extra={"action": "container_quarantined"})

    async def remove(self, container_id: str) -> None:
        """Kill and remove a container; see `harness.ports.Sandbox.remove_container`."""
        problem = ""
        for attempt in range(REMOVE_TRIES):
            if attempt:
                await self._clock.sleep(REMOVE_PAUSE_SECONDS)
            try:
                await self._engine.remove_container(container_id)
            except EngineRefusedError as error:
                if error.status == 404:
                    return
                # 409 is "already in progress"; 500 can be a device that is busy for a moment.
                problem = error.message
            else:
                return
        raise SandboxError(f"container {container_id} can't be removed: {problem}")

    async def owned(self, store_id: str) -> Sequence[OwnedContainer]:
        """Return our containers of a store, in every state."""
        wanted = {"label": f"{LABEL_STORE}={store_id}"}
        found = []
        for entry in await self._engine.call(APIClient.containers, all=True, filters=wanted):
            # One that is being removed has no name any more.
            name = (entry["Names"] or [""])[0].removeprefix("/")
            labels = read_labels(entry["Labels"], name)
            if labels is not None:
                made_at = datetime.fromtimestamp(entry["Created"], UTC)
                is_leaving = entry["Id"] in self._reaper
                found.append(OwnedContainer(entry["Id"], labels, entry["State"], made_at, is_leaving))
        return found

    async def settle(self) -> None:
        """Wait until all that was discarded is removed, or reported."""
        await self._reaper.settle()

    async def close(self) -> None:
        """Remove what is left."""
        await asyncio.gather(self.settle(), *map(self._discard, tuple(self._open)))
