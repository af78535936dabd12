"""Clients that come in numbers: connections, streams, agents, fires."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import sqlite3
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from tests.abuse.clients.target import ClientCase, Target, counted, require, status_of
from tests.attacks import MIB, SLACK_BYTES

from harness.client import HarnessClient
from harness.models import AgentDraft, Task, TaskStatus
from harness_server.streams import MAX_STREAMS

_GROUP = "clients: floods"

#: More than a server has room for.
_CONNECTIONS = 1000
_FOLLOWERS = 650
#: One read of 64 KiB from the store, and what its socket holds, for each.
_FOLLOWER_BYTES = 256 * 1024
_MANY_AGENTS = 1_000_000
_AT_ONCE = 2000
#: Fewer than what two processors have time for: with more, all get their equal share, which need not be enough for the victim.
_FREQUENT_AGENTS = 8
_FREQUENT_SECONDS = 12

_TALKER = """
import sys, time
for number in range(9000):
    print('x' * 99)
sys.stdout.flush()
time.sleep(60)
"""


@asynccontextmanager
async def _many(
    target: Target, count: int, *, read_bytes: int | None = None
) -> AsyncIterator[list[socket.socket]]:
    """Open many connections; a small `read_bytes` is for those that do not read."""
    loop, opened = asyncio.get_running_loop(), []
    host, port = target.netloc.split(":")
    try:
        for _ in range(count):
            made = socket.socket()
            opened.append(made)
            made.setblocking(False)
            if read_bytes is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_bytes)
            await loop.sock_connect(made, (host, int(port)))
        yield opened
    finally:
        for made in opened:
            made.close()


async def _first_bytes(made: socket.socket, count: int = 32) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await asyncio.get_running_loop().sock_recv(made, count)
    return b""


async def _is_well(target: Target, *, seconds: float, every: float = 0.2) -> float:
    """Ask with the owner's token for a while; return the longest that an answer took, in seconds."""
    slowest, until = 0.0, time.monotonic() + seconds
    async with target.session(None) as session:
        while time.monotonic() < until:
            began = time.monotonic()
            reply = await session.ask("GET", "/api/tasks?limit=1", token=target.owner)
            require(reply.status == 200, f"another's question was answered {reply.status}")
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(every)
    return slowest


async def _slowloris(target: Target) -> str:
    memory = target.memory()
    async with _many(target, _CONNECTIONS) as opened:
        head = target.head("POST /api/agents HTTP/1.1", scope=None)
        loop = asyncio.get_running_loop()
        for made in opened:
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(made, head)

        async def dribble() -> None:
            while True:
                for made in opened:
                    with contextlib.suppress(ConnectionError):
                        await loop.sock_sendall(made, b"X: y\r\n")
                await asyncio.sleep(1)

        dribbling = asyncio.create_task(dribble())
        try:
            slowest = await _is_well(target, seconds=11)
            async with asyncio.timeout(10):
                answers = await asyncio.gather(*(_first_bytes(made) for made in opened))
        finally:
            dribbling.cancel()
            await asyncio.gather(dribbling, return_exceptions=True)
    grown, seen = memory.growth_bytes(), [status_of(one) or "closed" for one in answers]
    require({*seen} <= {408, "closed"}, counted(seen))
    require(grown < SLACK_BYTES, f"the server grew by {grown / MIB:.0f} MiB")
    return f"{counted(seen)}; others were answered within {slowest:.2f} s; the server grew by {grown / MIB:.0f} MiB"


async def _half_open(target: Target) -> str:
    memory = target.memory()
    async with _many(target, _CONNECTIONS) as opened:
        for number, made in enumerate(opened):
            if number % 3 == 0:
                made.shutdown(socket.SHUT_WR)
            elif number % 3 == 1:
                # An end without a word: a reset (socket(7), SO_LINGER).
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                made.close()
        slowest = await _is_well(target, seconds=3)
    slowest = max(slowest, await _is_well(target, seconds=1))
    grown = memory.growth_bytes()
    require(grown < SLACK_BYTES, f"the server grew by {grown / MIB:.0f} MiB")
    return f"others were answered within {slowest:.2f} s; the server grew by {grown / MIB:.0f} MiB"


@asynccontextmanager
async def _talker(owner: HarnessClient) -> AsyncIterator[Task]:
    """Have an agent run that has printed much and goes on running."""
    limits = {"timeout_seconds": 60, "grace_seconds": 0}
    agent = await owner.create_agent(AgentDraft(name="talker", code=_TALKER, config={"limits": limits}))
    task = await owner.run(agent.id)
    try:
        yield task
    finally:
        await _delete(owner, agent.id)


