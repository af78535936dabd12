"""`serve_connection`: one connection of an agent's program to the proxy, from its request to its end."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus

from harness.egress.frames import MAX_PAYLOAD_BYTES
from harness.egress.gate import Gate, RefusedError
from harness.egress.mux import Connection
from harness.egress.request import MAX_HEAD_BYTES, BadRequestError, Request, parse_request

#: How long a request's head may take to come.
HEAD_SECONDS = 30.0
#: A connection on which nothing moved for so long is ended.
IDLE_SECONDS = 300.0
#: How long a program may take to close its side after the answer.
LINGER_SECONDS = 5.0
#: Characters of a malformed request that are shown.
SHOWN_CHARS = 80


async def serve_connection(connection: Connection, gate: Gate, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answer the one request of a connection; return when both sides are done, or nothing moves any more.

    Raises:
        OSError: The program or the relay is gone.
    """
    head = b""
    try:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head, rest = await _read_head(connection)
        except TimeoutError:
            raise BadRequestError(f"no whole request within {HEAD_SECONDS:g} s", 408) from None
        if not head:
            connection.end()
            return
        request = parse_request(head)
        reader, writer = await gate.open(request.place)
        try:
            await _Exchange(connection, reader, writer, idle_seconds).run(request, rest)
            writer.close()
            async with asyncio.timeout(LINGER_SECONDS):
                await writer.wait_closed()
        except TimeoutError:
            return
        finally:
            gate.close(writer)
    except BadRequestError as error:
        gate.malformed(str(error), _shown(head))
        await _answer(connection, error.status, f"refused: {error}")
    except RefusedError as error:
        await _answer(connection, error.status, str(error))
    await _let_go(connection, idle_seconds)


async def _read_head(connection: Connection) -> tuple[bytes, bytes]:
    """Return a request's head and what came behind it; nothing: the program said nothing."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise BadRequestError(f"the request's head is longer than {MAX_HEAD_BYTES} bytes", 431)
        more = await connection.read()
        if not more:
            if data:
                raise BadRequestError("the request ended within its head")
            return b"", b""
        data += more
    return bytes(data[: end + 4]), bytes(data[end + 4 :])


class _Exchange:
    """A request and its answer, or a tunnel, on the way between a program and a server."""

    def __init__(
        self,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        idle_seconds: float,
    ) -> None:
        self._connection = connection
        self._reader, self._writer = reader, writer
        self._idle_seconds = idle_seconds
        self._patience = asyncio.timeout(idle_seconds)

    async def run(self, request: Request, rest: bytes) -> None:
        """Carry it to its end.

        Args:
            request: What was asked for.
            rest: What came behind it already.

        Raises:
            TimeoutError: Nothing moved for too long.
            OSError: One of the two is gone.
        """
        is_tunnel = request.head is None
        async with self._patience:
            if request.head is None:
                await self._connection.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                self._writer.write(request.head)
            up = asyncio.create_task(self._pass_up(rest, None if is_tunnel else request.body_bytes))
            down = asyncio.create_task(self._pass_down())
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                if up.done():
                    up.result()
                await down
                if is_tunnel:
                    # The server sends no more; it may still be sent to.
                    await up
            finally:
                for task in (up, down):
                    task.cancel()
                await asyncio.gather(up, down, return_exceptions=True)

    def _moved(self) -> None:
        self._patience.reschedule(asyncio.get_running_loop().time() + self._idle_seconds)

    async def _pass_up(self, data: bytes, left: int | None) -> None:
        """Pass on what the program sends, of a request's body so many bytes."""
        while True:
            if left is not None:
                left -= len(data)
                if left < 0:
                    # A second request, perhaps for another server: a connection is for one.
                    raise ConnectionAbortedError("bytes behind the request")
            if data:
                self._moved()
                self._writer.write(data)
                try:
                    await self._writer.drain()
                except OSError:
                    return  # what the server said before it closed is still to come
            data = await self._connection.read()
            if not data:
                break
        # Of a request the server knows the end; some take this for the end of the client.
        if left is None and self._writer.can_write_eof():
            self._writer.write_eof()

    async def _pass_down(self) -> None:
        while data := await self._reader.read(MAX_PAYLOAD_BYTES):
            self._moved()
            await self._connection.write(data)
            self._moved()
        self._connection.end()


async def _answer(connection: Connection, status: int, message: str) -> None:
    body = f"{message}\n".encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await connection.write(head.encode() + body)


async def _let_go(connection: Connection, idle_seconds: float) -> None:
    """Wait until the program has what was sent, and then a moment for it to close: cut off, it would lose the rest."""
    connection.end()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(idle_seconds):
            await connection.until_delivered()
        async with asyncio.timeout(LINGER_SECONDS):
            while await connection.read():
                pass


def _shown(head: bytes) -> str:
    """Return what of a malformed request is fit to be shown on one line of a terminal."""
    line = head.split(b"\r\n", 1)[0]
    return ascii(line.decode("latin-1"))[1:-1][:SHOWN_CHARS] or "?"
