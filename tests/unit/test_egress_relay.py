"""The relay's own program, as a process beside the runner's end of it; containers come in under tests/integration."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.egress import PROXY_PORT
from harness.egress.frames import MAX_PAYLOAD_BYTES, WINDOW_BYTES
from harness.egress.mux import MAX_CONNECTIONS, Connection, RelayLink, Serve

SOURCES = Path(__file__).parents[2] / "sandbox-images" / "python"
#: At a port of the test's own.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(SOURCES)!r})
import egress_relay
assert egress_relay.ADDRESS == ("127.0.0.1", {PROXY_PORT})
assert egress_relay.CHUNK_BYTES == {MAX_PAYLOAD_BYTES} and egress_relay.WINDOW_BYTES == {WINDOW_BYTES}
assert egress_relay.MAX_CONNECTIONS == {MAX_CONNECTIONS}
egress_relay.ADDRESS = ("127.0.0.1", int(sys.argv[1]))
egress_relay.main()
"""


@dataclass
class Relay:
    process: asyncio.subprocess.Process
    port: int
    running: asyncio.Task[None]
    #: Whether what it writes is read.
    is_read: asyncio.Event

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    @property
    def memory_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


class _Pipe:
    def __init__(self, process: asyncio.subprocess.Process, is_read: asyncio.Event) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._is_read = is_read

    async def read(self) -> bytes:
        await self._is_read.wait()
        return await self._stdout.read(65536)

    def write(self, data: bytes) -> None:
        self._stdin.write(data)

    async def drain(self) -> None:
        await self._stdin.drain()


@asynccontextmanager
async def relaying(serve: Serve) -> AsyncIterator[Relay]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        port = made.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", PROGRAM, str(port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    is_read = asyncio.Event()
    is_read.set()
    link = RelayLink(_Pipe(process, is_read), serve)
    try:
        async with asyncio.timeout(20):
            await link.until_ready()
        running = asyncio.create_task(link.run())
        yield Relay(process, port, running, is_read)
        assert process.returncode is None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        process.stdin.close()
        # It ends with its runner.
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def echo(connection: Connection) -> None:
    while data := await connection.read():
        await connection.write(data)
    connection.end()
    await connection.until_delivered()


async def test_megabytes_go_both_ways_unchanged_on_several_connections_at_once() -> None:
    async def exchange(relay: Relay, byte: bytes) -> bytes:
        reader, writer = await relay.connect()

        async def send() -> None:
            for _ in range(64):
                writer.write(byte * 65536)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        answer = await reader.read(-1)
        await sending
        writer.close()
        return answer

    async with relaying(echo) as relay:
        answers = await asyncio.wait_for(
            asyncio.gather(*(exchange(relay, b) for b in (b"a", b"b", b"c"))), 30
        )

    assert [
        answer == byte * 64 * 65536 for answer, byte in zip(answers, (b"a", b"b", b"c"), strict=True)
    ] == [True] * 3


async def test_no_more_than_its_share_of_connections_is_open_and_the_others_wait_their_turn() -> None:
    most = now = 0
    released = asyncio.Event()

    async def hold(connection: Connection) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            await released.wait()
            await echo(connection)
        finally:
            now -= 1

    async def ask(relay: Relay) -> bytes:
        reader, writer = await relay.connect()
        writer.write(b"x")
        writer.write_eof()
        with contextlib.closing(writer):
            return await reader.read()

    async with relaying(hold) as relay:
        asking = [asyncio.create_task(ask(relay)) for _ in range(MAX_CONNECTIONS + 40)]
        async with asyncio.timeout(20):
            while most < MAX_CONNECTIONS:  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.01)
        released.set()
        answers = await asyncio.wait_for(asyncio.gather(*asking), 30)

    assert answers == [b"x"] * len(asking)
    assert most == MAX_CONNECTIONS


async def test_programs_that_do_not_read_hold_up_nobody_and_cost_a_window_each() -> None:
    async def pour_or_echo(connection: Connection) -> None:
        if await connection.read() == b"pour":
            while True:
                await connection.write(b"." * 65536)
        await connection.write(b"served")
        connection.end()
        await connection.until_delivered()

    async with relaying(pour_or_echo) as relay:
        before = relay.memory_bytes
        held = []
        for _ in range(MAX_CONNECTIONS - 4):
            one = socket.create_connection(("127.0.0.1", relay.port))
            one.sendall(b"pour")
            held.append(one)
        await asyncio.sleep(1)
        reader, writer = await relay.connect()
        writer.write(b"serve")
        assert await asyncio.wait_for(reader.read(), 10) == b"served"
        writer.close()
        assert relay.memory_bytes - before < 2 * MAX_CONNECTIONS * WINDOW_BYTES
        for one in held:
            one.close()


async def test_what_comes_while_its_runner_does_not_read_is_not_taken_from_programs() -> None:
    async with relaying(echo) as relay:
        before = relay.memory_bytes
        relay.is_read.clear()
        # What the pipe holds of its first words may still be on the way.
        await asyncio.sleep(0.1)
        end = asyncio.get_running_loop().time() + 1
        while asyncio.get_running_loop().time() < end:
            with contextlib.suppress(OSError), socket.socket() as one:
                one.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    one.connect(("127.0.0.1", relay.port))
                one.send(b"." * 100_000)
            await asyncio.sleep(0)
        assert relay.memory_bytes - before < 16 << 20
        relay.is_read.set()
        reader, writer = await relay.connect()
        writer.write(b"after it")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 30) == b"after it"
        writer.close()


async def test_a_program_that_resets_its_connection_takes_nothing_with_it() -> None:
    ended = 0

    async def serve(connection: Connection) -> None:
        nonlocal ended
        try:
            await echo(connection)
        finally:
            ended += 1

    async with relaying(serve) as relay:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", relay.port)) as one:
                one.sendall(b"x")
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while ended < 50:  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.01)
        assert not relay.running.done()
