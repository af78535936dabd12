"""`DockerSession`: one started container and the one job it is good for.

The wall time, the stop with its grace, and the kill behind it are three small tasks beside the one that reads the
attach stream: until the supervisor has told all, or else to the stream's end. No thread belongs to a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from docker import APIClient

from harness.config import MIB
from harness.errors import EngineUnavailableError, HarnessError
from harness.models import Reason
from harness.ports import (
    BeforeStop,
    Clock,
    OutputSink,
    OutputStream,
    SandboxJob,
    SandboxOrigin,
    SandboxResult,
    SandboxSpec,
    SandboxUsage,
)
from harness.sandbox.containers import Started
from harness.sandbox.engine import Engine, EngineRefusedError, demultiplex
from harness.sandbox.frames import BadFrameError, ResultScanner, encode_frame
from harness.sandbox.stats import cpu_nanoseconds, is_running, usage_from_stats
from harness.sandbox.verdict import Ending, judge

logger = logging.getLogger(__name__)

#: After the grace the supervisor kills the agent and reports; a container still there this much later is killed.
KILL_MARGIN_SECONDS = 2.0
#: Bound on recording a reason before a stop; the stop must come even when the store is away.
RECORD_TIMEOUT_SECONDS = 5.0
#: Bound on what the engine needs to end a killed container.
KILL_TIMEOUT_SECONDS = 15.0


class DockerSession:
    """See `harness.ports.SandboxSession`."""

    def __init__(
        self,
        engine: Engine,
        spec: SandboxSpec,
        started: Started,
        origin: SandboxOrigin,
        start_seconds: float,
        clock: Clock,
    ) -> None:
        self.container_id = started.container_id
        self.origin = origin
        self.start_seconds = start_seconds
        self._engine = engine
        self._limits = spec.limits
        self._supervised = spec.command is None
        self._reader, self._writer = started.reader, started.writer
        self._clock = clock
        self._before_stop: BeforeStop | None = None
        self._stopped: tuple[Reason, str] | None = None
        self._stop_sent = asyncio.Event()
        #: The last answer, which the next one's CPU is measured from.
        self._last_stats: Mapping[str, Any] | None = None
        self._nonce = secrets.token_hex(16)
        self._all_told = False

    @property
    def is_over(self) -> bool:
        """Whether nothing of the agent runs any more, by the supervisor's proven word; it alone may still be there.

        False for a run whose lease was lost or that is given back: its successor may start at once, and is to find
        no container.
        """
        return self._all_told and (self._stopped is None or self._stopped[0] is not Reason.LOST)

    async def run(self, job: SandboxJob, *, sink: OutputSink, before_stop: BeforeStop) -> SandboxResult:
        """Run the job to its end; see the port."""
        began = self._clock.monotonic()
        # Here and not beside the reading: a job that can't be sent must not look like one that does not end.
        message = self._encode(job)
        self._before_stop = before_stop
        reading = asyncio.create_task(self._read(sink))
        killing = asyncio.create_task(self._kill_after_grace())
        helpers = (
            killing,
            asyncio.create_task(self._send(message)),
            asyncio.create_task(self._limit_wall_time()),
        )
        try:
            done, _ = await asyncio.wait((reading, killing), return_when=asyncio.FIRST_COMPLETED)
            if reading not in done:
                # Killed: its streams end now, unless the engine hangs.
                await asyncio.wait((reading,), timeout=KILL_TIMEOUT_SECONDS)
            hung = Ending(
                engine_error=f"the container did not end within {KILL_TIMEOUT_SECONDS:g} s of SIGKILL"
            )
            ending = await reading if reading.done() else hung
        finally:
            for task in (reading, *helpers):
                task.cancel()
            await asyncio.gather(reading, *helpers, return_exceptions=True)
        ending = replace(ending, stopped=self._stopped, wall_seconds=self._clock.monotonic() - began)
        return judge(ending, max_state_bytes=self._limits.state_bytes)

    async def stop(self, reason: Reason, message: str) -> None:
        """Ask the job to end; see the port."""
        if self._stopped is not None:
            return
        self._stopped = (reason, message)
        if self._before_stop is not None:
            try:
                async with asyncio.timeout(RECORD_TIMEOUT_SECONDS):
                    await self._before_stop(reason, message)
            except (HarnessError, TimeoutError) as error:
                logger.warning("stopping a run whose reason could not be recorded: %r", error)
        self._stop_sent.set()
        if self._supervised:
            with contextlib.suppress(ConnectionError):  # it ended by itself
                self._writer.write(encode_frame(b"S"))
        else:
            await self._signal("SIGTERM")

    async def usage(self) -> SandboxUsage | None:
        """Measure the container; see the port."""
        try:
            stats = await self._engine.stats(self.container_id)
        except (EngineUnavailableError, EngineRefusedError) as error:
            logger.debug("no stats of container %s: %s", self.container_id, error)
            return None
        if not is_running(stats):
            return None
        before, self._last_stats = self._last_stats, stats
        now = usage_from_stats(stats, before)
        used_ns = cpu_nanoseconds(stats)
        return SandboxUsage(
            memory_bytes=None if now.memory_mb is None else round(now.memory_mb * MIB),
            cpu_percent=now.cpu_percent,
            cpu_seconds=None if used_ns is None else used_ns / 1e9,
            processes=now.num_processes,
        )

    async def _read(self, sink: OutputSink) -> Ending:
        """Read all output; return what is known of the end."""
        names: dict[int, OutputStream] = {1: "stdout", 2: "stderr"}
        scanner = ResultScanner(self._nonce, max_state_bytes=self._limits.state_bytes)

        def take(stream: int, data: bytes) -> None:
            name = names.get(stream)
            own = scanner.feed(name, data) if name and self._supervised else data
            if own:
                # Stream 3 is the engine's own words about a failure: stdcopy.Systemerr in moby.
                sink(name or "stderr", own)

        await demultiplex(self._reader, take, is_over=lambda: scanner.is_over)
        for name, held_back in scanner.release():
            sink(name, held_back)
        try:
            report = scanner.report()
        except BadFrameError as error:
            if scanner.is_over and self._writer.can_write_eof():
                self._writer.write_eof()  # the supervisor waits for that
            return await self._ask_engine(bad_frame=str(error))
        if report is None:
            return await self._ask_engine(bad_frame=None)
        self._all_told = scanner.is_over
        return Ending(report=report)

    async def _ask_engine(self, *, bad_frame: str | None) -> Ending:
        """Learn from the engine how a container ended that gave no report."""
        try:
            exit_code = await self._engine.wait(self.container_id)
            state = (await self._engine.call(APIClient.inspect_container, self.container_id))["State"]
        except (EngineUnavailableError, EngineRefusedError) as error:
            return Ending(supervised=self._supervised, bad_frame=bad_frame, engine_error=error.message)
        return Ending(
            supervised=self._supervised,
            bad_frame=bad_frame,
            engine_exit_code=exit_code,
            engine_oom_killed=bool(state.get("OOMKilled")),
        )

    async def _send(self, message: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it ended without reading; its output and exit code tell
            self._writer.write(message)
            await self._writer.drain()
            if not self._supervised and self._writer.can_write_eof():
                self._writer.write_eof()

    def _encode(self, job: SandboxJob) -> bytes:
        if not self._supervised:
            return json.dumps(dict(job.context), allow_nan=False).encode() + b"\n"
        private = {
            "nonce": self._nonce,
            "timeout_seconds": self._limits.timeout_seconds,
            "grace_seconds": self._limits.grace_seconds,
            "state_bytes": self._limits.state_bytes,
        }
        public = {
            "files": dict(job.files),
            "entrypoint": job.entrypoint,
            "context": dict(job.context),
            "task": dict(job.task),
            "env": dict(job.env),
            "state_bytes": self._limits.state_bytes,
        }
        return encode_frame(b"P", private) + encode_frame(b"J", public)

    async def _limit_wall_time(self) -> None:
        seconds = self._limits.timeout_seconds
        await self._clock.sleep(seconds)
        await self.stop(Reason.TIMEOUT, f"ran longer than its limit of {seconds:g} s")

    async def _kill_after_grace(self) -> None:
        """Return once a stopped container, still there after its grace, has been killed."""
        await self._stop_sent.wait()
        margin = KILL_MARGIN_SECONDS if self._supervised else 0.0
        await self._clock.sleep(self._limits.grace_seconds + margin)
        await self._signal("SIGKILL")

    async def _signal(self, name: str) -> None:
        try:
            async with asyncio.timeout(KILL_TIMEOUT_SECONDS):
                await self._engine.call(APIClient.kill, self.container_id, name)
        except TimeoutError:
            logger.error("the engine hangs on %s for container %s", name, self.container_id)
        except EngineRefusedError:
            pass  # it runs no more, which is what the signal was for
        except EngineUnavailableError as error:
            logger.error("%s", error)
