"""What clients with bad intent send: each is refused by a 4xx, in flat memory, with nothing written and others served."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from tests.attacks import GIB, MIB, OPERATORS, SEGMENTS, SLACK_BYTES, Memory, endless_body
from tests.integration.test_access import Server, make_server
from tests.services import Site, site

from harness.client import HarnessClient

__all__ = ["site"]


@pytest.fixture
async def server(site: Site) -> AsyncIterator[Server]:
    """A server with tokens, which has served before; afterwards its store holds what it held, and it still serves."""
    server = await make_server(site, closed=True)
    async with HarnessClient(server.url, token=server.tokens["admin"]) as client:
        for _ in range(20):
            await client.list_agents()
    before = server.content()
    yield server
    assert server.content() == before
    async with HarnessClient(server.url, token=server.tokens["admin"]) as client:
        assert (await client.list_agents()).total_count == 1


async def send_raw(server: Server, head: str, body: AsyncIterator[bytes]) -> int:
    """Send a request as fast as the server takes it; return the answer's status."""
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        f"{head}\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {server.tokens['admin']}\r\n"
        "Content-Type: application/json\r\n".encode()
    )

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            async for piece in body:
                writer.write(piece)
                await writer.drain()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(30):
            status = int((await reader.readline()).split()[1])
            await sending
    finally:
        sending.cancel()
        writer.close()
    return status


async def test_a_gibibyte_of_gzip_is_not_unfolded(server: Server) -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as stream:
        zeros = bytes(16 * MIB)
        for _ in range(GIB // len(zeros)):
            stream.write(zeros)
    bomb = packed.getvalue()
    assert len(bomb) < 2 * MIB
    memory = Memory(server.service.process.pid)

    for path in ("/api/agents", "/api/agents/1/runs", "/api/tokens", "/api/tasks/1/cancel"):
        for encoding in ("gzip", "x-gzip", "deflate", "identity, gzip"):
            status, problem, _ = await server.ask(
                "POST", path, token=server.tokens["admin"], data=bomb,
                headers={"Content-Encoding": encoding, "Content-Type": "application/json"},
            )  # fmt: skip
            assert (status, problem["code"]) == (415, "unsupported_media_type")

    assert memory.growth_bytes() < SLACK_BYTES


@pytest.mark.parametrize(
    "path", ["/api/agents", "/api/agents/1/runs", "/api/tasks/cancel", "/api/tasks/1/cancel"]
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_gibibyte_of_body_is_cut_off(server: Server, path: str, framing: str) -> None:
    memory = Memory(server.service.process.pid)
    chunked = framing == "chunked"
    head = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else f"Content-Length: {GIB}\r\n\r\n".encode()

    status = await send_raw(server, f"POST {path} HTTP/1.1", endless_body(head, GIB, chunked=chunked))

    # What takes no body does not read one either; it does what it was asked for, and closes.
    takes_body = path != "/api/tasks/1/cancel" or not chunked
    assert status == (413 if takes_body else 404)
    assert memory.growth_bytes() < SLACK_BYTES + (2 * 32 * MIB if path == "/api/agents" else 0)


async def test_an_id_is_a_number_and_nothing_else(server: Server) -> None:
    parts = urlsplit(server.url)
    for segment in SEGMENTS:
        for method, path in (("GET", "/api/agents/{}"), ("DELETE", "/api/agents/{}"), ("DELETE", "/api/tokens/{}"),
                             ("POST", "/api/tasks/{}/cancel"), ("GET", "/api/agents/{}/handoff")):  # fmt: skip
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(
                f"{method} {path.format(segment)} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
                f"Authorization: Bearer {server.tokens['admin']}\r\n\r\n".encode()
            )
            answer = await reader.read()
            writer.close()
            assert answer.split()[1] in (b"400", b"404", b"405", b"422"), (method, path, segment, answer)
    assert not server.service.events("request_crashed")


async def test_operators_of_a_database_are_values_that_are_not_valid(server: Server) -> None:
    began = time.monotonic()
    for document in OPERATORS:
        for method, path in (("POST", "/api/agents"), ("PUT", "/api/agents/1"), ("POST", "/api/tasks/cancel"),
                             ("POST", "/api/agents/1/handoff/rollback"), ("POST", "/api/tokens")):  # fmt: skip
            status, problem, _ = await server.ask(method, path, token=server.tokens["admin"], json=document)
            assert (status, problem["code"]) == (422, "invalid_input"), (path, document)
    for query in (
        "agent_id[$gt]=0",
        "agent_id=%7b%22$gt%22:0%7d",
        "status[$ne]=x",
        "$where=1",
        "limit[$gt]=1",
    ):
        status, problem, _ = await server.ask("GET", f"/api/tasks?{query}", token=server.tokens["admin"])
        assert (status, problem["code"]) == (422, "invalid_input"), query
    assert time.monotonic() - began < 30


async def test_operators_in_what_an_agent_keeps_are_kept_as_they_are(site: Site) -> None:
    server = await make_server(site, closed=True)
    state = {"$where": "1", "a.b": {"$ne": None}, "$set": {"x": 1}}
    async with HarnessClient(server.url, token=server.tokens["admin"]) as client:
        saved = await client.put_handoff(1, state)
        assert (await client.get_handoff(1)).state == saved.state == state
        found = await server.ask("GET", "/api/agents?name=%24where", token=server.tokens["admin"])
        assert found[1]["total_count"] == 0


async def test_slowloris_is_answered_408_and_keeps_nobody_out(server: Server) -> None:
    parts = urlsplit(server.url)
    memory = Memory(server.service.process.pid)
    writers, answering = [], []
    # More than the server has room for; the longest waiting make room.
    for _ in range(900):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"POST /api/agents HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        answering.append(asyncio.create_task(reader.readline()))
        writers.append(writer)

    async def dribble() -> None:
        while True:
            for writer in writers:
                if not writer.is_closing():
                    writer.write(b"X-A: b\r\n")
            await asyncio.sleep(1)

    dribbling = asyncio.create_task(dribble())
    slowest = 0.0
    began = time.monotonic()
    try:
        while time.monotonic() - began < 12:
            asked = time.monotonic()
            async with HarnessClient(server.url, token=server.tokens["read"]) as client:
                assert (await client.list_agents()).total_count == 1
            slowest = max(slowest, time.monotonic() - asked)
            await asyncio.sleep(0.1)
        async with asyncio.timeout(15):
            answers = await asyncio.gather(*answering, return_exceptions=True)
    finally:
        dribbling.cancel()
        for writer in writers:
            writer.close()

    assert answers.count(b"HTTP/1.1 408 Request Timeout\r\n") > 700
    assert slowest < 2
    assert memory.growth_bytes() < SLACK_BYTES
