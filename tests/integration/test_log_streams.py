"""Logs as their readers see them: real server processes, the real engine, one SQLite store."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from tests.sandboxes import wait_until
from tests.services import Site, site, stopwatch

from harness.api.values import LogEvent, LogLine
from harness.client import HarnessClient
from harness.errors import TaskNotFoundError
from harness.models import TaskStatus

__all__ = ["site"]

#: Prints a line every 20 ms, on both streams in turns, in pieces that cut characters.
CHATTY = """
import os, sys, time
for n in range(150):
    data = f"line {n} é😀\\n".encode()
    for at in range(0, len(data), 3):
        os.write(1 + n % 2, data[at:at + 3])
    time.sleep(0.02)
"""
#: Its first attempt never ends by itself.
TAKEN_OVER = """
import handoff, time
for n in range(40):
    print(f"attempt {handoff.task.attempt} line {n}", flush=True)
    time.sleep(0.02)
if handoff.task.attempt == 1:
    time.sleep(60)
"""


async def curl(*arguments: str, code: int = 0, timeout_seconds: float = 60) -> str:
    """Do what a user does."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-N", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout_seconds)
    assert process.returncode == code, err.decode()
    return out.decode()


def parse(text: str) -> list[LogEvent]:
    """The events of a stream, checked against their ids and names."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "data" in fields:
            event = LogEvent.model_validate_json(fields["data"])
            assert (fields["id"], fields["event"]) == (str(event.seq), event.kind)
            events.append(event)
    return events


def text_of(events: list[LogEvent], *streams: str) -> str:
    return "".join(event.text for event in events if event.kind in (streams or ("stdout", "stderr")))


async def start(site: Site, code: str, **config: Any) -> int:
    """Begin a task; return its id."""
    agent = await site.create(code, **config)
    async with HarnessClient(await site.services[0].url()) as client:
        return (await client.run(agent.id)).id


async def lines(client: HarnessClient, task_id: int) -> list[LogLine]:
    return [line async for line in client.logs(task_id)]


EXPECTED = [(f"line {n} é😀", "stderr" if n % 2 else "stdout") for n in range(150)]


async def test_a_log_is_followed_line_by_line_from_any_server(site: Site) -> None:
    site.start("serve")
    await site.services[0].until("started")
    other = site.start("serve")
    task_id = await start(site, CHATTY)

    async with HarnessClient(await other.url()) as client:
        seen = await lines(client, task_id)
        again = await lines(client, task_id)

    assert [line.text for line in seen if line.stream == "stdout"] == [
        t for t, s in EXPECTED if s == "stdout"
    ]
    assert [line.text for line in seen if line.stream == "stderr"] == [
        t for t, s in EXPECTED if s == "stderr"
    ]
    assert again == seen
    assert str(seen[0]) == "line 0 é😀"


async def test_a_reader_on_another_server_sees_a_killed_run_taken_over(site: Site) -> None:
    first = site.start("serve")
    url = await first.url()
    task_id = await start(site, TAKEN_OVER, retry={"max_attempts": 1})
    other = site.start("serve")
    seen: list[LogLine] = []

    async def read() -> None:
        async with HarnessClient(await other.url()) as client:
            async for line in client.logs(task_id):
                seen.append(line)

    reading = asyncio.create_task(read())

    async def has_seen_the_first_attempt() -> bool:
        return len(seen) == 40

    await wait_until(has_seen_the_first_attempt, what="the first attempt's lines")
    first.send(signal.SIGKILL)
    await asyncio.wait_for(reading, 60)

    assert url
    mark = next(line for line in seen if line.stream is None)
    assert [str(line) for line in seen] == [
        *(f"attempt 1 line {n}" for n in range(40)),
        f"attempt {mark.attempt}",
        *(f"attempt 2 line {n}" for n in range(40)),
    ]
    assert mark.attempt > 1
    assert (await site.store.get_task(task_id)).status is TaskStatus.COMPLETED
