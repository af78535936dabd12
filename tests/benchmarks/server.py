"""A ``harness serve`` of the benchmarks' own, as a process, so that what is measured of it is the product alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

#: Bound on its start, and on its end with everything that runs in it.
START_SECONDS = 20
STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Server:
    """Where it answers, and its process."""

    url: str
    pid: int


@asynccontextmanager
async def serving(folder: Path, docker_host: str, *options: str, **changes: str) -> AsyncIterator[Server]:
    """Run a server until the block is left.

    Args:
        folder: Of its store and its log.
        docker_host: The engine.
        *options: Of the command.
        **changes: Of its environment.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HARNESS_")}
    environment |= {"DOCKER_HOST": docker_host, "HARNESS_DATA_DIR": str(folder), "HARNESS_PORT": "0"}
    log = folder / "serve.log"
    with log.open("wb") as output:
        server = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("harness"), "serve", "--log-format", "json", *options,
            stdout=output, stderr=output, env=environment | changes, start_new_session=True,
        )  # fmt: skip
    try:
        yield Server(await _url(log, server), server.pid)
    finally:
        if server.returncode is None:
            server.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await server.wait()
            finally:
                if server.returncode is None:
                    server.kill()
                    await server.wait()


async def _url(log: Path, server: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(START_SECONDS):
        while server.returncode is None:
            # The last line may be under way.
            for line in log.read_text().split("\n")[:-1]:  # noqa: ASYNC240 - nothing else runs yet
                event = json.loads(line)
                if event.get("action") == "started":
                    return str(event["url"])
            await asyncio.sleep(0.05)
    raise SystemExit(f"harness serve ended with code {server.returncode}:\n{log.read_text()}")  # noqa: ASYNC240 - it ends
