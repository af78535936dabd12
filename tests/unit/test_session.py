"""What a session does on its own; the rest is tested on the real engine."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any, cast

import pytest

from harness.models import Reason
from harness.ports import OutputStream, SandboxJob, SandboxLabels, SandboxLimits, SandboxSpec
from harness.sandbox.containers import Started
from harness.sandbox.engine import Engine
from harness.sandbox.frames import END_MAGIC, JOB_MAGIC, RESULT_MAGIC
from harness.sandbox.session import DockerSession
from harness.testing import FakeClock

LIMITS = SandboxLimits(
    memory_bytes=1 << 26,
    cpus=1,
    max_processes=8,
    tmp_bytes=1 << 20,
    timeout_seconds=10,
    grace_seconds=1,
    output_bytes=1024,
    state_bytes=1024,
)


class Wire:
    """The writer's side of an attach connection; keeps what is written, and knows the nonce from it."""

    def __init__(self) -> None:
        self.sent = b""
        self.written = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.sent += data
        self.written.set()

    async def drain(self) -> None:
        await asyncio.sleep(0)

    @property
    def nonce(self) -> str:
        assert self.sent.startswith(JOB_MAGIC + b"P")
        length = int.from_bytes(self.sent[5:9], "big")
        return str(json.loads(self.sent[9 : 9 + length])["nonce"])

    def report(self) -> tuple[bytes, bytes]:
        """What a supervisor ends with: a result frame on stdout, an end mark on stderr."""
        head = json.dumps({"exit_code": 0, "peak_memory_bytes": 1, "cpu_seconds": 0, "wall_seconds": 1})
        payload = len(head).to_bytes(4, "big") + head.encode()
        nonce, digest = self.nonce.encode(), hashlib.sha256(payload).digest()
        result = RESULT_MAGIC + nonce + len(payload).to_bytes(4, "big") + digest + payload
        return result, END_MAGIC + nonce + digest


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


class Bench:
    def __init__(self) -> None:
        self.reader, self.wire, self.clock = asyncio.StreamReader(), Wire(), FakeClock()
        self.output: list[tuple[OutputStream, bytes]] = []
        self.stops: list[Reason] = []
        started = Started("id", self.reader, cast("asyncio.StreamWriter", self.wire))
        spec = SandboxSpec(limits=LIMITS, labels=SandboxLabels("store", 1, 1))
        # No test here gets as far as asking the engine.
        self.session = DockerSession(cast("Engine", None), spec, started, "cold", 0.1, self.clock)

    async def run(self, context: dict[str, Any] | None = None) -> Any:
        async def before_stop(reason: Reason, message: str) -> None:
            self.stops.append(reason)

        job = SandboxJob(context=context or {}, task={}, files={"main.py": ""})
        return await self.session.run(
            job, sink=lambda stream, data: self.output.append((stream, data)), before_stop=before_stop
        )

    async def end(self) -> None:
        """Report as a supervisor does, which then stays: the stream does not end."""
        await self.wire.written.wait()
        result, mark = self.wire.report()
        self.reader.feed_data(frame(1, result) + frame(2, mark))


async def test_a_job_that_cannot_be_encoded_is_an_error_and_not_a_run_without_end() -> None:
    with pytest.raises(ValueError, match="JSON"):
        await Bench().run({"x": float("nan")})


async def test_words_of_the_engine_itself_count_as_stderr() -> None:
    bench = Bench()
    running = asyncio.create_task(bench.run())
    bench.reader.feed_data(frame(3, b"the engine stumbled"))
    await bench.end()

    assert (await running).reason is Reason.COMPLETED
    assert bench.output == [("stderr", b"the engine stumbled")]


async def test_a_stop_before_the_run_ends_it_with_the_first_reason() -> None:
    bench = Bench()
    await bench.session.stop(Reason.LOST, "the lease was lost")
    await bench.session.stop(Reason.TIMEOUT, "too late")
    bench.wire.sent = b""
    bench.wire.written.clear()
    running = asyncio.create_task(bench.run())
    await bench.end()

    assert (await running).reason is Reason.LOST


async def test_after_the_end_no_helper_is_left() -> None:
    bench = Bench()
    running = asyncio.create_task(bench.run())
    await bench.end()
    await running

    assert bench.clock.sleepers == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_result_whose_end_mark_is_missing_counts_at_the_end_of_the_stream_and_not_before() -> None:
    bench = Bench()
    running = asyncio.create_task(bench.run())
    await bench.wire.written.wait()
    result, mark = bench.wire.report()
    bench.reader.feed_data(frame(1, result) + frame(2, mark[:-1]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not running.done()
    bench.reader.feed_eof()

    assert (await running).reason is Reason.COMPLETED
    assert bench.output == []
    assert not bench.session.is_over


@pytest.mark.parametrize("swapped", [False, True])
async def test_output_that_comes_after_one_of_the_two_marks_is_not_lost(swapped: bool) -> None:
    bench = Bench()
    running = asyncio.create_task(bench.run())
    await bench.wire.written.wait()
    result, mark = bench.wire.report()
    first, last = (frame(2, mark), frame(1, b"out" + result)) if swapped else (
        frame(1, result), frame(2, b"err" + mark),
    )  # fmt: skip
    bench.reader.feed_data(first)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not running.done()
    bench.reader.feed_data(last)

    assert (await running).reason is Reason.COMPLETED
    assert bench.output == [("stdout", b"out") if swapped else ("stderr", b"err")]
    assert bench.session.is_over


async def test_a_stop_after_the_result_changes_nothing() -> None:
    bench = Bench()
    running = asyncio.create_task(bench.run())
    await bench.end()
    result = await running
    await bench.session.stop(Reason.TIMEOUT, "too late")

    assert result.reason is Reason.COMPLETED
    assert bench.session.is_over


async def test_a_run_whose_lease_was_lost_is_not_over_for_its_successor() -> None:
    bench = Bench()
    await bench.session.stop(Reason.LOST, "the lease was lost")
    bench.wire.sent = b""
    bench.wire.written.clear()
    running = asyncio.create_task(bench.run())
    await bench.end()
    await running

    assert not bench.session.is_over
