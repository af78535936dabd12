"""Bounds on connections and bodies, on a small application of its own with short times, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from tests.sandboxes import wait_until

from harness.errors import HarnessError
from harness_server.bodies import Bodies, check_body, expect
from harness_server.connections import CONNECTIONS, Connections, http_logger, track_connections
from harness_server.problems import status_of

MAX_BODY_BYTES = 100_000
#: Far below what a test takes, far above what an answer takes.
SHORT_SECONDS = 0.4
LONG_SECONDS = 30.0


class Peer:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, path: str = "/") -> int:
        """Ask, and return the status; the connection stays."""
        await self.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().splitlines()
            if line.startswith(b"content-length")
        )
        await self.reader.readexactly(length)
        return int(head.split()[1])

    async def rest(self) -> bytes:
        """All until the server closes, or resets the connection since it was still sent something."""
        data = b""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                while piece := await self.reader.read(1_000_000):
                    data += piece
        return data

    async def is_open(self) -> bool:
        try:
            async with asyncio.timeout(0.05):
                return await self.reader.read(1) != b""
        except TimeoutError:
            return True
        except ConnectionResetError:
            return False


class Place:
    def __init__(self, port: int, connections: Connections, bodies: Bodies) -> None:
        self.port = port
        self.connections = connections
        self.bodies = bodies
        self.peers: list[Peer] = []

    async def connect(self) -> Peer:
        self.peers.append(Peer(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.peers[-1]


@asynccontextmanager
async def place(
    *, max_body_seconds: float = LONG_SECONDS, total_bytes: int = 10**9, **bounds: Any
) -> AsyncIterator[Place]:
    times = {"head_seconds": LONG_SECONDS, "idle_seconds": LONG_SECONDS, "stall_seconds": LONG_SECONDS}
    connections = Connections(**({"max_connections": 100} | times | bounds))
    bodies = Bodies(timeout_seconds=max_body_seconds, total_bytes=total_bytes)
    going = asyncio.Event()

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def large(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 20_000_000)

    async def take(request: web.Request) -> web.Response:
        try:
            check_body(request, MAX_BODY_BYTES)
            async with bodies.reading(request, MAX_BODY_BYTES) as body:
                if request.query.get("hold"):
                    await going.wait()
                return web.Response(text=str(len(body)))
        except HarnessError as error:
            return web.Response(status=status_of(error), text=error.code)

    async def hold(_request: web.Request) -> web.Response:
        await going.wait()
        return web.Response(text="held")

    app = web.Application(middlewares=[track_connections])
    app[CONNECTIONS] = connections
    app.add_routes([web.get("/", hello), web.get("/large", large), web.get("/hold", hold)])
    app.add_routes([web.post("/", take, expect_handler=expect)])
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        lingering_time=0.2,
        logger=http_logger(),
        shutdown_timeout=0.2,
    )
    await runner.setup()
    server = runner.server
    assert server is not None
    accepting = await asyncio.get_running_loop().create_server(
        lambda: connections.wrap(server()), "127.0.0.1", 0
    )
    made = Place(accepting.sockets[0].getsockname()[1], connections, bodies)
    try:
        yield made
    finally:
        going.set()
        for peer in made.peers:
            peer.writer.close()
        accepting.close()
        await runner.cleanup()
        assert len(connections) == 0
        assert bodies.held_bytes == 0


async def dribble(peer: Peer, piece: bytes) -> None:
    """Send a piece over and over until the server has had enough."""
    try:
        while True:
            await peer.send(piece)
            await asyncio.sleep(0.02)
    except ConnectionError:
        pass


async def test_headers_that_never_end_are_answered_408_in_time() -> None:
    async with place(head_seconds=SHORT_SECONDS) as made:
        peer = await made.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        dribbling = asyncio.create_task(dribble(peer, b"X: y\r\n"))

        answer = await peer.rest()

        assert answer.startswith(b"HTTP/1.1 408 ")
        await dribbling


async def test_a_connection_that_says_nothing_is_closed_in_time() -> None:
    async with place(head_seconds=SHORT_SECONDS) as made:
        assert await (await made.connect()).rest() == b""


async def test_the_next_request_on_a_connection_has_the_same_time() -> None:
    async with place(head_seconds=SHORT_SECONDS) as made:
        peer = await made.connect()
        assert await peer.ask() == 200
        await asyncio.sleep(2 * SHORT_SECONDS)
        assert await peer.ask() == 200
        await peer.send(b"GET / HTTP/1.1\r\n")

        assert (await peer.rest()).startswith(b"HTTP/1.1 408 ")


async def test_an_idle_connection_is_closed_in_time() -> None:
    async with place(idle_seconds=SHORT_SECONDS) as made:
        peer = await made.connect()
        assert await peer.ask() == 200

        assert await peer.rest() == b""


async def test_a_request_that_is_worked_on_has_no_such_bound() -> None:
    async with place(head_seconds=SHORT_SECONDS, idle_seconds=SHORT_SECONDS) as made:
        peer = await made.connect()
        await peer.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(2 * SHORT_SECONDS)

        assert await peer.is_open()


async def test_a_client_that_does_not_read_its_answer_is_dropped() -> None:
    async with place(stall_seconds=SHORT_SECONDS) as made:
        peer = await made.connect()
        await peer.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(3 * SHORT_SECONDS)

        assert len(made.connections) == 0
        assert 0 < len(await peer.rest()) < 20_000_000


async def test_a_client_that_reads_slowly_gets_all_of_its_answer() -> None:
    async with place(stall_seconds=SHORT_SECONDS) as made:
        peer = await made.connect()
        await peer.send(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        read = 0
        while piece := await peer.reader.read(1_000_000):
            read += len(piece)
            await asyncio.sleep(0.02)

        assert read > 20_000_000


async def test_the_connection_that_has_waited_longest_makes_room_for_a_new_one() -> None:
    async with place(max_connections=3) as made:
        busy = await made.connect()
        await busy.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        slow = await made.connect()
        await slow.send(b"GET / HT")
        used = await made.connect()
        assert await used.ask() == 200

        assert await (await made.connect()).ask() == 200

        assert await slow.rest() == b""
        assert await busy.is_open()
        assert await used.ask() == 200


async def test_when_all_are_at_work_a_new_connection_is_told_to_come_back() -> None:
    async with place(max_connections=2) as made:
        for _ in range(2):
            peer = await made.connect()
            await peer.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.sleep(0.05)

        answer = await (await made.connect()).rest()

        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in answer
        assert len(made.connections) == 2


POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 100001\r\n", 413),
        (b"Content-Length: 999999999999\r\nExpect: 100-continue\r\n", 413),
        (b"Content-Encoding: gzip\r\nContent-Length: 10\r\n", 415),
        (b"Content-Encoding: identity\r\nContent-Encoding: br\r\nTransfer-Encoding: chunked\r\n", 415),
    ],
)
async def test_a_body_is_refused_by_its_headers_before_any_of_it_comes(head: bytes, status: int) -> None:
    async with place() as made:
        peer = await made.connect()
        await peer.send(POST + head + b"\r\n")

        answer = await peer.rest()

        assert answer.startswith(f"HTTP/1.1 {status} ".encode())


async def test_a_body_without_a_length_is_cut_at_the_cap() -> None:
    async with place() as made:
        peer = await made.connect()
        await peer.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        dribbling = asyncio.create_task(dribble(peer, b"4e20\r\n" + b"x" * 20000 + b"\r\n"))

        answer = await peer.rest()

        assert answer.startswith(b"HTTP/1.1 413 ")
        await dribbling


async def test_a_body_that_dribbles_in_is_given_up_in_time() -> None:
    async with place(max_body_seconds=SHORT_SECONDS) as made:
        peer = await made.connect()
        await peer.send(POST + b"Content-Length: 50000\r\n\r\n")
        dribbling = asyncio.create_task(dribble(peer, b"x"))

        answer = await peer.rest()

        assert answer.startswith(b"HTTP/1.1 408 ")
        await dribbling


@pytest.mark.parametrize("is_at_once", [True, False])
@pytest.mark.parametrize("wire", [b"zz\r\nx\r\n", b"3\r\nabcdef\r\n"])
async def test_a_body_that_is_not_framed_right_is_refused(
    wire: bytes, is_at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # aiohttp tells a handler that waits nothing of an error further on in its body; time runs out for it.
    async with place(max_body_seconds=SHORT_SECONDS) as made:
        peer = await made.connect()
        await peer.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + wire * is_at_once)
        if not is_at_once:
            await asyncio.sleep(0.05)
            await peer.send(wire)

        answer = await peer.rest()

        assert answer.split()[1] in (b"400", b"408")
        assert "Traceback" not in caplog.text


async def test_all_bodies_together_are_held_in_bounded_memory() -> None:
    async with place(total_bytes=250_000) as made:
        for _ in range(2):
            peer = await made.connect()
            await peer.send(
                POST.replace(b"/ ", b"/?hold=1 ", 1) + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000
            )

        async def both_are_held() -> bool:
            return made.bodies.held_bytes == 200_000

        await wait_until(both_are_held)
        peer = await made.connect()
        await peer.send(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)

        assert (await peer.rest()).startswith(b"HTTP/1.1 429 ")

        assert made.bodies.held_bytes == 200_000


async def test_go_on_is_said_when_the_body_is_wanted() -> None:
    async with place() as made:
        peer = await made.connect()
        await peer.send(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await peer.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await peer.send(b"abc")

        answer = await peer.rest()

        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n3")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nAuthorization: Bearer canary\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nAuthorization Bearer canary\r\n\r\n",
        b"GET /?canary" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: canary" + b"a" * 10_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: canary\r\n" * 200 + b"\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_fills_no_log(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with place() as made:
        peer = await made.connect()
        await peer.send(request_bytes)

        answer = await peer.rest()

    assert answer.split()[1] == b"400"
    assert not caplog.records
