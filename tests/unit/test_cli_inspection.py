"""What `harness doctor` asks an engine, without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from harness.errors import EngineUnavailableError
from harness.sandbox.advisories import EngineComponent
from harness.sandbox.engine import Engine
from harness.sandbox.inspection import container_limits, engine_facts, ping
from harness.sandbox.locate import EngineAddress

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def engine_at(path: Path, handler: Handler | None) -> AsyncIterator[Engine]:
    """An `Engine` whose socket is served by `handler`; by nobody without one."""
    engine = Engine(EngineAddress(f"unix://{path}"))
    server = None if handler is None else await asyncio.start_unix_server(handler, path)
    try:
        yield engine
    finally:
        if server is not None:
            server.close()
        await engine.close()


def answering(answer: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"GET /_ping HTTP/1.0\r\n"
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    return handle


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


class FakeEngine:
    """Answers calls by the name of the SDK's method."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self._answers = answers

    async def call(self, method: Callable[..., Any], *_: Any) -> dict[str, Any]:
        return self._answers[method.__name__]


async def test_a_live_engine_is_heard(tmp_path: Path) -> None:
    async with engine_at(tmp_path / "s", answering(b"HTTP/1.0 200 OK\r\n\r\nOK")) as engine:
        await ping(engine)


async def test_a_mute_engine_is_given_up_on(tmp_path: Path) -> None:
    async with engine_at(tmp_path / "s", mute) as engine:
        with pytest.raises(EngineUnavailableError, match=r"no answer within 0\.05 s"):
            await ping(engine, timeout_seconds=0.05)


async def test_an_absent_engine_is_named(tmp_path: Path) -> None:
    async with engine_at(tmp_path / "s", None) as engine:
        with pytest.raises(EngineUnavailableError, match=r"at unix://.*/s does not answer"):
            await ping(engine)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.0 404 Not Found\r\n\r\n", b"", b"SSH-2.0-OpenSSH\r\n", b"x" * 100_000]
)
async def test_something_else_at_the_address_is_no_engine(answer: bytes, tmp_path: Path) -> None:
    async with engine_at(tmp_path / "s", answering(answer)) as engine:
        with pytest.raises(EngineUnavailableError):
            await ping(engine)


async def test_facts_are_read_from_an_old_engine() -> None:
    engine = FakeEngine(
        info={
            "ServerVersion": "19.03.1",
            "CgroupDriver": "cgroupfs",
            "Driver": "overlay2",
            "MemoryLimit": True,
            "SwapLimit": False,
            "PidsLimit": True,
            "CpuCfsQuota": True,
            "SecurityOptions": None,
            "Warnings": ["WARNING: No swap limit support"],
        },
        version={"ApiVersion": "1.40"},
    )
    facts = await engine_facts(cast("Engine", engine))
    assert (facts.version, facts.api_version, facts.cgroup_version) == ("19.03.1", "1.40", "1")
    assert (facts.memory_limit, facts.swap_limit, facts.pids_limit, facts.cpu_quota) == (
        True,
        False,
        True,
        True,
    )
    assert (facts.security_options, facts.warnings, facts.rootless) == (
        (),
        ("WARNING: No swap limit support",),
        False,
    )


async def test_facts_are_read_from_a_rootless_engine_on_cgroup_v2() -> None:
    engine = FakeEngine(
        info={
            "ServerVersion": "29.0.0",
            "CgroupVersion": "2",
            "CgroupDriver": "systemd",
            "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"],
        },
        version={"ApiVersion": "1.52"},
    )
    facts = await engine_facts(cast("Engine", engine))
    assert (facts.cgroup_version, facts.cgroup_driver, facts.rootless) == ("2", "systemd", True)
    assert not facts.memory_limit


async def test_versions_and_runtimes_are_read_as_debians_engine_says_them() -> None:
    engine = FakeEngine(
        info={
            "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}},
            "DefaultRuntime": "runc",
        },
        version={
            "ApiVersion": "1.41",
            "Components": [
                {"Name": "Engine", "Version": "20.10.24+dfsg1", "Details": {"GitCommit": "5d6db84"}},
                {"Name": "runc", "Version": "1.1.5+ds1", "Details": {"GitCommit": "1.1.5+ds1-1+deb12u1"}},
            ],
        },
    )
    facts = await engine_facts(cast("Engine", engine))
    assert facts.components == (
        EngineComponent("Engine", "20.10.24+dfsg1", "5d6db84"),
        EngineComponent("runc", "1.1.5+ds1", "1.1.5+ds1-1+deb12u1"),
    )
    assert (facts.runtimes, facts.default_runtime) == (("io.containerd.runc.v2", "runc"), "runc")


async def test_an_engine_that_names_no_parts_is_one_part() -> None:
    facts = await engine_facts(cast("Engine", FakeEngine(info={}, version={"Version": "17.12.1-ce"})))
    assert facts.components == (EngineComponent("Engine", "17.12.1-ce"),)


async def test_what_a_container_was_told_is_read_back() -> None:
    engine = FakeEngine(
        inspect_container={
            "Config": {"User": "10001:10001"},
            "HostConfig": {
                "Memory": 64,
                "MemorySwap": 64,
                "NanoCpus": 500_000_000,
                "PidsLimit": None,
                "NetworkMode": "none",
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "SecurityOpt": None,
            },
        }
    )
    limits = await container_limits(cast("Engine", engine), "id")
    assert (limits.memory_bytes, limits.memory_swap_bytes, limits.nano_cpus) == (64, 64, 500_000_000)
    assert (limits.max_processes, limits.network, limits.user) == (None, "none", "10001:10001")
    assert (limits.read_only, limits.dropped_capabilities, limits.security_options) == (True, ("ALL",), ())
