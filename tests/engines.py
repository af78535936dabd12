"""A Docker Engine of the tests' own, to be stopped and killed, since others use the machine's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from time import monotonic

import psutil
from docker import APIClient

from harness.clock import SystemClock
from harness.errors import EngineUnavailableError
from harness.sandbox.engine import Engine
from harness.sandbox.locate import EngineAddress
from harness.settings import Settings
from harness.wiring import make_sandbox


def can_start_engines() -> bool:
    """Whether this machine lets us; only root can."""
    return os.geteuid() == 0 and shutil.which("dockerd") is not None


class OwnEngine:
    """A dockerd with everything in one folder, whose path is short: a socket's has 107 bytes at most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = EngineAddress(f"unix://{folder}/docker.sock")
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    async def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self._process is not None:
            if not self._is_ending:
                return
            await self.wait()
            self._forget_the_dead()
        self._is_ending = False
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a fork takes milliseconds
                [
                    # --bridge=none deletes the bridge docker0, whosever it is: in a network of its own it finds none.
                    "unshare",
                    "--net",
                    "dockerd",
                    f"--host={self.address.url}",
                    f"--data-root={self.folder}/data",
                    f"--exec-root={self.folder}/exec",
                    f"--pidfile={self.folder}/pid",
                    "--bridge=none",
                    "--iptables=false",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        await self._await_answer()

    def _forget_the_dead(self) -> None:
        """Do what a restart of the machine does: a dockerd trusts these files while their process ids exist at all."""
        file = self.folder / "exec" / "containerd" / "containerd.pid"
        if file.exists():
            with contextlib.suppress(psutil.NoSuchProcess):
                containerd = psutil.Process(int(file.read_text()))
                if str(self.folder) in _arguments(containerd):
                    containerd.kill()
            file.unlink()
        (self.folder / "pid").unlink(missing_ok=True)

    async def _await_answer(self) -> None:
        assert self._process is not None
        deadline = monotonic() + 60
        while True:
            engine = Engine(self.address)
            try:
                await engine.call(APIClient.ping)
            except EngineUnavailableError:
                log = (self.folder / "log").read_text()
                assert self._process.poll() is None, log
                assert monotonic() < deadline, log
                await asyncio.sleep(0.1)
            else:
                return
            finally:
                await engine.close()

    async def load_image(self, image: str) -> None:
        """Copy an image from the engine that the product would use."""
        first, second = make_sandbox(Settings.load(), SystemClock()), Engine(self.address)
        try:
            archive = await first.engine.call(APIClient.get_image, image, 1 << 20)
            await second.call(lambda client: list(client.load_image(archive)))
        finally:
            await first.close()
            await second.close()

    async def wait(self) -> None:
        """Wait until it has ended."""
        assert self._process is not None
        await asyncio.to_thread(self._process.wait, 60)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._is_ending |= number in (signal.SIGTERM, signal.SIGKILL)
        self._process.send_signal(number)

    def end(self) -> None:
        """End it and whatever it started, and undo its mounts."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        # containerd and its shims outlive an engine that was killed; all have the folder among their arguments.
        left = [process for process in psutil.process_iter() if f"{self.folder}/" in _arguments(process)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        mounts = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted((path for path in mounts if path.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=True)


def _arguments(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
