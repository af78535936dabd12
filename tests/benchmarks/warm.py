"""Warm containers as the benchmarks use them: which runs got one, and having one ready before a run is timed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from harness.egress.decision import OnDecision
from harness.ports import BeforeStart, SandboxOrigin, SandboxSession, SandboxShape, SandboxSpec, Store
from harness.sandbox.docker import DockerSandbox

#: Bound on filling the pool. A hundred containers on two cores take ten seconds.
FILL_SECONDS = 120
#: From a container's start its interpreter takes up to a tenth of a second on an idle machine.
REST_SECONDS = 0.5


class WatchedSandbox:
    """A sandbox that notes where the containers of its runs came from."""

    def __init__(self, sandbox: DockerSandbox) -> None:
        self._sandbox = sandbox
        #: Of the last run.
        self._shape: SandboxShape | None = None
        self.origin: SandboxOrigin = "cold"
        #: Of all runs.
        self.origins: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)

    @property
    def shape(self) -> SandboxShape:
        """Of the last run, whose container that was."""
        assert self._shape is not None
        return self._shape

    @asynccontextmanager
    async def open(
        self,
        spec: SandboxSpec,
        *,
        before_start: BeforeStart | None = None,
        on_egress: OnDecision | None = None,
    ) -> AsyncIterator[SandboxSession]:
        self._shape = spec.shape
        async with self._sandbox.open(spec, before_start=before_start, on_egress=on_egress) as session:
            self.origin = session.origin
            self.origins[self.origin] += 1
            yield session


class Pool:
    """The warm containers of one owner."""

    def __init__(self, sandbox: DockerSandbox, store: Store, owner: str) -> None:
        self._sandbox = sandbox
        self._store = store
        self._owner = owner

    async def fill(self, wanted: Mapping[SandboxShape, int]) -> None:
        """Have so many containers of each shape, and wait until they are there and their interpreters at rest."""
        had_to_wait = False
        try:
            async with asyncio.timeout(FILL_SECONDS):
                while any(self._sandbox.pool.count(shape) < count for shape, count in wanted.items()):
                    had_to_wait = True
                    # Again and again: a worker beside it may want something else.
                    now = await self._store.now()
                    await self._sandbox.keep_warm(self._store.store_id, self._owner, wanted, now=now)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            have = {shape: self._sandbox.pool.count(shape) for shape in wanted}
            raise SystemExit(f"the warm pool has {have} after {FILL_SECONDS} s") from None
        if had_to_wait:
            await asyncio.sleep(REST_SECONDS)
