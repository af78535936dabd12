"""Questions to an engine that the product's own work never asks: what it is, what it can limit, what it was told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from docker import APIClient

from harness.errors import EngineUnavailableError, ImageMissingError
from harness.sandbox.advisories import ENGINE, EngineComponent
from harness.sandbox.connections import close_stream
from harness.sandbox.engine import Engine

#: Bound on a first answer from an engine, in seconds. A live one takes milliseconds; the SDK would wait a minute.
PING_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says about itself."""

    version: str
    api_version: str
    #: ``1`` or ``2``.
    cgroup_version: str
    #: ``cgroupfs``, ``systemd`` or ``none``.
    cgroup_driver: str
    storage_driver: str
    memory_limit: bool
    swap_limit: bool
    pids_limit: bool
    cpu_quota: bool
    #: For example ``name=seccomp,profile=default``.
    security_options: tuple[str, ...]
    warnings: tuple[str, ...]
    rootless: bool
    #: The engine, containerd, runc and what else it names.
    components: tuple[EngineComponent, ...] = ()
    #: Names of its runtimes, and of the one that it takes where none is named.
    runtimes: tuple[str, ...] = ()
    default_runtime: str = "runc"


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """What a container was told, as the engine has it. None or 0: no limit."""

    memory_bytes: int
    #: Memory and swap together.
    memory_swap_bytes: int
    nano_cpus: int
    max_processes: int | None
    network: str
    user: str
    read_only: bool
    dropped_capabilities: tuple[str, ...]
    security_options: tuple[str, ...]
    runtime: str = ""


async def ping(engine: Engine, *, timeout_seconds: float = PING_TIMEOUT_SECONDS) -> None:
    """Return when the engine answers; on a socket of its own, so that a mute engine can't hold up a thread.

    Raises:
        EngineUnavailableError: No answer in time.
    """
    url = urlsplit(engine.address.url)
    try:
        async with asyncio.timeout(timeout_seconds):
            if url.scheme == "unix":
                reader, writer = await asyncio.open_unix_connection(url.path)
            else:
                context = engine.address.ssl_context()
                port = url.port or (2376 if context else 2375)
                reader, writer = await asyncio.open_connection(url.hostname, port, ssl=context)
            try:
                writer.write(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
                await writer.drain()
                status_line = await reader.readline()
            finally:
                await close_stream(writer)
    except TimeoutError as error:
        raise engine.unavailable(TimeoutError(f"no answer within {timeout_seconds:g} s")) from error
    except (OSError, ValueError) as error:
        raise engine.unavailable(error) from error
    if b" 200" not in status_line:
        raise EngineUnavailableError(
            f"what answers at {engine.address.url} is no Docker Engine (it said {status_line[:80]!r}); "
            "set DOCKER_HOST to where one is"
        )


async def engine_facts(engine: Engine) -> EngineFacts:
    """Ask an engine about itself.

    Raises:
        EngineUnavailableError: It does not answer.
    """
    info: dict[str, Any] = await engine.call(APIClient.info)
    version: dict[str, Any] = await engine.call(APIClient.version)
    security = tuple(info.get("SecurityOptions") or ())
    return EngineFacts(
        version=str(info.get("ServerVersion", "unknown")),
        api_version=str(version.get("ApiVersion", "unknown")),
        # Engines before 20.10 do not say, and know version 1 only.
        cgroup_version=str(info.get("CgroupVersion") or "1"),
        cgroup_driver=str(info.get("CgroupDriver") or "none"),
        storage_driver=str(info.get("Driver", "unknown")),
        memory_limit=bool(info.get("MemoryLimit")),
        swap_limit=bool(info.get("SwapLimit")),
        pids_limit=bool(info.get("PidsLimit")),
        cpu_quota=bool(info.get("CpuCfsQuota")),
        security_options=security,
        warnings=tuple(info.get("Warnings") or ()),
        rootless=any(option.startswith("name=rootless") for option in security),
        components=_components(version),
        runtimes=tuple(info.get("Runtimes") or ()),
        default_runtime=str(info.get("DefaultRuntime") or "runc"),
    )


def _components(version: dict[str, Any]) -> tuple[EngineComponent, ...]:
    found = tuple(
        EngineComponent(
            name=str(entry.get("Name", "")),
            version=str(entry.get("Version", "")),
            build=str((entry.get("Details") or {}).get("GitCommit", "")),
        )
        for entry in version.get("Components") or ()
    )
    # Engines before 18.06, and what else speaks their API, name no parts.
    return found or (EngineComponent(ENGINE, str(version.get("Version", "unknown"))),)


async def has_image(engine: Engine, image: str) -> bool:
    """Tell whether the engine has an image of that name."""
    try:
        await engine.call(APIClient.inspect_image, image)
    except ImageMissingError:
        return False
    return True


async def container_limits(engine: Engine, container_id: str) -> ContainerLimits:
    """Return what a container was told, read back from the engine."""
    answer: dict[str, Any] = await engine.call(APIClient.inspect_container, container_id)
    host = answer["HostConfig"]
    return ContainerLimits(
        memory_bytes=int(host.get("Memory") or 0),
        memory_swap_bytes=int(host.get("MemorySwap") or 0),
        nano_cpus=int(host.get("NanoCpus") or 0),
        max_processes=host.get("PidsLimit"),
        network=str(host.get("NetworkMode") or ""),
        user=str(answer["Config"].get("User") or ""),
        read_only=bool(host.get("ReadonlyRootfs")),
        dropped_capabilities=tuple(host.get("CapDrop") or ()),
        security_options=tuple(host.get("SecurityOpt") or ()),
        runtime=str(host.get("Runtime") or ""),
    )
