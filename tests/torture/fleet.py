"""The agents of the oracle test, and the processes that run them, started again as a service manager would."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.torture.facts import ProcessEnded

from harness.models import AgentDraft, render_instant
from harness.ports import WarmLabels

#: What every agent does; `fails` is a share of attempts, decided by task and attempt alone. It says which container it is
#: in, which any engine mounts a file of, and its first and last words are as near to its begin and end as can be.
CODE = """
import re, signal, sys, time, zlib
import handoff
me = handoff.task
with open("/proc/self/mountinfo") as file:
    container = re.search("/containers/([0-9a-f]{{64}})/hostname", file.read())[1]
def say(word):
    print(f"{{word}} {{me.task_id}} {{me.attempt}} {{container}} {{time.time():.6f}}", flush=True)
def stop(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(4)
signal.signal(signal.SIGTERM, stop)
try:
    try:
        say("begin")
        time.sleep({seconds})
        if zlib.crc32(f"{{me.task_id}} {{me.attempt}}".encode()) % 100 < {fails}:
            sys.exit(3)
        handoff.save({{"n": context.get("n", 0) + 1, "task": me.task_id, "attempt": me.attempt}})
    finally:
        # The signal may come here as well; also then the last word is said.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
finally:
    say("end")
"""


def make_agents(rng: random.Random, count: int, *, end_at: datetime) -> list[AgentDraft]:
    """Return agents of mixed schedules and policies; the same for the same seed, apart from `end_at`."""
    drafts = []
    for number in range(count):
        schedule: dict[str, Any] = {
            "overlap": rng.choice(("skip", "queue_one", "allow", "cancel_running", "skip", "queue_one")),
            "catch_up": rng.choice(("latest", "all", "none")),
            "catch_up_limit": rng.randint(1, 5),
            "misfire_grace_seconds": rng.choice((0, 2, 5, 60)),
            "end_at": render_instant(end_at),
        }
        if number % 6 == 5:
            schedule |= {"type": "cron", "cron": "* * * * *"}
        else:
            schedule |= {"type": "interval", "interval_seconds": rng.randint(1, 5)}
        if schedule["overlap"] == "allow":
            schedule["max_overlap"] = rng.randint(2, 3)
        if rng.random() < 0.2:
            schedule["jitter_seconds"] = 0.7
        retry = {
            "max_attempts": rng.randint(0, 5),
            "delay_seconds": rng.choice((0, 0.3, 1)),
            "max_delay_seconds": 2,
        }
        code = CODE.format(
            seconds=rng.choice((0, 0.05, 0.05, 0.2, 1, 3)), fails=rng.choice((0, 0, 0, 10, 40))
        )
        # One memory limit beside the others, so that what waits for one agent is adapted for another. A grace that is
        # long enough for last words on a slow machine.
        limits = {
            "max_memory_mb": rng.choice((64, 64, 64, 80)),
            "grace_seconds": 3,
            "timeout_seconds": 20,
        }
        config = {"schedule": schedule, "retry": retry, "limits": limits, "priority": rng.choice((0, 0, 1))}
        drafts.append(AgentDraft(name=f"agent-{number}", code=code, config=config))
    return drafts


class Member:
    """One process of the product; `tend` starts it when it is not there."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.starts = 0
        self.codes: list[int] = []
        self.ended: list[ProcessEnded] = []
        self.is_frozen = False
        self._arguments = arguments
        self._environment = environment
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self._is_wanted = True

    @property
    def pid(self) -> int:
        """Of the process that was started last and runs."""
        assert self._process is not None
        return self._process.pid

    def owns(self, labels: WarmLabels) -> bool:
        """Whether a container waits for the process that runs now."""
        return self._process is not None and str(self._process.pid) in labels.owner.split(":")

    def _note_end(self) -> None:
        assert self._process is not None
        self.ended.append(ProcessEnded(self._process.pid, datetime.now(UTC)))

    def tend(self) -> None:
        """Start it anew a while after it ended, however it ended."""
        if self._process is not None and self._process.poll() is not None:
            self.codes.append(self._process.returncode)
            self._note_end()
            self._process = None
            self._start_at = time.monotonic() + 0.3
        if self._process is None and self._is_wanted and time.monotonic() >= self._start_at:
            self.starts += 1
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [Path(sys.executable).with_name("harness"), *self._arguments],
                    env={**os.environ, **self._environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal; return whether it was there."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        self.is_frozen = number is signal.SIGSTOP or (self.is_frozen and number is not signal.SIGCONT)
        return True

    def retire(self) -> None:
        """Start it no more."""
        self._is_wanted = False

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Have it end; return its exit code."""
        self.retire()
        process = self._process
        if process is None:
            return None
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            return await asyncio.to_thread(process.wait, 60)
        except subprocess.TimeoutExpired:
            process.kill()
            return await asyncio.to_thread(process.wait)
        finally:
            self._note_end()

    def log(self) -> str:
        """Return what it wrote."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def make_members(environment: Mapping[str, str], folder: Path) -> list[Member]:
    """Return two servers and two runners, not yet started."""
    common = ["--max-concurrent", "5", "--drain-seconds", "1", "--log-format", "json"]
    return [
        Member(f"{command}-{number}", [command, *more, *common], environment, folder)
        for command, more in (("serve", ["--port", "0"]), ("runner", []))
        for number in (1, 2)
    ]
