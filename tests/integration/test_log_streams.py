"""Logs as their readers see them: real server processes, the real engine, one SQLite store."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
from harness.models import TaskStatus, UsageSample

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
    # Each stream is in order; between the two pipes of a program there is none.
    assert str(next(line for line in seen if line.stream == "stdout")) == "line 0 é😀"


async def test_a_reader_on_another_server_sees_a_killed_run_taken_over(site: Site) -> None:
    first = site.start("serve")
    url = await first.url()
    task_id = await start(site, TAKEN_OVER, retry={"max_attempts": 1})
    other = site.start("serve")
    seen: list[LogLine] = []

    async def read() -> None:
        async with HarnessClient(await other.url()) as client:
            async for line in client.logs(task_id):
                seen.append(line)  # noqa: PERF401 - seen while it grows

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


async def test_curl_resumes_on_another_server_without_loss_or_repeats_and_stops_after_the_end(
    site: Site,
) -> None:
    site.start("serve")
    urls = [await site.services[0].url(), await site.start("serve").url()]
    task_id = await start(site, CHATTY)
    events: list[LogEvent] = []

    for turn in range(20):
        url = f"{urls[turn % 2]}/api/tasks/{task_id}/logs"
        last = [] if not events else ["-H", f"Last-Event-ID: {events[-1].seq}"]
        process = await asyncio.create_subprocess_exec(
            "curl", "-sN", "--max-time", "0.6", *last, url, stdout=asyncio.subprocess.PIPE
        )
        out = (await process.communicate())[0].decode(errors="ignore")
        # What was cut off in the middle of an event does not count, as in a browser.
        events += parse(out.rpartition("\n\n")[0])
        if events and events[-1].kind == "end":
            break

    assert [event.seq for event in events] == sorted({event.seq for event in events})
    for number, stream in enumerate(("stdout", "stderr")):
        expected = "".join(f"{text}\n" for text, name in EXPECTED if name == stream)
        assert text_of(events, ("stdout", "stderr")[number]) == expected
    assert (events[0].kind, events[-1].kind, events[-1].text) == ("attempt", "end", "completed")
    for url in urls:
        path, end = f"{url}/api/tasks/{task_id}/logs", f"Last-Event-ID: {events[-1].seq}"
        assert await curl("-H", end, "-w", "%{http_code}", path) == "204"
        assert parse(await curl(f"{path}?after={events[3].seq}")) == events[4:]
        assert parse(await curl("-H", f"Last-Event-ID: {events[-2].seq}", f"{path}?after=7")) == events[-1:]


async def test_what_is_there_is_read_as_plain_text(site: Site) -> None:
    url = await site.start("serve").url()
    task_id = await start(
        site,
        "import os, sys\nprint('é out', flush=True)\nprint('err', file=sys.stderr, flush=True)\nos.write(1, b'\\xff')",
    )
    await site.until_status(task_id, TaskStatus.COMPLETED)
    path = f"{url}/api/tasks/{task_id}/logs?follow=false"

    assert sorted(await curl(path)) == sorted("é out\nerr\n\ufffd")
    assert await curl(f"{path}&stream=stdout") == "é out\n\ufffd"
    assert await curl(f"{path}&stream=stderr") == "err\n"
    assert await curl(f"{path}&attempt=1&stream=stderr") == "err\n"
    assert await curl(f"{path}&attempt=2") == ""
    head = await curl("-D", "-", "-o", "/dev/null", f"{url}/api/tasks/{task_id}/logs?download=true")
    assert "Content-Type: text/plain; charset=utf-8" in head
    assert f'Content-Disposition: attachment; filename="task-{task_id}.log"' in head
    only_stderr = parse(await curl(f"{url}/api/tasks/{task_id}/logs?stream=stderr"))
    assert [(event.kind, event.text) for event in only_stderr] == [
        ("attempt", ""),
        ("stderr", "err\n"),
        ("end", "completed"),
    ]
    for query, code in (("after=x", "422"), ("stream=both", "422"), ("follow=perhaps", "422")):
        answer = await curl(
            "-o", "/dev/null", "-w", "%{http_code}", f"{url}/api/tasks/{task_id}/logs?{query}"
        )
        assert answer == code
    assert "422" in await curl(
        "-w", "%{http_code}", "-H", "Last-Event-ID: nonsense", f"{url}/api/tasks/{task_id}/logs"
    )
    assert "task_not_found" in await curl(f"{url}/api/tasks/99/logs")


#: Prints 24 MB and notes when it was done.
FLOOD = """
import handoff, time
began = time.monotonic()
line = "x" * 99
for n in range(240_000):
    print(line)