async def _followers(target: Target) -> str:
    async with HarnessClient(target.url, token=target.owner) as owner, _talker(owner) as task:
        await asyncio.sleep(1)
        memory = target.memory()
        head = target.head(
            f"GET /api/tasks/{task.id}/logs HTTP/1.1", "Accept: text/event-stream", scope="read"
        )
        async with _many(target, _FOLLOWERS, read_bytes=2048) as opened:
            loop = asyncio.get_running_loop()
            for made in opened:
                await loop.sock_sendall(made, head + b"\r\n")
                await asyncio.sleep(0.002)
            # Their first bytes, and nothing more, ever.
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*(_first_bytes(made) for made in opened))
            slowest = await _is_well(target, seconds=14)
        grown = memory.growth_bytes()
    seen = [status_of(one) or "closed" for one in answers]
    served = seen.count(200)
    require({*seen} <= {200, 429}, counted(seen))
    require(0 < served <= MAX_STREAMS, f"{served} streams were served")
    require(grown < SLACK_BYTES + served * _FOLLOWER_BYTES, f"the server grew by {grown / MIB:.0f} MiB")
    return f"{counted(seen)}; others were answered within {slowest:.2f} s; the server grew by {grown / MIB:.0f} MiB"


async def _waits(target: Target) -> str:
    """Wait for one run by one key, again and again: what waits holds its connection."""
    async with HarnessClient(target.url, token=target.owner) as owner:
        limits = {"timeout_seconds": 60, "grace_seconds": 0}
        agent = await owner.create_agent(AgentDraft(name="awaited", code=_TALKER, config={"limits": limits}))
        line = f"POST /api/agents/{agent.id}/runs?wait=300 HTTP/1.1"
        head = target.head(line, "Content-Length: 0", "Idempotency-Key: flood", scope="run")
        try:
            async with _many(target, _CONNECTIONS) as opened:
                for made in opened:
                    with contextlib.suppress(ConnectionError):
                        await asyncio.get_running_loop().sock_sendall(made, head + b"\r\n")
                    # Below the rate at which one token may ask.
                    await asyncio.sleep(0.003)
                slowest = await _is_well(target, seconds=3)
                answered = [made for made in opened if select.select([made], [], [], 0)[0]]
                answers = [await _first_bytes(made) for made in answered]
        finally:
            await _delete(owner, agent.id)
    seen = [status_of(one) or "closed" for one in answers]
    require({*seen} <= {429, "closed"}, counted(seen))
    return f"{_CONNECTIONS - len(seen)} waited, {counted(seen)}; others were answered within {slowest:.2f} s"


async def _never_read(target: Target) -> str:
    """Ask for what is large, and read nothing of it."""
    memory = target.memory()
    async with HarnessClient(target.url, token=target.owner) as owner:
        made = [await owner.create_agent(AgentDraft(name=f"large {n}", code="#" * 500_000)) for n in range(4)]
        try:
            head = target.head("GET /api/agents?limit=1000 HTTP/1.1", scope="read")
            async with _many(target, 100, read_bytes=2048) as opened:
                loop = asyncio.get_running_loop()
                for one in opened:
                    await loop.sock_sendall(one, head + b"\r\n")
                slowest = await _is_well(target, seconds=3)
        finally:
            for agent in made:
                await owner.delete_agent(agent.id)
    grown = memory.growth_bytes()
    require(grown < 100 * 8 * MIB, f"the server grew by {grown / MIB:.0f} MiB")
    return (
        f"others were answered within {slowest:.2f} s; the server grew by {grown / MIB:.0f} MiB for 200 MiB"
    )


async def _each_second(target: Target) -> str:
    refused = []
    schedules: tuple[dict[str, object], ...] = (
        {"type": "cron", "cron": "* * * * * *"},
        {"type": "cron", "cron": "*/1 * * * * *"},
        {"type": "cron", "cron": "@every 1s"},
        {"type": "cron", "cron": "@reboot"},
        {"type": "interval", "interval_seconds": 0},
        {"type": "interval", "interval_seconds": -1},
        {"type": "interval", "interval_seconds": 0.1},
        {"type": "interval", "interval_seconds": True},
        {"type": "interval", "interval_seconds": "1"},
        {"type": "interval", "interval_minutes": 0},
    )
    async with target.session() as session:
        for schedule in schedules:
            reply = await session.ask("PUT", f"/api/agents/{target.agent_id}/schedule", json=schedule)
            require(reply.status == 422, f"{schedule} was answered {reply.status}")
            refused.append(reply.status)
    async with HarnessClient(target.url, token=target.owner) as owner:
        config = {"schedule": {"type": "interval", "interval_seconds": 1, "overlap": "queue_one"}}
        drafts = [
            AgentDraft(name=f"each second {n}", code="pass", config=config) for n in range(_FREQUENT_AGENTS)
        ]
        made = [await owner.create_agent(draft) for draft in drafts]
        try:
            slowest = await _is_well(target, seconds=_FREQUENT_SECONDS)
        finally:
            for agent in made:
                await owner.delete_schedule(agent.id)
            runs = sum(
                [
                    (await owner.list_tasks(agent_id=agent.id, status=TaskStatus.COMPLETED)).total_count
                    for agent in made
                ]
            )
            for agent in made:
                await _delete(owner, agent.id)
    return (
        f"{counted(refused)}; {_FREQUENT_AGENTS} agents each second: {runs} runs in {_FREQUENT_SECONDS} s, "
        f"others were answered within {slowest:.2f} s"
    )


