"""The library's composition root: from settings to a store, a sandbox and a clock. Nothing else picks implementations.

Two ways in. `open_runtime` is for programs that own a lifetime (the CLI, a server, tests). `shared_runtime` is for the
API description's style, ``AgentExecutor()`` without arguments and without a close: it makes one runtime per event loop
and has it closed by the loop's own shutdown.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.clock import SystemClock
from harness.config import MIB
from harness.egress.policy import parse_networks
from harness.ports import Clock, Store
from harness.settings import Settings, get_settings

if TYPE_CHECKING:
    from harness.sandbox.docker import DockerSandbox
    from harness.sandbox.hostconfig import Isolation
    from harness.sandbox.images import SandboxImages


@dataclass(frozen=True, slots=True)
class Runtime:
    """What everything else is built from. The store is open; the engine is connected to on first use."""

    settings: Settings
    store: Store
    sandbox: DockerSandbox
    clock: Clock

    @property
    def images(self) -> SandboxImages:
        """The sandbox images of the engine."""
        return self.sandbox.images

    async def close(self) -> None:
        """Release the store's and the engine's connections. Idempotent."""
        try:
            await self.store.close()
        finally:
            await self.sandbox.close()


def make_store(settings: Settings, clock: Clock) -> Store:
    """Return the store that the settings name, not yet open."""
    if settings.mongodb_uri is not None:
        from harness.store.mongo import MongoStore

        uri = settings.mongodb_uri.get_secret_value()
        return MongoStore.connect(uri, database=settings.mongodb_database, clock=clock)
    from harness.store.sqlite import SqliteStore

    return SqliteStore(settings.data_dir / "harness.db", clock=clock)


def isolation_of(settings: Settings) -> Isolation:
    """Return what the settings want containers to be held in by."""
    from harness.sandbox.hostconfig import Isolation

    return Isolation(settings.sandbox_runtime, settings.apparmor_profile)


def make_sandbox(settings: Settings, clock: Clock) -> DockerSandbox:
    """Return the sandbox that the settings name; it connects on first use."""
    # Only here: commands that need the store alone are spared the Docker SDK, a fifth of their time.
    from harness.sandbox.docker import DockerSandbox
    from harness.sandbox.engine import Engine
    from harness.sandbox.images import SandboxImages
    from harness.sandbox.locate import find_engine

    engine = Engine(find_engine(settings), isolation_of(settings))
    return DockerSandbox(
        engine,
        SandboxImages(engine, default=settings.sandbox_image),
        clock=clock,
        warm_containers=settings.warm_containers,
        warm_bytes=settings.warm_memory_mb * MIB,
        egress_private=parse_networks(settings.egress_private),
    )


@asynccontextmanager
async def open_runtime(settings: Settings | None = None) -> AsyncIterator[Runtime]:
    """Open a runtime and close it at the end.

    Args:
        settings: None: those of the environment.

    Raises:
        StoreUnavailableError: The store does not answer.
        SettingsError: A setting is malformed.
    """
    runtime = _make_runtime(settings or get_settings())
    try:
        await runtime.store.open()
        yield runtime
    finally:
        await runtime.close()


class _Shared:
    """The runtime of one event loop, and the generator whose closing closes it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.runtime: Runtime | None = None
        self.holder: AsyncGenerator[Runtime, None] | None = None


_shared: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = weakref.WeakKeyDictionary()


async def shared_runtime() -> Runtime:
    """Return this event loop's runtime, opened on the first call from the environment's settings.

    It is held by an async generator, and ``asyncio.run`` closes all of those as its last step
    (`loop.shutdown_asyncgens`): that is how a program which never closes anything still leaves nothing open.
    """
    shared = _shared.setdefault(asyncio.get_running_loop(), _Shared())
    async with shared.lock:
        if shared.runtime is None:
            holder = _hold()
            shared.runtime = await anext(holder)
            shared.holder = holder
        return shared.runtime


async def _hold() -> AsyncGenerator[Runtime, None]:
    # Not by open_runtime: that is a second async generator, and the loop closes all of them at the same time.
    runtime = _make_runtime(get_settings())
    try:
        await runtime.store.open()
        yield runtime
    finally:
        await runtime.close()


def _make_runtime(settings: Settings) -> Runtime:
    clock = SystemClock()
    return Runtime(settings, make_store(settings, clock), make_sandbox(settings, clock), clock)
