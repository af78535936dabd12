"""`DockerSandbox`: a throwaway container per job on a plain Docker Engine.

A container that waits for a job of this shape, else create → attach → start; then the session: job frame → stream →
result; then remove. Always in this order and always to its end: whatever happens inside ``open``, nothing of the agent runs
any more when it is left. Where its supervisor proved that already, the container is removed in the background; else it is
gone.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any

from docker import APIClient

from harness.aio import uninterrupted
from harness.clock import SystemClock
from harness.egress.decision import Decision, OnDecision
from harness.egress.gate import Outside
from harness.egress.policy import Network
from harness.errors import SandboxError
from harness.ports import (
    BeforeStart,
    Clock,
    OwnedContainer,
    SandboxOrigin,
    SandboxShape,
    SandboxSpec,
    WarmLabels,
)
from harness.sandbox.containers import Containers, Started
from harness.sandbox.dispatch import Dispatch
from harness.sandbox.engine import Engine
from harness.sandbox.hostconfig import container_name, warm_name
from harness.sandbox.images import SandboxImages, is_fixed
from harness.sandbox.pool import Spare, WarmPool
from harness.sandbox.relay import carrying
from harness.sandbox.session import DockerSession
from harness.sandbox.stats import sample_usage

logger = logging.getLogger(__name__)

#: A warm container is named after its attempt this long after it was given to it: a run that is over before needs no
#: name. Far below `harness.ports.WARM_NAMING_SECONDS`.
NAMING_PAUSE_SECONDS = 0.02


class DockerSandbox:
    """`harness.ports.Sandbox` on one Docker Engine."""

    def __init__(
        self,
        engine: Engine,
        images: SandboxImages,
        *,
        clock: Clock | None = None,
        warm_containers: int = 0,
        warm_bytes: int = 0,
        egress_private: Sequence[Network] = (),
    ) -> None:
        """Work on `engine`.

        Args:
            engine: Where containers run.
            images: Its images.
            clock: None for the machine's.
            warm_containers: How many wait for jobs at most; 0: none ever.
            warm_bytes: How much memory those may take, about.
            egress_private: Networks that runs with `SandboxSpec.egress` may reach though they are not public.
        """
        self.engine = engine
        self.images = images
        self._clock = clock or SystemClock()
        self._dispatch = Dispatch(self._clock)
        self._containers = Containers(engine, self._dispatch, self._clock)
        self._outside = Outside(private=egress_private)
        self.pool = WarmPool(
            self, self._dispatch, self._clock, max_containers=warm_containers, max_bytes=warm_bytes
        )

    @asynccontextmanager
    async def open(
        self,
        spec: SandboxSpec,
        *,
        before_start: BeforeStart | None = None,
        on_egress: OnDecision | None = None,
    ) -> AsyncIterator[DockerSession]:
        """Start a container, or take one that waits for a job; see the port."""
        began = self._clock.monotonic()
        session: DockerSession | None = None
        naming: asyncio.Task[None] | None = None
        relay: Started | None = None
        with self._dispatch:
            origin: SandboxOrigin = "cold"
            taken = await self._take_warm(spec)
            if taken is not None:
                started, origin = taken
            else:
                started = await self._start_cold(spec, before_start)
        try:
            if origin != "cold":
                naming = asyncio.create_task(self._name(started, container_name(spec.labels)))
                if before_start is not None:
                    before_start()
            async with AsyncExitStack() as stack:
                if spec.egress:
                    with self._dispatch:
                        relay = await self._start_relay(spec, started, before_start)
                    await stack.enter_async_context(
                        carrying(relay, spec, self._outside, on_egress or _ignore)
                    )
                start_seconds = self._clock.monotonic() - began
                session = DockerSession(self.engine, spec, started, origin, start_seconds, self._clock)
                yield session
        finally:
            if naming is not None:
                naming.cancel()
            is_over = session is not None and session.is_over
            ended = [one for one in (started, relay) if one is not None]
            await asyncio.gather(*(self._containers.discard(one, is_over=is_over) for one in ended))

    async def _start_relay(
        self, spec: SandboxSpec, started: Started, before_start: BeforeStart | None
    ) -> Started:
        # Never the run's own image: whoever made that would sit between the agent and the runner.
        image = await self.images.ensure_default()
        return await self._containers.start_relay(image, spec.labels, started.container_id, before_start)

    async def _start_cold(self, spec: SandboxSpec, before_start: BeforeStart | None) -> Started:
        return await self._containers.start(
            container_name(spec.labels),
            spec.image or await self.images.ensure_default(),
            spec.shape,
            spec.labels,
            command=spec.command,
            environment=spec.environment,
            before_start=before_start,
        )

    # Containers that wait

    async def keep_warm(
        self, store_id: str, owner: str, wanted: Mapping[SandboxShape, int], *, now: datetime
    ) -> None:
        """Have containers wait for tasks; see the port."""
        self.pool.want(store_id, owner, wanted, now=now)

    async def make_spare(self, shape: SandboxShape, labels: WarmLabels) -> Spare:
        """Start a container that takes one job; see `harness.sandbox.pool.SpareMaker`."""
        image = shape.image or await self.images.ensure_default()
        # Asked before the creation: a name that is given to another image in between makes it look outdated.
        image_id = await self._image_id(image)
        name = warm_name(labels.store_id, secrets.token_hex(6))
        started = await self._containers.start(name, image, shape, labels)
        return Spare(started, shape, labels, image, image_id, self._clock.monotonic())

    async def discard_spare(self, spare: Spare) -> None:
        """Remove a container that waits; see `harness.sandbox.pool.SpareMaker`."""
        await self._containers.discard(spare.started)

    async def _take_warm(self, spec: SandboxSpec) -> tuple[Started, SandboxOrigin] | None:
        """Take one of those that wait and make sure that it is of use; None: there is none."""
        while spec.command is None and spec.owner is not None:
            taken = self.pool.take(spec.labels.store_id, spec.owner, spec.shape)
            if taken is None:
                break
            spare, origin = taken
            is_of_use = False
            try:
                is_of_use = spare.image_id == await self._image_id(spare.image)
                if is_of_use and origin == "adapted":
                    await self.engine.update_container(spare.started.container_id, spec.shape)
            except SandboxError as error:
                is_of_use = False
                logger.warning("a warm container is of no use: %s", error, extra={"action": "spare_refused"})
            finally:
                if not is_of_use:
                    await self._containers.discard(spare.started)
            if is_of_use:
                return spare.started, origin
        return None

    async def _image_id(self, image: str) -> str | None:
        """Return what an image's name stands for now; None where it stands for the same image for ever."""
        if is_fixed(image):
            return None
        return str((await self.engine.call(APIClient.inspect_image, image))["Id"])

    async def _name(self, started: Started, name: str) -> None:
        await self._clock.sleep(NAMING_PAUSE_SECONDS)
        await self._containers.rename(started.container_id, name)

    # Any container

    async def owned_containers(self, store_id: str) -> Sequence[OwnedContainer]:
        """Return our containers of a store, in every state."""
        return await self._containers.owned(store_id)

    async def remove_container(self, container_id: str) -> None:
        """Kill and remove a container; see the port."""
        await self._containers.remove(container_id)

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
        await self._containers.settle()

    async def close(self) -> None:
        """Remove containers that wait, and those whose runs were abandoned; release connections and threads.

        Also when it is cancelled, as by a second signal: what is left here is left until the next sweep of anybody.
        """
        await uninterrupted(self._close())

    async def _close(self) -> None:
        await self.pool.close()
        self._outside.close()
        await self._containers.close()
        await self.engine.close()


def _ignore(_decision: Decision) -> None:
    pass