handoff.save({"seconds": time.monotonic() - began})
"""


@pytest.mark.timeout(120)
async def test_a_slow_reader_is_dropped_and_resumes_while_the_agent_goes_on(site: Site) -> None:
    url = await site.start("serve").url()
    task_id = await start(site, FLOOD, limits={"max_output_bytes": 64 * 1024 * 1024})
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), int(address.port or 0))) as slow:
        slow.sendall(f"GET /api/tasks/{task_id}/logs HTTP/1.0\r\nHost: {address.netloc}\r\n\r\n".encode())
        task = await site.until_status(task_id, TaskStatus.COMPLETED)
        assert task.completed_at is not None
        assert task.started_at is not None
        assert (task.completed_at - task.started_at).total_seconds() < 20
        await site.services[0].until("reader_dropped", timeout_seconds=30)
        slow.settimeout(20)
        received = bytearray()
        while data := await asyncio.to_thread(slow.recv, 1 << 20):
            received += data
    events = parse(received.decode().partition("\r\n\r\n")[2])
    assert events[-1].kind == "dropped"
    assert events[-1].seq == events[-2].seq

    rest = parse(await curl("-H", f"Last-Event-ID: {events[-1].seq}", f"{url}/api/tasks/{task_id}/logs"))

    assert text_of(events) + text_of(rest) == ("x" * 99 + "\n") * 240_000


async def test_fifty_readers_each_see_everything(site: Site) -> None:
    site.start("serve")
    urls = [await site.services[0].url(), await site.start("serve").url()]
    task_id = await start(site, CHATTY)

    async def read(number: int) -> list[LogLine]:
        async with HarnessClient(urls[number % 2]) as client:
            return await lines(client, task_id)

    elapsed = stopwatch()
    seen = await asyncio.gather(*(read(number) for number in range(50)))

    assert elapsed() < 20
    assert all(one == seen[0] for one in seen)
    assert len(seen[0]) == 150


async def test_readers_of_a_server_that_stops_go_on_when_it_is_back(site: Site) -> None:
    site.start("serve")
    await site.services[0].until("started")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    other = site.start("serve", "--port", port)
    url = await other.url()
    task_id = await start(site, CHATTY)
    seen: list[LogLine] = []

    async def read() -> None:
        async with HarnessClient(url) as client:
            async for line in client.logs(task_id):
                seen.append(line)  # noqa: PERF401 - seen while it grows

    reading = asyncio.create_task(read())

    async def has_seen_some() -> bool:
        return len(seen) > 10

    await wait_until(has_seen_some, what="some lines")
    assert await other.stop() == 0
    site.start("serve", "--port", port)
    await asyncio.wait_for(reading, 30)

    for stream in ("stdout", "stderr"):
        assert [line.text for line in seen if line.stream == stream] == [
            t for t, s in EXPECTED if s == stream
        ]


@contextlib.asynccontextmanager
async def raw_stream(url: str) -> AsyncIterator[aiohttp.ClientResponse]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        yield answer


async def test_a_reader_of_a_task_that_is_deleted_gets_an_end(site: Site) -> None:
    url = await site.start("serve").url()
    task_id = await start(site, FLOOD, limits={"max_output_bytes": 64 * 1024 * 1024})
    task = await site.until_status(task_id, TaskStatus.COMPLETED)

    async with raw_stream(f"{url}/api/tasks/{task_id}/logs") as answer:
        begin = await answer.content.read(1000)
        await site.store.delete_agent(task.agent_id)
        events = parse((begin + await answer.content.read()).decode())

    assert (events[-1].kind, events[-1].text) == ("end", "deleted")
    async with HarnessClient(url) as client:
        with pytest.raises(TaskNotFoundError):
            await lines(client, task_id)


async def test_a_reader_that_has_seen_enough_leaves_at_once(site: Site) -> None:
    url = await site.start("serve").url()
    task_id = await start(site, "import time\nfor n in range(9): print(n, flush=True)\ntime.sleep(60)")
    async with HarnessClient(url) as client:
        async for line in client.logs(task_id):
            if line.text == "4":
                break
        await site.until_output(task_id, b"8\n")
        assert [line.text async for line in client.logs(task_id, follow=False)] == [*"012345678"]
        await client.cancel_task(task_id)
        assert [line.text async for line in client.logs(task_id)] == [*"012345678"]


async def test_a_server_has_a_bounded_number_of_places_and_frees_them_at_once(site: Site) -> None:
    url = await site.start("serve").url()
    task_id = await start(site, "import time\nprint('begun', flush=True)\ntime.sleep(60)")
    await site.until_output(task_id, b"begun")
    path = f"{url}/api/tasks/{task_id}/logs"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        readers = [await session.get(path) for _ in range(500)]
        assert {reader.status for reader in readers} == {200}
        async with session.get(path) as refused:
            assert refused.status == 429
            assert (await refused.json())["code"] == "rate_limited"
            assert "Retry-After" in refused.headers
        for reader in readers:
            reader.close()

    async def has_places() -> bool:
        async with raw_stream(path) as answer:
            return answer.status == 200

    await wait_until(has_places, what="a free place", timeout_seconds=3)
    await site.store.cancel_task(task_id)


#: Holds 48 MiB, three processes and most of a core for some seconds.
HUNGRY = """
import subprocess, sys, time
held = bytearray(48 * 1024 * 1024)
others = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(6)"]) for _ in range(2)]
end = time.monotonic() + 5
while time.monotonic() < end:
    pass
