"""Short calls over HTTP/1.1 connections that are kept: each is a write and a read of the event loop, without a thread.

The SDK's way, through requests and urllib3 in a thread, takes about ten times the processor time. Only what the Docker
Engine's API needs of HTTP is here; errors of the connection come out as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: Connections that wait for the next call.
MAX_IDLE = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    #: HTTP status.
    status: int
    body: bytes


class Connections:
    """Connections to one place. Calls may be made at the same time; each has a connection for itself."""

    def __init__(self, connect: Callable[[], Awaitable[Stream]]) -> None:
        self._connect = connect
        self._idle: list[Stream] = []
        self._closed = False

    async def ask(self, method: str, target: str, body: bytes = b"") -> Answer:
        """Send a request, its body being JSON if there is one; return the answer, whatever its status.

        Nothing is sent twice: a connection that breaks may do so after the request took effect.

        Raises:
            OSError: The connection broke, or there is none.
            EOFError: It ended within the answer.
            ValueError: That is no answer of HTTP.
            asyncio.LimitOverrunError: Nor is this.
        """
        reader, writer = await self._take()
        try:
            writer.write(_head(method, target, body) + body)
            await writer.drain()
            answer, is_last = await _read_answer(reader)
        except BaseException:
            # What would come next on it is the answer to this request.
            writer.transport.abort()
            raise
        if is_last or self._closed or len(self._idle) >= MAX_IDLE:
            await close_stream(writer)
        else:
            self._idle.append((reader, writer))
        return answer

    async def _take(self) -> Stream:
        while self._idle:
            reader, writer = self._idle.pop()
            if not _has_ended(reader, writer):
                return reader, writer
            await close_stream(writer)
        return await self._connect()

    async def close(self) -> None:
        """Close those that wait, and the others after their answer. Idempotent."""
        self._closed = True
        idle, self._idle = self._idle, []
        for _, writer in idle:
            await close_stream(writer)


async def close_stream(writer: asyncio.StreamWriter) -> None:
    """Close a stream; errors of a connection that is being thrown away say nothing new."""
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


def _has_ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the other side closed the connection, as an engine does that is restarted."""
    if reader.at_eof() or writer.is_closing():
        return True
    # Asked of the system: the loop may not have come to look yet.
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _head(method: str, target: str, body: bytes) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: docker"]
    if body:
        lines.append("Content-Type: application/json")
    if method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """Return an answer, and whether it is the last one of its connection (RFC 9112, 6.3 and 9.3)."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, code, *_ = lines[0].split(" ", 2)
    status, headers = int(code), dict(_header(line) for line in lines[1:-2])
    is_last = version != "HTTP/1.1" or headers.get("connection", "").lower() == "close"
    if status in (204, 304):
        body = b""
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body, is_last = await reader.read(), True
    return Answer(status, body), is_last


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    # Trailers, up to the empty line.
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return b"".join(parts)