async def _delete(owner: HarnessClient, agent_id: int) -> None:
    """Delete an agent as soon as nothing of it runs."""
    while True:
        tasks = (await owner.list_tasks(agent_id=agent_id, limit=20)).items
        for task in tasks:
            if not task.status.is_final:
                await owner.cancel_task(task.id)
        if all(task.status.is_final for task in tasks):
            break
        await asyncio.sleep(0.1)
    await owner.delete_agent(agent_id)


async def _many_agents(target: Target) -> str:
    """Put agents into the store, past the API: at its 500 requests a second of one token this would take half an hour."""
    began = time.monotonic()
    path = target.folder / "data" / "harness.db"
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as store:
        first = store.execute("SELECT max(id) FROM agents").fetchone()[0] + 1
        # In pieces, so that no write of the server waits for long.
        for at in range(first, first + _MANY_AGENTS, _AT_ONCE):
            store.execute(
                """WITH RECURSIVE n (id) AS (SELECT ? UNION ALL SELECT id + 1 FROM n WHERE id < ?)
                INSERT INTO agents (id, name, version, created_at, updated_at, config, entrypoint, code, files)
                SELECT n.id, 'one of many ' || n.id, 1, created_at, updated_at, config, entrypoint, code, files
                FROM n JOIN agents ON agents.id = ?""",
                (at, at + _AT_ONCE - 1, target.agent_id),
            )
            await asyncio.sleep(0.005)
        try:
            memory = target.memory()
            async with target.session("read") as session:
                asked = time.monotonic()
                reply = (
                    await session.ask("GET", f"/api/agents?limit=1000&offset={_MANY_AGENTS - 1000}")
                ).json()
                page_seconds = time.monotonic() - asked
                require(reply["total_count"] > _MANY_AGENTS, f"{reply['total_count']} agents are there")
                asked = time.monotonic()
                found = (await session.ask("GET", f"/api/agents?name=one%20of%20many%20{first}")).json()
                require(found["total_count"] == 1, "one of many was not found")
                name_seconds = time.monotonic() - asked
            slowest, grown = await _is_well(target, seconds=3), memory.growth_bytes()
        finally:
            for at in range(first, first + _MANY_AGENTS, _AT_ONCE):
                store.execute("DELETE FROM agents WHERE id BETWEEN ? AND ?", (at, at + _AT_ONCE - 1))
                await asyncio.sleep(0.005)
    require(grown < 2 * SLACK_BYTES, f"the server grew by {grown / MIB:.0f} MiB")
    return (
        f"{_MANY_AGENTS:,} agents, put into the store: the last 1,000 listed in {page_seconds:.2f} s, one found by name in "
        f"{name_seconds:.3f} s, others were answered within {slowest:.2f} s; the server grew by {grown / MIB:.0f} MiB; "
        f"{time.monotonic() - began:.0f} s in all"
    )


CASES = (
    ClientCase(
        _GROUP,
        f"{_CONNECTIONS:,} connections that send their heads byte by byte (slowloris)",
        "408 or closed; others are served; flat memory",
        _slowloris,
    ),
    ClientCase(
        _GROUP,
        f"{_CONNECTIONS:,} connections that say nothing, half closed or reset",
        "others are served; flat memory",
        _half_open,
    ),
    ClientCase(
        _GROUP,
        f"{_FOLLOWERS} followers of a log that never read",
        f"{MAX_STREAMS} at most, 429 for the rest; others are served; bounded memory",
        _followers,
    ),
    ClientCase(
        _GROUP,
        f"{_CONNECTIONS:,} requests that wait for one run",
        "half of the connections at most, 429 for the rest; others are served",
        _waits,
    ),
    ClientCase(
        _GROUP,
        "100 requests for lists of megabytes that are never read",
        "others are served; bounded memory",
        _never_read,
    ),
    ClientCase(
        _GROUP,
        "schedules that fire each second, or more often",
        "no cron does, no interval is shorter than a second; others are served",
        _each_second,
    ),
    ClientCase(_GROUP, "a million agents", "lists and others are served", _many_agents),
)
