"""What the product is held against: ``docker run --rm`` as a user types it, the same locked down, and the plain SDK.

Every container made here bears a label of this run of the benchmarks, so that whatever ends it, none is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from docker import APIClient

from harness.ports import SandboxLimits, sandbox_shape
from harness.sandbox.engine import Engine, EngineRefusedError
from harness.sandbox.hostconfig import SANDBOX_USER, host_config
from harness.sandbox.seccomp import SECURITY_OPTION

#: What all contenders run: the least that a program with output can be.
PROGRAM = "print('hello')"

#: Of every container that is made here; its value is the process's id.
LABEL = "io.agent-harness.bench"
#: Bound on removing what an interrupted run left, and the pause between two looks.
REMOVE_SECONDS = 30
LOOK_SECONDS = 0.3

#: From our containers' host config to the docker command's options. A lock-down that is missing here is a KeyError.
_OPTIONS: Mapping[str, Callable[[Any], Sequence[str]]] = {
    "mem_limit": lambda value: ["--memory", f"{value}b"],
    "memswap_limit": lambda value: ["--memory-swap", f"{value}b"],
    "nano_cpus": lambda value: ["--cpus", str(value / 1e9)],
    "pids_limit": lambda value: ["--pids-limit", str(value)],
    "network_mode": lambda value: ["--network", value],
    "read_only": lambda value: ["--read-only"] if value else [],
    "tmpfs": lambda value: [word for path, how in value.items() for word in ("--tmpfs", f"{path}:{how}")],
    "shm_size": lambda value: ["--shm-size", f"{value}b"],
    "cap_drop": lambda value: [word for name in value for word in ("--cap-drop", name)],
    "security_opt": lambda value: [word for name in value for word in ("--security-opt", name)],
    "ipc_mode": lambda value: ["--ipc", value],
    "log_config": lambda value: ["--log-driver", value.type],
    "ulimits": lambda value: [
        word for limit in value for word in ("--ulimit", f"{limit.name}={limit.soft}:{limit.hard}")
    ],
    "oom_score_adj": lambda value: ["--oom-score-adj", str(value)],
    # With --rm the command takes no other.
    "restart_policy": lambda _value: [],
}


def lock_down(limits: SandboxLimits, folder: Path) -> list[str]:
    """Return the docker command's options for what our containers are held to.

    Args:
        limits: Of the containers.
        folder: Gets a file that the options name.
    """
    options = [
        word
        for name, value in host_config(sandbox_shape(limits, image=None, network="none")).items()
        for word in _OPTIONS[name](value)
    ]
    # The command takes the profile in a file.
    profile = folder / "seccomp.json"
    profile.write_text(SECURITY_OPTION.removeprefix("seccomp="))
    options[options.index(SECURITY_OPTION)] = f"seccomp={profile}"
    return [*options, "--user", SANDBOX_USER, "--hostname", "sandbox"]


class Docker:
    """Runs programs in an image without the product."""

    def __init__(self, engine: Engine, image: str, limits: SandboxLimits, folder: Path) -> None:
        self._engine = engine
        self._image = image
        self._label = f"{LABEL}={os.getpid()}"
        self._locked_down = lock_down(limits, folder)
        self._environment = {**os.environ, "DOCKER_HOST": engine.address.url}

    def command(self, *, is_locked: bool, program: str = PROGRAM) -> list[str]:
        """Return the words of ``docker run --rm``."""
        options = ["--label", self._label, *(self._locked_down if is_locked else [])]
        return ["docker", "run", "--rm", *options, "--entrypoint", "python3", self._image, "-c", program]

    async def run(self, *, is_locked: bool) -> tuple[float, float]:
        """Run the program as a command; return seconds to its first byte, and in all."""
        began = time.perf_counter()
        async with self._process(self.command(is_locked=is_locked)) as process:
            assert process.stdout is not None
            await process.stdout.readexactly(1)
            first = time.perf_counter() - began
            await process.communicate()
        return first, time.perf_counter() - began

    async def run_many(self, count: int, at_a_time: int, *, is_locked: bool, program: str = PROGRAM) -> float:
        """Run the program so many times under xargs; return seconds."""
        words = self.command(is_locked=is_locked, program=program)
        began = time.perf_counter()
        async with self._process(["xargs", "-P", str(at_a_time), "-n", "1", *words]) as process:
            out, _ = await process.communicate("".join(f"{number}\n" for number in range(count)).encode())
        if program == PROGRAM and out.count(b"hello") != count:
            raise SystemExit(f"{out.count(b'hello')} of {count} docker runs had output")
        return time.perf_counter() - began

    @asynccontextmanager
    async def _process(self, words: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
        # A session of its own: Ctrl+C reaches it through us, and what it started ends with it.
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                # Commands that xargs has begun end by themselves, and so remove their containers.
                process.terminate()
                await process.wait()
        if process.returncode != 0:
            raise SystemExit(f"{words[0]} {words[1]} ended with code {process.returncode}")

    async def run_by_sdk(self) -> float:
        """Run the program as somebody would who uses the SDK; return seconds to its first byte."""
        name, _, value = self._label.partition("=")

        def run(client: APIClient) -> float:
            began = time.perf_counter()
            container = client.create_container(
                self._image, ["-c", PROGRAM], entrypoint="python3", labels={name: value}
            )["Id"]
            try:
                output = client.attach(container, stdout=True, stderr=True, stream=True)
                client.start(container)
                next(output)
                first = time.perf_counter() - began
                for _ in output:
                    pass
                client.wait(container)
            finally:
                client.remove_container(container, force=True, v=True)
            return first

        return await self._engine.call(run)

    async def remove_all(self) -> None:
        """Remove what an interrupted run left."""
        looks_without = 0
        async with asyncio.timeout(REMOVE_SECONDS):
            # Twice: a command that was cut may still be about to make one.
            while looks_without < 2:
                left = await self._engine.call(APIClient.containers, all=True, filters={"label": self._label})
                looks_without = 0 if left else looks_without + 1
                for container in left:
                    with contextlib.suppress(EngineRefusedError):  # it is going already
                        await self._engine.call(
                            APIClient.remove_container, container["Id"], force=True, v=True
                        )
                await asyncio.sleep(LOOK_SECONDS)