"""


async def test_what_a_run_uses_is_seen_from_any_server_while_it_lives_and_afterwards(site: Site) -> None:
    site.start("serve")
    await site.services[0].until("started")
    url = await site.start("serve").url()
    task_id = await start(site, HUNGRY)

    async with HarnessClient(url) as client:
        live: list[tuple[UsageSample, TaskStatus]] = []
        async for sample in client.stats(task_id):
            live.append((sample, (await client.get_task(task_id)).status))  # noqa: PERF401 - while it grows
        afterwards = [sample async for sample in client.stats(task_id, follow=False)]
        task = await client.get_task(task_id)

    assert live[0][1] is TaskStatus.RUNNING
    assert [sample for sample, _ in live] == afterwards
    assert max(sample.memory_bytes or 0 for sample in afterwards) > 48 * 1024 * 1024
    assert max(sample.processes or 0 for sample in afterwards) >= 3
    assert max(sample.cpu_percent or 0 for sample in afterwards) > 10
    assert task.attempt is not None
    usage = task.attempt.usage
    assert usage.peak_processes == max(sample.processes or 0 for sample in afterwards)
    assert usage.peak_cpu_percent is not None
    # The kernel's own count, which samples do not replace.
    assert (usage.peak_memory_bytes or 0) >= max(sample.memory_bytes or 0 for sample in afterwards)

    path = f"{url}/api/tasks/{task_id}/stats"
    assert len(json.loads(await curl(path))["samples"]) == len(afterwards)
    assert len(json.loads(await curl(f"{path}?after={afterwards[0].seq}"))["samples"]) == len(afterwards) - 1
    stream = await curl("-H", f"Last-Event-ID: {afterwards[-2].seq}", f"{path}?follow=true")
    names = [line for line in stream.split("\n") if line.startswith("event: ")]
    assert names == ["event: sample", "event: end"]
    last_id = stream.rpartition("id: ")[2].partition("\n")[0]
    answer = await curl("-w", "%{http_code}", "-H", f"Last-Event-ID: {last_id}", f"{path}?follow=true")
    assert answer == "204"
