"""The connection to one Docker Engine: what every run needs on the event loop, all other calls through the SDK.

The SDK blocks, so its calls run in a small pool of threads. What is asked for each container, and what lasts as long as
one (attach, wait), does not: those are sockets of the event loop, so a running container costs no thread. Docker's own
errors become ours here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import docker
import docker.errors
import requests

from harness.errors import EngineUnavailableError, ImageMissingError, SandboxError
from harness.ports import SandboxLabels, SandboxShape, WarmLabels
from harness.sandbox.connections import Connections, Stream, close_stream
from harness.sandbox.hostconfig import (
    ENGINES_OWN,
    Isolation,
    creation_body,
    relay_body,
    relay_name,
    update_body,
)
from harness.sandbox.locate import EngineAddress

T = TypeVar("T")

#: Control calls at a time on the event loop, and threads for those through the SDK; each call lasts milliseconds.
CONTROL_AT_ONCE = 8
#: Bound on one control call, in seconds. A start can take long on a loaded machine.
CONTROL_TIMEOUT_SECONDS = 60
#: Bound on connecting and on the head of an answer.
CONNECT_TIMEOUT_SECONDS = 10
#: Stats asked for at a time, and the bound on one answer, in seconds.
STATS_AT_ONCE = 10
STATS_TIMEOUT_SECONDS = 5
#: Read-ahead of a stream, in bytes; a container that writes faster waits.
STREAM_BUFFER_BYTES = 1 << 20
#: Taken from a stream at once, in bytes: some milliseconds of work even where each line is one byte, since a frame costs
#: as much as a hundred bytes.
READ_BYTES = 64 * 1024


class Engine:
    """One Docker Engine. Connects on first use; `close` releases connections and threads."""

    def __init__(self, address: EngineAddress, isolation: Isolation = ENGINES_OWN) -> None:
        self.address = address
        self.isolation = isolation
        self._connections = Connections(self._connect_stream)
        self._control_at_once = asyncio.Semaphore(CONTROL_AT_ONCE)
        self._stats_at_once = asyncio.Semaphore(STATS_AT_ONCE)
        self._threads = ThreadPoolExecutor(CONTROL_AT_ONCE, thread_name_prefix="docker")
        self._client: docker.APIClient | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def call(self, method: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run one blocking SDK method, given unbound: ``engine.call(APIClient.inspect_container, id)``.

        Raises:
            EngineUnavailableError: No answer.
            ImageMissingError: The engine does not have the image.
            SandboxError: The engine said no; the message has its words.
        """
        client = await self._connected()
        return await self._in_thread(partial(method, client, *args, **kwargs))

    async def _connected(self) -> docker.APIClient:
        if self._closed:
            raise EngineUnavailableError(
                f"the connection to the Docker Engine at {self.address.url} was closed"
            )
        async with self._connecting:
            if self._client is None:
                self._client = await self._in_thread(self._connect)
            return self._client

    def _connect(self) -> docker.APIClient:
        return docker.APIClient(
            base_url=self.address.url,
            version="auto",
            timeout=CONTROL_TIMEOUT_SECONDS,
            tls=self.address.tls_config() or False,
            num_pools=CONTROL_AT_ONCE,
            max_pool_size=CONTROL_AT_ONCE,
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._translated, work)

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except docker.errors.ImageNotFound as error:
            raise ImageMissingError(f"the engine does not have the image: {error.explanation}") from error
        except docker.errors.APIError as error:
            raise EngineRefusedError(str(error.explanation or error), error.status_code or 0) from error
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise self.unavailable(error) from error

    def unavailable(self, error: BaseException) -> EngineUnavailableError:
        """Say that the engine does not answer, where it was looked for, and what to do."""
        return EngineUnavailableError(
            f"the Docker Engine at {self.address.url} does not answer ({_innermost(error)}); "
            "start it, or set DOCKER_HOST to where it is"
        )

    async def create_container(
        self,
        name: str,
        image: str,
        shape: SandboxShape,
        labels: SandboxLabels | WarmLabels,
        *,
        command: tuple[str, ...] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Create a container; return its id. Raises as `call` does."""
        client = await self._connected()
        body = creation_body(
            image,
            shape,
            labels,
            client.api_version,
            isolation=self.isolation,
            command=command,
            environment=environment,
        )
        return await self._create(name, body)

    async def create_relay(self, image: str, labels: SandboxLabels, container_id: str) -> str:
        """Create the relay of a container that runs; return its id. Raises as `call` does."""
        client = await self._connected()
        body = relay_body(image, labels, container_id, client.api_version, isolation=self.isolation)
        return await self._create(relay_name(labels), body)

    async def _create(self, name: str, body: Mapping[str, Any]) -> str:
        try:
            created = await self._ask("POST", "/containers/create", {"name": name}, body)
        except EngineRefusedError as error:
            if self.isolation.runtime is None or "runtime" not in error.message.lower():
                raise
            raise EngineRefusedError(
                f"{error.message}: HARNESS_SANDBOX_RUNTIME asks for it; harness doctor lists those that the engine has",
                error.status,
            ) from error
        return str(created["Id"])

    async def start_container(self, container_id: str) -> None:
        """Start a container. Raises as `call` does."""
        await self._ask("POST", f"/containers/{quote(container_id)}/start")

    async def update_container(self, container_id: str, shape: SandboxShape) -> None:
        """Give a container the limits of memory, processor and processes of a shape. Raises as `call` does."""
        await self._ask("POST", f"/containers/{quote(container_id)}/update", body=update_body(shape))

    async def rename_container(self, container_id: str, name: str) -> None:
        """Rename a container. Raises as `call` does."""
        await self._ask("POST", f"/containers/{quote(container_id)}/rename", {"name": name})

    async def remove_container(self, container: str) -> None:
        """Kill and remove a container, given by its id or name. Raises as `call` does."""
        # As the SDK spells it, and the socket proxy expects it.
        query = {"v": "True", "link": "False", "force": "True"}
        await self._ask("DELETE", f"/containers/{quote(container)}", query)

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make a control call; return the decoded answer, None when there is none."""
        client = await self._connected()
        target = f"/v{client.api_version}{path}" + (f"?{urlencode(query)}" if query else "")
        data = b"" if body is None else json.dumps(body).encode()
        try:
            async with self._control_at_once, asyncio.timeout(CONTROL_TIMEOUT_SECONDS):
                answer = await self._connections.ask(method, target, data)
            if answer.status < 300:
                return json.loads(answer.body) if answer.body else None
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            raise self.unavailable(error) from error
        message = _words(answer.body) or f"status {answer.status}"
        # As the SDK tells a missing image from a missing container.
        if answer.status == 404 and "no such image" in message.lower():
            raise ImageMissingError(f"the engine does not have the image: {message}")
        raise EngineRefusedError(message, answer.status)

    async def open_attach(self, container_id: str) -> Stream:
        """Attach to all three standard streams of a container; do it before the start, so that no output is lost.

        Returns:
            A reader of multiplexed frames (`demultiplex`) and a writer to stdin. The caller closes the writer.
        """
        query = "stream=1&stdin=1&stdout=1&stderr=1"
        head = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
        return await self._request(
            "POST", f"/containers/{quote(container_id)}/attach?{query}", "HTTP/1.1", head
        )

    async def wait(self, container_id: str) -> int:
        """Wait until a started container runs no more; return its exit code. Costs a socket, not a thread."""
        # HTTP/1.0, so that the answer is not chunked: it ends when the engine closes the connection.
        path = f"/containers/{quote(container_id)}/wait?condition=not-running"
        reader, writer = await self._request("POST", path, "HTTP/1.0", "")
        try:
            answer = json.loads(await reader.read())
        except (OSError, ValueError) as error:
            raise self.unavailable(error) from error
        finally:
            await close_stream(writer)
        return int(answer["StatusCode"])

    async def stats(self, container_id: str) -> Mapping[str, Any]:
        """Return one answer of a container's stats, its CPU counters since the start. Costs a socket, not a thread.

        Docker 20.10 takes a second for it, since it answers at its next tick, so it must not occupy a thread that a
        kill may need; and only `STATS_AT_ONCE` are under way at a time, however many containers run.

        Raises:
            EngineUnavailableError: No answer within `STATS_TIMEOUT_SECONDS`.
            EngineRefusedError: There is no such container.
        """
        path = f"/containers/{quote(container_id)}/stats?stream=false&one-shot=true"
        async with self._stats_at_once:
            try:
                async with asyncio.timeout(STATS_TIMEOUT_SECONDS):
                    reader, writer = await self._request("GET", path, "HTTP/1.0", "")
                    try:
                        stats: Mapping[str, Any] = json.loads(await reader.read())
                    finally:
                        writer.transport.abort()
            except (OSError, ValueError, TimeoutError) as error:
                raise self.unavailable(error) from error
            return stats

    async def _request(self, method: str, path: str, version: str, head: str) -> Stream:
        client = await self._connected()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                reader, writer = await self._connect_stream()
                try:
                    request = f"{method} /v{client.api_version}{path} {version}\r\nHost: docker\r\n{head}\r\n"
                    writer.write(request.encode())
                    await writer.drain()
                    answer = await reader.readuntil(b"\r\n\r\n")
                    status = int(answer.split(b" ", 2)[1])
                    if status >= 300:
                        raise EngineRefusedError(_words(await reader.read(4096)), status)
                except BaseException:
                    await close_stream(writer)
                    raise
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            raise self.unavailable(error) from error
        return reader, writer

    async def _connect_stream(self) -> Stream:
        url = urlsplit(self.address.url)
        if url.scheme == "unix":
            return await asyncio.open_unix_connection(url.path, limit=STREAM_BUFFER_BYTES)
        context = self.address.ssl_context()
        port = url.port or (2376 if context else 2375)
        return await asyncio.open_connection(url.hostname, port, ssl=context, limit=STREAM_BUFFER_BYTES)

    async def close(self) -> None:
        """Release connections and threads; calls still running end first. Idempotent."""
        self._closed = True
        await self._connections.close()
        client, self._client = self._client, None
        if client is not None:
            client.close()
        await asyncio.to_thread(self._threads.shutdown, wait=True)


class EngineRefusedError(SandboxError):
    """The engine answered with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        #: HTTP status of the answer.
        self.status = status


async def demultiplex(
    reader: asyncio.StreamReader,
    sink: Callable[[int, bytes], None],
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Read an attach stream until `is_over`, or to its end, passing on (1 for stdout or 2 for stderr, bytes).

    Frames have an 8-byte header: stream, three zeros, big-endian length (Docker Engine API, ContainerAttach). An agent
    that prints lines makes a frame per line, so frames are parsed a buffer at a time and neighbours passed on as one.
    """
    buffer = bytearray()
    while True:
        try:
            data = await reader.read(READ_BYTES)
        except ConnectionError:
            # How a dying engine ends a stream; what became of the container is asked separately.
            return
        if not data:
            return
        buffer += data
        _pass_on(buffer, sink)
        if is_over():
            return
        # A read that finds data waiting lets nobody else run.
        await asyncio.sleep(0)


def _pass_on(buffer: bytearray, sink: Callable[[int, bytes], None]) -> None:
    """Take all complete frames from the front of `buffer`."""
    at, stream, pieces = 0, 0, list[bytearray]()
    while len(buffer) - at >= 8:
        end = at + 8 + int.from_bytes(buffer[at + 4 : at + 8], "big")
        if end > len(buffer):
            break
        if buffer[at] != stream and pieces:
            sink(stream, b"".join(pieces))
            pieces.clear()
        stream = buffer[at]
        pieces.append(buffer[at + 8 : end])
        at = end
    if pieces:
        sink(stream, b"".join(pieces))
    del buffer[:at]


def _words(body: bytes) -> str:
    """Return what the engine says in the body of an answer that is a no."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["message"])
    return body.decode(errors="replace")


def _innermost(error: BaseException) -> str:
    while error.__context__ is not None or error.__cause__ is not None:
        inner = error.__cause__ or error.__context__
        if inner is None or isinstance(inner, KeyError | asyncio.CancelledError):
            break
        error = inner
    if isinstance(error, EOFError):
        return "it closed the connection"
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
