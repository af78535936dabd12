"""A server that speaks MongoDB's wire protocol, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


class MongoServer:
    """Started by `start`, in an empty folder; ended by `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        #: Connection string, known once it is started.
        self.uri = ""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running server."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "log.txt"
        command = [str(Path(sys.executable).with_name("secantusd-py")), "--host", "127.0.0.1", "--port", "0"]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*command, "--storage-path", str(self._folder / "data"), "--log-level", "INFO"],
                cwd=self._folder,
                # A configuration of the person who runs the tests must not be found.
                env=os.environ | {"HOME": str(self._folder)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := _LISTENING.search(log.read_text()):
                self.uri = f"mongodb://127.0.0.1:{found[1]}/"
                return
            time.sleep(0.02)
        raise RuntimeError(f"the wire-protocol server did not start:\n{log.read_text()}")

    def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
