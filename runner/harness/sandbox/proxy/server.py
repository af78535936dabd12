"""`SocketProxy`: listens, asks whose a container is, makes the calls that pass, and carries their streams.

A connection serves one request: what follows it is never looked at, so nothing can hide behind it. An answer is passed
on as the engine gives it. Of an attach, bytes go to the engine only once it has switched protocols; before, it would
read them as further requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.errors import AddressUnavailableError, EngineUnavailableError, InvalidInputError
from harness.sandbox.connections import close_stream
from harness.sandbox.hostconfig import ENGINES_OWN, Isolation
from harness.sandbox.proxy.calls import MIN_API_MINOR, Call, check_call
from harness.sandbox.proxy.creation import is_ours
from harness.sandbox.proxy.request import (
    MAX_HEAD_BYTES,
    RefusedError,
    Request,
    read_request,
)

logger = logging.getLogger(__name__)

#: Connections at a time; a run has one for as long as it lasts. Each takes two file descriptors, of 1024 as a rule.
MAX_CONNECTIONS = 480
#: Bytes read at a time, each way; a side that does not take them stalls the other one, and nothing piles up here.
CHUNK_BYTES = 64 * 1024
#: Bound on the engine's answer to the question whose a container is: an answer of milliseconds and about 8 KiB.
ENGINE_TIMEOUT_SECONDS = 30.0
MAX_INSPECTION_BYTES = 4 * 1024 * 1024
#: How long a client may go on sending that was refused, or whose container has ended.
LINGER_SECONDS = 1.0
#: Bound on the question whether somebody listens at a Unix socket already.
PROBE_TIMEOUT_SECONDS = 1.0
#: Containers that are known to be ours. Labels never change and ids are never given again.
MAX_KNOWN = 10_000


class SocketProxy:
    """Lets the product's calls through to one engine, and nothing else."""

    def __init__(
        self,
        engine_socket: Path,
        *,
        isolation: Isolation = ENGINES_OWN,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Stand before the engine that listens on a Unix socket; let no container be made with less isolation."""
        self._engine_socket = engine_socket
        self._isolation = isolation
        self._max_connections = max_connections
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._known: OrderedDict[str, None] = OrderedDict()

    @asynccontextmanager
    async def listening(self, url: str) -> AsyncIterator[str]:
        """Serve at ``tcp://ADDRESS:PORT`` or ``unix:///PATH`` until the block is left; streams are cut then.

        Yields:
            The address, with the port that port 0 became.

        Raises:
            InvalidInputError: That is no address.
            AddressUnavailableError: It can't listen there.
        """
        listener, shown = _listen(url)
        start = asyncio.start_unix_server if listener.family == socket.AF_UNIX else asyncio.start_server
        server = await start(self._accept, sock=listener, limit=MAX_HEAD_BYTES)
        try:
            yield shown
        finally:
            server.close()
            for connection, writer in self._connections.items():
                writer.transport.abort()
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            if listener.family == socket.AF_UNIX:
                _forget(shown)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        what = "a request"
        try:
            if len(self._connections) > self._max_connections:
                raise RefusedError(f"{self._max_connections} connections are open already", 503)
            request = await read_request(reader)
            if request is not None:
                what = f"{request.method} {request.path[:200]}"
                await self._carry_out(request, check_call(request, self._isolation), reader, writer)
        except RefusedError as error:
            extra = {"action": "call_refused", "call": what, "status": error.status}
            logger.warning("refused: %s", error.message, extra=extra)
            await _answer(writer, error.status, f"refused by the socket proxy: {error.message}")
            await _let_go(reader, writer)
        except EngineUnavailableError as error:
            logger.error("%s", error.message, extra={"action": "engine_missing", "call": what})
            await _answer(writer, 502, error.message)
        except OSError as error:
            logger.info("%s was cut off: %s", what, error, extra={"action": "call_cut_off"})
        finally:
            # However long it takes: what is still to be sent may be the end of an agent's output.
            await close_stream(writer)

    async def _carry_out(
        self, request: Request, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        container_id = ""
        if call.container is not None:
            found = await self._own_container(call.container)
            if found is None:
                await _answer(writer, 404, f"No such container: {call.container}")
                return
            container_id = found
        if call.joined is not None and await self._own_container(call.joined) is None:
            raise RefusedError("the container whose network is to be shared is not there")
        async with self._engine(_head(call, container_id, request.version) + call.body) as engine:
            if call.is_upgrade:
                await self._attach(engine, reader, writer)
            else:
                await _answer_through(engine, reader, writer)

    async def _attach(
        self, engine: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answer = bytearray()
        while b"\r\n\r\n" not in answer and len(answer) < CHUNK_BYTES:
            data = await _receive(engine)
            if not data:
                raise _away(self._engine_socket, "it closed the connection on an attach")
            answer += data
        writer.write(answer)
        await writer.drain()
        if answer.startswith(b"HTTP/1.1 101 "):
            await _both_ways(engine, reader, writer)
            await _let_go(reader, writer)
        else:
            await _answer_through(engine, reader, writer)

    async def _own_container(self, given: str) -> str | None:
        """Return the full id of a container of ours; None: there is none of that name or id.

        Raises:
            RefusedError: It is somebody else's.
        """
        if given in self._known:
            return given
        answer = await self._inspect(given)
        if answer is None:
            return None
        container_id, labels = answer.get("Id"), (answer.get("Config") or {}).get("Labels")
        if not is_ours(labels):
            raise RefusedError(f"the container {given} is not one of ours")
        # By the id from here on: a name can be given to another container in the meantime.
        assert isinstance(container_id, str)
        self._known[container_id] = None
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return container_id

    async def _inspect(self, given: str) -> dict[str, Any] | None:
        call = Call("GET", f"/v1.{MIN_API_MINOR}/containers/{given}/json", "")
        data = bytearray()
        try:
            async with (
                asyncio.timeout(ENGINE_TIMEOUT_SECONDS),
                self._engine(_head(call, "", "1.0")) as engine,
            ):
                while len(data) <= MAX_INSPECTION_BYTES and (chunk := await _receive(engine)):
                    data += chunk
            head, _, body = data.partition(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            answer = json.loads(body) if status == 200 else {}
        except (TimeoutError, ValueError, IndexError) as error:
            raise _away(self._engine_socket, f"asked for a container, {error!r}") from error
        if status == 404:
            return None
        if status != 200 or not isinstance(answer, dict):
            raise _away(self._engine_socket, f"asked for a container, it says {status}")
        return answer

    @asynccontextmanager
    async def _engine(self, request: bytes) -> AsyncIterator[socket.socket]:
        """Connect to the engine and send it a request.

        Yields:
            The bare socket. On a stream of asyncio's, a write that fails takes with it what was not yet read: the last
            words of a container that ended without reading its input.
        """
        engine = socket.socket(socket.AF_UNIX)
        try:
            engine.setblocking(False)  # noqa: FBT003 - the only way to say it
            try:
                await asyncio.get_running_loop().sock_connect(engine, str(self._engine_socket))
                await asyncio.get_running_loop().sock_sendall(engine, request)
            except OSError as error:
                raise _away(self._engine_socket, error.strerror or repr(error)) from error
            yield engine
        finally:
            engine.close()


def _away(path: Path, reason: str) -> EngineUnavailableError:
    return EngineUnavailableError(f"the engine behind the socket proxy, at {path}, does not answer: {reason}")


async def _answer_through(
    engine: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass on an answer, until the engine closes the connection or the client does."""
    passing = asyncio.create_task(_pass_down(engine, writer))
    leaving = asyncio.create_task(_until_end(reader))
    try:
        await asyncio.wait((passing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if passing.done():
            passing.result()
    finally:
        await _cancel(passing, leaving)


async def _both_ways(
    engine: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Carry a raw stream. The end of one direction is passed on and leaves the other one open.

    The client's end is the end of the container's standard input, and output may follow it for hours. The engine's is
    the end of all output; nobody reads standard input then.
    """
    up = asyncio.create_task(_pass_up(reader, engine))
    down = asyncio.create_task(_pass_down(engine, writer))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if not down.done():
            up.result()
        await down
    finally:
        await _cancel(up, down)


async def _pass_up(reader: asyncio.StreamReader, engine: socket.socket) -> None:
    takes = True
    while data := await reader.read(CHUNK_BYTES):
        if takes:
            try:
                await asyncio.get_running_loop().sock_sendall(engine, data)
            except OSError:
                # It ended without reading. What it wrote is still to come, and a client that sends has to be let
                # send: closed over unread bytes, its connection would be reset.
                takes = False
    with contextlib.suppress(OSError):
        engine.shutdown(socket.SHUT_WR)


async def _pass_down(engine: socket.socket, writer: asyncio.StreamWriter) -> None:
    while data := await _receive(engine):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _receive(engine: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(engine, CHUNK_BYTES)
    except ConnectionError:
        # A Unix socket's peer that left bytes unread; all that it sent was received before.
        return b""


async def _until_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(CHUNK_BYTES):
            pass


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _head(call: Call, container_id: str, version: str) -> bytes:
    lines = [f"{call.method} {call.target(container_id)} HTTP/{version}", "Host: docker"]
    if call.is_upgrade:
        lines += ["Connection: Upgrade", "Upgrade: tcp"]
    else:
        lines.append("Connection: close")
    if call.body:
        lines.append("Content-Type: application/json")
    if call.method != "GET" and not call.is_upgrade:
        lines.append(f"Content-Length: {len(call.body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _answer(writer: asyncio.StreamWriter, status: int, message: str) -> None:
    """Answer as the engine does when it says no."""
    body = json.dumps({"message": message}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(OSError):
        writer.write(head.encode() + body)
        await writer.drain()


async def _let_go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take what the client still sends, for a moment: closed over unread bytes, it could lose the answer."""
    with contextlib.suppress(OSError, TimeoutError):
        writer.write_eof()
        async with asyncio.timeout(LINGER_SECONDS):
            await _until_end(reader)


def _listen(url: str) -> tuple[socket.socket, str]:
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
            return _listen_at_path(Path(parts.path)), f"unix://{parts.path}"
        if parts.scheme == "tcp" and parts.hostname and parts.port is not None:
            family = socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET
            listener = socket.create_server((parts.hostname, parts.port), family=family, backlog=256)
            host, port = listener.getsockname()[:2]
            return listener, f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    except (OSError, ValueError) as error:
        raise AddressUnavailableError(f"can't listen at {url}: {error}") from error
    raise InvalidInputError(f"{url!r} is no address to listen at: give tcp://ADDRESS:PORT or unix:///PATH")


def _forget(url: str) -> None:
    Path(url.removeprefix("unix://")).unlink(missing_ok=True)


def _listen_at_path(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            _remove_dead_socket(path)
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(256)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_dead_socket(path: Path) -> None:
    """Take away what a killed predecessor left.

    Raises:
        OSError: Somebody listens there.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
